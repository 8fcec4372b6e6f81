// nn::batch_norm against plain loops: equal bits, for any number of threads and instruction set; against exact
// statistics in long double; its gradients against central differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <brgemm/nn/norm.hpp>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "support/expect_error.hpp"
#include "support/features.hpp"
#include "support/guarded_memory.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using nn::activation;
using nn::batch_norm;
using nn::batch_norm_desc;
using values = std::vector<float>;

std::size_t at(index i) { return static_cast<std::size_t>(i); }

const loops::serial one_thread;

/// What forward and backward give.
struct outcome {
  values y, saved, mean, variance, dx, dgamma, dbeta;
};

struct problem {
  batch_norm_desc d;
  values x, dy, gamma, beta, mean, variance;
};

/// v as an element of x, y and their gradients.
float as(type data, float v) { return data == type::bf16 ? to_f32(to_bf16(v)) : v; }

problem draw(std::mt19937& random, index pixels, index channels, activation act, type data = type::f32) {
  std::uniform_real_distribution<float> real(-1, 1);
  const batch_norm_desc d{.pixels = pixels, .channels = channels, .act = act, .data = data};
  problem p{d, values(at(pixels * channels)), values(at(pixels * channels)), {}, {}, {}, {}};
  for (float& v : p.x) v = as(data, 3 * real(random) + 0.5f);
  for (float& v : p.dy) v = as(data, real(random));
  for (values* const v : {&p.gamma, &p.beta, &p.mean, &p.variance}) {
    v->resize(at(channels));
    for (float& e : *v) e = 1 + real(random);
  }
  return p;
}

/// The text of the contract, one channel after the other.
outcome expected_of(const problem& p, index leaf) {
  const index pixels = p.d.pixels, channels = p.d.channels;
  outcome o{values(p.x.size()),   values(at(4 * channels)), p.mean, p.variance, values(p.x.size()),
            values(at(channels)), values(at(channels))};
  const auto number = static_cast<double>(pixels);
  const bool relu = p.d.act == activation::relu;
  for (index c = 0; c < channels; ++c) {
    const auto x = [&](index pixel) { return p.x[at(pixel * channels + c)]; };
    double total = 0, about = 0;
    std::vector<std::array<double, 4>> leaves;  // pixels, the first one, sums of distances from it and of their squares
    for (index first = 0; first < pixels; first += leaf) {
      const index end = std::min(first + leaf, pixels);
      float sum = 0, squares = 0;
      for (index i = first; i < end; ++i) {
        const float distance = x(i) - x(first);
        sum += distance;
        squares = std::fma(distance, distance, squares);
      }
      leaves.push_back({static_cast<double>(end - first), double{x(first)}, double{sum}, double{squares}});
      total += std::fma(leaves.back()[0], leaves.back()[1], double{sum});
    }
    const double mean = total / number;
    for (const auto& [n, origin, distances, squares] : leaves) {
      const double own = distances / n;
      const double away = (origin - mean) + own;
      about += std::max(0.0, std::fma(-own, distances, squares));
      about = std::fma(n * away, away, about);
    }
    const double inverse = 1 / std::sqrt(about / number + double{p.d.epsilon});
    const auto mean32 = static_cast<float>(mean);
    const auto scale = static_cast<float>(double{p.gamma[at(c)]} * inverse);
    const auto shift = static_cast<float>(std::fma(-mean, double{scale}, double{p.beta[at(c)]}));
    const float saved[4] = {mean32, static_cast<float>(inverse), scale, shift};
    for (index i = 0; i < 4; ++i) o.saved[at(i * channels + c)] = saved[i];
    const auto run = [&](float& v, double batch) {
      v = static_cast<float>(std::fma(double{p.d.momentum}, batch - double{v}, double{v}));
    };
    run(o.mean[at(c)], mean);
    run(o.variance[at(c)], about / (number - 1));
    double sum = 0, products = 0;
    std::vector<float> dz(at(pixels));
    for (index first = 0; first < pixels; first += leaf) {
      float chain = 0, product = 0;
      for (index i = first; i < std::min(first + leaf, pixels); ++i) {
        const float z = std::fma(x(i), scale, shift);
        o.y[at(i * channels + c)] = as(p.d.data, relu && z < 0 ? 0 : z);
        dz[at(i)] = relu && z <= 0 ? 0 : p.dy[at(i * channels + c)];
        chain += dz[at(i)];
        product = std::fma(dz[at(i)], x(i) - mean32, product);
      }
      sum += double{chain}, products += double{product};
    }
    const double share = double{scale} / number;
    o.dbeta[at(c)] = static_cast<float>(sum);
    o.dgamma[at(c)] = static_cast<float>(double{saved[1]} * products);
    const auto factor = static_cast<float>(-share * (double{saved[1]} * double{saved[1]} * products));
    const auto constant = static_cast<float>(-share * sum);
    for (index i = 0; i < pixels; ++i) {
      const float rest = std::fma(x(i) - mean32, factor, constant);
      o.dx[at(i * channels + c)] = as(p.d.data, std::fma(scale, dz[at(i)], rest));
    }
  }
  return o;
}

