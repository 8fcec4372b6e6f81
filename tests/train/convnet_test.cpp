// train::convnet and its training step: gradients against finite differences in double, equal bits for any threads, no
// allocation in a step, prediction by running statistics, what is wrong is named.
#include <gtest/gtest.h>

#include <algorithm>
#include <brgemm/train/classifier.hpp>
#include <brgemm/train/convnet.hpp>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "support/counted_allocations.hpp"
#include "support/expect_error.hpp"
#include "support/features.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using train::convnet;
using train::convnet_desc;
using train::convnet_stage;

constexpr loops::serial alone;
std::size_t at(index i) { return static_cast<std::size_t>(i); }

struct problem {
  convnet_desc d;
  std::vector<convnet_stage> stages;
  std::vector<float> x;
  std::vector<std::int32_t> labels;

  problem(index images, index channels, index height, index width, std::vector<convnet_stage> of, index classes,
          type data = type::f32)
      : stages(std::move(of)) {
    d.data = data;
    d.images = images, d.channels = channels, d.height = height, d.width = width, d.classes = classes;
    d.stages = stages;
    std::mt19937 random(5);
    std::uniform_real_distribution<float> uniform(-1, 1);
    x.resize(at(images * channels * height * width));
    for (float& v : x) v = uniform(random);
    for (index i = 0; i < images; ++i) labels.push_back(static_cast<std::int32_t>(random() % at(classes)));
  }
  view<const float, 2> matrix(index images) const { return {x.data(), {images, d.channels * d.height * d.width}}; }
  view<const float, 2> matrix() const { return matrix(d.images); }

  convnet make(const options& how = {}) const {
    auto made = convnet::make(d, how);
    if (!made) throw std::runtime_error(std::string(made.error().message()));
    train::generator random(7);
    if (!train::initialise(alone, *made, random)) throw std::runtime_error("initialise");
    for (index s = 0; s < made->stages(); ++s) {  // none of the parts passes unseen
      for (float& v : made->gamma(s)) v += random.uniform() - 0.5f;
      for (float& v : made->beta(s)) v += random.uniform() - 0.5f;
    }
    for (float& v : made->last_bias()) v += random.uniform() - 0.5f;
    return std::move(*made);
  }
};

/// The network in double, by its definition; of bf16, what is kept in it is rounded to it. Parameters are those of a
/// convnet; running: by running statistics.
class exact {
 public:
  exact(const problem& p, convnet& n, bool running = false) : p_(p), running_(running) {
    for (index s = 0; s < n.stages(); ++s) {
      weights.emplace_back(n.weights(s).begin(), n.weights(s).end());
      round(weights.back());
      gamma.emplace_back(n.gamma(s).begin(), n.gamma(s).end());
      beta.emplace_back(n.beta(s).begin(), n.beta(s).end());
    }
    bias.assign(n.last_bias().begin(), n.last_bias().end());
    const index in = n.last_layer().description().in, classes = n.classes();
    std::vector<float> plain(at(in * classes));
    const auto unpacked =
        n.last_layer().unpack_parameters(alone, n.last_weights().data(), {plain.data(), {in, classes}}, layout::plain);
    if (!unpacked) throw std::runtime_error("unpack");
    last.assign(plain.begin(), plain.end());
    round(last);
    if (!running) return;
    const auto all = n.statistics();
    std::size_t from = 0;
    for (const convnet_stage& s : p.stages) {
      const std::size_t line = (at(s.out) + 15) / 16 * 16;
      means.emplace_back(all.begin() + static_cast<long>(from), all.begin() + static_cast<long>(from) + s.out);
      from += line;
      variances.emplace_back(all.begin() + static_cast<long>(from), all.begin() + static_cast<long>(from) + s.out);
      from += line;
    }
  }

  std::vector<double> logits() const {
    std::vector<double> v(p_.x.begin(), p_.x.end());
    round(v);
    index channels = p_.d.channels, height = p_.d.height, width = p_.d.width;
    for (std::size_t s = 0; s < p_.stages.size(); ++s) v = stage(s, v, channels, height, width);
    std::vector<double> out;
    for (index i = 0; i < p_.d.images; ++i) {
      for (index j = 0; j < p_.d.classes; ++j) {
        double sum = bias[at(j)];
        for (index c = 0; c < channels; ++c) {
          double mean = 0;
          for (index q = 0; q < height * width; ++q) mean += v[at((i * height * width + q) * channels + c)];
          sum += rounded(mean / static_cast<double>(height * width)) * last[at(c * p_.d.classes + j)];
        }
        out.push_back(sum);
      }
    }
    return out;
  }

