// The gradient of a convolution's weights: for each tap a product of x, as the tap sees it, and dz over all pixels.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <optional>

#include "../loops/row_product.hpp"
#include "conv_geometry.hpp"
#include "rearrange.hpp"
#include "storage.hpp"
#include "tiles.hpp"

namespace brgemm::inline abi_0::detail {

/// `forward`: x is what it reads, dz has the shape of what it writes. At most `images` images; in and out are a
/// group's.
struct conv_update_desc {
  index images = 1;
  index groups = 1;
  index in = 1;
  index out = 1;
  conv_geometry forward;
  type data = type::f32;  ///< of x and dz: f32 or bf16
  order sums = order::machine;
};

/// What the outputs of one run of the width, or all of them, add to dW (groups, taps, in, out) and db (groups, out).
/// Each sum is one chain over the images, then the pixels of y in row-major order; pixels that see no input through a
/// tap add no term to its sum. bf16: over pairs of those of a row of y, from its first one.
///
/// A row of y is a batch entry, its pixels are k. In f32 the kernels read x and dz in place, but for layers of one tap
/// whose pixels are far apart: there they fall on few sets of the caches and each on a page of its own. Of such layers
/// and of bf16, which needs pixels in pairs, bands are copied: once for all taps.
class run_update {
 public:
  /// Of all outputs, or of those of `run`, whose taps of a row are then one with taps * in channels.
  static result<run_update> make(const conv_update_desc& of, const conv_run* run, const options& how) noexcept {
    run_update u;
    u.groups_ = of.groups, u.in_ = of.in, u.out_ = of.out, u.data_ = of.data, u.sums_order_ = of.sums;
    u.set_axes(of.forward);
    u.tap_step_ = of.in * of.out;
    if (run != nullptr) u.join_taps(*run);
    u.join_rows(run == nullptr);
    u.plan_bands(of.images);
    if (auto r = u.plan_pairings(); !r) return r.error();
    u.copies_ ? u.place_copies() : u.place_tensors();
    if (auto r = u.plan_taps(); !r) return r.error();
    if (auto r = u.plan_kernels(how); !r) return r.error();
    return u;
  }

  index workspace_bytes() const noexcept {
    if (!copies_) return 0;
    return groups_ * (nn::panels(in_) * x_.panel + nn::panels(out_) * z_.panel) * size_of(data_);
  }

  /// db may be null. `continues`: to the sums that are there.
  void operator()(loops::executor_ref threads, index images, const void* x, const void* dz, float* dw, float* db,
                  bool continues, void* workspace) const noexcept {
    const index rows = images * image_rows();
    const index size = size_of(data_);
    x = static_cast<const char*>(x) + first_x_ * size;
    dz = static_cast<const char*>(dz) + first_z_ * size;
    dw += first_w_;
    if (!copies_) return add_products(threads, {0, rows}, {x, dz, continues}, dw, db);
    for (index first = 0, end = 0; first < rows; first = end) {
      end = end_of(first, band_rows_, rows);
      const box z = box_of(first, end);
      const box b = seen_by(z);
      auto* const copy = static_cast<char*>(workspace);
      char* const copy_of_z = copy + groups_ * nn::panels(in_) * x_.panel * size;
      copy_band(threads, b, static_cast<const char*>(x), copy, z, static_cast<const char*>(dz), copy_of_z);
      const operands from{copy,
                          copy_of_z,
                          continues,
                          z.image,
                          b.depth * x_.depth + b.row * x_.row,
                          z.depth * z_.depth + z.row * z_.row};
      add_products(threads, {first, end}, from, dw, db);
    }
  }

 private:
  static constexpr index step_pixels = 512;        ///< whose x and dz are in L2 for all taps
  static constexpr index cached_bytes = 32 << 10;  ///< of dz in L1, where x has too few channels to read it from L2
  static constexpr index few_channels = 16;
  static constexpr index band_bytes = index{512} << 10;  ///< of copies
  static constexpr index least_band = 256;               ///< pixels
  static constexpr index joined_pixels = 128;
  static constexpr index far_apart = 8192;  ///< bytes

