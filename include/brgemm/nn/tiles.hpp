// A loop over the blocks of a matrix of activations.
#pragma once

#include "../loops/parallel_for.hpp"
#include "storage.hpp"

namespace brgemm::inline abi_0::detail {

/// Elements of block `i` of `size` in `count`: the last one may be smaller.
constexpr index extent_of_block(index count, index size, index i) noexcept {
  return count - i * size < size ? count - i * size : size;
}

/// Calls f(block, panel, height, width) for each block of a matrix (rows, features), spread over the threads. height
/// and width are the block's own: at most 64 and block_width(features). A thread gets whole columns of blocks, which
/// are also what loops over the features read: it then finds in its own cache what it wrote.
template <class F>
void for_each_tile(loops::executor_ref threads, index rows, index features, F&& f) {
  loops::parallel_for(threads, {nn::panels(features), nn::row_blocks(rows)}, [&](index panel, index block) {
    f(block, panel, extent_of_block(rows, nn::block_rows, block),
      extent_of_block(features, nn::block_width(features), panel));
  });
}

}  // namespace brgemm::inline abi_0::detail
