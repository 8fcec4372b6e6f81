// Winograd's algorithm in nn::conv: within its bound of the exact sums, equal bits for any threads and vectors, the
// epilogue exactly behind it; when automatic takes it.
#include <gtest/gtest.h>

#include <brgemm/nn/conv.hpp>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "support/expect_error.hpp"
#include "support/features.hpp"
#include "support/guarded_memory.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using nn::conv;
using nn::conv_algorithm;
using nn::conv_desc;

struct problem {
  conv_desc d;
  std::vector<float> x, w, bias, scale, residual;
};

const loops::serial alone;

std::size_t at(index i) { return static_cast<std::size_t>(i); }

problem draw(std::mt19937& random, conv_algorithm algorithm) {
  const auto from = [&](index low, index high) {
    return low + static_cast<index>(random() % static_cast<std::uint32_t>(high - low + 1));
  };
  problem p;
  conv_desc& d = p.d;
  d.images = from(1, 3);
  d.in = from(1, from(0, 3) == 0 ? 140 : 33), d.out = from(1, from(0, 3) == 0 ? 140 : 33);
  for (int i : {1, 2}) d.axes[i] = {.in = from(3, 15), .kernel = 3, .pad_before = from(0, 3), .pad_after = from(0, 3)};
  d.bias = false;
  d.algorithm = algorithm;
  std::uniform_real_distribution<float> real(-1, 1);
  const auto fill = [&](std::vector<float>& v, index count) {
    v.resize(at(count));
    for (float& f : v) f = real(random);
  };
  const index pixels = d.images * d.axes[1].out() * d.axes[2].out();
  fill(p.x, d.images * d.axes[1].in * d.axes[2].in * d.in);
  fill(p.w, d.out * d.in * 9);
  fill(p.bias, d.out), fill(p.scale, d.out), fill(p.residual, pixels * d.out);
  return p;
}

struct written {
  std::vector<float> y;
  std::vector<std::uint8_t> mask;
  bool operator==(const written& o) const {
    return mask == o.mask && y.size() == o.y.size() && std::memcmp(y.data(), o.y.data(), y.size() * 4) == 0;
  }
};

/// Everything that is read or written lies against an inaccessible page.
written forward(const problem& p, int threads, guard side) {
  const auto layer = conv::plan(p.d);
  EXPECT_TRUE(layer) << layer.error().message();
  const auto pool = loops::thread_pool::make(threads);
  const auto bytes = [](index n) { return static_cast<std::size_t>(n); };
  const guarded_memory of_x(p.x.size() * 4), of_y(bytes(layer->y_bytes())), of_w(bytes(layer->weights_bytes()));
  const guarded_memory of_space(bytes(layer->forward_workspace_bytes(threads))), of_mask(bytes(layer->mask_bytes()));
  auto* const x = of_x.place(p.x.size() * 4, side);
  auto* const y = of_y.place(bytes(layer->y_bytes()), side);
  auto* const w = of_w.place(bytes(layer->weights_bytes()), side);
  auto* const mask = of_mask.place(bytes(layer->mask_bytes()), side);
  std::memcpy(x, p.x.data(), p.x.size() * 4);
  EXPECT_TRUE(layer->pack_weights(*pool, p.w.data(), nn::conv_weights::out_first, w));
  nn::conv_operands with;
  if (p.d.bias) with.bias = p.bias.data();
  if (p.d.scale) with.scale = p.scale.data();
  if (p.d.residual) with.residual = p.residual.data();
  if (p.d.mask) with.mask = mask;
  const index space = layer->forward_workspace_bytes(threads);
  if (space > 0) with.workspace = of_space.place(bytes(space), side);
  const auto r = layer->forward(*pool, p.d.images, x, w, with, y);
  EXPECT_TRUE(r) << r.error().message();
  const auto* const values = reinterpret_cast<const float*>(y);
  const auto* const bits = reinterpret_cast<const std::uint8_t*>(mask);
  return {{values, values + layer->y_bytes() / 4}, {bits, bits + layer->mask_bytes()}};
}

