// Gradients of convolution, pooling and softmax against central differences of the layers written out in double; those
// of batch normalisation are in norm_test.cpp.
#include <gtest/gtest.h>

#include <brgemm/nn/conv.hpp>
#include <brgemm/nn/pool.hpp>
#include <brgemm/nn/softmax.hpp>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using floats = std::vector<float>;
using doubles = std::vector<double>;

const loops::serial alone;

std::size_t at(index i) { return static_cast<std::size_t>(i); }

floats draw(std::mt19937& random, index count) {
  std::uniform_real_distribution<float> real(-1, 1);
  floats v(at(count));
  for (float& f : v) f = real(random);
  return v;
}
doubles widened(const floats& v) { return {v.begin(), v.end()}; }

/// Each found[i] is the slope of sum(g * f(x)) by x[i].
void expect_slopes(const std::function<doubles(const doubles&)>& f, const floats& x, const floats& g,
                   const floats& found, double tolerance, const char* of) {
  constexpr double step = 1e-5;
  doubles point = widened(x);
  ASSERT_EQ(found.size(), x.size());
  const auto value = [&] {
    const doubles y = f(point);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * static_cast<double>(g[i]);
    return sum;
  };
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double before = point[i];
    point[i] = before + step;
    const double above = value();
    point[i] = before - step;
    const double slope = (above - value()) / (2 * step);
    point[i] = before;
    ASSERT_NEAR(static_cast<double>(found[i]), slope, tolerance) << of << ' ' << i;
  }
}

/// Calls each(input of the axis) for the taps of an output that lie in x.
template <class Each>
void for_taps(const nn::conv_axis& a, index output, Each each) {
  for (index t = 0; t < a.kernel; ++t) {
    const index in = output * a.stride - a.pad_before + t * a.dilation;
    if (in >= 0 && in < a.in) each(in, t);
  }
}

/// y of a convolution over height and width; w (out, in/groups, R, S).
doubles convolved(const nn::conv_desc& d, const doubles& x, const doubles& w, const doubles& b) {
  const nn::conv_axis &h = d.axes[1], &v = d.axes[2];
  const index in = d.in / d.groups, out = d.out / d.groups;
  doubles y;
  for (index i = 0; i < d.images * h.out() * v.out(); ++i) {
    const index image = i / v.out() / h.out(), row = i / v.out() % h.out(), column = i % v.out();
    for (index k = 0; k < d.out; ++k) {
      double sum = b[at(k)];
      for_taps(h, row, [&](index p, index r) {
        for_taps(v, column, [&](index q, index s) {
          for (index c = 0; c < in; ++c) {
            sum += x[at(((image * h.in + p) * v.in + q) * d.in + k / out * in + c)] *
                   w[at(((k * in + c) * h.kernel + r) * v.kernel + s)];
          }
        });
      });
      y.push_back(sum);
    }
  }
  return y;
}

TEST(LayerGradients, Convolution) {
  std::mt19937 random(1);
  for (int i = 0; i < 24; ++i) {
    nn::conv_desc d;
    d.images = 2;
    const index channels[][3] = {{3, 4, 1}, {4, 6, 2}, {5, 5, 5}};  // the last one depthwise
    d.in = channels[i % 3][0], d.out = channels[i % 3][1], d.groups = channels[i % 3][2];
    d.axes[1] = {.in = 5, .kernel = 1 + i % 3, .stride = 1 + i / 3 % 2, .pad_before = i % 2, .pad_after = 1};
    d.axes[2] = {.in = 6, .kernel = 3, .stride = 1 + i % 2, .dilation = 1 + i / 6 % 2, .pad_before = 1, .pad_after = 2};
    d.training = true;
    const auto layer = nn::conv::plan(d);
    ASSERT_TRUE(layer) << layer.error().message();
    const floats x = draw(random, layer->x_bytes() / 4), dz = draw(random, layer->y_bytes() / 4);
    const floats w = draw(random, layer->weights()), b = draw(random, d.out);
    floats packed(at(layer->weights_bytes() / 4)), transposed(at(layer->transposed_bytes() / 4));
    floats dx(x.size()), dw(w.size()), turned(w.size()), db(b.size());
    const index space = layer->backward_weights_workspace_bytes();
    floats workspace(at(space / 4 + 1));
    ASSERT_TRUE(layer->pack_weights(alone, w.data(), nn::conv_weights::out_first, packed.data(), transposed.data()));
    ASSERT_TRUE(layer->backward_data(alone, 2, dz.data(), transposed.data(), dx.data()));
    ASSERT_TRUE(layer->backward_weights(alone, 2, x.data(), dz.data(), dw.data(), db.data(),
                                        space > 0 ? workspace.data() : nullptr));
    const index in = d.in / d.groups, out = d.out / d.groups, taps = d.axes[1].kernel * d.axes[2].kernel;
    for (index e = 0; e < layer->weights(); ++e) {  // (groups, taps, in, out) to (out, in, taps)
      const index o = e % out, c = e / out % in, t = e / out / in % taps, g = e / out / in / taps;
      turned[at(((g * out + o) * in + c) * taps + t)] = dw[at(e)];
    }
    const doubles x0 = widened(x), w0 = widened(w), b0 = widened(b);
    expect_slopes([&](const doubles& p) { return convolved(d, p, w0, b0); }, x, dz, dx, 1e-5, "dx");
    expect_slopes([&](const doubles& p) { return convolved(d, x0, p, b0); }, w, dz, turned, 1e-5, "dw");
    expect_slopes([&](const doubles& p) { return convolved(d, x0, w0, p); }, b, dz, db, 1e-5, "db");
  }
}

