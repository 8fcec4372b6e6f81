// A convolution over one, two or three spatial axes: y = act(x * W * scale + b + residual), and its gradients by x, W
// and b, of f32 and bf16; forward also of 8-bit types.
#pragma once

#include <optional>

#include "activation.hpp"
#include "conv_pass.hpp"
#include "conv_update.hpp"
#include "depthwise_update.hpp"
#include "reorder.hpp"
#include "winograd.hpp"

namespace brgemm::inline abi_0::nn {

using conv_axis = detail::conv_axis;
using conv_schedule = detail::conv_schedule;
using conv_update_schedule = detail::conv_update_schedule;

/// How a framework stores the weights of a convolution: (out, in/groups, D, R, S), as PyTorch has them, or
/// (groups, D, R, S, in/groups, out/groups).
enum class conv_weights : std::uint8_t { out_first, out_last };

/// How a layer sums. Winograd's takes 2.25 (4) times fewer products and is less exact: docs/numerics.md has the bound.
enum class conv_algorithm : std::uint8_t {
  automatic,     ///< direct; where conv_desc::inexact allows it, whichever is likely to be the quickest
  direct,        ///< the contract's order of sums
  winograd_2x2,  ///< tiles of 2 x 2 outputs: forward of f32, 3 x 3 taps, stride and dilation 1, one group, two axes
  winograd_4x4,
};

/// What a layer computes. x is (images, depth, height, width, in), y (images, ..., out), channels adjacent (NHWC), or
/// in blocks (NCHWc). With fewer than three axes leave the first ones as they are: axes[2] is the width.
struct conv_desc {
  index images = 1;  ///< the most images of one call
  index in = 1;      ///< channels of x, a multiple of groups
  index out = 1;     ///< channels of y, a multiple of groups
  index groups = 1;
  /// 8, 16, 32 or 64: x and dx are (images, ceil(in / x_block), depth, height, width, x_block); 0: channels are
  /// adjacent. What is missing from a last block is neither read nor written.
  index x_block = 0;
  index y_block = 0;  ///< of y, its gradient and the residual
  conv_axis axes[3] = {};
  /// The transposed convolution (PyTorch's ConvTranspose): forward computes what backward_data does in the convolution
  /// that `axes` describe, with an epilogue. x has axes[i].out() pixels then and y axes[i].in; forward only.
  bool transposed = false;
  /// Of x, of gradients of activations, and of the weights that kernels read: f32; bf16; or, forward only, u8 or s8,
  /// the weights then s8.
  type data = type::f32;
  type y = type::f32;  ///< f32; with bf16 data also bf16; with 8-bit data also bf16, u8, s8, and s32: as summed
  /// bf16: of an entry. This is a row of taps where a group has 64 channels or fewer, which are all the adjacent ones
  /// of x, their number is even or a row of taps has 64 in all, dilation of the width is 1, and the layer is not
  /// transposed; else 64 or fewer channels of a tap (and of a block). Depthwise (in = out = groups > 1) it is always
  /// one fma a tap.
  order sums = order::machine;
  activation act = activation::none;
  bool bias = true;
  bool scale = false;     ///< a factor a channel of y: folded batch normalisation, or the scales of 8-bit x and w
  bool residual = false;  ///< a tensor as y, f32 or bf16, is added before the activation
  bool clamp = false;     ///< forward ends with min(max(y, lower), upper); relu6: 0 and 6, without act
  float lower = 0;
  float upper = 6;
  bool mask = false;        ///< forward writes where relu's input was above 0: what input_mask reads
  bool input_mask = false;  ///< backward_data multiplies by the mask of x
  bool training = false;    ///< plan the backward passes
  conv_algorithm algorithm = conv_algorithm::automatic;  ///< of the forward pass
  bool inexact = false;                                  ///< automatic may choose another than direct
  friend bool operator==(const conv_desc&, const conv_desc&) = default;
};

/// Schedules that `tune` found, of the direct forward pass, of backward_data and of backward_weights.
struct conv_schedules {
  conv_schedule forward = {};
  conv_schedule backward_data = {};
  conv_update_schedule backward_weights = {};
  friend bool operator==(const conv_schedules&, const conv_schedules&) = default;
};

/// What forward reads beside x and weights, null where the desc has none.
struct conv_operands {
  const float* bias = nullptr;     ///< (out)
  const float* scale = nullptr;    ///< (out)
  const void* residual = nullptr;  ///< as y
  void* mask = nullptr;            ///< written: mask_bytes()
  std::int32_t zero_x = 0;         ///< 8-bit data: x stands for x - zero_x, padding for 0
  void* workspace = nullptr;       ///< forward_workspace_bytes()
};

/// The plan of one convolution: immutable, so any number of threads may call it at once with different memory. It owns
/// kernels and lists of taps, and no data. A call allocates nothing.
///
/// With the direct algorithm each output is one chain of terms: chunks of 64 of its group's input channels (the last
/// shorter), in a chunk its taps in row-major order of W, in those the channels; backward the output channels are what
/// is summed over. A tap that padding hides adds no term. So the bits depend on no schedule, no thread and no other
/// image; on x_block and y_block only where `sums` and backward_weights say so.
///
/// Errors are invalid_argument with the argument's name, found before anything is written. Buffers that are written
/// overlap no other; pointers are multiples of their elements' size.
class conv {
 public:
  /// Errors: invalid_argument with the field of the desc; unsupported for other types, for masks of groups whose
  /// channels are no multiple of 8 or beside clamp, for training of 8-bit types and of transposed convolutions, for
  /// steps of a y of s32 and a residual of 8 bits, for blocks that a group's channels neither fill nor divide, or
  /// that leave parts of what one instruction takes, and for a y or, in training, data of bf16 where sums over more
  /// than 64 channels do not come in whole chunks; "algorithm" where Winograd's is asked for and cannot be; what
  /// make_kernel says; out_of_memory. by: what `tune` found; the bits are the same.
  static result<conv> plan(const conv_desc& d, const options& how = {}, const conv_schedules& by = {}) noexcept;
  /// What is wrong with a desc on every backend: as plan, without what make_kernel says.
  static result<void> check(const conv_desc& d) noexcept;

