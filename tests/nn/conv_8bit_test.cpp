// The forward pass of nn::conv on 8-bit types against exact integer sums: equal results for every type of y, number of
// threads and backend, and no byte touched outside of a tensor.
#include <gtest/gtest.h>

#include <brgemm/nn/conv.hpp>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "support/conv_blocks.hpp"
#include "support/conv_grid.hpp"
#include "support/expect_error.hpp"
#include "support/guarded_memory.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using nn::conv;
using nn::conv_desc;
using nn::conv_weights;

struct problem {
  conv_desc d;
  conv_weights stored = conv_weights::out_first;
  std::int32_t zero_x = 0;
  std::vector<int> x;
  std::vector<std::int8_t> w;
  std::vector<float> scale, bias;
};

/// Tensors and weights of p.d.
void draw_data(std::mt19937& random, problem& p) {
  const auto from = [&](int low, int high) {
    return low + static_cast<int>(random() % static_cast<std::uint32_t>(high - low + 1));
  };
  const conv_desc& d = p.d;
  p.stored = from(0, 1) != 0 ? conv_weights::out_first : conv_weights::out_last;
  index pixels = d.images;
  for (const nn::conv_axis& a : d.axes) pixels *= d.transposed ? a.out() : a.in;
  p.x.resize(static_cast<std::size_t>(pixels * d.in));
  p.w.resize(
      static_cast<std::size_t>(d.out * d.in / d.groups * d.axes[0].kernel * d.axes[1].kernel * d.axes[2].kernel));
  for (int& v : p.x) v = d.data == type::u8 ? from(0, 255) : from(-128, 127);
  for (std::int8_t& v : p.w) v = static_cast<std::int8_t>(from(-128, 127));
  p.scale.resize(static_cast<std::size_t>(d.out)), p.bias.resize(static_cast<std::size_t>(d.out));
  for (float& v : p.scale) v = static_cast<float>(from(1, 1000)) * 1e-5f;
  for (float& v : p.bias) v = static_cast<float>(from(-1000, 1000)) * 0.1f;
}

problem draw(std::mt19937& random) {
  const auto from = [&](int low, int high) {
    return low + static_cast<int>(random() % static_cast<std::uint32_t>(high - low + 1));
  };
  problem p;
  conv_desc& d = p.d;
  constexpr type results[] = {type::s32, type::f32, type::bf16, type::u8, type::s8};
  d.data = from(0, 1) != 0 ? type::u8 : type::s8;
  d.y = results[from(0, 4)];
  d.images = from(1, 2);
  d.groups = from(0, 3) == 0 ? from(2, 3) : 1;
  d.in = d.groups * (from(0, 3) == 0 ? from(60, 140) : from(1, 20));
  d.out = d.groups * (from(0, 3) == 0 ? from(60, 140) : from(1, 40));
  if (from(0, 4) == 0) d.groups = d.in = d.out = from(2, 140);  // depthwise
  for (int i = from(0, 2); i < 3; ++i) {
    nn::conv_axis& a = d.axes[i];
    a = {from(1, 9), from(1, 4), from(1, 3), from(1, 2), from(0, 3), from(0, 3)};
    a.in = std::max<index>({a.in, a.dilation * (a.kernel - 1) + 1 - a.pad_before - a.pad_after, 1});
  }
  const bool summed = d.y == type::s32;
  d.bias = !summed && from(0, 1) != 0;
  d.scale = !summed;
  if (!summed && from(0, 1) != 0) d.act = nn::activation::relu;
  d.clamp = !summed && from(0, 2) == 0, d.lower = -3, d.upper = 100;
  d.transposed = from(0, 3) == 0;
  p.zero_x = from(0, 2) == 0 ? 0 : from(-128, 255);
  draw_data(random, p);
  return p;
}

