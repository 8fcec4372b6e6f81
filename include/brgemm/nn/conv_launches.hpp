// A convolution on a GPU: its passes as launches of the primitive, whose lists are planned once. Opt-in, and what
// conv_on_gpu is made of.
//
//     const auto pass = nn::forward_launches(d);                       // needs no GPU
//     copy pass->outputs and pass->pairs to the device: `outputs`, `pairs`
//     for (const auto& l : pass->launches) {
//       const auto kernel = cuda::make_kernel(l.product);              // once
//       kernel->call({.a = x, .b = w, .c = y, .pairs = pairs, .outputs = outputs + l.first, .count = l.count}, stream);
//     }
#pragma once

#include <exception>
#include <numeric>
#include <vector>

#include "../backend/cuda_arguments.hpp"
#include "conv.hpp"

namespace brgemm::inline abi_0::nn {

/// A pass over all conv_desc::images, in device memory: x (images, ..., in) and y or dz (images, ..., out), channels
/// last; w and dw (groups, D, R, S, in/groups, out/groups), of the layer's type, dw of f32.
struct conv_launches {
  /// Computes outputs[first], ..., outputs[first + count - 1]. Launches write different elements, in any order.
  struct launch {
    desc product;  ///< its operands: scale, bias, residual, mask, as the conv_desc has them, of the whole tensors
    index first = 0;
    index count = 0;
  };
  std::vector<launch> launches;
  std::vector<cuda::output> outputs;
  std::vector<offset_pair> pairs;
};

/// y from a: x and b: w. Errors: those of conv::check; unsupported with the field for depthwise and transposed layers,
/// blocks of channels, u8 and s8, Winograd's algorithm, and masks of channels that are no multiple of 8; out_of_memory.
/// The order of sums is conv's, with equal bits in f32; cuda::make_kernel refuses conv_desc::sums that a GPU has not.
result<conv_launches> forward_launches(const conv_desc& d) noexcept;
/// dx from a: dz and b: w. Errors: as forward_launches.
result<conv_launches> backward_data_launches(const conv_desc& d) noexcept;
/// dw from a: x and b: dz. Each sum is one chain over the images, then the pixels of y in row-major order: conv's but
/// where that goes over runs of columns (see conv::backward_weights). Errors: as forward_launches.
result<conv_launches> backward_weights_launches(const conv_desc& d) noexcept;
/// db (out) from a: ones, as many as a row of y has pixels, of the layer's type, and b: dz. The order of sums is that
/// of backward_weights_launches. Errors: as forward_launches.
result<conv_launches> backward_bias_launches(const conv_desc& d) noexcept;

}  // namespace brgemm::inline abi_0::nn

namespace brgemm::inline abi_0::detail {

/// Lists of one pass, and which launch each block belongs to.
class launch_planner {
 public:
  static constexpr index rows = 64;  ///< of C in a block

  /// Blocks whose products differ only in sizes and distances are one launch.
  void add(const desc& product, const cuda::output& o) {
    std::size_t i = 0;
    while (i < products_.size() && products_[i] != product) ++i;
    if (i == products_.size()) products_.push_back(product), outputs_.emplace_back();
    outputs_[i].push_back(o);
  }
  index next_pair() const { return static_cast<index>(planned_.pairs.size()); }
  void add_pair(index a, index b) { planned_.pairs.push_back({a, b}); }

  nn::conv_launches end() {
    for (std::size_t i = 0; i < products_.size(); ++i) {
      const auto first = static_cast<index>(planned_.outputs.size());
      planned_.outputs.insert(planned_.outputs.end(), outputs_[i].begin(), outputs_[i].end());
      planned_.launches.push_back({products_[i], first, static_cast<index>(outputs_[i].size())});
    }
    return std::move(planned_);
  }

