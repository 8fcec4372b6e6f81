// One pass of a convolution, forward or backward by data: pieces, taps and kernels planned once, and the loop nest.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "../kernel/pack.hpp"
#include "../loops/buffers.hpp"
#include "../loops/row_product.hpp"
#include "conv_geometry.hpp"
#include "storage.hpp"

namespace brgemm::inline abi_0::detail {

/// How a pass divides its work: never what it computes, every schedule has the same bits. 0: what the plan thinks best.
struct conv_schedule {
  std::int32_t rows = 0;     ///< most outputs of a piece, which one kernel call sums
  std::int32_t weights = 0;  ///< KiB of weights that are summed in one go, between two of which C rests in memory
  std::int32_t band = 0;  ///< KiB of a band of x and y that all channels go over; -1: each panel of channels by itself
  std::int32_t streaming = 0;  ///< 1: y goes past the caches if it can; -1: never; 0: if x and y are larger than them
  std::int32_t prefetch = 0;   ///< 1, 2 or 4: each call fetches so small a part of the next weights; -1: none
  friend bool operator==(const conv_schedule&, const conv_schedule&) = default;
};

/// What a pass computes: images of `geometry` with `in` channels a group are read, `out` a group written. depthwise:
/// groups and in are 1, and each of the `out` channels is the sum over the taps of the same channel of what is read.
struct conv_pass_desc {
  index groups = 1;
  bool depthwise = false;
  index in = 1;  ///< of a group: the channels that are summed over
  index out = 1;
  index images = 1;  ///< the most of a call
  conv_geometry geometry;
  type data = type::f32;
  type c = type::f32;
  order sums = order::machine;
  int steps = 0;
  /// Steps without an operand, with a vector of (groups * out) along the columns, with a matrix that lies as C, or with
  /// a bit mask (pixels of C, mask_pitch()); their ld is the pass's to set.
  epilogue_op epilogue[max_epilogue] = {};

  static bool is_mask(const epilogue_op& o) noexcept {
    return o.kind == op_kind::relu_mask || o.kind == op_kind::multiply_mask;
  }
  /// Bytes from a pixel of a bit mask to the next.
  index mask_pitch() const noexcept { return (groups * out + 7) / 8; }

  /// Where the operands of a call begin that writes to pixels of `image` from the one at `place`, in elements, and to
  /// channels from `channel`.
  void place_operands(void* const (&operands)[max_epilogue], index image, index place, index channel,
                      arguments& call) const noexcept {
    const conv_geometry& g = geometry;
    const index pixel = image * g.pixels_out() + place / g.out.pixel();
    const index element = image * g.image_out() + place + g.channel_out(channel);
    for (int i = 0; i < steps; ++i) {
      if (operands[i] == nullptr) continue;
      const epilogue_op& o = epilogue[i];
      const index bytes = is_mask(o)                ? pixel * mask_pitch() + channel / 8
                          : o.along == axis::column ? channel * size_of(o.operand)
                                                    : element * size_of(o.operand);
      call.operand[i] = static_cast<char*>(operands[i]) + bytes;
    }
  }
  /// The steps, for a kernel whose rows of C are `ldc` elements apart, a multiple of a pixel's.
  void append_steps(desc& k, index ldc) const noexcept {
    for (int i = 0; i < steps; ++i) {
      epilogue_op o = epilogue[i];
      if (is_mask(o)) {
        o.ld = std::max(ldc / geometry.out.pixel() * mask_pitch(), (k.n + 7) / 8);
      } else if (o.kind == op_kind::add) {
        o.ld = k.ldc;
      }
      append(k, o);
    }
  }
};

/// Sums go by chunks of 64 input channels (the last shorter), in a chunk by tap in row-major order, in a tap by
/// channel; of 8-bit types, whose sums are exact, all channels are one chunk.
class conv_pass {
 public:
  static result<conv_pass> make(const conv_pass_desc& d, const options& how,
                                const conv_schedule& schedule = {}) noexcept {
    conv_pass p;
    p.d_ = d;
    p.schedule_ = schedule;
    p.width_ = d.depthwise ? p.depthwise_width() : d.geometry.out.panel_width(d.out);
    if (p.is_8bit()) p.chunk_ = d.in;
    p.panel_ = p.chunk_begin(d.in / p.chunk_) + p.taps() * p.padded(d.in % p.chunk_) * p.width_;
    if (auto r = p.plan_rows(); !r) return r.error();
    p.plan_steps();
    p.lines_ = p.has_lines();
    if (auto r = p.plan_pieces(); !r) return r.error();
    auto r = p.plan_kernels(how);
    if (p.lines_ && (r ? p.lines_lose_backend(how) : r.error().code() == errc::unsupported)) {
      p.lines_ = false;
      if (auto again = p.plan_pieces(); !again) return again.error();
      r = p.plan_kernels(how);
    }
    if (!r) return r.error();
    return p;
  }

