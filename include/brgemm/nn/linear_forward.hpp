// The forward pass of nn::linear: what its kernels compute, and the call.
#pragma once

#include "../loops/buffers.hpp"
#include "linear.hpp"

namespace brgemm::inline abi_0::nn {

/// y = act(z), z = x * W * scale + b; scale for 8-bit data only, and not where y is s32. In training z, or relu's mask,
/// is saved.
inline detail::row_product_desc linear::forward_desc() const noexcept {
  detail::row_product_desc f;
  f.rows = d_.rows;
  f.n = d_.out;
  f.k = d_.in;
  f.k_entry = d_.x_storage == storage::blocked && d_.in > block_width(d_.in) ? block_width(d_.in) : d_.in;
  f.a = d_.data;
  f.b = is_8bit() ? type::s8 : d_.data;
  f.c = d_.y;
  f.sums = d_.sums;
  f.zero_a = is_8bit() ? zero_point::at_call : zero_point::none;
  f.a_tiles = x_tiles();
  f.c_tiles = y_tiles();
  if (has_pieces()) {
    f.compute = d_.compute;
    f.a = f.b = type::bf16;
    f.a_tiles = pieces_tiles(d_.in);
  }
  const index column = block_width(d_.out) * size_of(type::f32);
  if (scales()) f.append(op::scale(axis::column), 0, column);
  if (d_.bias) f.append(op::bias(axis::column), 0, column);
  if (d_.training && d_.act == activation::relu) {
    const tiling mask = mask_tiling(d_.y_storage, d_.out);
    f.append(op::relu_mask(mask.ld), mask.row_step, mask.column_step);
  } else if (d_.act != activation::none) {
    const tiling z = saved_tiles(d_.y_storage, d_.out);
    if (d_.training) f.append(op::store(z.ld), z.row_step * 4, z.column_step * 4);
    f.append(op::make(op_of(d_.act)));
  }
  return f;
}

inline result<void> linear::forward(loops::executor_ref threads, index rows, const void* x, const void* weights,
                                    const float* bias, void* y, void* saved, const quantisation& q,
                                    void* workspace) const noexcept {
  if (auto r = check_rows(rows); !r) return r;
  const detail::buffer written[] = {
      {"y", y, bytes_of(d_.y_storage, d_.out, d_.ldy, d_.y, rows), size_of(d_.y)},
      {"saved", saved, d_.training ? saved_bytes(d_.act, d_.y_storage, d_.out, rows) : 0, alignment_of_saved(d_.act)},
      {"workspace", workspace, pieces_bytes(d_.in, rows)}};
  const detail::buffer read[] = {{"x", x, bytes_of_x(rows), size_of(d_.data)},
                                 {"weights", weights, weights_bytes(), size_of(forward_->description().b)},
                                 {"bias", bias, d_.bias ? d_.out * 4 : 0},
                                 {"scale", q.scale, scales() ? d_.out * 4 : 0},
                                 {"column_sums", q.column_sums, is_8bit() ? d_.out * 4 : 0}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  if (has_pieces()) {
    detail::split_matrix(threads, d_.compute, static_cast<const float*>(x), x_tiles(), rows, d_.in,
                         static_cast<std::uint16_t*>(workspace));
    x = workspace;
  }
  detail::row_product_arguments call;
  call.a = x;
  call.b = weights;
  call.c = y;
  call.zero_a = q.zero_x;
  call.column_sums = q.column_sums;
  int step = 0;
  if (scales()) call.operands[step++] = const_cast<float*>(q.scale);
  if (d_.bias) call.operands[step++] = const_cast<float*>(bias);
  call.operands[step] = saved;
  (*forward_)(threads, rows, call);
  return {};
}

}  // namespace brgemm::inline abi_0::nn
