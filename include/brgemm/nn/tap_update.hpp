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

  index workspace_bytes() const noexcept {
    return (nn::panels(in_) * x_.column_step + nn::panels(out_) * z_.column_step) * size_of(data_);
  }

  /// db may be null.
  void operator()(loops::executor_ref threads, index images, const void* x, const void* dz, float* dw, float* db,
                  void* workspace) const noexcept {
    char* const x_blocks = static_cast<char*>(workspace);
    char* const z_blocks = x_blocks + nn::panels(in_) * x_.column_step * size_of(data_);
    const index taps = views_count_ - 1;
    for (index group = 0; group < groups_; ++group) {
      const char* const from_x = static_cast<const char*>(x) + group * in_ * size_of(data_);
      const char* const from_z = static_cast<const char*>(dz) + group * out_ * size_of(data_);
      float* const sums = db == nullptr ? nullptr : db + group * out_;
      float* const to = dw + group * taps * in_ * out_;
      for (index first = 0, end = 0; first < views_count_; first = end) {
        while (end < views_count_ && same_outputs(views_[at(first)], views_[at(end)])) ++end;
        sum_views(threads, first, end, images, from_x, from_z, to, sums, x_blocks, z_blocks);
      }
    }
  }

 private:
  /// What sees x through a tap; the last one, tap -1, is all of y: for db.
  struct tap_view {
    seen_outputs axis[3];
    index tap = 0;
    index entry = 0;  ///< pixels of a block
    index band = 0;   ///< pixels that are copied at once, whole blocks
    index image_pixels() const noexcept { return axis[0].count * axis[1].count * axis[2].count; }
  };
  static constexpr index band_bytes = index{2} << 20;  ///< of copies
  static constexpr index least_band = 256;             ///< pixels: dW is read and written once a band

  tap_update() = default;

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
    views_count_ = a[0].kernel * a[1].kernel * a[2].kernel + 1;
    views_.reset(new (std::nothrow) tap_view[at(views_count_)]);
    if (!views_) return error(errc::out_of_memory, "axes", "no memory for %ld taps", views_count_);
    const index most = std::max<index>(band_bytes / ((in_ + out_) * size_of(data_)), least_band);
    for (index i = 0; i < views_count_; ++i) {
      tap_view& v = views_[at(i)];
      const bool is_tap = i + 1 < views_count_;
      const index taps[3] = {i / a[2].kernel / a[1].kernel, i / a[2].kernel % a[1].kernel, i % a[2].kernel};
      for (int j = 0; j < 3; ++j) {
        v.axis[j] = is_tap ? outputs_through(a[j], taps[j]) : seen_outputs{0, a[j].out(), 0};
      }
      v.tap = is_tap ? i : -1;
      const index pixels = images * v.image_pixels();
      const index bands = std::max<index>((pixels + most - 1) / most, 1);
      v.entry = entry_of(v.image_pixels());
      const index blocks = ((pixels + bands - 1) / bands + v.entry - 1) / v.entry;
      v.band = blocks * v.entry;
      blocks_ = std::max(blocks_, blocks);
    }
    group_views();
    return {};
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
    x_ = nn::column_tiling(in_, blocks_ * nn::block_rows);
    z_ = nn::column_tiling(out_, blocks_ * nn::block_rows);
    products_.reset(new (std::nothrow) std::optional<gradient_product>[at(views_count_)]);
    if (!products_) return error(errc::out_of_memory, "axes", "no memory for %ld taps", views_count_);
    const gradient_layout to{out_, z_.ld};
    for (index i = 0; i < views_count_; ++i) {
      const tap_view& v = views_[at(i)];
      if (i > 0 && same_outputs(views_[at(i - 1)], v)) continue;  // the first one's is taken
      auto product =
          gradient_product::make(images * v.image_pixels(), in_, out_, data_, math::f32, x_, z_, how, &to, v.entry);
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
      std::fill_n(dw + views_[at(i)].tap * in_ * out_, in_ * out_, 0.0f);
    }
    for (index begin = 0; begin < pixels; begin += shared.band) {
      const index count = std::min(shared.band, pixels - begin);
      for (index i = first; i < end; ++i) {
        const tap_view& v = views_[at(i)];
        copy_band(threads, v, begin, count, v.tap >= 0 ? x : nullptr, i == first ? z : nullptr, x_blocks, z_blocks);
        if (v.tap >= 0) {
          product(threads, count, x_blocks, z_blocks, dw + v.tap * in_ * out_, nullptr, begin > 0);
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
    const index of_x = x != nullptr ? nn::panels(in_) : 0;
    const index of_z = z != nullptr ? nn::panels(out_) : 0;
    const index size = size_of(data_);
    loops::parallel_for(threads, {of_x + of_z, (count + v.entry - 1) / v.entry}, [&](index i, index block) {
      const bool is_x = i < of_x;
      const nn::tiling& t = is_x ? x_ : z_;
      const index panel = is_x ? i : i - of_x;
      const index rows = extent_of_block(count, v.entry, block);
      index places[nn::block_rows];
      list_pixels(v, first + block * v.entry, rows, is_x, places);
      copy_block(rows, extent_of_block(is_x ? in_ : out_, t.ld, panel), t.ld, (is_x ? x : z) + panel * t.ld * size,
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
  nn::tiling x_;
  nn::tiling z_;
  std::unique_ptr<tap_view[]> views_;
  std::unique_ptr<std::optional<gradient_product>[]> products_;  ///< at the first view of those with the same outputs
};

}  // namespace brgemm::inline abi_0::detail