  const conv_geometry& geometry() const noexcept { return d_.geometry; }
  index image_in() const noexcept { return d_.geometry.image_in(); }
  index image_out() const noexcept { return d_.geometry.image_out(); }
  index packed_bytes() const noexcept { return sums_at() + (is_8bit() ? boxes_ * sums_of_box() * 4 : 0); }
  std::string_view backend() const noexcept { return (kernels_[0][0] ? kernels_[0][0] : kernels_[0][1]).backend(); }

  /// Channels of C of a panel of weights, and the elements from the weight of one to that of the next.
  index panel_width() const noexcept { return width_; }
  index k_group() const noexcept { return d_.depthwise ? 1 : k_group_of(d_.data); }

  /// Calls each(element) for each place in `packed` of weight (group, in, tap, out): one, but in rows of taps as many
  /// as there are runs that see it.
  template <class Each>
  void for_places(index group, index in, index tap, index out, Each&& each) const noexcept {
    if (d_.depthwise) out = std::exchange(group, 0);
    const index of_k = k_group();
    const index panel = (group * panels() + out / width_) * panel_ + out % width_ * of_k;
    const auto place = [&](index begin, index k) { each(panel + begin + k / of_k * of_k * width_ + k % of_k); };
    if (rows_count_ == 0) {
      const index chunk = in / chunk_;
      const index rows = padded(std::min(chunk_, d_.in - chunk * chunk_));
      return place(chunk_begin(chunk) + tap * rows * width_, in % chunk_);
    }
    const index width = axis(2).kernel;
    for (index i = 0; i < rows_count_; ++i) {
      const tap_row& r = rows_[static_cast<std::size_t>(i)];
      const index first = tap % width - r.tap;
      if (first < 0 || first >= r.taps) continue;
      place(r.begin + tap / width * padded(r.taps * d_.in) * width_, first * d_.in + in);
    }
  }

  /// 8-bit types: what a zero point of A is multiplied by, the sums of `packed` over the taps that pieces see, from
  /// weight(group, in, tap, out).
  template <class Weight>
  void sum_weights(loops::executor_ref threads, const Weight& weight, void* packed) const noexcept;

  index mask_bytes() const noexcept { return d_.geometry.pixels_out() * d_.mask_pitch(); }

  /// operands: one an epilogue step, null where a step has none. zero_a: of 8-bit types.
  void operator()(loops::executor_ref threads, index images, const void* a, const void* b, void* c,
                  void* const (&operands)[max_epilogue], std::int32_t zero_a = 0) const noexcept {
    const tensors of_call{a, b, c, operands, zero_a, kernels_of(images, c)};
    const index most = clears_ ? cached_bytes / bytes_of_image() : images;
    const index chunks = (images + most - 1) / most;
    for (index i = 0; i < chunks; ++i) {
      const index first = images * i / chunks;
      const index count = images * (i + 1) / chunks - first;
      if (clears_) clear(threads, first, count, c);
      sum_images(threads, first, count, of_call);
    }
  }

 private:
  struct tensors {
    const void* a;
    const void* b;
    void* c;
    void* const (&operands)[max_epilogue];
    std::int32_t zero_a;
    const kernel (*kernels)[2];
  };

  void sum_images(loops::executor_ref threads, index first, index images, const tensors& of_call) const noexcept {
    const index bytes = bytes_of_image();
    const bool shared = d_.geometry.in.pixel() > (d_.depthwise ? width_ : d_.in);
    const bool not_cached = panels() > 1 && images * bytes > cached_bytes;
    if (schedule_.band > 0) {
      return sum_by_bands(threads, first, images, bytes / (index{schedule_.band} << 10), of_call);
    }
    // Each band reads all weights, each panel all of x: what is less.
    const index weights = sums_at();
    const bool less = weights < image_in() * size_of(d_.data) * panels();
    if (schedule_.band == 0 && (shared || (not_cached && less))) {
      return sum_by_bands(threads, first, images, std::min(bytes / band_bytes, bytes / weights), of_call);
    }
    // Images that caches keep from one panel to the next.
    const index most = not_cached && schedule_.band == 0 ? std::max<index>(cached_bytes / bytes, 1) : images;
    const index chunks = (images + most - 1) / most;
    for (index i = 0; i < chunks; ++i) {
      sum_by_panels(threads, first + images * i / chunks, first + images * (i + 1) / chunks, of_call);
    }
  }

