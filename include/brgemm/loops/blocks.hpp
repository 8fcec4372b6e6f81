// How loops divide matrices into blocks that one kernel call handles.
#pragma once

#include "../core/types.hpp"

namespace brgemm::inline abi_0::loops {

/// Rows of a block of A and C: so many register tiles read the same panel of B while it is in L2.
inline constexpr index block_rows = 64;

/// Columns of a block of C and of a panel of B, a multiple of 16: one panel up to 64 features, else a
/// width that divides the features, else 64 with a narrower last panel.
constexpr index block_width(index features) noexcept {
  if (features <= 64) return (features + 15) / 16 * 16;
  for (const index width : {64, 48, 80, 96, 112, 32}) {
    if (features % width == 0) return width;
  }
  return 64;
}

inline constexpr index largest_block_width = 112;

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

}  // namespace brgemm::inline abi_0::loops