/// |B^T|, |G|, |A^T| of one axis.
struct transforms {
  std::vector<std::vector<double>> input, filter, output;
};
transforms absolute(int tile) {
  if (tile == 2) {
    return {{{1, 0, 1, 0}, {0, 1, 1, 0}, {0, 1, 1, 0}, {0, 1, 0, 1}},
            {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, 0.5, 0.5}, {0, 0, 1}},
            {{1, 1, 1, 0}, {0, 1, 1, 1}}};
  }
  const double s = 1.0 / 6, t = 1.0 / 12;
  return {{{4, 0, 5, 0, 1, 0},
           {0, 4, 4, 1, 1, 0},
           {0, 4, 4, 1, 1, 0},
           {0, 2, 1, 2, 1, 0},
           {0, 2, 1, 2, 1, 0},
           {0, 4, 0, 5, 0, 1}},
          {{0.25, 0, 0}, {s, s, s}, {s, s, s}, {t / 2, t, s}, {t / 2, t, s}, {0, 0, 1}},
          {{1, 1, 1, 1, 1, 0}, {0, 1, 1, 2, 2, 0}, {0, 1, 1, 4, 4, 0}, {0, 1, 1, 8, 8, 1}}};
}

/// The exact element of y, and what the bound is a multiple of: the algorithm over absolute values.
struct sums {
  double exact = 0;
  double magnitude = 0;
};
sums expected(const problem& p, int tile, index image, index h, index v, index k) {
  const conv_desc& d = p.d;
  const transforms m = absolute(tile);
  const int n = tile + 2;
  const auto pixel = [&](index row, index column, index c) {
    if (row < 0 || row >= d.axes[1].in || column < 0 || column >= d.axes[2].in) return 0.0;
    return static_cast<double>(p.x[at(((image * d.axes[1].in + row) * d.axes[2].in + column) * d.in + c)]);
  };
  const index top = h / tile * tile - d.axes[1].pad_before, left = v / tile * tile - d.axes[2].pad_before;
  sums s;
  for (index c = 0; c < d.in; ++c) {
    const float* const g = p.w.data() + (k * d.in + c) * 9;
    for (index r = 0; r < 3; ++r) {
      for (index q = 0; q < 3; ++q) {
        s.exact +=
            pixel(h - d.axes[1].pad_before + r, v - d.axes[2].pad_before + q, c) * static_cast<double>(g[r * 3 + q]);
      }
    }
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        double of_g = 0, of_d = 0;
        for (int r = 0; r < 3; ++r) {
          for (int q = 0; q < 3; ++q)
            of_g += m.filter[at(i)][at(r)] * std::abs(static_cast<double>(g[r * 3 + q])) * m.filter[at(j)][at(q)];
        }
        for (int r = 0; r < n; ++r) {
          for (int q = 0; q < n; ++q)
            of_d += m.input[at(i)][at(r)] * std::abs(pixel(top + r, left + q, c)) * m.input[at(j)][at(q)];
        }
        s.magnitude += m.output[at(h % tile)][at(i)] * of_g * of_d * m.output[at(v % tile)][at(j)];
      }
    }
  }
  return s;
}

/// Roundings on the longest way through the algorithm: 2 an axis of B, one of a weight, one for each channel, 3 an axis
/// of A (docs/numerics.md).
double factor(index channels) { return static_cast<double>(channels + 11) * 0x1p-24 * 1.001; }

void expect_within_bound(conv_algorithm algorithm, int tile) {
  std::mt19937 random(static_cast<unsigned>(tile));
  double worst = 0;
  for (int i = 0; i < 60; ++i) {
    const problem p = draw(random, algorithm);
    const written found = forward(p, 1 + i % 3, i % 2 == 0 ? guard::before : guard::after);
    const index rows = p.d.axes[1].out(), columns = p.d.axes[2].out();
    for (int sample = 0; sample < 300; ++sample) {
      const index e = static_cast<index>(random() % found.y.size());
      const index k = e % p.d.out, v = e / p.d.out % columns, h = e / p.d.out / columns % rows;
      const sums s = expected(p, tile, e / p.d.out / columns / rows, h, v, k);
      const double error = std::abs(static_cast<double>(found.y[at(e)]) - s.exact);
      ASSERT_LE(error, factor(p.d.in) * s.magnitude) << i << ": " << h << "," << v << "," << k;
      if (s.magnitude > 0) worst = std::max(worst, error / factor(p.d.in) / s.magnitude);
    }
  }
  std::printf("tiles of %d x %d: at most %.3f of the bound\n", tile, tile, worst);
}

TEST(Winograd, TwoByTwoIsWithinItsBound) { expect_within_bound(conv_algorithm::winograd_2x2, 2); }
TEST(Winograd, FourByFourIsWithinItsBound) { expect_within_bound(conv_algorithm::winograd_4x4, 4); }

