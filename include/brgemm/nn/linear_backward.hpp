// The backward passes of nn::linear: what their kernels compute, and the calls.
#pragma once

#include "../loops/buffers.hpp"
#include "linear.hpp"
#include "rearrange.hpp"
#include "tiles.hpp"

namespace brgemm::inline abi_0::detail {

inline void transposed_copy(const std::uint16_t* from, index ld_from, std::uint16_t* to, index, index rows,
                            index columns, streaming ahead) noexcept {
  transpose_rows(from, ld_from, to, nn::block_rows, rows, columns, ahead);
}
inline void paired_copy(const std::uint16_t* from, index ld_from, std::uint16_t* to, index ld_to, index rows,
                        index columns, streaming ahead) noexcept {
  interleave_rows(from, ld_from, reinterpret_cast<std::uint32_t*>(to), ld_to, rows, columns, ahead);
}

/// A block (rows, columns) of f32, rows <= 64, to its transpose in pieces: (columns, 2, pieces, 32), of the second
/// chunk only what rows > 32 need.
inline void split_columns(math how, const float* from, index ld_from, index rows, index columns,
                          std::uint16_t* to) noexcept {
  alignas(64) float turned[16 * nn::block_rows];
  const loops::tiling t{nn::block_rows, 0, nn::block_rows};
  for (index c = 0; c < columns; c += 16) {
    const index here = columns - c < 16 ? columns - c : 16;
    transpose_words(from + c, ld_from, turned, nn::block_rows, rows, here);
    auto* const split = how == math::bf16x3 ? &split_rows<3> : &split_rows<2>;
    split(turned, t, nn::block_rows, here, 0, rows, rows, to + c * nn::block_rows * pieces_of(how),
          nn::block_rows * pieces_of(how));
  }
}

/// Copies (rows, features) block by block, f32 as it is, bf16 changed inside each block by `change`.
template <class Change>
void copy_blocks(loops::executor_ref threads, index rows, index features, type data, const void* from,
                 const nn::tiling& source, void* to, const nn::tiling& target, Change change) noexcept {
  for_each_tile(threads, rows, features, [&](index block, index panel, index height, index width) {
    const index first = source.offset(block, panel);
    const index place = target.offset(block, panel);
    if (data == type::f32) {
      copy_rows(static_cast<const float*>(from) + first, source.ld, static_cast<float*>(to) + place, target.ld, height,
                width);
    } else {
      const index next = block + 1 < nn::row_blocks(rows)   ? source.offset(block + 1, panel)
                         : panel + 1 < nn::panels(features) ? source.offset(0, panel + 1)
                                                            : first;
      const auto* const elements = static_cast<const std::uint16_t*>(from);
      change(elements + first, source.ld, static_cast<std::uint16_t*>(to) + place, target.ld, height, width,
             {.next = reinterpret_cast<const char*>(elements + next)});
    }
  });
}

}  // namespace brgemm::inline abi_0::detail