  /// Rows of y, counted through all images; within one depth of an image, or whole images.
  struct stretch {
    index first = 0;
    index end = 0;
  };
  /// Rows of x or y: of each image, of each depth.
  struct box {
    index image = 0, images = 0;
    index depth = 0, depths = 0;
    index row = 0, rows = 0;
    constexpr index count() const noexcept { return images * depths * rows; }
  };
  /// Elements from one to the next: as the kernels read them, and in the tensor.
  struct placement {
    index image = 0, depth = 0, row = 0;
    index panel = 0;  ///< of channels
    index ld = 0;
    index from_image = 0, from_depth = 0, from_row = 0, from_line = 0, from_pixel = 0;
  };
  /// What kernels read: x and dz from image `image` on, the first elements being the origins.
  struct operands {
    const void* x;
    const void* z;
    bool continues = false;  ///< to the sums that are there
    index image = 0;
    index x_origin = 0;
    index z_origin = 0;
  };
  /// bf16: a way to have the pixels of a row of dz in pairs: `count` of them from `first`, 0 or 1. What an odd last one
  /// is paired with is 0, so a tap that is seen by an odd number of pixels and not by the last one of a row has its
  /// own.
  struct pairing {
    index first = 0;
    index count = 0;
  };
  pairing pairing_of(const seen_outputs& w) const noexcept {
    const index first = w.first % 2;
    const bool any_end = w.count % 2 == 0 || w.first + w.count == axes_[2].out();
    return {first, (any_end ? axes_[2].out() : w.first + w.count) - first};
  }
  /// One tap: its rows of y are the batch, in `pairs` one behind the other.
  struct planned_tap {
    seen_outputs depth;
    seen_outputs height;
    index pairs = 0;
    index image_rows() const noexcept { return depth.count * height.count; }
  };

  run_update() = default;

  index taps() const noexcept { return axes_[0].kernel * axes_[1].kernel * axes_[2].kernel; }
  index image_rows() const noexcept { return axes_[0].out() * axes_[1].out(); }

  /// The end of a stretch of at most `most` rows from `first`.
  index end_of(index first, index most, index rows) const noexcept {
    const index height = axes_[1].out();
    return std::min(rows,
                    most >= image_rows() ? first + most : std::min(first + most, first / height * height + height));
  }
  box box_of(index first, index end) const noexcept {
    const index images = (end - first) / image_rows();
    const index image = first / image_rows();
    if (images > 0) return {image, images, 0, axes_[0].out(), 0, axes_[1].out()};
    return {image, 1, first % image_rows() / axes_[1].out(), 1, first % axes_[1].out(), end - first};
  }
  /// What the taps of these outputs see.
  box seen_by(const box& z) const noexcept {
    const auto range = [](const conv_axis& a, index first, index count, index& begin, index& seen) {
      begin = std::clamp<index>(first * a.stride - a.pad_before, 0, a.in);
      const index last = (first + count - 1) * a.stride - a.pad_before + (a.kernel - 1) * a.dilation;
      seen = std::max<index>(std::min(last + 1, a.in) - begin, 0);
    };
    box x = z;
    range(axes_[0], z.depth, z.depths, x.depth, x.depths);
    range(axes_[1], z.row, z.rows, x.row, x.rows);
    return x;
  }

  void add_products(loops::executor_ref threads, stretch band, const operands& from, float* dw,
                    float* db) const noexcept {
    const index products = groups_ * nn::panels(in_) * nn::panels(out_) * taps();
    const index blocks = products + (db != nullptr ? groups_ * nn::panels(out_) : 0);
    const index parts = std::min<index>(blocks, threads.threads());
    loops::parallel_for(threads, {parts}, [&](index part) {
      for (stretch s{band.first, band.first}; s.first < band.end; s.first = s.end) {
        s.end = end_of(s.first, step_rows_, band.end);
        for (index i = blocks * part / parts; i < blocks * (part + 1) / parts; ++i) {
          i < products ? add_product(i, s, from, dw) : add_sum(i - products, s, from, db);
        }
      }
    });
  }