  /// Chunks of channels that are summed in one go; between two C rests in memory.
  struct step {
    index first = 0;     ///< entries a tap before those of the step
    index entries = 1;   ///< a tap
    index channels = 0;  ///< of an entry
    bool last = false;
    index begin = 0;  ///< of its weights in a panel, in bytes
  };
  struct planned_piece {
    conv_piece place;
    index taps = 0;     ///< of each entry a tap; joined ones are one
    index kernels = 0;  ///< of the first step
    index pairs = 0;    ///< of the first chunk
    index box = 0;
  };
  /// What one task sums: a band of the pieces of each of some images, for one panel of a group.
  struct part {
    index group, panel, image, images, band, bands;
    index next;  ///< panel, of all groups'
  };
  /// Taps of a row that a run of the width sees, and where in a panel their weights begin.
  struct tap_row {
    index tap, taps, begin;
  };
  static constexpr int most_steps = 32;
  static constexpr index most_joined = 64;  ///< channels of a row of taps, where instructions take those of two taps
  static constexpr index band_bytes = 512 << 10;
  static constexpr index set_bytes = 256 << 10;    ///< of images that share the weights of a step while L2 has them
  static constexpr index cached_bytes = 12 << 20;  ///< of x and y in the caches from one panel to the next
  static constexpr index most_of_line = 14;        ///< outputs: one block of a kernel's rows, of two vectors of columns
  static constexpr index short_line = 10;          ///< of up to four, or of two where the epilogue takes registers
  static constexpr index weights_read_twice = 6 << 20;  ///< bytes; more of them come from too far
  static constexpr index weights_in_l2 = 512 << 10;     ///< bytes, of all
  static constexpr index few_outputs = 256;             ///< pixels of an image
  static constexpr std::int32_t prefetched = 4;         ///< one row of weights of so many
  static constexpr index weights_in_l1 = 32 << 10;      ///< bytes of a panel: pieces then go in the order of memory

  conv_pass() = default;

  const conv_axis& axis(int i) const noexcept { return d_.geometry.axes[i]; }
  index bytes_of_image() const noexcept { return image_in() * size_of(d_.data) + image_out() * size_of(d_.c); }
  index panels() const noexcept { return (d_.out + width_ - 1) / width_; }
  index all_panels() const noexcept { return d_.groups * panels(); }
  index taps() const noexcept { return axis(0).kernel * axis(1).kernel * axis(2).kernel; }
  bool is_8bit() const noexcept { return detail::is_8bit(d_.data); }
  /// Sums of weights, one a box and channel of C, lie behind the panels.
  index sums_of_box() const noexcept { return all_panels() * width_; }
  index sums_at() const noexcept { return (all_panels() * panel_ * size_of(d_.data) + 3) / 4 * 4; }
  const std::int32_t* sums_in(const void* packed) const noexcept {
    return reinterpret_cast<const std::int32_t*>(static_cast<const char*>(packed) + sums_at());
  }
  /// Channels of a chunk, rounded up to what an instruction takes.
  index padded(index channels) const noexcept { return (channels + k_group() - 1) / k_group() * k_group(); }
  index chunk_begin(index chunk) const noexcept { return chunk * taps() * padded(chunk_) * width_; }
  /// Whether the taps of a row are one entry: one chunk whose channels are adjacent to the next tap's; depthwise, taps
  /// as far apart as pixels, in either direction, or pixels some whole number of times as far.
  bool joins_taps(const conv_piece& p) const noexcept {
    if (!d_.depthwise) return joins_taps();
    if (p.tap_a == p.lda || p.tap_a == -p.lda) return true;
    return p.tap_a > 0 && p.lda % p.tap_a == 0 && p.lda < 1 << 20;  // 32 of them are in an instruction's reach
  }
  bool joins_taps() const noexcept {
    return !d_.depthwise && d_.in <= chunk_ && (d_.in == padded(d_.in) || axis(2).kernel * d_.in <= most_joined) &&
           d_.in == d_.geometry.in.pixel() && !d_.geometry.backward && axis(2).dilation == 1;
  }
  /// Whether pieces may be lines: of images so narrow that edges are much of them. A tap of a chunk is then an entry.
  /// The sums of weights for a zero point are those of boxes, whose outputs see the same taps.
  bool has_lines() const noexcept {
    const index width = d_.geometry.size_out(2);
    const index rest = d_.in % chunk_;
    const bool costly = std::any_of(d_.epilogue, d_.epilogue + d_.steps,
                                    [](const epilogue_op& o) { return is_transcendental(o.kind); });
    return schedule_.rows == 0 && !d_.depthwise && !is_8bit() && !joins_taps() && axis(2).kernel > 1 &&
           width <= (sums_at() <= weights_read_twice && !costly ? most_of_line : short_line) &&
           entry_channels(std::min(chunk_, d_.in)) == std::min(chunk_, d_.in) &&
           (rest == 0 || entry_channels(rest) == rest);
  }
  /// Whether another backend is best for sums of all rows of every entry, as tiles are.
  bool lines_lose_backend(const options& how) const noexcept {
    const desc& line = (kernels_[0][0] ? kernels_[0][0] : kernels_[0][1]).description();
    desc all = line;
    std::fill(std::begin(all.rows), std::end(all.rows), row_range{});
    return loses_backend(line, all, how);
  }
  const tap_row* row_of(const conv_run& run) const noexcept {
    const auto sees = [&](const tap_row& r) { return r.taps == run.taps && (run.taps == 0 || r.tap == run.tap); };
    const tap_row* const end = rows_.get() + rows_count_;
    const tap_row* const found = std::find_if(static_cast<const tap_row*>(rows_.get()), end, sees);
    return found == end ? nullptr : found;
  }
  index taps_of(const conv_piece& p) const noexcept {
    return joins_taps(p) ? (p.taps_w == 0 ? 0 : p.taps / p.taps_w) : p.taps;
  }

