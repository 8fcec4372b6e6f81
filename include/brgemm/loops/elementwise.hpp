// Loops over single elements, compiled for the vectors that the CPU has: one text, three instruction sets, equal bits.
#pragma once

#include <bit>
#include <type_traits>

#include "../core/cpu.hpp"
#include "../core/types.hpp"
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

/// To bf16 without a branch, so that loops over it become vectors; the same bits as to_bf16.
BRGEMM_ALWAYS_INLINE inline std::uint16_t bf16_bits(float x) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = u & 0x7fffffffu;
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const std::uint32_t flushed = magnitude < 0x00800000u ? (u >> 16) & 0x8000u : rounded;
  return static_cast<std::uint16_t>(magnitude > 0x7f800000u ? (u >> 16) | 0x40u : flushed);
}

/// An element of f32, or the bits of one of bf16, for loops that compute in f32.
BRGEMM_ALWAYS_INLINE inline float widened(float x) noexcept { return x; }
BRGEMM_ALWAYS_INLINE inline float widened(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}
/// T is float or std::uint16_t, the bits of bf16.
template <class T>
BRGEMM_ALWAYS_INLINE inline T rounded_to(float x) noexcept {
  if constexpr (std::is_same_v<T, float>) return x;
  if constexpr (std::is_same_v<T, std::uint16_t>) return bf16_bits(x);
}

/// Calls f(zero of float, or of std::uint16_t for bf16), for loops over elements of that type.
template <class F>
void with_elements(type t, const F& f) {
  if (t == type::bf16) return f(std::uint16_t{});
  f(float{});
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