  double loss() const {
    const std::vector<double> z = logits();
    double total = 0;
    for (index i = 0; i < p_.d.images; ++i) {
      double sum = 0;
      for (index j = 0; j < p_.d.classes; ++j) sum += std::exp(z[at(i * p_.d.classes + j)]);
      total += std::log(sum) - z[at(i * p_.d.classes + p_.labels[at(i)])];
    }
    return total / static_cast<double>(p_.d.images);
  }

  std::vector<std::vector<double>> weights, gamma, beta, means, variances;
  std::vector<double> last, bias;

 private:
  double rounded(double v) const {
    return p_.d.data == type::bf16 ? double{to_f32(to_bf16(static_cast<float>(v)))} : v;
  }
  void round(std::vector<double>& all) const {
    for (double& v : all) v = rounded(v);
  }
  std::vector<double> stage(std::size_t s, const std::vector<double>& x, index& channels, index& height,
                            index& width) const {
    const convnet_stage& t = p_.stages[s];
    const index pad = t.kernel / 2;
    const index rows = (height + 2 * pad - t.kernel) / t.stride + 1,
                columns = (width + 2 * pad - t.kernel) / t.stride + 1;
    std::vector<double> z(at(p_.d.images * rows * columns * t.out));
    for (std::size_t e = 0; e < z.size(); ++e) {
      const auto i = static_cast<index>(e);
      const index k = i % t.out, q = i / t.out % columns, r = i / t.out / columns % rows,
                  image = i / t.out / columns / rows;
      for (index a = 0; a < t.kernel; ++a) {
        for (index b = 0; b < t.kernel; ++b) {
          const index h = r * t.stride + a - pad, w = q * t.stride + b - pad;
          if (h < 0 || h >= height || w < 0 || w >= width) continue;
          for (index c = 0; c < channels; ++c) {
            z[e] += x[at(((image * height + h) * width + w) * channels + c)] *
                    weights[s][at(((a * t.kernel + b) * channels + c) * t.out + k)];
          }
        }
      }
    }
    if (!running_) round(z);  // else normalised as it is summed
    normalise(s, z, t.out);
    round(z);
    channels = t.out, height = rows / t.pool, width = columns / t.pool;
    std::vector<double> y(at(p_.d.images * height * width * channels), -1e300);
    for (std::size_t e = 0; e < z.size(); ++e) {
      const auto i = static_cast<index>(e);
      const index q = i / t.out % columns / t.pool, r = i / t.out / columns % rows / t.pool,
                  image = i / t.out / columns / rows;
      if (q >= width || r >= height) continue;
      double& to = y[at(((image * height + r) * width + q) * channels + i % t.out)];
      to = std::max(to, z[e]);
    }
    return y;
  }

  void normalise(std::size_t s, std::vector<double>& z, index channels) const {
    const auto number = static_cast<double>(z.size()) / static_cast<double>(channels);
    for (index c = 0; c < channels; ++c) {
      double mean = running_ ? means[s][at(c)] : 0, variance = running_ ? variances[s][at(c)] : 0;
      for (std::size_t e = at(c); !running_ && e < z.size(); e += at(channels)) mean += z[e] / number;
      for (std::size_t e = at(c); !running_ && e < z.size(); e += at(channels)) {
        variance += (z[e] - mean) * (z[e] - mean) / number;
      }
      for (std::size_t e = at(c); e < z.size(); e += at(channels)) {
        z[e] = std::max(0.0, (z[e] - mean) / std::sqrt(variance + 1e-5) * gamma[s][at(c)] + beta[s][at(c)]);
      }
    }
  }

  const problem& p_;
  bool running_;
};

problem small(type data = type::f32) { return {6, 2, 9, 8, {{5, 3, 1, 2}, {7, 3, 2, 1}, {4, 1, 1, 1}}, 3, data}; }

