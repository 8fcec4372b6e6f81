// How a convolution falls into pieces that one kernel call does: outputs at even distances that see the same taps.
// Forward and backward by data differ in the runs of an axis only.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>

#include "../core/desc.hpp"
#include "../core/result.hpp"
#include "../core/types.hpp"
#include "../loops/blocks.hpp"

namespace brgemm::inline abi_0::detail {

/// One spatial axis of a convolution: y[o] = sum over t of x[o * stride - pad_before + t * dilation] * w[t].
struct conv_axis {
  index in = 1;
  index kernel = 1;
  index stride = 1;
  index dilation = 1;
  index pad_before = 0;
  index pad_after = 0;
  constexpr index out() const noexcept {
    return (in + pad_before + pad_after - dilation * (kernel - 1) - 1) / stride + 1;
  }
  friend constexpr bool operator==(const conv_axis&, const conv_axis&) = default;
};

constexpr const char* name_of_axis(int i) noexcept {
  constexpr const char* names[3] = {"axes[0]", "axes[1]", "axes[2]"};
  return names[i];
}

/// Axis i of a desc: sizes in their ranges, and a window that fits x and its padding.
inline result<void> check_axis(const conv_axis& a, int i) noexcept {
  const struct {
    const char* name;
    index value;
    index least;
  } fields[] = {{"in", a.in, 1},
                {"kernel", a.kernel, 1},
                {"stride", a.stride, 1},
                {"dilation", a.dilation, 1},
                {"pad_before", a.pad_before, 0},
                {"pad_after", a.pad_after, 0}};
  for (const auto& f : fields) {
    if (f.value >= f.least && f.value <= index{1} << 29) continue;
    return error(errc::invalid_argument, name_of_axis(i), "%s.%s is %ld; it must be in %ld..2^29", name_of_axis(i),
                 f.name, f.value, f.least);
  }
  const index extent = a.dilation * (a.kernel - 1) + 1;
  if (extent <= a.in + a.pad_before + a.pad_after) return {};
  return error(errc::invalid_argument, name_of_axis(i),
               "%s: a kernel of %ld with dilation %ld spans %ld, more than %ld and its padding of %ld and %ld",
               name_of_axis(i), a.kernel, a.dilation, extent, a.in, a.pad_before, a.pad_after);
}

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

/// Outputs first + j * out_step, j < count. They see the taps tap + n * tap_step, n < taps, which may be none, at the
/// inputs in + j * in_step + n * in_tap_step. Backward by data the outputs are x, the inputs dy.
struct conv_run {
  index first = 0;
  index out_step = 1;
  index count = 1;
  index tap = 0;
  index tap_step = 1;
  index taps = 0;
  index in = 0;
  index in_step = 1;
  index in_tap_step = 1;
};

/// For one output: the taps n of `total`, at inputs base + n * step, that lie in 0..size-1.
constexpr conv_run seen_taps(conv_run r, index base, index step, index total, index size) noexcept {
  const index up = step > 0 ? step : -step;
  const index from_zero = step > 0 ? base : size - 1 - base;  // of n = 0, counted in the direction of the taps
  const index lowest = from_zero < 0 ? (-from_zero + up - 1) / up : 0;
  const index reach = from_zero < size ? (size - 1 - from_zero) / up + 1 : 0;
  const index end = reach < total ? reach : total;
  r.taps = end > lowest ? end - lowest : 0;
  if (r.taps == 0) return r;
  r.tap += lowest * r.tap_step;
  r.in = base + lowest * step;
  r.in_tap_step = step;
  return r;
}

constexpr bool sees_the_same(const conv_run& x, const conv_run& y) noexcept {
  return x.taps == y.taps && (x.taps == 0 || x.tap == y.tap);
}

/// Outputs that follow each other, with all taps that any of them sees, and which of them see each tap: none where all
/// see all. run.in is the input of the first output's first tap, which may lie outside.
struct conv_line {
  conv_run run;
  row_range rows[max_row_ranges] = {};
};

/// Calls each(run) for the runs of x's axis in y, in ascending order.
template <class Each>
constexpr void for_forward_runs(const conv_axis& a, Each&& each) {
  const auto run_at = [&](index o) {
    conv_run r;
    r.first = o;
    r.in_step = a.stride;
    return seen_taps(r, o * a.stride - a.pad_before, a.dilation, a.kernel, a.in);
  };
  for (index o = 0; o < a.out();) {
    conv_run r = run_at(o);
    while (++o < a.out() && sees_the_same(r, run_at(o))) ++r.count;
    each(r);
  }
}

/// The same for y's axis in x, backward by data: dx[i] = sum over o * stride + t * dilation = i + pad_before of
/// dy[o] * w[t]. Every stride-th i has the same taps, every (stride / g)-th one, g = gcd(stride, dilation).
template <class Each>
constexpr void for_backward_runs(const conv_axis& a, Each&& each) {
  const index g = std::gcd(a.stride, a.dilation);
  const index tap_step = a.stride / g;
  for (index phase = 0; phase < a.stride && phase < a.in; ++phase) {
    index tap = 0;
    while (tap < a.kernel && (phase + a.pad_before - tap * a.dilation) % a.stride != 0) ++tap;
    const index total = tap < a.kernel ? (a.kernel - 1 - tap) / tap_step + 1 : 0;
    const auto run_at = [&](index i) {
      conv_run r;
      r.first = i;
      r.out_step = a.stride;
      r.tap = tap;
      r.tap_step = tap_step;
      return seen_taps(r, (i + a.pad_before - tap * a.dilation) / a.stride, -(a.dilation / g), total, a.out());
    };
    for (index i = phase; i < a.in;) {
      conv_run r = run_at(i);
      while ((i += a.stride) < a.in && sees_the_same(r, run_at(i))) ++r.count;
      each(r);
    }
  }
}

/// What one kernel call does: `m` outputs, `lda` and `ldc` elements apart, from `a` and to `c`, which count from the
/// image's first elements; `a` is 0 where no tap is seen.
struct conv_piece {
  index m = 0;
  index lda = 0;
  index ldc = 0;
  index a = 0;  ///< of the first output's first tap
  index c = 0;
  index taps = 0;                       ///< of all axes
  index taps_w = 0;                     ///< of the last one
  index tap_a = 0;                      ///< from one of those to the next in what is read
  index tap_b = 1;                      ///< and in the weights, in taps
  row_range rows[max_row_ranges] = {};  ///< of each tap of the width, where not all outputs see it
};

/// How the channels of a tensor lie: those of a pixel adjacent (NHWC), or in blocks, an image of each (NCHWc).
struct conv_channels {
  index count = 1;
  index block = 0;  ///< channels of a block; 0: there are none
  /// Elements from a pixel to the next.
  constexpr index pixel() const noexcept { return block > 0 ? block : count; }
  constexpr index blocks() const noexcept { return (count + pixel() - 1) / pixel(); }
  /// Columns of a panel of `channels` of them: those of one block.
  constexpr index panel_width(index channels) const noexcept {
    return block > 0 && channels > block ? block : loops::block_width(channels);
  }
  /// Columns of a depthwise panel of up to `width` channels.
  constexpr index depthwise_width(index width) const noexcept { return block > 0 ? std::min(width, block) : width; }
  /// Whether the channels of a group fill blocks or divide one.
  constexpr bool fit_groups(index groups) const noexcept {
    return groups == 1 || count / groups % pixel() == 0 || pixel() % (count / groups) == 0;
  }
};

/// Channels that one depthwise call has at most.
inline constexpr index most_depthwise = 128;

/// Three axes, depth, height and width, of tensors whose channels lie as `in` and `out` say: what is read and what is
/// written.
struct conv_geometry {
  conv_axis axes[3];
  bool backward = false;
  conv_channels in;
  conv_channels out;

