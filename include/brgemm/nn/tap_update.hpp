// The gradient of a convolution's weights, tap by tap: each is that of a fully connected layer, whose rows are the
// pixels of y that see x through the tap.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "conv_update.hpp"
#include "gradient_product.hpp"
#include "rearrange.hpp"
#include "tiles.hpp"

namespace brgemm::inline abi_0::detail {

/// dW (groups, taps, in, out) and db (groups, out) in f32, in and out being a group's, from x and dz of f32 or bf16.
/// The pixels that see x through a tap, of all images, are one sequence, and each sum goes over it as
/// gradient_product's does, in bf16 by pairs of pixels; db's goes over all pixels.
///
/// Bands of pixels are copied into blocks first, in which the pixels of a panel of channels lie one behind the other:
/// where channels are many, they are thousands of bytes apart in x and dz, in few sets of the caches and as many pages.
class tap_update {
 public:
  /// `forward`: x is what it reads, dz has the shape of what it writes. At most `images` images.
  static result<tap_update> make(index images, index groups, index in, index out, const conv_geometry& forward,
                                 type data, const options& how) noexcept {
    tap_update u;
    u.groups_ = groups, u.in_ = in, u.out_ = out, u.data_ = data, u.g_ = forward;
    if (auto r = u.plan_views(images); !r) return r.error();
    if (auto r = u.plan_products(images, how); !r) return r.error();
    return u;
  }

  index workspace_bytes() const noexcept { return x_bytes() + nn::panels(out_) * z_.column_step * size_of(data_); }

  /// db may be null.
  void operator()(loops::executor_ref threads, index images, const void* x, const void* dz, float* dw, float* db,
                  void* workspace) const noexcept {
    char* const x_blocks = static_cast<char*>(workspace);
    char* const z_blocks = x_blocks + x_bytes();
    for (index group = 0; group < groups_; ++group) {
      const char* const from_x = static_cast<const char*>(x) + group * in_ * size_of(data_);
      const char* const from_z = static_cast<const char*>(dz) + group * out_ * size_of(data_);
      float* const sums = db == nullptr ? nullptr : db + group * out_;
      float* const to = dw + group * taps() * in_ * out_;
      for (index first = 0, end = 0; first < views_count_; first = end) {
        while (end < views_count_ && same_outputs(views_[at(first)], views_[at(end)])) ++end;
        sum_views(threads, first, end, images, from_x, from_z, to, sums, x_blocks, z_blocks);
      }
    }
  }

 private:
  /// What sees x through a tap, or through all taps of a row, which are adjacent in x as they are in dW; tap -1 is all
  /// of y: for db.
  struct tap_view {
    seen_outputs axis[3];
    index tap = 0;       ///< the first one
    index in = 0;        ///< channels, of all its taps
    bool begins = true;  ///< the sums, which others may continue
    index entry = 0;     ///< pixels of a block
    index band = 0;      ///< pixels that are copied at once, whole blocks
    index image_pixels() const noexcept { return axis[0].count * axis[1].count * axis[2].count; }
  };
  static constexpr index band_bytes = index{2} << 20;  ///< of copies
  static constexpr index least_band = 256;             ///< pixels: dW is read and written once a band
  static constexpr index most_joined = 64;             ///< channels of a joined row: one panel

  tap_update() = default;

  nn::tiling x_tiles(index in) const noexcept { return nn::column_tiling(in, blocks_ * nn::block_rows); }
  index x_bytes() const noexcept {
    const index in = joined_ ? g_.axes[2].kernel * in_ : in_;
    return nn::panels(in) * x_tiles(in).column_step * size_of(data_);
  }

  static std::size_t at(index i) noexcept { return static_cast<std::size_t>(i); }
  static bool same_outputs(const tap_view& a, const tap_view& b) noexcept {
    return std::equal(a.axis, a.axis + 3, b.axis, [](const seen_outputs& s, const seen_outputs& t) {
      return s.count == t.count && (s.count == 0 || s.first == t.first);
    });
  }

  /// Pixels of a block: as many as divide an image's, so that nothing is left; else 64. Even, for pairs.
  static constexpr index entry_of(index pixels) noexcept {
    for (index entry = nn::block_rows; entry >= nn::block_rows / 4; entry -= 2) {
      if (pixels % entry == 0) return entry;
    }
    return nn::block_rows;
  }