/// A copy, of f32 or bf16, that touches an inaccessible page.
class guarded {
 public:
  guarded(std::size_t count, guard side, type data = type::f32)
      : data_(data), bytes_(count * at(size_of(data))), memory_(bytes_), begin_(memory_.place(bytes_, side)) {
    std::memset(begin_, 0xee, bytes_);
  }
  guarded(const values& v, guard side, type data = type::f32) : guarded(v.size(), side, data) {
    if (data == type::f32) std::memcpy(begin_, v.data(), bytes_);
    for (std::size_t i = 0; data == type::bf16 && i < v.size(); ++i) static_cast<bf16*>(data_of())[i] = to_bf16(v[i]);
  }
  void* data_of() const { return begin_; }
  float* data() const { return static_cast<float*>(data_of()); }
  values copy() const {
    values v(bytes_ / at(size_of(data_)));
    for (std::size_t i = 0; i < v.size(); ++i) {
      v[i] = data_ == type::f32 ? data()[i] : to_f32(static_cast<const bf16*>(data_of())[i]);
    }
    return v;
  }

 private:
  type data_;
  std::size_t bytes_;
  guarded_memory memory_;
  std::byte* begin_;
};

outcome run(const problem& p, int threads, guard side, bool in_place) {
  const auto layer = batch_norm::plan(p.d);
  auto pool = loops::thread_pool::make(threads);
  EXPECT_TRUE(layer && pool);
  const auto channels = at(p.d.channels);
  const guarded x(p.x, side, p.d.data), dy(p.dy, side, p.d.data), gamma(p.gamma, side), beta(p.beta, side),
      mean(p.mean, side), variance(p.variance, side), y(p.x.size(), side, p.d.data), saved(4 * channels, side),
      dx(p.x.size(), side, p.d.data), dgamma(channels, side), dbeta(channels, side),
      workspace(at(layer->workspace_bytes() / 4), side);
  EXPECT_EQ(layer->x_bytes(), static_cast<index>(p.x.size()) * size_of(p.d.data));
  auto r = layer->forward(*pool, p.d.pixels, x.data_of(), gamma.data(), beta.data(), mean.data(), variance.data(),
                          y.data_of(), saved.data(), workspace.data());
  EXPECT_TRUE(r) << r.error().message();
  const guarded& to = in_place ? dy : dx;
  r = layer->backward(*pool, p.d.pixels, x.data_of(), dy.data_of(), saved.data(), to.data_of(), dgamma.data(),
                      dbeta.data(), workspace.data());
  EXPECT_TRUE(r) << r.error().message();
  return {y.copy(), saved.copy(), mean.copy(), variance.copy(), to.copy(), dgamma.copy(), dbeta.copy()};
}

