// nn::conv against a plain loop nest in the order of the contract: equal bits, for any number of threads, and no byte
// touched outside of a tensor.
#include <gtest/gtest.h>

#include <bit>
#include <brgemm/backend/amx.hpp>
#include <brgemm/nn/conv.hpp>
#include <cmath>
#include <cstring>
#include <random>
#include <sstream>
#include <vector>

#include "support/conv_blocks.hpp"
#include "support/expect_error.hpp"
#include "support/features.hpp"
#include "support/guarded_memory.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using nn::conv;
using nn::conv_axis;
using nn::conv_desc;
using nn::conv_weights;

std::string text_of(const conv_desc& d) {
  std::ostringstream s;
  s << "images " << d.images << " in " << d.in << " out " << d.out << " groups " << d.groups << " blocks " << d.x_block
    << ' ' << d.y_block;
  for (const conv_axis& a : d.axes) {
    s << " [" << a.in << " kernel " << a.kernel << " stride " << a.stride << " dilation " << a.dilation << " pad "
      << a.pad_before << ' ' << a.pad_after << ']';
  }
  return s.str();
}

bool is_depthwise(const conv_desc& d) { return d.groups > 1 && d.groups == d.in && d.groups == d.out; }

/// A tensor between two inaccessible pages, its elements floats or bf16.
class tensor {
 public:
  tensor(index bytes, guard side) : memory_(static_cast<std::size_t>(bytes)), bytes_(bytes) {
    data_ = memory_.place(static_cast<std::size_t>(bytes), side);
  }
  void* data() const { return data_; }
  float get(type t, index i) const {
    if (t == type::f32) return reinterpret_cast<const float*>(data_)[i];
    return to_f32(reinterpret_cast<const bf16*>(data_)[i]);
  }
  void set(type t, index i, float x) const {
    if (t == type::f32) {
      reinterpret_cast<float*>(data_)[i] = x;
    } else {
      reinterpret_cast<bf16*>(data_)[i] = to_bf16(x);
    }
  }
  void fill(std::byte b) const { std::memset(data_, static_cast<int>(b), static_cast<std::size_t>(bytes_)); }
  bool same_bytes(const tensor& o) const { return std::memcmp(data_, o.data_, static_cast<std::size_t>(bytes_)) == 0; }

 private:
  guarded_memory memory_;
  index bytes_;
  std::byte* data_;
};

/// Calls each(image, place) for each pixel.
template <class Each>
void for_pixels(index images, const index (&sizes)[3], Each each) {
  for (index image = 0; image < images; ++image) {
    for (index z = 0; z < sizes[0]; ++z) {
      for (index h = 0; h < sizes[1]; ++h) {
        for (index w = 0; w < sizes[2]; ++w) each(image, {z, h, w});
      }
    }
  }
}

/// One layer with data; z is what backward_data reads, dx what it writes; weights are (out, in/groups, D, R, S), or
/// (groups, D, R, S, in/groups, out/groups).
struct problem {
  conv_desc d;
  conv_weights stored;
  tensor x, y, z, dx, residual, mask, input_mask;
  std::vector<float> w, bias, scale;

  index taps() const { return d.axes[0].kernel * d.axes[1].kernel * d.axes[2].kernel; }
  float weight(index k, index c, index tap) const {
    const index in = d.in / d.groups;
    const index out = d.out / d.groups;
    const index at = stored == conv_weights::out_first ? (k * in + c) * taps() + tap
                                                       : ((k / out * taps() + tap) * in + c) * out + k % out;
    const float value = w[static_cast<std::size_t>(at)];
    return d.data == type::f32 ? value : to_f32(to_bf16(value));
  }

  /// The sum over chunks of 64 of `channels`, then taps. pixel_of(tap per axis) is the pixel that is read, -1 where
  /// none is; factors(pixel, channel, tap) the two of a term. joined: the channels of a row of taps follow each other.
  template <class PixelOf, class Factors>
  float sum(index channels, bool joined, PixelOf pixel_of, Factors factors) const {
    float sum = 0;
    for (index chunk = 0; chunk < channels; chunk += 64) {
      index tap = 0;
      for (index t = 0; t < d.axes[0].kernel; ++t) {
        for (index r = 0; r < d.axes[1].kernel; ++r) {
          std::vector<std::pair<float, float>> row;
          for (index s = 0; s < d.axes[2].kernel; ++s, ++tap) {
            const index pixel = pixel_of({t, r, s});
            if (!joined) row.clear();
            for (index c = chunk; pixel >= 0 && c < std::min(channels, chunk + 64); ++c) {
              row.push_back(factors(pixel, c, tap));
            }
            if (joined && s + 1 < d.axes[2].kernel) continue;
            add_channels(sum, 0, static_cast<index>(row.size()),
                         [&](index i) { return row[static_cast<std::size_t>(i)]; });
          }
        }
      }
    }
    return sum;
  }

  /// The element of y, by the contract.
  float expected(index image, const index (&place)[3], index k, index element) const {
    const index in = d.in / d.groups;
    const index first = k / (d.out / d.groups) * in;
    const auto pixel_of = [&](const index(&tap)[3]) {
      index pixel = image;
      for (int i = 0; i < 3; ++i) {
        const conv_axis& a = d.axes[i];
        const index p = place[i] * a.stride - a.pad_before + tap[i] * a.dilation;
        if (p < 0 || p >= a.in) return index{-1};
        pixel = pixel * a.in + p;
      }
      return pixel;
    };
    const bool adjacent = d.groups == 1 && (d.x_block == 0 || d.x_block == in);
    const bool joined = adjacent && in <= 64 && d.axes[2].dilation == 1;
    float z_of = sum(in, joined, pixel_of, [&](index pixel, index c, index tap) {
      return std::pair(x.get(d.data, pixel * d.in + first + c), weight(k, c, tap));
    });
    if (d.scale) z_of *= scale[static_cast<std::size_t>(k)];
    if (d.bias) z_of += bias[static_cast<std::size_t>(k)];
    if (d.residual) z_of += residual.get(d.y, element);
    if (d.act == nn::activation::relu && z_of < 0) z_of = 0;
    return d.clamp ? std::min(std::max(z_of, d.lower), d.upper) : z_of;
  }

  static bool bit(const tensor& of, index element, index channels) {
    const auto* const bytes = static_cast<const std::uint8_t*>(of.data());
    const index c = element % channels;
    return (bytes[element / channels * ((channels + 7) / 8) + c / 8] >> c % 8 & 1) != 0;
  }

