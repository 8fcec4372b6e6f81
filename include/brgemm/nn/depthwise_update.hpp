// The gradient of a depthwise convolution's weights: taps are the rows of C, pixels are summed over.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>

#include "../kernel/kernel.hpp"
#include "../loops/row_product.hpp"
#include "conv_geometry.hpp"
#include "rearrange.hpp"

namespace brgemm::inline abi_0::detail {

/// dW (channels, taps) and db (channels), sums over x and dz. Each weight's sum is one chain, one fma a pixel that sees
/// x through the tap: over runs of columns of y that see the same taps of a row, in each over the images, then the
/// pixels in row-major order.
class depthwise_update {
 public:
  static result<depthwise_update> make(index channels, const conv_geometry& forward, type data,
                                       const options& how) noexcept {
    depthwise_update u;
    u.channels_ = channels, u.forward_ = forward, u.data_ = data;
    u.x_ = {forward.image_in(), forward.step_in(0), forward.step_in(1), forward.step_in(2)};
    u.z_ = {forward.image_out(), forward.step_out(0), forward.step_out(1), forward.step_out(2)};
    u.width_ = forward.in.depthwise_width(forward.out.depthwise_width(panel_width(channels)));
    if (auto r = u.plan_lines(); !r) return r.error();
    if (auto r = u.plan_runs(how); !r) return r.error();
    if (auto r = u.make_kernels(u.sums_, u.sum_of_pixels(), how); !r) return r.error();
    return u;
  }

  /// Of each panel dW as kernels write it, (taps, width); ones.
  index workspace_bytes() const noexcept { return (taps() * panels() + 1) * width_ * 4; }

  /// db may be null.
  void operator()(loops::executor_ref threads, index images, const void* x, const void* dz, float* dw, float* db,
                  void* workspace) const noexcept {
    const auto sums_of = [&](index panel) { return static_cast<float*>(workspace) + taps() * panel * width_; };
    float* const ones = sums_of(panels());
    if (data_ == type::f32) std::fill_n(ones, width_, 1.0f);
    if (data_ == type::bf16) std::fill_n(reinterpret_cast<bf16*>(ones), width_, to_bf16(1.0f));
    // One task sums all lines of taps, but where there are fewer panels than threads.
    const index lines = axis(0).kernel * axis(1).kernel;
    const index parts = std::min<index>(lines, (threads.threads() + panels() - 1) / panels());
    const auto write = [&](index panel) {
      const index channel = panel * width_;
      transpose_words(sums_of(panel), width_, dw + channel * taps(), taps(), taps(), width_at(channel));
    };
    loops::parallel_for(threads, {panels(), parts + (db != nullptr)}, [&](index panel, index part) {
      if (part == parts) return sum_pixels(images, dz, panel * width_, ones, db + panel * width_);
      add_panel(images, x, dz, panel * width_, {lines * part / parts, lines * (part + 1) / parts}, sums_of(panel));
      if (parts == 1) write(panel);
    });
    if (parts > 1) loops::parallel_for(threads, {panels()}, write);
  }

 private:
  static constexpr index band_bytes = 16 << 10;  ///< of dz
  static constexpr index most_taps = 12;         ///< of a call, where they are of several lines
  static constexpr index most_lines = 4;
  static constexpr index far_apart = 2048;  ///< bytes: such pixels fall on two sets of L1, which a line of taps fills

  /// Columns of y that see the same taps. Where these are not all, those of several lines are not adjacent in C: a call
  /// has one line, and all rows of y that see it.
  struct planned_run {
    conv_run columns = {};
    bool sees_all = true;
    index lines = 1;  ///< of taps that a call has at most
    index rows = 1;   ///< of y in a call that sees all; a band, where lines of taps are several calls
    kernel products[most_lines][2] = {};  ///< [lines - 1][full panel]
  };

  /// Elements from one to the next: forward_ divides to find them, which takes as long as a small call.
  struct distances {
    index image = 0, depth = 0, row = 0, pixel = 0;
  };

  depthwise_update() = default;

  /// 16, 32, 64 or 128 channels, so that panels divide blocks, and where that leaves 16 four panels, for as many
  /// threads.
  static constexpr index panel_width(index channels) noexcept {
    index width = most_depthwise;
    while (width > 16 && 4 * width > channels) width /= 2;
    return std::min(width, channels);
  }
  index width_at(index channel) const noexcept { return std::min(width_, channels_ - channel); }
  index panels() const noexcept { return (channels_ + width_ - 1) / width_; }
  const conv_axis& axis(int i) const noexcept { return forward_.axes[i]; }
  index taps() const noexcept { return axis(0).kernel * axis(1).kernel * axis(2).kernel; }
  const void* element(const void* of, index i) const noexcept {
    return static_cast<const char*>(of) + i * size_of(data_);
  }
  static std::size_t at(index i) noexcept { return static_cast<std::size_t>(i); }

