// A layer of convolution with its data between guard pages, a plain loop nest for each direction in the order of the
// contract, and the comparison of nn::conv with it: equal bits, and no byte touched outside of a tensor.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <brgemm/nn/conv.hpp>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <sstream>
#include <vector>

#include "support/conv_blocks.hpp"
#include "support/guarded_memory.hpp"

namespace brgemm_test::convolution {

using namespace brgemm;
using brgemm::index;
using nn::conv;
using nn::conv_axis;
using nn::conv_desc;
using nn::conv_update_schedule;
using nn::conv_weights;

inline std::string text_of(const conv_desc& d) {
  std::ostringstream s;
  s << "images " << d.images << " in " << d.in << " out " << d.out << " groups " << d.groups << " blocks " << d.x_block
    << ' ' << d.y_block;
  for (const conv_axis& a : d.axes) {
    s << " [" << a.in << " kernel " << a.kernel << " stride " << a.stride << " dilation " << a.dilation << " pad "
      << a.pad_before << ' ' << a.pad_after << ']';
  }
  return s.str();
}

inline bool is_depthwise(const conv_desc& d) { return d.groups > 1 && d.groups == d.in && d.groups == d.out; }

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

/// A sum in the contract's order, one fma a term, and beside it in double: each operation rounds once, so they are
/// apart by at most n u / (1 - n u) of the sum of the terms' magnitudes, u = 2^-24.
struct checked_sum {
  float sum = 0;
  double exact = 0;
  double magnitude = 0;
  double roundings = 0;
  void add(float a, float b) { add_to(sum, a, b); }
  void add_to(float& chain, float a, float b) {
    chain = std::fma(a, b, chain);
    exact += static_cast<double>(a) * static_cast<double>(b);
    magnitude += std::abs(static_cast<double>(a) * static_cast<double>(b));
    ++roundings;
  }
  /// In order::tile: factors(i), begin <= i < end, as one chunk of k.
  template <class Factors>
  void add_chunk(index begin, index end, Factors factors) {
    float chains[2] = {};
    for (index i = begin; i < end; ++i) {
      const auto [a, b] = factors(i);
      add_to(chains[(i - begin) % 2], a, b);
    }
    sum += chains[0] + chains[1];
    roundings += 2;
  }
  float value() const {
    const double rounding = roundings * 0x1p-24;
    EXPECT_LE(std::abs(static_cast<double>(sum) - exact), rounding / (1 - rounding) * magnitude);
    return sum;
  }
};

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
  /// block: channels that are adjacent, 0 for all; an entry has no others.
  template <class PixelOf, class Factors>
  float sum(index channels, index block, bool joined, PixelOf pixel_of, Factors factors) const {
    checked_sum sum;
    for (index chunk = 0; chunk < channels; chunk += 64) {
      const index of_chunk = std::min<index>(channels - chunk, 64);
      const index entry = block == 0 || of_chunk <= block ? of_chunk : std::gcd(of_chunk, block);
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
            const auto size = static_cast<index>(row.size());
            for (index begin = 0; begin < size; begin += joined ? size : entry) {
              add_entry(sum, begin, joined ? size : std::min(begin + entry, size),
                        [&](index i) { return row[static_cast<std::size_t>(i)]; });
            }
          }
        }
      }
    }
    return sum.value();
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
    const bool joined = adjacent && in <= 64 && d.axes[2].dilation == 1 && (in % 2 == 0 || d.axes[2].kernel * in <= 64);
    float z_of = sum(in, d.x_block, joined, pixel_of, [&](index pixel, index c, index tap) {
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
    return sum(out, d.y_block, false, pixel_of, [&](index pixel, index k, index tap) {
      return std::pair(z.get(d.data, pixel * d.out + first + k), weight(first + k, channel % in, tap));
    });
  }

  template <class Factors>
  void add_entry(checked_sum& sum, index begin, index end, Factors factors) const {
    if (d.sums == order::tile && !is_depthwise(d)) {
      for (index i = begin; i < end; i += 32) sum.add_chunk(i, std::min(i + 32, end), factors);
      return;
    }
    const index group = is_depthwise(d) ? 1 : k_group_of(d.data);
    for (index c = begin; c < end; c += group) {
      for (index i = std::min(group, end - c) - 1; i >= 0; --i) {  // vdpbf16ps: the upper half first
        const auto [a, b] = factors(c + i);
        sum.add(a, b);
      }
    }
  }
};

