// The gradient of a convolution's weights: for each tap a product of x, as the tap sees it, and dz over all pixels.
#pragma once

#include <algorithm>
#include <memory>

#include "../loops/row_product.hpp"
#include "conv_geometry.hpp"
#include "storage.hpp"

namespace brgemm::inline abi_0::detail {

/// The outputs of an axis that see an input through one tap: `count` from `first`, the first one at input `in`.
struct seen_outputs {
  index first = 0;
  index count = 0;
  index in = 0;
};
constexpr seen_outputs outputs_through(const conv_axis& a, index tap) noexcept {
  const index at_zero = tap * a.dilation - a.pad_before;  // where output 0 looks
  seen_outputs s;
  s.first = at_zero < 0 ? (-at_zero + a.stride - 1) / a.stride : 0;
  const index end = at_zero < a.in ? std::min((a.in - 1 - at_zero) / a.stride + 1, a.out()) : 0;
  s.count = std::max<index>(end - s.first, 0);
  s.in = at_zero + s.first * a.stride;
  return s;
}

/// dW (groups, taps, in, out) and db (groups, out) in f32, in and out being a group's. Each sum is one chain over the
/// images, then the pixels of y in row-major order; pixels that see no input through a tap add no term to its sum.
class conv_update {
 public:
  /// `forward`: x is what it reads, dz has the shape of what it writes.
  static result<conv_update> make(index groups, index in, index out, const conv_geometry& forward,
                                  const options& how) noexcept {
    conv_update u;
    u.groups_ = groups, u.in_ = in, u.out_ = out;
    u.g_ = with_joined_rows(forward);
    u.rows_ = std::clamp<index>(band_pixels / u.g_.size_out(2), 1, u.g_.size_out(1));
    if (auto r = u.plan_taps(); !r) return r.error();
    if (auto r = u.plan_kernels(how); !r) return r.error();
    return u;
  }

  /// db may be null. A thread has blocks of dW of its own; it goes over the pixels band by band, so that the part of x
  /// and dz that all its taps read is in L2.
  void operator()(loops::executor_ref threads, index images, const float* x, const float* dz, float* dw,
                  float* db) const noexcept {
    const index blocks = groups_ * nn::panels(in_) * nn::panels(out_) * taps_count();
    const index parts = std::min<index>(blocks, threads.threads());
    loops::parallel_for(threads, {parts}, [&](index part) {
      for (index image = 0; image < images; ++image) {
        for (index depth = 0; depth < g_.size_out(0); ++depth) {
          for (index row = 0; row < g_.size_out(1); row += rows_) {
            const band b{depth, row, std::min(row + rows_, g_.size_out(1)), image + depth + row == 0};
            for (index i = blocks * part / parts; i < blocks * (part + 1) / parts; ++i) {
              add_products(i, b, x + image * g_.step_in(-1), dz + image * g_.step_out(-1), dw);
            }
          }
        }
      }
    });
    if (db != nullptr) sum_pixels(threads, images, dz, db);
  }

 private:
  static constexpr index band_pixels = 512;
  static constexpr index joined_pixels = 128;

  /// Rows of y: height first..end-1 at one depth.
  struct band {
    index depth;
    index first;
    index end;
    bool begins;  ///< the sums
  };
  /// One tap: its rows of y are the batch, in `pairs` one behind the other for each depth.
  struct planned_tap {
    seen_outputs depth;
    seen_outputs height;
    index pairs = 0;
    index kernels = 0;
  };

  conv_update() = default;

  /// Where each pixel of y sees just its own of x, rows that follow each other are one: longer sums a batch entry.
  static constexpr conv_geometry with_joined_rows(conv_geometry g) noexcept {
    for (const int i : {1, 2}) {
      const conv_axis& a = g.axes[i];
      if (a.kernel != 1 || a.stride != 1 || a.pad_before != 0 || a.pad_after != 0) return g;
    }
    index joined = std::clamp<index>(joined_pixels / g.axes[2].in, 1, g.axes[1].in);
    while (g.axes[1].in % joined != 0) --joined;
    g.axes[1].in /= joined;
    g.axes[2].in *= joined;
    return g;
  }

  index taps_count() const noexcept { return g_.axes[0].kernel * g_.axes[1].kernel * g_.axes[2].kernel; }

  void add_products(index i, const band& b, const float* x, const float* dz, float* dw) const noexcept {
    const index tap = i % taps_count();
    i /= taps_count();
    const index panel_out = i % nn::panels(out_);
    i /= nn::panels(out_);
    const index panel_in = i % nn::panels(in_);
    const index group = i / nn::panels(in_);
    const planned_tap& t = taps_[static_cast<std::size_t>(tap)];
    const index first = std::max(b.first, t.height.first);
    const index end = std::min(b.end, t.height.first + t.height.count);
    const index depth = b.depth - t.depth.first;
    const bool seen = depth >= 0 && depth < t.depth.count && first < end;
    if (!seen && !b.begins) return;
    const index channel_in = panel_in * nn::block_width(in_);
    const index channel_out = panel_out * nn::block_width(out_);
    arguments call;
    call.batch = seen ? end - first : 0;
    if (seen) call.pairs = pairs_.get() + t.pairs + depth * t.height.count + first - t.height.first;
    call.a = x + group * in_ + channel_in;
    call.b = dz + group * out_ + channel_out;
    call.c = dw + ((group * taps_count() + tap) * in_ + channel_in) * out_ + channel_out;
    call.beta = b.begins ? 0 : 1;
    const bool full_in = channel_in + nn::block_width(in_) <= in_;
    const bool full_out = channel_out + nn::block_width(out_) <= out_;
    kernels_[static_cast<std::size_t>(t.kernels)][full_in][full_out](call);
  }

