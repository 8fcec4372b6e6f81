// The backend `avx2`: kernels generated for AVX2 with FMA, with F16C and AVX-VNNI where the CPU has them.
#pragma once

#include "jit_backend.hpp"

namespace brgemm::inline abi_0::backend {
namespace detail {
inline vector_unit avx2_unit() noexcept { return {false, cpu()}; }
}  // namespace detail

inline constexpr entry avx2{
    "avx2",
    []() noexcept { return cpu().has(feature::avx2); },
    [](const desc& d) noexcept { return detail::supported(d, detail::avx2_unit()); },
    [](const desc& d, std::span<std::uint8_t> buffer) noexcept {
      return detail::generate(d, buffer, detail::avx2_unit());
    },
    [](const desc& d, char* text, std::size_t size) noexcept {
      return detail::explain(d, text, size, detail::avx2_unit());
    },
};

}  // namespace brgemm::inline abi_0::backend