  /// The element of dx: channels of z are summed.
  float expected_gradient(index image, const index (&place)[3], index channel) const {
    const index in = d.in / d.groups;
    const index out = d.out / d.groups;
    const index first = channel / in * out;
    const auto pixel_of = [&](const index(&tap)[3]) {
      index pixel = image;
      for (int i = 0; i < 3; ++i) {
        const conv_axis& a = d.axes[i];
        const index p = place[i] + a.pad_before - tap[i] * a.dilation;
        if (p < 0 || p % a.stride != 0 || p / a.stride >= a.out()) return index{-1};
        pixel = pixel * a.out() + p / a.stride;
      }
      return pixel;
    };
    return sum(out, false, pixel_of, [&](index pixel, index k, index tap) {
      return std::pair(z.get(d.data, pixel * d.out + first + k), weight(first + k, channel % in, tap));
    });
  }

  template <class Factors>
  void add_channels(float& sum, index begin, index end, Factors factors) const {
    const index group = is_depthwise(d) ? 1 : k_group_of(d.data);
    for (index c = begin; c < end; c += group) {
      for (index i = std::min(group, end - c) - 1; i >= 0; --i) {  // vdpbf16ps: the upper half first
        const auto [a, b] = factors(c + i);
        sum = std::fma(a, b, sum);
      }
    }
  }
};

/// Rows of y that count as one: in a convolution of one tap and no padding, as many as divide the height and have at
/// most 128 pixels.
index joined_rows(const conv_desc& d) {
  for (const int i : {1, 2}) {
    const conv_axis& a = d.axes[i];
    if (a.kernel > 1 || a.pad_before > 0 || a.pad_after > 0) return 1;
  }
  index rows = std::clamp<index>(128 / d.axes[2].out(), 1, d.axes[1].out());
  while (d.axes[1].out() % rows != 0) --rows;
  return rows;
}

/// For each column of y the number of its run of columns that see the same taps, where these are joined; else 0.
std::vector<std::size_t> runs_of_columns(const conv_desc& d) {
  const conv_axis& a = d.axes[2];
  std::vector<std::size_t> run(static_cast<std::size_t>(a.out()));
  if (!is_depthwise(d) && (d.groups > 1 || a.kernel == 1 || a.dilation > 1 || a.kernel * d.in > 64)) return run;
  if (!is_depthwise(d) && d.x_block != 0 && d.x_block != d.in) return run;  // taps of a row are not adjacent
  const auto taps = [&](index column) {
    const auto before = [&](index end) {  // taps at inputs below `end`
      const index room = end - (column * a.stride - a.pad_before);
      return std::clamp<index>(room <= 0 ? 0 : (room - 1) / a.dilation + 1, 0, a.kernel);
    };
    return std::pair{before(0), before(a.in)};
  };
  for (index i = 0; i < a.out(); ++i) {
    const auto [first, end] = taps(i);
    if (first >= end && !is_depthwise(d)) return std::vector<std::size_t>(run.size());
    if (i > 0) run[static_cast<std::size_t>(i)] = run[static_cast<std::size_t>(i - 1)] + (taps(i) != taps(i - 1));
  }
  return run;
}

/// dW (groups, taps, in/groups, out/groups), then db (out): run after run over the images' rows of y; in bf16 over
/// pairs of the pixels of a row that see x through a tap.
std::vector<float> expected_update(const problem& p) {
  const conv_desc& d = p.d;
  const index in = d.in / d.groups, out = d.out / d.groups;
  std::vector<float> sums(static_cast<std::size_t>(d.out * in * p.taps() + d.out));
  const index outputs[3] = {d.axes[0].out(), d.axes[1].out(), d.axes[2].out()};
  const index kernels[3] = {d.axes[0].kernel, d.axes[1].kernel, d.axes[2].kernel};
  using pixels = std::vector<std::pair<index, index>>;  // of x and y
  const auto add_rows = [&](float& sum, const std::vector<std::vector<pixels>>& runs, index channel_in,
                            index channel_out) {
    for (const auto& rows : runs) {
      for (const pixels& row : rows) {
        p.add_channels(sum, 0, static_cast<index>(row.size()), [&](index i) {
          const auto [x, y] = row[static_cast<std::size_t>(i)];
          const float of_x = channel_in < 0 ? 1.0f : p.x.get(d.data, x * d.in + channel_in);
          return std::pair{of_x, p.z.get(d.data, y * d.out + channel_out)};
        });
      }
    }
  };
  const index joined = joined_rows(d);
  const std::vector<std::size_t> run = runs_of_columns(d);
  index tap = 0;
  for_pixels(1, kernels, [&](index, const index(&taps)[3]) {
    std::vector<std::vector<pixels>> seen(run.back() + 1), all(run.back() + 1);
    index pixel = 0;
    for_pixels(d.images, outputs, [&](index image, const index(&place)[3]) {
      index from = image;
      for (int i = 0; i < 3; ++i) {
        const conv_axis& a = d.axes[i];
        const index at = place[i] * a.stride - a.pad_before + taps[i] * a.dilation;
        from = from < 0 || at < 0 || at >= a.in ? -1 : from * a.in + at;
      }
      const bool begins = place[2] == 0 && place[1] % joined == 0;
      for (auto* rows : {&seen, &all}) {
        for (auto& of_run : *rows) of_run.resize(of_run.size() + begins);
      }
      const std::size_t r = run[static_cast<std::size_t>(place[2])];
      if (from >= 0) seen[r].back().emplace_back(from, pixel);
      all[is_depthwise(d) ? 0 : r].back().emplace_back(0, pixel);
      ++pixel;
    });
    for (index k = 0; k < d.out; ++k) {
      for (index c = 0; c < in; ++c) {
        const index at = ((k / out * p.taps() + tap) * in + c) * out + k % out;
        add_rows(sums[static_cast<std::size_t>(at)], seen, k / out * in + c, k);
      }
      if (tap == 0) add_rows(sums[static_cast<std::size_t>(d.out * in * p.taps() + k)], all, -1, k);
    }
    ++tap;
  });
  return sums;
}