// In bf16 a sum of another order may round to the neighbouring value, 2^-8 away, in each of the stages.
TEST(Convnet, LogitsAreThoseOfTheDefinition) {
  for (const auto& [data, tolerance] : {std::pair{type::f32, 1e-4}, std::pair{type::bf16, 3 * 0x1p-8}}) {
    const problem p = small(data);
    convnet n = p.make();
    const auto found = n.forward(alone, p.matrix());
    ASSERT_TRUE(found) << found.error().message();
    const std::vector<double> right = exact(p, n).logits();
    for (std::size_t i = 0; i < right.size(); ++i) EXPECT_NEAR(double{found->data()[i]}, right[i], tolerance);
    const auto predicted = n.predict(alone, p.matrix());
    ASSERT_TRUE(predicted) << predicted.error().message();
    const std::vector<double> by_running = exact(p, n, true).logits();
    for (std::size_t i = 0; i < right.size(); ++i) EXPECT_NEAR(double{predicted->data()[i]}, by_running[i], tolerance);
  }
}

TEST(Convnet, AnImageIsPredictedAloneAsInABatch) {
  const problem p = small();
  convnet n = p.make();
  ASSERT_TRUE(n.forward(alone, p.matrix()));
  const auto all = n.predict(alone, p.matrix());
  ASSERT_TRUE(all);
  const std::vector<float> first(all->data(), all->data() + 3);
  const auto one = n.predict(alone, p.matrix(1));
  ASSERT_TRUE(one);
  EXPECT_EQ(std::memcmp(one->data(), first.data(), 12), 0);
}

TEST(Convnet, GradientsAreThoseOfFiniteDifferences) {
  const problem p = small();
  convnet n = p.make();
  const auto logits = n.forward(alone, p.matrix());
  ASSERT_TRUE(logits);
  std::vector<double> losses(6);
  std::vector<float> gradient(18);
  const view<float, 2> by_logits(gradient.data(), {6, 3});
  ASSERT_TRUE(train::softmax_cross_entropy(alone, *logits, p.labels, losses, by_logits));
  const auto done = n.backward(alone, by_logits);
  ASSERT_TRUE(done) << done.error().message();
  exact e(p, n);
  // The gradients lie as the parameters do.
  const auto gradient_of = [&](std::span<const float> part) {
    return n.gradients().subspan(static_cast<std::size_t>(part.data() - n.parameters().data()), part.size());
  };
  const auto expect = [&](std::vector<double>& v, std::span<const float> found, const char* name) {
    ASSERT_EQ(v.size(), found.size());
    for (std::size_t i = 0; i < v.size(); ++i) {
      const double old = v[i], step = 1e-6;
      v[i] = old + step;
      const double above = e.loss();
      v[i] = old - step;
      const double below = e.loss();
      v[i] = old;
      EXPECT_NEAR((above - below) / (2 * step), double{found[i]}, 2e-5) << name << ' ' << i;
    }
  };
  for (index s = 0; s < 3; ++s) {
    expect(e.weights[at(s)], n.weights_gradient(s), "weights");
    expect(e.gamma[at(s)], gradient_of(n.gamma(s)), "gamma");
    expect(e.beta[at(s)], gradient_of(n.beta(s)), "beta");
  }
  expect(e.bias, gradient_of(n.last_bias()), "bias");
  std::vector<float> last(12);
  ASSERT_TRUE(n.last_layer().unpack_parameters(alone, gradient_of(n.last_weights()).data(), {last.data(), {4, 3}},
                                               layout::plain));
  expect(e.last, last, "last weights");
}

// Those of bf16 are gradients of another function: its values, and on the way back each stage's three, are rounded by
// 2^-9, and where relu or the largest of a window change sides, single terms are others.
TEST(Convnet, GradientsOfBf16AreNearThoseOfF32) {
  std::vector<std::vector<double>> gradients;
  for (const type data : {type::f32, type::bf16}) {
    const problem p(20, 3, 12, 12, {{32, 3, 1, 2}, {64, 3, 1, 1}}, 10, data);
    convnet n = p.make();
    const auto logits = n.forward(alone, p.matrix());
    ASSERT_TRUE(logits);
    std::vector<double> losses(20);
    std::vector<float> gradient(200);
    const view<float, 2> by_logits(gradient.data(), {20, 10});
    ASSERT_TRUE(train::softmax_cross_entropy(alone, *logits, p.labels, losses, by_logits));
    ASSERT_TRUE(n.backward(alone, by_logits));
    gradients.emplace_back(n.gradients().begin(), n.gradients().end());
  }
  ASSERT_GE(gradients[1].size(), gradients[0].size());
  double squares = 0, about = 0;
  for (std::size_t i = 0; i < gradients[0].size(); ++i) {
    squares += gradients[0][i] * gradients[0][i];
    about += (gradients[1][i] - gradients[0][i]) * (gradients[1][i] - gradients[0][i]);
  }
  EXPECT_GT(about, 0);
  EXPECT_LT(std::sqrt(about / squares), 0.05);
}