  /// Channels of a batch entry, in a chunk of `channels`: those of a block, or of as large a part of one as divides
  /// the chunk too.
  index entry_channels(index channels) const noexcept {
    const index block = d_.geometry.in.pixel();
    return channels <= block ? channels : std::gcd(channels, block);
  }
  /// Of a panel: channels that are in one block of what is read and of what is written.
  index depthwise_width() const noexcept {
    const index width = std::min(d_.out, most_depthwise);
    return d_.geometry.in.depthwise_width(d_.geometry.out.depthwise_width(width));
  }

  /// Outputs that see no tap, and that no step changes.
  bool is_zero(const planned_piece& p) const noexcept {
    return p.taps == 0 && std::all_of(d_.epilogue, d_.epilogue + d_.steps,
                                      [](const epilogue_op& o) { return o.kind == op_kind::multiply_mask; });
  }
  /// Half of the outputs or more, in blocks that are written whole, of images that caches keep until sums come to them.
  bool mostly_zero() const noexcept {
    index zeros = 0;
    for (index i = 0; i < pieces_; ++i) zeros += is_zero(piece_.get()[i]) ? piece_.get()[i].place.m : 0;
    const index all = d_.geometry.pixels_out();
    const conv_channels& channels = d_.geometry.out;
    return 2 * zeros >= all && zeros < all && channels.count % channels.pixel() == 0 &&
           bytes_of_image() <= cached_bytes;
  }
  void clear(loops::executor_ref threads, index first, index images, void* c) const noexcept {
    const index bytes = images * image_out() * size_of(d_.c);
    auto* const to = static_cast<char*>(c) + first * image_out() * size_of(d_.c);
    const index parts = threads.threads();
    loops::parallel_for(threads, {parts}, [&](index i) {
      std::memset(to + bytes * i / parts, 0, static_cast<std::size_t>(bytes * (i + 1) / parts - bytes * i / parts));
    });
  }

  /// Where x and y are larger than the caches, y goes past them: nobody will find it there.
  bool streams(index images) const noexcept {
    const index cache = largest_cache_bytes();
    const double bytes = static_cast<double>(images) * static_cast<double>(bytes_of_image());
    const bool larger = cache > 0 && bytes > static_cast<double>(cache);
    return can_stream() && (schedule_.streaming > 0 || (schedule_.streaming == 0 && larger));
  }
  /// C is on lines, and written once.
  bool can_stream() const noexcept {
    const auto on_lines = [&](index elements) { return elements * size_of(d_.c) % streaming_alignment == 0; };
    return !clears_ && steps_ == 1 && size_of(d_.c) > 1 && on_lines(d_.geometry.out.pixel()) &&
           (panels() == 1 || on_lines(width_)) && (d_.groups == 1 || on_lines(d_.out));
  }
  const kernel (*kernels_of(index images, const void* c) const noexcept)[2] {
    const bool on_lines = reinterpret_cast<std::uintptr_t>(c) % static_cast<std::uintptr_t>(streaming_alignment) == 0;
    return streaming_ && on_lines && streams(images) ? streaming_.get() : kernels_.get();
  }

  /// The least bands of each of `tasks` equal ones that all threads have nearly as much work with.
  static index bands_of(loops::executor_ref threads, index tasks) noexcept {
    const index count = threads.threads();
    const auto uneven = [&](index all) { return ((all + count - 1) / count * count - all) * 16 > all; };
    index bands = 1;
    while (bands * tasks < 8 * count && uneven(bands * tasks)) ++bands;
    return bands;
  }

  /// Images that go together from step to step, so that they share the weights of one: not so many that threads lack
  /// work.
  index images_at_once(loops::executor_ref threads, index images) const noexcept {
    if (steps_ == 1) return 1;
    const conv_geometry& g = d_.geometry;
    const index channels = step_[0].entries * step_[0].channels;
    const index bytes = g.pixels_in() * channels * size_of(d_.data) + g.pixels_out() * width_ * size_of(d_.c);
    if (threads.threads() < 2) return std::clamp<index>(set_bytes / bytes, 1, images);
    const index tasks = all_panels() * images * std::min<index>(pieces_, 4);  // pieces give work too, as bands
    return std::clamp<index>(std::min(set_bytes / bytes, tasks / (index{4} * threads.threads())), 1, images);
  }

