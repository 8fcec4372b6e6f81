// The tensor cores' instructions that sum products of bf16, f16 and tf32, of compute capability 8.0 on.
#pragma once

#include "batch_reduce.cuh"

namespace brgemm::inline abi_0::cuda {

#define BRGEMM_MULTIPLY_ON_WARP(element, name, k)                                                     \
  template <>                                                                                         \
  __device__ __forceinline__ void multiply_on_warp<element>(float(&d)[4], const std::uint32_t(&a)[4], \
                                                            const std::uint32_t(&b)[2]) {             \
    asm("mma.sync.aligned.m16n8k" k ".row.col.f32." name "." name                                     \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "                                         \
        "{%0, %1, %2, %3};"                                                                           \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                              \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                          \
  }
BRGEMM_MULTIPLY_ON_WARP(type::bf16, "bf16", "16")
BRGEMM_MULTIPLY_ON_WARP(type::f16, "f16", "16")
BRGEMM_MULTIPLY_ON_WARP(type::tf32, "tf32", "8")
#undef BRGEMM_MULTIPLY_ON_WARP

}  // namespace brgemm::inline abi_0::cuda
