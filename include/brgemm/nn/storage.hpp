// How activations (rows, features) and weights lie in memory for the loops of this folder.
#pragma once

#include "../core/types.hpp"

namespace brgemm::inline abi_0::nn {

/// How a matrix of activations (rows, features) is stored.
enum class storage : std::uint8_t {
  plain,    ///< row-major with a leading dimension
  blocked,  ///< (ceil(rows/64), features/w, 64, w), w = block_width(features): each block is what one kernel call
            ///< reads, on neighbouring lines. Only where can_block(features).
};

/// Rows of a block of activations: so many register tiles read the same panel of weights while it is in L2.
inline constexpr index block_rows = 64;

/// Columns of a block of activations and of a panel of weights, a multiple of 16: one panel up to 64 features, else a
/// width that divides the features, else 64 with a narrower last panel.
constexpr index block_width(index features) noexcept {
  if (features <= 64) return (features + 15) / 16 * 16;
  for (const index width : {64, 48, 80, 96, 112, 32}) {
    if (features % width == 0) return width;
  }
  return 64;
}

/// Blocked storage needs features <= 64, or a width that divides them.
constexpr bool can_block(index features) noexcept { return features <= 64 || features % block_width(features) == 0; }

/// Blocks of 64 rows that hold `rows`.
constexpr index row_blocks(index rows) noexcept { return (rows + block_rows - 1) / block_rows; }

/// Panels of block_width(features) that hold `features`.
constexpr index panels(index features) noexcept {
  return (features + block_width(features) - 1) / block_width(features);
}

/// Where the blocks of a matrix begin, in elements (in bytes for bit matrices): block (r, c) at r * row_step +
/// c * column_step, its rows `ld` apart.
struct tiling {
  index ld = 0;
  index row_step = 0;
  index column_step = 0;
  constexpr index offset(index row_block, index column_block) const noexcept {
    return row_block * row_step + column_block * column_step;
  }
  friend constexpr bool operator==(const tiling&, const tiling&) = default;
};

/// Blocks of width block_width(features) in plain storage.
constexpr tiling plain_tiling(index features, index ld) noexcept {
  return {ld, block_rows * ld, block_width(features)};
}

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
