// A convolution on an NVIDIA GPU: its launches with their kernels, and their lists in the device's memory. Opt-in: link
// brgemm::cuda.
//
//     const auto layer = nn::conv_on_gpu::plan(d);
//     if (!layer) return report(layer.error());
//     layer->forward(x, w, {.bias = bias}, y, stream);   // addresses of the device
#pragma once

#include "../backend/cuda.hpp"
#include "conv_launches.hpp"

namespace brgemm::inline abi_0::detail {

/// A pass's launches, ready to be called.
class pass_on_gpu {
 public:
  static result<pass_on_gpu> make(const nn::conv_launches& l, const cuda::options& how) {
    pass_on_gpu p;
    for (const nn::conv_launches::launch& launch : l.launches) {
      auto kernel = cuda::make_kernel(launch.product, how);
      if (!kernel) return kernel.error();
      p.steps_.push_back({std::move(*kernel), launch.first, launch.count});
    }
    auto outputs = cuda::copy_to_device(l.outputs.data(), l.outputs.size() * sizeof(cuda::output), how.device);
    if (!outputs) return outputs.error();
    auto pairs = cuda::copy_to_device(l.pairs.data(), l.pairs.size() * sizeof(offset_pair), how.device);
    if (!pairs) return pairs.error();
    p.outputs_ = std::move(*outputs), p.pairs_ = std::move(*pairs);
    return p;
  }

  /// x: all but the lists.
  result<void> operator()(cuda::arguments x, cuda::stream on) const noexcept {
    x.pairs = pairs_.get();
    for (const step& s : steps_) {
      x.outputs = static_cast<const cuda::output*>(outputs_.get()) + s.first;
      x.count = s.count;
      if (auto r = s.kernel.call(x, on); !r) return r;
    }
    return {};
  }

 private:
  struct step {
    cuda::kernel kernel;
    index first, count;
  };
  std::vector<step> steps_;
  std::shared_ptr<const void> outputs_, pairs_;
};

}  // namespace brgemm::inline abi_0::detail

namespace brgemm::inline abi_0::nn {

/// The plan of one convolution on one device: immutable, so any number of threads may call it at once, on any streams,
/// with different memory. It owns kernels, lists and some ones; it must live until its launches have ended, and as long
/// as a graph that captured one. Making and destroying one allocates and frees device memory and waits for the device,
/// which a capture in another thread may forbid.
///
/// Addresses are of the device. Tensors lie as conv_launches says, masks as conv has them: (images, ..., channels / 8)
/// bytes. Buffers that are written overlap no other; addresses are multiples of their elements' size. A call is for all
/// of conv_desc::images; it launches on the stream and returns, allocates nothing, waits for nothing, and may be
/// captured. A fully connected layer is a convolution without axes: images are its rows, w is (in, out).
///
/// In f32, y and dx have the bits of conv, and dw and db where backward_weights_launches has its order; in bf16 tensor
/// cores have their own. Errors of calls: invalid_argument with the argument's name, found before anything is launched;
/// device and out_of_memory with the driver's words.
class conv_on_gpu {
 public:
  /// Makes all kernels and copies all lists. Errors: those of forward_launches, cuda::make_kernel and
  /// cuda::copy_to_device.
  static result<conv_on_gpu> plan(const conv_desc& d, const cuda::options& how = {}) noexcept {
#if defined(__cpp_exceptions)
    try {
#endif
      conv_on_gpu layer;
      layer.d_ = d;
      if (auto r = layer.prepare(how); !r) return r.error();
      return layer;
#if defined(__cpp_exceptions)
    } catch (const std::exception&) {
      return error(errc::out_of_memory, "images", "no memory on the CPU for the launches of %ld images", d.images);
    }
#endif
  }

  const conv_desc& description() const noexcept { return d_; }

  /// y = clamp(act((x * W) * scale + b + residual)). with: of the device; residual as y, zero_x 0, workspace null.
  result<void> forward(const void* x, const void* w, const conv_operands& with, void* y,
                       cuda::stream on = nullptr) const noexcept {
    const index masks = d_.mask ? y_elements() / 8 : 0;
    const detail::buffer written[] = {{"y", y, y_elements() * size_of(d_.y), size_of(d_.y)},
                                      {"mask", with.mask, masks, 1},
                                      {"workspace", with.workspace, 0}};
    const detail::buffer read[] = {x_of(x),
                                   w_of(w),
                                   {"bias", with.bias, d_.bias ? d_.out * 4 : 0},
                                   {"scale", with.scale, d_.scale ? d_.out * 4 : 0},
                                   {"residual", with.residual, d_.residual ? written[0].bytes : 0, size_of(d_.y)}};
    if (auto r = detail::check_buffers(written, read); !r) return r;
    if (with.zero_x != 0) return error(errc::invalid_argument, "zero_x", "zero_x is %d; it must be 0", with.zero_x);
    cuda::arguments call;
    call.a = x, call.b = w, call.c = y;
    int steps = 0;
    if (d_.scale) call.operand[steps++] = const_cast<float*>(with.scale);
    if (d_.bias) call.operand[steps++] = const_cast<float*>(with.bias);
    if (d_.residual) call.operand[steps++] = const_cast<void*>(with.residual);
    if (d_.mask) call.operand[steps++] = with.mask;
    return forward_(call, on);
  }

