// nn::conv against oneDNN over random layers. Sums in another order: each of the two is within n u S of the exact one,
// n the terms, u = 2^-24 and S the sum of the terms' absolute values (docs/numerics.md), S being oneDNN's result for
// absolute values. 8-bit sums are equal.
#include <gtest/gtest.h>

#include <brgemm/nn/conv.hpp>
#include <cmath>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <random>
#include <vector>

namespace {

using namespace brgemm;
using brgemm::index;
using dnnl::memory;
using nn::conv;
using nn::conv_desc;

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

/// Descriptors of a layer's tensors, in the order in which ours has them; weights as PyTorch has them.
struct shapes {
  memory::desc x, w, y;
  memory::dims strides, dilations, before, after;

  shapes(const conv_desc& d, memory::data_type data, memory::data_type weights, memory::data_type result) {
    using tag = memory::format_tag;
    constexpr tag pixels_first[] = {tag::nwc, tag::nhwc, tag::ndhwc};
    constexpr tag of_weights[] = {tag::oiw, tag::oihw, tag::oidhw};
    constexpr tag of_groups[] = {tag::goiw, tag::goihw, tag::goidhw};
    const int rank = d.axes[0] != nn::conv_axis{} ? 3 : d.axes[1] != nn::conv_axis{} ? 2 : 1;
    memory::dims of_x = {d.images, d.in}, of_y = {d.images, d.out}, of_w = {d.out / d.groups, d.in / d.groups};
    if (d.groups > 1) of_w.insert(of_w.begin(), d.groups);
    for (int i = 3 - rank; i < 3; ++i) {
      const nn::conv_axis& a = d.axes[i];
      of_x.push_back(a.in), of_y.push_back(a.out()), of_w.push_back(a.kernel);
      strides.push_back(a.stride), dilations.push_back(a.dilation - 1);
      before.push_back(a.pad_before), after.push_back(a.pad_after);
    }
    x = {of_x, data, pixels_first[rank - 1]};
    y = {of_y, result, pixels_first[rank - 1]};
    w = {of_w, weights, d.groups > 1 ? of_groups[rank - 1] : of_weights[rank - 1]};
  }
};

constexpr auto direct = dnnl::algorithm::convolution_direct;
constexpr auto training = dnnl::prop_kind::forward_training;
#if DNNL_VERSION_MAJOR >= 3
auto forward_of(const shapes& s) {
  return dnnl::convolution_forward::primitive_desc(cpu(), training, direct, s.x, s.w, s.y, s.strides, s.dilations,
                                                   s.before, s.after);
}
auto backward_data_of(const shapes& s) {
  return dnnl::convolution_backward_data::primitive_desc(cpu(), direct, s.x, s.w, s.y, s.strides, s.dilations, s.before,
                                                         s.after, forward_of(s));
}
auto backward_weights_of(const shapes& s) {
  return dnnl::convolution_backward_weights::primitive_desc(cpu(), direct, s.x, s.w, s.y, s.strides, s.dilations,
                                                            s.before, s.after, forward_of(s));
}
#else
auto forward_of(const shapes& s) {
  return dnnl::convolution_forward::primitive_desc(
      {training, direct, s.x, s.w, s.y, s.strides, s.dilations, s.before, s.after}, cpu());
}
auto backward_data_of(const shapes& s) {
  return dnnl::convolution_backward_data::primitive_desc(
      {direct, s.x, s.w, s.y, s.strides, s.dilations, s.before, s.after}, cpu(), forward_of(s));
}
auto backward_weights_of(const shapes& s) {
  return dnnl::convolution_backward_weights::primitive_desc(
      {direct, s.x, s.w, s.y, s.strides, s.dilations, s.before, s.after}, cpu(), forward_of(s));
}
#endif

enum class pass { forward, backward_data, backward_weights };

template <class T, class Primitive>
std::vector<T> run(const Primitive& primitive, std::unordered_map<int, memory> arguments, int result) {
  const memory::desc of = arguments.at(result).get_desc();
  std::vector<T> values(of.get_size() / sizeof(T));
  arguments[result].set_data_handle(values.data());
  dnnl::stream stream(cpu());
  primitive.execute(stream, arguments);
  stream.wait();
  return values;
}

template <class T>
memory memory_of(const memory::desc& d, const std::vector<T>& values) {
  return {d, cpu(), const_cast<T*>(values.data())};
}

/// Elements of what the pass writes, which is not among x, w and y.
template <class R, class T, class W>
std::vector<R> onednn(const shapes& s, pass p, const std::vector<T>& x, const std::vector<W>& w,
                      const std::vector<T>& y) {
  const memory nothing_x(s.x, cpu(), nullptr), nothing_w(s.w, cpu(), nullptr), nothing_y(s.y, cpu(), nullptr);
  switch (p) {
    case pass::forward:
      return run<R>(
          dnnl::convolution_forward(forward_of(s)),
          {{DNNL_ARG_SRC, memory_of(s.x, x)}, {DNNL_ARG_WEIGHTS, memory_of(s.w, w)}, {DNNL_ARG_DST, nothing_y}},
          DNNL_ARG_DST);
    case pass::backward_data:
      return run<R>(dnnl::convolution_backward_data(backward_data_of(s)),
                    {{DNNL_ARG_DIFF_DST, memory_of(s.y, y)},
                     {DNNL_ARG_WEIGHTS, memory_of(s.w, w)},
                     {DNNL_ARG_DIFF_SRC, nothing_x}},
                    DNNL_ARG_DIFF_SRC);
    case pass::backward_weights: break;
  }
  return run<R>(
      dnnl::convolution_backward_weights(backward_weights_of(s)),
      {{DNNL_ARG_SRC, memory_of(s.x, x)}, {DNNL_ARG_DIFF_DST, memory_of(s.y, y)}, {DNNL_ARG_DIFF_WEIGHTS, nothing_w}},
      DNNL_ARG_DIFF_WEIGHTS);
}

conv_desc draw(std::mt19937& random) {
  const auto from = [&](index low, index high) {
    return low + static_cast<index>(random() % static_cast<std::uint32_t>(high - low + 1));
  };
  conv_desc d;
  d.images = from(1, 3);
  d.groups = from(0, 3) == 0 ? from(2, 3) : 1;
  d.in = d.groups * (from(0, 3) == 0 ? from(60, 140) : from(1, 20));
  d.out = d.groups * (from(0, 3) == 0 ? from(60, 140) : from(1, 40));
  if (from(0, 4) == 0) d.groups = d.in = d.out = from(2, 150);  // depthwise
  for (int i = static_cast<int>(from(0, 2)); i < 3; ++i) {
    nn::conv_axis& a = d.axes[i];
    a = {from(1, 12), from(1, 7), from(1, 3), from(1, 2), from(0, 3), from(0, 3)};
    a.in = std::max<index>({a.in, a.dilation * (a.kernel - 1) + 1 - a.pad_before - a.pad_after, 1});
  }
  d.bias = false;
  return d;
}

index taps_of(const conv_desc& d) { return d.axes[0].kernel * d.axes[1].kernel * d.axes[2].kernel; }
index pixels_of_y(const conv_desc& d) { return d.images * d.axes[0].out() * d.axes[1].out() * d.axes[2].out(); }

std::vector<float> absolute(std::vector<float> values) {
  for (float& v : values) v = std::abs(v);
  return values;
}

struct layer {
  conv plan;
  std::vector<float> x, w, y;
};

/// What ours writes, weights' gradients as PyTorch has them.
std::vector<float> ours(const layer& l, pass p) {
  const loops::serial alone;
  const conv_desc& d = l.plan.description();
  std::vector<float> packed(static_cast<std::size_t>(l.plan.weights_bytes() / 4));
  std::vector<float> transposed(static_cast<std::size_t>(l.plan.transposed_bytes() / 4));
  EXPECT_TRUE(l.plan.pack_weights(alone, l.w.data(), nn::conv_weights::out_first, packed.data(), transposed.data()));
  if (p == pass::forward) {
    std::vector<float> y(l.y.size());
    EXPECT_TRUE(l.plan.forward(alone, d.images, l.x.data(), packed.data(), nullptr, y.data()));
    return y;
  }
  if (p == pass::backward_data) {
    std::vector<float> dx(l.x.size());
    EXPECT_TRUE(l.plan.backward_data(alone, d.images, l.y.data(), transposed.data(), dx.data()));
    return dx;
  }
  const index bytes = l.plan.backward_weights_workspace_bytes();
  std::vector<float> workspace(static_cast<std::size_t>(bytes / 4 + 1));
  std::vector<float> dw(l.w.size()), turned(l.w.size());
  EXPECT_TRUE(l.plan.backward_weights(alone, d.images, l.x.data(), l.y.data(), dw.data(), nullptr,
                                      bytes > 0 ? workspace.data() : nullptr));
  const float* from = dw.data();
  const index in = d.in / d.groups, out = d.out / d.groups, taps = taps_of(d);
  for (index g = 0; g < d.groups; ++g) {
    for (index t = 0; t < taps; ++t) {
      for (index i = 0; i < in; ++i) {
        for (index o = 0; o < out; ++o) turned[static_cast<std::size_t>(((g * out + o) * in + i) * taps + t)] = *from++;
      }
    }
  }
  return turned;
}

std::optional<layer> draw_layer(std::mt19937& random) {
  conv_desc d = draw(random);
  d.training = true;
  auto plan = conv::plan(d);
  EXPECT_TRUE(plan) << plan.error().message();
  if (!plan) return std::nullopt;
  std::uniform_real_distribution<float> real(-1, 1);
  layer l{*std::move(plan), {}, {}, {}};
  l.x.resize(static_cast<std::size_t>(l.plan.x_bytes() / 4));
  l.w.resize(static_cast<std::size_t>(l.plan.weights()));
  l.y.resize(static_cast<std::size_t>(l.plan.y_bytes() / 4));
  for (auto* values : {&l.x, &l.w, &l.y}) {
    for (float& v : *values) v = real(random);
  }
  return l;
}

void expect_close(pass p) {
  std::mt19937 random(static_cast<unsigned>(p) + 7);
  double worst = 0;  // share of the bound
  for (int i = 0; i < 300; ++i) {
    const auto l = draw_layer(random);
    ASSERT_TRUE(l);
    const conv_desc& d = l->plan.description();
    const shapes s(d, memory::data_type::f32, memory::data_type::f32, memory::data_type::f32);
    const auto theirs = onednn<float>(s, p, l->x, l->w, l->y);
    const auto sums = onednn<float>(s, p, absolute(l->x), absolute(l->w), absolute(l->y));
    const auto found = ours(*l, p);
    ASSERT_EQ(found.size(), theirs.size());
    const index terms = p == pass::forward         ? d.in / d.groups * taps_of(d)
                        : p == pass::backward_data ? d.out / d.groups * taps_of(d)
                                                   : pixels_of_y(d);
    const double factor = 2 * 0x1p-24 * 1.01 * static_cast<double>(terms + 1);
    for (std::size_t e = 0; e < found.size(); ++e) {
      const double difference = std::abs(static_cast<double>(found[e]) - static_cast<double>(theirs[e]));
      const double bound = factor * static_cast<double>(sums[e]);
      ASSERT_LE(difference, bound) << "layer " << i << " element " << e << ": " << found[e] << ", " << theirs[e];
      if (bound > 0) worst = std::max(worst, difference / bound);
    }
  }
  std::printf("300 layers: at most %.3f of the bound\n", worst);
}

TEST(ConvOneDnn, Forward) { expect_close(pass::forward); }
TEST(ConvOneDnn, BackwardData) { expect_close(pass::backward_data); }
TEST(ConvOneDnn, BackwardWeights) { expect_close(pass::backward_weights); }

TEST(ConvOneDnn, SumsOfBytesAreEqual) {
  std::mt19937 random(11);
  const loops::serial alone;
  for (int i = 0; i < 300; ++i) {
    conv_desc d = draw(random);
    d.data = type::u8, d.y = type::s32;
    const auto plan = conv::plan(d);
    ASSERT_TRUE(plan) << plan.error().message();
    std::vector<std::uint8_t> x(static_cast<std::size_t>(plan->x_bytes()));
    std::vector<std::int8_t> w(static_cast<std::size_t>(plan->weights()));
    for (auto& v : x) v = static_cast<std::uint8_t>(random() % 128);  // oneDNN's AVX2 adds pairs in 16 bits
    for (auto& v : w) v = static_cast<std::int8_t>(random());
    std::vector<std::int32_t> packed(static_cast<std::size_t>(plan->weights_bytes() / 4 + 1));
    std::vector<std::int32_t> y(static_cast<std::size_t>(plan->y_bytes() / 4));
    ASSERT_TRUE(plan->pack_weights(alone, w.data(), nn::conv_weights::out_first, packed.data()));
    ASSERT_TRUE(plan->forward(alone, d.images, x.data(), packed.data(), nullptr, y.data()));
    const shapes s(d, memory::data_type::u8, memory::data_type::s8, memory::data_type::s32);
    EXPECT_EQ(y, (onednn<std::int32_t>(s, pass::forward, x, w, x))) << i;
  }
}

}  // namespace
