// What the member functions of nn::linear do: the checks, then loops of kernel calls and copies.
#pragma once

#include <emmintrin.h>

#include <cstring>
#include <span>

#include "../loops/elementwise.hpp"
#include "linear.hpp"

namespace brgemm::inline abi_0::detail {

/// A buffer of a call, for the checks of null and overlap.
struct buffer {
  const char* name;
  const void* at;
  index bytes;  ///< 0: not used, must be null
};

inline result<void> check_buffer(const buffer& b) noexcept {
  if (b.bytes > 0 && b.at == nullptr) {
    return error(errc::invalid_argument, b.name, "%s is null; %ld bytes of it are used", b.name, b.bytes);
  }
  if (b.bytes == 0 && b.at != nullptr) {
    return error(errc::invalid_argument, b.name, "%s is %p, but this plan uses none: it must be null", b.name, b.at);
  }
  return {};
}

inline bool overlap(const buffer& x, const buffer& y) noexcept {
  const auto begin = [](const buffer& b) { return reinterpret_cast<std::uintptr_t>(b.at); };
  const auto end = [&](const buffer& b) { return begin(b) + static_cast<std::uintptr_t>(b.bytes); };
  return x.bytes > 0 && y.bytes > 0 && begin(x) < end(y) && begin(y) < end(x);
}

/// Every buffer is there, and what is written overlaps nothing else.
template <std::size_t Written, std::size_t Read>
result<void> check_buffers(const buffer (&written)[Written], const buffer (&read)[Read]) noexcept {
  for (const buffer& b : written) {
    if (auto r = check_buffer(b); !r) return r;
  }
  for (const buffer& b : read) {
    if (auto r = check_buffer(b); !r) return r;
  }
  for (const buffer& w : written) {
    for (const auto& others : {std::span<const buffer>(written), std::span<const buffer>(read)}) {
      for (const buffer& o : others) {
        if (&o == &w || !overlap(w, o)) continue;
        return error(errc::invalid_argument, w.name, "%s (%ld bytes at %p) overlaps %s (%ld bytes at %p)", w.name,
                     w.bytes, w.at, o.name, o.bytes, o.at);
      }
    }
  }
  return {};
}

inline index round_up(index x, index to) noexcept { return (x + to - 1) / to * to; }

/// To bf16 without a branch, so that loops over it become vectors; the same bits as to_bf16.
BRGEMM_ALWAYS_INLINE inline std::uint16_t bf16_bits(float x) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = u & 0x7fffffffu;
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const std::uint32_t flushed = magnitude < 0x00800000u ? (u >> 16) & 0x8000u : rounded;
  return static_cast<std::uint16_t>(magnitude > 0x7f800000u ? (u >> 16) | 0x40u : flushed);
}

/// to[c * ld_to + r] = from[r * ld_from + c] for 32-bit words, by squares of four in registers.
inline void transpose_words(const float* from, index ld_from, float* to, index ld_to, index rows,
                            index columns) noexcept {
  const index whole_rows = rows / 4 * 4;
  const index whole_columns = columns / 4 * 4;
  for (index c = 0; c < whole_columns; c += 4) {
    for (index r = 0; r < whole_rows; r += 4) {
      __m128 row[4];
      for (index i = 0; i < 4; ++i) row[i] = _mm_loadu_ps(from + (r + i) * ld_from + c);
      _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
      for (index i = 0; i < 4; ++i) _mm_storeu_ps(to + (c + i) * ld_to + r, row[i]);
    }
  }
  for (index c = 0; c < columns; ++c) {
    for (index r = c < whole_columns ? whole_rows : 0; r < rows; ++r) {
      std::memcpy(to + c * ld_to + r, from + r * ld_from + c, 4);
    }
  }
}

/// Rows of 16-bit elements, two by two: to[r/2 * ld_to + c] = (from[r][c], from[r+1][c]); a missing last row is zero.
inline void interleave_rows(const std::uint16_t* from, index ld_from, std::uint32_t* to, index ld_to, index rows,
                            index columns) noexcept {
  for (index r = 0; r < rows; r += 2) {
    const std::uint16_t* const even = from + r * ld_from;
    const std::uint16_t* const odd = even + ld_from;
    std::uint32_t* const pairs = to + r / 2 * ld_to;
    const bool both = r + 1 < rows;
    index c = 0;
    for (; both && c + 8 <= columns; c += 8) {
      const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(even + c));
      const __m128i y = _mm_loadu_si128(reinterpret_cast<const __m128i*>(odd + c));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(pairs + c), _mm_unpacklo_epi16(x, y));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(pairs + c + 4), _mm_unpackhi_epi16(x, y));
    }
    for (; c < columns; ++c) pairs[c] = even[c] | (both ? static_cast<std::uint32_t>(odd[c]) << 16 : 0u);
  }
}