  const conv_desc& description() const noexcept { return d_; }
  std::string_view backend() const noexcept { return forward_->backend(); }
  index x_bytes() const noexcept { return d_.images * forward_->image_in() * size_of(d_.data); }
  index y_bytes() const noexcept { return d_.images * forward_->image_out() * size_of(d_.y); }
  /// Multiplications and additions of a forward pass over one image, without the taps that padding hides.
  double operations() const noexcept;
  /// Elements of dw: (groups, D, R, S, in/groups, out/groups), as conv_weights::out_last.
  index weights() const noexcept { return d_.out * in() * taps(); }
  index weights_bytes() const noexcept { return winograd_ ? winograd_->packed_bytes() : forward_->packed_bytes(); }
  index transposed_bytes() const noexcept { return backward_ ? backward_->packed_bytes() : 0; }
  /// Bit masks, (images, ..., ceil(out / 8)) bytes for y and with `in` for x; channel c is bit c % 8 of byte c / 8.
  index mask_bytes() const noexcept { return d_.mask ? d_.images * forward_->mask_bytes() : 0; }
  index input_mask_bytes() const noexcept { return d_.input_mask ? d_.images * backward_->mask_bytes() : 0; }

  /// Whether each channel of y has one of x of its own.
  static constexpr bool is_depthwise(const conv_desc& d) noexcept {
    return d.groups > 1 && d.groups == d.in && d.groups == d.out;
  }

  /// The x_block and y_block with which such a layer is likely to be the quickest. For depthwise layers it is the
  /// largest of 64, 32 and 16 that makes x at most a quarter larger and whose rows of x take 4 KiB or less (or it is
  /// 16, or rows are read by one row of taps); for f32 with groups the largest that divides a group's channels; else,
  /// or where none fits, 0: channels are adjacent. d is one that `check` accepts.
  static constexpr index preferred_block(const conv_desc& d) noexcept {
    if (is_depthwise(d)) {
      const bool rows_return = d.axes[0].kernel * d.axes[1].kernel > 1;
      const conv_axis& w = d.axes[2];
      const index width = d.transposed && w.stride > 0 ? w.out() : w.in;
      for (const index block : {64, 32, 16}) {
        const bool fits = (d.in + block - 1) / block * block <= d.in + d.in / 4;
        const bool stays = block == 16 || !rows_return || width * block * size_of(d.data) <= 4096;
        if (fits && stays) return block;
      }
      return 0;
    }
    if (d.groups <= 1 || d.data != type::f32) return 0;
    for (const index block : {64, 32, 16}) {
      if (d.in / d.groups % block == 0 && d.out / d.groups % block == 0) return block;
    }
    return 0;
  }
  /// Plans that bring x (and dx), y, or dz from another order of channels into the layer's own, or the other way round;
  /// their cost is from_bytes() read and to_bytes() written. block: of the order that has blocks, 0: the layer's own,
  /// or 16 where it has none.
  result<reorder> reorder_x(channel_order from, channel_order to, index block = 0) const noexcept {
    return reorder::plan(
        {d_.images, d_.in, forward_->geometry().pixels_in(), d_.data, from, to, block_of(block, d_.x_block)});
  }
  result<reorder> reorder_dz(channel_order from, channel_order to, index block = 0) const noexcept {
    return reorder::plan(
        {d_.images, d_.out, forward_->geometry().pixels_out(), d_.data, from, to, block_of(block, d_.y_block)});
  }
  result<reorder> reorder_y(channel_order from, channel_order to, index block = 0) const noexcept {
    return reorder::plan(
        {d_.images, d_.out, forward_->geometry().pixels_out(), d_.y, from, to, block_of(block, d_.y_block)});
  }

