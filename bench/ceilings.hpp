// What the machine can do at most: register-only loops of the instructions that kernels are made of, and reading
// memory. 512-bit registers where the CPU has AVX-512, else 256-bit. Written as assembly, so that no compiler touches
// them.
#pragma once

#include <omp.h>

#include <brgemm/backend/amx.hpp>
#include <brgemm/core/cpu.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "measure.hpp"
#include "peers/peer.hpp"

namespace bench {

// 24 independent accumulators (12 with 256 bits): more than two issues a cycle times the latency of any of these.
#define BENCH_24(op, r, x, y)                                                                                      \
  op(r, 0, x, y) op(r, 1, x, y) op(r, 2, x, y) op(r, 3, x, y) op(r, 4, x, y) op(r, 5, x, y) op(r, 6, x, y)         \
      op(r, 7, x, y) op(r, 8, x, y) op(r, 9, x, y) op(r, 10, x, y) op(r, 11, x, y) op(r, 12, x, y) op(r, 13, x, y) \
          op(r, 14, x, y) op(r, 15, x, y) op(r, 16, x, y) op(r, 17, x, y) op(r, 18, x, y) op(r, 19, x, y)          \
              op(r, 20, x, y) op(r, 21, x, y) op(r, 22, x, y) op(r, 23, x, y)
#define BENCH_12(op, r, x, y)                                                                              \
  op(r, 0, x, y) op(r, 1, x, y) op(r, 2, x, y) op(r, 3, x, y) op(r, 4, x, y) op(r, 5, x, y) op(r, 6, x, y) \
      op(r, 7, x, y) op(r, 8, x, y) op(r, 9, x, y) op(r, 10, x, y) op(r, 11, x, y)
#define BENCH_ZERO(r, i, x, y) "vpxor" x " %%" r #i ",%%" r #i ",%%" r #i "\n"
#define BENCH_STEP(r, i, x, y) x " %%" r y ",%%" r y ",%%" r #i "\n"

// One call is `loop_length` trips; every trip issues each accumulator's instruction once.
inline constexpr std::int64_t loop_length = 1000;

#define BENCH_LOOP(name, isa, count, repeat, zero, r, instruction, source)                                     \
  [[gnu::target(isa), gnu::noinline]] inline void name(std::int64_t times) {                                   \
    std::int64_t trips = times * loop_length;                                                                  \
    __asm__ volatile(repeat(BENCH_ZERO, r, zero, "") "vpxor" zero " %%" r source ",%%" r source ",%%" r source \
                                                     "\n1:\n" repeat(BENCH_STEP, r, instruction,               \
                                                                     source) "dec %0\njnz 1b\nvzeroupper\n"    \
                     : "+r"(trips)                                                                             \
                     :                                                                                         \
                     : "cc", "memory", BENCH_CLOBBER_##count);                                                 \
  }
#define BENCH_CLOBBER_12                                                                                              \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
      "xmm14", "xmm15"
#define BENCH_CLOBBER_24                                                                                               \
  BENCH_CLOBBER_12, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", \
      "xmm27", "xmm28", "xmm29", "xmm30", "xmm31"

BENCH_LOOP(fma_f32_512, "avx512f", 24, BENCH_24, "d", "zmm", "vfmadd231ps", "30")
BENCH_LOOP(fma_f64_512, "avx512f", 24, BENCH_24, "d", "zmm", "vfmadd231pd", "30")
BENCH_LOOP(dot_bf16_512, "avx512f", 24, BENCH_24, "d", "zmm", "vdpbf16ps", "30")
BENCH_LOOP(dot_u8s8_512, "avx512f", 24, BENCH_24, "d", "zmm", "vpdpbusd", "30")
BENCH_LOOP(fma_f32_256, "avx2,fma", 12, BENCH_12, "", "ymm", "vfmadd231ps", "15")
BENCH_LOOP(fma_f64_256, "avx2,fma", 12, BENCH_12, "", "ymm", "vfmadd231pd", "15")
BENCH_LOOP(dot_u8s8_256, "avx2,fma", 12, BENCH_12, "", "ymm", "%{vex%} vpdpbusd", "15")

// Six sums in tiles of 16 rows of 64 bytes: a chain of products into one tile runs at the full rate too.
inline constexpr int tile_sums = 6;
#define BENCH_TILES(name, instruction)                                                                                 \
  [[gnu::noinline]] inline void name(std::int64_t times) {                                                             \
    std::int64_t trips = times * loop_length;                                                                          \
    brgemm::backend::tile_configuration all{{1, 0, 0x0040004000400040, 0x0040004000400040, 0, 0, 0x1010101010101010}}; \
    __asm__ volatile(                                                                                                  \
        "ldtilecfg %1\n"                                                                                               \
        "tilezero %%tmm0\ntilezero %%tmm1\ntilezero %%tmm2\ntilezero %%tmm3\n"                                         \
        "tilezero %%tmm4\ntilezero %%tmm5\ntilezero %%tmm6\ntilezero %%tmm7\n1:\n" instruction                         \
        " %%tmm7,%%tmm6,%%tmm0\n" instruction " %%tmm7,%%tmm6,%%tmm1\n" instruction                                    \
        " %%tmm7,%%tmm6,%%tmm2\n" instruction " %%tmm7,%%tmm6,%%tmm3\n" instruction                                    \
        " %%tmm7,%%tmm6,%%tmm4\n" instruction " %%tmm7,%%tmm6,%%tmm5\ndec %0\njnz 1b\ntilerelease\n"                   \
        : "+r"(trips)                                                                                                  \
        : "m"(all)                                                                                                     \
        : "cc", "memory");                                                                                             \
  }
/// Loads a tile configuration and releases the tiles, so many times.
[[gnu::noinline]] inline void configure_tiles(std::int64_t times) {
  const brgemm::backend::tile_configuration one{{1, 0, 0x0040004000400040, 0, 0, 0, 0x10101010}};
  while (times-- > 0) __asm__ volatile("ldtilecfg %0\ntilerelease" ::"m"(one));
}

BENCH_TILES(dot_bf16_tiles, "tdpbf16ps")
BENCH_TILES(dot_u8s8_tiles, "tdpbusd")

/// Whether kernels use AMX: the CPU has it, BRGEMM_CPU does not hide it, and the system grants it.
inline bool has_tiles() {
  return brgemm::cpu().has(brgemm::feature::amx_bf16) && brgemm::cpu().has(brgemm::feature::amx_int8) &&
         brgemm::backend::detail::request_tiles().has_value();
}

/// The greatest rate of a type on this machine: `operations` (flops; 2 a multiply-add) in one call of `run`.
struct ceiling {
  std::string name;
  double operations = 0;
  double cycles = 0;  ///< of one call, where the CPU has two vector units, or a tile unit as Sapphire Rapids
  void (*run)(std::int64_t times) = nullptr;
};

inline ceiling ceiling_of(peer_type type) {
  using brgemm::feature;
  const brgemm::cpu_features cpu = brgemm::detail::detect_cpu();
  const auto made = [](const char* name, int accumulators, double per_instruction, void (*run)(std::int64_t)) {
    const double instructions = static_cast<double>(accumulators) * static_cast<double>(loop_length);
    return ceiling{name, instructions * per_instruction, instructions / 2, run};
  };
  const auto tiles = [](const char* name, double per_product, void (*run)(std::int64_t)) {
    const double products = tile_sums * static_cast<double>(loop_length);
    return ceiling{name, products * per_product, products * 16, run};
  };
  const bool wide = cpu.has(feature::avx512);
  switch (type) {
    case peer_type::f64:
      return wide ? made("FMA f64, 512 bits", 24, 16, fma_f64_512) : made("FMA f64, 256 bits", 12, 8, fma_f64_256);
    case peer_type::bf16:  // without the instruction: widen and use FMA f32
      if (has_tiles()) return tiles("tdpbf16ps", 2 * 16 * 16 * 32, dot_bf16_tiles);
      if (cpu.has(feature::avx512_bf16)) return made("vdpbf16ps, 512 bits", 24, 64, dot_bf16_512);
      break;
    case peer_type::u8s8:
      if (has_tiles()) return tiles("tdpbusd", 2 * 16 * 16 * 64, dot_u8s8_tiles);
      if (cpu.has(feature::avx512_vnni)) return made("vpdpbusd, 512 bits", 24, 128, dot_u8s8_512);
      if (cpu.has(feature::avx_vnni)) return made("vpdpbusd, 256 bits", 12, 64, dot_u8s8_256);
      break;
    case peer_type::f32: break;
  }
  return wide ? made("FMA f32, 512 bits", 24, 32, fma_f32_512) : made("FMA f32, 256 bits", 12, 16, fma_f32_256);
}

/// The same loop on several threads at once; one call of each thread a call.
inline contestant on_threads(const ceiling& c, int threads) {
  if (threads == 1) return {"ceiling", c.run};
  return {"ceiling", [c, threads](std::int64_t times) {
#pragma omp parallel num_threads(threads)
            c.run(times);
          }};
}

// Reading: 1 KiB a trip from each of `Streams` places. Where `Ahead` is not 0, lines `Apart` bytes from each other are
// prefetched so many bytes before. Loads only; nothing waits for them but the end.
#define BENCH_READ(name, isa, step, loads)                                                     \
  template <int Streams, int Ahead, int Apart>                                                 \
  [[gnu::target(isa), gnu::noinline]] inline void name(const char* data, std::int64_t bytes) { \
    const std::int64_t part = bytes / Streams / 1024 * 1024;                                   \
    for (std::int64_t at = 0; at < part; at += 1024) {                                         \
      for (int s = 0; s < Streams; ++s) {                                                      \
        const char* from = data + s * part + at;                                               \
        _Pragma("GCC unroll 8") for (int i = 0; i < 1024; i += step) {                         \
          if constexpr (Ahead > 0) {                                                           \
            for (int line = 0; line < step; line += 64) {                                      \
              if ((i + line) % Apart == 0) __builtin_prefetch(from + i + line + Ahead);        \
            }                                                                                  \
          }                                                                                    \
          __asm__ volatile(loads ::"r"(from + i) : "memory", "xmm0", "xmm1", "xmm2", "xmm3");  \
        }                                                                                      \
      }                                                                                        \
    }                                                                                          \
  }
BENCH_READ(read_256, "avx2", 128,
           "vmovdqu (%0),%%ymm0\nvmovdqu 32(%0),%%ymm1\nvmovdqu 64(%0),%%ymm2\nvmovdqu 96(%0),%%ymm3\n")
BENCH_READ(read_512, "avx512f", 256,
           "vmovdqu64 (%0),%%zmm0\nvmovdqu64 64(%0),%%zmm1\nvmovdqu64 128(%0),%%zmm2\nvmovdqu64 192(%0),%%zmm3\n")

/// Reading the same bytes again and again: the bandwidth of the level that holds them. One stream or several,
/// prefetched or not: the quickest three, because which one is changes with what others on the host read. How much of 2
/// MiB stays in two L2 of 1 MiB depends on the physical pages, so what reads some bytes is held against the reading of
/// just these.
class read_bandwidth {
 public:
  static constexpr std::int64_t granule = 4096;  ///< 1 KiB of each of four streams
  /// `data` must hold `bytes`, at least a granule a thread; each thread reads as many granules as are in its share.
  read_bandwidth(const void* data, std::int64_t bytes, int threads)
      : data_(static_cast<const char*>(data)), share_(bytes / threads / granule * granule), threads_(threads) {
    const bool wide = brgemm::detail::detect_cpu().has(brgemm::feature::avx512);
    const way ways[2][9] = {
        {read_256<1, 0, 64>, read_256<2, 0, 64>, read_256<4, 0, 64>, read_256<1, 1024, 64>, read_256<1, 4096, 64>,
         read_256<1, 8192, 64>, read_256<2, 8192, 64>, read_256<1, 8192, 512>, read_256<2, 8192, 512>},
        {read_512<1, 0, 64>, read_512<2, 0, 64>, read_512<4, 0, 64>, read_512<1, 1024, 64>, read_512<1, 4096, 64>,
         read_512<1, 8192, 64>, read_512<2, 8192, 64>, read_512<1, 8192, 512>, read_512<2, 8192, 512>}};
    std::vector<contestant> candidates;
    for (const way w : ways[wide ? 1 : 0]) {
      candidates.push_back({"", [this, w](std::int64_t times) { run(w, times); }});
    }
    const auto seconds = interleave(candidates, {.rounds = 9, .sample_seconds = 10e-3, .settled = threads > 1});
    std::vector<std::pair<double, way>> by_time;
    for (std::size_t i = 0; i < seconds.size(); ++i) by_time.emplace_back(median(seconds[i]), ways[wide ? 1 : 0][i]);
    std::sort(by_time.begin(), by_time.end());
    for (int i = 0; i < count; ++i) quickest_[i] = by_time[static_cast<std::size_t>(i)].second;
  }
  static constexpr int count = 3;
  /// Way `i` < count, `times` times.
  void operator()(int i, std::int64_t times) const { run(quickest_[i], times); }
  double bytes() const { return static_cast<double>(share_ * threads_); }

 private:
  using way = void (*)(const char*, std::int64_t);
  void run(way w, std::int64_t times) const {
    if (threads_ == 1) {
      for (std::int64_t t = 0; t < times; ++t) w(data_, share_);
      return;
    }
#pragma omp parallel num_threads(threads_)
    for (std::int64_t t = 0; t < times; ++t) w(data_ + omp_get_thread_num() * share_, share_);
  }
  const char* data_;
  std::int64_t share_;
  int threads_;
  way quickest_[count] = {};
};

}  // namespace bench
