// What the CPU can do: cpuid, what the operating system saves, and what BRGEMM_CPU hides: features by name, each after
// a minus, with commas and nothing else between them: BRGEMM_CPU=-bf16,-vnni.
#pragma once

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "desc.hpp"
#include "result.hpp"

namespace brgemm::inline abi_0 {

/// One bit a feature. AVX2 stands for AVX2 with FMA and BMI2; AVX-512 for F, BW, DQ and VL together.
enum class feature : std::uint32_t {
  avx2 = 1u << 0,
  f16c = 1u << 1,
  avx_vnni = 1u << 2,  ///< vpdpbusd in VEX encoding
  avx512 = 1u << 3,
  avx512_vnni = 1u << 4,
  avx512_bf16 = 1u << 5,
  avx512_fp16 = 1u << 6,
  amx_tile = 1u << 7,
  amx_bf16 = 1u << 8,
  amx_int8 = 1u << 9,
};

/// A set of features, and who made the CPU.
struct cpu_features {
  std::uint32_t bits = 0;
  bool intel = false;
  constexpr bool has(feature f) const noexcept { return (bits & static_cast<std::uint32_t>(f)) != 0; }
  friend constexpr bool operator==(const cpu_features&, const cpu_features&) = default;
};

namespace detail {

struct feature_name {
  std::string_view name;
  feature bit;
};
inline constexpr feature_name feature_names[] = {
    {"avx2", feature::avx2},         {"f16c", feature::f16c},        {"avx_vnni", feature::avx_vnni},
    {"avx512", feature::avx512},     {"vnni", feature::avx512_vnni}, {"bf16", feature::avx512_bf16},
    {"fp16", feature::avx512_fp16},  {"amx", feature::amx_tile},     {"amx_bf16", feature::amx_bf16},
    {"amx_int8", feature::amx_int8},
};

/// Bytes of the largest cache of this machine, 0 where the CPU does not tell.
inline std::int64_t find_largest_cache() noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  std::int64_t largest = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return 0;
  const unsigned leaf = b == signature_INTEL_ebx ? 4 : 0x8000001d;
  for (unsigned i = 0; i < 16 && __get_cpuid_count(leaf, i, &a, &b, &c, &d) && (a & 31u) != 0; ++i) {
    const std::int64_t ways = (b >> 22) + 1;
    const std::int64_t partitions = ((b >> 12) & 0x3ffu) + 1;
    const std::int64_t line = (b & 0xfffu) + 1;
    const std::int64_t bytes = ways * partitions * line * (std::int64_t{c} + 1);
    largest = bytes > largest ? bytes : largest;
  }
  return largest;
}
inline std::int64_t largest_cache_bytes() noexcept {
  static const std::int64_t bytes = find_largest_cache();
  return bytes;
}

inline std::uint64_t xgetbv() noexcept {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

/// Whether the system can grant a process the state of tiles; it is not asked to.
inline bool system_knows_tiles() noexcept {
  constexpr int get_supported = 0x1021;  // ARCH_GET_XCOMP_SUPP, since Linux 5.16
  std::uint64_t states = 0;
  return syscall(SYS_arch_prctl, get_supported, &states) == 0 && (states >> 18 & 1) != 0;
}

inline cpu_features detect_cpu() noexcept {
  cpu_features f;
  unsigned a = 0, b = 0, c = 0, d = 0;
  const auto set = [&f](bool present, feature bit) {
    if (present) f.bits |= static_cast<std::uint32_t>(bit);
  };
  const auto bit = [](unsigned word, int i) { return ((word >> i) & 1u) != 0; };
  if (!__get_cpuid(0, &a, &b, &c, &d)) return f;
  f.intel = b == signature_INTEL_ebx;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return f;  // OSXSAVE
  const std::uint64_t saved = xgetbv();
  const bool ymm = (saved & 0x6) == 0x6;
  const bool zmm = ymm && (saved & 0xe0) == 0xe0;
  const bool tiles = (saved & 0x60000) == 0x60000 && system_knows_tiles();
  const bool fma = bit(c, 12);
  set(ymm && bit(c, 29), feature::f16c);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  const unsigned leaves = a;
  set(ymm && fma && bit(b, 5) && bit(b, 8), feature::avx2);
  set(zmm && fma && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31), feature::avx512);
  const bool wide = f.has(feature::avx512);
  set(wide && bit(c, 11), feature::avx512_vnni);
  set(wide && bit(d, 23), feature::avx512_fp16);
  set(tiles && bit(d, 24), feature::amx_tile);
  set(tiles && bit(d, 22), feature::amx_bf16);
  set(tiles && bit(d, 25), feature::amx_int8);
  if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    set(f.has(feature::avx2) && bit(a, 4), feature::avx_vnni);
    set(wide && bit(a, 5), feature::avx512_bf16);
  }
  return f;
}