  /// dx = dz * W^T, by the mask of x where the desc has input_mask.
  result<void> backward_data(const void* dz, const void* w, void* dx, const void* input_mask = nullptr,
                             cuda::stream on = nullptr) const noexcept {
    if (auto r = check_training("backward_data"); !r) return r;
    const detail::buffer written[] = {x_of(dx, "dx")};
    const detail::buffer read[] = {
        dz_of(dz), w_of(w), {"input_mask", input_mask, d_.input_mask ? x_elements() / 8 : 0, 1}};
    if (auto r = detail::check_buffers(written, read); !r) return r;
    cuda::arguments call;
    call.a = dz, call.b = w, call.c = dx;
    call.operand[0] = const_cast<void*>(input_mask);
    return backward_data_(call, on);
  }

  /// dw, as w but of f32, and db (out), null where it is not wanted.
  result<void> backward_weights(const void* x, const void* dz, float* dw, float* db,
                                cuda::stream on = nullptr) const noexcept {
    if (auto r = check_training("backward_weights"); !r) return r;
    const detail::buffer written[] = {{"dw", dw, weights() * 4}, {"db", db, db != nullptr ? d_.out * 4 : 0}};
    const detail::buffer read[] = {x_of(x), dz_of(dz)};
    if (auto r = detail::check_buffers(written, read); !r) return r;
    cuda::arguments call;
    call.a = x, call.b = dz, call.c = dw;
    if (auto r = backward_weights_(call, on); !r || db == nullptr) return r;
    call.a = ones_.get(), call.c = db;
    return backward_bias_(call, on);
  }

 private:
  conv_on_gpu() = default;

  result<void> prepare(const cuda::options& how) {
    if (auto r = add(forward_, forward_launches(d_), how); !r || !d_.training) return r;
    if (auto r = add(backward_data_, backward_data_launches(d_), how); !r) return r;
    if (auto r = add(backward_weights_, backward_weights_launches(d_), how); !r) return r;
    if (auto r = add(backward_bias_, backward_bias_launches(d_), how); !r) return r;
    const auto count = static_cast<std::size_t>(d_.axes[2].out());
    const std::vector<float> ones(count, 1.0f);
    const std::vector<bf16> short_ones(count, to_bf16(1.0f));
    const void* const data = d_.data == type::bf16 ? static_cast<const void*>(short_ones.data()) : ones.data();
    auto copied = cuda::copy_to_device(data, count * static_cast<std::size_t>(size_of(d_.data)), how.device);
    if (!copied) return copied.error();
    ones_ = std::move(*copied);
    return {};
  }
  static result<void> add(detail::pass_on_gpu& to, const result<conv_launches>& planned, const cuda::options& how) {
    if (!planned) return planned.error();
    auto made = detail::pass_on_gpu::make(*planned, how);
    if (!made) return made.error();
    to = std::move(*made);
    return {};
  }
  result<void> check_training(const char* call) const noexcept {
    if (d_.training) return {};
    return error(errc::invalid_argument, "training", "%s needs a plan with training = true", call);
  }

  index x_elements() const noexcept {
    const auto g = detail::launched_geometry(d_, false);
    return d_.images * g.image_in();
  }
  index y_elements() const noexcept {
    const auto g = detail::launched_geometry(d_, false);
    return d_.images * g.image_out();
  }
  index weights() const noexcept {
    return d_.in / d_.groups * d_.out * d_.axes[0].kernel * d_.axes[1].kernel * d_.axes[2].kernel;
  }
  detail::buffer of_data(const char* name, const void* at, index elements) const noexcept {
    return {name, at, elements * size_of(d_.data), size_of(d_.data)};
  }
  detail::buffer x_of(const void* x, const char* name = "x") const noexcept { return of_data(name, x, x_elements()); }
  detail::buffer dz_of(const void* dz) const noexcept { return of_data("dz", dz, y_elements()); }
  detail::buffer w_of(const void* w) const noexcept { return of_data("w", w, weights()); }

  conv_desc d_;
  detail::pass_on_gpu forward_, backward_data_, backward_weights_, backward_bias_;
  std::shared_ptr<const void> ones_;
};

}  // namespace brgemm::inline abi_0::nn
