// Optimizers against their formulas in double, with equal bits for any threads and vectors; generators against known
// numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <brgemm/train/initialise.hpp>
#include <brgemm/train/optimizer.hpp>
#include <cmath>
#include <vector>

namespace {

using brgemm::index;
namespace loops = brgemm::loops;
namespace train = brgemm::train;

constexpr loops::serial alone;
constexpr std::size_t count = 10'007;  // several blocks and a tail

std::vector<float> some(std::uint64_t seed) {
  train::generator random(seed);
  std::vector<float> v(count);
  train::uniform(random, 1, v);
  return v;
}

/// Runs five steps and returns the parameters, with the state behind them.
template <class O>
std::vector<float> five_steps(loops::executor_ref threads, const O& how) {
  std::vector<float> w = some(1);
  std::vector<float> state(count * O::states);
  for (index t = 1; t <= 5; ++t) {
    const std::vector<float> g = some(static_cast<std::uint64_t>(10 + t));
    EXPECT_TRUE(train::step(threads, how, t, w, g, state));
  }
  w.insert(w.end(), state.begin(), state.end());
  return w;
}

TEST(Sgd, FollowsItsFormula) {
  const train::sgd how{.learning_rate = 0.1f, .momentum = 0.9f, .weight_decay = 0.01f};
  const std::vector<float> got = five_steps(alone, how);
  const std::vector<float> w0 = some(1);
  std::vector<double> w(w0.begin(), w0.end()), v(count);
  for (std::uint64_t t = 1; t <= 5; ++t) {
    const std::vector<float> g = some(10 + t);
    for (std::size_t i = 0; i < count; ++i) {
      v[i] = 0.9f * v[i] + (g[i] + 0.01f * w[i]);
      w[i] -= static_cast<double>(0.1f) * v[i];
    }
  }
  // |v| < 5.1, |w| < 2.6: three roundings a step of at most 2^-24 * 5.1, five steps.
  for (std::size_t i = 0; i < count; ++i) ASSERT_NEAR(got[i], w[i], 15 * 5.1 * 0x1p-24) << i;
}

TEST(Adam, FollowsItsFormula) {
  const train::adam how{.learning_rate = 0.01f, .weight_decay = 0.1f};
  const std::vector<float> got = five_steps(alone, how);
  const std::vector<float> w0 = some(1);
  std::vector<double> w(w0.begin(), w0.end()), m(count), v(count);
  for (std::uint64_t t = 1; t <= 5; ++t) {
    const std::vector<float> g = some(10 + t);
    for (std::size_t i = 0; i < count; ++i) {
      m[i] = 0.9f * m[i] + (1 - static_cast<double>(0.9f)) * g[i];
      v[i] = 0.999f * v[i] + (1 - static_cast<double>(0.999f)) * g[i] * g[i];
      const double m_hat = m[i] / (1 - std::pow(static_cast<double>(0.9f), t));
      const double v_hat = v[i] / (1 - std::pow(static_cast<double>(0.999f), t));
      w[i] -= 0.01f * (0.1f * w[i] + m_hat / (std::sqrt(v_hat) + 1e-8f));
    }
  }
  // |m_hat / sqrt(v_hat)| < 4 here, known to 2^-17 (1 - b2^t is about t * 2^-10, so it loses ten of its 24 bits, and
  // the root halves that); times five steps of 0.01: 1.5e-6. The weights' own rounding adds 5 * 2^-24 * 1.2.
  for (std::size_t i = 0; i < count; ++i) ASSERT_NEAR(got[i], w[i], 2e-6) << i;
}

template <class O>
void expect_same_bits(const O& how) {
  const std::vector<float> first = five_steps(alone, how);
  for (const int threads : {2, 3, 4}) {
    auto pool = loops::thread_pool::make(threads);
    EXPECT_EQ(five_steps(*pool, how), first);
  }
  for (const char* hidden : {"-avx512", "-avx2"}) {
    brgemm::hide_cpu_features(hidden);
    EXPECT_EQ(five_steps(alone, how), first) << hidden;
    brgemm::hide_cpu_features("");
  }
}

TEST(Optimizer, SameBitsForAnyThreadsAndVectors) {
  expect_same_bits(train::sgd{.learning_rate = 0.1f, .momentum = 0.9f, .weight_decay = 0.01f});
  expect_same_bits(train::adam{.learning_rate = 0.01f, .weight_decay = 0.1f});
}

TEST(Optimizer, NamesWhatIsWrongAndWritesNothing) {
  std::vector<float> w(4, 1), g(4, 1), state(8);
  const auto expect = [&](const char* field, const brgemm::result<void>& r) {
    ASSERT_FALSE(r);
    EXPECT_EQ(r.error().field(), field);
    EXPECT_EQ(w, std::vector<float>(4, 1));
  };
  expect("gradient", train::step(alone, train::adam{}, 1, w, std::span(g).first(3), state));
  expect("state", train::step(alone, train::adam{}, 1, w, g, std::span(state).first(4)));
  expect("state", train::step(alone, train::sgd{}, 1, w, g, state));
  expect("t", train::step(alone, train::adam{}, 0, w, g, state));
}

TEST(Generator, GivesTheSameNumbersEverywhere) {
  train::generator random(5489);  // the standard: the 10000th of std::mt19937_64 is 9981545732273789042
  float last = 0;
  for (int i = 0; i < 10'000; ++i) last = random.uniform();
  EXPECT_EQ(last, static_cast<float>(9981545732273789042u >> 40) * 0x1p-24f);
}

TEST(Initialise, HasTheVarianceOfThePapers) {
  constexpr std::size_t n = 200'000;
  std::vector<float> w(n);
  const auto expect_variance = [&](double wanted, double bound) {
    double mean = 0, variance = 0;
    for (const float x : w) mean += x / static_cast<double>(n);
    for (const float x : w) variance += (x - mean) * (x - mean) / static_cast<double>(n);
    // Five standard deviations of the mean and of the variance of a uniform distribution (kurtosis 9/5).
    EXPECT_NEAR(mean, 0, 5 * std::sqrt(wanted / n));
    EXPECT_NEAR(variance, wanted, 5 * wanted * std::sqrt(0.8 / n));
    EXPECT_LE(*std::max_element(w.begin(), w.end()), bound);
    EXPECT_GE(*std::min_element(w.begin(), w.end()), -bound);
  };
  train::generator random(3);
  train::he(random, 512, w);
  expect_variance(2.0 / 512, std::sqrt(6.0 / 512) * (1 + 1e-7));
  train::glorot(random, 300, 212, w);
  expect_variance(2.0 / 512, std::sqrt(6.0 / 512) * (1 + 1e-7));
}

TEST(Shuffle, IsAPermutationThatTheSeedFixes) {
  std::vector<std::uint32_t> order(1000), again(1000), other(1000);
  train::generator a(1), b(1), c(2);
  train::shuffle(a, order);
  train::shuffle(b, again);
  train::shuffle(c, other);
  EXPECT_EQ(order, again);
  EXPECT_NE(order, other);
  std::sort(order.begin(), order.end());
  for (std::uint32_t i = 0; i < 1000; ++i) EXPECT_EQ(order[i], i);
}

}  // namespace
