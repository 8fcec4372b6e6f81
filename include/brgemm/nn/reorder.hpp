// Tensors of activations from one order of channels and pixels into another, for those who come with another than a
// layer's.
#pragma once

#include "../core/validate.hpp"
#include "../loops/buffers.hpp"
#include "rearrange.hpp"

namespace brgemm::inline abi_0::nn {

/// Where the channels of a tensor of `channels` and `pixels` (depth, height and width as one) stand in an image.
enum class channel_order : std::uint8_t {
  last,    ///< (pixels, channels), NHWC; what all layers read and write in place
  first,   ///< (channels, pixels), NCHW
  blocks,  ///< (ceil(channels / block), pixels, block), NCHWc, as convolutions do too; what is missing from the last
           ///< block is written as 0
};

/// What is brought into another order: (images, ...) of any element type.
struct reorder_desc {
  index images = 1;  ///< the most images of one call
  index channels = 1;
  index pixels = 1;
  type element = type::f32;
  channel_order from = channel_order::first;
  channel_order to = channel_order::last;
  index block = 16;  ///< channels of a block, where one of the orders has blocks
  friend bool operator==(const reorder_desc&, const reorder_desc&) = default;
};

/// A checked desc: any number of threads may call it at once with different memory. It owns nothing, allocates nothing.
/// Every bit is copied as it is.
class reorder {
 public:
  /// Errors: invalid_argument with the field: sizes below 1 or beyond 2^58, tensors beyond 2^62 bytes, no enumerator.
  static result<reorder> plan(const reorder_desc& d) noexcept;

  const reorder_desc& description() const noexcept { return d_; }
  index from_bytes() const noexcept { return d_.images * image(d_.from); }
  index to_bytes() const noexcept { return d_.images * image(d_.to); }

  /// The first `images` images. Errors: invalid_argument with the argument's name, found before anything is written;
  /// the two may not overlap.
  result<void> operator()(loops::executor_ref threads, index images, const void* from, void* to) const noexcept;

 private:
  /// Bytes from one to the next in one image.
  struct steps {
    index pixel = 0;
    index channel = 0;
    index block = 0;
  };

  explicit reorder(const reorder_desc& d) noexcept : d_(d) {}
  index size() const noexcept { return size_of(d_.element); }
  index width() const noexcept { return has_blocks() ? d_.block : 64; }
  index blocks() const noexcept { return (d_.channels + width() - 1) / width(); }
  bool has_blocks() const noexcept { return d_.from == channel_order::blocks || d_.to == channel_order::blocks; }
  index image(channel_order o) const noexcept {
    const index channels = o == channel_order::blocks ? blocks() * d_.block : d_.channels;
    return channels * d_.pixels * size();
  }
  steps steps_of(channel_order o) const noexcept {
    if (o == channel_order::first) return {size(), d_.pixels * size(), width() * d_.pixels * size()};
    if (o == channel_order::last) return {d_.channels * size(), size(), width() * size()};
    return {d_.block * size(), size(), d_.block * d_.pixels * size()};
  }
  void move(const char* from, const steps& f, char* to, const steps& t, index pixels, index channels) const noexcept;

  reorder_desc d_;
};

inline result<reorder> reorder::plan(const reorder_desc& d) noexcept {
  constexpr index largest = index{1} << 58;
  const struct {
    const char* name;
    index value;
  } sizes[] = {{"images", d.images}, {"channels", d.channels}, {"pixels", d.pixels}, {"block", d.block}};
  for (const auto& s : sizes) {
    if (s.value >= 1 && s.value <= largest) continue;
    return error(errc::invalid_argument, s.name, "%s is %ld; it must be in 1..2^58", s.name, s.value);
  }
  if (auto r = detail::check_enumerator("element", static_cast<int>(d.element), type_count); !r) return r.error();
  if (auto r = detail::check_enumerator("from", static_cast<int>(d.from), 3); !r) return r.error();
  if (auto r = detail::check_enumerator("to", static_cast<int>(d.to), 3); !r) return r.error();
  const double channels = static_cast<double>(d.channels) + static_cast<double>(d.block);
  const double bytes = static_cast<double>(d.images) * static_cast<double>(d.pixels) * channels * 8;
  if (bytes <= 0x1p62) return reorder(d);
  return error(errc::invalid_argument, "images", "%ld images of %ld x %ld elements are beyond 2^62 bytes", d.images,
               d.channels, d.pixels);
}

inline result<void> reorder::operator()(loops::executor_ref threads, index images, const void* from,
                                        void* to) const noexcept {
  if (images < 1 || images > d_.images) {
    return error(errc::invalid_argument, "images", "images is %ld; this plan takes 1..%ld", images, d_.images);
  }
  const detail::buffer written[] = {{"to", to, images * image(d_.to), size()}};
  const detail::buffer read[] = {{"from", from, images * image(d_.from), size()}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  constexpr index strip = 64;  // pixels
  const steps f = steps_of(d_.from);
  const steps t = steps_of(d_.to);
  loops::parallel_for(threads, {images, blocks(), (d_.pixels + strip - 1) / strip},
                      [&](index i, index block, index part) {
                        const index pixels = std::min(strip, d_.pixels - part * strip);
                        const index channels = std::min(width(), d_.channels - block * width());
                        const char* const a = static_cast<const char*>(from) + i * image(d_.from) + block * f.block;
                        char* const b = static_cast<char*>(to) + i * image(d_.to) + block * t.block;
                        move(a + part * strip * f.pixel, f, b + part * strip * t.pixel, t, pixels, channels);
                      });
  return {};
}

/// A block of channels of some pixels. What is adjacent on both sides is copied, else the block is transposed.
inline void reorder::move(const char* from, const steps& f, char* to, const steps& t, index pixels,
                          index channels) const noexcept {
  if (d_.to == channel_order::blocks && channels < d_.block) {
    for (index p = 0; p < pixels; ++p) {
      std::memset(to + p * t.pixel + channels * size(), 0, static_cast<std::size_t>((d_.block - channels) * size()));
    }
  }
  const bool rows_of_channels = d_.from != channel_order::first;
  const bool same = rows_of_channels == (d_.to != channel_order::first);
  const index rows = rows_of_channels ? pixels : channels;
  const index columns = rows_of_channels ? channels : pixels;
  const index from_row = rows_of_channels ? f.pixel : f.channel;
  if (same) {
    const index to_row = rows_of_channels ? t.pixel : t.channel;
    for (index r = 0; r < rows; ++r) {
      std::memcpy(to + r * to_row, from + r * from_row, static_cast<std::size_t>(columns * size()));
    }
    return;
  }
  detail::transpose_elements(from, from_row, to, rows_of_channels ? t.channel : t.pixel, rows, columns, size());
}

}  // namespace brgemm::inline abi_0::nn
