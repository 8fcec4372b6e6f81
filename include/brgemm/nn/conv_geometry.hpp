// How a convolution falls into pieces that one kernel call does: outputs in a row that see the same taps.
#pragma once

#include "../core/types.hpp"

namespace brgemm::inline abi_0::detail {

/// One spatial axis of a convolution.
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

/// Neighbouring outputs of an axis, and the taps that lie inside the input for each of them.
struct conv_run {
  index first = 0;
  index count = 1;
  index tap = 0;   ///< the first one
  index taps = 1;  ///< may be 0: padding beyond the kernel's reach
};

constexpr conv_run run_at(const conv_axis& a, index output) noexcept {
  const index start = output * a.stride - a.pad_before;
  const index lowest = start < 0 ? (-start + a.dilation - 1) / a.dilation : 0;
  const index reach = start < a.in ? (a.in - 1 - start) / a.dilation + 1 : 0;
  const index end = reach < a.kernel ? reach : a.kernel;
  return {output, 1, lowest, end > lowest ? end - lowest : 0};
}

/// Calls each(run) for the runs of an axis, in ascending order.
template <class Each>
constexpr void for_runs(const conv_axis& a, Each&& each) {
  for (index first = 0; first < a.out();) {
    conv_run run = run_at(a, first);
    for (index next = first + 1; next < a.out(); ++next, ++run.count) {
      const conv_run other = run_at(a, next);
      if (other.taps != run.taps || (other.taps != 0 && other.tap != run.tap)) break;
    }
    each(run);
    first += run.count;
  }
}

/// What one kernel call does: `m` outputs, `lda` and `ldc` elements apart, from `a` and to `c`, which count from the
/// image's first elements. All see the taps number `taps` of the plan.
struct conv_piece {
  index m = 0;
  index lda = 0;
  index ldc = 0;
  index a = 0;  ///< of the first output's first tap
  index c = 0;
  index taps = 0;
  index taps_w = 0;  ///< along the last axis
};

/// Three axes, depth, height and width, of tensors whose channels are adjacent: pixels of x are `pixel_x` elements
/// apart, those of y `pixel_y`.
struct conv_geometry {
  conv_axis axes[3];
  index pixel_x = 1;
  index pixel_y = 1;

  constexpr index step_x(int axis) const noexcept {
    index step = pixel_x;
    for (int i = 2; i > axis; --i) step *= axes[i].in;
    return step;
  }
  constexpr index step_y(int axis) const noexcept {
    index step = pixel_y;
    for (int i = 2; i > axis; --i) step *= axes[i].out();
    return step;
  }

  /// Calls each(runs) with an array of three runs for each box of outputs that see the same taps.
  template <class Each>
  constexpr void for_boxes(Each&& each) const {
    for_runs(axes[0], [&](const conv_run& d) {
      for_runs(axes[1], [&](const conv_run& h) {
        for_runs(axes[2], [&](const conv_run& w) {
          const conv_run box[3] = {d, h, w};
          each(box);
        });
      });
    });
  }

  /// Calls each(piece) for the pieces of a box, at most `most` outputs each, as equal as can be. They run along the
  /// width, or along the height where the box is higher than wide; rows that follow each other evenly are one.
  template <class Each>
  constexpr void for_pieces(const conv_run (&box)[3], index taps, index most, Each&& each) const {
    const auto& [d, h, w] = box;
    const bool even =
        step_x(1) * axes[1].stride == w.count * step_x(2) * axes[2].stride && step_y(1) == w.count * step_y(2);
    const int along = even || w.count >= h.count ? 2 : 1;
    const conv_run& across = box[3 - along];
    const index lines = even ? 1 : across.count;
    const index points = even ? w.count * h.count : box[along].count;
    const index pieces = (points + most - 1) / most;
    for (index z = 0; z < d.count; ++z) {
      for (index line = 0; line < lines; ++line) {
        for (index piece = 0; piece < pieces; ++piece) {
          const index first = points * piece / pieces;
          const index place[3] = {z, along == 2 ? line : first, along == 2 ? first : line};
          each(piece_at(box, place, along, points * (piece + 1) / pieces - first, taps));
        }
      }
    }
  }

 private:
  /// `place` counts outputs from the box's first one.
  constexpr conv_piece piece_at(const conv_run (&box)[3], const index (&place)[3], int along, index m,
                                index taps) const noexcept {
    conv_piece p;
    p.m = m;
    p.lda = axes[along].stride * step_x(along);
    p.ldc = step_y(along);
    p.taps = taps;
    p.taps_w = box[2].taps;
    for (int i = 0; i < 3; ++i) {
      const conv_axis& a = axes[i];
      // With rows as one a place can lie beyond its row: the first output's taps are counted where the box begins.
      const index origin = box[i].first * a.stride - a.pad_before + box[i].tap * a.dilation;
      p.a += (box[i].taps == 0 ? 0 : origin + place[i] * a.stride) * step_x(i);
      p.c += (box[i].first + place[i]) * step_y(i);
    }
    return p;
  }
};

}  // namespace brgemm::inline abi_0::detail
