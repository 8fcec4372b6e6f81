// The weights of nn::linear: from a framework's storage to panels and back, and what kernels read, made from them.
#pragma once

#include "../loops/buffers.hpp"
#include "linear.hpp"
#include "rearrange.hpp"
#include "tiles.hpp"

namespace brgemm::inline abi_0::nn {

template <class T>
result<void> linear::pack_weights(loops::executor_ref threads, const view<const T, 2>& w, layout stored, T* packed,
                                  std::int32_t* column_sums) const noexcept {
  constexpr type t = element_traits<T>::value;
  if (t != type::f32 && has_pieces()) {
    return error(errc::invalid_argument, "w", "weights of %s for a layer of f32 by pieces, which prepare makes of f32",
                 name_of(t).data());
  }
  if (t != type::f32 && t != forward_->description().b) {
    return error(errc::invalid_argument, "w", "weights of %s for a layer whose kernels read %s", name_of(t).data(),
                 name_of(forward_->description().b).data());
  }
  if (t == type::f32 && is_8bit()) {
    return error(errc::invalid_argument, "w", "weights of f32 for a layer whose kernels read s8: quantise them first");
  }
  if (auto r = detail::check_stored("w", w, stored, d_.in, d_.out); !r) return r;
  const bool sums = column_sums != nullptr;
  if (sums && t != type::s8) return error(errc::invalid_argument, "column_sums", "column_sums is for weights of s8");
  const index width = block_width(d_.out);
  const index panel_elements = (d_.in + k_group_of(t) - 1) / k_group_of(t) * k_group_of(t) * width;
  const detail::buffer written[] = {{"packed", packed, panels(d_.out) * panel_elements * size_of(t), size_of(t)},
                                    {"column_sums", column_sums, sums ? panels(d_.out) * width * 4 : 0}};
  const detail::buffer read[] = {detail::buffer_of("w", w)};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  detail::pack_panels(threads, {t, d_.in, d_.out, stored, w.data(), w.stride(0), packed, width}, column_sums);
  return {};
}

inline result<void> linear::unpack_parameters(loops::executor_ref threads, const float* parameters,
                                              const view<float, 2>& w, layout stored) const noexcept {
  if (auto r = detail::check_stored("w", w, stored, d_.in, d_.out); !r) return r;
  const detail::buffer written[] = {detail::buffer_of("w", w)};
  const detail::buffer read[] = {{"parameters", parameters, this->parameters() * 4}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  const index width = block_width(d_.out);
  loops::parallel_for(threads, {panels(d_.out)}, [&](index panel) {
    const index column = panel * width;
    const float* const from = parameters + panel * d_.in * width;
    const index columns = detail::extent_of_block(d_.out, width, panel);
    if (stored == layout::transposed) {
      detail::transpose_words(from, width, &w(column, 0), w.stride(0), d_.in, columns);
    } else {
      detail::copy_rows(from, width, &w(0, column), w.stride(0), d_.in, columns);
    }
  });
  return {};
}

inline result<void> linear::prepare(loops::executor_ref threads, const float* parameters, void* weights,
                                    void* transposed) const noexcept {
  const bool is_bf16 = d_.data == type::bf16;
  const bool makes_weights = is_bf16 || has_pieces();
  if (is_8bit()) {
    return error(errc::unsupported, "data", "a layer of %s has no parameters in f32", name_of(d_.data).data());
  }
  if (transposed != nullptr) {
    if (auto r = check_training("transposed"); !r) return r;
  }
  const detail::buffer written[] = {{"weights", weights, makes_weights ? weights_bytes() : 0, 4},
                                    {"transposed", transposed, transposed != nullptr ? transposed_bytes() : 0}};
  const detail::buffer read[] = {{"parameters", parameters, this->parameters() * 4}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  auto* const words = static_cast<std::uint32_t*>(weights);
  if (is_bf16) pair_weights(threads, parameters, words);
  if (has_pieces()) {
    const index width = block_width(d_.out);
    detail::split_panels(threads, d_.compute, parameters, width, d_.in * width, layout::plain, d_.in, d_.out, words);
  }
  if (transposed == nullptr) return {};
  if (has_pieces()) {
    split_transposed(threads, parameters, static_cast<std::uint32_t*>(transposed));
  } else {
    transpose_weights(threads, parameters, transposed);
  }
  return {};
}

/// Panels of f32 (in, w) to panels of bf16 (ceil(in/2), w, 2).
inline void linear::pair_weights(loops::executor_ref threads, const float* from, std::uint32_t* to) const noexcept {
  const index width = block_width(d_.out);
  loops::parallel_for(threads, {panels(d_.out)}, [&](index panel) {
    detail::pair_rows(from + panel * d_.in * width, d_.in, width, to + panel * ((d_.in + 1) / 2) * width);
  });
}

/// Panels (ceil(out/w), in, w), w = block_width(out), to panels (ceil(in/v), out, v), v = block_width(in), of f32; or
/// (ceil(in/v), ceil(out/2), v, 2) of bf16.
inline void linear::transpose_weights(loops::executor_ref threads, const float* parameters, void* to) const noexcept {
  const index width = block_width(d_.out);
  const index width_t = block_width(d_.in);
  const bool passes = detail::passes_caches(this->parameters() * 4 + transposed_bytes(), to);
  loops::parallel_for(threads, {panels(d_.in), panels(d_.out)}, [&](index block, index panel) {
    const index rows = detail::extent_of_block(d_.in, width_t, block);
    const index columns = detail::extent_of_block(d_.out, width, panel);
    const float* const from = parameters + (panel * d_.in + block * width_t) * width;
    const float* const next = panel + 1 < panels(d_.out) ? from + d_.in * width : from;
    const detail::streaming ahead{passes, reinterpret_cast<const char*>(next)};
    if (d_.data == type::bf16) {
      const index pair = block * ((d_.out + 1) / 2) + panel * width / 2;
      detail::transpose_to_pairs(from, width, rows, columns, static_cast<std::uint32_t*>(to) + pair * width_t, width_t,
                                 ahead);
    } else {
      const index row = block * d_.out + panel * width;
      detail::transpose_words(from, width, static_cast<float*>(to) + row * width_t, width_t, rows, columns, ahead);
    }
    if (passes) _mm_sfence();
  });
}

/// Panels (ceil(out/w), in, w), w = block_width(out), to panels of pieces (ceil(in/v), ceil(out/32), pieces, 16, v, 2),
/// v = block_width(in).
inline void linear::split_transposed(loops::executor_ref threads, const float* parameters,
                                     std::uint32_t* to) const noexcept {
  const index width = block_width(d_.out);
  const index width_t = block_width(d_.in);
  const index chunk_words = detail::split_chunk / 2 * detail::pieces_of(d_.compute) * width_t;
  const index chunks = detail::chunks_of(d_.out);
  loops::parallel_for(threads, {panels(d_.in), chunks}, [&](index block, index chunk) {
    alignas(64) float turned[detail::split_chunk * loops::largest_block_width] = {};
    const index rows = detail::extent_of_block(d_.in, width_t, block);
    const index first = chunk * detail::split_chunk;
    const index last = std::min(first + detail::split_chunk, d_.out);
    for (index o = first, columns = 0; o < last; o += columns) {  // a chunk may lie in two panels
      columns = std::min(last, (o / width + 1) * width) - o;
      const float* const from = parameters + (o / width * d_.in + block * width_t) * width + o % width;
      detail::transpose_words(from, width, turned + (o - first) * width_t, width_t, rows, columns);
    }
    detail::split_chunk_of_panel(d_.compute, turned, width_t, to + (block * chunks + chunk) * chunk_words);
  });
}

}  // namespace brgemm::inline abi_0::nn