  void sum_pixels(index images, const void* dz, index channel, const float* ones, float* db) const noexcept {
    std::fill_n(db, width_at(channel), 0.0f);
    for (index image = 0; image < images; ++image) {
      const void* const from = element(dz, image * z_.image + forward_.channel_out(channel));
      sums_[width_at(channel) == width_]({.a = ones, .b = from, .c = db, .batch = forward_.pixels_out()});
    }
  }

  /// Lines of taps.
  struct stretch {
    index first, end;
  };
  /// The sums of some lines, (taps, width_).
  void add_panel(index images, const void* x, const void* dz, index channel, stretch lines,
                 float* sums) const noexcept {
    x = element(x, forward_.channel_in(channel)), dz = element(dz, forward_.channel_out(channel));
    const index row = axis(2).kernel * width_;
    std::fill_n(sums + lines.first * row, (lines.end - lines.first) * row, 0.0f);
    for (index r = 0; r < runs_count_; ++r) {
      for (index image = 0; image < images; ++image) {
        add_image(runs_[at(r)], lines, element(x, image * x_.image), element(dz, image * z_.image), sums,
                  width_at(channel) == width_);
      }
    }
  }

  /// What one image adds to a panel. Where pixels see all taps of a row and lines are several calls, all of them for a
  /// band of rows of y, which stays in L1.
  void add_image(const planned_run& run, stretch lines, const void* x, const void* dz, float* sums,
                 bool full) const noexcept {
    const index height = axis(1).kernel;
    arguments call;  // once: clearing it takes as long as a small call
    const index depth = axis(0).out();
    for (index d = 0; d < depth; ++d) {
      for (index tap = lines.first / height; tap * height < lines.end; ++tap) {
        const seen_outputs& depths = depths_[at(tap)];
        if (d < depths.first || d >= depths.first + depths.count) continue;
        const void* const of_x = element(x, (depths.in + (d - depths.first) * axis(0).stride) * x_.depth);
        const void* const of_dz = element(dz, d * z_.depth);
        float* const c = sums + (tap * height * axis(2).kernel + run.columns.tap) * width_;
        const stretch of_tap{std::max<index>(lines.first - tap * height, 0),
                             std::min(lines.end - tap * height, height)};
        if (!run.sees_all) add_lines(run, of_tap, of_x, of_dz, c, full, call);
        for (index r = 0; r < rows_count_ && run.sees_all; ++r) {
          add_rows(run, rows_[at(r)], of_tap, of_x, of_dz, c, full, call);
        }
      }
    }
  }

  /// What all rows of y add to some lines, one by one.
  void add_lines(const planned_run& run, stretch lines, const void* x, const void* dz, float* sums, bool full,
                 arguments& call) const noexcept {
    for (index line = lines.first; line < lines.end; ++line) {
      const seen_outputs& rows = heights_[at(line)];
      if (rows.count == 0) continue;
      call.a = element(x, rows.in * x_.row + run.columns.in * x_.pixel);
      call.b = element(dz, rows.first * z_.row + run.columns.first * z_.pixel);
      call.c = sums + line * axis(2).kernel * width_;
      call.batch = rows.count;
      run.products[0][full](call);
    }
  }

  /// What rows of y that see the same lines of taps add to those of `lines`.
  void add_rows(const planned_run& run, const conv_run& rows, stretch lines, const void* x, const void* dz, float* sums,
                bool full, arguments& call) const noexcept {
    const conv_run& w = run.columns;
    const index end = std::min(rows.taps, lines.end - rows.tap);
    for (index row = 0; row < rows.count; row += run.rows) {
      for (index line = std::max<index>(0, lines.first - rows.tap); line < end; line += run.lines) {
        const index in = rows.in + row * rows.in_step + line * rows.in_tap_step;
        call.a = element(x, in * x_.row + w.in * x_.pixel);
        call.b = element(dz, (rows.first + row) * z_.row + w.first * z_.pixel);
        call.c = sums + (rows.tap + line) * w.taps * width_;
        call.batch = std::min(run.rows, rows.count - row);
        run.products[std::min(run.lines, end - line) - 1][full](call);
      }
    }
  }

  /// The lines of taps: what sees them along depth and height.
  result<void> plan_lines() noexcept {
    depths_.reset(new (std::nothrow) seen_outputs[at(axis(0).kernel)]);
    heights_.reset(new (std::nothrow) seen_outputs[at(axis(1).kernel)]);
    index count = 0;
    for_forward_runs(axis(1), [&](const conv_run& r) { count += r.taps > 0; });
    rows_.reset(new (std::nothrow) conv_run[at(count + 1)]);
    if (!depths_ || !heights_ || !rows_) {
      return error(errc::out_of_memory, "axes", "no memory for %ld and %ld taps and %ld runs of the height",
                   axis(0).kernel, axis(1).kernel, count);
    }
    for (index i = 0; i < axis(0).kernel; ++i) depths_[at(i)] = outputs_through(axis(0), i);
    for (index i = 0; i < axis(1).kernel; ++i) heights_[at(i)] = outputs_through(axis(1), i);
    for_forward_runs(axis(1), [&](const conv_run& r) {
      if (r.taps > 0) rows_[at(rows_count_++)] = r;
    });
    return {};
  }

