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

/// How the weight update divides its work: never what it computes. 0: what the plan thinks best. Not of depthwise
/// layers.
struct conv_update_schedule {
  std::int32_t pixels = 0;     ///< of a step: their x and dz are to stay in L2 for all blocks of dW
  std::int32_t band = 0;       ///< KiB of copies, where x and dz are copied
  std::int32_t copies = 0;     ///< f32: 1: x and dz are copied; -1: never. bf16 is always
  std::int32_t streaming = 0;  ///< 1: dW goes past the caches where it is written once; -1: never; 0: if above 1 MiB
  friend bool operator==(const conv_update_schedule&, const conv_update_schedule&) = default;
};

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
  conv_update_schedule schedule = {};
  bool turned = false;  ///< bf16: copies of x are transposed, which tiles read, else pairs of pixels as those of dz
};

/// Whether the backend that is best for rows of A takes no pairs of them.
inline bool takes_rows_only(const conv_update_desc& of, const options& how) noexcept {
  if (of.data == type::f32) return false;
  desc d;
  d.m = d.n = d.k = d.lda = d.ldb = d.ldc = nn::block_rows;
  d.a = d.b = of.data;
  d.sums = of.sums;
  d.layout_b = layout::interleaved;
  desc pairs = d;
  pairs.layout_a = layout::interleaved;
  return loses_backend(pairs, d, how);
}

/// What the outputs of one run of the width, or all of them, add to dW (groups, taps, in, out) and db (groups, out).
/// Each sum is one chain over the images, then the pixels of y in row-major order; pixels that see no input through a
/// tap add no term to its sum. bf16: over pairs of those of a row of y, from its first one.
///
/// A row of y is a batch entry, its pixels are k. In f32 the kernels read x and dz in place, but for layers of one tap
/// whose pixels are far apart: there they fall on few sets of the caches and each on a page of its own. Of such layers
/// and of bf16, which needs pixels in pairs, bands are copied, for all taps.
class run_update {
 public:
  /// Of all outputs, or of those of `run`, whose taps of a row are then one with taps * in channels.
  static result<run_update> make(const conv_update_desc& of, const conv_run* run, const options& how) noexcept {
    run_update u;
    u.groups_ = of.groups, u.in_ = of.in, u.out_ = of.out, u.data_ = of.data, u.sums_order_ = of.sums,
    u.turned_ = of.turned, u.schedule_ = of.schedule;
    u.set_axes(of.forward);
    u.tap_step_ = of.in * of.out;
    if (run != nullptr) u.join_taps(*run);
    u.narrow_panels();
    u.join_rows(run == nullptr);
    if (auto r = u.plan_copies(); !r) return r.error();
    u.plan_bands(of.images);
    u.copies_ ? u.place_copies() : u.place_tensors();
    if (auto r = u.plan_taps(); !r) return r.error();
    if (auto r = u.plan_kernels(run == nullptr && u.can_stream(), how); !r) return r.error();
    return u;
  }

  index workspace_bytes() const noexcept {
    if (!copies_) return 0;
    return groups_ * (panels(true) * x_.panel + panels(false) * z_.panel) * size_of(data_);
  }

  /// db may be null. `continues`: to the sums that are there.
  void operator()(loops::executor_ref threads, index images, const void* x, const void* dz, float* dw, float* db,
                  bool continues, void* workspace) const noexcept {
    const index rows = images * image_rows();
    const index size = size_of(data_);
    x = static_cast<const char*>(x) + first_x_ * size;
    dz = static_cast<const char*>(dz) + first_z_ * size;
    dw += first_w_;
    const bool once = streaming_ && !continues && rows <= step_rows_ && is_on_lines(dw);
    if (!copies_) return add_products(threads, {0, rows}, {x, dz, continues, once}, dw, db);
    const index most = threads.threads() == 1 ? own_band_rows_ : band_rows_;
    for (index first = 0, end = 0; first < rows; first = end) {
      end = end_of(first, most, rows);
      const box z = box_of(first, end);
      const box b = seen_by(z);
      auto* const copy = static_cast<char*>(workspace);
      char* const copy_of_z = copy + groups_ * panels(true) * x_.panel * size;
      copy_band(threads, b, static_cast<const char*>(x), copy, z, static_cast<const char*>(dz), copy_of_z);
      operands from{copy,
                    copy_of_z,
                    continues,
                    once && end - first == rows,
                    z.image,
                    b.depth * x_.depth + b.row * x_.row,
                    z.depth * z_.depth + z.row * z_.row};
      if (end < rows) {
        const box next = box_of(end, end_of(end, most, rows));
        from.panel_bytes = z.count() * z_.row * size;
        from.next[0] = region_of(true, seen_by(next), x), from.next[1] = region_of(false, next, dz);
      }
      add_products(threads, {first, end}, from, dw, db);
    }
  }

