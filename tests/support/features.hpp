// Hides CPU features without asking the CPU again: under a virtual machine that takes tens of microseconds. Shows AMX
// where the CPU has none, for kernels on emulated tiles.
#pragma once

#include <brgemm/backend/executable_memory.hpp>
#include <brgemm/core/cpu.hpp>
#include <cstdlib>
#include <cstring>

#include "support/tile_emulator.hpp"

namespace brgemm_test {

namespace features {
inline brgemm::cpu_features& all() {
  static brgemm::cpu_features f = brgemm::detail::detect_cpu();
  return f;
}
}  // namespace features

inline brgemm::cpu_features all_features() { return features::all(); }

/// As brgemm::hide_cpu_features.
inline void hide_features(std::string_view list) {
  brgemm::detail::visible_features().store(brgemm::detail::hide(all_features(), list).bits, std::memory_order_relaxed);
}

/// From now on, on a CPU with AVX-512, the CPU seems to have AMX too, but for what BRGEMM_CPU hides. Its instructions
/// are emulated where it has none or the system does not grant them; returns whether they are.
inline bool show_tiles() {
  using brgemm::feature;
  brgemm::cpu_features& all = features::all();
  const char* const hidden = std::getenv("BRGEMM_CPU");
  const auto is_hidden = [hidden](const char* name) {
    return hidden != nullptr && std::strstr(hidden, name) != nullptr;
  };
  if (!all.has(feature::avx512) || is_hidden("-avx512") || is_hidden("-avx2") || is_hidden("-amx")) return false;
  const bool has_tiles = all.has(feature::amx_bf16) && all.has(feature::amx_int8);
  if (has_tiles && brgemm::backend::real_system_calls.request_tiles() == 0) return false;
  emulate_tiles();
  brgemm::backend::current_system_calls.request_tiles = []() noexcept { return 0; };
  for (const feature f : {feature::amx_tile, feature::amx_bf16, feature::amx_int8}) {
    all.bits |= static_cast<std::uint32_t>(f);
  }
  hide_features(hidden != nullptr ? hidden : "");
  return true;
}

}  // namespace brgemm_test