/// The exact sum of y's pixel `place` and channel k.
std::int64_t sum_of(const problem& p, index image, const index (&place)[3], index k) {
  const conv_desc& d = p.d;
  const index in = d.in / d.groups, out = d.out / d.groups;
  const index taps = d.axes[0].kernel * d.axes[1].kernel * d.axes[2].kernel;
  std::int64_t sum = 0;
  for (index tap = 0; tap < taps; ++tap) {
    const index at[3] = {tap / d.axes[2].kernel / d.axes[1].kernel, tap / d.axes[2].kernel % d.axes[1].kernel,
                         tap % d.axes[2].kernel};
    index pixel = image;
    bool seen = true;
    for (int i = 0; i < 3; ++i) {
      const nn::conv_axis& a = d.axes[i];
      const index inputs = d.transposed ? a.out() : a.in;
      index from = place[i] * a.stride - a.pad_before + at[i] * a.dilation;
      if (d.transposed) {
        const index scaled = place[i] + a.pad_before - at[i] * a.dilation;
        from = scaled < 0 || scaled % a.stride != 0 ? -1 : scaled / a.stride;
      }
      seen = seen && from >= 0 && from < inputs;
      pixel = pixel * inputs + from;
    }
    for (index c = 0; seen && c < in; ++c) {
      const index group = k / out;
      const index a = d.transposed ? c : k % out, b = d.transposed ? k % out : c;  // out and in of the weights
      const index as = d.transposed ? in : out, bs = d.transposed ? out : in;
      const index weight = p.stored == conv_weights::out_first ? ((group * as + a) * bs + b) * taps + tap
                                                               : ((group * taps + tap) * bs + b) * as + a;
      sum += (p.x[static_cast<std::size_t>(pixel * d.in + k / out * in + c)] - p.zero_x) *
             p.w[static_cast<std::size_t>(weight)];
    }
  }
  return sum;
}

/// y as bytes, in order of its elements.
std::vector<std::byte> expected(const problem& p) {
  const conv_desc& d = p.d;
  std::vector<std::byte> y;
  const auto put = [&](auto value) {
    const auto* const bytes = reinterpret_cast<const std::byte*>(&value);
    y.insert(y.end(), bytes, bytes + sizeof value);
  };
  index size[3];
  for (int i = 0; i < 3; ++i) size[i] = d.transposed ? d.axes[i].in : d.axes[i].out();
  for (index image = 0; image < d.images; ++image) {
    for (index i = 0; i < size[0] * size[1] * size[2]; ++i) {
      const index place[3] = {i / size[2] / size[1], i / size[2] % size[1], i % size[2]};
      for (index k = 0; k < d.out; ++k) {
        const auto sum = static_cast<std::int32_t>(sum_of(p, image, place, k));
        float value = static_cast<float>(sum) * p.scale[static_cast<std::size_t>(k)];
        if (d.bias) value += p.bias[static_cast<std::size_t>(k)];
        if (d.act == nn::activation::relu && value < 0) value = 0;
        if (d.clamp) value = std::min(std::max(value, d.lower), d.upper);
        const float whole = std::nearbyint(value);
        switch (d.y) {
          case type::s32: put(sum); break;
          case type::f32: put(value); break;
          case type::bf16: put(to_bf16(value)); break;
          case type::u8: put(static_cast<std::uint8_t>(std::clamp(whole, 0.0f, 255.0f))); break;
          default: put(static_cast<std::int8_t>(std::clamp(whole, -128.0f, 127.0f)));
        }
      }
    }
  }
  return y;
}

std::vector<std::byte> forward(const problem& p, int threads, std::string_view backend = "") {
  const auto layer = conv::plan(p.d, {.backend = backend});
  auto pool = loops::thread_pool::make(threads);
  EXPECT_TRUE(layer && pool) << layer.error().message();
  if (!layer || !pool) return {};
  const auto x_bytes = static_cast<std::size_t>(layer->x_bytes());
  const guarded_memory x_memory(x_bytes), y_memory(static_cast<std::size_t>(layer->y_bytes())),
      w_memory(static_cast<std::size_t>(layer->weights_bytes()));
  const guard side = p.x.size() % 2 == 0 ? guard::before : guard::after;
  std::byte* const x = x_memory.place(x_bytes, side);
  std::vector<std::byte> adjacent(p.x.size());
  for (std::size_t i = 0; i < p.x.size(); ++i) adjacent[i] = static_cast<std::byte>(p.x[i]);
  const nn::reorder_desc of_x = layer->reorder_x({}, {})->description(), of_y = layer->reorder_y({}, {})->description();
  into_blocks(of_x, p.d.x_block, adjacent.data(), x);
  const auto bytes = static_cast<std::size_t>(layer->y_bytes());
  std::byte* const y = y_memory.place(bytes, side);
  std::memset(y, 0xee, bytes);
  std::byte* const weights = w_memory.place(static_cast<std::size_t>(layer->weights_bytes()), guard::after);
  const auto packed = layer->pack_weights(*pool, p.w.data(), p.stored, weights);
  EXPECT_TRUE(packed) << packed.error().message();
  const nn::conv_operands with{
      .bias = p.d.bias ? p.bias.data() : nullptr, .scale = p.d.scale ? p.scale.data() : nullptr, .zero_x = p.zero_x};
  const auto done = layer->forward(*pool, p.d.images, x, weights, with, y);
  EXPECT_TRUE(done) << done.error().message();
  std::vector<std::byte> found(static_cast<std::size_t>(of_y.images * of_y.channels * of_y.pixels * size_of(p.d.y)));
  expect_untouched(of_y, p.d.y_block, y);
  out_of_blocks(of_y, p.d.y_block, y, found.data());
  return found;
}

