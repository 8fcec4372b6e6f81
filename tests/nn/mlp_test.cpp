// nn::mlp in the hands of a caller who is in a hurry: sizes of one, odd sizes, fewer rows than planned, executors of
// any kind, wrong arguments. The gradients are compared with differences of the loss.
#include <gtest/gtest.h>

#include <brgemm/nn/mlp.hpp>
#include <cmath>
#include <random>
#include <string>
#include <vector>

namespace brgemm {  // so that index is not the one of <strings.h>
namespace {

constexpr loops::serial alone;

/// Runs each task as a range of its own, the last one first, and says that it has more threads than there are tasks.
struct backwards {
  int threads() const noexcept { return 1000; }
  void run(index count, loops::range_task task, void* context) const noexcept {
    for (index i = count; i-- > 0;) task(context, i, i + 1);
  }
};

std::vector<float> random_floats(index count, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> v(static_cast<std::size_t>(count));
  for (float& x : v) x = uniform(random);
  return v;
}

nn::mlp make(const nn::mlp_desc& d, unsigned seed) {
  auto made = nn::mlp::make(d);
  EXPECT_TRUE(made) << made.error().message();
  nn::mlp m = std::move(*made);
  for (index l = 0; l < m.layers(); ++l) {
    const index in = m.layer(l).description().in, out = m.layer(l).description().out;
    const auto w = random_floats(in * out, seed + static_cast<unsigned>(l), 1 / std::sqrt(static_cast<float>(in)));
    const auto bias = random_floats(out, seed + 50);
    EXPECT_TRUE(m.set(alone, l, view<const float, 2>(w.data(), {in, out}), layout::plain, bias));
  }
  EXPECT_TRUE(m.prepare(alone));
  return m;
}

/// Logits and gradients of a step over `rows` rows.
std::vector<float> step(nn::mlp& m, loops::executor_ref threads, index rows, index in, index out) {
  const auto x = random_floats(rows * in, 1), g = random_floats(rows * out, 2);
  const auto y = m.forward(threads, view<const float, 2>(x.data(), {rows, in}));
  EXPECT_TRUE(y) << y.error().message();
  std::vector<float> all(y->data(), y->data() + rows * out);
  const auto r = m.backward(threads, view<const float, 2>(g.data(), {rows, out}));
  EXPECT_TRUE(r) << r.error().message();
  all.insert(all.end(), m.gradients().begin(), m.gradients().end());
  return all;
}

TEST(Mlp, SameBitsForAnySizesAndExecutors) {
  const std::vector<index> networks[] = {{1, 1}, {1, 1, 1}, {3, 1, 5, 1}, {33, 65, 127, 10}, {64, 128, 7}};
  auto pool = loops::thread_pool::make(7);
  ASSERT_TRUE(pool);
  for (const type data : {type::f32, type::bf16}) {
    for (const auto& sizes : networks) {
      for (const index rows : {1, 2, 65}) {
        nn::mlp m = make({.rows = rows, .sizes = sizes, .data = data, .hidden = nn::activation::gelu_tanh}, 10);
        const auto one = step(m, alone, rows, sizes.front(), sizes.back());
        const backwards own;
        EXPECT_EQ(step(m, own, rows, sizes.front(), sizes.back()), one) << sizes.size() << ' ' << rows;
        EXPECT_EQ(step(m, *pool, rows, sizes.front(), sizes.back()), one) << sizes.size() << ' ' << rows;
      }
    }
  }
}

TEST(Mlp, FewerRowsHaveTheBitsOfAPlanForThem) {
  const index sizes[] = {40, 64, 33, 5};
  for (const type data : {type::f32, type::bf16}) {
    nn::mlp large = make({.rows = 200, .sizes = sizes, .data = data, .hidden = nn::activation::silu}, 20);
    static_cast<void>(step(large, alone, 200, 40, 5));  // what is left of it must not count
    for (const index rows : {1, 63, 65, 127}) {
      nn::mlp small = make({.rows = rows, .sizes = sizes, .data = data, .hidden = nn::activation::silu}, 20);
      EXPECT_EQ(step(large, alone, rows, 40, 5), step(small, alone, rows, 40, 5)) << rows;
    }
  }
}

TEST(Mlp, GradientsAreThoseOfDifferences) {
  const index sizes[] = {5, 6, 7, 3};
  for (int a = 2; a < nn::activation_count; ++a) {  // relu jumps
    nn::mlp m = make({.rows = 4, .sizes = sizes, .hidden = static_cast<nn::activation>(a)}, 30);
    const auto x = random_floats(4 * 5, 31), g = random_floats(4 * 3, 32);
    const view<const float, 2> input(x.data(), {4, 5});
    const auto loss = [&] {
      EXPECT_TRUE(m.prepare(alone));
      const auto y = m.forward(alone, input);
      double sum = 0;
      for (std::size_t i = 0; i < g.size(); ++i) sum += static_cast<double>(y->data()[i]) * static_cast<double>(g[i]);
      return sum;
    };
    static_cast<void>(loss());
    ASSERT_TRUE(m.backward(alone, view<const float, 2>(g.data(), {4, 3})));
    const std::vector<float> gradient(m.gradients().begin(), m.gradients().end());
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      float& p = m.parameters()[i];
      const float before = p;
      constexpr float h = 0x1p-8f;
      p = before + h;
      const double above = loss();
      p = before - h;
      const double slope = (above - loss()) / (2 * static_cast<double>(h));
      p = before;
      if (gradient[i] == 0) continue;  // between the layers' parts, and padding
      ASSERT_NEAR(static_cast<double>(gradient[i]), slope, 2e-3) << "activation " << a << ", parameter " << i;
    }
  }
}

/// How far a row is from the next one does not matter where there is none.
TEST(Mlp, ASingleRowMayHaveAnyStride) {
  const index sizes[] = {4, 5, 6};
  nn::mlp m = make({.rows = 8, .sizes = sizes}, 42);
  const std::vector<float> x(4, 1);
  for (const index stride : {index{0}, index{-7}, index{1} << 62}) {
    const auto y = m.forward(alone, view<const float, 2>(x.data(), {1, 4}, {stride, 1}));
    EXPECT_TRUE(y) << y.error().message();
  }
}

/// backward does not change the gradient it is given: where it would, in the gradients of any layer, it says so first.
TEST(Mlp, GradientOfTheLogitsLiesInNoGradient) {
  const index sizes[] = {4, 5, 6};
  for (const type data : {type::f32, type::bf16}) {
    nn::mlp m = make({.rows = 1, .sizes = sizes, .data = data}, 42);
    static_cast<void>(step(m, alone, 1, 4, 6));
    const std::vector<float> before(m.gradients().begin(), m.gradients().end());
    for (std::size_t at = 0; at + 6 <= before.size(); at += 16) {  // parts of the first and of the last layer
      const auto r = m.backward(alone, view<const float, 2>(m.gradients().data() + at, {1, 6}));
      ASSERT_FALSE(r) << at;
      EXPECT_EQ(r.error().field(), "gradient");
      EXPECT_NE(r.error().message().find("overlaps"), std::string_view::npos) << r.error().message();
      EXPECT_TRUE(std::equal(before.begin(), before.end(), m.gradients().begin())) << at;
    }
  }
}

/// The gradient of half the squared logits is the logits.
TEST(Mlp, LogitsMayBeTheirOwnGradient) {
  const index sizes[] = {4, 5, 6};
  for (const type data : {type::f32, type::bf16}) {
    nn::mlp m = make({.rows = 3, .sizes = sizes, .data = data}, 43);
    const auto x = random_floats(3 * 4, 1);
    const auto y = m.forward(alone, view<const float, 2>(x.data(), {3, 4}));
    ASSERT_TRUE(y);
    const std::vector<float> copy(y->data(), y->data() + 18);
    ASSERT_TRUE(m.backward(alone, *y));
    EXPECT_TRUE(std::equal(copy.begin(), copy.end(), y->data()));
    const std::vector<float> gradients(m.gradients().begin(), m.gradients().end());
    ASSERT_TRUE(m.backward(alone, view<const float, 2>(copy.data(), {3, 6})));
    EXPECT_TRUE(std::equal(gradients.begin(), gradients.end(), m.gradients().begin()));
  }
}

}  // namespace
}  // namespace brgemm