  constexpr index size_in(int axis) const noexcept { return backward ? axes[axis].out() : axes[axis].in; }
  constexpr index size_out(int axis) const noexcept { return backward ? axes[axis].in : axes[axis].out(); }
  constexpr index pixels_in() const noexcept { return size_in(0) * size_in(1) * size_in(2); }
  constexpr index pixels_out() const noexcept { return size_out(0) * size_out(1) * size_out(2); }
  /// Elements from a pixel to the next one along an axis.
  constexpr index step_in(int axis) const noexcept {
    index step = in.pixel();
    for (int i = 2; i > axis; --i) step *= size_in(i);
    return step;
  }
  constexpr index step_out(int axis) const noexcept {
    index step = out.pixel();
    for (int i = 2; i > axis; --i) step *= size_out(i);
    return step;
  }
  constexpr index image_in() const noexcept { return in.blocks() * in.pixel() * pixels_in(); }
  constexpr index image_out() const noexcept { return out.blocks() * out.pixel() * pixels_out(); }
  /// Where a channel of an image's first pixel is.
  constexpr index channel_in(index c) const noexcept {
    return c / in.pixel() * in.pixel() * pixels_in() + c % in.pixel();
  }
  constexpr index channel_out(index c) const noexcept {
    return c / out.pixel() * out.pixel() * pixels_out() + c % out.pixel();
  }