  void sum_by_panels(loops::executor_ref threads, index first, index end, const tensors& of_call) const noexcept {
    const index images = end - first;
    const index each = images_at_once(threads, images);
    const index sets = (images + each - 1) / each;
    const index bands = std::min(bands_of(threads, all_panels() * sets), pieces_);
    const auto sum = [&](tile_scope& tiles, index group, index panel, index set, index band) {
      const index begin = images * set / sets;
      const index count = images * (set + 1) / sets - begin;
      const index own = group * panels() + panel;
      const bool last = steps_ == 1 || (set + 1 == sets && band + 1 == bands);
      const index next = last ? (own + 1) % all_panels() : own;
      sum_band({group, panel, first + begin, count, band, bands, next}, of_call, tiles);
    };
    loops::parallel_for<tile_scope>(threads, {d_.groups, panels(), sets, bands}, sum);
  }
  /// Where several tasks read the same lines, or caches do not keep all images until the next panel reads them again,
  /// panels go together over a band that stays in L2.
  void sum_by_bands(loops::executor_ref threads, index first, index images, index chosen,
                    const tensors& of_call) const noexcept {
    const index bands = std::min(std::max(chosen, bands_of(threads, images)), pieces_);
    const auto sum = [&](tile_scope& tiles, index image, index band, index group, index panel) {
      const index next = (group * panels() + panel + 1) % all_panels();
      sum_band({group, panel, first + image, 1, band, bands, next}, of_call, tiles);
    };
    loops::parallel_for<tile_scope>(threads, {images, bands, d_.groups, panels()}, sum);
  }

  void sum_band(const part& t, const tensors& of_call, tile_scope& tiles) const noexcept {
    for (int s = 0; s < steps_; ++s) {
      for (index i = 0; i < t.images; ++i) sum_step(s, t, t.image + i, of_call, tiles);
    }
  }
  void sum_step(int s, const part& t, index image, const tensors& of_call, tile_scope& tiles) const noexcept {
    const index channel = t.group * d_.out + t.panel * width_;
    const index panel = t.group * panels() + t.panel;
    const index read = d_.geometry.channel_in(d_.depthwise ? channel : t.group * d_.in);
    const index written = d_.geometry.channel_out(channel);
    const bool full = (t.panel + 1) * width_ <= d_.out;
    const auto* const from = static_cast<const char*>(of_call.a) + (image * image_in() + read) * size_of(d_.data);
    auto* const to = static_cast<char*>(of_call.c) + (image * image_out() + written) * size_of(d_.c);
    arguments call;
    call.zero_a = of_call.zero_a;
    call.b = static_cast<const char*>(of_call.b) + panel * panel_ * size_of(d_.data);
    // From the weights of this step to those of the next; a piece fetches some rows of them, the one after it others.
    const index to_next = s + 1 < steps_ ? step_[s + 1].begin - step_[s].begin
                                         : (t.next - panel) * panel_ * size_of(d_.data) - step_[s].begin;
    const index row = width_ * k_group() * size_of(d_.data);
    const index first = pieces_ * t.band / t.bands;
    const index end = pieces_ * (t.band + 1) / t.bands;
    index calls = (image - t.image) * (end - first);
    for (index i = first; i < end; ++i) {
      const planned_piece& p = piece_.get()[i];
      call.a = from + p.place.a * size_of(d_.data);
      call.c = to + p.place.c * size_of(d_.c);
      call.lda = p.place.lda;
      call.pairs = pairs_.get() + p.pairs + step_[s].first * p.taps;
      call.batch = step_[s].entries * p.taps;
      call.prefetch = to_next + (calls++ & (prefetch_ - 1)) * row;
      if (is_8bit()) call.column_sums = sums_in(of_call.b) + p.box * sums_of_box() + panel * width_;
      d_.place_operands(of_call.operands, image, p.place.c, channel, call);
      tiles.call(of_call.kernels[p.kernels + s][full], call);
    }
  }

  result<void> plan_rows() noexcept;
  void plan_steps() noexcept;
  void plan_prefetch() noexcept;
  result<void> plan_pieces() noexcept;
  result<void> plan_kernels(const options& how) noexcept;
  offset_pair* list_taps(const conv_run (&box)[3], bool joined, index chunk, offset_pair* to) const noexcept;
  desc kernel_desc(const conv_piece& p, const step& s, index n) const noexcept;