/// Parameters and statistics after some steps.
std::vector<float> trained(const problem& p, int threads, std::string_view backend, long* allocated = nullptr) {
  convnet n = p.make({.backend = backend});
  auto pool = loops::thread_pool::make(threads);
  auto c = train::classifier<train::sgd, convnet>::make(n, {.learning_rate = 0.1f, .momentum = 0.9f});
  if (!pool || !c) throw std::runtime_error("make");
  const long before = allocations;
  for (int i = 0; i < 4; ++i) {
    const index images = i == 2 ? p.d.images - 1 : p.d.images;
    const auto r = c->step(*pool, p.matrix(images), std::span(p.labels).first(at(images)));
    EXPECT_TRUE(r) << r.error().message();
  }
  if (allocated != nullptr) *allocated = allocations - before;
  std::vector<float> all(n.parameters().begin(), n.parameters().end());
  all.insert(all.end(), n.statistics().begin(), n.statistics().end());
  return all;
}

TEST(Convnet, TheSameBitsForAnyThreadsAndBackend) {
  for (const auto& [data, sums] :
       {std::pair{type::f32, order::machine}, {type::bf16, order::pair}, {type::bf16, order::tile}}) {
    problem p(20, 1, 12, 12, {{32, 3, 1, 2}, {64, 3, 1, 1}}, 10, data);
    p.d.sums = sums;
    long allocated = -1;
    const std::vector<float> right = trained(p, 1, "", &allocated);
    EXPECT_EQ(allocated, 0);
    for (const float v : right) ASSERT_TRUE(std::isfinite(v));
    for (const int threads : {2, 3, 4}) EXPECT_EQ(trained(p, threads, ""), right) << threads;
    for (const char* hidden : {"", "-avx512", "-avx512,-avx2"}) {
      hide_features(hidden);
      backend::for_each([&](const backend::entry& e) {
        const bool does = e.runs_here() && (e.name != "amx" || sums == order::tile);
        EXPECT_TRUE(!does || trained(p, 2, e.name) == right) << e.name << hidden;
      });
    }
    hide_features("");
  }
}

TEST(Convnet, LearnsItsBatch) {
  for (const type data : {type::f32, type::bf16}) {
    const problem p(20, 1, 12, 12, {{16, 3, 1, 2}, {32, 3, 1, 1}}, 4, data);
    convnet n = p.make();
    auto c = train::classifier<train::adam, convnet>::make(n, {.learning_rate = 0.01f});
    ASSERT_TRUE(c);
    double loss = 0;
    for (int i = 0; i < 60; ++i) {
      const auto r = c->step(alone, p.matrix(), p.labels);
      ASSERT_TRUE(r) << r.error().message();
      loss = *r;
    }
    EXPECT_LT(loss, 0.05);
  }
}

// What is refused has changed nothing, running statistics included.
TEST(Convnet, RefusedStepsChangeNothing) {
  problem p(2, 1, 4, 4, {{8, 3, 1, 4}, {8, 1, 1, 1}}, 2);
  convnet n = p.make();
  auto c = train::classifier<train::sgd, convnet>::make(n, {.learning_rate = 0.1f});
  ASSERT_TRUE(c);
  const std::vector<float> before(n.statistics().begin(), n.statistics().end());
  expect_error(n.forward(alone, p.matrix(1)), errc::invalid_argument, "rows", {"1 row", "stage 1"});
  const std::vector<std::int32_t> labels = {0, 2};
  expect_error(c->step(alone, p.matrix(), labels), errc::invalid_argument, "labels", {"label 2", "2 classes"});
  expect_error(c->step(alone, p.matrix(), std::span(labels).first(1)), errc::invalid_argument, "labels", {"2", "1"});
  EXPECT_TRUE(std::equal(before.begin(), before.end(), n.statistics().begin()));
  EXPECT_TRUE(n.predict(alone, p.matrix(1)));
  EXPECT_TRUE(c->step(alone, p.matrix(), p.labels));
}

