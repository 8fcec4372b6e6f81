// Runs code for the GPU on the CPU: each thread of a block is a fiber, and a barrier goes on to the next one. One block
// after the other, in one thread of the system.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "brgemm/core/activation.hpp"

#define __device__
#define __forceinline__ inline
#define __noinline__ inline
#define __shared__ static  // a block finds what the one before it left

struct gpu_index {
  unsigned x = 0;
};
inline gpu_index threadIdx, blockIdx;

namespace brgemm_test::gpu {

/// A block of threads.
class block {
 public:
  static constexpr std::size_t stack_bytes = 128 << 10;
  explicit block(int threads) : fibers_(static_cast<std::size_t>(threads)) {
    for (fiber& f : fibers_) f.stack = std::make_unique<char[]>(stack_bytes);
  }

  template <class Body>
  void run(unsigned number, const Body& body) {
    blockIdx.x = number;
    current() = this;
    run_ = [](const void* b) { (*static_cast<const Body*>(b))(); };
    body_ = &body;
    for (fiber& f : fibers_) start(f);
    for (std::size_t ended = 0; ended == 0;) {
      for (std::size_t i = 0; i < fibers_.size(); ++i) {
        threadIdx.x = static_cast<unsigned>(i);
        swapcontext(&scheduler_, &fibers_[i].context);
        ended += fibers_[i].ended ? 1 : 0;
      }
      if (ended != 0 && ended != fibers_.size())
        std::abort();  // some threads wait at a barrier that others never reach
    }
  }

  /// All threads of the block have come here before one goes on. All call it equally often.
  void wait() {
    const unsigned me = threadIdx.x;
    ++barriers;
    swapcontext(&fibers_[me].context, &scheduler_);
  }

  static block*& current() {
    static block* running = nullptr;
    return running;
  }

  long barriers = 0;
  long warp_products = 0;

 private:
  struct fiber {
    ucontext_t context = {};
    std::unique_ptr<char[]> stack;
    bool ended = false;
  };

  void start(fiber& f) {
    f.ended = false;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = stack_bytes;
    f.context.uc_link = &scheduler_;
    makecontext(
        &f.context,
        [] {
          block& me = *current();
          me.run_(me.body_);
          me.fibers_[threadIdx.x].ended = true;
        },
        0);
  }

  std::vector<fiber> fibers_;
  ucontext_t scheduler_ = {};
  void (*run_)(const void*) = nullptr;
  const void* body_ = nullptr;
};

/// What the lanes of a warp give to a product together.
struct warp_operands {
  std::uint32_t a[32][4];
  std::uint32_t b[32][2];
};
inline warp_operands warps[32];

}  // namespace brgemm_test::gpu

inline void __syncthreads() { brgemm_test::gpu::block::current()->wait(); }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return brgemm::detail::float_evaluator::rounded(a + b); }
inline float __fsub_rn(float a, float b) { return brgemm::detail::float_evaluator::rounded(a - b); }
inline float __fmul_rn(float a, float b) { return brgemm::detail::float_evaluator::rounded(a * b); }
inline float __fdiv_rn(float a, float b) { return brgemm::detail::float_evaluator::rounded(a / b); }
inline double gpu_rounded(double x) {
  __asm__("" : "+x"(x));
  return x;
}
inline double __dadd_rn(double a, double b) { return gpu_rounded(a + b); }
inline double __dmul_rn(double a, double b) { return gpu_rounded(a * b); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline float __uint_as_float(std::uint32_t x) { return std::bit_cast<float>(x); }
inline std::uint32_t __float_as_uint(float x) { return std::bit_cast<std::uint32_t>(x); }
inline float __int2float_rn(std::int32_t x) { return static_cast<float>(x); }
inline std::int32_t __float2int_rn(float x) { return static_cast<std::int32_t>(std::nearbyint(x)); }

#include "batch_reduce.cuh"

namespace brgemm::inline abi_0::cuda {

/// mma.sync.m16n8k16 and (tf32) k8, fragments as the PTX manual has them: row.col, a (16,k), b (k,8). One fma a term
/// here; the unit rounds otherwise.
template <type T>
void multiply_on_warp(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  using brgemm_test::gpu::block;
  const unsigned me = threadIdx.x % 32;
  brgemm_test::gpu::warp_operands& warp = brgemm_test::gpu::warps[threadIdx.x / 32];
  std::copy(std::begin(a), std::end(a), warp.a[me]);
  std::copy(std::begin(b), std::end(b), warp.b[me]);
  block::current()->wait();
  ++block::current()->warp_products;
  constexpr unsigned in_word = T == type::tf32 ? 1 : 2;
  const auto value = [](std::uint32_t word, unsigned k) {
    if (T == type::tf32) return std::bit_cast<float>(word & 0xffffe000u);  // the unit reads no more
    const auto bits = static_cast<std::uint16_t>(word >> (k % 2 * 16));
    return T == type::bf16 ? to_f32(bf16{bits}) : to_f32(f16{bits});
  };
  for (unsigned e = 0; e < 4; ++e) {
    const unsigned row = me / 4 + e / 2 * 8, column = me % 4 * 2 + e % 2;
    for (unsigned k = 0; k < 8 * in_word; ++k) {
      const unsigned of_group = k / in_word % 4, half = k / in_word / 4;
      const std::uint32_t of_a = warp.a[row % 8 * 4 + of_group][row / 8 + half * 2];
      const std::uint32_t of_b = warp.b[column * 4 + of_group][half];
      d[e] = std::fma(value(of_a, k), value(of_b, k), d[e]);
    }
  }
  block::current()->wait();
}

}  // namespace brgemm::inline abi_0::cuda

#undef __device__
#undef __forceinline__
#undef __noinline__
#undef __shared__
