// nn::softmax against double: within the bound of its arithmetic, the same bits for any number of threads and
// instruction set, and no byte touched outside of a tensor.
#include <gtest/gtest.h>

#include <brgemm/nn/softmax.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "support/expect_error.hpp"
#include "support/features.hpp"
#include "support/guarded_memory.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using nn::softmax;

struct problem {
  index rows, classes;
  std::vector<float> x, dy;
};

problem draw(std::mt19937& random, index rows, index classes) {
  problem p{rows, classes, std::vector<float>(static_cast<std::size_t>(rows * classes)), {}};
  p.dy = p.x;
  std::uniform_real_distribution<float> real(-1, 1);
  const float range = random() % 2 == 0 ? 3.0f : 120.0f;
  for (float& v : p.x) v = range * real(random);
  for (float& v : p.dy) v = real(random);
  return p;
}

/// y, then dx.
std::vector<float> computed(const problem& p, int threads) {
  const auto layer = softmax::plan({p.rows + 2, p.classes});
  auto pool = loops::thread_pool::make(threads);
  EXPECT_TRUE(layer && pool);
  const std::size_t bytes = p.x.size() * sizeof(float);
  const guarded_memory memory[3] = {guarded_memory(bytes), guarded_memory(bytes), guarded_memory(bytes)};
  const guard side = threads % 2 == 0 ? guard::before : guard::after;
  auto* const x = reinterpret_cast<float*>(memory[0].place(bytes, side));
  auto* const y = reinterpret_cast<float*>(memory[1].place(bytes, side));
  auto* const dy = reinterpret_cast<float*>(memory[2].place(bytes, side));
  std::memcpy(x, p.x.data(), bytes);
  std::memcpy(dy, p.dy.data(), bytes);
  EXPECT_TRUE(layer->forward(*pool, p.rows, x, y));
  EXPECT_TRUE(layer->backward(*pool, p.rows, y, dy, x));
  std::vector<float> all(y, y + p.x.size());
  all.insert(all.end(), x, x + p.x.size());
  EXPECT_TRUE(layer->backward(*pool, p.rows, y, dy, dy));  // in place
  EXPECT_EQ(std::memcmp(dy, x, bytes), 0);
  std::memcpy(x, p.x.data(), bytes);
  EXPECT_TRUE(layer->forward(*pool, p.rows, x, x));
  EXPECT_EQ(std::memcmp(x, y, bytes), 0);
  return all;
}

TEST(Softmax, IsNearTheExactOne) {
  std::mt19937 random(1);
  for (const index classes : {1, 2, 3, 10, 15, 16, 17, 100, 1000, 5003}) {
    const problem p = draw(random, 7, classes);
    const std::vector<float> found = computed(p, 1);
    // exp within 2 ULP (and x - max within half a one of an argument up to 240), chains of classes / 16 terms and four
    // sums, the division: relative errors of at most 2^-24 each but for the argument's.
    const double bound = (static_cast<double>(classes) / 16 + 4 + 4 + 1 + 2 * 240) * 0x1p-24;
    for (index r = 0; r < p.rows; ++r) {
      const float* const x = p.x.data() + r * classes;
      const float* const dy = p.dy.data() + r * classes;
      const double largest = *std::max_element(x, x + classes);
      double sum = 0, dot = 0;
      for (index c = 0; c < classes; ++c) sum += std::exp(x[c] - largest);
      for (index c = 0; c < classes; ++c) dot += std::exp(x[c] - largest) / sum * dy[c];
      for (index c = 0; c < classes; ++c) {
        const double y = std::exp(x[c] - largest) / sum;
        const auto at = static_cast<std::size_t>(r * classes + c);
        ASSERT_NEAR(found[at], y, bound * y + 0x1p-148) << classes << ' ' << x[c] - largest;
        // Terms of the sum are below 1 in magnitude and weigh 1 together.
        ASSERT_NEAR(found[p.x.size() + at], y * (dy[c] - dot), 4 * bound * y + 0x1p-147) << classes;
      }
    }
  }
}