  /// Rows of y that tap `t` of the list has in `s`; false where the sums need not change.
  bool place_rows(const planned_tap& t, stretch s, const operands& from, arguments& call) const noexcept {
    const box b = box_of(s.first, s.end);
    index first = 0;
    if (b.rows * b.depths == image_rows()) {
      call.batch = b.images * t.image_rows();
    } else {
      const index depth = b.depth - t.depth.first;
      const index begin = std::max(b.row, t.height.first);
      const index end = std::min(b.row + b.rows, t.height.first + t.height.count);
      call.batch = depth >= 0 && depth < t.depth.count ? std::max<index>(end - begin, 0) : 0;
      first = depth * t.height.count + begin - t.height.first;
    }
    if (call.batch > 0) call.pairs = pairs_.get() + t.pairs + first;
    const bool begins = s.first == 0 && !from.continues;
    call.beta = begins ? 0 : 1;
    const index size = size_of(data_);
    const index image = b.image - from.image;
    call.a = static_cast<const char*>(from.x) + (image * x_.image - from.x_origin) * size;
    call.b = static_cast<const char*>(from.z) + (image * z_.image - from.z_origin) * size;
    call.lda = x_.ld;
    return call.batch > 0 || begins;
  }

  void add_product(index i, stretch s, const operands& from, float* dw) const noexcept {
    const index tap = i % taps();
    i /= taps();
    const index panel_out = i % nn::panels(out_);
    i /= nn::panels(out_);
    const index panel_in = i % nn::panels(in_);
    const index group = i / nn::panels(in_);
    arguments call;
    if (!place_rows(taps_[at(tap)], s, from, call)) return;
    const index channel_in = panel_in * nn::block_width(in_);
    const index channel_out = panel_out * nn::block_width(out_);
    call.a = static_cast<const char*>(call.a) + panel_at(x_, in_, group, panel_in) * size_of(data_);
    call.b = static_cast<const char*>(call.b) + panel_at(z_, out_, group, panel_out) * size_of(data_);
    call.c = dw + (group * taps() + tap) * tap_step_ + channel_in * out_ + channel_out;
    const bool full_in = channel_in + nn::block_width(in_) <= in_;
    const bool full_out = channel_out + nn::block_width(out_) <= out_;
    kernels_[at(tap % axes_[2].kernel)][full_in][full_out](call);
  }

  void add_sum(index i, stretch s, const operands& from, float* db) const noexcept {
    const index panel = i % nn::panels(out_);
    const index group = i / nn::panels(out_);
    const index channel = panel * nn::block_width(out_);
    arguments call;
    if (!place_rows(taps_[at(taps())], s, from, call)) return;
    call.a = ones_.get();
    call.b = static_cast<const char*>(call.b) + panel_at(z_, out_, group, panel) * size_of(data_);
    call.c = db + group * out_ + channel;
    sums_[channel + nn::block_width(out_) <= out_](call);
  }

  index panel_at(const placement& p, index channels, index group, index panel) const noexcept {
    return copies_ ? (group * nn::panels(channels) + panel) * p.panel : group * channels + panel * p.panel;
  }
  static std::size_t at(index i) noexcept { return static_cast<std::size_t>(i); }

  void copy_band(loops::executor_ref threads, const box& bx, const char* x, char* x_copy, const box& bz, const char* z,
                 char* z_copy) const noexcept;
  void copy_row_of_x(const char* from, index columns, char* to) const noexcept;
  void copy_row_of_z(const char* from, index columns, char* to) const noexcept;

