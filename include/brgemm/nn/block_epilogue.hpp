// One step of an epilogue applied to a matrix of activations in place.
#pragma once

#include "../loops/row_product.hpp"
#include "storage.hpp"

namespace brgemm::inline abi_0::detail {

/// C = step(C), C a block of a matrix (rows, features) with rows ld apart: kernels with k = 0 and beta = 1, so that a
/// step alone has the bits that it has fused.
class block_epilogue {
 public:
  /// `compute`: of a layer by pieces, so that a backend for bf16 only makes this kernel too.
  static result<block_epilogue> make(index features, index ld, type element, math compute, const tiled_step& step,
                                     const options& how) noexcept {
    block_epilogue p;
    p.width_ = nn::block_width(features);
    p.step_ = step;
    for (const bool full : {false, true}) {
      desc d;
      d.m = nn::block_rows;
      d.m_extent = extent_kind::at_call;
      d.n = full ? p.width_ : features % p.width_;
      if (d.n == 0 || d.n > features) continue;
      d.k = 0;
      d.ldb = d.n;
      d.ldc = ld;
      d.c = element;
      d.a = d.b = compute == math::f32 ? element : type::bf16;
      if (compute != math::f32) d.sums = order::tile;
      d.layout_b = k_group_of(d.a) > 1 ? layout::interleaved : layout::plain;
      d.beta = beta_kind::one;
      append(d, step.op);
      if (auto r = make_into(p.kernels_[full], d, how); !r) return r.error();
    }
    return p;
  }

  /// C = step(C) for one block of it.
  void operator()(index block, index panel, index height, index width, void* c, const void* operand) const noexcept {
    arguments call;
    call.c = c;
    call.m = height;
    call.operand[0] =
        static_cast<char*>(const_cast<void*>(operand)) + block * step_.row_bytes + panel * step_.column_bytes;
    kernels_[width == width_](call);
  }

 private:
  block_epilogue() = default;
  index width_ = 0;
  tiled_step step_;
  kernel kernels_[2];  ///< [a panel of full width]
};

}  // namespace brgemm::inline abi_0::detail