  conv_pass_desc d_;
  conv_schedule schedule_;
  index width_ = 0;   ///< of a panel
  index panel_ = 0;   ///< elements of a panel
  index chunk_ = 64;  ///< channels
  index boxes_ = 0;
  bool clears_ = false;  ///< all outputs become 0 before sums; those that see no tap have no piece
  bool lines_ = false;   ///< pieces are lines, whose outputs need not see the same taps
  index prefetch_ = 0;   ///< desc::prefetch
  int steps_ = 0;
  step step_[most_steps];
  index pieces_ = 0;
  index rows_count_ = 0;
  std::unique_ptr<tap_row[]> rows_;  ///< where an instruction takes channels of two taps
  std::unique_ptr<planned_piece[]> piece_;
  std::unique_ptr<offset_pair[]> pairs_;
  std::unique_ptr<kernel[][2]> kernels_;    ///< [full width]
  std::unique_ptr<kernel[][2]> streaming_;  ///< the same, with C past the caches
};

/// Where taps are joined and an instruction's group of k has channels of two of them, groups begin at the first tap
/// that a run sees: each kind of run has weights of its own.
inline result<void> conv_pass::plan_rows() noexcept {
  if (!joins_taps() || d_.in == padded(d_.in)) return {};
  index runs = 0;
  d_.geometry.for_runs(2, [&](const conv_run&) { ++runs; });
  rows_.reset(new (std::nothrow) tap_row[static_cast<std::size_t>(runs)]);
  if (!rows_) return error(errc::out_of_memory, "axes", "no memory for %ld runs of the width", runs);
  panel_ = 0;
  double bytes = 0;
  d_.geometry.for_runs(2, [&](const conv_run& run) {
    if (row_of(run) != nullptr) return;
    rows_[static_cast<std::size_t>(rows_count_++)] = {run.tap, run.taps, panel_};
    panel_ += axis(0).kernel * axis(1).kernel * padded(run.taps * d_.in) * width_;
    bytes += static_cast<double>(all_panels() * size_of(d_.data)) * static_cast<double>(panel_);
    if (bytes > 0x1p62) panel_ = 0;
  });
  if (bytes > 0x1p62) return error(errc::out_of_memory, "axes", "weights of %g bytes for the runs of the width", bytes);
  panel_ = std::max(panel_, k_group() * width_);  // where all outputs see padding alone
  return {};
}

/// As many chunks at once as have their weights in a part of L2; a C of another type than f32 cannot rest in between.
inline void conv_pass::plan_steps() noexcept {
  const index summed_bytes = (schedule_.weights > 0 ? index{schedule_.weights} : 384) << 10;
  const index whole = d_.in / chunk_;
  const index rest = d_.in % chunk_;
  const index bytes = taps() * chunk_ * width_ * size_of(d_.data);
  index chunks = d_.c == type::f32 ? std::max<index>(1, summed_bytes / bytes) : whole;
  chunks = std::max(chunks, (whole + most_steps - 2) / (most_steps - 1));
  const index each = entry_channels(chunk_);
  const index entries = chunk_ / each;
  for (index first = 0; first < whole; first += chunks) {
    step_[steps_++] = {first * entries, std::min(chunks, whole - first) * entries, each, false,
                       chunk_begin(first) * size_of(d_.data)};
  }
  const index last = entry_channels(rest);
  if (rest != 0) step_[steps_++] = {whole * entries, rest / last, last, false, chunk_begin(whole) * size_of(d_.data)};
  step_[steps_ - 1].last = true;
}

/// Small images soon need the next weights. Where L2 has not all of them, it fetches them while it gives those before,
/// each piece a part.
inline void conv_pass::plan_prefetch() noexcept {
  const bool worth =
      !d_.depthwise && sums_at() > weights_in_l2 && d_.geometry.pixels_out() <= few_outputs && pieces_ >= prefetched;
  prefetch_ = schedule_.prefetch != 0 ? std::max(schedule_.prefetch, 0) : worth ? prefetched : 0;
}

/// Offsets of one chunk of A and of B from a piece's first tap.
inline offset_pair* conv_pass::list_taps(const conv_run (&box)[3], bool joined, index chunk,
                                         offset_pair* to) const noexcept {
  const index channels = std::min(chunk_, d_.in - chunk * chunk_);
  const index row = padded(channels) * width_;
  const index each = entry_channels(channels);
  const tap_row* const own = row_of(box[2]);
  const index along_width = joined ? std::min<index>(1, box[2].taps) : box[2].taps;
  for (index t = 0; t < box[0].taps; ++t) {
    for (index r = 0; r < box[1].taps; ++r) {
      for (index s = 0; s < along_width; ++s) {
        const index n[3] = {t, r, s};
        index a = 0;
        index tap = 0;
        for (int i = 0; i < 3; ++i) {
          a += n[i] * box[i].in_tap_step * d_.geometry.step_in(i);
          tap = tap * axis(i).kernel + box[i].tap + n[i] * box[i].tap_step;
        }
        if (own != nullptr) {
          *to++ = {a, own->begin + tap / axis(2).kernel * padded(own->taps * d_.in) * width_};
          continue;
        }
        for (index c = 0; c < channels; c += each) {
          *to++ = {a + d_.geometry.channel_in(chunk * chunk_ + c), chunk_begin(chunk) + tap * row + c * width_};
        }
      }
    }
  }
  return to;
}

template <class Weight>
void conv_pass::sum_weights(loops::executor_ref threads, const Weight& weight, void* packed) const noexcept {
  auto* const sums = reinterpret_cast<std::int32_t*>(static_cast<char*>(packed) + sums_at());
  loops::parallel_for(threads, {d_.groups, d_.out}, [&](index group, index out) {
    std::int32_t* sum = sums + group * panels() * width_ + out;
    d_.geometry.for_boxes([&](const conv_run(&box)[3]) {
      const index taps = box[0].taps * box[1].taps * box[2].taps;
      std::uint32_t total = 0;  // modulo 2^32
      for (index n = 0; n < taps; ++n) {
        const index at[3] = {n / box[2].taps / box[1].taps, n / box[2].taps % box[1].taps, n % box[2].taps};
        index tap = 0;
        for (int i = 0; i < 3; ++i) tap = tap * axis(i).kernel + box[i].tap + at[i] * box[i].tap_step;
        for (index in = 0; in < d_.in; ++in)
          total += static_cast<std::uint32_t>(d_.depthwise ? weight(out, 0, tap, 0) : weight(group, in, tap, out));
      }
      *sum = static_cast<std::int32_t>(total);
      sum += sums_of_box();
    });
  });
}

inline result<void> conv_pass::plan_pieces() noexcept {
  // Depthwise, rows of A are apart by a power of two often, and many of them do not stay in L1 beside each other.
  const index most_rows = schedule_.rows > 0 ? schedule_.rows
                          : d_.depthwise     ? std::clamp<index>(1024 / width_, 8, 64)
                                             : 64;
  const conv_geometry& g = d_.geometry;
  const index chunks = (d_.in + chunk_ - 1) / chunk_;
  const index entries = step_[steps_ - 1].first + step_[steps_ - 1].entries;
  boxes_ = 0;
  using box_of = const conv_run(&)[3];
  using rows_of = const row_range(&)[max_row_ranges];
  struct {
    index pieces = 0, pairs = 0;
    double weights = 0;  ///< that are read, in taps of a chunk
    void add(const conv_piece& p) {
      const index blocks = (p.m + most_of_line - 1) / most_of_line;
      ++pieces, weights += static_cast<double>(p.taps) * static_cast<double>(blocks);
    }
  } in_boxes, in_lines;
  const auto pairs_of = [&](box_of box) { return entries * box[0].taps * box[1].taps * box[2].taps; };
  g.for_boxes([&](box_of box) {
    in_boxes.pairs += pairs_of(box);
    g.for_pieces(box, most_rows, [&](const conv_piece& p) { in_boxes.add(p); });
  });
  lines_ = lines_ && g.for_line_boxes([&](box_of box, rows_of rows) {
    in_lines.pairs += pairs_of(box);
    g.for_lines_of(box, rows, [&](const conv_piece& p) { in_lines.add(p); });
  }) && in_lines.weights < in_boxes.weights;
  pieces_ = lines_ ? in_lines.pieces : in_boxes.pieces;
  const index pairs = lines_ ? in_lines.pairs : in_boxes.pairs;
  piece_.reset(new (std::nothrow) planned_piece[static_cast<std::size_t>(pieces_)]);
  pairs_.reset(new (std::nothrow) offset_pair[static_cast<std::size_t>(pairs + 1)]);
  if (!piece_ || !pairs_) {
    return error(errc::out_of_memory, "axes", "no memory for %ld pieces and %ld taps", pieces_, pairs);
  }
  index piece = 0;
  offset_pair* to = pairs_.get();
  const auto add = [&](const conv_piece& p) {
    planned_piece& planned = piece_.get()[piece++] = {p, taps_of(p), 0, to - pairs_.get(), boxes_};
    // The lowest row of A is then that of the last tap.
    if (d_.depthwise && p.taps > 0 && joins_taps(p) && p.tap_a < 0) planned.place.a += (p.taps_w - 1) * p.tap_a;
  };
  const auto list = [&](box_of box, bool joined) {
    for (index chunk = 0; chunk < chunks; ++chunk) to = list_taps(box, joined, chunk, to);
    ++boxes_;
  };
  if (lines_) {
    g.for_line_boxes([&](box_of box, rows_of rows) {
      g.for_lines_of(box, rows, add);
      list(box, false);
    });
  } else {
    g.for_boxes([&](box_of box) {
      const index first = piece;
      g.for_pieces(box, most_rows, add);
      list(box, piece > first && joins_taps(piece_.get()[first].place));
    });
  }
  clears_ = mostly_zero();
  if (clears_) {
    const auto zero = [this](const planned_piece& p) { return is_zero(p); };
    pieces_ = std::remove_if(piece_.get(), piece_.get() + pieces_, zero) - piece_.get();
  }
  plan_prefetch();
  // Else all outputs of a box, then those of the next one, whose weights change with it.
  if (panel_ * size_of(d_.data) <= weights_in_l1) {
    std::sort(piece_.get(), piece_.get() + pieces_,
              [](const planned_piece& x, const planned_piece& y) { return x.place.c < y.place.c; });
  }
  return {};
}

inline desc conv_pass::kernel_desc(const conv_piece& p, const step& s, index n) const noexcept {
  desc k;
  k.m = p.m;
  k.n = n;
  k.k = s.channels * (joins_taps(p) ? std::max<index>(1, p.taps_w) : 1);
  // Rows that share taps overlap, which a desc's constant leading dimension excludes. One row uses none.
  k.lda = p.lda >= k.k ? p.lda : p.m == 1 ? k.k : at_call;
  if (d_.depthwise) k.lda = std::max(p.lda, n);
  if (d_.depthwise && joins_taps(p) && p.tap_a > 0 && p.tap_a < p.lda) {
    k.lda = p.tap_a, k.line = 1, k.line_step = p.lda / p.tap_a;
  }
  if (d_.depthwise) k.layout_a = k.k > 1 && p.tap_a < 0 ? layout::depthwise_mirrored : layout::depthwise;
  k.ldb = d_.depthwise && joins_taps(p) ? p.tap_b * width_ : width_;
  k.ldc = std::max(p.ldc, n);
  k.batch = batch_kind::offsets;
  k.a = d_.data;
  k.b = is_8bit() ? type::s8 : d_.data;
  k.c = d_.c;
  if (!d_.depthwise) k.sums = d_.sums;
  if (is_8bit()) k.zero_a = zero_point::at_call;
  if (k_group() > 1) k.layout_b = layout::interleaved;
  k.beta = s.first == 0 ? beta_kind::zero : beta_kind::one;
  k.prefetch = static_cast<std::uint16_t>(prefetch_);
  std::copy(std::begin(p.rows), std::end(p.rows), k.rows);
  if (!s.last) return k;
  d_.append_steps(k, p.ldc);
  return k;
}

/// Pieces that differ only in their place share kernels.
inline result<void> conv_pass::plan_kernels(const options& how) noexcept {
  const auto same = [](const conv_piece& x, const conv_piece& y) {
    return x.m == y.m && x.lda == y.lda && x.ldc == y.ldc && x.taps_w == y.taps_w && x.tap_a == y.tap_a &&
           x.tap_b == y.tap_b && std::equal(std::begin(x.rows), std::end(x.rows), y.rows);
  };
  planned_piece* const piece = piece_.get();
  const std::unique_ptr<index[]> of_kinds(new (std::nothrow) index[static_cast<std::size_t>(pieces_)]);
  index* const first = of_kinds.get();  // piece of a kind
  if (first == nullptr) return error(errc::out_of_memory, "axes", "no memory for %ld pieces", pieces_);
  index kinds = 0;
  for (index i = 0; i < pieces_; ++i) {
    index kind = 0;
    while (kind < kinds && !same(piece[first[kind]].place, piece[i].place)) ++kind;
    if (kind == kinds) first[kinds++] = i;
    piece[i].kernels = kind * steps_;
  }
  const auto count = static_cast<std::size_t>(kinds * steps_);
  const bool stream = streams(d_.images);
  kernels_.reset(new (std::nothrow) kernel[count][2]);
  if (stream) streaming_.reset(new (std::nothrow) kernel[count][2]);
  if (!kernels_ || (stream && !streaming_)) {
    return error(errc::out_of_memory, "axes", "no memory for %ld kernels", kinds * steps_ * 2);
  }
  for (index kind = 0; kind < kinds; ++kind) {
    for (int s = 0; s < steps_; ++s) {
      for (const bool full : {false, true}) {
        const index n = full ? width_ : d_.out % width_;
        if (n == 0 || n > d_.out) continue;
        desc d = kernel_desc(piece[first[kind]].place, step_[s], n);
        kernel& cached = kernels_.get()[kind * steps_ + s][full];
        if (auto r = make_into(cached, d, how); !r) return r;
        if (!stream) continue;
        const index line = streaming_alignment / size_of(d.c);
        d.ldc = (d.ldc + line - 1) / line * line;  // of one row
        if (auto r = make_streaming_into(streaming_.get()[kind * steps_ + s][full], cached, d, how); !r) return r;
      }
    }
  }
  return {};
}

}  // namespace brgemm::inline abi_0::detail