  template <class Each>
  constexpr void for_runs(int axis, Each&& each) const {
    backward ? for_backward_runs(axes[axis], each) : for_forward_runs(axes[axis], each);
  }

  /// Calls each(runs) with an array of three runs for each box of outputs that see the same taps.
  template <class Each>
  constexpr void for_boxes(Each&& each) const {
    for_runs(0, [&](const conv_run& d) {
      for_runs(1, [&](const conv_run& h) {
        for_runs(2, [&](const conv_run& w) {
          const conv_run box[3] = {d, h, w};
          each(box);
        });
      });
    });
  }

  /// Calls each(piece) for the pieces of a box, at most `most` outputs each, as equal as can be. They run along the
  /// width, or along the height where the box is higher than wide; rows that follow each other evenly are one.
  template <class Each>
  constexpr void for_pieces(const conv_run (&box)[3], index most, Each&& each) const {
    const auto& [d, h, w] = box;
    const bool even = h.in_step * step_in(1) == w.count * w.in_step * step_in(2) &&
                      h.out_step * step_out(1) == w.count * w.out_step * step_out(2);
    const int along = even || w.count >= h.count ? 2 : 1;
    const index lines = even ? 1 : box[3 - along].count;
    const index points = even ? w.count * h.count : box[along].count;
    const index pieces = (points + most - 1) / most;
    for (index z = 0; z < d.count; ++z) {
      for (index line = 0; line < lines; ++line) {
        for (index piece = 0; piece < pieces; ++piece) {
          const index first = points * piece / pieces;
          const index place[3] = {z, along == 2 ? line : first, along == 2 ? first : line};
          each(piece_at(box, place, along, points * (piece + 1) / pieces - first));
        }
      }
    }
  }

  /// Calls each(runs, rows) for each box of lines; false as for_lines.
  template <class Each>
  constexpr bool for_line_boxes(Each&& each) const {
    bool fits = true;
    for_runs(0, [&](const conv_run& d) {
      for_runs(1, [&](const conv_run& h) {
        if (!fits) return;
        fits = for_lines([&](const conv_line& line) {
          const conv_run box[3] = {d, h, line.run};
          each(box, line.rows);
        });
      });
    });
    return fits;
  }
  /// Calls each(piece) for the lines of such a box.
  template <class Each>
  constexpr void for_lines_of(const conv_run (&box)[3], const row_range (&rows)[max_row_ranges], Each&& each) const {
    for (index z = 0; z < box[0].count; ++z) {
      for (index y = 0; y < box[1].count; ++y) {
        const index place[3] = {z, y, 0};
        conv_piece p = piece_at(box, place, 2, box[2].count);
        std::copy(std::begin(rows), std::end(rows), p.rows);
        each(p);
      }
    }
  }

