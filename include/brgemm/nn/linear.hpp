// A fully connected layer: y = act(x * W + b), its gradients by x, W and b; f32, bf16 with f32 parameters, 8-bit
// forward. Two steps: plan once, then call.
#pragma once

#include <optional>

#include "../kernel/pack.hpp"
#include "activation.hpp"
#include "block_epilogue.hpp"
#include "gradient_product.hpp"

namespace brgemm::inline abi_0::nn {

/// What a layer computes. Sizes count elements.
struct linear_desc {
  index rows = 1;  ///< the most rows (the batch) of one call
  index in = 1;    ///< features of x
  index out = 1;   ///< features of y
  /// Type of x, of all gradients of activations, and of the weights that kernels read: f32; bf16; or, forward only, u8
  /// or s8, both with weights of s8.
  type data = type::f32;
  /// Type of y: f32 for f32; bf16 or f32 for bf16; f32, bf16, u8, s8 or s32 for u8 and s8. s32 is the exact sum over k
  /// of (x - zero_x) * w, modulo 2^32: no scale, no bias, no activation.
  type y = type::f32;
  /// f32 only: by products of bf16 pieces, in every direction.
  math compute = math::f32;
  /// Of bf16: one order for a cluster of mixed machines. In order::tile an entry is a row of x (of dz), or what is in
  /// one block of it; of the gradient of weights 64 rows, of those that are left 8, then 2.
  order sums = order::machine;
  activation act = activation::none;
  bool bias = true;
  bool training = false;                    ///< plan the backward passes; forward then writes `saved` for them
  activation input_act = activation::none;  ///< what made x: backward_data multiplies by its derivative
  storage x_storage = storage::plain;       ///< of x and its gradient; blocked needs can_block(in)
  storage y_storage = storage::plain;       ///< of y and its gradient; blocked needs can_block(out)
  index ldx = 0;                            ///< plain: rows of x are ldx apart, 0 stands for in; blocked: 0
  index ldy = 0;                            ///< plain: rows of y are ldy apart, 0 stands for out; blocked: 0
  friend bool operator==(const linear_desc&, const linear_desc&) = default;
};

/// Scales and zero points of a layer of u8 or s8: y = act((sum over k of (x - zero_x) * w) * scale[j] + bias[j]),
/// converted with rounding to nearest even and saturation. A zero point or scale of y goes into scale and bias.
struct quantisation {
  const float* scale = nullptr;  ///< (out); null where y is s32
  std::int32_t zero_x = 0;
  const std::int32_t* column_sums = nullptr;  ///< (panels(out) * block_width(out)), from pack_weights
};

/// The plan of one layer: immutable, so any number of threads may call it at once with different memory. It owns
/// kernels (by pieces also lists of where they lie, so it moves and is not copied) and no data; every buffer is the
/// caller's, its size is asked from the plan. A call allocates nothing.
///
/// Parameters are f32 in panels (ceil(out/w), in, w), w = block_width(out), zero beyond `out`; gradients of parameters
/// and optimizer states have the same layout. For f32 by math::f32 the kernels read the parameters themselves as
/// weights; for bf16, and for f32 by pieces, `prepare` makes the weights from them. The bias and its gradient are (out)
/// f32.
///
/// Sums go in the order of the contract: the same bits for a row alone or in a batch and for any number of threads.
/// Errors are invalid_argument with the argument's name, found before anything is written.
class linear {
 public:
  /// Errors: invalid_argument with the field of the desc, or what make_kernel says.
  static result<linear> plan(const linear_desc& d, const options& how = {}) noexcept;

  const linear_desc& description() const noexcept { return d_; }
  std::string_view backend() const noexcept { return forward_->backend(); }

  index parameters() const noexcept { return panels(d_.out) * d_.in * block_width(d_.out); }
  index weights_bytes() const noexcept { return forward_->packed_bytes(); }
  index transposed_bytes() const noexcept { return backward_ ? backward_->packed_bytes() : 0; }
  index x_bytes() const noexcept { return bytes_of(d_.x_storage, d_.in, d_.ldx, d_.data, d_.rows); }
  index y_bytes() const noexcept { return bytes_of(d_.y_storage, d_.out, d_.ldy, d_.y, d_.rows); }
  /// Bytes of `saved`: 0 without training or activation, a bit an element for relu, an f32 an element for the others.
  index saved_bytes() const noexcept { return d_.training ? saved_bytes(d_.act, d_.y_storage, d_.out, d_.rows) : 0; }
  index input_saved_bytes() const noexcept { return saved_bytes(d_.input_act, d_.x_storage, d_.in, d_.rows); }
  /// Bytes that forward needs for the pieces of x, 0 for math::f32; align them to 64.
  index forward_workspace_bytes() const noexcept { return pieces_bytes(d_.in, d_.rows); }
  /// Bytes that backward_data needs for the pieces of dz, 0 for math::f32; align them to 64.
  index backward_data_workspace_bytes() const noexcept { return d_.training ? pieces_bytes(d_.out, d_.rows) : 0; }
  /// Bytes that backward_weights needs besides its arguments; align them to 64.
  index backward_weights_workspace_bytes() const noexcept { return x_copy_bytes() + z_copy_bytes(); }