  void set_axes(const conv_geometry& g) noexcept;
  void join_taps(const conv_run& run) noexcept;
  void join_rows(bool adjacent) noexcept;
  void plan_bands(index images) noexcept;
  void place_tensors() noexcept;
  void place_copies() noexcept;
  result<void> plan_pairings() noexcept;
  index pairing_number(const pairing& p) const noexcept;
  result<void> plan_taps() noexcept;
  void list_rows(const planned_tap& t, const seen_outputs& w) noexcept;
  result<void> plan_kernels(const options& how) noexcept;
  desc product_desc(index tap_w, index m, index n) const noexcept;
  desc sum_desc(index n) const noexcept;

  /// bf16: pixels of a row of x between those that a tap sees in adjacent outputs lie in copies of their own.
  index phase_pitch() const noexcept { return ((axes_[2].in + axes_[2].stride - 1) / axes_[2].stride + 1) / 2 * 2; }
  /// bf16: elements of a row of dz in one way of pairs.
  index pairs_pitch() const noexcept { return (axes_[2].out() + 1) / 2 * 2 * nn::block_width(out_); }

  index groups_ = 1;
  index in_ = 1;
  index out_ = 1;
  type data_ = type::f32;
  order sums_order_ = order::machine;
  bool copies_ = false;
  conv_axis axes_[3];  ///< rows joined, and as copies have them
  index line_ = 1;     ///< pixels of a row of x before rows were joined
  index first_x_ = 0;  ///< elements of x, dz and dW before those of the run
  index first_z_ = 0;
  index first_w_ = 0;
  index tap_step_ = 0;  ///< of dW
  index step_rows_ = 1;
  index band_rows_ = 1;
  placement x_;
  placement z_;
  index pairings_count_ = 0;
  std::unique_ptr<pairing[]> pairings_;  ///< the first one of all pixels
  std::unique_ptr<planned_tap[]> taps_;  ///< and one that all outputs see, for db
  std::unique_ptr<offset_pair[]> pairs_;
  std::unique_ptr<kernel[][2][2]> kernels_;  ///< [tap of the width][full in][full out]
  std::unique_ptr<std::uint32_t[]> ones_;    ///< (a row of y)
  kernel sums_[2];                           ///< [full out]
};

inline void run_update::set_axes(const conv_geometry& g) noexcept {
  std::copy(g.axes, g.axes + 3, axes_);
  x_.from_image = g.step_in(-1), x_.from_depth = g.step_in(0), x_.from_line = g.step_in(1), x_.from_pixel = g.pixel_in;
  z_.from_image = g.step_out(-1), z_.from_depth = g.step_out(0), z_.from_line = g.step_out(1);
  z_.from_pixel = g.pixel_out;
}

/// Taps of a row are adjacent in x as they are in dW.
inline void run_update::join_taps(const conv_run& run) noexcept {
  first_x_ = run.in * x_.from_pixel;
  first_z_ = run.first * z_.from_pixel;
  first_w_ = run.tap * in_ * out_;
  tap_step_ *= axes_[2].kernel;
  in_ *= run.taps;
  x_.from_pixel *= axes_[2].stride;
  axes_[2] = {run.count};
}

/// Where each pixel of y sees just one of x, rows that follow each other are one: longer sums a batch entry. Copies
/// leave out what a stride of one tap leaves out. `adjacent`: all columns of y are there.
inline void run_update::join_rows(bool adjacent) noexcept {
  const index pixel = std::max(axes_[2].stride * x_.from_pixel, z_.from_pixel) * size_of(data_);
  copies_ = data_ != type::f32 || (taps() == 1 && pixel >= far_apart);
  index* const steps[3] = {&x_.from_depth, &x_.from_line, &x_.from_pixel};
  bool joins = adjacent;
  for (int i = 0; i < 3; ++i) {
    conv_axis& a = axes_[i];
    const bool one_tap = a.kernel == 1 && a.pad_before == 0 && a.pad_after == 0;
    if (one_tap && copies_) {
      if (a.out() > 1) *steps[i] *= a.stride;
      a.in = a.out(), a.stride = 1;
    }
    joins = joins && (i == 0 || (one_tap && a.stride == 1));
  }
  line_ = axes_[2].in;
  index joined = joins ? std::clamp<index>(joined_pixels / line_, 1, axes_[1].in) : 1;
  while (axes_[1].in % joined != 0) --joined;
  x_.from_row = x_.from_line * joined, z_.from_row = z_.from_line * joined;
  if (joined > 1) axes_[1].in /= joined, axes_[2].in *= joined;
}

inline void run_update::plan_bands(index images) noexcept {
  const index width = axes_[2].out();
  const auto rows_of = [&](index pixels) {
    const index rows = std::min(std::max<index>(pixels / width, 1), images * image_rows());
    return rows >= image_rows() ? rows / image_rows() * image_rows() : std::min(rows, axes_[1].out());
  };
  const index pixel = nn::block_width(out_) * size_of(data_);
  step_rows_ = rows_of(in_ <= few_channels ? std::max<index>(cached_bytes / pixel, 1) : step_pixels);
  // dW is read and written once a band: of one that does not stay in L2 there are fewer.
  const index bytes = groups_ * taps() * in_ * out_ * 4 <= band_bytes ? band_bytes : 4 * band_bytes;
  band_rows_ = rows_of(std::max(bytes / (groups_ * (in_ + 2 * out_) * size_of(data_)), least_band));
}

inline void run_update::place_tensors() noexcept {
  x_.image = x_.from_image, x_.depth = x_.from_depth, x_.row = x_.from_row;
  x_.panel = nn::block_width(in_), x_.ld = axes_[2].stride * x_.from_pixel;
  z_.image = z_.from_image, z_.depth = z_.from_depth, z_.row = z_.from_row;
  z_.panel = nn::block_width(out_), z_.ld = z_.from_pixel;
}

/// A panel of channels of a band behind the other. In f32 its pixels have the panel's width; in bf16 each row of x is
/// transposed, (channels, pixels), and each of dz has its pixels in pairs.
inline void run_update::place_copies() noexcept {
  const index width_in = nn::block_width(in_);
  const index width_out = nn::block_width(out_);
  const bool whole = band_rows_ >= image_rows();
  const index images = whole ? band_rows_ / image_rows() : 1;
  const box z = {0, images, 0, whole ? axes_[0].out() : 1, 0, whole ? axes_[1].out() : band_rows_};
  const auto span = [](const conv_axis& a, index outputs) {
    return std::min(a.in, (outputs - 1) * a.stride + (a.kernel - 1) * a.dilation + 1);
  };
  const box x = {0, images, 0, span(axes_[0], z.depths), 0, span(axes_[1], z.rows)};
  const auto place = [](placement& p, const box& b, index row) {
    p.row = row, p.depth = b.rows * row, p.image = b.depths * p.depth;
    p.panel = b.images * p.image;
  };
  if (data_ == type::f32) {
    place(x_, x, axes_[2].in * width_in);
    place(z_, z, axes_[2].out() * width_out);
    x_.ld = axes_[2].stride * width_in, z_.ld = width_out;
    return;
  }
  place(x_, x, std::min(axes_[2].stride, axes_[2].in) * phase_pitch() * width_in);
  x_.ld = phase_pitch();
  place(z_, z, pairings_count_ * pairs_pitch());
  z_.ld = width_out;
}

inline void run_update::copy_band(loops::executor_ref threads, const box& bx, const char* x, char* x_copy,
                                  const box& bz, const char* z, char* z_copy) const noexcept {
  const index panels_in = nn::panels(in_);
  const index panels_out = nn::panels(out_);
  const index size = size_of(data_);
  loops::parallel_for(threads, {groups_ * (panels_in + panels_out), std::max(bx.count(), bz.count())},
                      [&](index i, index row) {
                        const bool is_x = i < groups_ * panels_in;
                        const box& b = is_x ? bx : bz;
                        if (row >= b.count()) return;
                        if (!is_x) i -= groups_ * panels_in;
                        const placement& p = is_x ? x_ : z_;
                        const index channels = is_x ? in_ : out_;
                        const index panel = i % (is_x ? panels_in : panels_out);
                        const index group = i / (is_x ? panels_in : panels_out);
                        const index width = nn::block_width(channels);
                        const index place[3] = {row / b.rows / b.depths, row / b.rows % b.depths, row % b.rows};
                        const index from = (b.image + place[0]) * p.from_image + (b.depth + place[1]) * p.from_depth +
                                           (b.row + place[2]) * p.from_row + group * channels + panel * width;
                        const index to = i * p.panel + place[0] * p.image + place[1] * p.depth + place[2] * p.row;
                        const index columns = extent_of_block(channels, width, panel);
                        is_x ? copy_row_of_x(x + from * size, columns, x_copy + to * size)
                             : copy_row_of_z(z + from * size, columns, z_copy + to * size);
                      });
}

inline void run_update::copy_row_of_x(const char* from, index columns, char* to) const noexcept {
  const conv_axis& a = axes_[2];
  const index to_next_line = x_.from_line - line_ * x_.from_pixel;
  if (data_ == type::f32) {
    for (index i = 0, in_line = 0; i < a.in; ++i, ++in_line, from += x_.from_pixel * 4) {
      if (in_line == line_) in_line = 0, from += to_next_line * 4;
      std::memcpy(to + i * nn::block_width(in_) * 4, from, at(columns) * 4);
    }
    return;
  }
  const auto* const elements = reinterpret_cast<const std::uint16_t*>(from);
  for (index phase = 0; phase < a.stride && phase < a.in; ++phase) {
    index tap = 0;
    while (tap < a.kernel && (phase + a.pad_before - tap * a.dilation) % a.stride != 0) ++tap;
    if (tap == a.kernel) continue;  // none sees it
    const index count = (a.in - phase + a.stride - 1) / a.stride;
    index in_line = phase;  // lines are joined where the stride is 1
    index place = phase * x_.from_pixel;
    for (index first = 0; first < count; first += nn::block_rows) {
      index places[nn::block_rows];
      const index here = std::min(count - first, nn::block_rows);
      for (index i = 0; i < here; ++i, in_line += a.stride, place += a.stride * x_.from_pixel) {
        if (in_line == line_) in_line = 0, place += to_next_line;
        places[i] = place;
      }
      const auto row = [&](index r) BRGEMM_ALWAYS_INLINE { return elements + places[r]; };
      auto* const block = reinterpret_cast<std::uint16_t*>(to) + phase * nn::block_width(in_) * x_.ld + first;
      transpose_rows_at(row, 0, block, x_.ld, here, columns);
    }
  }
}

inline void run_update::copy_row_of_z(const char* from, index columns, char* to) const noexcept {
  const index count = axes_[2].out();
  if (data_ == type::f32) {
    for (index i = 0; i < count; ++i) {
      std::memcpy(to + i * z_.ld * 4, from + i * z_.from_pixel * 4, at(columns) * 4);
    }
    return;
  }
  const auto* const elements = reinterpret_cast<const std::uint16_t*>(from);
  auto* const pairs = reinterpret_cast<std::uint32_t*>(to);
  for (index i = 0; i < pairings_count_; ++i) {
    const pairing& p = pairings_[at(i)];
    interleave_rows(elements + p.first * z_.from_pixel, z_.from_pixel, pairs + i * pairs_pitch() / 2, z_.ld, p.count,
                    columns);
  }
}

inline result<void> run_update::plan_pairings() noexcept {
  if (data_ == type::f32) return {};
  pairings_.reset(new (std::nothrow) pairing[at(axes_[2].kernel + 1)]);
  if (!pairings_) return error(errc::out_of_memory, "axes", "no memory for %ld taps", axes_[2].kernel);
  pairings_[at(pairings_count_++)] = {0, axes_[2].out()};
  for (index w = 0; w < axes_[2].kernel; ++w) {
    const seen_outputs seen = outputs_through(axes_[2], w);
    if (seen.count == 0 || pairing_number(pairing_of(seen)) < pairings_count_) continue;
    pairings_[at(pairings_count_++)] = pairing_of(seen);
  }
  return {};
}

inline index run_update::pairing_number(const pairing& p) const noexcept {
  index i = 0;
  while (i < pairings_count_ && (pairings_[at(i)].first != p.first || pairings_[at(i)].count != p.count)) ++i;
  return i;
}

inline result<void> run_update::plan_taps() noexcept {
  taps_.reset(new (std::nothrow) planned_tap[at(taps() + 1)]);
  if (!taps_) return error(errc::out_of_memory, "axes", "no memory for %ld taps", taps());
  const index images = std::max<index>(step_rows_ / image_rows(), 1);
  index pairs = 0;
  for (index i = 0; i <= taps(); ++i) {
    planned_tap& t = taps_[at(i)];
    t.pairs = pairs;
    if (i == taps()) {
      t.depth.count = axes_[0].out(), t.height.count = axes_[1].out();
    } else if (outputs_through(axes_[2], i % axes_[2].kernel).count > 0) {
      t.depth = outputs_through(axes_[0], i / axes_[2].kernel / axes_[1].kernel);
      t.height = outputs_through(axes_[1], i / axes_[2].kernel % axes_[1].kernel);
    }
    pairs += images * t.image_rows();
  }
  pairs_.reset(new (std::nothrow) offset_pair[at(pairs)]);
  if (!pairs_) return error(errc::out_of_memory, "axes", "no memory for a list of %ld rows", pairs);
  for (index i = 0; i < taps(); ++i) list_rows(taps_[at(i)], outputs_through(axes_[2], i % axes_[2].kernel));
  list_rows(taps_[at(taps())], {0, axes_[2].out(), 0});
  for (index i = taps_[at(taps())].pairs; i < pairs; ++i) pairs_[at(i)].a = 0;  // the ones
  return {};
}

inline void run_update::list_rows(const planned_tap& t, const seen_outputs& w) noexcept {
  const bool in_pairs = data_ != type::f32;
  const index stride = axes_[2].stride;
  const index x_column =
      in_pairs ? w.in % stride * nn::block_width(in_) * x_.ld + w.in / stride : w.in * (x_.ld / stride);
  const index z_column =
      in_pairs ? pairing_number(pairing_of(w)) * pairs_pitch() + w.first / 2 * 2 * z_.ld : w.first * z_.ld;
  offset_pair* to = pairs_.get() + t.pairs;
  for (index image = 0; image < std::max<index>(step_rows_ / image_rows(), 1); ++image) {
    for (index d = 0; d < t.depth.count; ++d) {
      for (index h = 0; h < t.height.count; ++h) {
        *to++ = {image * x_.image + (t.depth.in + d * axes_[0].stride) * x_.depth +
                     (t.height.in + h * axes_[1].stride) * x_.row + x_column,
                 image * z_.image + (t.depth.first + d) * z_.depth + (t.height.first + h) * z_.row + z_column};
      }
    }
  }
}

/// One set of kernels for each tap of the width: they differ in how many pixels of a row see x.
inline result<void> run_update::plan_kernels(const options& how) noexcept {
  const index widths = axes_[2].kernel;
  kernels_.reset(new (std::nothrow) kernel[at(widths)][2][2]);
  const index row = axes_[2].out();
  ones_.reset(new (std::nothrow) std::uint32_t[at(row)]);
  if (!kernels_ || !ones_) return error(errc::out_of_memory, "axes", "no memory for %ld kernels", widths);
  const std::uint32_t one = std::bit_cast<std::uint32_t>(1.0f);
  std::fill_n(ones_.get(), row, data_ == type::f32 ? one : one | one >> 16);
  for (const bool full_out : {false, true}) {
    const index n = full_out ? nn::block_width(out_) : out_ % nn::block_width(out_);
    if (n == 0 || n > out_) continue;
    if (auto r = make_into(sums_[full_out], sum_desc(n), how); !r) return r;
    for (const bool full_in : {false, true}) {
      const index m = full_in ? nn::block_width(in_) : in_ % nn::block_width(in_);
      if (m == 0 || m > in_) continue;
      for (index w = 0; w < widths; ++w) {
        if (auto r = make_into(kernels_[at(w)][full_in][full_out], product_desc(w, m, n), how); !r) return r;
      }
    }
  }
  return {};
}

/// A is x: a row's pixels are k, its channels m. No pixel that sees x leaves k = 1 with no entry.
inline desc run_update::product_desc(index tap_w, index m, index n) const noexcept {
  desc d = sum_desc(n);
  d.m = m;
  d.k = std::max<index>(outputs_through(axes_[2], tap_w).count, 1);
  if (data_ == type::f32) d.layout_a = layout::transposed;
  d.lda = x_.ld >= m || data_ != type::f32 ? x_.ld : at_call;  // rows that share taps overlap
  d.ldc = out_;
  return d;
}
inline desc run_update::sum_desc(index n) const noexcept {
  desc d;
  d.n = n;
  d.k = axes_[2].out();
  d.a = d.b = data_;
  d.sums = sums_order_;
  if (data_ != type::f32) d.layout_b = layout::interleaved;
  d.lda = d.k;
  d.ldb = z_.ld;
  d.ldc = n;
  d.batch = batch_kind::offsets;
  d.beta = beta_kind::at_call;
  return d;
}

/// dW (groups, taps, in, out) and db (groups, out) in f32. Where channels are few, the taps of a row are one product:
/// run after run of the columns of y that see the same ones.
class conv_update {
 public:
  static result<conv_update> make(const conv_update_desc& d, const options& how) noexcept {
    const conv_axis& width = d.forward.axes[2];
    conv_update u;
    u.weights_ = d.groups * d.forward.axes[0].kernel * d.forward.axes[1].kernel * width.kernel * d.in * d.out;
    u.sums_ = d.groups * d.out;
    u.joined_ = d.groups == 1 && width.kernel > 1 && width.dilation == 1 && width.kernel * d.in <= most_joined;
    index count = 0;
    for_forward_runs(width, [&](const conv_run& run) {
      ++count;
      u.joined_ = u.joined_ && run.taps > 0;
    });
    if (!u.joined_) count = 1;
    u.runs_.reset(new (std::nothrow) std::optional<run_update>[static_cast<std::size_t>(count)]);
    if (!u.runs_) return error(errc::out_of_memory, "axes", "no memory for %ld runs of the width", count);
    result<void> made;
    const auto add = [&](const conv_run* run) {
      auto update = run_update::make(d, run, how);
      if (update) {
        u.runs_[static_cast<std::size_t>(u.count_++)].emplace(*std::move(update));
      } else {
        made = update.error();
      }
    };
    if (!u.joined_) add(nullptr);
    if (u.joined_) {
      for_forward_runs(width, [&](const conv_run& run) {
        if (made) add(&run);
      });
    }
    if (!made) return made.error();
    return u;
  }

  index workspace_bytes() const noexcept {
    index bytes = 0;
    for (index i = 0; i < count_; ++i) bytes = std::max(bytes, runs_[static_cast<std::size_t>(i)]->workspace_bytes());
    return bytes;
  }

  /// db may be null.
  void operator()(loops::executor_ref threads, index images, const void* x, const void* dz, float* dw, float* db,
                  void* workspace) const noexcept {
    if (joined_) std::fill_n(dw, weights_, 0.0f);
    if (joined_ && db != nullptr) std::fill_n(db, sums_, 0.0f);
    for (index i = 0; i < count_; ++i) {
      (*runs_[static_cast<std::size_t>(i)])(threads, images, x, dz, dw, db, joined_, workspace);
    }
  }

 private:
  static constexpr index most_joined = 64;  ///< channels of a joined row: one panel

  conv_update() = default;

  index weights_ = 0;
  index sums_ = 0;
  bool joined_ = false;
  index count_ = 0;
  std::unique_ptr<std::optional<run_update>[]> runs_;
};

}  // namespace brgemm::inline abi_0::detail
