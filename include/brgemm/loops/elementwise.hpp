// Loops over single elements, compiled for the vectors that the CPU has: one text, three instruction sets, equal bits.
#pragma once

#include "../core/cpu.hpp"
#include "parallel_for.hpp"

// Marks a lambda for `widest_vectors`: only code that is inlined is compiled for the target of the caller.
#define BRGEMM_ALWAYS_INLINE __attribute__((always_inline))

// GCC vectorises loops of unknown length at -O2 only when told so, and many arrays only when told that they are apart.
#if defined(__clang__)
#define BRGEMM_VECTORISE
#define BRGEMM_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define BRGEMM_VECTORISE [[gnu::optimize("tree-vectorize", "vect-cost-model=dynamic")]]
#define BRGEMM_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace brgemm::inline abi_0::detail {

template <class F>
BRGEMM_VECTORISE [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"), gnu::noinline]] void run_avx512(
    const F& f) noexcept {
  f();
}
template <class F>
BRGEMM_VECTORISE [[gnu::target("avx2,fma"), gnu::noinline]] void run_avx2(const F& f) noexcept {
  f();
}

/// Calls f(), a lambda marked BRGEMM_ALWAYS_INLINE, compiled for the widest vectors here. Where f multiplies and then
/// adds it must say __builtin_fmaf: then no compiler flag and no instruction set changes a bit of the result.
template <class F>
void widest_vectors(const F& f) noexcept {
  const cpu_features features = cpu();
  if (features.has(feature::avx512)) return run_avx512(f);
  if (features.has(feature::avx2)) return run_avx2(f);
  f();
}

/// Elements that one task of an elementwise loop handles: 16 KiB of f32, so a call costs little and threads share well.
inline constexpr index elementwise_block = 4096;

/// Calls f(begin, end), marked BRGEMM_ALWAYS_INLINE, on blocks of 0..count-1 spread over the threads.
template <class F>
void for_each_block(loops::executor_ref threads, index count, const F& f) {
  loops::parallel_for(threads, {(count + elementwise_block - 1) / elementwise_block}, [&](index block) {
    const index begin = block * elementwise_block;
    const index end = begin + elementwise_block < count ? begin + elementwise_block : count;
    widest_vectors([&]() BRGEMM_ALWAYS_INLINE { f(begin, end); });
  });
}

}  // namespace brgemm::inline abi_0::detail
