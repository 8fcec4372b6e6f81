// Blocks of elements brought from one order into another: to bf16, transposed, rows in pairs.
#pragma once

#include <emmintrin.h>  // immintrin.h would double what a file that includes this one compiles

#include <cstring>
#include <type_traits>

#include "../core/cpu.hpp"
#include "../loops/split.hpp"
#include "storage.hpp"

namespace brgemm::inline abi_0::detail {

/// For the blocks of a matrix that is more than the caches hold: what is written goes past them, and while one block is
/// rearranged the next one is fetched, which may be far away.
struct streaming {
  bool on = false;
  const char* next = nullptr;  ///< the next block, laid as this one; null: nothing is fetched
};

/// Whether a rearrangement that reads and writes so many bytes is more than the caches hold, half of which are others'.
/// `to` must be on 16 bytes.
inline bool passes_caches(index bytes, const void* to) noexcept {
  const index cache = largest_cache_bytes();
  return cache > 0 && bytes > cache / 2 && reinterpret_cast<std::uintptr_t>(to) % 16 == 0;
}

// Vectors of the compiler, because GCC 12 warns inside its own 512-bit intrinsics (its bug 105593).
using words = std::uint32_t __attribute__((vector_size(64)));
using pairs_of_words = std::uint64_t __attribute__((vector_size(64)));

/// transpose_words for at least 16 rows and columns, by squares of 16 in registers: where they are no multiples of 16,
/// the last squares overlap the ones before. Streaming, they are multiples, `to` is on 64 bytes, ld_to a multiple
/// of 16.
[[gnu::target("avx512f")]] inline void transpose_by_16(const float* from, index ld_from, float* to, index ld_to,
                                                       index rows, index columns, streaming ahead) noexcept {
  for (index left = 0; left < columns; left += 16) {
    const index c = left + 16 <= columns ? left : columns - 16;
    for (index above = 0; above < rows; above += 16) {
      const index r = above + 16 <= rows ? above : rows - 16;
      words x[16], y[16];
      const float* row = from + r * ld_from + c;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i, row += ld_from) std::memcpy(&x[i], row, sizeof(words));
      for (int line = 0; ahead.next != nullptr && line < 16; ++line, ahead.next += 64) {
        _mm_prefetch(ahead.next, _MM_HINT_T0);
      }
#pragma GCC unroll 8
      for (int i = 0; i < 16; i += 2) {  // squares of 2 x 2
        y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
      }
#pragma GCC unroll 8
      for (int j = 0; j < 16; j += 2) {  // of 4 x 4, in each quarter of a vector
        const int i = j / 4 * 4 + j % 4 / 2;
        const auto upper = reinterpret_cast<pairs_of_words>(y[i]);
        const auto lower = reinterpret_cast<pairs_of_words>(y[i + 2]);
        x[j] = reinterpret_cast<words>(__builtin_shufflevector(upper, lower, 0, 8, 2, 10, 4, 12, 6, 14));
        x[j + 1] = reinterpret_cast<words>(__builtin_shufflevector(upper, lower, 1, 9, 3, 11, 5, 13, 7, 15));
      }
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {  // of 8 x 8: quarters 0 and 2, quarters 1 and 3
        const int i = j / 4 * 8 + j % 4;
        y[i] = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        y[i + 4] = __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        x[i] = __builtin_shufflevector(y[i], y[i + 8], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        x[i + 8] = __builtin_shufflevector(y[i], y[i + 8], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
      }
      float* column = to + c * ld_to + r;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i, column += ld_to) {
        if (ahead.on) {
          __asm__("vmovntdq %1, %0" : "=m"(*reinterpret_cast<words*>(column)) : "v"(x[i]));
        } else {
          std::memcpy(column, &x[i], sizeof(words));
        }
      }
    }
  }
}

/// transpose_words of whole squares of 8 in registers.
[[gnu::target("avx2")]] inline void transpose_by_8(const float* from, index ld_from, float* to, index ld_to, index rows,
                                                   index columns) noexcept {
  using words = float __attribute__((vector_size(32)));
  for (index c = 0; c < columns; c += 8) {
    for (index r = 0; r < rows; r += 8) {
      words x[8], y[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) std::memcpy(&x[i], from + (r + i) * ld_from + c, sizeof(words));
#pragma GCC unroll 4
      for (int i = 0; i < 8; i += 2) {  // squares of 2 x 2
        y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 8; i += 4) {  // of 4 x 4, in each half of a vector
        x[i] = __builtin_shufflevector(y[i], y[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        x[i + 1] = __builtin_shufflevector(y[i], y[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        x[i + 2] = __builtin_shufflevector(y[i + 1], y[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        x[i + 3] = __builtin_shufflevector(y[i + 1], y[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
      }
      float* const square = to + c * ld_to + r;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const words low = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        const words high = __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
        std::memcpy(square + i * ld_to, &low, sizeof low);
        std::memcpy(square + (i + 4) * ld_to, &high, sizeof high);
      }
    }
  }
}

/// transpose_words by squares of four. Streaming, `to` is on 16 bytes and ld_to a multiple of 4.
inline void transpose_by_4(const float* from, index ld_from, float* to, index ld_to, index rows, index columns,
                           streaming ahead) noexcept {
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
  const auto copy = [=](index r, index c) { std::memcpy(to + c * ld_to + r, from + r * ld_from + c, 4); };
  for (index r = whole_rows; r < rows; ++r) {
    for (index c = 0; c < whole_columns; ++c) copy(r, c);
  }
  for (index c = whole_columns; c < columns; ++c) {
    for (index r = 0; r < rows; ++r) copy(r, c);
  }
}

/// to[c * ld_to + r] = from[r * ld_from + c] for 32-bit words. Streaming, `to` is on 16 bytes, ld_to a multiple of 4,
/// and the caller orders the stores by _mm_sfence.
inline void transpose_words(const float* from, index ld_from, float* to, index ld_to, index rows, index columns,
                            streaming ahead = {}) noexcept {
  const bool on_lines = reinterpret_cast<std::uintptr_t>(to) % 64 == 0 && ld_to % 16 == 0;
  if (rows >= 8 && rows < 16 && !ahead.on && ahead.next == nullptr && cpu().has(feature::avx2)) {
    const index below = rows / 8 * 8;
    const index beside = columns / 8 * 8;
    transpose_by_8(from, ld_from, to, ld_to, below, beside);
    transpose_by_4(from + beside, ld_from, to + beside * ld_to, ld_to, below, columns - beside, {});
    return transpose_by_4(from + below * ld_from, ld_from, to + below, ld_to, rows - below, columns, {});
  }
  if (!cpu().has(feature::avx512) || rows < 16 || columns < 16 || (ahead.on && !on_lines)) {
    return transpose_by_4(from, ld_from, to, ld_to, rows, columns, ahead);
  }
  if (!ahead.on) return transpose_by_16(from, ld_from, to, ld_to, rows, columns, ahead);
  const index below = rows / 16 * 16;
  const index beside = columns / 16 * 16;
  transpose_by_16(from, ld_from, to, ld_to, below, beside, ahead);
  const streaming rest{.on = ahead.on};
  transpose_by_4(from + beside, ld_from, to + beside * ld_to, ld_to, below, columns - beside, rest);
  transpose_by_4(from + below * ld_from, ld_from, to + below, ld_to, rows - below, columns, rest);
}

/// A square of 16 bytes in each of its rows, of 8- or 16-bit words: rounds of interleaving each half of the rows with
/// the other.
template <class Word>
void transpose_square(const char* from, index pitch_from, char* to, index pitch_to) noexcept {
  constexpr int n = 16 / sizeof(Word);
  __m128i x[n], y[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) x[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * pitch_from));
#pragma GCC unroll 4
  for (int rounds = 1; rounds < n; rounds *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      const __m128i above = x[i], below = x[i + n / 2];
      y[2 * i] = n == 16 ? _mm_unpacklo_epi8(above, below) : _mm_unpacklo_epi16(above, below);
      y[2 * i + 1] = n == 16 ? _mm_unpackhi_epi8(above, below) : _mm_unpackhi_epi16(above, below);
    }
    std::memcpy(x, y, sizeof x);
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * pitch_to), x[i]);
}

/// The transpose of a matrix of 8- or 16-bit words, by blocks that are turned beside it: rows a power of two apart fall
/// on the same lines of a cache. Pitches in bytes.
template <class Word>
void transpose_by_squares(const char* from, index pitch_from, char* to, index pitch_to, index rows,
                          index columns) noexcept {
  constexpr index size = sizeof(Word);
  constexpr index n = 16 / size;
  constexpr index strip = 64;
  alignas(64) char turned[strip * strip * size];
  for (index r0 = 0; r0 < rows; r0 += strip) {
    for (index c0 = 0; c0 < columns; c0 += strip) {
      const index height = rows - r0 < strip ? rows - r0 : strip;
      const index width = columns - c0 < strip ? columns - c0 : strip;
      const char* const block = from + r0 * pitch_from + c0 * size;
      for (index r = 0; r < height / n * n; r += n) {
        for (index c = 0; c < width / n * n; c += n) {
          transpose_square<Word>(block + r * pitch_from + c * size, pitch_from, turned + (c * strip + r) * size,
                                 strip * size);
        }
      }
      for (index r = 0; r < height; ++r) {
        for (index c = r < height / n * n ? width / n * n : 0; c < width; ++c) {
          std::memcpy(turned + (c * strip + r) * size, block + r * pitch_from + c * size, size);
        }
      }
      for (index c = 0; c < width; ++c) {
        std::memcpy(to + (c0 + c) * pitch_to + r0 * size, turned + c * strip * size,
                    static_cast<std::size_t>(height * size));
      }
    }
  }
}

/// The transpose of a matrix of elements of 1, 2, 4 or 8 bytes, whose rows begin at multiples of that. Pitches in
/// bytes.
inline void transpose_elements(const char* from, index pitch_from, char* to, index pitch_to, index rows, index columns,
                               index size) noexcept {
  switch (size) {
    case 1: return transpose_by_squares<std::uint8_t>(from, pitch_from, to, pitch_to, rows, columns);
    case 2: return transpose_by_squares<std::uint16_t>(from, pitch_from, to, pitch_to, rows, columns);
    case 4:
      return transpose_words(reinterpret_cast<const float*>(from), pitch_from / 4, reinterpret_cast<float*>(to),
                             pitch_to / 4, rows, columns);
    default: break;
  }
  for (index r = 0; r < rows; ++r) {
    for (index c = 0; c < columns; ++c) std::memcpy(to + c * pitch_to + r * 8, from + r * pitch_from + c * 8, 8);
  }
}

/// Rows of 16-bit elements, two by two: to[r/2 * ld_to + c] = (row r, row r+1) at c; a missing last row is zero. Row r
/// begins at row(r); where `ahead` fetches, it is laid as rows ld_ahead elements apart.
template <class Row>
void interleave_rows_at(const Row& row, index ld_ahead, std::uint32_t* to, index ld_to, index rows, index columns,
                        streaming ahead = {}) noexcept {
  const auto interleave = [&](const auto columns_of_row) BRGEMM_ALWAYS_INLINE {
    const index width = columns_of_row;
    for (index r = 0; r < rows; r += 2) {
      const std::uint16_t* const even = row(r);
      std::uint32_t* const pairs = to + r / 2 * ld_to;
      for (index c = 0; ahead.next != nullptr && c < width; c += 32) {
        _mm_prefetch(ahead.next + (r * ld_ahead + c) * 2, _MM_HINT_T0);
        _mm_prefetch(ahead.next + ((r + 1) * ld_ahead + c) * 2, _MM_HINT_T0);
      }
      if (r + 1 < rows) {
        const std::uint16_t* const odd = row(r + 1);
        const index whole = width < 16 ? width : width / 16 * 16;
        BRGEMM_INDEPENDENT
        for (index c = 0; c < whole; ++c) pairs[c] = even[c] | static_cast<std::uint32_t>(odd[c]) << 16;
        if (whole == width) continue;
        for (index c = width - 16; c < width; ++c) {  // a vector that overlaps the one before
          pairs[c] = even[c] | static_cast<std::uint32_t>(odd[c]) << 16;
        }
      } else {
        for (index c = 0; c < width; ++c) pairs[c] = even[c];
      }
    }
  };
  using panel = std::integral_constant<index, 64>;  // whose loop is unrolled: two thirds of the time
  widest_vectors([&]() BRGEMM_ALWAYS_INLINE { columns == panel::value ? interleave(panel{}) : interleave(columns); });
}
inline void interleave_rows(const std::uint16_t* from, index ld_from, std::uint32_t* to, index ld_to, index rows,
                            index columns, streaming ahead = {}) noexcept {
  interleave_rows_at([from, ld_from](index r) BRGEMM_ALWAYS_INLINE { return from + r * ld_from; }, ld_from, to, ld_to,
                     rows, columns, ahead);
}

/// The transpose of at most 64 rows of 16-bit elements: to[c * ld_to + r] = row r at c, ld_to even; an odd last row is
/// followed by zeros. Pairs of rows first, then 32-bit words. Rows as for interleave_rows_at.
template <class Row>
void transpose_rows_at(const Row& row, index ld_ahead, std::uint16_t* to, index ld_to, index rows, index columns,
                       streaming ahead = {}) noexcept {
  constexpr index strip = 64;
  alignas(64) std::uint32_t pairs[nn::block_rows / 2 * strip];  // (32, 64)
  for (index c = 0; c < columns; c += strip) {
    const index here = columns - c < strip ? columns - c : strip;
    const streaming strip_ahead{.next = ahead.next != nullptr ? ahead.next + c * 2 : nullptr};
    const auto strip_row = [&row, c](index r) BRGEMM_ALWAYS_INLINE { return row(r) + c; };
    interleave_rows_at(strip_row, ld_ahead, pairs, strip, rows, here, strip_ahead);
    transpose_words(reinterpret_cast<const float*>(pairs), strip, reinterpret_cast<float*>(to + c * ld_to), ld_to / 2,
                    (rows + 1) / 2, here);
  }
}
inline void transpose_rows(const std::uint16_t* from, index ld_from, std::uint16_t* to, index ld_to, index rows,
                           index columns, streaming ahead = {}) noexcept {
  transpose_rows_at([from, ld_from](index r) BRGEMM_ALWAYS_INLINE { return from + r * ld_from; }, ld_from, to, ld_to,
                    rows, columns, ahead);
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