void expect_same(const values& found, const values& right, const char* name, const problem& p) {
  ASSERT_EQ(found.size(), right.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(found[i]), std::bit_cast<std::uint32_t>(right[i]))
        << name << ' ' << i << " of (" << p.d.pixels << ", " << p.d.channels << "): " << found[i] << ' ' << right[i];
  }
}

void expect_same(const outcome& found, const outcome& right, const problem& p) {
  expect_same(found.saved, right.saved, "saved", p);
  expect_same(found.y, right.y, "y", p);
  expect_same(found.mean, right.mean, "running mean", p);
  expect_same(found.variance, right.variance, "running variance", p);
  expect_same(found.dgamma, right.dgamma, "dgamma", p);
  expect_same(found.dbeta, right.dbeta, "dbeta", p);
  expect_same(found.dx, right.dx, "dx", p);
}

TEST(BatchNorm, HasTheBitsOfThePlainLoops) {
  for (const char* hidden : {"", "-avx512", "-avx512,-avx2"}) {
    hide_features(hidden);
    SCOPED_TRACE(hidden);
    std::mt19937 random(1);
    const index shapes[][2] = {{2, 1}, {3, 5}, {1000, 3}, {513, 16}, {700, 33}, {300, 64}, {129, 130}, {70, 700}};
    for (const auto& [pixels, channels] : shapes) {
      for (const activation act : {activation::none, activation::relu}) {
        for (const type data : {type::f32, type::bf16}) {
          problem p = draw(random, pixels, channels, act, data);
          p.gamma[0] = p.beta[0] = 0;  // where y is 0, relu's derivative is
          const outcome right = expected_of(p, batch_norm::plan(p.d)->leaf_pixels());
          for (const int threads : {1, 2, 3}) {
            expect_same(run(p, threads, threads == 2 ? guard::before : guard::after, threads == 3), right, p);
            if (testing::Test::HasFatalFailure()) return hide_features("");
          }
        }
      }
    }
  }
  hide_features("");
}

// A mean far above the deviation: squares about zero, or chains of the values themselves, would lose the variance.
TEST(BatchNorm, StatisticsWhereTheMeanIsLarge) {
  std::mt19937 random(2);
  problem p = draw(random, 5000, 4, activation::none);
  for (float& v : p.x) v = v * 0.1f + 4096;
  for (index i = 0; i < 5000; ++i) p.x[at(i * 4)] = 1000.1f;  // a constant channel
  const outcome o = run(p, 2, guard::after, false);
  for (index c = 0; c < 4; ++c) {
    long double sum = 0, squares = 0;
    for (index i = 0; i < 5000; ++i) sum += static_cast<long double>(p.x[at(i * 4 + c)]);
    const long double mean = sum / 5000;
    for (index i = 0; i < 5000; ++i) {
      const long double away = static_cast<long double>(p.x[at(i * 4 + c)]) - mean;
      squares += away * away;
    }
    // Chains of 512 distances of at most 0.6: their sum is off by 512 * 2^-24 of it, and so is that of their squares.
    const auto exact = static_cast<double>(squares / 5000);
    const double found = 1 / (double{o.saved[at(4 + c)]} * double{o.saved[at(4 + c)]}) - double{p.d.epsilon};
    EXPECT_NEAR(double{o.saved[at(c)]}, static_cast<double>(mean), 0x1p-24 * 4096 + 512 * 0x1p-24 * 0.6);
    EXPECT_NEAR(found, exact, 2 * 512 * 0x1p-24 * 0.36 + 0x1p-22 * 1e-5);
    // y is off by the roundings of its two terms, mean * scale each.
    const double factor = double{o.saved[at(8 + c)]};
    for (index i = 0; i < 5000; ++i) {
      const double right = (double{p.x[at(i * 4 + c)]} - static_cast<double>(mean)) * factor + double{p.beta[at(c)]};
      EXPECT_NEAR(double{o.y[at(i * 4 + c)]}, right, 0x1p-23 * std::abs(static_cast<double>(mean) * factor) + 1e-3);
    }
  }
  EXPECT_FLOAT_EQ(o.saved[4], 1 / std::sqrt(p.d.epsilon));
}

