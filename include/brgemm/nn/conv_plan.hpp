// The plan of nn::conv: its desc checked, its pieces and taps listed, its kernels made, its weights packed.
#pragma once

#include "conv.hpp"

namespace brgemm::inline abi_0::nn {

inline result<void> conv::check(const conv_desc& d) noexcept {
  constexpr index largest = index{1} << 29;
  const struct {
    const char* name;
    index value;
    index least;
  } sizes[] = {{"images", d.images, 1}, {"in", d.in, 1}, {"out", d.out, 1}, {"groups", d.groups, 1}};
  for (const auto& s : sizes) {
    if (s.value < s.least || s.value > largest) {
      return error(errc::invalid_argument, s.name, "%s is %ld; it must be in %ld..2^29", s.name, s.value, s.least);
    }
  }
  if (d.in % d.groups != 0) {
    return error(errc::invalid_argument, "in", "in is %ld, no multiple of groups, %ld", d.in, d.groups);
  }
  if (d.out % d.groups != 0) {
    return error(errc::invalid_argument, "out", "out is %ld, no multiple of groups, %ld", d.out, d.groups);
  }
  static constexpr const char* names[3] = {"axes[0]", "axes[1]", "axes[2]"};
  double x = static_cast<double>(d.images) * static_cast<double>(d.in) * 8;
  double y = static_cast<double>(d.images) * static_cast<double>(d.out) * 8;
  const index in = d.in / d.groups;
  double w = static_cast<double>(d.out + 64) * static_cast<double>(in + 64) * 8;
  for (int i = 0; i < 3; ++i) {
    const conv_axis& a = d.axes[i];
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
      if (f.value < f.least || f.value > largest) {
        return error(errc::invalid_argument, names[i], "%s.%s is %ld; it must be in %ld..2^29", names[i], f.name,
                     f.value, f.least);
      }
    }
    const index extent = a.dilation * (a.kernel - 1) + 1;
    if (extent > a.in + a.pad_before + a.pad_after) {
      return error(errc::invalid_argument, names[i],
                   "%s: a kernel of %ld with dilation %ld spans %ld, more than %ld and its padding of %ld and %ld",
                   names[i], a.kernel, a.dilation, extent, a.in, a.pad_before, a.pad_after);
    }
    x *= static_cast<double>(a.in);
    y *= static_cast<double>(a.out());
    w *= static_cast<double>(a.kernel);
  }
  if (std::max({x, y, w}) > 0x1p62) {
    return error(errc::invalid_argument, "images", "x, y or the weights have %g bytes or more, beyond 2^62",
                 std::max({x, y, w}));
  }
  if (auto r = detail::check_enumerator("act", static_cast<int>(d.act), activation_count); !r) return r;
  if (d.data != type::f32 && d.data != type::bf16) {
    return error(errc::unsupported, "data", "data is %d; f32 and bf16 are there", static_cast<int>(d.data));
  }
  if (d.y != type::f32 && d.y != d.data) {
    return error(errc::unsupported, "y", "y is %d with data of %s", static_cast<int>(d.y), name_of(d.data).data());
  }
  if (d.y != type::f32 && in > chunk_channels && in % chunk_channels != 0) {
    return error(errc::unsupported, "y",
                 "y is %s with %ld channels a group: more than %ld need f32, or a multiple of %ld", name_of(d.y).data(),
                 in, chunk_channels, chunk_channels);
  }
  return {};
}

inline result<conv> conv::plan(const conv_desc& d, const options& how) noexcept {
  if (auto r = check(d); !r) return r.error();
  conv c;
  c.d_ = d;
  c.width_ = block_width(c.out());
  const index whole = c.in() / chunk_channels;
  c.panel_ = c.chunk_begin(whole) + c.taps() * c.padded(c.in() % chunk_channels) * c.width_;
  c.plan_steps();
  if (auto r = c.plan_pieces(); !r) return r.error();
  if (auto r = c.plan_kernels(how); !r) return r.error();
  return c;
}