TEST(Convnet, WrongDescs) {
  const struct {
    std::string field;
    std::vector<std::string> words;
    std::function<void(problem&)> change;
  } cases[] = {
      {"stages", {"0 stages"}, [](auto& p) { p.stages.clear(); }},
      {"stages", {"1025"}, [](auto& p) { p.stages.resize(1025); }},
      {"images", {"images is 0"}, [](auto& p) { p.d.images = 0; }},
      {"in", {"in is -1"}, [](auto& p) { p.d.channels = -1; }},
      {"axes[1]", {"axes[1].in is 0"}, [](auto& p) { p.d.height = 0; }},
      {"axes[2]", {"axes[2].in is -3"}, [](auto& p) { p.d.width = -3; }},
      {"out", {"out is 0"}, [](auto& p) { p.stages[1].out = 0; }},
      {"axes[1]", {"kernel is 0"}, [](auto& p) { p.stages[0].kernel = 0; }},
      {"axes[1]", {"stride is 0"}, [](auto& p) { p.stages[0].stride = 0; }},
      {"stages", {"stages[1].pool is 0"}, [](auto& p) { p.stages[1].pool = 0; }},
      {"axes[1]", {"kernel of 10", "more than 9"}, [](auto& p) { p.stages[0].pool = 10; }},
      {"out", {"out is 0"}, [](auto& p) { p.d.classes = 0; }},
      {"data", {"data is s8"}, [](auto& p) { p.d.data = type::s8; }},
      {"sums", {"sums is 9"}, [](auto& p) { p.d.sums = static_cast<order>(9); }},
  };
  for (const auto& c : cases) {
    problem p = small();
    c.change(p);
    p.d.stages = p.stages;
    expect_error(convnet::make(p.d), errc::invalid_argument, c.field, c.words);
  }
}

TEST(Convnet, WrongArguments) {
  const problem p = small();
  convnet n = p.make();
  std::vector<float> gradient(18, 0.1f);
  const view<const float, 2> right(gradient.data(), {6, 3});
  const auto expect = [&](const auto& r, const char* field, std::vector<std::string> words) {
    expect_error(r, errc::invalid_argument, field, words);
  };
  expect(n.backward(alone, right), "rows", {"forward before"});
  const index features = n.features();
  const float* const x = p.x.data();
  for (const auto& call : {&convnet::forward, &convnet::predict}) {
    expect((n.*call)(alone, {x, {7, features}}), "rows", {"7 rows", "1..6"});
    expect((n.*call)(alone, {x, {0, features}}), "rows", {"0 rows"});
    expect((n.*call)(alone, {x, {6, features - 1}}), "x", {"143", "144"});
    expect((n.*call)(alone, {x, {2, features}, {features + 1, 1}}), "x", {"145"});
    expect((n.*call)(alone, {x, {2, features}, {features, 2}}), "x", {"144,2"});
    expect((n.*call)(alone, {nullptr, {2, features}}), "x", {"null"});
    expect((n.*call)(alone, {n.parameters().data(), {1, features}}), "x", {"overlaps the network's memory"});
  }
  ASSERT_TRUE(n.forward(alone, p.matrix()));
  expect(n.backward(alone, {gradient.data(), {5, 3}}), "gradient", {"(5,3)", "(6,3)"});
  expect(n.backward(alone, {gradient.data(), {6, 2}}), "gradient", {"(6,2)"});
  expect(n.backward(alone, {gradient.data(), {6, 3}, {4, 1}}), "gradient", {"(4,1)"});
  expect(n.backward(alone, {nullptr, {6, 3}}), "gradient", {"null"});
  expect(n.backward(alone, {n.parameters().data(), {6, 3}}), "gradient", {"overlaps"});
  EXPECT_TRUE(n.backward(alone, right));
  ASSERT_TRUE(n.predict(alone, p.matrix()));
  expect(n.backward(alone, right), "rows", {"forward before"});
}

}  // namespace
}  // namespace brgemm_test
