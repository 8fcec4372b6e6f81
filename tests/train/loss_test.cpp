// Softmax cross-entropy: values made elsewhere, finite differences in double, extreme logits, threads, wrong shapes.
#include <gtest/gtest.h>

#include <brgemm/train/loss.hpp>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "../nn/npz.hpp"

namespace {

using brgemm::index;
using brgemm::view;
namespace loops = brgemm::loops;
namespace train = brgemm::train;

constexpr loops::serial alone;

/// The definition, in double, without any care for overflow.
double plain_loss(const std::vector<double>& logits, const std::vector<std::int32_t>& labels, index classes) {
  double total = 0;
  for (std::size_t r = 0; r < labels.size(); ++r) {
    const double* row = &logits[r * static_cast<std::size_t>(classes)];
    double sum = 0;
    for (index c = 0; c < classes; ++c) sum += std::exp(row[c]);
    total -= std::log(std::exp(row[labels[r]]) / sum);
  }
  return total / static_cast<double>(labels.size());
}

TEST(SoftmaxCrossEntropy, GradientIsThatOfFiniteDifferences) {
  constexpr index rows = 5, classes = 7;
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::vector<double> exact(rows * classes);
  std::vector<float> logits(rows * classes), gradient(rows * classes);
  for (std::size_t i = 0; i < logits.size(); ++i) exact[i] = logits[i] = static_cast<float>(normal(random));
  const std::vector<std::int32_t> labels{0, 6, 3, 3, 1};
  std::vector<double> losses(rows);
  const auto loss = train::softmax_cross_entropy(alone, view<const float, 2>(logits.data(), {rows, classes}), labels,
                                                 losses, {gradient.data(), {rows, classes}});
  ASSERT_TRUE(loss);
  EXPECT_NEAR(*loss, plain_loss(exact, labels, classes), 1e-13);
  for (std::size_t i = 0; i < exact.size(); ++i) {
    constexpr double h = 1e-5;
    std::vector<double> up = exact, down = exact;
    up[i] += h;
    down[i] -= h;
    // Error of the central difference: h^2 |f'''| / 6 + eps |f| / h < 1e-10; of the float: 2^-24 relative.
    const double slope = (plain_loss(up, labels, classes) - plain_loss(down, labels, classes)) / (2 * h);
    EXPECT_NEAR(gradient[i], slope, 1e-9 + std::abs(slope) * 0x1p-24) << i;
  }
}

TEST(SoftmaxCrossEntropy, AgreesWithValuesMadeElsewhere) {
  const std::string folder = npz::gradient_folder();
  if (folder.empty()) GTEST_SKIP() << "no folder BRGEMM_SHARED_DIR that has data/gradients";
  const npz::array x = npz::load(folder + "/xent.npz", "x");
  const npz::array target = npz::load(folder + "/xent.npz", "target");
  const npz::array wanted = npz::load(folder + "/xent.npz", "dx");
  const std::vector<float> logits(x.values.begin(), x.values.end());
  const std::vector<std::int32_t> labels(target.values.begin(), target.values.end());
  std::vector<float> gradient(logits.size());
  std::vector<double> losses(labels.size());
  const auto loss = train::softmax_cross_entropy(alone, view<const float, 2>(logits.data(), {x.shape[0], x.shape[1]}),
                                                 labels, losses, {gradient.data(), {x.shape[0], x.shape[1]}});
  ASSERT_TRUE(loss);
  const double wanted_loss = npz::load(folder + "/xent.npz", "loss").values[0];
  EXPECT_NEAR(*loss, wanted_loss, wanted_loss * 0x1p-23);  // the file's values are rounded to float
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    EXPECT_NEAR(gradient[i], wanted.values[i], std::abs(wanted.values[i]) * 0x1p-22) << i;
  }
}