  result<void> plan_views(index images) noexcept {
    const conv_axis* const a = g_.axes;
    // A joined row of taps and the two edges of each, at most.
    views_.reset(new (std::nothrow) tap_view[at(3 * taps() + 1)]);
    if (!views_) return error(errc::out_of_memory, "axes", "no memory for %ld taps", taps());
    const seen_outputs inner = seen_by_all(a[2]);
    joined_ =
        groups_ == 1 && a[2].kernel > 1 && a[2].dilation == 1 && a[2].kernel * in_ <= most_joined && inner.count > 0;
    for (index i = 0; i < taps(); i += joined_ ? a[2].kernel : 1) {
      tap_view v = view_of(i);
      if (joined_) v.axis[2] = inner, v.in = a[2].kernel * in_;
      add_view(v, images);
    }
    for (const bool right : {false, true}) {
      for (index i = 0; joined_ && i < taps(); ++i) {
        tap_view v = view_of(i);
        const index end = v.axis[2].first + v.axis[2].count;
        if (right) v.axis[2] = advanced(v.axis[2], inner.first + inner.count - v.axis[2].first, a[2].stride);
        v.axis[2].count = (right ? end : inner.first) - v.axis[2].first;
        v.begins = false;
        if (v.image_pixels() > 0) add_view(v, images);
      }
    }
    tap_view all;
    for (int j = 0; j < 3; ++j) all.axis[j] = {0, a[j].out(), 0};
    all.tap = -1, all.in = in_;
    add_view(all, images);
    group_views();
    return {};
  }

  index taps() const noexcept { return g_.axes[0].kernel * g_.axes[1].kernel * g_.axes[2].kernel; }
  tap_view view_of(index tap) const noexcept {
    const conv_axis* const a = g_.axes;
    tap_view v;
    v.axis[0] = outputs_through(a[0], tap / a[2].kernel / a[1].kernel);
    v.axis[1] = outputs_through(a[1], tap / a[2].kernel % a[1].kernel);
    v.axis[2] = outputs_through(a[2], tap % a[2].kernel);
    v.tap = tap, v.in = in_;
    return v;
  }
  static constexpr seen_outputs advanced(seen_outputs s, index outputs, index stride) noexcept {
    return {s.first + outputs, s.count - outputs, s.in + outputs * stride};
  }
  /// The outputs of an axis that see x through all taps; `in` is the first tap's.
  static constexpr seen_outputs seen_by_all(const conv_axis& a) noexcept {
    const seen_outputs first = outputs_through(a, 0);
    const seen_outputs last = outputs_through(a, a.kernel - 1);
    const index begin = std::max(first.first, last.first);
    const index end = std::min(first.first + first.count, last.first + last.count);
    return {begin, std::max<index>(end - begin, 0), first.in + (begin - first.first) * a.stride};
  }
  void add_view(tap_view v, index images) noexcept {
    const index most = std::max<index>(band_bytes / ((v.in + out_) * size_of(data_)), least_band);
    const index pixels = images * v.image_pixels();
    const index bands = std::max<index>((pixels + most - 1) / most, 1);
    v.entry = entry_of(v.image_pixels());
    const index blocks = ((pixels + bands - 1) / bands + v.entry - 1) / v.entry;
    v.band = blocks * v.entry;
    blocks_ = std::max(blocks_, blocks);
    views_[at(views_count_++)] = v;
  }

  /// Views with the same outputs one behind the other: they share copies of dz.
  void group_views() noexcept {
    for (index first = 0, next = 0; first < views_count_; first = next) {
      for (index i = next = first + 1; i < views_count_; ++i) {
        if (same_outputs(views_[at(first)], views_[at(i)])) std::swap(views_[at(next++)], views_[at(i)]);
      }
    }
  }

  /// One product for views with as many pixels.
  result<void> plan_products(index images, const options& how) noexcept {
    z_ = nn::column_tiling(out_, blocks_ * nn::block_rows);
    products_.reset(new (std::nothrow) std::optional<gradient_product>[at(views_count_)]);
    if (!products_) return error(errc::out_of_memory, "axes", "no memory for %ld taps", views_count_);
    const gradient_layout to{out_, z_.ld};
    for (index i = 0; i < views_count_; ++i) {
      const tap_view& v = views_[at(i)];
      if (i > 0 && same_outputs(views_[at(i - 1)], v)) continue;  // the first one's is taken
      auto product = gradient_product::make(images * v.image_pixels(), v.in, out_, data_, math::f32, x_tiles(v.in), z_,
                                            how, &to, v.entry);
      if (!product) return product.error();
      products_[at(i)].emplace(*std::move(product));
    }
    return {};
  }

