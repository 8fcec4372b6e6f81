// What a kernel on the GPU is given: the arguments of the launch, and what the code does not have in it.
#pragma once

#include "brgemm/backend/cuda_arguments.hpp"

namespace brgemm::inline abi_0::cuda {

struct launch {
  arguments x;  // leading dimensions and beta as the kernel is to read them
  index m, n, k;
  index stride_a, stride_b;
  std::int32_t tiles_m, tiles_n;  // of one C_j
};

/// How a block of threads divides its tile of C, m x n, which it sums in steps of k.
struct tile {
  int m, n, k;
  int rows;  // of C that a thread has, in 8 columns; 0: warps have 32 x 32 and multiply by tensor cores
  friend constexpr bool operator==(const tile&, const tile&) = default;
};
constexpr int threads_of(const tile& t) { return t.rows == 0 ? t.m * t.n / 32 : t.m / t.rows * (t.n / 8); }

}  // namespace brgemm::inline abi_0::cuda
