// The gradient of a 1 x 1 convolution's weights: that of a fully connected layer whose rows are the pixels of y.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>

#include "conv_geometry.hpp"
#include "gradient_product.hpp"
#include "rearrange.hpp"
#include "tiles.hpp"

namespace brgemm::inline abi_0::detail {

/// dW (groups, in, out) and db (groups, out) in f32, in and out being a group's, from x and dz of f32 or bf16, for one
/// tap without padding and any stride. The pixels of all images are one sequence, and each sum goes over it as
/// gradient_product's does, in bf16 by pairs of pixels.
///
/// Bands of pixels are copied into blocks first, in which the pixels of a panel of channels lie one behind the other:
/// where channels are many, they are thousands of bytes apart in x and dz, in few sets of the caches and as many pages.
class pointwise_update {
 public:
  static constexpr bool fits(const conv_geometry& g) noexcept {
    return std::all_of(g.axes, g.axes + 3,
                       [](const conv_axis& a) { return a.kernel == 1 && a.pad_before == 0 && a.pad_after == 0; });
  }

  /// `forward`: x is what it reads, dz has the shape of what it writes; it fits. At most `images` images.
  static result<pointwise_update> make(index images, index groups, index in, index out, const conv_geometry& forward,
                                       type data, const options& how) noexcept {
    pointwise_update u;
    u.groups_ = groups, u.in_ = in, u.out_ = out, u.data_ = data, u.g_ = forward;
    const index pixels = images * u.image_pixels();
    const index most = std::max<index>(band_bytes / ((in + out) * size_of(data)), least_band);
    const index bands = (pixels + most - 1) / most;
    u.entry_ = entry_of(u.image_pixels());
    const index blocks = ((pixels + bands - 1) / bands + u.entry_ - 1) / u.entry_;
    u.band_ = blocks * u.entry_;
    u.x_ = nn::column_tiling(in, blocks * nn::block_rows);
    u.z_ = nn::column_tiling(out, blocks * nn::block_rows);
    const gradient_layout to{out, u.z_.ld};
    auto product = gradient_product::make(pixels, in, out, data, math::f32, u.x_, u.z_, how, &to, u.entry_);
    if (!product) return product.error();
    u.product_.emplace(*std::move(product));
    return u;
  }

  index workspace_bytes() const noexcept {
    return (nn::panels(in_) * x_.column_step + nn::panels(out_) * z_.column_step) * size_of(data_);
  }

  /// db may be null.
  void operator()(loops::executor_ref threads, index images, const void* x, const void* dz, float* dw, float* db,
                  void* workspace) const noexcept {
    const index pixels = images * image_pixels();
    char* const x_blocks = static_cast<char*>(workspace);
    char* const z_blocks = x_blocks + nn::panels(in_) * x_.column_step * size_of(data_);
    for (index group = 0; group < groups_; ++group) {
      const char* const from_x = static_cast<const char*>(x) + group * in_ * size_of(data_);
      const char* const from_z = static_cast<const char*>(dz) + group * out_ * size_of(data_);
      for (index first = 0; first < pixels; first += band_) {
        const index count = std::min(band_, pixels - first);
        copy_band(threads, first, count, from_x, from_z, x_blocks, z_blocks);
        (*product_)(threads, count, x_blocks, z_blocks, dw + group * in_ * out_,
                    db == nullptr ? nullptr : db + group * out_, first > 0);
      }
    }
  }

 private:
  static constexpr index band_bytes = index{2} << 20;  ///< of copies
  static constexpr index least_band = 256;             ///< pixels: dW is read and written once a band

  pointwise_update() = default;

  /// Pixels of an entry of the batch: as many as divide an image, so that nothing is left; else 64. Even, for pairs.
  static constexpr index entry_of(index pixels) noexcept {
    for (index entry = nn::block_rows; entry >= nn::block_rows / 4; entry -= 2) {
      if (pixels % entry == 0) return entry;
    }
    return nn::block_rows;
  }

