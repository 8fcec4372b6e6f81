// What the machine could do at most: products and sums from registers to registers, measured.
#pragma once

#include <algorithm>
#include <brgemm/core/cpu.hpp>
#include <brgemm/core/types.hpp>
#include <brgemm/loops/parallel_for.hpp>
#include <chrono>

namespace demo {

// Ten sums that do not wait for each other: two instructions a cycle, each ready after four, need eight.
#define DEMO_TEN(instruction, reg)                                                                              \
  instruction " %%" reg "0, %%" reg "1, %%" reg "2\n\t" instruction " %%" reg "0, %%" reg "1, %%" reg           \
              "3\n\t" instruction " %%" reg "0, %%" reg "1, %%" reg "4\n\t" instruction " %%" reg "0, %%" reg   \
              "1, %%" reg "5\n\t" instruction " %%" reg "0, %%" reg "1, %%" reg "6\n\t" instruction " %%" reg   \
              "0, %%" reg "1, %%" reg "7\n\t" instruction " %%" reg "0, %%" reg "1, %%" reg "8\n\t" instruction \
              " %%" reg "0, %%" reg "1, %%" reg "9\n\t" instruction " %%" reg "0, %%" reg "1, %%" reg           \
              "10\n\t" instruction " %%" reg "0, %%" reg "1, %%" reg "11\n\t"
#define DEMO_LOOP(instruction, reg)                                                                                 \
  __asm__ volatile("vpxor %%xmm0, %%xmm0, %%xmm0\n\tvpxor %%xmm1, %%xmm1, %%xmm1\n\t1:\n\t" DEMO_TEN(               \
                       instruction, reg) "dec %0\n\tjnz 1b\n\tvzeroupper"                                           \
                   : "+r"(rounds)                                                                                   \
                   :                                                                                                \
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                     "xmm11")

/// GFLOP/s that all threads together reach on a register-only loop of the widest product instruction for `data`: f32
/// fused multiply-add, or pairs of bf16 where the CPU has them. The best of three rounds of about a millisecond. 0
/// where products are those of AMX tiles.
inline double measured_peak(brgemm::loops::executor_ref threads, brgemm::type data) {
  using brgemm::feature;
  const auto cpu = brgemm::cpu();
  const bool pairs = data == brgemm::type::bf16 && cpu.has(feature::avx512_bf16);
  const bool wide = cpu.has(feature::avx512);
  if (!wide && !cpu.has(feature::avx2)) return 0;
  if (data == brgemm::type::bf16 && wide && cpu.has(feature::amx_bf16)) return 0;
  constexpr long loops = 500'000;
  const double operations = 10.0 * loops * (pairs ? 64 : wide ? 32 : 16) * threads.threads();
  double best = 0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    brgemm::loops::parallel_for(threads, {threads.threads()}, [&](brgemm::index) {
      long rounds = loops;
      if (pairs) {
        DEMO_LOOP("vdpbf16ps", "zmm");
      } else if (wide) {
        DEMO_LOOP("vfmadd231ps", "zmm");
      } else {
        DEMO_LOOP("vfmadd231ps", "ymm");
      }
    });
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best = std::max(best, operations / time.count() * 1e-9);
  }
  return best;
}

#undef DEMO_LOOP
#undef DEMO_TEN

}  // namespace demo
