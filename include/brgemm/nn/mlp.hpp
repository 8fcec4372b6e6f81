// A chain of fully connected layers with one block of memory planned ahead: no allocation in a step.
#pragma once

#include <memory>
#include <span>

#include "../loops/elementwise.hpp"
#include "linear.hpp"
#include "planned_memory.hpp"
#include "rearrange.hpp"
#include "tiles.hpp"

namespace brgemm::inline abi_0::nn {

/// What a multilayer perceptron computes.
struct mlp_desc {
  index rows = 1;                        ///< the most rows (the batch) of one call
  std::span<const index> sizes;          ///< features: of x, of each hidden layer, of the logits; at least two
  type data = type::f32;                 ///< of activations and of the weights that kernels read: f32 or bf16
  activation hidden = activation::relu;  ///< after every layer but the last
  bool training = true;                  ///< false: forward only, less memory
  order sums = order::machine;           ///< of bf16: one order for a cluster of mixed machines
};

/// A multilayer perceptron: owns its parameters (f32), their gradients and all activations of a step, in one allocation
/// made by `make`. Calls change the object: one call at a time, each of which may use many threads.
/// The same bits for any number of threads, and for a row alone or in a batch.
class mlp {
 public:
  static constexpr index max_layers = 1024;

  /// All parameters are 0. Errors: invalid_argument ("sizes", or the field of a layer), out_of_memory, or what
  /// make_kernel says.
  static result<mlp> make(const mlp_desc& d, const options& how = {}) noexcept;

  index rows() const noexcept { return rows_; }
  index layers() const noexcept { return count_; }
  index classes() const noexcept { return layer(count_ - 1).description().out; }
  const linear& layer(index l) const noexcept { return *at(l).plan; }
  std::string_view backend() const noexcept { return layer(0).backend(); }

  /// All parameters, layer after layer: weights as nn::linear has them, then the bias; gaps between them stay 0. After
  /// changing them call `prepare`. The gradients lie in the same order.
  std::span<float> parameters() noexcept { return {floats(parameters_at_), static_cast<std::size_t>(parameters_)}; }
  std::span<const float> parameters() const noexcept {
    return {floats(parameters_at_), static_cast<std::size_t>(parameters_)};
  }
  std::span<const float> gradients() const noexcept {
    return {floats(gradients_at_), static_cast<std::size_t>(training_ ? parameters_ : 0)};
  }

  /// Sets the weights and the bias of layer l. w (in,out), or (out,in) where `stored` is transposed; bias (out).
  /// Errors, here and of `get`: invalid_argument with the argument's name where l, a shape or a size is wrong, or
  /// memory is null, misaligned, the network's own, or (`get`) that of the other argument.
  result<void> set(loops::executor_ref threads, index l, const view<const float, 2>& w, layout stored,
                   std::span<const float> bias) noexcept;
  /// Copies layer l's weights, or their gradient, to w; and its bias, or that gradient, to bias.
  result<void> get(loops::executor_ref threads, index l, const view<float, 2>& w, layout stored, std::span<float> bias,
                   bool gradient = false) const noexcept;

  /// After a change of the parameters: makes what the kernels read from them.
  result<void> prepare(loops::executor_ref threads) noexcept;

  /// The logits (rows, out) of x (rows, in), f32, rows of adjacent elements; they live here until the next call.
  result<view<const float, 2>> forward(loops::executor_ref threads, const view<const float, 2>& x) noexcept;

  /// After `forward`: the gradients of all parameters, from the gradient by the logits: (rows, out), f32, row-major
  /// without gaps. It is not changed, and lies nowhere in gradients().
  result<void> backward(loops::executor_ref threads, const view<const float, 2>& gradient) noexcept;

  /// Floating-point operations of a forward and backward pass over `rows` rows.
  double step_operations(index rows) const noexcept {
    double products = 0;
    for (index l = 0; l < count_; ++l) {
      const linear_desc& d = layer(l).description();
      products += static_cast<double>(d.in) * static_cast<double>(d.out) * (training_ ? l == 0 ? 2 : 3 : 1);
    }
    return 2 * products * static_cast<double>(rows);
  }

 private:
  /// A layer and where its parts lie in the memory, in bytes.
  struct part {
    std::optional<linear> plan;
    index parameters_at = 0;  ///< floats, from the start of all parameters
    index bias_at = 0;
    index weights_at = 0;  ///< bf16 only
    index transposed_at = 0;
    index x_at = 0;
    index y_at = 0;
    index saved_at = 0;
    index dz_at = 0;
  };

  mlp() = default;
  result<void> check_gradient(const view<const float, 2>& gradient) const noexcept;
  static linear_desc layer_desc(const mlp_desc& d, index l) noexcept;
  void place(const mlp_desc& d) noexcept;
  void load_input(loops::executor_ref threads, const view<const float, 2>& x) noexcept;