TEST(Softmax, ExpOfEveryScale) {
  float most = 0;
  for (float x = 0; x > -87.0f; x = x * 1.00001f - 1e-7f) {  // normal results
    const double exact = std::exp(static_cast<double>(x));
    const double place = std::ldexp(1.0, std::ilogb(exact) - 23);
    most = std::max(most, static_cast<float>(std::abs(detail::exp_of_negative(x) - exact) / place));
  }
  std::printf("exp: %.3f ULP\n", static_cast<double>(most));
  EXPECT_LT(most, 1.5f);
  for (float x = -87; x > -110; x -= 0.001f) {
    EXPECT_NEAR(detail::exp_of_negative(x), std::exp(static_cast<double>(x)), 0x1p-149) << x;
  }
  EXPECT_EQ(detail::exp_of_negative(0), 1);
  EXPECT_EQ(detail::exp_of_negative(-std::numeric_limits<float>::infinity()), 0);
  EXPECT_TRUE(std::isnan(detail::exp_of_negative(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Softmax, SameBitsForThreadsAndInstructionSets) {
  std::mt19937 random(2);
  for (const index classes : {1, 5, 16, 33, 1000}) {
    const problem p = draw(random, 600, classes);
    const std::vector<float> right = computed(p, 1);
    for (const char* hidden : {"", "-avx512", "-avx2"}) {
      hide_features(hidden);
      for (const int threads : {1, 2, 3}) EXPECT_EQ(computed(p, threads), right) << classes << ' ' << hidden;
    }
    hide_features("");
  }
}

TEST(Softmax, RowsWithoutAnAnswer) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const auto layer = softmax::plan({1, 3});
  constexpr loops::serial alone;
  for (const std::vector<float>& x : {std::vector<float>{0, infinity, 1},
                                      {0, std::numeric_limits<float>::quiet_NaN(), 1},
                                      {std::numeric_limits<float>::quiet_NaN(), 0, 1},
                                      {-infinity, -infinity, -infinity}}) {
    std::vector<float> y(3);
    ASSERT_TRUE(layer->forward(alone, 1, x.data(), y.data()));
    for (const float v : y) EXPECT_TRUE(std::isnan(v)) << x[0];
  }
  const std::vector<float> x{-infinity, 5, -infinity};
  std::vector<float> y(3);
  ASSERT_TRUE(layer->forward(alone, 1, x.data(), y.data()));
  EXPECT_EQ(y, (std::vector<float>{0, 1, 0}));
}

TEST(Softmax, WrongArguments) {
  expect_error(softmax::plan({0, 3}), errc::invalid_argument, "rows", {"0"});
  expect_error(softmax::plan({3, -1}), errc::invalid_argument, "classes", {"-1"});
  expect_error(softmax::plan({index{1} << 40, index{1} << 30}), errc::invalid_argument, "rows", {"2^62"});
  const auto layer = softmax::plan({2, 3});
  constexpr loops::serial alone;
  std::vector<float> x(6), y(6, 7.0f);
  const auto invalid = errc::invalid_argument;
  expect_error(layer->forward(alone, 3, x.data(), y.data()), invalid, "rows", {"3", "1..2"});
  expect_error(layer->forward(alone, 2, nullptr, y.data()), invalid, "x", {"null"});
  expect_error(layer->forward(alone, 2, y.data() + 1, y.data()), invalid, "y", {"overlaps a part of x"});
  expect_error(layer->backward(alone, 2, x.data(), nullptr, y.data()), invalid, "dy", {"null"});
  expect_error(layer->backward(alone, 1, x.data(), y.data() + 2, y.data()), invalid, "dx", {"overlaps a part of dy"});
  EXPECT_EQ(y, std::vector<float>(6, 7.0f));
}

}  // namespace
}  // namespace brgemm_test
