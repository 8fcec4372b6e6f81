// A convolution: y = act(x * W + b) over one, two or three spatial axes, as loops around the primitive.
#pragma once

#include <algorithm>
#include <memory>

#include "../kernel/pack.hpp"
#include "activation.hpp"
#include "buffers.hpp"
#include "conv_geometry.hpp"
#include "product.hpp"

namespace brgemm::inline abi_0::nn {

using conv_axis = detail::conv_axis;

/// How a framework stores the weights of a convolution: (out, in/groups, D, R, S), as PyTorch has them, or
/// (groups, D, R, S, in/groups, out/groups).
enum class conv_weights : std::uint8_t { out_first, out_last };

/// What a layer computes. x is (images, depth, height, width, in), y (images, ..., out), channels adjacent. With fewer
/// than three axes leave the first ones as they are: axes[2] is the width.
struct conv_desc {
  index images = 1;  ///< the most images of one call
  index in = 1;      ///< channels of x, a multiple of groups
  index out = 1;     ///< channels of y, a multiple of groups
  index groups = 1;
  conv_axis axes[3] = {};
  type data = type::f32;  ///< of x and of the weights that kernels read: f32 or bf16
  type y = type::f32;     ///< f32; with bf16 data also bf16
  activation act = activation::none;
  bool bias = true;
  friend bool operator==(const conv_desc&, const conv_desc&) = default;
};

/// The plan of one convolution: immutable, so any number of threads may call it at once with different memory. A call
/// allocates nothing.
///
/// Each output is one chain of terms: chunks of 64 of its group's input channels (the last shorter), in a chunk its
/// taps in row-major order, in those the channels. A tap that padding hides adds no term. So the bits depend on no
/// block size and no thread.
class conv {
 public:
  /// Errors: invalid_argument with the field of the desc, or what make_kernel says; out_of_memory.
  static result<conv> plan(const conv_desc& d, const options& how = {}) noexcept;

  const conv_desc& description() const noexcept { return d_; }
  std::string_view backend() const noexcept {
    return kernels_[0][0] ? kernels_[0][0].backend() : kernels_[0][1].backend();
  }
  index x_bytes() const noexcept { return d_.images * image_x() * size_of(d_.data); }
  index y_bytes() const noexcept { return d_.images * image_y() * size_of(d_.y); }
  index weights_bytes() const noexcept { return d_.groups * nn::panels(out()) * panel_ * size_of(d_.data); }

  /// Brings weights of f32 or bf16 (bf16 layers) to the panels that kernels read, weights_bytes() of them, zero where
  /// no weight is.
  template <class T>
  result<void> pack_weights(loops::executor_ref threads, const T* w, conv_weights stored, void* packed) const noexcept;

  /// y = act(x * W + b) for the first `images` images; bias (out) f32, null where the desc has none.
  result<void> forward(loops::executor_ref threads, index images, const void* x, const void* weights, const float* bias,
                       void* y) const noexcept;

 private:
  /// Chunks of channels that are summed in one go, C resting in memory between two.
  struct step {
    index first = 0;  ///< chunk
    index chunks = 1;
    index channels = 0;  ///< of each chunk
    bool last = false;
  };
  static constexpr index chunk_channels = 64;
  static constexpr int most_steps = 32;

  conv() = default;

  index in() const noexcept { return d_.in / d_.groups; }
  index out() const noexcept { return d_.out / d_.groups; }
  index taps() const noexcept { return d_.axes[0].kernel * d_.axes[1].kernel * d_.axes[2].kernel; }
  detail::conv_geometry geometry() const noexcept { return {{d_.axes[0], d_.axes[1], d_.axes[2]}, d_.in, d_.out}; }
  index image_x() const noexcept { return geometry().step_x(0) * d_.axes[0].in; }
  index image_y() const noexcept { return geometry().step_y(0) * d_.axes[0].out(); }
  /// Channels of a chunk, rounded up to what an instruction takes.
  index padded(index channels) const noexcept {
    const index group = k_group_of(d_.data);
    return (channels + group - 1) / group * group;
  }
  index chunk_begin(index chunk) const noexcept { return chunk * taps() * padded(chunk_channels) * width_; }
  /// One chunk whose channels are adjacent to the next tap's: the taps of a row are one entry.
  bool joins_taps() const noexcept {
    return d_.groups == 1 && d_.in <= chunk_channels && d_.axes[2].dilation == 1 && d_.in == padded(d_.in);
  }

  static result<void> check(const conv_desc& d) noexcept;
  void plan_steps() noexcept;
  result<void> plan_pieces() noexcept;
  result<void> plan_kernels(const options& how) noexcept;
  void list_taps(const detail::conv_run (&box)[3], index channels, offset_pair* to) const noexcept;
  desc kernel_desc(const detail::conv_piece& p, const step& s, index n) const noexcept;
  index entries(index taps, index taps_w) const noexcept {
    return joins_taps() ? (taps_w == 0 ? 0 : taps / taps_w) : taps;
  }

  struct planned_piece {
    detail::conv_piece place;
    index kernels = 0;  ///< of the first step
    index pairs = 0;    ///< of the first chunk
  };

  conv_desc d_;
  index width_ = 0;  ///< of a panel
  index panel_ = 0;  ///< elements of a panel
  int steps_ = 0;
  step step_[most_steps];
  index pieces_ = 0;
  std::unique_ptr<planned_piece[]> piece_;
  std::unique_ptr<offset_pair[]> pairs_;
  std::unique_ptr<kernel[][2]> kernels_;  ///< [full width]
};

}  // namespace brgemm::inline abi_0::nn

#include "conv_forward.hpp"
#include "conv_plan.hpp"