  /// What automatic came to.
  conv_algorithm algorithm() const noexcept { return algorithm_; }
  /// Bytes that forward needs besides its arguments, 0 for direct; align them to 64. `threads` are those of the
  /// executor that forward is then called with: with more of them it would write beyond.
  index forward_workspace_bytes(int threads) const noexcept {
    return winograd_ ? winograd_->workspace_bytes(threads) : 0;
  }

  /// Bytes that backward_weights needs besides its arguments, 0 for most layers of f32; align them to 64.
  index backward_weights_workspace_bytes() const noexcept {
    return update_ ? update_->workspace_bytes() : depthwise_update_ ? depthwise_update_->workspace_bytes() : 0;
  }

  /// Brings weights to what kernels read: weights_bytes() for forward, transposed_bytes() for backward_data, which is
  /// null where that is not called. w: f32, or bf16 in a layer of bf16; s8 in one of u8 or s8; of a transposed
  /// convolution as that which it transposes has them: out_first is (in, out/groups, D, R, S), as PyTorch has it.
  template <class T>
  result<void> pack_weights(loops::executor_ref threads, const T* w, conv_weights stored, void* weights,
                            void* transposed = nullptr) const noexcept;

  /// y = clamp(act((x * W) * scale + b + residual)) for the first `images` images, the steps in this order, each
  /// rounded. Of 8-bit types x * W is exact, modulo 2^32; a zero point of y can be a part of the bias where there is no
  /// activation (relu is then clamp, with the zero point as `lower`).
  result<void> forward(loops::executor_ref threads, index images, const void* x, const void* weights,
                       const conv_operands& with, void* y) const noexcept;
  result<void> forward(loops::executor_ref threads, index images, const void* x, const void* weights, const float* bias,
                       void* y) const noexcept {
    return forward(threads, images, x, weights, {.bias = bias}, y);
  }

  /// dx = dz * W^T: the transposed convolution. dz, the gradient before scale and activation, is stored as y, dx as x,
  /// both of the type `data`. A pixel of x that no output sees becomes 0. input_mask: of the layer that made x, null
  /// where the desc has none.
  result<void> backward_data(loops::executor_ref threads, index images, const void* dz, const void* transposed,
                             void* dx, const void* input_mask = nullptr) const noexcept;

  /// dw (weights()) and db (out), f32, db null where it is not wanted: sums over the first `images` images of x and dz,
  /// which are as in forward and backward_data. Each is one chain over the images, then the pixels of y in row-major
  /// order, those that see x through the tap; in bf16 over pairs (order::tile: chunks of 32) of those of a row of y, an
  /// odd last one alone. Where height and width have kernel 1 and no padding, as many rows count as one as divide the
  /// height and have 128 pixels or fewer; where groups and dilation of the width are 1, x_block is 0 or `in`, all
  /// taps of a row have up to 64 channels together and each column of y sees one, the chain goes over runs of columns
  /// of y that see the same ones. Depthwise it goes over such runs too, one fma a pixel, in bf16 as well, and db over
  /// all pixels. workspace: backward_weights_workspace_bytes(), null where that is 0.
  result<void> backward_weights(loops::executor_ref threads, index images, const void* x, const void* dz, float* dw,
                                float* db, void* workspace = nullptr) const noexcept;

 private:
  conv() = default;
  static result<void> check_types(const conv_desc& d) noexcept;
  static result<void> check_masks(const conv_desc& d) noexcept;
  static result<void> check_blocks(const conv_desc& d) noexcept;
  static result<void> check_schedules(const conv_schedules& by) noexcept;
  static result<conv_algorithm> choose_algorithm(const conv_desc& d) noexcept;
  static constexpr index block_of(index asked, index own) noexcept { return asked != 0 ? asked : own != 0 ? own : 16; }
  index in() const noexcept { return d_.in / d_.groups; }
  index out() const noexcept { return d_.out / d_.groups; }
  index weights_alignment() const noexcept { return detail::is_8bit(d_.data) ? 4 : size_of(d_.data); }
  index taps() const noexcept { return d_.axes[0].kernel * d_.axes[1].kernel * d_.axes[2].kernel; }
  result<void> check_images(index images) const noexcept {
    if (images >= 1 && images <= d_.images) return {};
    return error(errc::invalid_argument, "images", "images is %ld; this plan takes 1..%ld", images, d_.images);
  }