TEST(BatchNorm, GradientsAreThoseOfCentralDifferences) {
  std::mt19937 random(3);
  const index pixels = 40, channels = 3;
  for (const activation act : {activation::none, activation::relu}) {
    const problem p = draw(random, pixels, channels, act);
    const outcome o = run(p, 1, guard::after, false);
    // The loss sum(dy * y) in double.
    const auto loss = [&](const std::vector<double>& x, const std::vector<double>& gamma,
                          const std::vector<double>& beta) {
      double sum = 0;
      for (index c = 0; c < channels; ++c) {
        double mean = 0, variance = 0;
        for (index i = 0; i < pixels; ++i) mean += x[at(i * channels + c)] / pixels;
        for (index i = 0; i < pixels; ++i) variance += std::pow(x[at(i * channels + c)] - mean, 2) / pixels;
        for (index i = 0; i < pixels; ++i) {
          const double z =
              (x[at(i * channels + c)] - mean) / std::sqrt(variance + double{p.d.epsilon}) * gamma[at(c)] + beta[at(c)];
          sum += (act == activation::relu && z < 0 ? 0 : z) * double{p.dy[at(i * channels + c)]};
        }
      }
      return sum;
    };
    std::vector<double> x(p.x.begin(), p.x.end()), gamma(p.gamma.begin(), p.gamma.end()),
        beta(p.beta.begin(), p.beta.end());
    const auto expect = [&](std::vector<double>& v, const values& gradient, const char* name) {
      for (std::size_t i = 0; i < v.size(); ++i) {
        const double old = v[i], step = 1e-6;
        v[i] = old + step;
        const double above = loss(x, gamma, beta);
        v[i] = old - step;
        const double below = loss(x, gamma, beta);
        v[i] = old;
        EXPECT_NEAR((above - below) / (2 * step), double{gradient[i]}, 2e-5) << name << ' ' << i;
      }
    };
    expect(x, o.dx, "dx");
    expect(gamma, o.dgamma, "dgamma");
    expect(beta, o.dbeta, "dbeta");
  }
}

TEST(BatchNorm, InferenceIsTheFoldedScaleAndShift) {
  std::mt19937 random(4);
  const problem p = draw(random, 50, 20, activation::relu);
  const auto layer = batch_norm::plan(p.d);
  ASSERT_TRUE(layer);
  values scale(20), shift(20), y(p.x.size());
  values variance = p.variance;
  for (float& v : variance) v = std::abs(v);
  ASSERT_TRUE(layer->fold(p.gamma.data(), p.beta.data(), p.mean.data(), variance.data(), scale.data(), shift.data()));
  ASSERT_TRUE(layer->inference(one_thread, 50, p.x.data(), scale.data(), shift.data(), y.data()));
  for (std::size_t i = 0; i < y.size(); ++i) {
    const std::size_t c = i % 20;
    const double exact = (double{p.x[i]} - double{p.mean[c]}) / std::sqrt(double{variance[c]} + double{p.d.epsilon}) *
                             double{p.gamma[c]} +
                         double{p.beta[c]};
    EXPECT_NEAR(double{y[i]}, std::max(exact, 0.0),
                1e-6 * (std::abs(double{p.x[i] * scale[c]}) + std::abs(double{shift[c]})));
  }
}

