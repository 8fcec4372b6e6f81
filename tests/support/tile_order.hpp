// Sums of bf16 products in order::tile, as docs/numerics.md writes them. No value may be so small that the instructions
// flush it.
#pragma once

#include <algorithm>
#include <brgemm/core/cpu.hpp>
#include <cmath>

namespace brgemm_test {

/// Whether order::machine of bf16 is order::tile here.
inline bool machine_sums_in_tiles() {
  brgemm::desc d;
  d.a = d.b = brgemm::type::bf16;
  return brgemm::machine_order(d) == brgemm::order::tile;
}

/// a(k) * b(k) summed over k < count, in entries of entry(left) k where `left` are to come.
template <class A, class B, class Entry>
float sum_in_tiles(brgemm::index count, A&& a, B&& b, Entry&& entry) {
  using brgemm::index;
  float sum = 0;
  for (index k = 0; k < count;) {
    const index end_of_entry = k + std::min(entry(count - k), count - k);
    while (k < end_of_entry) {
      const index end = std::min(k + 32, end_of_entry);
      float chains[2] = {};
      for (int i = 0; k < end; ++k, ++i) chains[i % 2] = std::fma(a(k), b(k), chains[i % 2]);
      sum += chains[0] + chains[1];
    }
  }
  return sum;
}

/// The rows that the gradient of a linear layer's weights sums in one entry.
inline brgemm::index rows_of_entry(brgemm::index left) { return left >= 64 ? 64 : left >= 8 ? 8 : 2; }

}  // namespace brgemm_test