  /// Brings weights from a framework's storage into the panels that kernels read. T is float for the parameters (of f32
  /// and bf16 layers), bf16 or int8 for weights of a layer with that type of weights.
  /// w (in,out) where `stored` is plain, (out,in), as PyTorch has it, where it is transposed; rows of adjacent
  /// elements. packed: parameters() floats, or weights_bytes(). column_sums, 8-bit only: panels(out) *
  /// block_width(out), or null.
  template <class T>
  result<void> pack_weights(loops::executor_ref threads, const view<const T, 2>& w, layout stored, T* packed,
                            std::int32_t* column_sums = nullptr) const noexcept;

  /// The way back, for parameters and their gradients.
  result<void> unpack_parameters(loops::executor_ref threads, const float* parameters, const view<float, 2>& w,
                                 layout stored) const noexcept;

  /// After each change of the parameters: makes `weights` (of bf16 or of pieces; else null) for forward, and
  /// `transposed` for backward_data (null where that is not called).
  result<void> prepare(loops::executor_ref threads, const float* parameters, void* weights,
                       void* transposed) const noexcept;

  // Of the calls below: 1 <= rows <= description().rows. A buffer is what lies from the first to the last of its
  // elements; one that is written overlaps no other. Pointers are multiples of their elements' size.

  /// y = act(x * W + b). x (rows, in), y (rows, out) in the plan's storage; `weights` in panels: of f32 the parameters,
  /// of bf16 and by pieces what `prepare` made; bias (out) or null where the desc has none; saved: saved_bytes(), null
  /// where that is 0; q for u8 and s8; workspace: forward_workspace_bytes(), null where that is 0. y must not overlap
  /// the others.
  result<void> forward(loops::executor_ref threads, index rows, const void* x, const void* weights, const float* bias,
                       void* y, void* saved = nullptr, const quantisation& q = {},
                       void* workspace = nullptr) const noexcept;

  /// The same for plain storage, with shapes, types and strides checked.
  template <element X, element Y>
  result<void> forward(loops::executor_ref threads, const view<const X, 2>& x, const void* weights, const float* bias,
                       const view<Y, 2>& y, void* saved = nullptr, const quantisation& q = {},
                       void* workspace = nullptr) const noexcept {
    if (auto r = check_view("x", x, d_.in, ldx(), d_.data); !r) return r;
    if (auto r = check_view("y", view<const Y, 2>(y), d_.out, ldy(), d_.y); !r) return r;
    if (x.extent(0) != y.extent(0)) {
      return error(errc::invalid_argument, "y", "x has %ld rows, y has %ld", x.extent(0), y.extent(0));
    }
    return forward(threads, x.extent(0), x.data(), weights, bias, y.data(), saved, q, workspace);
  }

  /// The gradient before the layer's own activation: dz = dy * act'. For a last layer, or a layer that stands alone;
  /// between layers the next layer's backward_data does it (input_act). dy and dz have y's storage and the type `data`;
  /// dz may be dy.
  result<void> backward_activation(loops::executor_ref threads, index rows, const void* dy, const void* saved,
                                   void* dz) const noexcept;

  /// dx = (dz * W^T) * input_act'. dz in y's storage, dx in x's, both of the type `data`; transposed from `prepare`;
  /// input_saved: what the layer before wrote to `saved`, null where input_act is none; workspace:
  /// backward_data_workspace_bytes(), null where that is 0.
  result<void> backward_data(loops::executor_ref threads, index rows, const void* dz, const void* transposed, void* dx,
                             const void* input_saved = nullptr, void* workspace = nullptr) const noexcept;

  /// dw = x^T * dz, in the layout of the parameters, zero beyond `out` as they are, and db = column sums of dz (db may
  /// be null). Sums go over the rows in ascending order.
  result<void> backward_weights(loops::executor_ref threads, index rows, const void* x, const void* dz, float* dw,
                                float* db, void* workspace) const noexcept;

 private:
  linear() = default;

  index ldx() const noexcept { return d_.ldx != 0 ? d_.ldx : d_.in; }
  index ldy() const noexcept { return d_.ldy != 0 ? d_.ldy : d_.out; }
  tiling x_tiles() const noexcept { return tiling_of(d_.x_storage, d_.in, ldx()); }
  tiling y_tiles() const noexcept { return tiling_of(d_.y_storage, d_.out, ldy()); }
  /// z in f32 lies as its activations, plain ones without gaps.
  static tiling saved_tiles(storage s, index features) noexcept { return tiling_of(s, features, features); }