  part& at(index l) const noexcept { return parts_[static_cast<std::size_t>(l)]; }
  char* bytes(index offset) const noexcept { return memory_.at(offset); }
  float* floats(index offset) const noexcept { return memory_.floats(offset); }
  float* weights_of(index l) const noexcept { return floats(parameters_at_) + at(l).parameters_at; }
  float* bias_of(index l) const noexcept { return floats(parameters_at_) + at(l).bias_at; }
  static index whole_lines(index floats) noexcept { return (floats + 15) / 16 * 16; }
  result<void> check_layer(index l, std::size_t bias) const noexcept {
    if (l < 0 || l >= count_) {
      return error(errc::invalid_argument, "layer", "layer is %ld; there are layers 0..%ld", l, count_ - 1);
    }
    const index out = layer(l).description().out;
    if (static_cast<index>(bias) == out) return {};
    return error(errc::invalid_argument, "bias", "bias has %zu elements; layer %ld has %ld outputs", bias, l, out);
  }

  std::unique_ptr<part[]> parts_;
  detail::planned_memory memory_;
  index rows_ = 0;
  index count_ = 0;
  index parameters_ = 0;  ///< floats
  index parameters_at_ = 0;
  index gradients_at_ = 0;
  index workspace_at_ = 0;
  index forward_rows_ = 0;  ///< of the last forward
  type data_ = type::f32;
  bool training_ = false;
};

inline linear_desc mlp::layer_desc(const mlp_desc& d, index l) noexcept {
  const auto size = [&](index i) { return d.sizes[static_cast<std::size_t>(i)]; };
  const auto blocked_if = [](index features) { return can_block(features) ? storage::blocked : storage::plain; };
  const bool last = l + 2 == static_cast<index>(d.sizes.size());
  linear_desc layer;
  layer.rows = d.rows;
  layer.in = size(l);
  layer.out = size(l + 1);
  layer.data = d.data;
  layer.sums = d.sums;
  layer.y = last ? type::f32 : d.data;
  layer.act = last ? activation::none : d.hidden;
  layer.training = d.training;
  layer.input_act = d.training && l > 0 ? d.hidden : activation::none;
  layer.x_storage = blocked_if(layer.in);
  layer.y_storage = last ? storage::plain : blocked_if(layer.out);
  return layer;
}

inline result<mlp> mlp::make(const mlp_desc& d, const options& how) noexcept {
  const auto layers = static_cast<index>(d.sizes.size()) - 1;
  if (layers < 1 || layers > max_layers) {
    return error(errc::invalid_argument, "sizes", "%ld sizes; a network has 2..%ld of them", layers + 1,
                 max_layers + 1);
  }
  if (d.sizes.data() == nullptr) {
    return error(errc::invalid_argument, "sizes", "%ld sizes at a null pointer", layers + 1);
  }
  for (index l = 0; l <= layers; ++l) {
    const index size = d.sizes[static_cast<std::size_t>(l)];
    if (size < 1) return error(errc::invalid_argument, "sizes", "sizes[%ld] is %ld; it must be 1 or more", l, size);
  }
  if (auto r = detail::check_enumerator("data", static_cast<int>(d.data), type_count); !r) return r.error();
  if (d.data != type::f32 && d.data != type::bf16) {
    return error(errc::invalid_argument, "data", "data is %s; a network has f32 or bf16", name_of(d.data).data());
  }
  if (auto r = detail::check_enumerator("hidden", static_cast<int>(d.hidden), activation_count); !r) return r.error();
  mlp m;
  m.rows_ = d.rows;
  m.count_ = layers;
  m.data_ = d.data;
  m.training_ = d.training;
  m.parts_.reset(new (std::nothrow) part[static_cast<std::size_t>(layers)]);
  if (!m.parts_) return error(errc::out_of_memory, "sizes", "no memory for the plans of %ld layers", layers);
  for (index l = 0; l < layers; ++l) {
    auto plan = linear::plan(layer_desc(d, l), how);
    if (!plan) return plan.error();
    m.at(l).plan.emplace(std::move(*plan));
  }
  m.place(d);
  if (auto r = m.memory_.allocate("sizes"); !r) return r.error();
  return m;
}

/// Where everything lies. A layer's x is the y of the layer before.
inline void mlp::place(const mlp_desc& d) noexcept {
  for (index l = 0; l < count_; ++l) {
    at(l).parameters_at = parameters_;
    parameters_ += whole_lines(layer(l).parameters());
    at(l).bias_at = parameters_;
    parameters_ += whole_lines(layer(l).description().out);
    if (parameters_ > index{1} << 59) {
      memory_.take((index{1} << 62) + 1);  // more than there can be
      return;
    }
  }
  parameters_at_ = memory_.take(parameters_ * 4);
  gradients_at_ = memory_.take(d.training ? parameters_ * 4 : 0);
  index workspace = 0;
  for (index l = 0; l < count_; ++l) {
    part& p = at(l);
    const linear_desc& layer_of = p.plan->description();
    p.x_at = l == 0 ? memory_.take(p.plan->x_bytes()) : at(l - 1).y_at;
    p.y_at = memory_.take(p.plan->y_bytes());
    if (data_ == type::bf16) p.weights_at = memory_.take(p.plan->weights_bytes());
    if (!d.training) continue;
    if (l > 0) p.transposed_at = memory_.take(p.plan->transposed_bytes());
    p.saved_at = memory_.take(p.plan->saved_bytes());
    const index y_elements = p.plan->y_bytes() / size_of(layer_of.y);
    p.dz_at = memory_.take(y_elements * size_of(data_));
    workspace =
        workspace > p.plan->backward_weights_workspace_bytes() ? workspace : p.plan->backward_weights_workspace_bytes();
  }
  workspace_at_ = memory_.take(workspace);
}

inline result<void> mlp::set(loops::executor_ref threads, index l, const view<const float, 2>& w, layout stored,
                             std::span<const float> bias) noexcept {
  if (auto r = check_layer(l, bias.size()); !r) return r;
  const linear_desc& d = layer(l).description();
  if (auto r = detail::check_stored("w", w, stored, d.in, d.out); !r) return r;
  const detail::buffer of_bias{"bias", bias.data(), static_cast<index>(bias.size_bytes())};
  for (const detail::buffer& given : {detail::buffer_of("w", w), of_bias}) {  // which may overlap: both are read
    if (auto r = detail::check_buffers({given}, {memory_.all()}); !r) return r;
  }
  if (auto r = layer(l).pack_weights(threads, w, stored, weights_of(l)); !r) return r;
  std::memcpy(bias_of(l), bias.data(), bias.size_bytes());
  return {};
}

inline result<void> mlp::get(loops::executor_ref threads, index l, const view<float, 2>& w, layout stored,
                             std::span<float> bias, bool gradient) const noexcept {
  if (auto r = check_layer(l, bias.size()); !r) return r;
  if (gradient && !training_) {
    return error(errc::invalid_argument, "training", "gradients need a network made with training = true");
  }
  const linear_desc& d = layer(l).description();
  if (auto r = detail::check_stored("w", w, stored, d.in, d.out); !r) return r;
  const detail::buffer given[] = {detail::buffer_of("w", w),
                                  {"bias", bias.data(), static_cast<index>(bias.size_bytes())}};
  if (auto r = detail::check_buffers(given, {memory_.all()}); !r) return r;
  const float* const from = floats(gradient ? gradients_at_ : parameters_at_);
  if (auto r = layer(l).unpack_parameters(threads, from + at(l).parameters_at, w, stored); !r) return r;
  std::memcpy(bias.data(), from + at(l).bias_at, bias.size_bytes());
  return {};
}

inline result<void> mlp::prepare(loops::executor_ref threads) noexcept {
  for (index l = 0; l < count_; ++l) {
    void* const weights = data_ == type::bf16 ? bytes(at(l).weights_at) : nullptr;
    void* const transposed = training_ && l > 0 ? bytes(at(l).transposed_at) : nullptr;
    if (weights == nullptr && transposed == nullptr) continue;
    if (auto r = layer(l).prepare(threads, weights_of(l), weights, transposed); !r) return r;
  }
  return {};
}

inline void mlp::load_input(loops::executor_ref threads, const view<const float, 2>& x) noexcept {
  const linear_desc& d = layer(0).description();
  const tiling t = tiling_of(d.x_storage, d.in, d.in);
  detail::for_each_tile(threads, x.extent(0), d.in, [&](index block, index panel, index height, index width) {
    const float* const from = x.data() + x.offset(block * block_rows, panel * block_width(d.in));
    const index to = t.offset(block, panel);
    detail::widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
      for (index r = 0; r < height; ++r) {
        const float* const row = from + r * x.stride(0);
        if (data_ == type::f32) {
          std::memcpy(floats(at(0).x_at) + to + r * t.ld, row, static_cast<std::size_t>(width) * sizeof(float));
        } else {
          auto* const row_to = reinterpret_cast<std::uint16_t*>(bytes(at(0).x_at)) + to + r * t.ld;
          for (index c = 0; c < width; ++c) row_to[c] = detail::bf16_bits(row[c]);
        }
      }
    });
  });
}