conv_desc draw_desc(std::mt19937& random) {
  const auto from = [&](index low, index high) {
    return low + static_cast<index>(random() % static_cast<std::uint32_t>(high - low + 1));
  };
  conv_desc d;
  d.images = from(1, 2);
  d.groups = from(0, 3) == 0 ? from(2, 3) : 1;
  d.in = d.groups * (from(0, 3) == 0 ? from(60, 140) : from(1, 20));
  d.out = d.groups * (from(0, 3) == 0 ? from(60, 140) : from(1, 40));
  if (from(0, 4) == 0) d.groups = d.in = d.out = from(0, 3) == 0 ? from(2, 150) : from(2, 20);  // depthwise
  for (int i = static_cast<int>(from(0, 2)); i < 3; ++i) {
    conv_axis& a = d.axes[i];
    a = {from(1, 9), from(1, 4), from(1, 4), from(1, 2), from(0, 3), from(0, 3)};
    a.in = std::max(a.in, a.dilation * (a.kernel - 1) + 1 - a.pad_before - a.pad_after);
    a.in = std::max<index>(a.in, 1);
  }
  d.bias = from(0, 1) != 0;
  d.act = from(0, 1) != 0 ? nn::activation::relu : nn::activation::none;
  return d;
}

problem draw_data(std::mt19937& random, const conv_desc& d) {
  const type data = d.data;
  const auto layer = conv::plan(d);
  EXPECT_TRUE(layer) << text_of(d) << ": " << layer.error().message();
  const guard side = random() % 2 == 0 ? guard::before : guard::after;
  std::uniform_real_distribution<float> real(-1, 1);
  problem p{d,
            random() % 2 == 0 ? conv_weights::out_first : conv_weights::out_last,
            tensor(layer->x_bytes(), side),
            tensor(layer->y_bytes(), side),
            tensor(layer->y_bytes() / size_of(d.y) * size_of(data), side),
            tensor(layer->x_bytes(), side),
            tensor(layer->y_bytes(), side),
            tensor(layer->mask_bytes(), side),
            tensor(layer->input_mask_bytes(), side),
            {},
            {},
            {}};
  for (index i = 0; i < layer->x_bytes() / size_of(data); ++i) p.x.set(data, i, real(random));
  for (index i = 0; i < layer->y_bytes() / size_of(d.y); ++i) p.z.set(data, i, real(random));
  p.w.resize(static_cast<std::size_t>(d.out * (d.in / d.groups) * p.taps()));
  for (index i = 0; i < layer->y_bytes() / size_of(d.y); ++i) p.residual.set(d.y, i, real(random));
  for (index i = 0; i < layer->input_mask_bytes(); ++i) {
    static_cast<std::uint8_t*>(p.input_mask.data())[i] = static_cast<std::uint8_t>(random());
  }
  p.bias.resize(static_cast<std::size_t>(d.out));
  p.scale.resize(static_cast<std::size_t>(d.out));
  for (float& v : p.w) v = real(random);
  for (float& v : p.bias) v = real(random);
  for (float& v : p.scale) v = real(random);
  return p;
}

problem draw(std::mt19937& random, type data) {
  conv_desc d = draw_desc(random);
  d.data = data;
  if (data == type::bf16) d.y = random() % 2 == 0 ? type::bf16 : type::f32;
  d.training = true;
  // A shorter last chunk needs a result that sums can rest in.
  if (d.y == type::bf16 && d.in / d.groups > 64) d.in = d.groups * 64;
  if (data == type::bf16 && d.out / d.groups > 64) d.out = d.groups * 128;
  const auto whole_bytes = [&](index channels) {
    return is_depthwise(d) || d.groups == 1 || channels / d.groups % 8 == 0;
  };
  d.scale = random() % 3 == 0;
  d.residual = random() % 3 == 0;
  d.clamp = random() % 3 == 0, d.lower = -0.25f, d.upper = 0.75f;
  d.mask = d.act == nn::activation::relu && !d.clamp && whole_bytes(d.out) && random() % 2 == 0;
  d.input_mask = whole_bytes(d.in) && random() % 2 == 0;
  return draw_data(random, d);
}

void run(const problem& p, const tensor& y, const tensor& dx, int threads, std::string_view backend = "") {
  const auto layer = conv::plan(p.d, {.backend = backend});
  ASSERT_TRUE(layer) << layer.error().message();
  auto pool = loops::thread_pool::make(threads);
  ASSERT_TRUE(pool);
  const tensor weights(layer->weights_bytes(), guard::after);
  const tensor transposed(layer->transposed_bytes(), guard::after);
  const auto packed = layer->pack_weights(*pool, p.w.data(), p.stored, weights.data(), transposed.data());
  ASSERT_TRUE(packed) << packed.error().message();
  y.fill(std::byte{0xee});
  nn::conv_operands with;
  if (p.d.bias) with.bias = p.bias.data();
  if (p.d.scale) with.scale = p.scale.data();
  if (p.d.residual) with.residual = p.residual.data();
  if (p.d.mask) with.mask = p.mask.data();
  if (p.d.mask) p.mask.fill(std::byte{0xee});
  const auto done = layer->forward(*pool, p.d.images, p.x.data(), weights.data(), with, y.data());
  ASSERT_TRUE(done) << done.error().message();
  dx.fill(std::byte{0xee});
  const auto back = layer->backward_data(*pool, p.d.images, p.z.data(), transposed.data(), dx.data(),
                                         p.d.input_mask ? p.input_mask.data() : nullptr);
  ASSERT_TRUE(back) << back.error().message();
}

void expect_bits(const problem& p) {
  const conv_desc& d = p.d;
  const auto expect = [&](const tensor& found, type t, index i, float want, const char* name) {
    if (t == type::bf16) want = to_f32(to_bf16(want));
    ASSERT_EQ(std::bit_cast<std::uint32_t>(found.get(t, i)), std::bit_cast<std::uint32_t>(want))
        << text_of(d) << ": element " << i << " of " << name;
  };
  index i = 0;
  const index outputs[3] = {d.axes[0].out(), d.axes[1].out(), d.axes[2].out()};
  for_pixels(d.images, outputs, [&](index image, const index(&place)[3]) {
    for (index k = 0; k < d.out; ++k, ++i) {
      const float want = p.expected(image, place, k, i);
      expect(p.y, d.y, i, want, "y");
      ASSERT_TRUE(!d.mask || problem::bit(p.mask, i, d.out) == (want > 0)) << text_of(d) << ": bit " << i;
    }
  });
  i = 0;
  const index inputs[3] = {d.axes[0].in, d.axes[1].in, d.axes[2].in};
  for_pixels(d.images, inputs, [&](index image, const index(&place)[3]) {
    for (index c = 0; c < d.in; ++c, ++i) {
      const bool seen = !d.input_mask || problem::bit(p.input_mask, i, d.in);
      expect(p.dx, d.data, i, seen ? p.expected_gradient(image, place, c) : 0, "dx");
    }
  });
}