/// Takes the first word off a list with commas.
constexpr std::string_view take_word(std::string_view& list) noexcept {
  const auto end = list.find(',');
  const std::string_view word = list.substr(0, end);
  list = end == std::string_view::npos ? std::string_view{} : list.substr(end + 1);
  return word;
}

/// Whether each word of the list hides a feature; empty words are no words. Error: invalid_argument "BRGEMM_CPU".
inline result<void> check_hidden(std::string_view list) noexcept {
  while (!list.empty()) {
    const std::string_view word = take_word(list);
    bool known = word.empty();
    for (const auto& f : feature_names) known |= word.substr(0, 1) == "-" && word.substr(1) == f.name;
    if (known) continue;
    return error(errc::invalid_argument, "BRGEMM_CPU",
                 "BRGEMM_CPU has the word \"%.*s\"; with commas and without spaces it takes -avx2, -f16c, -avx_vnni, "
                 "-avx512, -vnni, -bf16, -fp16, -amx, -amx_bf16 and -amx_int8",
                 word.size() < 40 ? static_cast<int>(word.size()) : 40, word.data());
  }
  return {};
}

/// Applies "-bf16,-vnni": each named feature is hidden, and what needs it with it. Unknown names hide nothing.
inline cpu_features hide(cpu_features f, std::string_view list) noexcept {
  while (!list.empty()) {
    std::string_view word = take_word(list);
    if (word.empty() || word.front() != '-') continue;
    word.remove_prefix(1);
    for (const auto& [name, bit] : feature_names) {
      if (name == word) f.bits &= ~static_cast<std::uint32_t>(bit);
    }
    if (word == "vnni") f.bits &= ~static_cast<std::uint32_t>(feature::avx_vnni);
  }
  const auto drop = [&f](feature bit) { f.bits &= ~static_cast<std::uint32_t>(bit); };
  if (!f.has(feature::avx2)) drop(feature::avx_vnni), drop(feature::f16c), drop(feature::avx512);
  if (!f.has(feature::avx512)) drop(feature::avx512_vnni), drop(feature::avx512_bf16), drop(feature::avx512_fp16);
  if (!f.has(feature::amx_tile)) drop(feature::amx_bf16), drop(feature::amx_int8);
  return f;
}

inline std::string_view hidden_by_environment() noexcept {
  const char* const list = std::getenv("BRGEMM_CPU");
  return list != nullptr ? std::string_view(list) : std::string_view();
}

[[gnu::noinline, gnu::cold]] inline cpu_features initial_cpu() noexcept {
  return hide(detect_cpu(), hidden_by_environment());
}

inline std::atomic<std::uint32_t>& visible_features() noexcept {
  static std::atomic<std::uint32_t> bits{initial_cpu().bits};
  return bits;
}

}  // namespace detail

/// The features that backends may use: those of this machine, less what BRGEMM_CPU or hide_cpu_features took away.
inline cpu_features cpu() noexcept {
  static const bool intel = detail::detect_cpu().intel;
  return {detail::visible_features().load(std::memory_order_relaxed), intel};
}

/// What is wrong with BRGEMM_CPU, read once a process: a list with an unknown word would hide less than was meant, so
/// make_kernel makes nothing then. Error: invalid_argument "BRGEMM_CPU".
inline const result<void>& check_cpu_list() noexcept {
  static const result<void> checked = detail::check_hidden(detail::hidden_by_environment());
  return checked;
}

/// For tests: hides features from now on, in the form of BRGEMM_CPU ("-bf16,-vnni"); "" shows all that the machine has.
/// Kernels made before are untouched. Thread-safe. Error: invalid_argument for an unknown word; then nothing changes.
inline result<void> hide_cpu_features(std::string_view list) noexcept {
  if (auto r = detail::check_hidden(list); !r) return r;
  detail::visible_features().store(detail::hide(detail::detect_cpu(), list).bits, std::memory_order_relaxed);
  return {};
}

/// The order in which a kernel of this desc sums on this machine: what was asked for, or what `order::machine` stands
/// for, fixed by types, chains and machine and never by shape: of bf16 that of AMX tiles where the CPU has them and one
/// chain is wanted.
inline order machine_order(const desc& d) noexcept {
  if (d.sums != order::machine) return d.sums;
  if (d.a != type::bf16 || is_depthwise(d.layout_a)) return order::chain;
  const bool has_tiles = cpu().has(feature::avx512) && cpu().has(feature::amx_bf16);
  return has_tiles && d.chains == 1 ? order::tile : order::pair;
}

}  // namespace brgemm::inline abi_0
