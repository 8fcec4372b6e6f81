// The checks of the buffers of a call: each is there, and what is written overlaps nothing else.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "../core/desc.hpp"
#include "../core/result.hpp"
#include "../core/types.hpp"
#include "../core/view.hpp"

namespace brgemm::inline abi_0::detail {

/// A buffer of a call, for the checks of null and overlap.
struct buffer {
  const char* name;
  const void* at;
  index bytes;          ///< 0: not used, must be null
  index alignment = 4;  ///< of an element
};

/// The elements of a matrix whose rows are adjacent elements.
template <class T>
buffer buffer_of(const char* name, const view<T, 2>& v) noexcept {
  return {name, v.data(), ((v.extent(0) - 1) * v.stride(0) + v.extent(1)) * static_cast<index>(sizeof(T)),
          static_cast<index>(alignof(T))};
}

/// A matrix (rows, columns), (columns, rows) where it is stored transposed, with rows of adjacent elements.
template <class T>
result<void> check_stored(const char* name, const view<T, 2>& v, layout stored, index rows, index columns) noexcept {
  if (stored != layout::plain && stored != layout::transposed) {
    return error(errc::invalid_argument, "stored", "stored is %d; plain (0) or transposed (1)",
                 static_cast<int>(stored));
  }
  constexpr index largest = index{1} << 29;
  const index lines = stored == layout::transposed ? columns : rows;
  const index width = stored == layout::transposed ? rows : columns;
  if (v.extent(0) == lines && v.extent(1) == width && v.stride(1) == 1 && v.stride(0) >= width &&
      v.stride(0) <= largest) {
    return {};
  }
  return error(errc::invalid_argument, name,
               "%s is (%ld,%ld) with strides (%ld,%ld); needed is (%ld,%ld) with strides (%ld..2^29,1)", name,
               v.extent(0), v.extent(1), v.stride(0), v.stride(1), lines, width, width);
}

inline result<void> check_buffer(const buffer& b) noexcept {
  if (b.bytes > 0 && b.at == nullptr) {
    return error(errc::invalid_argument, b.name, "%s is null; %ld bytes of it are used", b.name, b.bytes);
  }
  if (b.bytes == 0 && b.at != nullptr) {
    return error(errc::invalid_argument, b.name, "%s is %p, but this plan uses none: it must be null", b.name, b.at);
  }
  const auto address = reinterpret_cast<std::uintptr_t>(b.at);
  if (address % static_cast<std::uintptr_t>(b.alignment) != 0) {
    return error(errc::invalid_argument, b.name, "%s is at %p, which is no multiple of %ld bytes, an element's size",
                 b.name, b.at, b.alignment);
  }
  if (address > std::numeric_limits<std::uintptr_t>::max() - static_cast<std::uintptr_t>(b.bytes)) {
    return error(errc::invalid_argument, b.name, "%s, %ld bytes at %p, leaves the address space", b.name, b.bytes,
                 b.at);
  }
  return {};
}

inline bool overlap(const buffer& x, const buffer& y) noexcept {
  const auto begin = [](const buffer& b) { return reinterpret_cast<std::uintptr_t>(b.at); };
  const auto end = [&](const buffer& b) { return begin(b) + static_cast<std::uintptr_t>(b.bytes); };
  return x.bytes > 0 && y.bytes > 0 && begin(x) < end(y) && begin(y) < end(x);
}

/// Every buffer is there, and what is written overlaps nothing else.
template <std::size_t Written, std::size_t Read>
result<void> check_buffers(const buffer (&written)[Written], const buffer (&read)[Read]) noexcept {
  for (const buffer& b : written) {
    if (auto r = check_buffer(b); !r) return r;
  }
  for (const buffer& b : read) {
    if (auto r = check_buffer(b); !r) return r;
  }
  for (const buffer& w : written) {
    for (const auto& others : {std::span<const buffer>(written), std::span<const buffer>(read)}) {
      for (const buffer& o : others) {
        if (&o == &w || !overlap(w, o)) continue;
        return error(errc::invalid_argument, w.name, "%s (%ld bytes at %p) overlaps %s (%ld bytes at %p)", w.name,
                     w.bytes, w.at, o.name, o.bytes, o.at);
      }
    }
  }
  return {};
}

}  // namespace brgemm::inline abi_0::detail
