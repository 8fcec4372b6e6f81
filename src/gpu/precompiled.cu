// Compiled by nvcc when the library is built.
#include <bit>
#include <cstring>

#include "precompiled.hpp"
#include "tensor_cores.cuh"

using namespace brgemm;

#define BRGEMM_KERNEL(i)                                                                   \
  extern "C" __global__ void __launch_bounds__(threads_of(cuda::precompiled(i).of_c), 1)   \
      brgemm_precompiled_##i(const __grid_constant__ cuda::launch call) {                  \
    cuda::batch_reduce<cuda::precompiled(i).specialised, cuda::precompiled(i).of_c>(call); \
  }
BRGEMM_KERNEL(0)
BRGEMM_KERNEL(1)
BRGEMM_KERNEL(2)
BRGEMM_KERNEL(3)
BRGEMM_KERNEL(4)
BRGEMM_KERNEL(5)
BRGEMM_KERNEL(6)
BRGEMM_KERNEL(7)
BRGEMM_KERNEL(8)
BRGEMM_KERNEL(9)
BRGEMM_KERNEL(10)
BRGEMM_KERNEL(11)
BRGEMM_KERNEL(12)
BRGEMM_KERNEL(13)
BRGEMM_KERNEL(14)
BRGEMM_KERNEL(15)
BRGEMM_KERNEL(16)
BRGEMM_KERNEL(17)
static_assert(cuda::precompiled_count == 18);