/// As many chunks at once as have their weights in a part of L2; C of another type than f32 cannot rest in between.
inline void conv::plan_steps() noexcept {
  constexpr index cached_bytes = 384 << 10;
  const index whole = in() / chunk_channels;
  const index rest = in() % chunk_channels;
  const index bytes = taps() * chunk_channels * width_ * size_of(d_.data);
  index chunks = d_.y == type::f32 ? std::max<index>(1, cached_bytes / bytes) : whole;
  chunks = std::max(chunks, (whole + most_steps - 2) / (most_steps - 1));
  for (index first = 0; first < whole; first += chunks) {
    step_[steps_++] = {first, std::min(chunks, whole - first), chunk_channels, false};
  }
  if (rest != 0) step_[steps_++] = {whole, 1, rest, false};
  step_[steps_ - 1].last = true;
}

/// Offsets of x and of the weights from a piece's first tap, chunk by chunk.
inline void conv::list_taps(const detail::conv_run (&box)[3], index channels, offset_pair* to) const noexcept {
  const detail::conv_geometry g = geometry();
  const index row = padded(channels) * width_;
  for (index t = 0; t < box[0].taps; ++t) {
    for (index r = 0; r < box[1].taps; ++r) {
      for (index s = 0; s < (joins_taps() ? std::min<index>(1, box[2].taps) : box[2].taps); ++s) {
        const index tap = ((box[0].tap + t) * d_.axes[1].kernel + box[1].tap + r) * d_.axes[2].kernel + box[2].tap + s;
        *to++ = {t * d_.axes[0].dilation * g.step_x(0) + r * d_.axes[1].dilation * g.step_x(1) +
                     s * d_.axes[2].dilation * g.step_x(2),
                 tap * row};
      }
    }
  }
}

inline result<void> conv::plan_pieces() noexcept {
  constexpr index most_rows = 64;
  const detail::conv_geometry g = geometry();
  const index chunks = (in() + chunk_channels - 1) / chunk_channels;
  const auto taps_of = [](const detail::conv_run(&box)[3]) { return box[0].taps * box[1].taps * box[2].taps; };
  index pairs = 0;
  g.for_boxes([&](const detail::conv_run(&box)[3]) {
    pairs += chunks * entries(taps_of(box), box[2].taps);
    g.for_pieces(box, taps_of(box), most_rows, [&](const detail::conv_piece&) { ++pieces_; });
  });
  piece_.reset(new (std::nothrow) planned_piece[static_cast<std::size_t>(pieces_)]);
  pairs_.reset(new (std::nothrow) offset_pair[static_cast<std::size_t>(pairs + 1)]);
  if (!piece_ || !pairs_) {
    return error(errc::out_of_memory, "axes", "no memory for %ld pieces and %ld taps", pieces_, pairs);
  }
  index piece = 0;
  offset_pair* to = pairs_.get();
  g.for_boxes([&](const detail::conv_run(&box)[3]) {
    const index first = to - pairs_.get();
    for (index chunk = 0; chunk < chunks; ++chunk) {
      const index channels = std::min(chunk_channels, in() - chunk * chunk_channels);
      offset_pair* const begin = to;
      list_taps(box, channels, to);
      to += entries(taps_of(box), box[2].taps);
      for (offset_pair* p = begin; p < to; ++p) p->a += chunk * chunk_channels, p->b += chunk_begin(chunk);
    }
    g.for_pieces(box, taps_of(box), most_rows, [&](const detail::conv_piece& p) { piece_[piece++] = {p, 0, first}; });
  });
  return {};
}