TEST(Conv, HasTheBitsOfThePlainLoops) {
  std::mt19937 random(1);
  for (int i = 0; i < 400; ++i) {
    const problem p = draw(random, type::f32);
    run(p, p.y, p.dx, 1 + i % 3);
    expect_bits(p);
    if (testing::Test::HasFatalFailure()) return;
  }
}

bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

std::vector<float> update_of(const problem& p, int threads, std::string_view backend = "", index more_images = 0) {
  conv_desc d = p.d;
  d.images += more_images;
  const auto layer = conv::plan(d, {.backend = backend});
  auto pool = loops::thread_pool::make(threads);
  EXPECT_TRUE(layer && pool);
  const tensor sums((layer->weights() + p.d.out) * 4, guard::after);
  sums.fill(std::byte{0xff});
  auto* const dw = static_cast<float*>(sums.data());
  const index bytes = layer->backward_weights_workspace_bytes();
  const tensor workspace(bytes, threads % 2 == 0 ? guard::before : guard::after);
  workspace.fill(std::byte{0xff});
  const auto done = layer->backward_weights(*pool, p.d.images, p.x.data(), p.z.data(), dw, dw + layer->weights(),
                                            bytes > 0 ? workspace.data() : nullptr);
  EXPECT_TRUE(done) << done.error().message();
  return {dw, dw + layer->weights() + p.d.out};
}

/// With rows of x transposed, as tiles read them.
std::vector<float> turned_update_of(const problem& p) {
  const conv_desc& d = p.d;
  const auto update = detail::conv_update::make({.images = d.images,
                                                 .groups = d.groups,
                                                 .in = d.in / d.groups,
                                                 .out = d.out / d.groups,
                                                 .forward = {{d.axes[0], d.axes[1], d.axes[2]}, false, {d.in}, {d.out}},
                                                 .data = d.data,
                                                 .sums = d.sums,
                                                 .turned = true},
                                                {});
  EXPECT_TRUE(update) << update.error().message();
  std::vector<float> sums(static_cast<std::size_t>(conv::plan(d)->weights() + d.out), NAN);
  const tensor workspace(update->workspace_bytes(), guard::after);
  workspace.fill(std::byte{0xff});
  float* const db = sums.data() + (sums.size() - static_cast<std::size_t>(d.out));
  constexpr loops::serial alone;
  (*update)(alone, d.images, p.x.data(), p.z.data(), sums.data(), db, workspace.data());
  return sums;
}

TEST(Conv, UpdateHasTheBitsOfThePlainLoops) {
  std::mt19937 random(4);
  for (int i = 0; i < 300; ++i) {
    const problem p = draw(random, type::f32);
    const auto right = expected_update(p);
    ASSERT_TRUE(same_bits(update_of(p, 1 + i % 4), right)) << text_of(p.d);
    if (i % 8 != 0) continue;
    backend::for_each([&](const backend::entry& e) {
      if (!e.runs_here()) return;
      EXPECT_TRUE(same_bits(update_of(p, 2, e.name), right)) << text_of(p.d) << ' ' << e.name;
    });
  }
}

// Several steps, whole blocks of channels and what is left of them.
TEST(Conv, UpdateOfLargerImages) {
  for (const index channels : {64, 70}) {
    conv_desc d;
    d.images = 2, d.in = channels, d.out = 150 - channels;
    d.axes[1] = {40, 3, 1, 1, 1, 1};
    d.axes[2] = {45, 3, 2, 1, 0, 1};
    d.training = true;
    std::mt19937 random(5);
    const problem p = draw_data(random, d);
    EXPECT_TRUE(same_bits(update_of(p, 2), expected_update(p))) << text_of(d);
  }
}

void expect_pairs() {  // what the plain loops follow
  desc d;
  d.a = d.b = type::bf16;
  const auto kernel = make_kernel(d);
  ASSERT_TRUE(kernel);
  ASSERT_EQ(kernel->order(), order::pair);
}

TEST(Conv, Bf16UpdateHasTheBitsOfThePlainLoops) {
  expect_pairs();
  std::mt19937 random(7);
  for (int i = 0; i < 200; ++i) {
    const problem p = draw(random, type::bf16);
    const auto right = expected_update(p);
    ASSERT_TRUE(same_bits(update_of(p, 1 + i % 4), right)) << text_of(p.d);
    if (!is_depthwise(p.d)) {
      ASSERT_TRUE(same_bits(turned_update_of(p), right)) << text_of(p.d);
    }
    if (i % 8 != 0) continue;
    backend::for_each([&](const backend::entry& e) {
      if (!e.runs_here()) return;
      EXPECT_TRUE(same_bits(update_of(p, 2, e.name), right)) << text_of(p.d) << ' ' << e.name;
    });
  }
}

