// Blocks of elements brought from one order into another: to bf16, transposed, rows in pairs.
#pragma once

#include <emmintrin.h>

#include <cstring>

#include "../core/cpu.hpp"
#include "../loops/elementwise.hpp"
#include "storage.hpp"

namespace brgemm::inline abi_0::detail {

/// To bf16 without a branch, so that loops over it become vectors; the same bits as to_bf16.
BRGEMM_ALWAYS_INLINE inline std::uint16_t bf16_bits(float x) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = u & 0x7fffffffu;
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const std::uint32_t flushed = magnitude < 0x00800000u ? (u >> 16) & 0x8000u : rounded;
  return static_cast<std::uint16_t>(magnitude > 0x7f800000u ? (u >> 16) | 0x40u : flushed);
}

/// For the blocks of a matrix that is more than the caches hold: what is written goes past them, and while one block is
/// rearranged the next one is fetched, which may be far away.
struct streaming {
  bool on = false;
  const char* next = nullptr;  ///< the next block, on neighbouring lines; null: nothing is fetched
};

/// Whether a rearrangement that reads and writes so many bytes is more than the caches hold, half of which are others'.
/// `to` must be on 16 bytes.
inline bool passes_caches(index bytes, const void* to) noexcept {
  const index cache = largest_cache_bytes();
  return cache > 0 && bytes > cache / 2 && reinterpret_cast<std::uintptr_t>(to) % 16 == 0;
}

/// to[c * ld_to + r] = from[r * ld_from + c] for 32-bit words, by squares of four in registers. Streaming, `to` is
/// on 16 bytes, ld_to a multiple of 4, and the caller orders the stores by _mm_sfence.
inline void transpose_words(const float* from, index ld_from, float* to, index ld_to, index rows, index columns,
                            streaming ahead = {}) noexcept {
  const index whole_rows = rows / 4 * 4;
  const index whole_columns = columns / 4 * 4;
  for (index c = 0; c < whole_columns; c += 4) {
    for (index r = 0; r < whole_rows; r += 4) {
      __m128 row[4];
      for (index i = 0; i < 4; ++i) row[i] = _mm_loadu_ps(from + (r + i) * ld_from + c);
      _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
      float* const square = to + c * ld_to + r;
      if (ahead.next != nullptr) {
        _mm_prefetch(ahead.next, _MM_HINT_T0);
        ahead.next += 64;  // a square is as large as a line
      }
      if (ahead.on) {
        for (index i = 0; i < 4; ++i) _mm_stream_ps(square + i * ld_to, row[i]);
      } else {
        for (index i = 0; i < 4; ++i) _mm_storeu_ps(square + i * ld_to, row[i]);
      }
    }
  }
  for (index c = 0; c < columns; ++c) {
    for (index r = c < whole_columns ? whole_rows : 0; r < rows; ++r) {
      std::memcpy(to + c * ld_to + r, from + r * ld_from + c, 4);
    }
  }
}

/// Rows of 16-bit elements, two by two: to[r/2 * ld_to + c] = (from[r][c], from[r+1][c]); a missing last row is zero.
inline void interleave_rows(const std::uint16_t* from, index ld_from, std::uint32_t* to, index ld_to, index rows,
                            index columns) noexcept {
  for (index r = 0; r < rows; r += 2) {
    const std::uint16_t* const even = from + r * ld_from;
    const std::uint16_t* const odd = even + ld_from;
    std::uint32_t* const pairs = to + r / 2 * ld_to;
    const bool both = r + 1 < rows;
    index c = 0;
    for (; both && c + 8 <= columns; c += 8) {
      const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(even + c));
      const __m128i y = _mm_loadu_si128(reinterpret_cast<const __m128i*>(odd + c));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(pairs + c), _mm_unpacklo_epi16(x, y));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(pairs + c + 4), _mm_unpackhi_epi16(x, y));
    }
    for (; c < columns; ++c) pairs[c] = even[c] | (both ? static_cast<std::uint32_t>(odd[c]) << 16 : 0u);
  }
}

/// The transpose of at most 64 rows of 16-bit elements: to[c * ld_to + r] = from[r * ld_from + c], ld_to even; an odd
/// last row is followed by zeros. Pairs of rows first, then 32-bit words.
inline void transpose_rows(const std::uint16_t* from, index ld_from, std::uint16_t* to, index ld_to, index rows,
                           index columns) noexcept {
  constexpr index strip = 16;
  alignas(64) std::uint32_t pairs[nn::block_rows / 2 * strip];  // (32, 16)
  for (index c = 0; c < columns; c += strip) {
    const index here = columns - c < strip ? columns - c : strip;
    interleave_rows(from + c, ld_from, pairs, strip, rows, here);
    transpose_words(reinterpret_cast<const float*>(pairs), strip, reinterpret_cast<float*>(to + c * ld_to), ld_to / 2,
                    (rows + 1) / 2, here);
  }
}

/// One panel of f32 parameters (in, w) to bf16 weights (ceil(in/2), w, 2).
inline void pair_rows(const float* from, index in, index width, std::uint32_t* to) noexcept {
  widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
    for (index i = 0; i < in; i += 2) {
      const float* const even = from + i * width;
      const float* const odd = even + width;
      std::uint32_t* const pairs = to + i / 2 * width;
      if (i + 1 < in) {
        for (index j = 0; j < width; ++j) {
          pairs[j] = bf16_bits(even[j]) | static_cast<std::uint32_t>(bf16_bits(odd[j])) << 16;
        }
      } else {
        for (index j = 0; j < width; ++j) pairs[j] = bf16_bits(even[j]);
      }
    }
  });
}

/// A block (rows, columns) of f32 to bf16, its transpose with pairs of columns beside each other: to[c/2 * ld + r].
inline void transpose_to_pairs(const float* from, index ld_from, index rows, index columns, std::uint32_t* to,
                               index ld_to, streaming ahead = {}) noexcept {
  constexpr index at_once = 16;
  alignas(64) std::uint32_t pairs[at_once * 64];  // (16, <= 64): pairs of one strip of rows
  for (index r0 = 0; r0 < rows; r0 += at_once) {
    const index here = rows - r0 < at_once ? rows - r0 : at_once;
    widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
      for (index r = 0; r < here; ++r) {
        const float* const row = from + (r0 + r) * ld_from;
        for (index line = 0; ahead.next != nullptr && line < columns; line += 16) {
          _mm_prefetch(ahead.next + ((r0 + r) * ld_from + line) * 4, _MM_HINT_T0);
        }
        for (index p = 0; p < columns / 2; ++p) {
          pairs[r * 64 + p] = bf16_bits(row[2 * p]) | static_cast<std::uint32_t>(bf16_bits(row[2 * p + 1])) << 16;
        }
        if (columns % 2 != 0) pairs[r * 64 + columns / 2] = bf16_bits(row[columns - 1]);
      }
    });
    transpose_words(reinterpret_cast<const float*>(pairs), 64, reinterpret_cast<float*>(to + r0), ld_to, here,
                    (columns + 1) / 2, {.on = ahead.on});
  }
}

}  // namespace brgemm::inline abi_0::detail