 private:
  std::vector<desc> products_;
  std::vector<std::vector<cuda::output>> outputs_;
  nn::conv_launches planned_;
};

inline desc launched_product(const nn::conv_desc& layer, type c) noexcept {
  desc d;
  d.where = place::gpu;
  d.a = d.b = layer.data, d.c = c;
  d.sums = layer.sums;
  d.batch = batch_kind::offsets;
  d.m = launch_planner::rows, d.m_extent = extent_kind::at_call;
  return d;
}

inline result<void> check_launches(const nn::conv_desc& d) noexcept {
  if (auto r = nn::conv::check(d); !r) return r;
  if (auto r = check_enumerator("algorithm", static_cast<int>(d.algorithm), 4); !r) return r;
  const bool exact = d.algorithm == nn::conv_algorithm::automatic || d.algorithm == nn::conv_algorithm::direct;
  const struct {
    const char* field;
    bool refused;
    index value;
  } fields[] = {{"groups", nn::conv::is_depthwise(d), d.groups},
                {"transposed", d.transposed, 1},
                {"x_block", d.x_block != 0, d.x_block},
                {"y_block", d.y_block != 0, d.y_block},
                {"data", is_8bit(d.data), static_cast<index>(d.data)},
                {"algorithm", !exact, static_cast<index>(d.algorithm)},
                {"mask", d.mask && d.out % 8 != 0, d.out},
                {"input_mask", d.input_mask && d.in % 8 != 0, d.in}};
  for (const auto& f : fields) {
    if (!f.refused) continue;
    return error(errc::unsupported, f.field,
                 "%s: %ld; launches have no depthwise or transposed layers, blocks, u8 and s8, Winograd's algorithm, "
                 "nor masks of channels that are no multiple of 8",
                 f.field, f.value);
  }
  return {};
}

/// The layer with all pixels of all images as one row where each sees itself alone.
constexpr nn::conv_desc in_one_row(nn::conv_desc d) noexcept {
  for (const conv_axis& a : d.axes) {
    if (a.kernel != 1 || a.stride != 1 || a.pad_before != 0 || a.pad_after != 0) return d;
  }
  d.axes[2].in *= d.axes[0].in * d.axes[1].in * d.images;
  d.axes[0] = d.axes[1] = {};
  d.images = 1;
  return d;
}

constexpr conv_geometry launched_geometry(const nn::conv_desc& d, bool backward) noexcept {
  const conv_channels x{d.in, 0}, y{d.out, 0};
  return {{d.axes[0], d.axes[1], d.axes[2]}, backward, backward ? y : x, backward ? x : y};
}

/// Forward and, with the geometry's `backward`, by data: blocks of outputs that see the same taps. `product` has n,
/// ldb, the layout of B and the epilogue. A tap of w has `tap` elements; an entry's k channels are `k_apart` elements
/// each.
inline nn::conv_launches plan_launches(const nn::conv_desc& d, const conv_geometry& g, desc product, index k_apart) {
  const index reduced = g.in.count / d.groups;
  const index n = product.n;
  const index tap = reduced * n;
  const index taps = d.axes[0].kernel * d.axes[1].kernel * d.axes[2].kernel;
  product.k = reduced <= 64 ? reduced : std::gcd<index>(reduced, 64);
  launch_planner planner;
  g.for_boxes([&](const conv_run(&box)[3]) {
    const index first = planner.next_pair();
    const index seen = box[0].taps * box[1].taps * box[2].taps;
    for (index chunk = 0; chunk < reduced && seen > 0; chunk += 64) {
      for (index i = 0; i < seen; ++i) {
        const index at[3] = {i / box[2].taps / box[1].taps, i / box[2].taps % box[1].taps, i % box[2].taps};
        index a = 0, number = 0;
        for (int x = 0; x < 3; ++x) {
          a += at[x] * box[x].in_tap_step * g.step_in(x);
          number = number * d.axes[x].kernel + box[x].tap + at[x] * box[x].tap_step;
        }
        for (index c = chunk; c < std::min(chunk + 64, reduced); c += product.k) {
          planner.add_pair(a + c, number * tap + c * k_apart);
        }
      }
    }
    const index entries = planner.next_pair() - first;
    g.for_pieces(box, launch_planner::rows, [&](const conv_piece& p) {
      desc block = product;
      block.lda = std::max(p.lda, product.k), block.ldc = std::max(p.ldc, n);
      for (int i = 0; i < block.epilogue_size; ++i) {
        if (block.epilogue[i].kind == op_kind::add) block.epilogue[i].ld = block.ldc;
        if (is_mask(block.epilogue[i].kind)) block.epilogue[i].ld = block.ldc / 8;
      }
      for (index image = 0; image < d.images; ++image) {
        for (index group = 0; group < d.groups; ++group) {
          const index place = p.c + image * g.image_out();
          cuda::output o;
          o.a = p.a + image * g.image_in() + group * reduced;
          o.b = group * taps * tap;
          o.row = place / block.ldc;
          o.column = place % block.ldc + group * n;
          o.vectors = -(place % block.ldc);  // theirs is the channel alone
          o.first = first, o.batch = entries, o.m = p.m;
          planner.add(block, o);
        }
      }
    });
  });
  return planner.end();
}

inline nn::conv_launches forward_pass(const nn::conv_desc& d) {
  desc product = launched_product(d, d.y);
  product.n = product.ldb = d.out / d.groups;
  if (d.scale) append(product, op::scale(axis::column));
  if (d.bias) append(product, op::bias(axis::column));
  if (d.residual) append(product, op::add(0, d.y));
  if (d.mask) append(product, op::relu_mask(0));
  if (d.act != nn::activation::none && !d.mask) append(product, op::make(op_of(d.act)));
  if (d.clamp) append(product, op::clamp(d.lower, d.upper));
  return plan_launches(d, launched_geometry(d, false), product, d.out / d.groups);
}

inline nn::conv_launches backward_data_pass(const nn::conv_desc& d) {
  desc product = launched_product(d, d.data);
  product.n = d.in / d.groups;
  product.ldb = d.out / d.groups;
  product.layout_b = layout::transposed;
  if (d.input_mask) append(product, op::multiply_mask(0));
  return plan_launches(d, launched_geometry(d, true), product, 1);
}

inline nn::conv_launches backward_bias_pass(const nn::conv_desc& d) {
  desc product = launched_product(d, type::f32);
  product.m = 1, product.m_extent = extent_kind::fixed;
  product.n = product.ldb = product.ldc = d.out;
  product.k = product.lda = d.axes[2].out();
  product.batch = batch_kind::strides;
  product.stride_b = product.k * d.out;
  launch_planner planner;
  cuda::output o;
  o.batch = d.images * d.axes[0].out() * d.axes[1].out();
  planner.add(product, o);
  return planner.end();
}

inline nn::conv_launches backward_weights_pass(const nn::conv_desc& d) {
  const conv_geometry g = launched_geometry(d, false);
  const index in = d.in / d.groups, out = d.out / d.groups;
  desc product = launched_product(d, type::f32);
  product.layout_a = layout::transposed;
  product.m = std::min(in, launch_planner::rows);  // A's rows are as long
  product.n = product.ldc = out;
  product.lda = d.axes[2].stride * g.in.pixel(), product.ldb = g.out.pixel();
  launch_planner planner;
  const index taps = d.axes[0].kernel * d.axes[1].kernel * d.axes[2].kernel;
  for (index tap = 0; tap < taps; ++tap) {
    const auto depth = outputs_through(d.axes[0], tap / d.axes[2].kernel / d.axes[1].kernel);
    const auto height = outputs_through(d.axes[1], tap / d.axes[2].kernel % d.axes[1].kernel);
    const auto width = outputs_through(d.axes[2], tap % d.axes[2].kernel);
    const index first = planner.next_pair();
    product.k = std::max<index>(width.count, 1);
    for (index i = 0; width.count > 0 && i < d.images * depth.count * height.count; ++i) {
      const index image = i / height.count / depth.count, z = i / height.count % depth.count, row = i % height.count;
      planner.add_pair(image * g.image_in() + (depth.in + z * d.axes[0].stride) * g.step_in(0) +
                           (height.in + row * d.axes[1].stride) * g.step_in(1) + width.in * g.step_in(2),
                       image * g.image_out() + (depth.first + z) * g.step_out(0) +
                           (height.first + row) * g.step_out(1) + width.first * g.step_out(2));
    }
    for (index group = 0; group < d.groups; ++group) {
      for (index channel = 0; channel < in; channel += launch_planner::rows) {
        cuda::output o;
        o.a = group * in + channel, o.b = group * out;
        o.row = (group * taps + tap) * in + channel;
        o.first = first, o.batch = planner.next_pair() - first;
        o.m = std::min(in - channel, launch_planner::rows);
        planner.add(product, o);
      }
    }
  }
  return planner.end();
}

/// What `pass` plans for a layer that has launches. Errors: those of check_launches; out_of_memory.
template <class Pass>
result<nn::conv_launches> launches_of(const nn::conv_desc& d, const Pass& pass) noexcept {
  if (auto r = check_launches(d); !r) return r.error();
#if defined(__cpp_exceptions)
  try {
#endif
    return pass(d);
#if defined(__cpp_exceptions)
  } catch (const std::exception&) {
    return error(errc::out_of_memory, "images", "no memory for the lists of %ld images", d.images);
  }
#endif
}

}  // namespace brgemm::inline abi_0::detail

namespace brgemm::inline abi_0::nn {

inline result<conv_launches> forward_launches(const conv_desc& d) noexcept {
  return detail::launches_of(d, [](const conv_desc& l) { return detail::forward_pass(detail::in_one_row(l)); });
}
inline result<conv_launches> backward_data_launches(const conv_desc& d) noexcept {
  return detail::launches_of(d, [](const conv_desc& l) { return detail::backward_data_pass(detail::in_one_row(l)); });
}
inline result<conv_launches> backward_weights_launches(const conv_desc& d) noexcept {
  return detail::launches_of(d,
                             [](const conv_desc& l) { return detail::backward_weights_pass(detail::in_one_row(l)); });
}
inline result<conv_launches> backward_bias_launches(const conv_desc& d) noexcept {
  return detail::launches_of(d, detail::backward_bias_pass);
}

}  // namespace brgemm::inline abi_0::nn
