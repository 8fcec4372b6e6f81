// Convolutions as launches of a GPU's primitive: their lists, block by block on the CPU, against plain loops.
#include <gtest/gtest.h>

#include <brgemm/nn/conv_launches.hpp>

#include "support/conv_problem.hpp"
#include "support/expect_error.hpp"

namespace brgemm_test::convolution {
namespace {

using nn::conv_launches;

/// What the launches compute; operands as the steps of the products have them, null behind the last.
void run(const conv_launches& pass, const void* a, const void* b, void* c, std::vector<const void*> operands = {}) {
  const auto move = [](const void* from, index elements, type t) {
    return static_cast<char*>(const_cast<void*>(from)) + elements * size_of(t);
  };
  std::size_t blocks = 0;
  for (const conv_launches::launch& launch : pass.launches) {
    desc d = launch.product;
    d.where = place::cpu;
    const auto kernel = make_kernel(d);
    ASSERT_TRUE(kernel) << kernel.error().message();
    ASSERT_EQ(static_cast<index>(blocks), launch.first);
    for (index i = 0; i < launch.count; ++i, ++blocks) {
      const auto& o = pass.outputs[blocks];
      const index at = o.row * d.ldc + o.column;
      arguments x;
      x.a = move(a, o.a, d.a), x.b = move(b, o.b, d.b), x.c = move(c, at, d.c);
      x.pairs = pass.pairs.data() + o.first, x.batch = o.batch, x.m = o.m;
      for (std::size_t s = 0; s < operands.size(); ++s) {
        const epilogue_op& step = d.epilogue[s];
        if (step.kind == op_kind::none) continue;
        if (brgemm::detail::is_mask(step.kind)) {
          x.operand[s] = move(operands[s], o.row * step.ld + o.column / 8, type::u8);
          continue;
        }
        const bool vector = step.along == axis::column;
        x.operand[s] = vector ? move(operands[s], o.vectors + o.column, step.operand)
                              : move(operands[s], o.row * step.ld + o.column, step.operand);
      }
      const auto called = kernel->call(x);
      ASSERT_TRUE(called) << called.error().message();
    }
  }
  ASSERT_EQ(blocks, pass.outputs.size());
}

/// As out_last stores them.
std::vector<float> weights_of(const problem& p) {
  const index in = p.d.in / p.d.groups, out = p.d.out / p.d.groups;
  std::vector<float> w;
  for (index group = 0; group < p.d.groups; ++group) {
    for (index tap = 0; tap < p.taps(); ++tap) {
      for (index c = 0; c < in; ++c) {
        for (index k = 0; k < out; ++k) w.push_back(p.weight(group * out + k, c, tap));
      }
    }
  }
  return w;
}

TEST(ConvLaunches, HaveTheBitsOfThePlainLoops) {
  std::mt19937 random(31);
  int layers = 0, of_several_launches = 0, masked = 0;
  while (layers < 150) {
    conv_desc d = draw_desc(random);
    if (is_depthwise(d)) continue;
    ++layers;
    d.training = true;
    d.scale = random() % 2 == 0, d.residual = random() % 2 == 0;
    d.clamp = random() % 2 == 0, d.lower = -0.25f, d.upper = 0.75f;
    if (random() % 3 == 0) d.in = d.groups * 8 * (1 + static_cast<index>(random() % 10));
    if (random() % 3 == 0) d.out = d.groups * 8 * (1 + static_cast<index>(random() % 10));
    if (random() % 8 == 0) {  // each pixel sees itself alone
      for (auto& a : d.axes) a = {.in = a.in};
    }
    d.mask = d.act == nn::activation::relu && !d.clamp && d.out / d.groups % 8 == 0;
    d.input_mask = d.in / d.groups % 8 == 0;
    masked += d.mask || d.input_mask;
    const problem p = draw_data(random, d);
    const auto forward = forward_launches(d);
    const auto by_data = backward_data_launches(d);
    const auto by_weights = backward_weights_launches(d);
    const auto by_bias = backward_bias_launches(d);
    ASSERT_TRUE(forward && by_data && by_weights && by_bias);
    of_several_launches += forward->launches.size() > 1;
    const std::vector<float> w = weights_of(p);
    p.y.fill(std::byte{0xee}), p.dx.fill(std::byte{0xee});
    std::vector<const void*> operands;
    if (d.scale) operands.push_back(p.scale.data());
    if (d.bias) operands.push_back(p.bias.data());
    if (d.residual) operands.push_back(p.residual.data());
    if (d.mask) operands.push_back(p.mask.data()), p.mask.fill(std::byte{0xee});
    run(*forward, p.x.data(), w.data(), p.y.data(), operands);
    run(*by_data, p.z.data(), w.data(), p.dx.data(), {p.input_mask.data()});
    expect_bits(p);
    std::vector<float> dw(w.size(), std::nanf(""));
    run(*by_weights, p.x.data(), p.z.data(), dw.data());
    std::vector<float> expected = update_of(p, 1), db(static_cast<std::size_t>(d.out), std::nanf(""));
    const std::vector<float> ones(static_cast<std::size_t>(d.axes[2].out()), 1.0f);
    run(*by_bias, ones.data(), p.z.data(), db.data());
    dw.insert(dw.end(), db.begin(), db.end());
    // conv joins a row of taps of few channels, and then sums columns in another order.
    const bool joined =
        d.groups == 1 && d.axes[2].kernel > 1 && d.axes[2].dilation == 1 && d.axes[2].kernel * d.in <= 64;
    ASSERT_TRUE(joined || same_bits(dw, expected)) << text_of(d);
    for (std::size_t i = 0; i < dw.size(); ++i) ASSERT_NEAR(dw[i], expected[i], 1e-3) << text_of(d) << i;
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(of_several_launches, 20);
  EXPECT_GT(masked, 20);
}

TEST(ConvLaunches, RefuseWhatTheyLack) {
  conv_desc right;
  right.in = right.out = 8;
  right.axes[2] = {9, 3, 1, 1, 1, 1};
  EXPECT_TRUE(forward_launches(right));
  const auto refused = [&right](const char* field, const char* number, auto&& change, errc code = errc::unsupported) {
    conv_desc d = right;
    change(d);
    for (const auto launches : {nn::forward_launches, nn::backward_data_launches, nn::backward_weights_launches,
                                nn::backward_bias_launches}) {
      expect_error(launches(d), code, field, {number});
    }
  };
  refused("groups", "8", [](auto& d) { d.groups = 8; });
  refused(
      "in", "3", [](auto& d) { d.groups = 3; }, errc::invalid_argument);
  refused("transposed", "1", [](auto& d) { d.transposed = true; });
  refused("x_block", "16", [](auto& d) { d.x_block = 16; });
  refused("y_block", "32", [](auto& d) { d.y_block = 32; });
  refused("data", "5", [](auto& d) { d.data = type::u8; });
  refused("mask", "9", [](auto& d) { d.out = 9, d.act = nn::activation::relu, d.mask = true; });
  refused("input_mask", "9", [](auto& d) { d.in = 9, d.training = d.input_mask = true; });
  refused("algorithm", "3", [](auto& d) { d.algorithm = nn::conv_algorithm::winograd_4x4; });
  refused(
      "algorithm", "77", [](auto& d) { d.algorithm = static_cast<nn::conv_algorithm>(77); }, errc::invalid_argument);
  right.sums = order::pair;  // of bf16 on CPUs: the kernel's to refuse
  EXPECT_EQ(nn::forward_launches(right)->launches[0].product.sums, order::pair);
}

}  // namespace
}  // namespace brgemm_test::convolution