TEST(BatchNorm, WrongDescs) {
  const batch_norm_desc right{10, 4};
  const struct {
    std::string field;
    std::vector<std::string> words;
    void (*change)(batch_norm_desc&);
  } cases[] = {
      {"pixels", {"pixels is 0"}, [](auto& d) { d.pixels = 0; }},
      {"channels", {"channels is -1"}, [](auto& d) { d.channels = -1; }},
      {"pixels",
       {"2^59"},
       [](auto& d) {
         d.pixels = d.channels = index{1} << 29;
         d.pixels *= 4;
       }},
      {"data", {"data is u8"}, [](auto& d) { d.data = type::u8; }},
      {"act", {"act is 2"}, [](auto& d) { d.act = activation::sigmoid; }},
      {"epsilon", {"epsilon is 0"}, [](auto& d) { d.epsilon = 0; }},
      {"epsilon", {"nan"}, [](auto& d) { d.epsilon = __builtin_nanf(""); }},
      {"epsilon", {"inf"}, [](auto& d) { d.epsilon = __builtin_inff(); }},
      {"momentum", {"1.5"}, [](auto& d) { d.momentum = 1.5f; }},
      {"momentum", {"nan"}, [](auto& d) { d.momentum = __builtin_nanf(""); }},
  };
  ASSERT_TRUE(batch_norm::plan(right));
  for (const auto& c : cases) {
    batch_norm_desc d = right;
    c.change(d);
    expect_error(batch_norm::plan(d), errc::invalid_argument, c.field, c.words);
  }
}

TEST(BatchNorm, WrongArguments) {
  const batch_norm_desc d{4, 2};
  const auto layer = batch_norm::plan(d);
  ASSERT_TRUE(layer);
  const index places[] = {8, 2, 2, 2, 2, 8, 8, 8, 8, 2, 2, layer->workspace_bytes() / 4};
  enum { x, gamma, beta, mean, variance, y, saved, dy, dx, dgamma, dbeta, workspace, count };
  const char* const names[] = {"x",  "gamma", "beta",   "running_mean", "running_variance", "y", "saved",
                               "dy", "dx",    "dgamma", "dbeta",        "workspace"};
  std::vector<values> memory;
  for (const index n : places) memory.emplace_back(at(n), 0.25f);
  const auto untouched = memory;
  using pointers = std::vector<float*>;
  const auto forward = [&](index pixels, const pointers& p) {
    return layer->forward(one_thread, pixels, p[x], p[gamma], p[beta], p[mean], p[variance], p[y], p[saved],
                          p[workspace]);
  };
  const auto backward = [&](index pixels, const pointers& p) {
    return layer->backward(one_thread, pixels, p[x], p[dy], p[saved], p[dx], p[dgamma], p[dbeta], p[workspace]);
  };
  pointers right;
  for (values& v : memory) right.push_back(v.data());
  const auto walk = [&](const auto& call, std::vector<int> arguments) {
    for (const index pixels : {index{1}, index{5}}) {
      expect_error(call(pixels, right), errc::invalid_argument, "pixels", {std::to_string(pixels), "2..4"});
    }
    for (const int a : arguments) {
      pointers wrong = right;
      wrong[at(a)] = nullptr;
      expect_error(call(4, wrong), errc::invalid_argument, names[a], {"is null"});
      wrong[at(a)] = reinterpret_cast<float*>(reinterpret_cast<char*>(right[at(a)]) + 1);
      expect_error(call(4, wrong), errc::invalid_argument, names[a], {"multiple of 4"});
    }
    EXPECT_EQ(memory, untouched);
  };
  walk(forward, {x, gamma, beta, mean, variance, y, saved, workspace});
  walk(backward, {x, dy, saved, dx, dgamma, dbeta, workspace});
  pointers wrong = right;
  wrong[y] = wrong[x];
  expect_error(forward(4, wrong), errc::invalid_argument, "y", {"overlaps x"});
  wrong = right;
  wrong[dx] = wrong[x];
  expect_error(backward(4, wrong), errc::invalid_argument, "dx", {"overlaps x"});
  EXPECT_EQ(memory, untouched);
  wrong = right;
  wrong[mean] = wrong[variance] = nullptr;
  EXPECT_TRUE(forward(4, wrong)) << "statistics that are not kept";
}

}  // namespace
}  // namespace brgemm_test