  void sum_pixels(loops::executor_ref threads, index images, const float* dz, float* db) const noexcept {
    loops::parallel_for(threads, {groups_, nn::panels(out_)}, [&](index group, index panel) {
      const index channel = panel * nn::block_width(out_);
      arguments call;
      call.a = ones_.get();
      call.b = dz + group * out_ + channel;
      call.c = db + group * out_ + channel;
      call.batch = images * g_.size_out(0) * g_.size_out(1);
      sums_[channel + nn::block_width(out_) <= out_](call);
    });
  }

  result<void> plan_taps() noexcept {
    taps_.reset(new (std::nothrow) planned_tap[static_cast<std::size_t>(taps_count())]);
    if (!taps_) return error(errc::out_of_memory, "axes", "no memory for %ld taps", taps_count());
    index pairs = 0;
    index tap = 0;
    for (index d = 0; d < g_.axes[0].kernel; ++d) {
      for (index h = 0; h < g_.axes[1].kernel; ++h) {
        for (index w = 0; w < g_.axes[2].kernel; ++w, ++tap) {
          const seen_outputs depth = outputs_through(g_.axes[0], d);
          const seen_outputs height = outputs_through(g_.axes[1], h);
          const bool seen = outputs_through(g_.axes[2], w).count > 0;
          taps_[static_cast<std::size_t>(tap)] = {seen ? depth : seen_outputs{}, seen ? height : seen_outputs{}, pairs,
                                                  w};
          pairs += seen ? depth.count * height.count : 0;
        }
      }
    }
    pairs_.reset(new (std::nothrow) offset_pair[static_cast<std::size_t>(pairs)]);
    if (!pairs_) return error(errc::out_of_memory, "axes", "no memory for a list of %ld rows", pairs);
    for (tap = 0; tap < taps_count(); ++tap) list_rows(taps_[static_cast<std::size_t>(tap)]);
    return {};
  }

  void list_rows(const planned_tap& t) noexcept {
    const seen_outputs w = outputs_through(g_.axes[2], t.kernels);
    offset_pair* to = pairs_.get() + t.pairs;
    for (index d = 0; d < t.depth.count; ++d) {
      for (index h = 0; h < t.height.count; ++h) {
        *to++ = {
            (t.depth.in + d * g_.axes[0].stride) * g_.step_in(0) +
                (t.height.in + h * g_.axes[1].stride) * g_.step_in(1) + w.in * g_.step_in(2),
            (t.depth.first + d) * g_.step_out(0) + (t.height.first + h) * g_.step_out(1) + w.first * g_.step_out(2)};
      }
    }
  }

  /// One set of kernels for each tap of the width: they differ in how many pixels of a row see x.
  result<void> plan_kernels(const options& how) noexcept {
    const index widths = g_.axes[2].kernel;
    kernels_.reset(new (std::nothrow) kernel[static_cast<std::size_t>(widths)][2][2]);
    const auto row = static_cast<std::size_t>(g_.size_out(2));
    ones_.reset(new (std::nothrow) float[row]);
    if (!kernels_ || !ones_) return error(errc::out_of_memory, "axes", "no memory for %ld kernels", widths);
    std::fill(ones_.get(), ones_.get() + row, 1.0f);
    for (const bool full_out : {false, true}) {
      const index n = full_out ? nn::block_width(out_) : out_ % nn::block_width(out_);
      if (n == 0 || n > out_) continue;
      if (auto r = make_into(sums_[full_out], sum_desc(n), how); !r) return r;
      for (const bool full_in : {false, true}) {
        const index m = full_in ? nn::block_width(in_) : in_ % nn::block_width(in_);
        if (m == 0 || m > in_) continue;
        for (index w = 0; w < widths; ++w) {
          kernel& made = kernels_[static_cast<std::size_t>(w)][full_in][full_out];
          if (auto r = make_into(made, product_desc(w, m, n), how); !r) return r;
        }
      }
    }
    return {};
  }

  /// A is x: a row's pixels are k, its channels m. No pixel that sees x leaves k = 1 with no entry.
  desc product_desc(index tap_w, index m, index n) const noexcept {
    desc d;
    d.m = m;
    d.n = n;
    d.k = std::max<index>(outputs_through(g_.axes[2], tap_w).count, 1);
    d.layout_a = layout::transposed;
    d.lda = g_.axes[2].stride * g_.step_in(2);
    d.ldb = g_.step_out(2);
    d.ldc = out_;
    d.batch = batch_kind::offsets;
    d.beta = beta_kind::at_call;
    return d;
  }
  desc sum_desc(index n) const noexcept {
    desc d;
    d.n = n;
    d.k = g_.size_out(2);
    d.lda = d.k;
    d.ldb = g_.step_out(2);
    d.ldc = n;
    d.stride_b = g_.step_out(1);
    return d;
  }

  index groups_ = 1;
  index in_ = 1;
  index out_ = 1;
  conv_geometry g_;
  index rows_ = 1;  ///< of a band
  std::unique_ptr<planned_tap[]> taps_;
  std::unique_ptr<offset_pair[]> pairs_;
  std::unique_ptr<kernel[][2][2]> kernels_;  ///< [tap of the width][full in][full out]
  std::unique_ptr<float[]> ones_;            ///< (a row of y)
  kernel sums_[2];                           ///< [full out]
};

}  // namespace brgemm::inline abi_0::detail
