// Exceptions of the standard library as errors.
#pragma once

#include <exception>
#include <new>

#include "brgemm/core/result.hpp"

namespace brgemm::inline abi_0::cuda {

template <class T, class Body>
result<T> without_exceptions(const Body& body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return error(errc::out_of_memory, "desc", "no memory on the CPU for what a GPU needs");
  } catch (const std::exception& e) {
    return error(errc::device, "device", "%s", e.what());
  }
}

}  // namespace brgemm::inline abi_0::cuda