  conv_desc d_;
  std::optional<detail::conv_pass> forward_;
  conv_algorithm algorithm_ = conv_algorithm::direct;
  std::optional<detail::winograd> winograd_;  ///< in place of forward_
  std::optional<detail::conv_pass> backward_;
  std::optional<detail::conv_update> update_;
  std::optional<detail::depthwise_update> depthwise_update_;  ///< in its place
};

inline result<void> conv::forward(loops::executor_ref threads, index images, const void* x, const void* weights,
                                  const conv_operands& with, void* y) const noexcept {
  if (auto r = check_images(images); !r) return r;
  const index y_bytes = images * forward_->image_out() * size_of(d_.y);
  const detail::buffer written[] = {{"y", y, y_bytes, size_of(d_.y)},
                                    {"mask", with.mask, d_.mask ? images * forward_->mask_bytes() : 0, 1},
                                    {"workspace", with.workspace, forward_workspace_bytes(threads.threads())}};
  const detail::buffer read[] = {{"x", x, images * forward_->image_in() * size_of(d_.data), size_of(d_.data)},
                                 {"weights", weights, weights_bytes(), weights_alignment()},
                                 {"bias", with.bias, d_.bias ? d_.out * 4 : 0},
                                 {"scale", with.scale, d_.scale ? d_.out * 4 : 0},
                                 {"residual", with.residual, d_.residual ? y_bytes : 0, size_of(d_.y)}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  if (with.zero_x != 0 && !detail::is_8bit(d_.data)) {
    return error(errc::invalid_argument, "zero_x", "zero_x is %d and data is %s", with.zero_x, name_of(d_.data).data());
  }
  void* operands[max_epilogue] = {};
  int steps = 0;
  if (d_.scale) operands[steps++] = const_cast<float*>(with.scale);
  if (d_.bias) operands[steps++] = const_cast<float*>(with.bias);
  if (d_.residual) operands[steps++] = const_cast<void*>(with.residual);
  if (d_.mask) operands[steps++] = with.mask;
  if (winograd_) {
    (*winograd_)(threads, images, static_cast<const float*>(x), static_cast<const float*>(weights),
                 static_cast<float*>(y), operands, static_cast<float*>(with.workspace));
    return {};
  }
  (*forward_)(threads, images, x, weights, y, operands, with.zero_x);
  return {};
}

inline result<void> conv::backward_weights(loops::executor_ref threads, index images, const void* x, const void* dz,
                                           float* dw, float* db, void* workspace) const noexcept {
  if (!backward_) {
    return error(errc::invalid_argument, "training", "backward_weights needs a plan with training = true");
  }
  if (auto r = check_images(images); !r) return r;
  const index size = size_of(d_.data);
  const detail::buffer written[] = {{"dw", dw, weights() * 4},
                                    {"db", db, db != nullptr ? d_.out * 4 : 0},
                                    {"workspace", workspace, backward_weights_workspace_bytes()}};
  const detail::buffer read[] = {{"x", x, images * forward_->image_in() * size, size},
                                 {"dz", dz, images * forward_->image_out() * size, size}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  update_ ? (*update_)(threads, images, x, dz, dw, db, workspace)
          : (*depthwise_update_)(threads, images, x, dz, dw, db, workspace);
  return {};
}

inline result<void> conv::backward_data(loops::executor_ref threads, index images, const void* dz,
                                        const void* transposed, void* dx, const void* input_mask) const noexcept {
  if (!backward_) return error(errc::invalid_argument, "training", "backward_data needs a plan with training = true");
  if (auto r = check_images(images); !r) return r;
  const index size = size_of(d_.data);
  const detail::buffer written[] = {{"dx", dx, images * backward_->image_out() * size, size}};
  const detail::buffer read[] = {{"dz", dz, images * backward_->image_in() * size, size},
                                 {"transposed", transposed, transposed_bytes(), size},
                                 {"input_mask", input_mask, d_.input_mask ? images * backward_->mask_bytes() : 0, 1}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  (*backward_)(threads, images, dz, transposed, dx, {const_cast<void*>(input_mask)});
  return {};
}

}  // namespace brgemm::inline abi_0::nn

#include "conv_plan.hpp"