  static index bytes_of(storage s, index features, index ld, type t, index rows) noexcept {
    return extent_of(s, tiling_of(s, features, ld != 0 ? ld : features), rows, features) * size_of(t);
  }
  /// Of `rows` rows of x or dx; of dz or dy.
  index bytes_of_x(index rows) const noexcept { return bytes_of(d_.x_storage, d_.in, d_.ldx, d_.data, rows); }
  index bytes_of_z(index rows) const noexcept { return bytes_of(d_.y_storage, d_.out, d_.ldy, d_.data, rows); }
  static index saved_bytes(activation a, storage s, index features, index rows) noexcept {
    if (a == activation::none) return 0;
    if (a == activation::relu) return extent_of(s, mask_tiling(s, features), rows, (features + 7) / 8);
    return bytes_of(s, features, features, type::f32, rows);
  }
  bool has_pieces() const noexcept { return d_.compute != math::f32; }
  index pieces_bytes(index features, index rows) const noexcept {
    return has_pieces() ? rows * detail::split_pitch(features, d_.compute) * size_of(type::bf16) : 0;
  }
  /// Blocks of 64 rows of pieces.
  tiling pieces_tiles(index features) const noexcept {
    const index ld = detail::split_pitch(features, d_.compute);
    return {ld, block_rows * ld, 0};
  }
  static index alignment_of_saved(activation a) noexcept { return a == activation::relu ? 1 : 4; }
  /// bf16 blocks are transposed or paired for the kernels, so only f32 blocks are read in place.
  bool copies_x() const noexcept { return d_.data != type::f32 || has_pieces() || d_.x_storage == storage::plain; }
  bool copies_z() const noexcept { return d_.data != type::f32 || has_pieces() || d_.y_storage == storage::plain; }
  tiling x_blocks() const noexcept { return copies_x() ? copy_tiles(d_.in) : blocked_tiling(d_.in); }
  tiling z_blocks() const noexcept { return copies_z() ? copy_tiles(d_.out) : blocked_tiling(d_.out); }
  tiling copy_tiles(index features) const noexcept {
    const tiling t = column_tiling(features, d_.rows);
    const index pieces = detail::pieces_of(d_.compute);
    return {t.ld, t.row_step * pieces, t.column_step * pieces};
  }
  index copy_bytes(index features) const noexcept {
    const index bytes = has_pieces() ? detail::pieces_of(d_.compute) * size_of(type::bf16) : size_of(d_.data);
    return row_blocks(d_.rows) * blocked_tiling(features).row_step * bytes;
  }
  index x_copy_bytes() const noexcept { return d_.training && copies_x() ? (copy_bytes(d_.in) + 63) / 64 * 64 : 0; }
  index z_copy_bytes() const noexcept { return d_.training && copies_z() ? copy_bytes(d_.out) : 0; }

  bool is_8bit() const noexcept { return detail::is_8bit(d_.data); }
  /// Sums in s32 are stored as they are.
  bool scales() const noexcept { return is_8bit() && d_.y != type::s32; }

  static constexpr index largest_size = index{1} << 29;
  static result<void> check(const linear_desc& d) noexcept;
  static result<void> check_types(const linear_desc& d) noexcept;
  result<void> check_rows(index rows) const noexcept {
    if (rows >= 1 && rows <= d_.rows) return {};
    return error(errc::invalid_argument, "rows", "rows is %ld; this plan takes 1..%ld", rows, d_.rows);
  }
  result<void> check_training(const char* call) const noexcept {
    if (d_.training) return {};
    return error(errc::invalid_argument, "training", "%s needs a plan with training = true", call);
  }
  result<void> check_backward(const char* call, index rows) const noexcept;
  template <class T>
  result<void> check_view(const char* name, const view<const T, 2>& v, index features, index ld,
                          type wanted) const noexcept;

  detail::row_product_desc forward_desc() const noexcept;
  detail::row_product_desc backward_desc() const noexcept;
  static detail::tiled_step backward_step(activation a, storage s, index features) noexcept;

  void pair_weights(loops::executor_ref threads, const float* from, std::uint32_t* to) const noexcept;
  void transpose_weights(loops::executor_ref threads, const float* parameters, void* to) const noexcept;
  void split_transposed(loops::executor_ref threads, const float* parameters, std::uint32_t* to) const noexcept;
  void copy_x(loops::executor_ref threads, index rows, const void* x, void* to) const noexcept;
  void copy_z(loops::executor_ref threads, index rows, const void* dz, void* to) const noexcept;

  linear_desc d_;
  std::optional<detail::row_product> forward_;
  std::optional<detail::row_product> backward_;
  std::optional<detail::block_epilogue> activation_;  ///< of its derivative
  std::optional<detail::gradient_product> gradient_;
};

}  // namespace brgemm::inline abi_0::nn

#include "linear_backward.hpp"
#include "linear_forward.hpp"
#include "linear_plan.hpp"
#include "linear_weights.hpp"
