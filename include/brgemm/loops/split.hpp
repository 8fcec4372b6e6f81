// f32 as sums of bf16 pieces, so that instructions for bf16 multiply matrices of f32: a = a1 + a2 + a3, each piece the
// nearest bf16 to what the ones before it left. docs/numerics.md has the error bounds.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <span>

#include "../core/desc.hpp"
#include "../kernel/pack.hpp"
#include "blocks.hpp"
#include "elementwise.hpp"

namespace brgemm::inline abi_0 {

/// How loops multiply matrices of f32. Pieces are for AMX tiles: on vectors alone they take
/// at least six (three) times the products of f32, to the same bits. docs/numerics.md has their bounds and their range:
/// an element that is not finite, or rounds to an infinity, gives NaN.
enum class math : std::uint8_t {
  f32,     ///< one fma a term
  bf16x2,  ///< two pieces an element, the three products of pieces above 2^-16
  bf16x3,  ///< three pieces, the six products from 2^-16 on
};
inline constexpr int math_count = 3;

namespace detail {

/// k of one product of pieces, that of order::tile: its sums are order::tile on every machine.
inline constexpr index split_chunk = 32;

constexpr index chunks_of(index k) noexcept { return (k + split_chunk - 1) / split_chunk; }
constexpr index pieces_of(math how) noexcept { return how == math::f32 ? 1 : how == math::bf16x2 ? 2 : 3; }

/// Error: unsupported "sums".
inline result<void> check_order_of_pieces(math how, order sums) noexcept {
  if (auto r = check_enumerator("sums", static_cast<int>(sums), 5); !r) return r;
  if (how == math::f32 || sums == order::machine || sums == order::tile) return {};
  return error(errc::unsupported, "sums",
               "sums is %d, and compute %d: products of pieces are summed in order::tile, %d", static_cast<int>(sums),
               static_cast<int>(how), static_cast<int>(order::tile));
}

/// Elements of bf16 that k elements of f32 become: (ceil(k/32), pieces, 32), the missing ones of the last chunk zero.
constexpr index split_elements(index k, math how) noexcept { return chunks_of(k) * split_chunk * pieces_of(how); }

/// Elements from one row of pieces of A to the next: not so many bytes that rows fall on the same lines of the caches.
constexpr index split_pitch(index k, math how) noexcept {
  const index elements = split_elements(k, how);
  return elements % 2048 == 0 ? elements + split_chunk : elements;
}

/// Which piece of A meets which of B.
struct pair_of_pieces {
  index a;
  index b;
};
/// In the order in which they are summed in each chunk of k: the small ones first.
inline constexpr pair_of_pieces products_of_three[] = {{2, 0}, {1, 1}, {0, 2}, {0, 1}, {1, 0}, {0, 0}};
inline constexpr pair_of_pieces products_of_two[] = {{0, 1}, {1, 0}, {0, 0}};
constexpr std::span<const pair_of_pieces> products_of(math how) noexcept {
  if (how == math::bf16x3) return products_of_three;
  return products_of_two;
}

/// 32 elements to (Pieces, 32). What a piece leaves is exact.
template <int Pieces>
BRGEMM_ALWAYS_INLINE inline void split_into(const float* from, std::uint16_t* to) noexcept {
  alignas(64) float left[split_chunk];
  std::memcpy(left, from, sizeof left);
  for (int piece = 0; piece < Pieces; ++piece, to += split_chunk) {
    BRGEMM_INDEPENDENT
    for (index i = 0; i < split_chunk; ++i) {
      const std::uint16_t bits = bf16_bits(left[i]);
      to[i] = bits;
      left[i] -= widened(bits);
    }
  }
}

/// Chunk `first` / 32 of each row of a block: rows `t.ld` apart, in columns of `width` that are t.column_step apart.
template <int Pieces>
void split_rows(const float* from, const loops::tiling& t, index width, index rows, index first, index last, index k,
                std::uint16_t* to, index ld_to) noexcept {
  widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
    for (index r = 0; r < rows; ++r) {
      for (index i = first; i < last; i += split_chunk) {
        const float* const row = from + r * t.ld;
        std::uint16_t* const pieces = to + r * ld_to + i * Pieces;
        const bool adjacent = t.column_step == width || i % width + split_chunk <= width;
        if (adjacent && i + split_chunk <= k) {
          split_into<Pieces>(row + i / width * t.column_step + i % width, pieces);
          continue;
        }
        float chunk[split_chunk] = {};
        for (index e = i; e < std::min(i + split_chunk, k); ++e)
          chunk[e - i] = row[e / width * t.column_step + e % width];
        split_into<Pieces>(chunk, pieces);
      }
    }
  });
}