inline result<view<const float, 2>> mlp::forward(loops::executor_ref threads, const view<const float, 2>& x) noexcept {
  const linear_desc& first = layer(0).description();
  if (x.extent(0) < 1 || x.extent(0) > rows_) {
    return error(errc::invalid_argument, "rows", "x has %ld rows; this network takes 1..%ld", x.extent(0), rows_);
  }
  const bool rows_fit = (x.stride(0) >= first.in && x.stride(0) <= index{1} << 29) || x.extent(0) == 1;
  if (x.extent(1) != first.in || x.stride(1) != 1 || !rows_fit) {
    return error(errc::invalid_argument, "x",
                 "x is (%ld,%ld) with strides (%ld,%ld); needed is (rows,%ld) with strides (%ld..2^29,1)", x.extent(0),
                 x.extent(1), x.stride(0), x.stride(1), first.in, first.in);
  }
  if (auto r = detail::check_buffer(detail::buffer_of("x", x)); !r) return r.error();
  load_input(threads, x);
  for (index l = 0; l < count_; ++l) {
    const part& p = at(l);
    const void* const weights = data_ == type::bf16 ? static_cast<const void*>(bytes(p.weights_at)) : weights_of(l);
    void* const saved = p.plan->saved_bytes() > 0 ? bytes(p.saved_at) : nullptr;
    if (auto r = p.plan->forward(threads, x.extent(0), bytes(p.x_at), weights, bias_of(l), bytes(p.y_at), saved); !r) {
      return r.error();
    }
  }
  forward_rows_ = x.extent(0);
  return view<const float, 2>(floats(at(count_ - 1).y_at), {x.extent(0), layer(count_ - 1).description().out});
}

