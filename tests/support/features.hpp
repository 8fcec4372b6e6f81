// Hides CPU features without asking the CPU again: under a virtual machine that takes tens of microseconds.
#pragma once

#include <brgemm/core/cpu.hpp>

namespace brgemm_test {

inline brgemm::cpu_features all_features() {
  static const brgemm::cpu_features all = brgemm::detail::detect_cpu();
  return all;
}

/// As brgemm::hide_cpu_features.
inline void hide_features(std::string_view list) {
  brgemm::detail::visible_features().store(brgemm::detail::hide(all_features(), list).bits, std::memory_order_relaxed);
}

}  // namespace brgemm_test
