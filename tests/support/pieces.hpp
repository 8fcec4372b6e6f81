// Sums of products of bf16 pieces, as docs/numerics.md writes them. No value may be so small that bf16 instructions
// flush a piece of it.
#pragma once

#include <algorithm>
#include <brgemm/loops/split.hpp>
#include <cmath>
#include <span>
#include <utility>

namespace brgemm_test {

/// `sum`, to which the products of a(k) and b(k), k < count, are added.
template <class A, class B>
float sum_of_pieces(brgemm::math how, brgemm::index count, float sum, A&& a, B&& b) {
  using brgemm::index;
  static constexpr std::pair<int, int> six[] = {{3, 1}, {2, 2}, {1, 3}, {1, 2}, {2, 1}, {1, 1}};
  static constexpr std::pair<int, int> three[] = {{1, 2}, {2, 1}, {1, 1}};
  const auto split = [](float x, float(&pieces)[4]) {
    for (int piece = 1; piece <= 3; ++piece) x -= pieces[piece] = brgemm::to_f32(brgemm::to_bf16(x));
  };
  for (index first = 0; first < count; first += 32) {
    const index here = std::min<index>(count - first, 32);
    float x[32][4], y[32][4];
    for (index i = 0; i < here; ++i) split(a(first + i), x[i]), split(b(first + i), y[i]);
    for (const auto& [p, q] : how == brgemm::math::bf16x3 ? std::span<const std::pair<int, int>>(six) : three) {
      float chains[2] = {};
      for (index i = 0; i < here; ++i) chains[i % 2] = std::fma(x[i][p], y[i][q], chains[i % 2]);
      sum += chains[0] + chains[1];
    }
  }
  return sum;
}

}  // namespace brgemm_test