namespace brgemm::inline abi_0::nn {

inline result<void> linear::check_backward(const char* call, index rows) const noexcept {
  if (auto r = check_training(call); !r) return r;
  return check_rows(rows);
}

// ---- by the activation ----

/// Multiplies by the derivative of `a`, from what forward saved.
inline detail::tiled_step linear::backward_step(activation a, storage s, index features) noexcept {
  if (a == activation::relu) {
    const tiling mask = mask_tiling(s, features);
    return {op::multiply_mask(mask.ld), mask.row_step, mask.column_step};
  }
  const tiling z = saved_tiles(s, features);
  return {op::make(backward_of(a), type::f32, axis::none, z.ld), z.row_step * 4, z.column_step * 4};
}

inline result<void> linear::backward_activation(loops::executor_ref threads, index rows, const void* dy,
                                                const void* saved, void* dz) const noexcept {
  if (auto r = check_backward("backward_activation", rows); !r) return r;
  const detail::buffer written[] = {{"dz", dz, bytes_of_z(rows), size_of(d_.data)}};
  const detail::buffer read[] = {
      {"dy", dy == dz ? nullptr : dy, dy == dz ? 0 : bytes_of_z(rows), size_of(d_.data)},
      {"saved", saved, saved_bytes(d_.act, d_.y_storage, d_.out, rows), alignment_of_saved(d_.act)}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  const tiling t = y_tiles();
  const index bytes = size_of(d_.data);
  detail::for_each_tile(threads, rows, d_.out, [&](index block, index panel, index height, index width) {
    void* const to = static_cast<char*>(dz) + t.offset(block, panel) * bytes;
    if (dy != dz) {
      const void* const from = static_cast<const char*>(dy) + t.offset(block, panel) * bytes;
      if (d_.data == type::f32) {
        detail::copy_rows(static_cast<const float*>(from), t.ld, static_cast<float*>(to), t.ld, height, width);
      } else {
        detail::copy_rows(static_cast<const bf16*>(from), t.ld, static_cast<bf16*>(to), t.ld, height, width);
      }
    }
    if (activation_) (*activation_)(block, panel, height, width, to, saved);
  });
  return {};
}

// ---- by the data ----

/// dx = (dz * W^T) * input_act'.
inline detail::row_product_desc linear::backward_desc() const noexcept {
  detail::row_product_desc b;
  b.rows = d_.rows;
  b.n = d_.in;
  b.k = d_.out;
  b.k_entry = d_.y_storage == storage::blocked && d_.out > block_width(d_.out) ? block_width(d_.out) : d_.out;
  b.a = b.b = b.c = d_.data;
  b.sums = d_.sums;
  b.a_tiles = y_tiles();
  if (has_pieces()) {
    b.compute = d_.compute;
    b.a = b.b = type::bf16;
    b.a_tiles = pieces_tiles(d_.out);
  }
  b.c_tiles = x_tiles();
  if (d_.input_act != activation::none) b.epilogue[b.steps++] = backward_step(d_.input_act, d_.x_storage, d_.in);
  return b;
}

inline result<void> linear::backward_data(loops::executor_ref threads, index rows, const void* dz,
                                          const void* transposed, void* dx, const void* input_saved,
                                          void* workspace) const noexcept {
  if (auto r = check_backward("backward_data", rows); !r) return r;
  const detail::buffer written[] = {{"dx", dx, bytes_of_x(rows), size_of(d_.data)},
                                    {"workspace", workspace, pieces_bytes(d_.out, rows)}};
  const detail::buffer read[] = {{"dz", dz, bytes_of_z(rows), size_of(d_.data)},
                                 {"transposed", transposed, transposed_bytes(), size_of(d_.data)},
                                 {"input_saved", input_saved, saved_bytes(d_.input_act, d_.x_storage, d_.in, rows),
                                  alignment_of_saved(d_.input_act)}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  if (has_pieces()) {
    detail::split_matrix(threads, d_.compute, static_cast<const float*>(dz), y_tiles(), rows, d_.out,
                         static_cast<std::uint16_t*>(workspace));
    dz = workspace;
  }
  detail::row_product_arguments call;
  call.a = dz;
  call.b = transposed;
  call.c = dx;
  call.operands[0] = const_cast<void*>(input_saved);
  (*backward_)(threads, rows, call);
  return {};
}

// ---- by the weights ----

inline result<void> linear::backward_weights(loops::executor_ref threads, index rows, const void* x, const void* dz,
                                             float* dw, float* db, void* workspace) const noexcept {
  if (auto r = check_backward("backward_weights", rows); !r) return r;
  const detail::buffer written[] = {{"dw", dw, parameters() * 4},
                                    {"db", db, db != nullptr ? d_.out * 4 : 0},
                                    {"workspace", workspace, backward_weights_workspace_bytes()}};
  const detail::buffer read[] = {{"x", x, bytes_of_x(rows), size_of(d_.data)},
                                 {"dz", dz, bytes_of_z(rows), size_of(d_.data)}};
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

/// The blocks of x that gradient_product reads: f32 as they are; bf16 transposed, an odd last row followed by zeros; or
/// pieces.
inline void linear::copy_x(loops::executor_ref threads, index rows, const void* x, void* to) const noexcept {
  if (has_pieces()) {
    return detail::for_each_tile(threads, rows, d_.in, [&](index block, index panel, index height, index width) {
      detail::split_columns(d_.compute, static_cast<const float*>(x) + x_tiles().offset(block, panel), x_tiles().ld,
                            height, width, static_cast<std::uint16_t*>(to) + x_blocks().offset(block, panel));
    });
  }
  detail::copy_blocks(threads, rows, d_.in, d_.data, x, x_tiles(), to, x_blocks(), detail::transposed_copy);
}

/// The blocks of dz: f32 as they are; bf16 with pairs of rows beside each other, an odd last row paired with zeros; or
/// pieces.
inline void linear::copy_z(loops::executor_ref threads, index rows, const void* dz, void* to) const noexcept {
  if (has_pieces()) {
    return detail::for_each_tile(threads, rows, d_.out, [&](index block, index panel, index height, index width) {
      const float* from = static_cast<const float*>(dz) + y_tiles().offset(block, panel);
      auto* pieces = static_cast<std::uint32_t*>(to) + z_blocks().offset(block, panel) / 2;
      for (index r = 0; r < height; r += detail::split_chunk) {
        detail::split_chunk_of_b(d_.compute, from, y_tiles().ld, layout::plain,
                                 std::min(height - r, detail::split_chunk), width, z_blocks().ld, pieces);
        from += detail::split_chunk * y_tiles().ld;
        pieces += detail::split_chunk / 2 * detail::pieces_of(d_.compute) * z_blocks().ld;
      }
    });
  }
  detail::copy_blocks(threads, rows, d_.out, d_.data, dz, y_tiles(), to, z_blocks(), detail::paired_copy);
}

}  // namespace brgemm::inline abi_0::nn