/// The transpose of at most 64 rows of 16-bit elements: to[c * ld_to + r] = from[r * ld_from + c], ld_to even; an odd
/// last row is followed by zeros. Pairs of rows first, then 32-bit words.
inline void transpose_rows(const std::uint16_t* from, index ld_from, std::uint16_t* to, index ld_to, index rows,
                           index columns) noexcept {
  constexpr index strip = 16;
  alignas(64) std::uint32_t pairs[nn::block_rows / 2 * strip];  // (32, 16)
  for (index c = 0; c < columns; c += strip) {
    const index here = columns - c < strip ? columns - c : strip;
    interleave_rows(from + c, ld_from, pairs, strip, rows, here);
    transpose_words(reinterpret_cast<const float*>(pairs), strip, reinterpret_cast<float*>(to + c * ld_to), ld_to / 2,
                    (rows + 1) / 2, here);
  }
}

}  // namespace brgemm::inline abi_0::detail

namespace brgemm::inline abi_0::nn {

// ---- the plan ----

inline result<void> linear::check(const linear_desc& d) noexcept {
  const struct {
    const char* name;
    index value;
  } sizes[] = {{"rows", d.rows}, {"in", d.in}, {"out", d.out}};
  // Below this no product of two sizes and an element's bytes, rounded up to blocks, passes 2^63.
  constexpr index largest = index{1} << 29;
  for (const auto& s : sizes) {
    if (s.value < 1 || s.value > largest) {
      return error(errc::invalid_argument, s.name, "%s is %ld; it must be in 1..2^29", s.name, s.value);
    }
  }
  const struct {
    const char* name;
    int value;
    int count;
  } enumerators[] = {{"data", static_cast<int>(d.data), type_count},
                     {"y", static_cast<int>(d.y), type_count},
                     {"act", static_cast<int>(d.act), activation_count},
                     {"input_act", static_cast<int>(d.input_act), activation_count},
                     {"x_storage", static_cast<int>(d.x_storage), 2},
                     {"y_storage", static_cast<int>(d.y_storage), 2}};
  for (const auto& e : enumerators) {
    if (auto r = detail::check_enumerator(e.name, e.value, e.count); !r) return r;
  }
  const struct {
    const char* ld_name;
    const char* storage_name;
    storage stored;
    index ld;
    index features;
  } sides[] = {{"ldx", "x_storage", d.x_storage, d.ldx, d.in}, {"ldy", "y_storage", d.y_storage, d.ldy, d.out}};
  for (const auto& s : sides) {
    if (s.stored == storage::blocked && !can_block(s.features)) {
      return error(errc::invalid_argument, s.storage_name,
                   "%ld features have no block width that divides them (64, 48, 80, 96, 112, 32): use plain storage",
                   s.features);
    }
    const bool right = s.ld == 0 || (s.stored == storage::plain && s.ld >= s.features && s.ld <= largest);
    if (!right) {
      return error(errc::invalid_argument, s.ld_name, "%s is %ld with %ld features: 0, or for plain storage %ld..2^29",
                   s.ld_name, s.ld, s.features, s.features);
    }
  }
  if (d.data != type::f32 && d.data != type::bf16 && d.data != type::u8) {
    return error(errc::unsupported, "data", "data is %s; f32, bf16 and u8 are there", name_of(d.data).data());
  }
  const bool y_fits = d.y == type::f32 || (d.data == type::bf16 && d.y == type::bf16) ||
                      (d.data == type::u8 && d.y != type::f64 && d.y != type::f16);
  if (!y_fits) {
    return error(errc::unsupported, "y", "y is %s with data of %s", name_of(d.y).data(), name_of(d.data).data());
  }
  if (d.training && d.data == type::u8) {
    return error(errc::unsupported, "training", "a layer of u8 has a forward pass only");
  }
  if (!d.training && d.input_act != activation::none) {
    return error(errc::invalid_argument, "input_act", "input_act is for training, and training is false");
  }
  return {};
}

inline result<linear> linear::plan(const linear_desc& d, const options& how) noexcept {
  if (auto r = check(d); !r) return r.error();
  linear l;
  l.d_ = d;
  const bool is_8bit = d.data == type::u8;
  // Other activations than relu keep z for the derivative, so while training the kernel writes z and `activate` the
  // rest.
  const bool apart = d.training && d.act != activation::none && d.act != activation::relu;

  detail::row_product_desc f;
  f.rows = d.rows;
  f.n = d.out;
  f.k = d.in;
  f.k_entry = d.x_storage == storage::blocked && d.in > block_width(d.in) ? block_width(d.in) : d.in;
  f.a = d.data;
  f.b = is_8bit ? type::s8 : d.data;
  f.c = apart ? type::f32 : d.y;
  f.zero_a = is_8bit ? zero_point::at_call : zero_point::none;
  f.a_tiles = l.x_tiles();
  f.c_tiles = apart ? saved_tiles(d.y_storage, d.out) : l.y_tiles();
  const index column = block_width(d.out) * size_of(type::f32);
  if (is_8bit) f.append(op::scale(axis::column), 0, column);
  if (d.bias) f.append(op::bias(axis::column), 0, column);
  if (d.training && d.act == activation::relu) {
    const tiling mask = mask_tiling(d.y_storage, d.out);
    f.append(op::relu_mask(mask.ld), mask.row_step, mask.column_step);
  } else if (d.act != activation::none && !apart) {
    f.append(op::make(op_of(d.act)));
  }
  auto forward = detail::row_product::make(f, how);
  if (!forward) return forward.error();
  l.forward_.emplace(std::move(*forward));
  if (!d.training) return l;

  detail::row_product_desc b;
  b.rows = d.rows;
  b.n = d.in;
  b.k = d.out;
  b.k_entry = d.y_storage == storage::blocked && d.out > block_width(d.out) ? block_width(d.out) : d.out;
  b.a = b.b = b.c = d.data;
  b.a_tiles = l.y_tiles();
  b.c_tiles = l.x_tiles();
  if (d.input_act == activation::relu) {
    const tiling mask = mask_tiling(d.x_storage, d.in);
    b.append(op::multiply_mask(mask.ld), mask.row_step, mask.column_step);
  } else if (d.input_act != activation::none) {
    const tiling t = saved_tiles(d.x_storage, d.in);
    b.append(op::multiply(t.ld), t.row_step * 4, t.column_step * 4);
  }
  auto backward = detail::row_product::make(b, how);
  if (!backward) return backward.error();
  l.backward_.emplace(std::move(*backward));

  auto gradient = detail::gradient_product::make(d.in, d.out, d.data, how);
  if (!gradient) return gradient.error();
  l.gradient_.emplace(std::move(*gradient));
  return l;
}

template <class T>
result<void> linear::check_view(const char* name, const view<const T, 2>& v, index features, index ld,
                                type wanted) const noexcept {
  if (element_traits<T>::value != wanted) {
    return error(errc::invalid_argument, name, "%s has elements of %s; this plan has %s", name,
                 name_of(element_traits<T>::value).data(), name_of(wanted).data());
  }
  const bool is_x = name[0] == 'x';
  if ((is_x ? d_.x_storage : d_.y_storage) != storage::plain) {
    return error(errc::invalid_argument, name, "%s is blocked in this plan: pass a pointer, not a view", name);
  }
  if (v.extent(1) != features || v.stride(1) != 1 || v.stride(0) != ld) {
    return error(errc::invalid_argument, name, "%s is (%ld,%ld) with strides (%ld,%ld); this plan has %ld features, %s",
                 name, v.extent(0), v.extent(1), v.stride(0), v.stride(1), features, "rows ldx or ldy apart");
  }
  return {};
}

// ---- weights ----

template <class T>
result<void> linear::pack_weights(loops::executor_ref threads, const view<const T, 2>& w, layout stored, T* packed,
                                  std::int32_t* column_sums) const noexcept {
  constexpr type t = element_traits<T>::value;
  if (t != type::f32 && t != forward_->description().b) {
    return error(errc::invalid_argument, "w", "weights of %s for a layer whose kernels read %s", name_of(t).data(),
                 name_of(forward_->description().b).data());
  }
  if (t == type::f32 && d_.data == type::u8) {
    return error(errc::invalid_argument, "w", "weights of f32 for a layer whose kernels read s8: quantise them first");
  }
  const index width = block_width(d_.out);
  const index group = k_group_of(t);
  const index panel_elements = detail::round_up(d_.in, group) * width;
  const bool transposed = stored == layout::transposed;
  const index first = transposed ? d_.out : d_.in;
  const index second = transposed ? d_.in : d_.out;
  if (stored == layout::interleaved || static_cast<int>(stored) > 2) {
    return error(errc::invalid_argument, "stored", "stored is %d; plain (0) or transposed (1)",
                 static_cast<int>(stored));
  }
  if (w.extent(0) != first || w.extent(1) != second || w.stride(1) != 1 || w.stride(0) < second) {
    return error(errc::invalid_argument, "w",
                 "w is (%ld,%ld) with strides (%ld,%ld); needed is (%ld,%ld) with strides (>= %ld,1)", w.extent(0),
                 w.extent(1), w.stride(0), w.stride(1), first, second, second);
  }
  const bool sums = column_sums != nullptr;
  if (sums && t != type::s8) return error(errc::invalid_argument, "column_sums", "column_sums is for weights of s8");
  const detail::buffer written[] = {{"packed", packed, panels(d_.out) * panel_elements * size_of(t)},
                                    {"column_sums", column_sums, sums ? panels(d_.out) * width * 4 : 0}};
  const detail::buffer read[] = {{"w", w.data(), ((first - 1) * w.stride(0) + second) * size_of(t)}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  loops::parallel_for(threads, {panels(d_.out)}, [&](index panel) {
    const index column = panel * width;
    T* const to = packed + panel * panel_elements;
    std::memset(static_cast<void*>(to), 0, static_cast<std::size_t>(panel_elements * size_of(t)));
    std::int32_t* const panel_sums = sums ? column_sums + column : nullptr;
    if (sums) std::memset(panel_sums, 0, static_cast<std::size_t>(width) * sizeof(std::int32_t));
    const index here = d_.out - column < width ? d_.out - column : width;
    brgemm::pack_b(
        {t, d_.in, here, stored, w.data() + (transposed ? column * w.stride(0) : column), w.stride(0), to, width},
        panel_sums);
  });
  return {};
}

inline result<void> linear::unpack_parameters(loops::executor_ref threads, const float* parameters,
                                              const view<float, 2>& w, layout stored) const noexcept {
  const bool transposed = stored == layout::transposed;
  const index first = transposed ? d_.out : d_.in;
  const index second = transposed ? d_.in : d_.out;
  if (stored == layout::interleaved || static_cast<int>(stored) > 2) {
    return error(errc::invalid_argument, "stored", "stored is %d; plain (0) or transposed (1)",
                 static_cast<int>(stored));
  }
  if (w.extent(0) != first || w.extent(1) != second || w.stride(1) != 1 || w.stride(0) < second) {
    return error(errc::invalid_argument, "w",
                 "w is (%ld,%ld) with strides (%ld,%ld); needed is (%ld,%ld) with strides (>= %ld,1)", w.extent(0),
                 w.extent(1), w.stride(0), w.stride(1), first, second, second);
  }
  const detail::buffer written[] = {{"w", w.data(), ((first - 1) * w.stride(0) + second) * 4}};
  const detail::buffer read[] = {{"parameters", parameters, this->parameters() * 4}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  const index width = block_width(d_.out);
  loops::parallel_for(threads, {panels(d_.out)}, [&](index panel) {
    const index column = panel * width;
    const float* const from = parameters + panel * d_.in * width;
    const index here = d_.out - column < width ? d_.out - column : width;
    if (transposed) {
      detail::transpose_words(from, width, w.data() + column * w.stride(0), w.stride(0), d_.in, here);
    } else {
      detail::copy_rows(from, width, w.data() + column, w.stride(0), d_.in, here);
    }
  });
  return {};
}

}  // namespace brgemm::inline abi_0::nn

namespace brgemm::inline abi_0::detail {

/// One panel of f32 parameters (in, w) to bf16 weights (ceil(in/2), w, 2).
inline void pair_rows(const float* from, index in, index width, std::uint32_t* to) noexcept {
  widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
    for (index i = 0; i < in; i += 2) {
      const float* const even = from + i * width;
      const float* const odd = even + width;
      std::uint32_t* const pairs = to + i / 2 * width;
      if (i + 1 < in) {
        for (index j = 0; j < width; ++j) {
          pairs[j] = bf16_bits(even[j]) | static_cast<std::uint32_t>(bf16_bits(odd[j])) << 16;
        }
      } else {
        for (index j = 0; j < width; ++j) pairs[j] = bf16_bits(even[j]);
      }
    }
  });
}

/// A block (rows, columns) of f32 to bf16, its transpose with pairs of columns beside each other: to[c/2 * ld + r].
inline void transpose_to_pairs(const float* from, index ld_from, index rows, index columns, std::uint32_t* to,
                               index ld_to) noexcept {
  constexpr index at_once = 16;
  alignas(64) std::uint32_t pairs[at_once * 64];  // (16, <= 64): pairs of one strip of rows
  for (index r0 = 0; r0 < rows; r0 += at_once) {
    const index here = rows - r0 < at_once ? rows - r0 : at_once;
    widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
      for (index r = 0; r < here; ++r) {
        const float* const row = from + (r0 + r) * ld_from;
        for (index p = 0; p < columns / 2; ++p) {
          pairs[r * 64 + p] = bf16_bits(row[2 * p]) | static_cast<std::uint32_t>(bf16_bits(row[2 * p + 1])) << 16;
        }
        if (columns % 2 != 0) pairs[r * 64 + columns / 2] = bf16_bits(row[columns - 1]);
      }
    });
    transpose_words(reinterpret_cast<const float*>(pairs), 64, reinterpret_cast<float*>(to + r0), ld_to, here,
                    (columns + 1) / 2);
  }
}

}  // namespace brgemm::inline abi_0::detail