TEST(Winograd, SameBitsForAnyThreadsAndVectors) {
  for (const auto algorithm : {conv_algorithm::winograd_2x2, conv_algorithm::winograd_4x4}) {
    std::mt19937 random(9);
    for (int i = 0; i < 20; ++i) {
      const problem p = draw(random, algorithm);
      const written right = forward(p, 1, guard::after);
      EXPECT_EQ(forward(p, 2 + i % 4, guard::before), right);
      hide_features("-avx512");
      EXPECT_EQ(forward(p, 2, guard::before), right);
      hide_features("");
    }
  }
}

TEST(Winograd, StepsComeExactlyBehindIt) {
  std::mt19937 random(17);
  for (int i = 0; i < 60; ++i) {
    problem p = draw(random, i % 2 == 0 ? conv_algorithm::winograd_2x2 : conv_algorithm::winograd_4x4);
    written right = forward(p, 1, guard::after);
    p.d.scale = i % 3 != 0, p.d.bias = i % 5 != 0, p.d.residual = i % 7 < 3;
    p.d.act = i % 4 < 2 ? nn::activation::relu : nn::activation::none;
    p.d.mask = i % 4 == 0;
    p.d.clamp = i % 4 == 3, p.d.lower = -0.5f, p.d.upper = 0.5f;
    const index row = (p.d.out + 7) / 8;
    right.mask.resize(p.d.mask ? right.y.size() / at(p.d.out) * at(row) : 0);
    for (std::size_t e = 0; e < right.y.size(); ++e) {
      const std::size_t k = e % at(p.d.out);
      float& y = right.y[e];
      if (p.d.scale) y *= p.scale[k];
      if (p.d.bias) y += p.bias[k];
      if (p.d.residual) y += p.residual[e];
      if (p.d.mask && y > 0) right.mask[e / at(p.d.out) * at(row) + k / 8] |= static_cast<std::uint8_t>(1u << k % 8);
      if (p.d.act == nn::activation::relu && y < 0) y = 0;
      if (p.d.clamp) y = std::min(std::max(y, p.d.lower), p.d.upper);
    }
    EXPECT_EQ(forward(p, 1 + i % 3, i % 2 == 0 ? guard::before : guard::after), right) << i;
  }
}

TEST(Winograd, AutomaticTakesItOnlyWhereAllowed) {
  conv_desc d;
  d.in = d.out = 64, d.bias = false;
  d.axes[1] = d.axes[2] = {.in = 28, .kernel = 3, .pad_before = 1, .pad_after = 1};
  const auto taken = [](const conv_desc& of) {
    const auto plan = conv::plan(of);
    EXPECT_TRUE(plan) << plan.error().message();
    return plan->algorithm();
  };
  EXPECT_EQ(taken(d), conv_algorithm::direct);
  d.inexact = true;
  EXPECT_EQ(taken(d), conv_algorithm::winograd_4x4);
  d.algorithm = conv_algorithm::direct;
  EXPECT_EQ(taken(d), conv_algorithm::direct);
  d.algorithm = conv_algorithm::automatic;
  d.axes[1].in = d.axes[2].in = 7;
  EXPECT_EQ(taken(d), conv_algorithm::winograd_2x2);
  d.out = 32;
  EXPECT_EQ(taken(d), conv_algorithm::direct);
  d.out = 64, d.axes[2].stride = 2;
  EXPECT_EQ(taken(d), conv_algorithm::direct);
}