TEST(SoftmaxCrossEntropy, ExtremeLogitsStayFinite) {
  std::vector<float> logits{3e38f, -3e38f, 0, -3e38f, -3e38f, -3e38f};
  std::vector<float> gradient(6);
  std::vector<double> losses(2);
  const std::vector<std::int32_t> labels{0, 2};
  const auto loss = train::softmax_cross_entropy(alone, view<const float, 2>(logits.data(), {2, 3}), labels, losses,
                                                 {gradient.data(), {2, 3}});
  ASSERT_TRUE(loss);
  EXPECT_EQ(losses[0], 0);
  EXPECT_DOUBLE_EQ(losses[1], std::log(3.0));
  EXPECT_EQ(gradient, (std::vector<float>{0, 0, 0, 1.0f / 6, 1.0f / 6, -1.0f / 3}));
}

TEST(SoftmaxCrossEntropy, SameBitsForAnyThreadsAndInPlace) {
  constexpr index rows = 37, classes = 10;
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(rows * classes);
  std::vector<std::int32_t> labels(rows);
  for (float& x : logits) x = normal(random);
  for (auto& l : labels) l = static_cast<std::int32_t>(random() % classes);
  std::vector<float> first(logits.size());
  std::vector<double> losses(rows);
  const auto loss = train::softmax_cross_entropy(alone, view<const float, 2>(logits.data(), {rows, classes}), labels,
                                                 losses, {first.data(), {rows, classes}});
  for (const int threads : {2, 3, 4}) {
    auto pool = loops::thread_pool::make(threads);
    std::vector<float> again = logits;
    const view<float, 2> in_place(again.data(), {rows, classes});
    const auto other = train::softmax_cross_entropy(*pool, in_place, labels, losses, in_place);
    ASSERT_TRUE(other);
    EXPECT_EQ(*other, *loss);
    EXPECT_EQ(std::memcmp(again.data(), first.data(), first.size() * sizeof(float)), 0);
  }
}

TEST(SoftmaxCrossEntropy, NamesWhatIsWrongAndWritesNothing) {
  std::vector<float> logits(6, 1), gradient(6, 5);
  std::vector<double> losses(2, 5), short_losses(1, 5);
  const std::vector<std::int32_t> labels{0, 1}, three{0, 1, 2}, outside{0, 3}, negative{-1, 0};
  const view<const float, 2> x(logits.data(), {2, 3});
  const view<float, 2> dx(gradient.data(), {2, 3});
  const auto expect = [&](const char* field, const char* number, const brgemm::result<double>& r) {
    ASSERT_FALSE(r) << field;
    EXPECT_EQ(r.error().field(), field);
    EXPECT_NE(r.error().message().find(number), std::string_view::npos) << r.error().message();
    for (const float g : gradient) EXPECT_EQ(g, 5);
    for (const double l : losses) EXPECT_EQ(l, 5);
  };
  expect("logits", "(2, 3)", train::softmax_cross_entropy(alone, {nullptr, {2, 3}}, labels, losses, dx));
  expect("logits", "(0, 3)", train::softmax_cross_entropy(alone, {logits.data(), {0, 3}}, labels, losses, dx));
  expect("labels", "3 labels", train::softmax_cross_entropy(alone, x, three, losses, dx));
  expect("labels", "label 3 of row 1", train::softmax_cross_entropy(alone, x, outside, losses, dx));
  expect("labels", "label -1 of row 0", train::softmax_cross_entropy(alone, x, negative, losses, dx));
  expect("labels", "2 labels at (nil)",
         train::softmax_cross_entropy(alone, x, {static_cast<const std::int32_t*>(nullptr), 2}, losses, dx));
  expect("losses", "2 losses at (nil)",
         train::softmax_cross_entropy(alone, x, labels, {static_cast<double*>(nullptr), 2}, dx));
  expect("losses", "1 losses", train::softmax_cross_entropy(alone, x, labels, short_losses, dx));
  expect("gradient", "(3, 2)", train::softmax_cross_entropy(alone, x, labels, losses, {gradient.data(), {3, 2}}));
  expect("gradient", "(nil)", train::softmax_cross_entropy(alone, x, labels, losses, {nullptr, {2, 3}}));
}

}  // namespace