  index image_pixels() const noexcept { return g_.size_out(0) * g_.size_out(1) * g_.size_out(2); }

  /// y has a pixel for each of x.
  static constexpr bool sees_all(const conv_geometry& g) noexcept {
    return std::all_of(g.axes, g.axes + 3, [](const conv_axis& a) { return a.stride == 1; });
  }

  /// Where the pixels of x lie that `count` pixels of y from `p` of all images see, in elements.
  void list_seen(index p, index count, index* places) const noexcept {
    index at[3];
    for (int i = 2; i >= 0; --i) {
      at[i] = p % g_.size_out(i);
      p /= g_.size_out(i);
    }
    index place[3];  // of the row of each axis, of the image for the first
    index above = p * g_.step_in(-1);
    for (int i = 0; i < 3; ++i) {
      place[i] = above;
      above += at[i] * g_.axes[i].stride * g_.step_in(i);
    }
    const index step = g_.axes[2].stride * g_.step_in(2);
    for (index n = 0; n < count; ++n, above += step) {
      if (at[2] == g_.size_out(2)) {
        at[2] = 0;
        if (++at[1] == g_.size_out(1)) {
          at[1] = 0;
          if (++at[0] == g_.size_out(0)) {
            at[0] = 0;
            place[0] += g_.step_in(-1);
          }
          place[1] = place[0] + at[0] * g_.axes[0].stride * g_.step_in(0);
        }
        place[2] = above = place[1] + at[1] * g_.axes[1].stride * g_.step_in(1);
      }
      places[n] = above;
      ++at[2];
    }
  }

  void copy_band(loops::executor_ref threads, index first, index count, const char* x, const char* z, char* x_blocks,
                 char* z_blocks) const noexcept {
    const index of_x = nn::panels(in_);
    const index size = size_of(data_);
    const index blocks = (count + entry_ - 1) / entry_;
    loops::parallel_for(threads, {of_x + nn::panels(out_), blocks}, [&](index i, index block) {
      const index p = first + block * entry_;
      const index rows = extent_of_block(count, entry_, block);
      index places[nn::block_rows];
      if (i < of_x) {
        list_seen(p, rows, places);
        copy_block(rows, extent_of_block(in_, x_.ld, i), x_.ld, x + i * x_.ld * size, places,
                   x_blocks + x_.offset(block, i) * size, true, sees_all(g_) ? g_.pixel_in : 0);
      } else {
        i -= of_x;
        for (index r = 0; r < rows; ++r) places[r] = (p + r) * g_.pixel_out;
        copy_block(rows, extent_of_block(out_, z_.ld, i), z_.ld, z + i * z_.ld * size, places,
                   z_blocks + z_.offset(block, i) * size, false, g_.pixel_out);
      }
    });
  }

  /// Row r comes from from + places[r]; bf16 is transposed (x) or has its rows in pairs (dz). Where rows are `step`
  /// apart, not 0, those of the next block are fetched.
  void copy_block(index rows, index columns, index ld, const char* from, const index* places, char* to, bool transposed,
                  index step) const noexcept {
    if (data_ == type::f32) {
      const auto bytes = static_cast<std::size_t>(columns) * sizeof(float);
      for (index r = 0; r < rows; ++r) std::memcpy(to + r * ld * 4, from + places[r] * 4, bytes);
      return;
    }
    const auto* const elements = reinterpret_cast<const std::uint16_t*>(from);
    const auto row = [elements, places](index r) BRGEMM_ALWAYS_INLINE { return elements + places[r]; };
    streaming ahead;
    if (step != 0) ahead.next = reinterpret_cast<const char*>(elements + places[0] + entry_ * step);
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
  index entry_ = 0;  ///< pixels of a block
  index band_ = 0;   ///< pixels, whole blocks
  nn::tiling x_;
  nn::tiling z_;
  std::optional<gradient_product> product_;
};

}  // namespace brgemm::inline abi_0::detail
