// The plan of nn::conv: its desc checked, its passes made; and its weights packed.
#pragma once

#include "conv.hpp"

namespace brgemm::inline abi_0::nn {

inline result<void> conv::check(const conv_desc& d) noexcept {
  constexpr index largest = index{1} << 29;
  const struct {
    const char* name;
    index value;
    index least;
  } sizes[] = {{"images", d.images, 1}, {"in", d.in, 1}, {"out", d.out, 1}, {"groups", d.groups, 1}};
  for (const auto& s : sizes) {
    if (s.value < s.least || s.value > largest) {
      return error(errc::invalid_argument, s.name, "%s is %ld; it must be in %ld..2^29", s.name, s.value, s.least);
    }
  }
  if (d.in % d.groups != 0) {
    return error(errc::invalid_argument, "in", "in is %ld, no multiple of groups, %ld", d.in, d.groups);
  }
  if (d.out % d.groups != 0) {
    return error(errc::invalid_argument, "out", "out is %ld, no multiple of groups, %ld", d.out, d.groups);
  }
  double x = static_cast<double>(d.images) * static_cast<double>(d.in + 64) * 8;  // blocks may be filled up
  double y = static_cast<double>(d.images) * static_cast<double>(d.out + 64) * 8;
  const index in = d.in / d.groups;
  double w = static_cast<double>(d.out + 64) * static_cast<double>(in + 64) * 8;
  for (int i = 0; i < 3; ++i) {
    const conv_axis& a = d.axes[i];
    if (auto r = detail::check_axis(a, i); !r) return r;
    x *= static_cast<double>(d.transposed ? a.out() : a.in);
    y *= static_cast<double>(d.transposed ? a.in : a.out());
    w *= static_cast<double>(a.kernel);
  }
  if (std::max({x, y, w}) > 0x1p62) {
    return error(errc::invalid_argument, "images", "x, y or the weights have %g bytes or more, beyond 2^62",
                 std::max({x, y, w}));
  }
  if (auto r = check_blocks(d); !r) return r;
  return check_types(d);
}

/// A group's channels begin a block or lie in one; those of one batch entry are whole groups of what an instruction
/// takes.
inline result<void> conv::check_blocks(const conv_desc& d) noexcept {
  const struct {
    const char* name;
    detail::conv_channels channels;
    bool read;  ///< summed over
  } tensors[] = {{"x_block", {d.in, d.x_block}, true}, {"y_block", {d.out, d.y_block}, d.training}};
  for (const auto& [name, channels, read] : tensors) {
    const index block = channels.block;
    if (block == 0) continue;
    if (block != 8 && block != 16 && block != 32 && block != 64) {
      return error(errc::invalid_argument, name, "%s is %ld; it must be 0, 8, 16, 32 or 64", name, block);
    }
    if (is_depthwise(d)) continue;
    const index group = channels.count / d.groups;
    if (!channels.fit_groups(d.groups)) {
      return error(errc::unsupported, name, "%ld channels a group neither fill blocks of %ld nor divide one", group,
                   block);
    }
    const index chunk = detail::is_8bit(d.data) ? group : group % 64;
    const index multiple = k_group_of(d.data);
    if (read && chunk > block && chunk % multiple != 0) {
      return error(errc::unsupported, name, "%ld channels of %s a group in blocks of %ld: a multiple of %ld", group,
                   name_of(d.data).data(), block, multiple);
    }
  }
  return {};
}

inline result<void> conv::check_masks(const conv_desc& d) noexcept {
  if (d.mask && d.act != activation::relu) {
    return error(errc::invalid_argument, "mask", "mask is that of relu (1), and act is %d", static_cast<int>(d.act));
  }
  if (d.mask && d.clamp) {
    return error(errc::unsupported, "mask", "a mask of relu does not show what clamp to [%g, %g] cut off",
                 static_cast<double>(d.lower), static_cast<double>(d.upper));
  }
  if (d.input_mask && !d.training) {
    return error(errc::invalid_argument, "input_mask", "input_mask is for backward_data: training must be true");
  }
  if (is_depthwise(d)) return {};
  if (d.mask && d.groups > 1 && d.out / d.groups % 8 != 0) {
    return error(errc::unsupported, "mask", "a mask of %ld channels a group: a multiple of 8", d.out / d.groups);
  }
  if (d.input_mask && d.groups > 1 && d.in / d.groups % 8 != 0) {
    return error(errc::unsupported, "input_mask", "a mask of %ld channels a group: a multiple of 8", d.in / d.groups);
  }
  return {};
}

inline result<void> conv::check_types(const conv_desc& d) noexcept {
  if (auto r = detail::check_enumerator("act", static_cast<int>(d.act), activation_count); !r) return r;
  const bool is_8bit = detail::is_8bit(d.data);
  if (d.data != type::f32 && d.data != type::bf16 && !is_8bit) {
    return error(errc::unsupported, "data", "data is %d; f32, bf16, u8 and s8 are there", static_cast<int>(d.data));
  }
  const bool y_fits = d.y == type::f32 || (d.data == type::bf16 && d.y == type::bf16) ||
                      (is_8bit && (d.y == type::s32 || d.y == type::bf16 || detail::is_8bit(d.y)));
  if (!y_fits) {
    return error(errc::unsupported, "y", "y is %d with data of %s", static_cast<int>(d.y), name_of(d.data).data());
  }
  if (d.clamp && !(d.lower <= d.upper)) {
    return error(errc::invalid_argument, "clamp", "clamp to [%g, %g], which holds no number",
                 static_cast<double>(d.lower), static_cast<double>(d.upper));
  }
  if (d.y == type::s32 && (d.bias || d.scale || d.residual || d.clamp || d.act != activation::none)) {
    return error(errc::unsupported, "y",
                 "y is s32, stored as summed, and bias %d, scale %d, residual %d, clamp %d, act %d are set", d.bias,
                 d.scale, d.residual, d.clamp, static_cast<int>(d.act));
  }
  if (d.residual && detail::is_8bit(d.y)) {
    return error(errc::unsupported, "residual", "residual is of y's type, and y is %s", name_of(d.y).data());
  }
  if (d.transposed && d.training) {
    return error(errc::unsupported, "training",
                 "a transposed convolution has a forward pass only; that which it transposes has the others");
  }
  if (is_8bit && d.training) {
    return error(errc::unsupported, "training", "a layer of %s has a forward pass only", name_of(d.data).data());
  }
  if (auto r = check_masks(d); !r) return r;
  constexpr index chunk = 64;
  const auto in_chunks = [](index channels) { return channels <= chunk || channels % chunk == 0; };
  if (d.data == type::bf16 && d.y != type::f32 && !in_chunks(d.in / d.groups)) {
    return error(errc::unsupported, "y", "y is bf16 with %ld channels a group: f32, or a multiple of %ld",
                 d.in / d.groups, chunk);
  }
  if (d.training && d.data != type::f32 && !in_chunks(d.out / d.groups)) {
    return error(errc::unsupported, "data",
                 "data is bf16 in training, with %ld channels of y a group: a multiple of %ld", d.out / d.groups,
                 chunk);
  }
  return {};
}

/// Winograd's where it can be and the channels are enough for the transforms to be a small part; tiles of 2 x 2 where
/// few outputs would leave most of a 4 x 4 unused, or its weights are read for too few tiles.
inline result<conv_algorithm> conv::choose_algorithm(const conv_desc& d) noexcept {
  if (auto r = detail::check_enumerator("algorithm", static_cast<int>(d.algorithm), 4); !r) return r.error();
  const auto filters = [](const conv_axis& a) { return a.kernel == 3 && a.stride == 1 && a.dilation == 1; };
  const bool possible = d.data == type::f32 && d.groups == 1 && !d.transposed && d.x_block == 0 && d.y_block == 0 &&
                        d.axes[0] == conv_axis{} && filters(d.axes[1]) && filters(d.axes[2]);
  if (d.algorithm == conv_algorithm::direct) return conv_algorithm::direct;
  if (d.algorithm == conv_algorithm::automatic) {
    const bool worth = possible && d.inexact && std::min(d.in, d.out) >= 64;
    if (!worth) return conv_algorithm::direct;
    const index tiles = d.images * ((d.axes[1].out() + 3) / 4) * ((d.axes[2].out() + 3) / 4);
    return tiles >= 16 ? conv_algorithm::winograd_4x4 : conv_algorithm::winograd_2x2;
  }
  if (possible) return d.algorithm;
  return error(errc::unsupported, "algorithm",
               "algorithm is %d, Winograd's, for f32, one group, no blocks, two axes, 3 x 3 taps and stride and "
               "dilation 1; this "
               "is %s, %ld groups, blocks of %ld and %ld, %ld x %ld taps, stride %ld x %ld, dilation %ld x %ld",
               static_cast<int>(d.algorithm), name_of(d.data).data(), d.groups, d.x_block, d.y_block, d.axes[1].kernel,
               d.axes[2].kernel, d.axes[1].stride, d.axes[2].stride, d.axes[1].dilation, d.axes[2].dilation);
}

inline result<void> conv::check_schedules(const conv_schedules& by) noexcept {
  for (const conv_schedule& s : {by.forward, by.backward_data}) {
    if (s.rows >= 0 && s.rows <= 4096 && s.weights >= 0 && s.weights <= (1 << 20) && s.band >= -1 &&
        s.streaming >= -1 && s.streaming <= 1 && s.prefetch >= -1 && s.prefetch <= 4 && s.prefetch != 3) {
      continue;
    }
    return error(errc::invalid_argument, "by",
                 "a schedule of %d rows (0..4096), %d KiB (0..2^20), band %d (-1..), streaming %d (-1..1), prefetch %d "
                 "(-1, 0, 1, 2, 4)",
                 s.rows, s.weights, s.band, s.streaming, s.prefetch);
  }
  const conv_update_schedule& s = by.backward_weights;
  if (s.pixels >= 0 && s.pixels <= (1 << 20) && s.band >= 0 && s.band <= (1 << 20) && s.copies >= -1 && s.copies <= 1 &&
      s.streaming >= -1 && s.streaming <= 1) {
    return {};
  }
  return error(errc::invalid_argument, "by",
               "a schedule of %d pixels (0..2^20), %d KiB (0..2^20), copies %d (-1..1), streaming %d (-1..1)", s.pixels,
               s.band, s.copies, s.streaming);
}

inline result<conv> conv::plan(const conv_desc& d, const options& how, const conv_schedules& by) noexcept {
  if (auto r = check(d); !r) return r.error();
  if (auto r = check_schedules(by); !r) return r.error();
  const auto algorithm = choose_algorithm(d);
  if (!algorithm) return algorithm.error();
  conv c;
  c.d_ = d;
  detail::conv_pass_desc pass;
  pass.depthwise = is_depthwise(d);
  pass.groups = pass.depthwise ? 1 : d.groups;
  pass.images = d.images;
  pass.in = c.in(), pass.out = pass.depthwise ? d.out : c.out();
  const detail::conv_channels of_x = {d.in, d.x_block};
  const detail::conv_channels of_y = {d.out, d.y_block};
  pass.geometry = {{d.axes[0], d.axes[1], d.axes[2]}, d.transposed, of_x, of_y};
  pass.data = d.data, pass.c = d.y, pass.sums = d.sums;
  if (d.scale) pass.epilogue[pass.steps++] = op::scale(axis::column);
  if (d.bias) pass.epilogue[pass.steps++] = op::bias(axis::column);
  if (d.residual) pass.epilogue[pass.steps++] = op::add(0, d.y);
  if (d.mask) {
    pass.epilogue[pass.steps++] = op::relu_mask(0);
  } else if (d.act != activation::none) {
    pass.epilogue[pass.steps++] = op::make(op_of(d.act));
  }
  if (d.clamp) pass.epilogue[pass.steps++] = op::clamp(d.lower, d.upper);
  c.algorithm_ = *algorithm;
  conv_schedule by_forward = by.forward;
  if (c.algorithm_ != conv_algorithm::direct) by_forward.streaming = -1;  // its packing is used alone
  auto forward = detail::conv_pass::make(pass, how, by_forward);
  if (!forward) return forward.error();
  c.forward_.emplace(*std::move(forward));
  if (c.algorithm_ != conv_algorithm::direct) {
    auto winograd = detail::winograd::make(d.images, pass, c.algorithm_ == conv_algorithm::winograd_2x2 ? 2 : 4, how);
    if (!winograd) return winograd.error();
    c.winograd_.emplace(*std::move(winograd));
  }
  if (!d.training) return c;
  if (!pass.depthwise) std::swap(pass.in, pass.out);
  pass.geometry = {{d.axes[0], d.axes[1], d.axes[2]}, true, of_y, of_x};
  pass.c = d.data;
  pass.steps = 0;
  if (d.input_mask) pass.epilogue[pass.steps++] = op::multiply_mask(0);
  auto backward = detail::conv_pass::make(pass, how, by.backward_data);
  if (!backward) return backward.error();
  c.backward_.emplace(*std::move(backward));
  const detail::conv_geometry g = {{d.axes[0], d.axes[1], d.axes[2]}, false, of_x, of_y};
  if (pass.depthwise) {
    auto update = detail::depthwise_update::make(d.in, g, d.data, how);
    if (!update) return update.error();
    c.depthwise_update_.emplace(*std::move(update));
    return c;
  }
  detail::conv_update_desc of = {d.images, d.groups, c.in(), c.out(), g, d.data, d.sums, by.backward_weights};
  of.turned = detail::takes_rows_only(of, how);
  auto update = detail::conv_update::make(of, how);
  if (!update) return update.error();
  c.update_.emplace(*std::move(update));
  return c;
}

inline double conv::operations() const noexcept {
  double products = static_cast<double>(d_.out) * static_cast<double>(in());
  for (const conv_axis& a : d_.axes) {
    double seen = 0;
    detail::for_forward_runs(
        a, [&](const detail::conv_run& r) { seen += static_cast<double>(r.count) * static_cast<double>(r.taps); });
    products *= seen;
  }
  return 2 * products;
}

template <class T>
result<void> conv::pack_weights(loops::executor_ref threads, const T* w, conv_weights stored, void* weights,
                                void* transposed) const noexcept {
  if (auto r = detail::check_enumerator("stored", static_cast<int>(stored), 2); !r) return r;
  constexpr bool is_s8 = std::is_same_v<T, std::int8_t>;
  static_assert(is_s8 || std::is_same_v<T, float> || std::is_same_v<T, bf16>, "weights are f32, bf16 or s8");
  if (is_s8 != detail::is_8bit(d_.data) || (std::is_same_v<T, bf16> && d_.data != type::bf16)) {
    return error(errc::invalid_argument, "w", "weights of %s for a layer of %s",
                 name_of(element_traits<T>::value).data(), name_of(d_.data).data());
  }
  const index size = size_of(d_.data);
  const bool both = transposed != nullptr;
  const detail::buffer written[] = {{"weights", weights, weights_bytes(), weights_alignment()},
                                    {"transposed", transposed, both ? transposed_bytes() : 0, size}};
  const detail::buffer read[] = {{"w", w, d_.out * in() * taps() * static_cast<index>(sizeof(T)), alignof(T)}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  const auto weight = [&](index g, index c, index tap, index k) {
    const index outs = d_.transposed ? in() : out();  // of the convolution whose weights they are
    const index ins = d_.transposed ? out() : in();
    if (d_.transposed) std::swap(c, k);
    return w[stored == conv_weights::out_first ? ((g * outs + k) * ins + c) * taps() + tap
                                               : ((g * taps() + tap) * ins + c) * outs + k];
  };
  const auto put = [&](void* to, index at, T value) {
    if constexpr (is_s8 || std::is_same_v<T, bf16>) {
      static_cast<T*>(to)[at] = value;
    } else if (d_.data == type::f32) {
      static_cast<float*>(to)[at] = value;
    } else {
      static_cast<bf16*>(to)[at] = to_bf16(value);
    }
  };
  std::memset(weights, 0, static_cast<std::size_t>(weights_bytes()));
  if (both) std::memset(transposed, 0, static_cast<std::size_t>(transposed_bytes()));
  const auto pack = [&](const detail::conv_pass& pass, index ins, index outs, void* to, const auto& value) {
    const index width = pass.panel_width();
    loops::parallel_for(threads, {d_.groups, (outs + width - 1) / width, taps()}, [&](index g, index panel, index tap) {
      const index first = panel * width;
      const index end = std::min(first + width, outs);
      for (index c = 0; c < ins; ++c) {
        pass.for_places(g, c, tap, first, [&](index at) {
          for (index k = first; k < end; ++k) put(to, at + (k - first) * pass.k_group(), value(g, c, tap, k));
        });
      }
    });
  };
  if (!winograd_) pack(*forward_, in(), out(), weights, weight);
  const auto turned = [&](index g, index k, index tap, index c) { return weight(g, c, tap, k); };
  if (both) pack(*backward_, out(), in(), transposed, turned);
  if constexpr (is_s8) forward_->sum_weights(threads, weight, weights);
  if constexpr (std::is_same_v<T, float>) {
    const auto of_group = [&](index c, index tap, index k) { return weight(0, c, tap, k); };
    if (winograd_) winograd_->pack(threads, of_group, static_cast<float*>(weights));
  }
  return {};
}

}  // namespace brgemm::inline abi_0::nn