TEST(LayerGradients, Pooling) {
  std::mt19937 random(2);
  for (int i = 0; i < 24; ++i) {
    nn::pool_desc d;
    d.images = 2, d.channels = 3;
    d.axes[1] = {.in = 6, .kernel = 2 + i % 2, .stride = 1 + i / 2 % 2, .pad_before = i % 2};
    d.axes[2] = {.in = 5, .kernel = 3, .stride = 2, .pad_before = 1, .pad_after = i % 3};
    d.kind = i % 4 < 2 ? nn::pool_kind::max : nn::pool_kind::average;
    d.count_padding = i % 8 < 4;
    const auto layer = nn::pool::plan(d);
    ASSERT_TRUE(layer) << layer.error().message();
    const bool largest = d.kind == nn::pool_kind::max;
    const auto pooled = [&](const doubles& x) {
      const nn::conv_axis &h = d.axes[1], &v = d.axes[2];
      doubles y;
      for (index e = 0; e < d.images * h.out() * v.out() * d.channels; ++e) {
        const index c = e % d.channels, column = e / d.channels % v.out(), row = e / d.channels / v.out() % h.out();
        const index image = e / d.channels / v.out() / h.out();
        double sum = 0, most = -1e9, taps = 0;
        for_taps(h, row, [&](index p, index) {
          for_taps(v, column, [&](index q, index) {
            const double value = x[at(((image * h.in + p) * v.in + q) * d.channels + c)];
            sum += value, most = std::max(most, value), taps += 1;
          });
        });
        y.push_back(largest ? most : sum / (d.count_padding ? static_cast<double>(h.kernel * v.kernel) : taps));
      }
      return y;
    };
    const floats x = draw(random, layer->x_bytes() / 4), dy = draw(random, layer->y_bytes() / 4);
    floats y(dy.size()), dx(x.size());
    std::vector<std::uint8_t> indices(at(layer->indices_bytes()));
    std::uint8_t* const of_max = largest ? indices.data() : nullptr;
    ASSERT_TRUE(layer->forward(alone, 2, x.data(), y.data(), of_max));
    ASSERT_TRUE(layer->backward(alone, 2, dy.data(), of_max, dx.data()));
    expect_slopes(pooled, x, dy, dx, 1e-5, largest ? "max" : "average");
  }
}

TEST(LayerGradients, Softmax) {
  std::mt19937 random(3);
  for (const index classes : {1, 2, 7, 40}) {
    const auto layer = nn::softmax::plan({.rows = 3, .classes = classes});
    ASSERT_TRUE(layer);
    const auto exact = [&](const doubles& x) {
      doubles y(x.size());
      for (index r = 0; r < 3; ++r) {
        double sum = 0;
        for (index c = 0; c < classes; ++c) sum += std::exp(x[at(r * classes + c)]);
        for (index c = 0; c < classes; ++c) y[at(r * classes + c)] = std::exp(x[at(r * classes + c)]) / sum;
      }
      return y;
    };
    const floats x = draw(random, 3 * classes), dy = draw(random, 3 * classes);
    floats y(x.size()), dx(x.size());
    ASSERT_TRUE(layer->forward(alone, 3, x.data(), y.data()));
    ASSERT_TRUE(layer->backward(alone, 3, y.data(), dy.data(), dx.data()));
    expect_slopes(exact, x, dy, dx, 1e-5, "softmax");
  }
}

}  // namespace
}  // namespace brgemm_test