TEST(Conv8Bit, HasTheExactSums) {
  std::mt19937 random(1);
  for (int i = 0; i < 400; ++i) {
    const problem p = draw(random);
    const auto right = expected(p);
    ASSERT_EQ(forward(p, 1 + i % 3), right) << i;
    if (i % 8 != 0) continue;
    backend::for_each([&](const backend::entry& e) {
      if (!e.runs_here() || (e.name == "amx" && conv::is_depthwise(p.d))) return;  // depthwise
      EXPECT_EQ(forward(p, 2, e.name), right) << i << ' ' << e.name;
    });
  }
}

TEST(Conv8Bit, EveryWindowOfTheGrid) {
  std::mt19937 random(3);
  constexpr type results[] = {type::s32, type::f32, type::u8, type::s8};
  for (index number = 0; number < conv_grid_size; ++number) {
    problem p;
    p.d = conv_of_grid(number);
    p.d.data = random() % 2 == 0 ? type::u8 : type::s8;
    p.d.y = results[random() % 4];
    p.d.scale = p.d.y != type::s32, p.d.bias = false;
    p.zero_x = static_cast<std::int32_t>(random() % 7);
    draw_data(random, p);
    if (random() % 3 == 0) p.d = draw_blocks(random, p.d);
    ASSERT_EQ(forward(p, 1), expected(p)) << number << " blocks of " << p.d.x_block << ' ' << p.d.y_block;
  }
}

TEST(Conv8Bit, BlocksHaveTheSameSums) {
  std::mt19937 random(2);
  int blocked = 0;
  for (int i = 0; i < 400; ++i) {
    problem p = draw(random);
    p.d = draw_blocks(random, p.d);
    blocked += p.d.x_block + p.d.y_block > 0;
    ASSERT_EQ(forward(p, 1 + i % 3), expected(p)) << i << " blocks of " << p.d.x_block << ' ' << p.d.y_block;
  }
  EXPECT_GT(blocked, 200);
}

TEST(Conv8Bit, WrongDescsAndWeights) {
  conv_desc right;
  right.in = 12, right.out = 8, right.data = type::u8, right.y = type::u8, right.scale = true;
  right.axes[2] = {7, 3, 1, 1, 1, 1};
  const auto fails = [&](void (*change)(conv_desc&), const char* field, std::vector<std::string> words) {
    conv_desc d = right;
    change(d);
    expect_error(conv::plan(d), errc::unsupported, field, words);
  };
  fails([](auto& d) { d.y = type::s32; }, "y", {"bias 1", "scale 1"});
  fails([](auto& d) { d.y = type::f64; }, "y", {"u8"});
  fails([](auto& d) { d.training = true; }, "training", {"u8", "forward"});
  fails([](auto& d) { d.residual = true; }, "residual", {"u8"});
  const auto layer = conv::plan(right);
  ASSERT_TRUE(layer) << layer.error().message();
  constexpr loops::serial alone;
  std::vector<float> w(12 * 8 * 3);
  std::vector<std::int32_t> packed(static_cast<std::size_t>(layer->weights_bytes() / 4), 7);
  expect_error(layer->pack_weights(alone, w.data(), conv_weights::out_first, packed.data()), errc::invalid_argument,
               "w", {"f32", "u8"});
  EXPECT_EQ(packed, std::vector<std::int32_t>(packed.size(), 7));
  right.data = right.y = type::f32;
  const std::vector<std::int8_t> of_s8(12 * 8 * 3);
  expect_error(conv::plan(right)->pack_weights(alone, of_s8.data(), conv_weights::out_first, packed.data()),
               errc::invalid_argument, "w", {"s8", "f32"});
}

}  // namespace
}  // namespace brgemm_test