// Layers whose blocks are copied: several bands, images that end within an entry, fewer images than planned.
TEST(Conv, UpdateByCopies) {
  expect_pairs();
  std::mt19937 random(6);
  struct shape {
    type data;
    index images, groups, in, out, height, width, stride, depth = 1, kernel = 1, pad = kernel / 2;
  };
  const shape shapes[] = {{type::f32, 3, 1, 20, 2100, 7, 7, 1},          {type::f32, 2, 1, 1030, 70, 9, 8, 2},
                          {type::f32, 2, 2, 2080, 40, 15, 17, 1},        {type::bf16, 3, 1, 64, 64, 7, 7, 1},
                          {type::bf16, 2, 1, 100, 64, 9, 8, 2},          {type::bf16, 1, 2, 6, 128, 33, 33, 1},
                          {type::bf16, 2, 1, 1024, 64, 18, 20, 1},       {type::bf16, 2, 1, 17, 64, 5, 4, 2, 7},
                          {type::bf16, 3, 1, 70, 64, 28, 28, 1, 1, 3},   {type::bf16, 2, 1, 3, 64, 61, 63, 2, 1, 7},
                          {type::bf16, 1, 1, 1024, 8, 40, 41, 1, 1, 3},  {type::f32, 2, 1, 2052, 8, 20, 40, 1},
                          {type::f32, 2, 1, 1024, 16, 5, 7, 2, 3, 1, 1}, {type::bf16, 1, 1, 64, 16, 6, 8, 5, 1, 2}};
  for (const shape& s : shapes) {
    conv_desc d;
    d.images = s.images, d.groups = s.groups, d.in = s.in, d.out = s.out, d.data = s.data, d.training = true;
    d.axes[0] = {s.depth, 1, s.stride};
    d.axes[1] = {s.height, s.kernel, s.stride, 1, s.pad, s.pad};
    d.axes[2] = {s.width, s.kernel, s.stride, 1, s.pad, s.pad};
    const problem p = draw_data(random, d);
    const auto right = expected_update(p);
    EXPECT_GT(conv::plan(d)->backward_weights_workspace_bytes(), 0);
    for (const int threads : {1, 2, 3}) EXPECT_TRUE(same_bits(update_of(p, threads), right)) << text_of(d);
    EXPECT_TRUE(same_bits(update_of(p, 2, "", 7), right)) << text_of(d);
    if (s.data == type::bf16) {
      EXPECT_TRUE(same_bits(turned_update_of(p), right)) << text_of(d);
    }
    if (s.in > 1000) continue;
    backend::for_each([&](const backend::entry& e) {
      if (!e.runs_here()) return;
      EXPECT_TRUE(same_bits(update_of(p, 2, e.name), right)) << text_of(d) << ' ' << e.name;
    });
  }
}

TEST(Conv, Bf16HasTheBitsOfThePlainLoops) {
  expect_pairs();
  std::mt19937 random(2);
  for (int i = 0; i < 200; ++i) {
    const problem p = draw(random, type::bf16);
    run(p, p.y, p.dx, 1 + i % 3);
    expect_bits(p);
    if (testing::Test::HasFatalFailure()) return;
  }
}

// The other way round: with x where z was, and the same weights.
TEST(Conv, TransposedIsTheGradientByData) {
  std::mt19937 random(8);
  for (int i = 0; i < 200; ++i) {
    conv_desc gradient = draw_desc(random);
    gradient.data = gradient.y = i % 2 == 0 ? type::f32 : type::bf16;
    gradient.in = gradient.groups * (1 + i % 30), gradient.out = gradient.groups * (1 + i % 19);
    gradient.training = true;
    const problem p = draw_data(random, gradient);
    run(p, p.y, p.dx, 1);
    conv_desc d = gradient;
    d.transposed = true, d.training = false, d.act = nn::activation::none;
    std::swap(d.in, d.out);
    d.bias = i % 4 < 2;
    const auto layer = conv::plan(d);
    ASSERT_TRUE(layer) << layer.error().message();
    ASSERT_EQ(layer->x_bytes(), conv::plan(gradient)->y_bytes());
    ASSERT_EQ(layer->y_bytes(), conv::plan(gradient)->x_bytes());
    ASSERT_EQ(layer->operations(), conv::plan(gradient)->operations());
    auto pool = loops::thread_pool::make(1 + i % 3);
    const tensor weights(layer->weights_bytes(), guard::after), y(layer->y_bytes(), guard::before);
    const std::vector<float> bias(static_cast<std::size_t>(d.out), 0.25f);
    ASSERT_TRUE(layer->pack_weights(*pool, p.w.data(), p.stored, weights.data()));
    ASSERT_TRUE(layer->forward(*pool, d.images, p.z.data(), weights.data(), d.bias ? bias.data() : nullptr, y.data()));
    if (!d.bias) {
      EXPECT_TRUE(y.same_bytes(p.dx)) << text_of(d);
      continue;
    }
    if (d.data == type::bf16) continue;  // dx was rounded before a bias could be added
    for (index at = 0; at < layer->y_bytes() / 4; ++at) {
      ASSERT_EQ(y.get(d.y, at), p.dx.get(d.y, at) + 0.25f) << text_of(d);
    }
  }
}

/// p, whose channels are adjacent, with tensors in the blocks of `d`.
problem in_blocks(const problem& p, const conv_desc& d) {
  const auto layer = conv::plan(d);
  EXPECT_TRUE(layer) << text_of(d) << ": " << layer.error().message();
  const guard side = guard::after;
  problem b{d,
            p.stored,
            tensor(layer->x_bytes(), side),
            tensor(layer->y_bytes(), side),
            tensor(layer->y_bytes() / size_of(d.y) * size_of(d.data), side),
            tensor(layer->x_bytes(), side),
            tensor(layer->y_bytes(), side),
            tensor(layer->mask_bytes(), side),
            tensor(layer->input_mask_bytes(), side),
            p.w,
            p.bias,
            p.scale};
  into_blocks(layer->reorder_x({}, {})->description(), d.x_block, p.x.data(), b.x.data());
  into_blocks(layer->reorder_dz({}, {})->description(), d.y_block, p.z.data(), b.z.data());
  into_blocks(layer->reorder_y({}, {})->description(), d.y_block, p.residual.data(), b.residual.data());
  std::memcpy(b.input_mask.data(), p.input_mask.data(), static_cast<std::size_t>(layer->input_mask_bytes()));
  return b;
}

/// That what is missing from the last block of `blocks` is as it was before the call.
void expect_untouched(const nn::reorder_desc& image, index block, const tensor& blocks) {
  const index count = block == 0 ? 1 : (image.channels + block - 1) / block;
  const index missing = block == 0 ? 0 : count * block - image.channels;
  const auto* const bytes = static_cast<const std::uint8_t*>(blocks.data());
  const index size = size_of(image.element);
  for (index i = 0; i < image.images; ++i) {
    for (index pixel = 0; pixel < image.pixels; ++pixel) {
      const index end = (((i + 1) * count - 1) * image.pixels + pixel + 1) * block * size;
      for (index at = end - missing * size; at < end; ++at) ASSERT_EQ(bytes[at], 0xee);
    }
  }
}