  result<void> plan_runs(const options& how) noexcept {
    index count = 0;
    for_forward_runs(axis(2), [&](const conv_run& r) { count += r.taps > 0; });
    runs_.reset(new (std::nothrow) planned_run[at(count + 1)]);
    if (!runs_) return error(errc::out_of_memory, "axes", "no memory for %ld runs of the width", count);
    result<void> made;
    for_forward_runs(axis(2), [&](const conv_run& r) {
      if (r.taps > 0 && made) made = plan_run(runs_[at(runs_count_++)], r, how);
    });
    return made;
  }

  /// Kernels for several lines of taps where that is a desc of its backend.
  result<void> plan_run(planned_run& run, const conv_run& columns, const options& how) noexcept {
    run.columns = columns;
    run.sees_all = columns.taps == axis(2).kernel;
    const index taps_apart = distance_of_taps();
    const bool even = taps_apart == axis(2).dilation && axis(1).dilation * axis(2).in % taps_apart == 0;
    const bool few_sets = x_.pixel * size_of(data_) % far_apart == 0;
    const index most = std::min(axis(1).kernel, most_lines);
    if (run.sees_all && even && !few_sets) run.lines = std::clamp<index>(most_taps / columns.taps, 1, most);
    if (run.lines > 1 && loses_backend(product(columns, run.lines), product(columns, 1), how)) run.lines = 1;
    const index band = std::max<index>(band_bytes / (columns.count * width_ * size_of(data_)), 1);
    run.rows = run.lines == axis(1).kernel ? axis(1).out() : std::min(band, axis(1).out());
    for (index lines = 1; lines <= run.lines; ++lines) {
      if (auto r = make_kernels(run.products[lines - 1], product(columns, lines), how); !r) return r;
    }
    return {};
  }

  /// Pixels from one row of A to the next: those between taps, or 1 where a stride is no whole number of them.
  index distance_of_taps() const noexcept { return axis(2).stride % axis(2).dilation == 0 ? axis(2).dilation : 1; }

  /// C (lines of taps, channels of a full panel) += sum over rows of y, the entries, and their pixels: A the inputs
  /// that a pixel sees, B the pixel.
  desc product(const conv_run& columns, index lines) const noexcept {
    const index taps_apart = distance_of_taps();
    desc d = sum_of_pixels();
    d.m = lines * columns.taps;
    d.k = columns.count;
    d.lda = taps_apart * x_.pixel;
    if (lines > 1) {
      d.line = static_cast<std::uint32_t>(columns.taps);
      d.line_step = axis(1).dilation * axis(2).in / taps_apart;
    } else if (taps_apart != axis(2).dilation) {
      d.line = 1, d.line_step = axis(2).dilation;
    }
    if (d.k > 1) d.k_step = static_cast<std::uint32_t>(axis(2).stride / taps_apart);
    d.stride_a = axis(1).stride * x_.row;
    d.stride_b = z_.row;
    return d;
  }
  /// C (1, channels of a full panel) += sum of pixels of y times A, the same for all.
  desc sum_of_pixels() const noexcept {
    desc d;
    d.n = d.lda = d.ldc = width_;
    d.ldb = d.stride_b = z_.pixel;
    d.a = d.b = data_;
    d.layout_a = layout::depthwise;
    d.beta = beta_kind::one;
    return d;
  }
  result<void> make_kernels(kernel (&made)[2], desc d, const options& how) noexcept {
    if (auto r = make_into(made[1], d, how); !r) return r;
    d.n = channels_ % width_;
    return d.n == 0 ? result<void>() : make_into(made[0], d, how);
  }

  index channels_ = 1;
  index width_ = 1;  ///< of a panel
  conv_geometry forward_;
  type data_ = type::f32;
  distances x_, z_;
  index rows_count_ = 0;
  index runs_count_ = 0;
  std::unique_ptr<seen_outputs[]> depths_;   ///< of each tap of the depth
  std::unique_ptr<seen_outputs[]> heights_;  ///< and of the height
  std::unique_ptr<conv_run[]> rows_;         ///< of y that see the same lines of taps
  std::unique_ptr<planned_run[]> runs_;
  kernel sums_[2];  ///< [full panel]
};

}  // namespace brgemm::inline abi_0::detail