TEST(Winograd, WhatIsRefused) {
  const auto fails = [](auto change, errc code, const std::vector<std::string>& words) {
    conv_desc d;
    d.in = d.out = 4, d.algorithm = conv_algorithm::winograd_2x2;
    d.axes[1] = d.axes[2] = {.in = 8, .kernel = 3};
    change(d);
    expect_error(conv::plan(d), code, "algorithm", words);
  };
  fails([](auto& d) { d.algorithm = static_cast<conv_algorithm>(4); }, errc::invalid_argument, {"4", "0..3"});
  fails([](auto& d) { d.axes[1].kernel = 5; }, errc::unsupported, {"5 x 3 taps"});
  fails([](auto& d) { d.axes[2].stride = 2; }, errc::unsupported, {"stride 1 x 2"});
  fails([](auto& d) { d.axes[2].dilation = 2; }, errc::unsupported, {"dilation 1 x 2"});
  fails([](auto& d) { d.groups = 2; }, errc::unsupported, {"2 groups"});
  fails([](auto& d) { d.data = d.y = type::bf16; }, errc::unsupported, {"bf16"});
  fails([](auto& d) { d.axes[0].in = 2; }, errc::unsupported, {"two axes"});
  conv_desc d;
  d.in = d.out = 4, d.bias = false, d.algorithm = conv_algorithm::winograd_4x4;
  d.axes[1] = d.axes[2] = {.in = 8, .kernel = 3};
  const auto layer = conv::plan(d);
  ASSERT_TRUE(layer);
  EXPECT_EQ(layer->forward_workspace_bytes(2), layer->forward_workspace_bytes(1));  // one block
  std::vector<float> x(8 * 8 * 4), y(6 * 6 * 4), w(at(layer->weights_bytes() / 4));
  expect_error(layer->forward(alone, 1, x.data(), w.data(), {}, y.data()), errc::invalid_argument, "workspace",
               {"null", std::to_string(layer->forward_workspace_bytes(1))});
}

/// Two blocks: a workspace for four threads serves one, two and four.
TEST(Winograd, WorkspaceForMoreThreads) {
  conv_desc d;
  d.in = d.out = 64, d.bias = false, d.algorithm = conv_algorithm::winograd_4x4;
  d.axes[1] = d.axes[2] = {.in = 28, .kernel = 3, .pad_before = 1, .pad_after = 1};
  const auto layer = conv::plan(d);
  ASSERT_TRUE(layer);
  const index space = layer->forward_workspace_bytes(4);
  EXPECT_EQ(space, 2 * layer->forward_workspace_bytes(1));
  const guarded_memory points(at(space));
  std::vector<float> x(at(layer->x_bytes() / 4), 0.5f), w(at(layer->weights()), 0.25f), right;
  std::vector<float> packed(at(layer->weights_bytes() / 4)), y(at(layer->y_bytes() / 4));
  ASSERT_TRUE(layer->pack_weights(alone, w.data(), nn::conv_weights::out_first, packed.data()));
  for (const int threads : {1, 2, 4}) {
    const auto pool = loops::thread_pool::make(threads);
    const nn::conv_operands with{.workspace = points.place(at(space), guard::after)};
    const auto r = layer->forward(*pool, 1, x.data(), packed.data(), with, y.data());
    EXPECT_EQ(static_cast<bool>(r), layer->forward_workspace_bytes(threads) > 0) << r.error().message();
    if (right.empty()) right = y;
    EXPECT_EQ(y, right) << threads;
  }
}

/// The gradients of a layer that goes forward so are those of the direct one.
TEST(Winograd, BackwardIsDirect) {
  std::mt19937 random(5);
  problem p = draw(random, conv_algorithm::winograd_2x2);
  p.d.training = true;
  const auto layer = conv::plan(p.d);
  p.d.algorithm = conv_algorithm::direct;
  const auto direct = conv::plan(p.d);
  ASSERT_TRUE(layer && direct);
  std::vector<float> packed(at(std::max(layer->weights_bytes(), direct->weights_bytes()) / 4)), t[2], dx[2];
  std::vector<float> dz(at(layer->y_bytes() / 4)), dw[2];
  for (std::size_t e = 0; e < dz.size(); ++e) dz[e] = static_cast<float>(e % 101) * 0.37f - 17;
  int i = 0;
  for (const auto* plan : {&*layer, &*direct}) {
    t[i].resize(at(plan->transposed_bytes() / 4)), dx[i].resize(p.x.size());
    ASSERT_TRUE(plan->pack_weights(alone, p.w.data(), nn::conv_weights::out_first, packed.data(), t[i].data()));
    ASSERT_TRUE(plan->backward_data(alone, p.d.images, dz.data(), t[i].data(), dx[i].data()));
    const index bytes = plan->backward_weights_workspace_bytes();
    std::vector<float> workspace(at(bytes / 4 + 1));
    dw[i].resize(p.w.size());
    ASSERT_TRUE(plan->backward_weights(alone, p.d.images, p.x.data(), dz.data(), dw[i].data(), nullptr,
                                       bytes > 0 ? workspace.data() : nullptr));
    ++i;
  }
  EXPECT_EQ(dx[0], dx[1]);
  EXPECT_EQ(dw[0], dw[1]);
}

}  // namespace
}  // namespace brgemm_test
