// How activations (rows, features) and weights lie in memory for the loops of this folder.
#pragma once

#include "../loops/blocks.hpp"

namespace brgemm::inline abi_0::nn {

using loops::block_rows;
using loops::block_width;
using loops::panels;
using loops::plain_tiling;
using loops::row_blocks;
using loops::tiling;

/// How a matrix of activations (rows, features) is stored.
enum class storage : std::uint8_t {
  plain,    ///< row-major with a leading dimension
  blocked,  ///< (ceil(rows/64), features/w, 64, w), w = block_width(features): each block is what one kernel call
            ///< reads, on neighbouring lines. Only where can_block(features).
};

/// Blocked storage needs features <= 64, or a width that divides them.
constexpr bool can_block(index features) noexcept { return features <= 64 || features % block_width(features) == 0; }

/// Blocked storage; where !can_block(features) the last block is stored at full width too, and partly used.
constexpr tiling blocked_tiling(index features) noexcept {
  const index width = block_width(features);
  return {width, block_rows * width * panels(features), block_rows * width};
}

/// A copy for loops over the rows: (ceil(features/w), ceil(rows/64), 64, w), so that such a loop reads one stream;
/// where it jumps at each block, the CPU's prefetching starts again.
constexpr tiling column_tiling(index features, index rows) noexcept {
  const index block = block_rows * block_width(features);
  return {block_width(features), block, block * row_blocks(rows)};
}

constexpr tiling tiling_of(storage s, index features, index ld) noexcept {
  return s == storage::plain ? plain_tiling(features, ld) : blocked_tiling(features);
}

/// The bit matrix beside activations stored as `s`: one bit an element, rows of whole bytes.
constexpr tiling mask_tiling(storage s, index features) noexcept {
  if (s == storage::blocked) {
    const tiling t = blocked_tiling(features);
    return {t.ld / 8, t.row_step / 8, t.column_step / 8};
  }
  const index ld = (features + 7) / 8;
  return {ld, block_rows * ld, block_width(features) / 8};
}

/// Elements (bytes of a bit matrix) from the first to one past the last of `rows` rows.
constexpr index extent_of(storage s, const tiling& t, index rows, index last_row) noexcept {
  return s == storage::plain ? (rows - 1) * t.ld + last_row : row_blocks(rows) * t.row_step;
}

}  // namespace brgemm::inline abi_0::nn