 private:
  static constexpr index step_pixels = 512;        ///< whose x and dz are in L2 for all taps
  static constexpr index cached_bytes = 32 << 10;  ///< of dz in L1, where x has too few channels to read it from L2
  static constexpr index few_channels = 16;
  static constexpr index few_products = 8;
  static constexpr index narrow_width = 32;
  static constexpr index band_bytes = index{512} << 10;      ///< of copies
  static constexpr index large_band_bytes = index{2} << 20;  ///< where dW does not stay in L2
  static constexpr index dw_in_l2 = index{512} << 10;        ///< bytes
  static constexpr index dw_streamed = index{1} << 20;       ///< a larger one goes past the caches
  static constexpr index least_band = 256;                   ///< pixels
  static constexpr index joined_pixels = 128;
  static constexpr std::uint16_t prefetched = 2;  ///< one row of a copy of so many
  static constexpr index panels_at_once = 4;      ///< copied from the same pixels
  static constexpr index far_apart = 8192;        ///< bytes

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
    index panel = 0;  ///< of channels, of copies
    index ld = 0;
    index from_image = 0, from_depth = 0, from_row = 0, from_line = 0, from_pixel = 0;
    index line = 1;   ///< pixels of a row before rows were joined
    index block = 0;  ///< channels that are adjacent, and from one such block to the next
    index from_block = 0;
    constexpr index channel(index c) const noexcept { return c / block * from_block + c % block; }
  };
  /// Memory that is copied next; none: 0 bytes.
  struct region {
    index first = 0;  ///< address
    index bytes = 0;
  };
  /// What kernels read: x and dz from image `image` on, the first elements being the origins.
  struct operands {
    const void* x;
    const void* z;
    bool continues = false;  ///< to the sums that are there
    bool streams = false;    ///< dW is written once
    index image = 0;
    index x_origin = 0;
    index z_origin = 0;
    region next[2] = {};
    index panel_bytes = 0;  ///< of dz
  };
  /// What a copy of a row has: `count` pixels from `first`; of x every stride-th one.
  struct row_copy {
    index first = 0;
    index count = 0;
    friend bool operator==(const row_copy&, const row_copy&) = default;
  };
  /// A row is copied once for each way that the taps need.
  struct row_copies {
    index count = 0;
    std::unique_ptr<row_copy[]> list;
    index number_of(const row_copy& c) const noexcept {
      return std::find(list.get(), list.get() + count, c) - list.get();
    }
    void add(const row_copy& c) noexcept {
      if (number_of(c) == count) list[at(count++)] = c;
    }
  };
  /// In pairs from the first or the second pixel that a tap can begin at; transposed, pairs begin anywhere.
  row_copy copy_of_x(const seen_outputs& w) const noexcept {
    const conv_axis& a = axes_[2];
    const index first = w.in % (turned_ ? a.stride : 2 * a.stride);
    return {first, (a.in - first + a.stride - 1) / a.stride};
  }
  /// What an odd last pixel of dz is paired with is 0, so a tap that is seen by an odd number of pixels and not by the
  /// last one of a row has its own.
  row_copy copy_of_z(const seen_outputs& w) const noexcept {
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

  index channels(bool of_x) const noexcept { return of_x ? in_ : out_; }
  index width(bool of_x) const noexcept { return of_x ? width_in_ : width_out_; }
  index panels(bool of_x) const noexcept { return (channels(of_x) + width(of_x) - 1) / width(of_x); }
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
    const index products = groups_ * panels(true) * panels(false) * taps();
    const index blocks = products + (db != nullptr ? groups_ * panels(false) : 0);
    const index parts = std::min<index>(blocks, threads.threads());
    loops::parallel_for<tile_scope>(threads, {parts}, [&](tile_scope& tiles, index part) {
      for (stretch s{band.first, band.first}; s.first < band.end; s.first = s.end) {
        s.end = end_of(s.first, step_rows_, band.end);
        for (index i = blocks * part / parts; i < blocks * (part + 1) / parts; ++i) {
          i < products ? add_product(i, s, from, dw, tiles) : add_sum(i - products, s, from, db, tiles);
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

  void add_product(index i, stretch s, const operands& from, float* dw, tile_scope& tiles) const noexcept {
    const index tap = i % taps();
    i /= taps();
    const index panel_out = i % panels(false);
    i /= panels(false);
    const index panel_in = i % panels(true);
    const index group = i / panels(true);
    arguments call;
    if (!place_rows(taps_[at(tap)], s, from, call)) return;
    const index channel_in = panel_in * width(true);
    const index channel_out = panel_out * width(false);
    call.a = static_cast<const char*>(call.a) + panel_at(true, group, panel_in) * size_of(data_);
    call.b = static_cast<const char*>(call.b) + panel_at(false, group, panel_out) * size_of(data_);
    if (tap == 0) {
      const index panel = address_of(from.z) + panel_at(false, group, panel_out) * size_of(data_);
      call.prefetch = to_next((group * panels(true) + panel_in) * panels(false) + panel_out, from, panel);
    }
    call.c = dw + (group * taps() + tap) * tap_step_ + channel_in * out_ + channel_out;
    const bool full_in = channel_in + width(true) <= in_;
    const bool full_out = channel_out + width(false) <= out_;
    const auto& kernels = from.streams ? streaming_ : kernels_;
    tiles.call(kernels[at(tap % axes_[2].kernel)][full_in][full_out], call);
  }

  /// Where pixels, lines and images follow each other without gaps.
  region region_of(bool of_x, const box& b, const void* tensor) const noexcept {
    const placement& p = of_x ? x_ : z_;
    if (groups_ * channels(of_x) > p.block || p.from_pixel > p.block || p.from_line > p.line * p.from_pixel) return {};
    const index first = b.image * p.from_image + b.depth * p.from_depth + b.row * p.from_row;
    const index size = (b.images - 1) * p.from_image + (b.depths - 1) * p.from_depth + b.rows * p.from_row;
    return {address_of(tensor) + first * size_of(data_), size * size_of(data_)};
  }
  /// From the panel of dz that a product reads to what it is to fetch, as much as that: of x first, then of dz.
  static index to_next(index product, const operands& from, index panel) noexcept {
    index at = product * from.panel_bytes;
    for (const region& r : from.next) {
      if (at < r.bytes) return r.first + at - panel;
      at -= r.bytes;
    }
    return 0;
  }

  void add_sum(index i, stretch s, const operands& from, float* db, tile_scope& tiles) const noexcept {
    const index panel = i % panels(false);
    const index group = i / panels(false);
    const index channel = panel * width(false);
    arguments call;
    if (!place_rows(taps_[at(taps())], s, from, call)) return;
    call.a = ones_.get();
    call.b = static_cast<const char*>(call.b) + panel_at(false, group, panel) * size_of(data_);
    call.c = db + group * out_ + channel;
    tiles.call(sums_[channel + width(false) <= out_], call);
  }

  index panel_at(bool of_x, index group, index panel) const noexcept {
    const placement& p = of_x ? x_ : z_;
    return copies_ ? (group * panels(of_x) + panel) * p.panel : p.channel(group * channels(of_x) + panel * width(of_x));
  }
  static index address_of(const void* p) noexcept { return static_cast<index>(reinterpret_cast<std::uintptr_t>(p)); }
  static std::size_t at(index i) noexcept { return static_cast<std::size_t>(i); }
  static bool is_on_lines(const float* dw) noexcept { return address_of(dw) % streaming_alignment == 0; }

  void copy_band(loops::executor_ref threads, const box& bx, const char* x, char* x_copy, const box& bz, const char* z,
                 char* z_copy) const noexcept;
  void copy_row(bool of_x, index first, index end, const char* from, char* to) const noexcept;
  template <class Row>
  void copy_pixels(bool of_x, index first, index end, const Row& row, index pixel, index count,
                   char* copy) const noexcept;

  void set_axes(const conv_geometry& g) noexcept;
  void join_taps(const conv_run& run) noexcept;
  void narrow_panels() noexcept;
  void join_rows(bool adjacent) noexcept;
  void plan_bands(index images) noexcept;
  void place_tensors() noexcept;
  void place_copies() noexcept;
  result<void> plan_copies() noexcept;
  result<void> plan_taps() noexcept;
  index column_of_x(const seen_outputs& w) const noexcept;
  void list_rows(const planned_tap& t, const seen_outputs& w) noexcept;
  bool can_stream() const noexcept;
  result<void> plan_kernels(bool streams, const options& how) noexcept;
  desc product_desc(index tap_w, index m, index n) const noexcept;
  desc sum_desc(index n) const noexcept;

  /// bf16: pixels of a copy of a row of x.
  index columns_of_x() const noexcept { return ((axes_[2].in + axes_[2].stride - 1) / axes_[2].stride + 1) / 2 * 2; }
  /// bf16: elements of a copy of a row.
  index pitch(bool of_x) const noexcept {
    return of_x ? columns_of_x() * width(true) : (axes_[2].out() + 1) / 2 * 2 * width(false);
  }

  index groups_ = 1;
  index in_ = 1;
  index out_ = 1;
  index width_in_ = 1;  ///< of a panel of channels
  index width_out_ = 1;
  type data_ = type::f32;
  order sums_order_ = order::machine;
  bool copies_ = false;
  bool turned_ = false;
  conv_update_schedule schedule_;
  conv_axis axes_[3];  ///< rows joined, and as copies have them
  index first_x_ = 0;  ///< elements of x, dz and dW before those of the run
  index first_z_ = 0;
  index first_w_ = 0;
  index tap_step_ = 0;  ///< of dW
  index step_rows_ = 1;
  index band_rows_ = 1;
  index own_band_rows_ = 1;  ///< of one thread, which need not wait for others between copies and products
  placement x_;
  placement z_;
  row_copies copies_of_x_;
  row_copies copies_of_z_;               ///< the first one of all pixels
  std::unique_ptr<planned_tap[]> taps_;  ///< and one that all outputs see, for db
  std::unique_ptr<offset_pair[]> pairs_;
  std::unique_ptr<kernel[][2][2]> kernels_;    ///< [tap of the width][full in][full out]
  std::unique_ptr<kernel[][2][2]> streaming_;  ///< the same, past the caches; null where dW stays in them
  std::unique_ptr<std::uint32_t[]> ones_;      ///< (a row of y)
  kernel sums_[2];                             ///< [full out]
};

inline void run_update::set_axes(const conv_geometry& g) noexcept {
  std::copy(g.axes, g.axes + 3, axes_);
  x_.from_image = g.image_in(), x_.from_depth = g.step_in(0), x_.from_line = g.step_in(1);
  z_.from_image = g.image_out(), z_.from_depth = g.step_out(0), z_.from_line = g.step_out(1);
  x_.from_pixel = x_.block = g.in.pixel(), x_.from_block = g.in.pixel() * g.pixels_in();
  z_.from_pixel = z_.block = g.out.pixel(), z_.from_block = g.out.pixel() * g.pixels_out();
  width_in_ = g.in.panel_width(in_), width_out_ = g.out.panel_width(out_);
}

/// Taps of a row are adjacent in x as they are in dW.
inline void run_update::join_taps(const conv_run& run) noexcept {
  first_x_ = run.in * x_.from_pixel;
  first_z_ = run.first * z_.from_pixel;
  first_w_ = run.tap * in_ * out_;
  tap_step_ *= axes_[2].kernel;
  in_ *= run.taps;
  x_.block = in_;
  width_in_ = nn::block_width(in_);
  x_.from_pixel *= axes_[2].stride;
  axes_[2] = {run.count};
}

/// A dW of few blocks has smaller ones where four threads, or two, then have as many each: of the channels that are
/// more where both do. A block of the layout is a whole number of them.
inline void run_update::narrow_panels() noexcept {
  const index products = groups_ * panels(true) * panels(false) * taps();
  if (products >= few_products) return;
  const auto worth = [](index count) { return count % 4 == 0 ? 2 : count % 2 == 0 ? 1 : 0; };
  int best = worth(products);
  index* narrowed = nullptr;
  for (const bool of_x : {in_ >= out_, in_ < out_}) {
    const index block = (of_x ? x_ : z_).block;
    const bool whole = channels(of_x) % narrow_width == 0 && (block >= channels(of_x) || block % narrow_width == 0);
    if (width(of_x) <= narrow_width || !whole) continue;
    const int worth_then = worth(products / panels(of_x) * (channels(of_x) / narrow_width));
    if (worth_then > best) best = worth_then, narrowed = of_x ? &width_in_ : &width_out_;
  }
  if (narrowed != nullptr) *narrowed = narrow_width;
}

/// Where each pixel of y sees just one of x, rows that follow each other are one: longer sums a batch entry. Copies
/// leave out what a stride of one tap leaves out. `adjacent`: all columns of y are there.
inline void run_update::join_rows(bool adjacent) noexcept {
  const index pixel = std::max(axes_[2].stride * x_.from_pixel, z_.from_pixel) * size_of(data_);
  const bool far = taps() == 1 && pixel >= far_apart;
  copies_ = data_ != type::f32 || schedule_.copies > 0 || (schedule_.copies == 0 && far);
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
  x_.line = axes_[2].in, z_.line = axes_[2].out();
  index joined = joins ? std::clamp<index>(joined_pixels / x_.line, 1, axes_[1].in) : 1;
  while (axes_[1].in % joined != 0) --joined;
  x_.from_row = x_.from_line * joined, z_.from_row = z_.from_line * joined;
  if (joined > 1) axes_[1].in /= joined, axes_[2].in *= joined;
}

inline void run_update::plan_bands(index images) noexcept {
  const index columns = axes_[2].out();
  const auto rows_of = [&](index pixels) {
    const index rows = std::min(std::max<index>(pixels / columns, 1), images * image_rows());
    return rows >= image_rows() ? rows / image_rows() * image_rows() : std::min(rows, axes_[1].out());
  };
  const index pixel = width(false) * size_of(data_);
  step_rows_ = rows_of(schedule_.pixels > 0  ? schedule_.pixels
                       : in_ <= few_channels ? std::max<index>(cached_bytes / pixel, 1)
                                             : step_pixels);
  if (!copies_) return;
  // dW is read and written once a band: of one that does not stay in L2 there are fewer.
  const bool stays = groups_ * taps() * in_ * out_ * 4 <= dw_in_l2;
  const index copied = groups_ * (copies_of_x_.count * in_ + copies_of_z_.count * out_) * size_of(data_);
  const auto band_of = [&](index bytes) {
    return rows_of(schedule_.band > 0 ? (index{schedule_.band} << 10) / copied : std::max(bytes / copied, least_band));
  };
  band_rows_ = band_of(stays ? band_bytes : large_band_bytes);
  own_band_rows_ = band_of(stays ? band_bytes / 2 : large_band_bytes);
}

inline void run_update::place_tensors() noexcept {
  x_.image = x_.from_image, x_.depth = x_.from_depth, x_.row = x_.from_row;
  x_.ld = axes_[2].stride * x_.from_pixel;
  z_.image = z_.from_image, z_.depth = z_.from_depth, z_.row = z_.from_row;
  z_.ld = z_.from_pixel;
}

/// A panel of channels of a band behind the other. In f32 its pixels have the panel's width; in bf16 they are in pairs,
/// or each row of x is transposed, (channels, pixels).
inline void run_update::place_copies() noexcept {
  const index width_in = width(true);
  const index width_out = width(false);
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
  place(x_, x, copies_of_x_.count * pitch(true));
  x_.ld = turned_ ? columns_of_x() : width_in;
  place(z_, z, copies_of_z_.count * pitch(false));
  z_.ld = width_out;
}

/// Copies rows of x and dz. Panels of a row go together, so that the pixels that are read follow each other, but where
/// there are fewer rows than threads.
inline void run_update::copy_band(loops::executor_ref threads, const box& bx, const char* x, char* x_copy,
                                  const box& bz, const char* z, char* z_copy) const noexcept {
  const index rows = std::max(bx.count(), bz.count());
  const index at_once = rows < threads.threads() ? 1 : panels_at_once;
  const index sets_in = (panels(true) + at_once - 1) / at_once;
  const index sets_out = (panels(false) + at_once - 1) / at_once;
  const index size = size_of(data_);
  loops::parallel_for(threads, {rows, groups_ * (sets_in + sets_out)}, [&](index row, index i) {
    const bool of_x = i < groups_ * sets_in;
    const box& b = of_x ? bx : bz;
    if (row >= b.count()) return;
    if (!of_x) i -= groups_ * sets_in;
    const placement& p = of_x ? x_ : z_;
    const index group = i / (of_x ? sets_in : sets_out);
    const index panel = i % (of_x ? sets_in : sets_out) * at_once;
    const index end = std::min(panel + at_once, panels(of_x));
    const index place[3] = {row / b.rows / b.depths, row / b.rows % b.depths, row % b.rows};
    const index from = (b.image + place[0]) * p.from_image + (b.depth + place[1]) * p.from_depth +
                       (b.row + place[2]) * p.from_row + p.channel(group * channels(of_x));
    const index to = group * panels(of_x) * p.panel + place[0] * p.image + place[1] * p.depth + place[2] * p.row;
    copy_row(of_x, panel, end, (of_x ? x : z) + from * size, (of_x ? x_copy : z_copy) + to * size);
  });
}

/// Panels from `first` to `end` - 1 of a row: 64 pixels at a time, of them panel after panel.
inline void run_update::copy_row(bool of_x, index first, index end, const char* from, char* to) const noexcept {
  const placement& p = of_x ? x_ : z_;
  const index size = size_of(data_);
  const row_copies& copies = of_x ? copies_of_x_ : copies_of_z_;
  const index step = (of_x && data_ != type::f32 ? axes_[2].stride : 1) * p.from_pixel * size;
  const index gap = (p.from_line - p.line * p.from_pixel) * size;  // between lines that were joined, of stride 1
  const bool has_gaps = gap != 0 && p.line < (of_x ? axes_[2].in : axes_[2].out());
  for (index c = 0; c < copies.count; ++c) {
    const row_copy& pixels = copies.list[at(c)];
    const char* const begin = from + pixels.first * p.from_pixel * size;
    char* const copy = to + c * pitch(of_x) * size;
    for (index pixel = 0; pixel < pixels.count; pixel += nn::block_rows) {
      const index count = std::min(pixels.count - pixel, nn::block_rows);
      if (!has_gaps) {
        const auto row = [=, at = begin + pixel * step](index i) BRGEMM_ALWAYS_INLINE { return at + i * step; };
        copy_pixels(of_x, first, end, row, pixel, count, copy);
        continue;
      }
      const char* places[nn::block_rows];
      for (index i = 0; i < count; ++i) places[i] = begin + (pixel + i) * step + (pixel + i) / p.line * gap;
      copy_pixels(
          of_x, first, end, [&](index i) BRGEMM_ALWAYS_INLINE { return places[i]; }, pixel, count, copy);
    }
  }
}

/// `count` pixels, from number `pixel` of the copy, of which row(i) is the first channel.
template <class Row>
void run_update::copy_pixels(bool of_x, index first, index end, const Row& row, index pixel, index count,
                             char* copy) const noexcept {
  const placement& p = of_x ? x_ : z_;
  const index width = this->width(of_x);
  for (index panel = first; panel < end; ++panel) {
    const index columns = extent_of_block(channels(of_x), width, panel);
    const index channel = p.channel(panel * width) * size_of(data_);
    char* const to = copy + panel * p.panel * size_of(data_);
    if (data_ == type::f32) {
      for (index i = 0; i < count; ++i) {
        std::memcpy(to + (pixel + i) * width * 4, row(i) + channel, at(columns) * 4);
      }
      continue;
    }
    const auto elements = [&row, channel](index i)
                              BRGEMM_ALWAYS_INLINE { return reinterpret_cast<const std::uint16_t*>(row(i) + channel); };
    if (of_x && turned_) {
      transpose_rows_at(elements, 0, reinterpret_cast<std::uint16_t*>(to) + pixel, x_.ld, count, columns);
    } else {
      auto* const pairs = reinterpret_cast<std::uint32_t*>(to) + pixel / 2 * width;
      interleave_rows_at(elements, 0, pairs, width, count, columns);
    }
  }
}

inline result<void> run_update::plan_copies() noexcept {
  if (!copies_) return {};
  for (row_copies* const c : {&copies_of_x_, &copies_of_z_}) {
    c->list.reset(new (std::nothrow) row_copy[at(axes_[2].kernel + 1)]);
    if (!c->list) return error(errc::out_of_memory, "axes", "no memory for %ld taps", axes_[2].kernel);
  }
  copies_of_z_.add({0, axes_[2].out()});
  if (data_ == type::f32) copies_of_x_.add({0, axes_[2].in});
  for (index w = 0; data_ != type::f32 && w < axes_[2].kernel; ++w) {
    const seen_outputs seen = outputs_through(axes_[2], w);
    if (seen.count == 0) continue;
    copies_of_x_.add(copy_of_x(seen));
    copies_of_z_.add(copy_of_z(seen));
  }
  return {};
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

/// Of the first pixel that a tap sees.
inline index run_update::column_of_x(const seen_outputs& w) const noexcept {
  const index stride = axes_[2].stride;
  if (data_ == type::f32) return w.in * (x_.ld / stride);
  const index column = w.in / stride;
  return copies_of_x_.number_of(copy_of_x(w)) * pitch(true) + (turned_ ? column : column / 2 * 2 * x_.ld);
}

inline void run_update::list_rows(const planned_tap& t, const seen_outputs& w) noexcept {
  const index x_column = column_of_x(w);
  const index z_column = data_ == type::f32
                             ? w.first * z_.ld
                             : copies_of_z_.number_of(copy_of_z(w)) * pitch(false) + w.first / 2 * 2 * z_.ld;
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

/// Whether a call can write all of a large dW at once, in whole lines.
inline bool run_update::can_stream() const noexcept {
  const index bytes = groups_ * taps() * in_ * out_ * 4;
  if (schedule_.streaming < 0 || (schedule_.streaming == 0 && bytes <= dw_streamed)) return false;
  const index panel = std::min(width(false), out_);
  const index most = copies_ ? std::max(own_band_rows_, band_rows_) : step_rows_;
  return out_ * 4 % streaming_alignment == 0 && panel * 4 % streaming_alignment == 0 &&
         std::min(most, step_rows_) >= image_rows();
}

/// One set of kernels for each tap of the width: they differ in how many pixels of a row see x.
inline result<void> run_update::plan_kernels(bool streams, const options& how) noexcept {
  const index widths = axes_[2].kernel;
  kernels_.reset(new (std::nothrow) kernel[at(widths)][2][2]);
  const index row = axes_[2].out();
  ones_.reset(new (std::nothrow) std::uint32_t[at(row)]);
  if (streams) streaming_.reset(new (std::nothrow) kernel[at(widths)][2][2]);
  if (!kernels_ || !ones_ || (streams && !streaming_)) {
    return error(errc::out_of_memory, "axes", "no memory for %ld kernels", widths);
  }
  const std::uint32_t one = std::bit_cast<std::uint32_t>(1.0f);
  std::fill_n(ones_.get(), row, data_ == type::f32 ? one : one | one >> 16);
  for (const bool full_out : {false, true}) {
    const index n = full_out ? width(false) : out_ % width(false);
    if (n == 0 || n > out_) continue;
    if (auto r = make_into(sums_[full_out], sum_desc(n), how); !r) return r;
    for (const bool full_in : {false, true}) {
      const index m = full_in ? width(true) : in_ % width(true);
      if (m == 0 || m > in_) continue;
      for (index w = 0; w < widths; ++w) {
        kernel& made = kernels_[at(w)][full_in][full_out];
        const desc d = product_desc(w, m, n);
        if (auto r = make_into(made, d, how); !r) return r;
        if (!streaming_) continue;
        if (auto r = make_streaming_into(streaming_[at(w)][full_in][full_out], made, d, how); !r) return r;
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
  if (copies_) d.prefetch = prefetched;
  if (data_ == type::f32) d.layout_a = layout::transposed;
  if (data_ != type::f32 && !turned_) d.layout_a = layout::interleaved;
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
    u.joined_ = d.in == d.forward.in.pixel() && d.groups == 1 && width.kernel > 1 && width.dilation == 1 &&
                width.kernel * d.in <= most_joined;
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