namespace brgemm::inline abi_0::nn {

inline result<void> linear::prepare(loops::executor_ref threads, const float* parameters, void* weights,
                                    void* transposed) const noexcept {
  const bool is_bf16 = d_.data == type::bf16;
  if (d_.data == type::u8) return error(errc::unsupported, "data", "a layer of u8 has no parameters in f32");
  if (transposed != nullptr) {
    if (auto r = check_training("transposed"); !r) return r;
  }
  const detail::buffer written[] = {{"weights", weights, is_bf16 ? weights_bytes() : 0},
                                    {"transposed", transposed, transposed != nullptr ? transposed_bytes() : 0}};
  const detail::buffer read[] = {{"parameters", parameters, this->parameters() * 4}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  const index width = block_width(d_.out);
  const index width_t = block_width(d_.in);
  if (is_bf16) {
    loops::parallel_for(threads, {panels(d_.out)}, [&](index panel) {
      detail::pair_rows(parameters + panel * d_.in * width, d_.in, width,
                        static_cast<std::uint32_t*>(weights) + panel * ((d_.in + 1) / 2) * width);
    });
  }
  if (transposed == nullptr) return {};
  loops::parallel_for(threads, {panels(d_.in), panels(d_.out)}, [&](index block, index panel) {
    const index rows = d_.in - block * width_t < width_t ? d_.in - block * width_t : width_t;
    const index columns = d_.out - panel * width < width ? d_.out - panel * width : width;
    const float* const from = parameters + (panel * d_.in + block * width_t) * width;
    if (is_bf16) {
      detail::transpose_to_pairs(
          from, width, rows, columns,
          static_cast<std::uint32_t*>(transposed) + (block * ((d_.out + 1) / 2) + panel * width / 2) * width_t,
          width_t);
    } else {
      detail::transpose_words(from, width, static_cast<float*>(transposed) + (block * d_.out + panel * width) * width_t,
                              width_t, rows, columns);
    }
  });
  return {};
}

// ---- forward ----

inline result<void> linear::forward(loops::executor_ref threads, index rows, const void* x, const void* weights,
                                    const float* bias, void* y, void* saved, const quantisation& q) const noexcept {
  if (auto r = check_rows(rows); !r) return r;
  const bool is_8bit = d_.data == type::u8;
  const detail::buffer written[] = {
      {"y", y, bytes_of(d_.y_storage, d_.out, d_.ldy, d_.y, rows)},
      {"saved", saved, d_.training ? saved_bytes(d_.act, d_.y_storage, d_.out, rows) : 0}};
  const detail::buffer read[] = {{"x", x, bytes_of(d_.x_storage, d_.in, d_.ldx, d_.data, rows)},
                                 {"weights", weights, weights_bytes()},
                                 {"bias", bias, d_.bias ? d_.out * 4 : 0},
                                 {"scale", q.scale, is_8bit ? d_.out * 4 : 0},
                                 {"column_sums", q.column_sums, is_8bit ? d_.out * 4 : 0}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  const bool apart = d_.training && d_.act != activation::none && d_.act != activation::relu;
  detail::row_product_arguments call;
  call.a = x;
  call.b = weights;
  call.c = apart ? saved : y;
  call.zero_a = q.zero_x;
  call.column_sums = q.column_sums;
  int step = 0;
  if (is_8bit) call.operands[step++] = const_cast<float*>(q.scale);
  if (d_.bias) call.operands[step++] = const_cast<float*>(bias);
  if (!apart) call.operands[step] = saved;
  (*forward_)(threads, rows, call);
  if (apart) activate(threads, rows, y, static_cast<float*>(saved));
  return {};
}

/// saved holds z; afterwards y = act(z) and saved = act'(z).
inline void linear::activate(loops::executor_ref threads, index rows, void* y, float* saved) const noexcept {
  const tiling from = saved_tiles(d_.y_storage, d_.out);
  const tiling to = y_tiles();
  const index width = block_width(d_.out);
  const op_kind kind = op_of(d_.act);
  loops::parallel_for(threads, {row_blocks(rows), panels(d_.out)}, [&](index block, index panel) {
    const index height = rows - block * block_rows < block_rows ? rows - block * block_rows : block_rows;
    const index columns = d_.out - panel * width < width ? d_.out - panel * width : width;
    for (index r = 0; r < height; ++r) {
      float* const z = saved + from.offset(block, panel) + r * from.ld;
      const index at = to.offset(block, panel) + r * to.ld;
      for (index c = 0; c < columns; ++c) {
        const float value = brgemm::activate(kind, z[c]);
        z[c] = derivative(d_.act, z[c]);
        if (d_.y == type::f32) {
          static_cast<float*>(y)[at + c] = value;
        } else {
          static_cast<bf16*>(y)[at + c] = to_bf16(value);
        }
      }
    }
  });
}

// ---- backward ----

inline result<void> linear::backward_activation(loops::executor_ref threads, index rows, const void* dy,
                                                const void* saved, void* dz) const noexcept {
  if (auto r = check_training("backward_activation"); !r) return r;
  if (auto r = check_rows(rows); !r) return r;
  const index bytes = bytes_of(d_.y_storage, d_.out, d_.ldy, d_.data, rows);
  const detail::buffer written[] = {{"dz", dz, bytes}};
  const detail::buffer read[] = {{"dy", dy == dz ? nullptr : dy, dy == dz ? 0 : bytes},
                                 {"saved", saved, saved_bytes(d_.act, d_.y_storage, d_.out, rows)}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  const tiling t = y_tiles();
  const bool is_mask = d_.act == activation::relu;
  const tiling s = is_mask ? mask_tiling(d_.y_storage, d_.out) : saved_tiles(d_.y_storage, d_.out);
  const index width = block_width(d_.out);
  loops::parallel_for(threads, {row_blocks(rows), panels(d_.out)}, [&](index block, index panel) {
    const index height = rows - block * block_rows < block_rows ? rows - block * block_rows : block_rows;
    const index columns = d_.out - panel * width < width ? d_.out - panel * width : width;
    for (index r = 0; r < height; ++r) {
      const index at = t.offset(block, panel) + r * t.ld;
      const index saved_at = s.offset(block, panel) + r * s.ld;
      for (index c = 0; c < columns; ++c) {
        const auto backward = [&](float g) {
          if (d_.act == activation::none) return g;
          if (!is_mask) return g * static_cast<const float*>(saved)[saved_at + c];
          return (static_cast<const std::uint8_t*>(saved)[saved_at + c / 8] >> (c % 8) & 1) != 0 ? g : 0.0f;
        };
        if (d_.data == type::f32) {
          static_cast<float*>(dz)[at + c] = backward(static_cast<const float*>(dy)[at + c]);
        } else {
          static_cast<bf16*>(dz)[at + c] = to_bf16(backward(to_f32(static_cast<const bf16*>(dy)[at + c])));
        }
      }
    }
  });
  return {};
}

inline result<void> linear::backward_data(loops::executor_ref threads, index rows, const void* dz,
                                          const void* transposed, void* dx, const void* input_saved) const noexcept {
  if (auto r = check_training("backward_data"); !r) return r;
  if (auto r = check_rows(rows); !r) return r;
  const detail::buffer written[] = {{"dx", dx, bytes_of(d_.x_storage, d_.in, d_.ldx, d_.data, rows)}};
  const detail::buffer read[] = {{"dz", dz, bytes_of(d_.y_storage, d_.out, d_.ldy, d_.data, rows)},
                                 {"transposed", transposed, transposed_bytes()},
                                 {"input_saved", input_saved, saved_bytes(d_.input_act, d_.x_storage, d_.in, rows)}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  detail::row_product_arguments call;
  call.a = dz;
  call.b = transposed;
  call.c = dx;
  call.operands[0] = const_cast<void*>(input_saved);
  (*backward_)(threads, rows, call);
  return {};
}

/// The blocks of x that gradient_product reads: f32 as they are; bf16 transposed, an odd last row followed by zeros.
inline void linear::copy_x(loops::executor_ref threads, index rows, const void* x, void* to) const noexcept {
  const tiling from = x_tiles();
  const tiling blocks = blocked_tiling(d_.in);
  const index width = block_width(d_.in);
  loops::parallel_for(threads, {row_blocks(rows), panels(d_.in)}, [&](index block, index panel) {
    const index height = rows - block * block_rows < block_rows ? rows - block * block_rows : block_rows;
    const index columns = d_.in - panel * width < width ? d_.in - panel * width : width;
    if (d_.data == type::f32) {
      detail::copy_rows(static_cast<const float*>(x) + from.offset(block, panel), from.ld,
                        static_cast<float*>(to) + blocks.offset(block, panel), blocks.ld, height, columns);
      return;
    }
    detail::transpose_rows(static_cast<const std::uint16_t*>(x) + from.offset(block, panel), from.ld,
                           static_cast<std::uint16_t*>(to) + blocks.offset(block, panel), block_rows, height, columns);
  });
}

/// The blocks of dz: f32 as they are; bf16 with pairs of rows beside each other, an odd last row paired with zeros.
inline void linear::copy_z(loops::executor_ref threads, index rows, const void* dz, void* to) const noexcept {
  const tiling from = y_tiles();
  const tiling blocks = blocked_tiling(d_.out);
  const index width = block_width(d_.out);
  loops::parallel_for(threads, {row_blocks(rows), panels(d_.out)}, [&](index block, index panel) {
    const index height = rows - block * block_rows < block_rows ? rows - block * block_rows : block_rows;
    const index columns = d_.out - panel * width < width ? d_.out - panel * width : width;
    if (d_.data == type::f32) {
      detail::copy_rows(static_cast<const float*>(dz) + from.offset(block, panel), from.ld,
                        static_cast<float*>(to) + blocks.offset(block, panel), blocks.ld, height, columns);
    } else {
      detail::interleave_rows(static_cast<const std::uint16_t*>(dz) + from.offset(block, panel), from.ld,
                              static_cast<std::uint32_t*>(to) + blocks.offset(block, panel) / 2, blocks.ld, height,
                              columns);
    }
  });
}

inline result<void> linear::backward_weights(loops::executor_ref threads, index rows, const void* x, const void* dz,
                                             float* dw, float* db, void* workspace) const noexcept {
  if (auto r = check_training("backward_weights"); !r) return r;
  if (auto r = check_rows(rows); !r) return r;
  const detail::buffer written[] = {{"dw", dw, parameters() * 4},
                                    {"db", db, db != nullptr ? d_.out * 4 : 0},
                                    {"workspace", workspace, workspace_bytes()}};
  const detail::buffer read[] = {{"x", x, bytes_of(d_.x_storage, d_.in, d_.ldx, d_.data, rows)},
                                 {"dz", dz, bytes_of(d_.y_storage, d_.out, d_.ldy, d_.data, rows)}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  if (copies_x()) {
    copy_x(threads, rows, x, workspace);
    x = workspace;
  }
  if (copies_z()) {
    void* const to = static_cast<char*>(workspace) + x_copy_bytes();
    copy_z(threads, rows, dz, to);
    dz = to;
  }
  (*gradient_)(threads, rows, x, dz, dw, db);
  return {};
}

}  // namespace brgemm::inline abi_0::nn
