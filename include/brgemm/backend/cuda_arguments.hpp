// The arguments of one launch on a GPU. Read by code for the CPU and for the GPU.
#pragma once

#include "../core/arguments.hpp"

namespace brgemm::inline abi_0::cuda {

/// One of the blocks C_j that a launch computes, each the sum of its own list of entries.
struct output {
  index a = 0;        ///< elements to add to where each of its A begins
  index b = 0;        ///< the same of B
  index row = 0;      ///< C_j begins at this row and column of arguments.c, and of the matrices, masks and vectors that
  index column = 0;   ///< the epilogue has; a multiple of 8 where it has a mask
  index vectors = 0;  ///< elements to add to where the epilogue's vectors begin: a bias of each block's own
  index first = 0;    ///< its entries are arguments.pairs[first], [first + 1], ..., or so many strides from a and b
  index batch = 0;    ///< how many entries, >= 0; with none C_j is epilogue(beta * C_j)
  index m = 0;        ///< rows, 0..the desc's m, where desc.m_extent is at_call
};

/// What a launch reads. As brgemm::arguments, but that every address is one of the device's and the launch computes
/// `count` blocks C_j, which may not overlap each other. The struct is copied at the call; what it points to must live
/// until the launch has ended.
struct arguments {
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  const void* pairs = nullptr;      ///< address_pair or offset_pair, those of all blocks
  const output* outputs = nullptr;  ///< count of them; nullptr: one block at row and column 0, of `batch` entries
  index count = 1;                  ///< of blocks, >= 0
  index batch = 1;                  ///< where outputs is nullptr
  index m = 0;                      ///< where outputs is nullptr and desc.m_extent is at_call
  index lda = 0;                    ///< where the desc says at_call, as the two below
  index ldb = 0;
  index ldc = 0;
  double alpha = 1;
  double beta = 1;
  std::int32_t zero_a = 0;
  std::int32_t zero_b = 0;
  const std::int32_t* column_sums = nullptr;  ///< (count, n): sums over a block's entries and k of B; desc.zero_a
  void* operand[max_epilogue] = {};
  index operand_ld[max_epilogue] = {};
};

}  // namespace brgemm::inline abi_0::cuda
