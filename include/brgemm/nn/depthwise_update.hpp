// The gradient of a depthwise convolution's weights: taps of a row are the rows of C, pixels are summed over.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>

#include "../kernel/kernel.hpp"
#include "../loops/row_product.hpp"
#include "conv_geometry.hpp"
#include "rearrange.hpp"

namespace brgemm::inline abi_0::detail {

/// dW (channels, taps) and db (channels), sums over x and dz. Each weight's sum
/// is one chain, one fma a pixel that sees x through the tap: over runs of columns of y that see the same taps of a
/// row, in each over the images, then the pixels in row-major order.
class depthwise_update {
 public:
  static result<depthwise_update> make(index channels, const conv_geometry& forward, type data,
                                       const options& how) noexcept {
    depthwise_update u;
    u.channels_ = channels, u.forward_ = forward, u.data_ = data;
    u.width_ = forward.in.depthwise_width(forward.out.depthwise_width(std::min(channels, most_depthwise)));
    if (auto r = u.plan_runs(how); !r) return r.error();
    if (auto r = u.plan_kernel(u.sums_, {1, 1}, {batch_kind::strides, 0, forward.out.pixel()}, how); !r)
      return r.error();
    return u;
  }

  /// dW as kernels write it, (taps, channels), and ones.
  index workspace_bytes() const noexcept { return (taps() * channels_ + width_) * 4; }

  /// db may be null.
  void operator()(loops::executor_ref threads, index images, const void* x, const void* dz, float* dw, float* db,
                  void* workspace) const noexcept {
    auto* const sums = static_cast<float*>(workspace);
    float* const ones = sums + taps() * channels_;
    if (data_ == type::f32) std::fill_n(ones, width_, 1.0f);
    if (data_ == type::bf16) std::fill_n(reinterpret_cast<bf16*>(ones), width_, to_bf16(1.0f));
    const index panels = (channels_ + width_ - 1) / width_;
    const index lines = axis(0).kernel * axis(1).kernel;
    // One task sums all lines of taps, for bands of y that stay in L1, but where there are fewer panels than threads.
    const index parts = std::min<index>(lines, (threads.threads() + panels - 1) / panels);
    loops::parallel_for(threads, {panels, parts + (db != nullptr)}, [&](index panel, index part) {
      const index channel = panel * width_;
      const index width = std::min(width_, channels_ - channel);
      if (part == parts) return sum_pixels(images, dz, channel, ones, db + channel, width);
      const index first = lines * part / parts;
      const index end = lines * (part + 1) / parts;
      clear(sums + first * axis(2).kernel * channels_ + channel, channels_, (end - first) * axis(2).kernel, width);
      for (index r = 0; r < runs_count_; ++r) {
        for (index image = 0; image < images; ++image) {
          const void* const of_x = element(x, image * forward_.image_in() + forward_.channel_in(channel));
          const void* const of_dz = element(dz, image * forward_.image_out() + forward_.channel_out(channel));
          add_image(runs_[at(r)], first, end, of_x, of_dz, sums + channel, width);
        }
      }
    });
    loops::parallel_for(threads, {panels}, [&](index panel) {
      const index channel = panel * width_;
      transpose_words(sums + channel, channels_, dw + channel * taps(), taps(), taps(),
                      std::min(width_, channels_ - channel));
    });
  }

 private:
  static constexpr index band_bytes = 16 << 10;      ///< of dz and of a list
  static constexpr index short_row_bytes = 4 << 10;  ///< below it a call a row costs more than a list's entries

  /// Columns of y that see the same taps. Where pixels are as far apart as taps, rows are the entries of a call and
  /// their pixels k. Else each pixel is an entry: those of one row by strides, or, where rows are short, those of
  /// several rows by a list.
  struct planned_run {
    conv_run columns;
    index rows = 1;  ///< of y, which all lines of taps read before the next ones
    index entries_a_row = 1;
    std::unique_ptr<offset_pair[]> pixels;  ///< (rows, columns.count), or none
    kernel products[2];                     ///< [full panel]
  };
  /// The outputs that see a line of taps, along depth and height.
  struct planned_line {
    seen_outputs depths;
    seen_outputs rows;
  };

  depthwise_update() = default;

  const conv_axis& axis(int i) const noexcept { return forward_.axes[i]; }
  index taps() const noexcept { return axis(0).kernel * axis(1).kernel * axis(2).kernel; }
  const void* element(const void* of, index i) const noexcept {
    return static_cast<const char*>(of) + i * size_of(data_);
  }
  static std::size_t at(index i) noexcept { return static_cast<std::size_t>(i); }

  static void clear(float* rows, index ld, index count, index width) noexcept {
    for (index i = 0; i < count; ++i) std::fill_n(rows + i * ld, width, 0.0f);
  }

  void sum_pixels(index images, const void* dz, index channel, const float* ones, float* db,
                  index width) const noexcept {
    std::fill_n(db, width, 0.0f);
    for (index image = 0; image < images; ++image) {
      const void* const from = element(dz, image * forward_.image_out() + forward_.channel_out(channel));
      sums_[width == width_]({.a = ones, .b = from, .c = db, .batch = forward_.pixels_out()});
    }
  }

  /// What one image adds to the lines of taps from `first` to `end` - 1 of a panel: lines in turn for a band of rows of
  /// y, which stays in L1.
  void add_image(const planned_run& run, index first, index end, const void* x, const void* dz, float* sums,
                 index width) const noexcept {
    const index rows = axis(1).out();
    for (index d = 0; d < axis(0).out(); ++d) {
      for (index row = 0; row < rows; row += run.rows) {
        for (index line = first; line < end; ++line) {
          add_rows(run, line, d, {row, std::min(row + run.rows, rows)}, x, dz, sums, width);
        }
      }
    }
  }