  /// Calls each(line) for the runs of the width, those with the same steps that follow each other as one; false where a
  /// line has more taps than can be told apart.
  template <class Each>
  constexpr bool for_lines(Each&& each) const {
    conv_run all;  // of the runs so far, with the taps that any output sees
    bool fits = true;
    bool begun = false;
    for_runs(2, [&](const conv_run& r) {
      const bool follows = begun && r.taps > 0 && all.taps > 0 && r.out_step == all.out_step &&
                           r.first == all.first + all.count * all.out_step && r.tap_step == all.tap_step &&
                           r.in_tap_step == all.in_tap_step;
      if (!follows) {
        if (begun && fits) fits = give_line(all, each);
        all = r, begun = true;
        return;
      }
      // Of the first output, and of its first tap.
      const index before = std::max<index>(0, (all.tap - r.tap) / all.tap_step);
      const index behind = std::max<index>(0, (r.tap - all.tap) / all.tap_step + r.taps - all.taps);
      all.tap -= before * all.tap_step;
      all.in -= before * all.in_tap_step;
      all.taps += before + behind;
      all.count += r.count;
    });
    return fits && (!begun || give_line(all, each));
  }

 private:
  /// Calls each(line) for the outputs of `all`; false where they are more, or see more taps, than ranges can tell.
  template <class Each>
  constexpr bool give_line(const conv_run& all, Each&& each) const {
    conv_line line;
    line.run = all;
    line.run.taps = 0;
    const index count = all.count;
    if (count > std::numeric_limits<std::uint8_t>::max()) return false;
    bool ended = false;
    for (index n = 0; n < all.taps; ++n) {
      const index in = all.in + n * all.in_tap_step;  // of the line's first output
      const index lowest = std::clamp<index>(in < 0 ? (-in + all.in_step - 1) / all.in_step : 0, 0, count);
      const index end = std::clamp<index>(in < size_in(2) ? (size_in(2) - 1 - in) / all.in_step + 1 : 0, lowest, count);
      if (lowest == end) {
        ended = line.run.taps > 0;
        if (!ended) line.run.tap += all.tap_step, line.run.in += all.in_tap_step;
        continue;
      }
      if (ended || line.run.taps == max_row_ranges) return false;
      line.rows[line.run.taps++] = {static_cast<std::uint8_t>(lowest), static_cast<std::uint8_t>(end)};
    }
    const row_range whole = {0, static_cast<std::uint8_t>(count)};
    if (std::all_of(line.rows, line.rows + line.run.taps, [&](const row_range& r) { return r == whole; })) {
      for (row_range& r : line.rows) r = {};
    }
    each(line);
    return true;
  }

  /// `place` counts outputs of the runs; with rows as one it can lie beyond the end of its row.
  constexpr conv_piece piece_at(const conv_run (&box)[3], const index (&place)[3], int along, index m) const noexcept {
    conv_piece p;
    p.m = m;
    p.lda = box[along].in_step * step_in(along);
    p.ldc = box[along].out_step * step_out(along);
    p.taps = box[0].taps * box[1].taps * box[2].taps;
    p.taps_w = box[2].taps;
    p.tap_a = box[2].in_tap_step * step_in(2);
    p.tap_b = box[2].tap_step;
    for (int i = 0; i < 3; ++i) {
      if (p.taps > 0) p.a += (box[i].in + place[i] * box[i].in_step) * step_in(i);
      p.c += (box[i].first + place[i] * box[i].out_step) * step_out(i);
    }
    return p;
  }
};

}  // namespace brgemm::inline abi_0::detail
