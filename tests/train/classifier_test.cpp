// nn::mlp and its training step: gradients against finite differences in double, equal bits for any threads, storage
// and batch, no allocation in a step, what is wrong is named.
#include <gtest/gtest.h>

#include <brgemm/train/classifier.hpp>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "support/counted_allocations.hpp"

namespace brgemm {  // so that index is not the one of <strings.h>
namespace {

constexpr loops::serial alone;

/// A batch of random rows with labels.
struct batch {
  index rows, in;
  std::vector<float> x;
  std::vector<std::int32_t> labels;
  batch(index rows_, index in_, int classes, unsigned seed) : rows(rows_), in(in_) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    x.resize(static_cast<std::size_t>(rows * in));
    for (float& v : x) v = uniform(random);
    labels.resize(static_cast<std::size_t>(rows));
    for (auto& l : labels) l = static_cast<std::int32_t>(random() % static_cast<unsigned>(classes));
  }
  view<const float, 2> matrix() const { return {x.data(), {rows, in}}; }
};

nn::mlp make(const nn::mlp_desc& d, std::uint64_t seed = 7) {
  auto m = nn::mlp::make(d);
  if (!m) throw std::runtime_error(std::string(m.error().message()));
  train::generator random(seed);
  if (!train::initialise(alone, *m, random)) throw std::runtime_error("initialise");
  return std::move(*m);
}

/// The mean loss of a network with these weights, in double: the definition.
double exact_loss(const std::vector<std::vector<double>>& w, const std::vector<std::vector<double>>& b,
                  const std::vector<index>& sizes, nn::activation hidden, const batch& data) {
  double total = 0;
  for (index r = 0; r < data.rows; ++r) {
    std::vector<double> a(data.x.begin() + r * data.in, data.x.begin() + (r + 1) * data.in);
    for (std::size_t l = 0; l < w.size(); ++l) {
      std::vector<double> z = b[l];
      for (std::size_t i = 0; i < a.size(); ++i) {
        for (std::size_t j = 0; j < z.size(); ++j) z[j] += a[i] * w[l][i * z.size() + j];
      }
      if (l + 1 < w.size()) {
        for (double& v : z) v = hidden == nn::activation::relu ? (v > 0 ? v : 0) : std::tanh(v);
      }
      a = z;
    }
    double sum = 0;
    for (const double v : a) sum += std::exp(v);
    total += std::log(sum) - a[static_cast<std::size_t>(data.labels[static_cast<std::size_t>(r)])];
  }
  static_cast<void>(sizes);
  return total / static_cast<double>(data.rows);
}

TEST(Mlp, GradientsAreThoseOfFiniteDifferences) {
  for (const nn::activation hidden : {nn::activation::relu, nn::activation::tanh}) {
    // A blocked layer, one of plain storage (70 has no block width), and a small last one.
    const std::vector<index> sizes{9, 128, 70, 5};
    const batch data(11, 9, 5, 1);
    nn::mlp m = make({.rows = 16, .sizes = sizes, .hidden = hidden});
    std::vector<std::vector<double>> w, b;
    std::vector<std::vector<float>> dw, db;
    std::mt19937 random(2);
    for (index l = 0; l < 3; ++l) {
      const auto in = sizes[static_cast<std::size_t>(l)], out = sizes[static_cast<std::size_t>(l) + 1];
      std::vector<float> weights(static_cast<std::size_t>(in * out)), bias(static_cast<std::size_t>(out));
      const view<float, 2> v(weights.data(), {in, out});
      ASSERT_TRUE(m.get(alone, l, v, layout::plain, bias));
      for (float& x : bias) x = std::uniform_real_distribution<float>(-0.5f, 0.5f)(random);
      ASSERT_TRUE(m.set(alone, l, v, layout::plain, bias));
      w.emplace_back(weights.begin(), weights.end());
      b.emplace_back(bias.begin(), bias.end());
    }
    ASSERT_TRUE(m.prepare(alone));
    const auto logits = m.forward(alone, data.matrix());
    ASSERT_TRUE(logits);
    std::vector<float> gradient(11 * 5);
    std::vector<double> losses(11);
    const view<float, 2> dz(gradient.data(), {11, 5});
    const auto loss = train::softmax_cross_entropy(alone, *logits, data.labels, losses, dz);
    ASSERT_TRUE(loss);
    EXPECT_NEAR(*loss, exact_loss(w, b, sizes, hidden, data), 2e-6);
    ASSERT_TRUE(m.backward(alone, dz));
    for (index l = 0; l < 3; ++l) {
      const auto at = static_cast<std::size_t>(l);
      dw.emplace_back(w[at].size());
      db.emplace_back(b[at].size());
      ASSERT_TRUE(m.get(alone, l, {dw[at].data(), {sizes[at], sizes[at + 1]}}, layout::plain, db[at], true));
    }
    // The floats err by some 200 * 2^-24 of sums of magnitude below 1; the differences by h^2 plus 2^-52 / h.
    const auto check = [&](std::vector<double>& p, const std::vector<float>& g, std::size_t i) {
      constexpr double h = 1e-6;
      const double kept = p[i];
      p[i] = kept + h;
      const double up = exact_loss(w, b, sizes, hidden, data);
      p[i] = kept - h;
      const double down = exact_loss(w, b, sizes, hidden, data);
      p[i] = kept;
      ASSERT_NEAR(g[i], (up - down) / (2 * h), 3e-6);
    };
    for (std::size_t l = 0; l < 3; ++l) {
      for (int n = 0; n < 40; ++n) check(w[l], dw[l], random() % w[l].size());
      for (std::size_t i = 0; i < b[l].size(); i += 3) check(b[l], db[l], i);
    }
  }
}

/// The parameters after some steps.
template <train::optimizer O>
std::vector<float> trained(const nn::mlp_desc& d, loops::executor_ref threads, const O& how, int steps) {
  nn::mlp m = make(d);
  auto c = train::classifier<O>::make(m, how);
  EXPECT_TRUE(c);
  for (int s = 0; s < steps; ++s) {
    // The last step has fewer rows.
    const batch data(s + 1 == steps ? d.rows / 2 + 1 : d.rows, d.sizes.front(), static_cast<int>(d.sizes.back()),
                     static_cast<unsigned>(s));
    const auto loss = c->step(threads, data.matrix(), data.labels);
    EXPECT_TRUE(loss) << loss.error().message();
  }
  return {m.parameters().begin(), m.parameters().end()};
}

TEST(Mlp, SameBitsForAnyThreads) {
  const std::vector<index> sizes{100, 192, 64, 10};
  for (const type data : {type::f32, type::bf16}) {
    const nn::mlp_desc d{.rows = 150, .sizes = sizes, .data = data};
    const std::vector<float> one = trained(d, alone, train::sgd{.learning_rate = 0.1f, .momentum = 0.9f}, 3);
    for (const int threads : {2, 3, 4}) {
      auto pool = loops::thread_pool::make(threads);
      ASSERT_TRUE(pool);
      const auto more = trained(d, *pool, train::sgd{.learning_rate = 0.1f, .momentum = 0.9f}, 3);
      EXPECT_EQ(std::memcmp(one.data(), more.data(), one.size() * sizeof(float)), 0) << threads;
    }
  }
}

TEST(Mlp, SameLogitsForARowAloneOrInABatch) {
  const std::vector<index> sizes{100, 192, 70, 10};
  for (const type type_of_data : {type::f32, type::bf16}) {
    nn::mlp m = make({.rows = 130, .sizes = sizes, .data = type_of_data, .training = false});
    const batch data(130, 100, 10, 3);
    const auto logits = m.forward(alone, data.matrix());
    ASSERT_TRUE(logits);
    const std::vector<float> all(logits->data(), logits->data() + 1300);
    for (const index r : {0, 64, 129}) {
      const auto row = m.forward(alone, {data.x.data() + r * 100, {1, 100}});
      ASSERT_TRUE(row);
      EXPECT_EQ(std::memcmp(row->data(), all.data() + r * 10, 40), 0);
    }
  }
}

TEST(Mlp, LearnsALabelling) {
  const std::vector<index> sizes{20, 64, 4};
  for (const type type_of_data : {type::f32, type::bf16}) {
    nn::mlp m = make({.rows = 64, .sizes = sizes, .data = type_of_data});
    const batch data(64, 20, 4, 5);
    auto sgd = train::classifier<train::sgd>::make(m, {.learning_rate = 0.2f, .momentum = 0.9f});
    ASSERT_TRUE(sgd);
    double loss = 0;
    for (int s = 0; s < 100; ++s) loss = *sgd->step(alone, data.matrix(), data.labels);
    EXPECT_LT(loss, 0.1);
    nn::mlp other = make({.rows = 64, .sizes = sizes, .data = type_of_data});
    auto adam = train::classifier<train::adam>::make(other, {.learning_rate = 0.01f});
    ASSERT_TRUE(adam);
    for (int s = 0; s < 100; ++s) loss = *adam->step(alone, data.matrix(), data.labels);
    EXPECT_LT(loss, 0.1);
  }
}

TEST(Mlp, AStepAllocatesNothing) {
  const std::vector<index> sizes{100, 192, 70, 10};
  for (const nn::activation hidden : {nn::activation::relu, nn::activation::gelu_erf}) {
    nn::mlp m = make({.rows = 128, .sizes = sizes, .hidden = hidden});
    auto c = train::classifier<train::sgd>::make(m, {});
    auto pool = loops::thread_pool::make(2);
    ASSERT_TRUE(c && pool);
    const batch data(128, 100, 10, 6);
    ASSERT_TRUE(c->step(*pool, data.matrix(), data.labels));
    const long before = allocations;
    for (int s = 0; s < 3; ++s) ASSERT_TRUE(c->step(*pool, data.matrix(), data.labels));
    EXPECT_EQ(allocations, before);
  }
}

TEST(Mlp, GivesBackTheWeightsThatWereSet) {
  const std::vector<index> sizes{30, 100, 7};
  nn::mlp m = make({.rows = 4, .sizes = sizes});
  std::vector<float> w(30 * 100), turned(w.size()), bias(100), bias_back(100);
  std::mt19937 random(9);
  for (float& v : w) v = static_cast<float>(random() % 1000);
  for (float& v : bias) v = static_cast<float>(random() % 1000);
  ASSERT_TRUE(m.set(alone, 0, view<const float, 2>(w.data(), {100, 30}), layout::transposed, bias));
  ASSERT_TRUE(m.get(alone, 0, {turned.data(), {30, 100}}, layout::plain, bias_back));
  EXPECT_EQ(bias, bias_back);
  for (std::size_t i = 0; i < 30; ++i) {
    for (std::size_t j = 0; j < 100; ++j) ASSERT_EQ(turned[i * 100 + j], w[j * 30 + i]);
  }
}

TEST(Mlp, NamesWhatIsWrong) {
  const auto expect = [](const char* field, const char* number, const error& e) {
    EXPECT_EQ(e.field(), field) << e.message();
    EXPECT_NE(e.message().find(number), std::string_view::npos) << e.message();
  };
  const std::vector<index> sizes{30, 64, 7}, one{30}, none, zero{30, 0, 7}, negative{30, -4, 7},
      huge{30, index{1} << 61};
  using nn::mlp;
  ASSERT_TRUE(mlp::make({.rows = 4, .sizes = sizes}));
  expect("sizes", "1 sizes", mlp::make({.rows = 4, .sizes = one}).error());
  expect("sizes", "0 sizes", mlp::make({.rows = 4, .sizes = none}).error());
  expect("sizes", "sizes[1] is 0", mlp::make({.rows = 4, .sizes = zero}).error());
  expect("sizes", "sizes[1] is -4", mlp::make({.rows = 4, .sizes = negative}).error());
  expect("out", "2305843009213693952", mlp::make({.rows = 4, .sizes = huge}).error());
  expect("rows", "0", mlp::make({.rows = 0, .sizes = sizes}).error());
  expect("data", "f16", mlp::make({.rows = 4, .sizes = sizes, .data = type::f16}).error());
  expect("hidden", "9", mlp::make({.rows = 4, .sizes = sizes, .hidden = static_cast<nn::activation>(9)}).error());
  EXPECT_EQ(mlp::make({.rows = 4, .sizes = sizes}, {.backend = "none such"}).error().code(), errc::forbidden);

  nn::mlp m = make({.rows = 4, .sizes = sizes});
  nn::mlp forward_only = make({.rows = 4, .sizes = sizes, .training = false});
  const batch data(4, 30, 7, 1);
  std::vector<float> gradient(28), w(30 * 64), bias(64);
  const std::vector<float> before(m.parameters().begin(), m.parameters().end());
  expect("rows", "5", m.forward(alone, {data.x.data(), {5, 24}}).error());
  expect("rows", "0", m.forward(alone, {data.x.data(), {0, 30}}).error());
  expect("x", "(4,29)", m.forward(alone, {data.x.data(), {4, 29}}).error());
  expect("x", "(29,1)", m.forward(alone, {data.x.data(), {4, 30}, {29, 1}}).error());
  expect("x", "null", m.forward(alone, {nullptr, {4, 30}}).error());
  ASSERT_TRUE(m.forward(alone, {data.x.data(), {3, 30}}));
  expect("gradient", "(4,7)", m.backward(alone, {gradient.data(), {4, 7}}).error());
  expect("gradient", "(3,6)", m.backward(alone, {gradient.data(), {3, 6}}).error());
  expect("gradient", "null", m.backward(alone, {nullptr, {3, 7}}).error());
  ASSERT_TRUE(forward_only.forward(alone, data.matrix()));
  expect("training", "true", forward_only.backward(alone, {gradient.data(), {4, 7}}).error());
  expect("training", "false", train::classifier<train::sgd>::make(forward_only, {}).error());
  const view<const float, 2> v(w.data(), {30, 64});
  expect("layer", "2", m.set(alone, 2, v, layout::plain, bias).error());
  expect("layer", "-1", m.set(alone, -1, v, layout::plain, bias).error());
  expect("bias", "63", m.set(alone, 0, v, layout::plain, std::span(bias).first(63)).error());
  expect("w", "(64,30)", m.set(alone, 0, v, layout::transposed, bias).error());
  expect("w", "(30,63)", m.get(alone, 0, {w.data(), {30, 63}}, layout::plain, bias).error());
  auto c = train::classifier<train::sgd>::make(m, {});
  ASSERT_TRUE(c);
  const std::vector<std::int32_t> outside{0, 1, 2, 7};
  expect("labels", "label 7 of row 3", c->step(alone, data.matrix(), outside).error());
  EXPECT_EQ(std::memcmp(before.data(), m.parameters().data(), before.size() * sizeof(float)), 0);
  EXPECT_EQ(c->steps(), 0);
}

}  // namespace
}  // namespace brgemm