  /// The sums of views first..end-1, which share their outputs.
  void sum_views(loops::executor_ref threads, index first, index end, index images, const char* x, const char* z,
                 float* dw, float* db, char* x_blocks, char* z_blocks) const noexcept {
    const tap_view& shared = views_[at(first)];
    const gradient_product& product = *products_[at(first)];
    const index pixels = images * shared.image_pixels();
    for (index i = first; pixels == 0 && i < end; ++i) {
      std::fill_n(dw + views_[at(i)].tap * in_ * out_, views_[at(i)].in * out_, 0.0f);
    }
    for (index begin = 0; begin < pixels; begin += shared.band) {
      const index count = std::min(shared.band, pixels - begin);
      for (index i = first; i < end; ++i) {
        const tap_view& v = views_[at(i)];
        copy_band(threads, v, begin, count, v.tap >= 0 ? x : nullptr, i == first ? z : nullptr, x_blocks, z_blocks);
        if (v.tap >= 0) {
          product(threads, count, x_blocks, z_blocks, dw + v.tap * in_ * out_, nullptr, begin > 0 || !v.begins);
        } else if (db != nullptr) {
          product.sum_columns(threads, count, z_blocks, db, begin > 0);
        }
      }
    }
  }

  /// Where `count` pixels from `p` of those that `v` counts in all images lie, in elements of x or of y.
  void list_pixels(const tap_view& v, index p, index count, bool of_x, index* places) const noexcept {
    index position[4];  // image, depth, height, width
    index step[4];
    index place = 0;
    for (int i = 3; i >= 0; --i) {
      const seen_outputs& s = v.axis[std::max(i - 1, 0)];
      const conv_axis& a = g_.axes[std::max(i - 1, 0)];
      step[i] = of_x ? g_.step_in(i - 1) * (i > 0 ? a.stride : 1) : g_.step_out(i - 1);
      position[i] = i > 0 ? p % s.count : p;
      if (i > 0) p /= s.count;
      place += position[i] * step[i] + (i == 0 ? 0 : of_x ? s.in * g_.step_in(i - 1) : s.first * g_.step_out(i - 1));
    }
    for (index n = 0; n < count; ++n) {
      places[n] = place;
      int i = 3;
      place += step[i];
      while (i > 0 && ++position[i] == v.axis[i - 1].count) {
        position[i] = 0;
        place += step[i - 1] - v.axis[i - 1].count * step[i];
        --i;
      }
    }
  }

  /// x or z may be null: it is not copied.
  void copy_band(loops::executor_ref threads, const tap_view& v, index first, index count, const char* x, const char* z,
                 char* x_blocks, char* z_blocks) const noexcept {
    const index of_x = x != nullptr ? nn::panels(v.in) : 0;
    const index of_z = z != nullptr ? nn::panels(out_) : 0;
    const index size = size_of(data_);
    loops::parallel_for(threads, {of_x + of_z, (count + v.entry - 1) / v.entry}, [&](index i, index block) {
      const bool is_x = i < of_x;
      const nn::tiling t = is_x ? x_tiles(v.in) : z_;
      const index panel = is_x ? i : i - of_x;
      const index rows = extent_of_block(count, v.entry, block);
      index places[nn::block_rows];
      list_pixels(v, first + block * v.entry, rows, is_x, places);
      copy_block(rows, extent_of_block(is_x ? v.in : out_, t.ld, panel), t.ld, (is_x ? x : z) + panel * t.ld * size,
                 places, (is_x ? x_blocks : z_blocks) + t.offset(block, panel) * size, is_x);
    });
  }

  /// Row r comes from from + places[r]; bf16 is transposed (x) or has its rows in pairs (dz).
  void copy_block(index rows, index columns, index ld, const char* from, const index* places, char* to,
                  bool transposed) const noexcept {
    if (data_ == type::f32) {
      const auto bytes = static_cast<std::size_t>(columns) * sizeof(float);
      for (index r = 0; r < rows; ++r) std::memcpy(to + r * ld * 4, from + places[r] * 4, bytes);
      return;
    }
    const auto* const elements = reinterpret_cast<const std::uint16_t*>(from);
    const auto row = [elements, places](index r) BRGEMM_ALWAYS_INLINE { return elements + places[r]; };
    const index step = rows > 1 ? places[1] - places[0] : 0;
    const bool even = places[rows - 1] - places[0] == (rows - 1) * step;  // and the next block's too, most likely
    const streaming ahead{.next = even ? reinterpret_cast<const char*>(elements + places[0] + rows * step) : nullptr};
    if (transposed) {
      transpose_rows_at(row, step, reinterpret_cast<std::uint16_t*>(to), nn::block_rows, rows, columns, ahead);
    } else {
      interleave_rows_at(row, step, reinterpret_cast<std::uint32_t*>(to), ld, rows, columns, ahead);
    }
  }

  index groups_ = 1;
  index in_ = 1;
  index out_ = 1;
  type data_ = type::f32;
  conv_geometry g_;
  index views_count_ = 0;
  index blocks_ = 0;  ///< the most of a band
  bool joined_ = false;
  nn::tiling z_;
  std::unique_ptr<tap_view[]> views_;
  std::unique_ptr<std::optional<gradient_product>[]> products_;  ///< at the first view of those with the same outputs
};

}  // namespace brgemm::inline abi_0::detail