/// A matrix (rows, k) of f32 in blocks as `t` says, width block_width(k), to rows (ceil(k/32), pieces, 32)
/// split_pitch apart.
inline void split_matrix(loops::executor_ref threads, math how, const float* from, const loops::tiling& t, index rows,
                         index k, std::uint16_t* to) noexcept {
  constexpr index columns = 8 * split_chunk;  // of one task
  const index width = loops::block_width(k);
  const index ld = split_pitch(k, how);
  loops::parallel_for(threads, {loops::row_blocks(rows), (k + columns - 1) / columns}, [&](index block, index part) {
    const index row = block * loops::block_rows;
    const index height = std::min(rows - row, loops::block_rows);
    auto* const split = how == math::bf16x3 ? &split_rows<3> : &split_rows<2>;
    split(from + block * t.row_step, t, width, height, part * columns, std::min(k, (part + 1) * columns), k,
          to + row * ld, ld);
  });
}

/// A chunk (32, width) of f32, rows `width` apart, to (Pieces, 16, width, 2): each piece as pack_b interleaves bf16.
/// What is left of the chunk stays in it.
template <int Pieces>
void split_chunk_of_panel(float* chunk, index width, std::uint32_t* to) noexcept {
  widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
    for (index row = 0; row < Pieces * split_chunk / 2; ++row) {
      float* const even = chunk + row % (split_chunk / 2) * 2 * width;
      float* const odd = even + width;
      std::uint32_t* const pairs = to + row * width;
      BRGEMM_INDEPENDENT
      for (index j = 0; j < width; ++j) {
        const std::uint16_t low = bf16_bits(even[j]);
        const std::uint16_t high = bf16_bits(odd[j]);
        pairs[j] = low | static_cast<std::uint32_t>(high) << 16;
        even[j] -= widened(low);
        odd[j] -= widened(high);
      }
    }
  });
}

inline void split_chunk_of_panel(math how, float* chunk, index width, std::uint32_t* to) noexcept {
  how == math::bf16x3 ? split_chunk_of_panel<3>(chunk, width, to) : split_chunk_of_panel<2>(chunk, width, to);
}

/// At most 32 rows of B and `columns` <= width of it, stored plain or transposed, to one chunk of a panel of pieces;
/// what they lack of it is zero.
inline void split_chunk_of_b(math how, const float* from, index ld_from, layout stored, index rows, index columns,
                             index width, std::uint32_t* to) noexcept {
  alignas(64) float chunk[split_chunk * loops::largest_block_width];
  if (rows < split_chunk || columns < width) std::fill(std::begin(chunk), std::end(chunk), 0.0f);
  if (stored == layout::plain) {
    copy_rows(from, ld_from, chunk, width, rows, columns);
  } else {
    transpose_unaligned(from, ld_from * 4, chunk, width * 4, columns, rows);
  }
  split_chunk_of_panel(how, chunk, width, to);
}

/// All of B, (k,n) where stored plain, (n,k) where transposed, to panels of pieces (ceil(n/w), ceil(k/32), pieces, 16,
/// w, 2), w = block_width(n); what B lacks of them is zero. Panel i of B begins i * panel_step behind `from`.
inline void split_panels(loops::executor_ref threads, math how, const float* from, index ld_from, index panel_step,
                         layout stored, index k, index n, std::uint32_t* to) noexcept {
  const index width = loops::block_width(n);
  const index chunks = chunks_of(k);
  const index chunk_words = split_chunk / 2 * pieces_of(how) * width;
  loops::parallel_for(threads, {loops::panels(n), chunks}, [&](index panel, index i) {
    const float* const first = from + panel * panel_step + i * split_chunk * (stored == layout::plain ? ld_from : 1);
    split_chunk_of_b(how, first, ld_from, stored, std::min(k - i * split_chunk, split_chunk),
                     std::min(n - panel * width, width), width, to + (panel * chunks + i) * chunk_words);
  });
}

}  // namespace detail
}  // namespace brgemm::inline abi_0