TEST(Conv, BlocksHaveTheBitsOfThePlainLoops) {
  expect_pairs();
  std::mt19937 random(12);
  int blocked = 0;
  for (int i = 0; i < 400; ++i) {
    const problem p = draw(random, i % 2 == 0 ? type::f32 : type::bf16);
    const conv_desc d = draw_blocks(random, p.d);
    if (d == p.d) continue;
    ++blocked;
    const problem b = in_blocks(p, d);
    run(b, b.y, b.dx, 1 + i % 3);
    const auto layer = conv::plan(d);
    const auto of_y = layer->reorder_y({}, {})->description(), of_x = layer->reorder_x({}, {})->description();
    expect_untouched(of_y, d.y_block, b.y);
    expect_untouched(of_x, d.x_block, b.dx);
    problem adjacent = in_blocks(p, p.d);
    adjacent.d = d;
    out_of_blocks(of_y, d.y_block, b.y.data(), adjacent.y.data());
    out_of_blocks(of_x, d.x_block, b.dx.data(), adjacent.dx.data());
    std::memcpy(adjacent.mask.data(), b.mask.data(), static_cast<std::size_t>(layer->mask_bytes()));
    expect_bits(adjacent);
    ASSERT_TRUE(same_bits(update_of(b, 1 + i % 4), expected_update(adjacent))) << text_of(d);
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(blocked, 200);
}

TEST(Conv, EveryBackendAndNumberOfThreads) {
  std::mt19937 random(3);
  for (int i = 0; i < 60; ++i) {
    const problem p = draw(random, i % 2 == 0 ? type::f32 : type::bf16);
    run(p, p.y, p.dx, 1);
    backend::for_each([&](const backend::entry& e) {
      if (!e.runs_here()) return;
      const tensor y(conv::plan(p.d)->y_bytes(), guard::before);
      const tensor dx(conv::plan(p.d)->x_bytes(), guard::before);
      run(p, y, dx, 2 + i % 3, e.name);
      EXPECT_TRUE(y.same_bytes(p.y) && dx.same_bytes(p.dx)) << text_of(p.d) << ' ' << e.name;
    });
  }
}

// dW of more than most caches, with rows that begin within a line.
TEST(Conv, PlansLayersLargerThanTheCaches) {
  for (const type data : {type::f32, type::bf16}) {
    conv_desc d;
    d.in = 4096, d.out = 33004, d.data = data, d.training = true;
    if (data == type::bf16) d.in = index{1} << 23, d.out = 60;
    const auto made = conv::plan(d);
    EXPECT_TRUE(made) << made.error().message();
  }
}

TEST(Conv, PreferredBlocks) {
  conv_desc d;
  d.in = d.out = 128;
  EXPECT_EQ(conv::preferred_block(d), 0);
  d.groups = 128;
  EXPECT_EQ(conv::preferred_block(d), 64);
  d.in = d.out = 96, d.groups = 3;
  EXPECT_EQ(conv::preferred_block(d), 32);
  d.data = type::bf16;
  EXPECT_EQ(conv::preferred_block(d), 0);
  d.data = type::f32, d.out = 99;
  EXPECT_EQ(conv::preferred_block(d), 0);
  d.in = d.out = d.groups = 128;
  d.x_block = d.y_block = conv::preferred_block(d);
  EXPECT_TRUE(conv::plan(d));
}

TEST(Conv, WrongDescs) {
  conv_desc right;
  right.in = 12, right.out = 8, right.groups = 2;
  right.axes[2] = {7, 3, 1, 1, 1, 1};
  const struct {
    std::string field;
    std::vector<std::string> words;
    void (*change)(conv_desc&);
    errc code = errc::invalid_argument;
  } cases[] = {
      {"images", {"images is 0"}, [](auto& d) { d.images = 0; }},
      {"in", {"in is -12"}, [](auto& d) { d.in = -12; }},
      {"in", {"in is 13", "2"}, [](auto& d) { d.in = 13; }},
      {"out", {"out is 9", "2"}, [](auto& d) { d.out = 9; }},
      {"groups", {"groups is 0"}, [](auto& d) { d.groups = 0; }},
      {"axes[2]", {"axes[2].in is 0"}, [](auto& d) { d.axes[2].in = 0; }},
      {"axes[2]", {"stride is 0"}, [](auto& d) { d.axes[2].stride = 0; }},
      {"axes[2]", {"dilation is -1"}, [](auto& d) { d.axes[2].dilation = -1; }},
      {"axes[1]", {"axes[1].kernel is 0"}, [](auto& d) { d.axes[1].kernel = 0; }},
      {"axes[0]", {"pad_before is -1"}, [](auto& d) { d.axes[0].pad_before = -1; }},
      {"axes[0]", {"pad_after is -2"}, [](auto& d) { d.axes[0].pad_after = -2; }},
      {"axes[2]", {"kernel of 10", "spans 10", "more than 7"}, [](auto& d) { d.axes[2].kernel = 10; }},
      {"images", {"2^62"}, [](auto& d) { d.axes[0].in = d.axes[1].in = d.images = index{1} << 29; }},
      {"training", {"transposed"}, [](auto& d) { d.transposed = d.training = true; }, errc::unsupported},
      {"mask",
       {"[0, 6]"},
       [](auto& d) { d.groups = 1, d.mask = d.clamp = true, d.act = nn::activation::relu; },
       errc::unsupported},
      {"images",
       {"2^62"},
       [](auto& d) { d.in = 64, d.transposed = true, d.axes[1] = d.axes[2] = {1, 1, 1, 1, 0, 1 << 29}; }},
      {"clamp", {"[1, 0.5]"}, [](auto& d) { d.clamp = true, d.lower = 1, d.upper = 0.5f; }},
      {"act", {"77"}, [](auto& d) { d.act = static_cast<nn::activation>(77); }},
      {"mask", {"act is 0"}, [](auto& d) { d.mask = true; }},
      {"mask", {"4 channels"}, [](auto& d) { d.mask = true, d.act = nn::activation::relu; }, errc::unsupported},
      {"input_mask", {"training"}, [](auto& d) { d.input_mask = true; }},
      {"input_mask", {"6 channels"}, [](auto& d) { d.input_mask = d.training = true; }, errc::unsupported},
      {"data", {"f32, bf16, u8 and s8"}, [](auto& d) { d.data = type::f64; }, errc::unsupported},
      {"y", {"f32"}, [](auto& d) { d.y = type::bf16; }, errc::unsupported},
      {"x_block", {"x_block is 12", "16"}, [](auto& d) { d.x_block = 12; }},
      {"y_block", {"y_block is -8"}, [](auto& d) { d.y_block = -8; }},
      {"x_block", {"6 channels", "blocks of 16"}, [](auto& d) { d.x_block = 16; }, errc::unsupported},
      {"y_block", {"12 channels", "blocks of 8"}, [](auto& d) { d.out = 24, d.y_block = 8; }, errc::unsupported},
      {"x_block",
       {"17 channels", "bf16", "blocks of 16", "multiple of 2"},
       [](auto& d) { d.groups = 1, d.in = 17, d.data = type::bf16, d.x_block = 16; },
       errc::unsupported},
      {"x_block",
       {"18 channels", "u8", "blocks of 16", "multiple of 4"},
       [](auto& d) { d.groups = 1, d.in = 18, d.data = type::u8, d.x_block = 16; },
       errc::unsupported},
      {"algorithm",
       {"blocks of 8 and 0"},
       [](auto& d) {
         d.groups = 1, d.x_block = 8, d.axes[1] = d.axes[2] = {9, 3};
         d.algorithm = nn::conv_algorithm::winograd_2x2;
       },
       errc::unsupported},
      {"y", {"65 channels", "64"}, [](auto& d) { d.in = 130, d.data = d.y = type::bf16; }, errc::unsupported},
      {"data",
       {"67 channels", "64"},
       [](auto& d) { d.out = 134, d.data = type::bf16, d.training = true; },
       errc::unsupported},
  };
  ASSERT_TRUE(conv::plan(right));
  for (const auto& c : cases) {
    conv_desc d = right;
    c.change(d);
    const auto made = conv::plan(d);
    expect_error(made, c.code, c.field, c.words);
  }
}

TEST(Conv, WrongArguments) {
  conv_desc d;
  d.images = 2, d.in = 3, d.out = 5;
  d.axes[2] = {7, 3, 1, 1, 1, 1};
  const auto layer = conv::plan(d);
  ASSERT_TRUE(layer);
  constexpr loops::serial alone;
  std::vector<float> x(2 * 7 * 3), w(5 * 3 * 3), bias(5), y(2 * 7 * 5, 7.0f);
  std::vector<float> weights(static_cast<std::size_t>(layer->weights_bytes() / 4));
  const auto fails = [&](const char* field, std::vector<std::string> words, index images, const void* px,
                         const void* pw, const float* pb, void* py) {
    const auto r = layer->forward(alone, images, px, pw, pb, py);
    expect_error(r, errc::invalid_argument, field, words);
    EXPECT_EQ(y, std::vector<float>(y.size(), 7.0f));
  };
  fails("images", {"3", "1..2"}, 3, x.data(), weights.data(), bias.data(), y.data());
  fails("images", {"0", "1..2"}, 0, x.data(), weights.data(), bias.data(), y.data());
  fails("x", {"null", "168"}, 2, nullptr, weights.data(), bias.data(), y.data());
  fails("weights", {"null"}, 2, x.data(), nullptr, bias.data(), y.data());
  fails("bias", {"null", "20"}, 2, x.data(), weights.data(), nullptr, y.data());
  fails("y", {"null", "280"}, 2, x.data(), weights.data(), bias.data(), nullptr);
  fails("y", {"overlaps x"}, 2, y.data() + 1, weights.data(), bias.data(), y.data());
  fails("x", {"no multiple of 4"}, 2, reinterpret_cast<char*>(x.data()) + 1, weights.data(), bias.data(), y.data());
  const auto invalid = errc::invalid_argument;
  expect_error(layer->pack_weights(alone, w.data(), conv_weights::out_first, nullptr), invalid, "weights", {"null"});
  expect_error(layer->pack_weights(alone, w.data(), static_cast<conv_weights>(9), weights.data()), invalid, "stored",
               {"9"});
  expect_error(layer->pack_weights(alone, w.data(), conv_weights::out_first, weights.data(), w.data()), invalid,
               "transposed", {"null"});
  expect_error(
      layer->pack_weights(alone, reinterpret_cast<const bf16*>(w.data()), conv_weights::out_first, weights.data()),
      invalid, "w", {"f32"});
  expect_error(layer->backward_data(alone, 1, y.data(), weights.data(), x.data()), invalid, "training", {"true"});
}

TEST(Conv, WrongOperands) {
  conv_desc d;
  d.images = 2, d.in = 3, d.out = 5, d.training = true;
  d.axes[2] = {7, 3, 1, 1, 1, 1};
  const auto plain = conv::plan(d);
  d.scale = d.residual = d.mask = d.input_mask = true, d.act = nn::activation::relu;
  const auto layer = conv::plan(d);
  ASSERT_TRUE(plain && layer);
  ASSERT_EQ(layer->mask_bytes(), 14);
  ASSERT_EQ(layer->input_mask_bytes(), 14);
  constexpr loops::serial alone;
  std::vector<float> x(2 * 7 * 3), vector(5), residual(2 * 7 * 5), y(2 * 7 * 5, 7.0f);
  std::vector<float> weights(static_cast<std::size_t>(layer->weights_bytes() / 4));
  std::vector<std::uint8_t> mask(14, 7);
  const nn::conv_operands right{vector.data(), vector.data(), residual.data(), mask.data()};
  const auto fails = [&](const conv& of, const nn::conv_operands& with, const char* field,
                         std::vector<std::string> words) {
    expect_error(of.forward(alone, 2, x.data(), weights.data(), with, y.data()), errc::invalid_argument, field, words);
    EXPECT_EQ(y, std::vector<float>(y.size(), 7.0f));
    EXPECT_EQ(mask, std::vector<std::uint8_t>(14, 7));
  };
  fails(*layer, {nullptr, right.scale, right.residual, right.mask}, "bias", {"null", "20"});
  fails(*layer, {right.bias, nullptr, right.residual, right.mask}, "scale", {"null", "20"});
  fails(*layer, {right.bias, right.scale, nullptr, right.mask}, "residual", {"null", "280"});
  fails(*layer, {right.bias, right.scale, right.residual, nullptr}, "mask", {"null", "14"});
  fails(*layer, {right.bias, right.scale, y.data(), right.mask}, "y", {"overlaps residual"});
  fails(*layer, {right.bias, right.scale, right.residual, residual.data()}, "mask", {"overlaps residual"});
  fails(*plain, right, "mask", {"none"});
  fails(*plain, {.bias = right.bias, .zero_x = 3}, "zero_x", {"3", "f32"});
  fails(*plain, {right.bias, right.scale, nullptr, nullptr}, "scale", {"none"});
  fails(*plain, {right.bias, nullptr, right.residual, nullptr}, "residual", {"none"});
  std::vector<float> transposed(static_cast<std::size_t>(layer->transposed_bytes() / 4));
  const auto backward = [&](const conv& of, const void* with) {
    return of.backward_data(alone, 2, residual.data(), transposed.data(), x.data(), with);
  };
  expect_error(backward(*layer, nullptr), errc::invalid_argument, "input_mask", {"null", "14"});
  expect_error(backward(*plain, mask.data()), errc::invalid_argument, "input_mask", {"none"});
  EXPECT_TRUE(backward(*layer, mask.data()));
  EXPECT_TRUE(layer->forward(alone, 2, x.data(), weights.data(), right, y.data()));
}

conv_desc small_training() {
  conv_desc d;
  d.images = 2, d.in = 3, d.out = 5, d.training = true;
  d.axes[2] = {7, 3, 1, 1, 1, 1};
  return d;
}

TEST(Conv, WrongArgumentsOfTheGradient) {
  conv_desc d = small_training();
  const auto layer = conv::plan(d);
  ASSERT_TRUE(layer);
  constexpr loops::serial alone;
  std::vector<float> z(2 * 7 * 5), dx(2 * 7 * 3, 7.0f);
  std::vector<float> transposed(static_cast<std::size_t>(layer->transposed_bytes() / 4));
  const auto fails = [&](const char* field, std::vector<std::string> words, index images, const void* pz,
                         const void* pt, void* px) {
    expect_error(layer->backward_data(alone, images, pz, pt, px), errc::invalid_argument, field, words);
    EXPECT_EQ(dx, std::vector<float>(dx.size(), 7.0f));
  };
  fails("images", {"3", "1..2"}, 3, z.data(), transposed.data(), dx.data());
  fails("dz", {"null", "280"}, 2, nullptr, transposed.data(), dx.data());
  fails("transposed", {"null"}, 2, z.data(), nullptr, dx.data());
  fails("dx", {"null", "168"}, 2, z.data(), transposed.data(), nullptr);
  fails("dx", {"overlaps dz"}, 2, dx.data() + 1, transposed.data(), dx.data());
}

TEST(Conv, WrongArgumentsOfTheUpdate) {
  conv_desc d = small_training();
  const auto layer = conv::plan(d);
  ASSERT_TRUE(layer);
  constexpr loops::serial alone;
  std::vector<float> x(2 * 7 * 3), z(2 * 7 * 5), dw(5 * 3 * 3, 7.0f), db(5, 7.0f);
  const auto fails = [&](const char* field, std::vector<std::string> words, index images, const void* px,
                         const void* pz, float* pw, float* pb) {
    expect_error(layer->backward_weights(alone, images, px, pz, pw, pb), errc::invalid_argument, field, words);
    EXPECT_EQ(dw, std::vector<float>(dw.size(), 7.0f));
    EXPECT_EQ(db, std::vector<float>(db.size(), 7.0f));
  };
  fails("images", {"3", "1..2"}, 3, x.data(), z.data(), dw.data(), db.data());
  fails("x", {"null", "168"}, 2, nullptr, z.data(), dw.data(), db.data());
  fails("dz", {"null", "280"}, 2, x.data(), nullptr, dw.data(), db.data());
  fails("dw", {"null", "180"}, 2, x.data(), z.data(), nullptr, db.data());
  fails("dw", {"overlaps db"}, 2, x.data(), z.data(), dw.data(), dw.data() + 1);
  fails("db", {"no multiple of 4"}, 2, x.data(), z.data(), dw.data(),
        reinterpret_cast<float*>(reinterpret_cast<char*>(db.data()) + 1));
  fails("dw", {"overlaps x"}, 2, dw.data() - 1, z.data(), dw.data(), db.data());
  d.training = false;
  expect_error(conv::plan(d)->backward_weights(alone, 1, x.data(), z.data(), dw.data(), nullptr),
               errc::invalid_argument, "training", {"true"});
  d.training = true, d.data = type::bf16;
  const auto copying = conv::plan(d);
  ASSERT_TRUE(copying);
  const auto bytes = static_cast<std::size_t>(copying->backward_weights_workspace_bytes());
  ASSERT_GT(bytes, 0u);
  expect_error(copying->backward_weights(alone, 1, x.data(), z.data(), dw.data(), nullptr), errc::invalid_argument,
               "workspace", {"null", std::to_string(bytes)});
  EXPECT_EQ(dw, std::vector<float>(dw.size(), 7.0f));
}

// The last test of this file: from here on the list of backends has tiles, emulated where the CPU has none.
TEST(Conv, OrderOfTilesOnEveryBackend) {
  show_tiles();
  ASSERT_TRUE(backend::register_amx());
  std::mt19937 random(10);
  for (int i = 0; i < 12; ++i) {
    conv_desc d;
    d.images = 1 + i % 2, d.in = i % 3 == 0 ? 3 : 70, d.out = i % 2 == 0 ? 64 : 17;
    d.axes[1] = {3 + i % 4, 1 + i % 3, 1, 1, i % 2, 0};
    d.axes[2] = {8, 3, 1 + i % 2, 1, 1, 1};
    d.data = type::bf16, d.sums = order::tile, d.training = true;
    const problem p = draw_data(random, d);
    // What no tap but one sees, beside what another pairs with nothing.
    for (index k = 0; k < d.out; ++k) p.z.set(d.data, (d.axes[2].out() - 1) * d.out + k, HUGE_VALF);
    std::vector<float> right;
    backend::for_each([&](const backend::entry& e) {
      if (!e.runs_here()) return;
      const tensor y(conv::plan(d)->y_bytes(), guard::before), dx(conv::plan(d)->x_bytes(), guard::before);
      run(p, y, dx, 2, e.name);
      auto sums = update_of(p, 2, e.name);
      for (float& v : sums) v = v == v ? v : 0;  // infinities of both signs: NaN with any bits
      if (right.empty()) {
        run(p, p.y, p.dx, 1, "reference");
        right = update_of(p, 1, "reference");
        for (float& v : right) v = v == v ? v : 0;
      }
      EXPECT_TRUE(y.same_bytes(p.y)) << text_of(d) << ' ' << e.name;
      EXPECT_TRUE(same_bits(sums, right)) << text_of(d) << ' ' << e.name;
    });
  }
}

}  // namespace
}  // namespace brgemm_test