/// After it nothing that backward calls can fail. The gradient may be the logits themselves, which backward only reads.
inline result<void> mlp::check_gradient(const view<const float, 2>& gradient) const noexcept {
  const index out = layer(count_ - 1).description().out;
  if (!training_) {
    return error(errc::invalid_argument, "training", "backward needs a network made with training = true");
  }
  if (forward_rows_ == 0) return error(errc::invalid_argument, "rows", "backward needs a forward before it");
  if (gradient.extent(0) != forward_rows_ || gradient.extent(1) != out || gradient.stride(1) != 1 ||
      gradient.stride(0) != out) {
    return error(errc::invalid_argument, "gradient",
                 "the gradient is (%ld,%ld) with strides (%ld,%ld); forward gave logits (%ld,%ld)", gradient.extent(0),
                 gradient.extent(1), gradient.stride(0), gradient.stride(1), forward_rows_, out);
  }
  const detail::buffer read = detail::buffer_of("gradient", gradient);
  if (auto r = detail::check_buffer(read); !r) return r;
  const detail::buffer written{"gradients", floats(gradients_at_), parameters_ * 4};
  if (!detail::overlap(read, written)) return {};
  return error(errc::invalid_argument, "gradient",
               "the gradient (%ld bytes at %p) overlaps the gradients of the parameters (%ld bytes at %p)", read.bytes,
               read.at, written.bytes, written.at);
}

inline result<void> mlp::backward(loops::executor_ref threads, const view<const float, 2>& gradient) noexcept {
  if (auto r = check_gradient(gradient); !r) return r;
  const index out = layer(count_ - 1).description().out;
  const void* dz = gradient.data();
  if (data_ == type::bf16) {
    auto* const to = reinterpret_cast<std::uint16_t*>(bytes(at(count_ - 1).dz_at));
    detail::for_each_block(threads, gradient.extent(0) * out, [&](index begin, index end) BRGEMM_ALWAYS_INLINE {
      for (index i = begin; i < end; ++i) to[i] = detail::bf16_bits(gradient.data()[i]);
    });
    dz = to;
  }
  for (index l = count_ - 1; l >= 0; --l) {
    const part& p = at(l);
    float* const dw = floats(gradients_at_) + p.parameters_at;
    float* const db = floats(gradients_at_) + p.bias_at;
    void* const workspace = p.plan->backward_weights_workspace_bytes() > 0 ? bytes(workspace_at_) : nullptr;
    if (auto r = p.plan->backward_weights(threads, forward_rows_, bytes(p.x_at), dz, dw, db, workspace); !r) return r;
    if (l == 0) break;
    const part& before = at(l - 1);
    const void* const saved = p.plan->input_saved_bytes() > 0 ? bytes(before.saved_at) : nullptr;
    if (auto r = p.plan->backward_data(threads, forward_rows_, dz, bytes(p.transposed_at), bytes(before.dz_at), saved);
        !r) {
      return r;
    }
    dz = bytes(before.dz_at);
  }
  return {};
}

}  // namespace brgemm::inline abi_0::nn