/// Rows of y that count as one: in a convolution of one tap and no padding, as many as divide the height and have at
/// most 128 pixels.
inline index joined_rows(const conv_desc& d) {
  for (const int i : {1, 2}) {
    const conv_axis& a = d.axes[i];
    if (a.kernel > 1 || a.pad_before > 0 || a.pad_after > 0) return 1;
  }
  index rows = std::clamp<index>(128 / d.axes[2].out(), 1, d.axes[1].out());
  while (d.axes[1].out() % rows != 0) --rows;
  return rows;
}

/// For each column of y the number of its run of columns that see the same taps, where these are joined; else 0.
inline std::vector<std::size_t> runs_of_columns(const conv_desc& d) {
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
inline std::vector<float> expected_update(const problem& p) {
  const conv_desc& d = p.d;
  const index in = d.in / d.groups, out = d.out / d.groups;
  std::vector<float> sums(static_cast<std::size_t>(d.out * in * p.taps() + d.out));
  const index outputs[3] = {d.axes[0].out(), d.axes[1].out(), d.axes[2].out()};
  const index kernels[3] = {d.axes[0].kernel, d.axes[1].kernel, d.axes[2].kernel};
  using pixels = std::vector<std::pair<index, index>>;  // of x and y
  const auto sum_of = [&](const std::vector<std::vector<pixels>>& runs, index channel_in, index channel_out) {
    checked_sum sum;
    for (const auto& rows : runs) {
      for (const pixels& row : rows) {
        p.add_entry(sum, 0, static_cast<index>(row.size()), [&](index i) {
          const auto [x, y] = row[static_cast<std::size_t>(i)];
          const float of_x = channel_in < 0 ? 1.0f : p.x.get(d.data, x * d.in + channel_in);
          return std::pair{of_x, p.z.get(d.data, y * d.out + channel_out)};
        });
      }
    }
    return sum.value();
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
        sums[static_cast<std::size_t>(at)] = sum_of(seen, k / out * in + c, k);
      }
      if (tap == 0) sums[static_cast<std::size_t>(d.out * in * p.taps() + k)] = sum_of(all, -1, k);
    }
    ++tap;
  });
  return sums;
}

inline conv_desc draw_desc(std::mt19937& random) {
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

/// bf16 in one of the orders that the plain loops follow, where `d` says nothing else.
inline problem draw_data(std::mt19937& random, conv_desc d) {
  if (d.data == type::bf16 && d.sums == order::machine) d.sums = random() % 2 == 0 ? order::pair : order::tile;
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

inline problem draw(std::mt19937& random, type data) {
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

inline void run(const problem& p, const tensor& y, const tensor& dx, int threads, std::string_view backend = "",
                const nn::conv_schedules& by = {}) {
  const auto layer = conv::plan(p.d, {.backend = backend}, by);
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

inline void expect_bits(const problem& p) {
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

inline bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

inline std::vector<float> update_of(const problem& p, int threads, std::string_view backend = "", index more_images = 0,
                                    const conv_update_schedule& by = {}) {
  conv_desc d = p.d;
  d.images += more_images;
  const auto layer = conv::plan(d, {.backend = backend}, {{}, {}, by});
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

/// p, whose channels are adjacent, with tensors in the blocks of `d`.
inline problem in_blocks(const problem& p, conv_desc d) {
  d.sums = p.d.sums;
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

/// What was computed in blocks, as pixels with adjacent channels, beside the data of p.
inline problem with_adjacent_channels(const problem& p, const problem& blocked) {
  problem adjacent = in_blocks(p, p.d);
  adjacent.d = blocked.d;
  const auto layer = conv::plan(blocked.d);
  out_of_blocks(layer->reorder_y({}, {})->description(), blocked.d.y_block, blocked.y.data(), adjacent.y.data());
  out_of_blocks(layer->reorder_x({}, {})->description(), blocked.d.x_block, blocked.dx.data(), adjacent.dx.data());
  return adjacent;
}

/// Whether the backend runs here and is to do such layers: tiles those of bf16 in order::tile, and none by depth.
inline bool does(const backend::entry& e, const conv_desc& d) {
  const bool of_tiles = d.data == type::bf16 && d.sums == order::tile && !is_depthwise(d);
  return e.runs_here() && (e.name != "amx" || of_tiles);
}

}  // namespace brgemm_test::convolution