  struct stretch {
    index begin, end;
  };
  /// What the rows of y of depth `d` add to a line of taps.
  void add_rows(const planned_run& run, index line, index d, stretch of_y, const void* x, const void* dz, float* sums,
                index width) const noexcept {
    const conv_run& w = run.columns;
    const auto& [depths, rows] = lines_[at(line)];
    const index begin = std::max(of_y.begin, rows.first);
    const index end = std::min(of_y.end, rows.first + rows.count);
    if (d < depths.first || d >= depths.first + depths.count || begin >= end) return;
    const index from = (depths.in + (d - depths.first) * axis(0).stride) * forward_.step_in(0) +
                       (rows.in + (begin - rows.first) * axis(1).stride) * forward_.step_in(1) +
                       w.in * forward_.step_in(2);
    const index of_z = d * forward_.step_out(0) + begin * forward_.step_out(1) + w.first * forward_.step_out(2);
    arguments call;
    call.a = element(x, from);
    call.b = element(dz, of_z);
    call.c = sums + (line * axis(2).kernel + w.tap) * channels_;
    call.pairs = run.pixels.get();
    call.batch = (end - begin) * run.entries_a_row;
    run.products[width == width_](call);
  }

  result<void> plan_runs(const options& how) noexcept {
    index count = 0;
    for_forward_runs(axis(2), [&](const conv_run& r) { count += r.taps > 0; });
    runs_.reset(new (std::nothrow) planned_run[at(count + 1)]);
    if (!runs_) return error(errc::out_of_memory, "axes", "no memory for %ld runs of the width", count);
    const index lines = axis(0).kernel * axis(1).kernel;
    lines_.reset(new (std::nothrow) planned_line[at(lines)]);
    if (!lines_) return error(errc::out_of_memory, "axes", "no memory for %ld lines of taps", lines);
    for (index i = 0; i < lines; ++i) {
      lines_[at(i)] = {outputs_through(axis(0), i / axis(1).kernel), outputs_through(axis(1), i % axis(1).kernel)};
    }
    result<void> made;
    for_forward_runs(axis(2), [&](const conv_run& r) {
      if (r.taps > 0 && made) made = plan_run(runs_[at(runs_count_++)], r, how);
    });
    return made;
  }

  result<void> plan_run(planned_run& run, const conv_run& columns, const options& how) noexcept {
    run.columns = columns;
    const bool by_rows = columns.count == 1 || axis(2).stride == axis(2).dilation;
    const index row_bytes = columns.count * width_ * size_of(data_);
    const index listed_bytes = by_rows ? 0 : columns.count * static_cast<index>(sizeof(offset_pair));
    const index rows = std::clamp<index>(band_bytes / (row_bytes + listed_bytes), 1, axis(1).out());
    const index step_x = axis(1).stride * forward_.step_in(1);
    if (by_rows) {
      run.rows = rows;
      const entries of_rows{batch_kind::strides, step_x, forward_.step_out(1)};
      return plan_kernel(run.products, {columns.taps, columns.count}, of_rows, how);
    }
    run.entries_a_row = columns.count;
    if (row_bytes >= short_row_bytes || rows == 1) {
      const entries of_pixels{batch_kind::strides, axis(2).stride * forward_.step_in(2), forward_.step_out(2)};
      return plan_kernel(run.products, {columns.taps, 1}, of_pixels, how);
    }
    run.rows = rows;
    run.pixels.reset(new (std::nothrow) offset_pair[at(run.rows * columns.count)]);
    if (!run.pixels) {
      return error(errc::out_of_memory, "axes", "no memory for %ld rows of %ld pixels", run.rows, columns.count);
    }
    for (index i = 0; i < run.rows * columns.count; ++i) {
      const index row = i / columns.count, column = i % columns.count;
      run.pixels[at(i)] = {row * step_x + column * axis(2).stride * forward_.step_in(2),
                           row * forward_.step_out(1) + column * forward_.step_out(2)};
    }
    return plan_kernel(run.products, {columns.taps, 1}, {batch_kind::offsets}, how);
  }

  struct shape {
    index taps;
    index pixels;
  };
  /// Where the entries of a call lie.
  struct entries {
    batch_kind kind;
    index stride_x = 0;
    index stride_z = 0;
  };
  /// C (taps of a row, channels) += sum of pixels: A the inputs that a pixel sees, B the pixel.
  result<void> plan_kernel(kernel (&made)[2], shape s, entries e, const options& how) noexcept {
    for (const bool full : {false, true}) {
      desc d;
      d.m = s.taps;
      d.n = full ? width_ : channels_ % width_;
      if (d.n == 0) continue;
      d.k = s.pixels;
      d.lda = axis(2).dilation * forward_.in.pixel();
      d.ldb = forward_.out.pixel();
      d.ldc = channels_;
      d.batch = e.kind;
      d.stride_a = e.stride_x, d.stride_b = e.stride_z;
      d.a = d.b = data_;
      d.layout_a = layout::depthwise;
      d.beta = beta_kind::one;
      if (auto r = make_into(made[full], d, how); !r) return r;
    }
    return {};
  }

  index channels_ = 1;
  index width_ = 1;  ///< of a panel
  conv_geometry forward_;
  type data_ = type::f32;
  index runs_count_ = 0;
  std::unique_ptr<planned_run[]> runs_;
  std::unique_ptr<planned_line[]> lines_;
  kernel sums_[2];  ///< [full panel]
};

}  // namespace brgemm::inline abi_0::detail