inline desc conv::kernel_desc(const detail::conv_piece& p, const step& s, index n) const noexcept {
  desc k;
  k.m = p.m;
  k.n = n;
  k.k = s.channels * (joins_taps() ? std::max<index>(1, p.taps_w) : 1);
  // Rows that share taps overlap, which a desc's constant leading dimension excludes. One row uses none.
  k.lda = p.lda >= k.k ? p.lda : p.m == 1 ? k.k : at_call;
  k.ldb = width_;
  k.ldc = std::max(p.ldc, n);
  k.batch = batch_kind::offsets;
  k.a = k.b = d_.data;
  k.c = d_.y;
  if (k_group_of(d_.data) > 1) k.layout_b = layout::interleaved;
  k.beta = s.first == 0 ? beta_kind::zero : beta_kind::one;
  if (!s.last) return k;
  if (d_.bias) append(k, op::bias(axis::column));
  if (d_.act != activation::none) append(k, op::make(op_of(d_.act)));
  return k;
}

/// Pieces that differ only in their place share kernels.
inline result<void> conv::plan_kernels(const options& how) noexcept {
  const auto same = [](const detail::conv_piece& x, const detail::conv_piece& y) {
    return x.m == y.m && x.lda == y.lda && x.ldc == y.ldc && x.taps_w == y.taps_w;
  };
  index kinds = 0;
  const auto kind_of = [&](index piece) {
    for (index i = 0; i < piece; ++i) {
      if (same(piece_[i].place, piece_[piece].place)) return piece_[i].kernels;
    }
    return steps_ * kinds++;
  };
  for (index i = 0; i < pieces_; ++i) piece_[i].kernels = kind_of(i);
  kernels_.reset(new (std::nothrow) kernel[static_cast<std::size_t>(kinds * steps_)][2]);
  if (!kernels_) return error(errc::out_of_memory, "axes", "no memory for %ld kernels", kinds * steps_ * 2);
  for (index i = 0; i < pieces_; ++i) {
    for (int s = 0; s < steps_; ++s) {
      kernel(&of)[2] = kernels_[piece_[i].kernels + s];
      if (of[0] || of[1]) continue;
      for (const bool full : {false, true}) {
        const index n = full ? width_ : out() % width_;
        if (n == 0 || n > out()) continue;
        if (auto r = detail::make_into(of[full], kernel_desc(piece_[i].place, step_[s], n), how); !r) return r;
      }
    }
  }
  return {};
}

template <class T>
result<void> conv::pack_weights(loops::executor_ref threads, const T* w, conv_weights stored,
                                void* packed) const noexcept {
  const detail::buffer written[] = {{"packed", packed, weights_bytes(), size_of(d_.data)}};
  const detail::buffer read[] = {{"w", w, d_.out * in() * taps() * static_cast<index>(sizeof(T)), alignof(T)}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  const index group = k_group_of(d_.data);
  const auto put = [&](index at, T value) {
    if (d_.data == type::f32) {
      static_cast<float*>(packed)[at] = static_cast<float>(value);
    } else {
      static_cast<bf16*>(packed)[at] = to_bf16(static_cast<float>(value));
    }
  };
  std::memset(packed, 0, static_cast<std::size_t>(weights_bytes()));
  loops::parallel_for(threads, {d_.groups, out()}, [&](index g, index column) {
    const index panel = g * nn::panels(out()) + column / width_;
    for (index c = 0; c < in(); ++c) {
      const index chunk = c / chunk_channels;
      const index rows = padded(std::min(chunk_channels, in() - chunk * chunk_channels));
      for (index tap = 0; tap < taps(); ++tap) {
        const index k = c % chunk_channels;
        const index at = panel * panel_ + chunk_begin(chunk) + tap * rows * width_ + k / group * group * width_ +
                         column % width_ * group + k % group;
        const index from = stored == conv_weights::out_first ? ((g * out() + column) * in() + c) * taps() + tap
                                                             : ((g * taps() + tap) * in() + c) * out() + column;
        put(at, w[from]);
      }
    }
  });
  return {};
}

}  // namespace brgemm::inline abi_0::nn
