// A convolutional network with one block of memory planned ahead: stages of convolution, batch normalisation, relu and
// pooling, then the mean over all pixels and one fully connected layer. No allocation in a step.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "../nn/conv.hpp"
#include "../nn/linear.hpp"
#include "../nn/norm.hpp"
#include "../nn/planned_memory.hpp"
#include "../nn/pool.hpp"
#include "initialise.hpp"

namespace brgemm::inline abi_0::train {

/// A convolution of kernel x kernel, padded by kernel / 2 on every side, without bias; batch normalisation; relu; the
/// largest of pool x pool pixels (what is left over at the edges is dropped), none where pool is 1.
struct convnet_stage {
  index out = 1;  ///< channels
  index kernel = 3;
  index stride = 1;
  index pool = 1;
};

struct convnet_desc {
  index images = 1;  ///< the most of one call
  index channels = 1, height = 1, width = 1;
  std::span<const convnet_stage> stages;  ///< at least one
  index classes = 2;
  /// Of activations, their gradients and the weights that kernels read: f32 or bf16; all else is f32. In bf16
  /// `channels` and each stage's `out` are 64 or fewer, or multiples of 64.
  type data = type::f32;
  order sums = order::machine;  ///< of bf16: one order for a cluster of mixed machines
};

/// A convolutional network: owns its parameters, their gradients, running statistics and all activations of a step, in
/// one allocation made by `make`. Calls change the object: one call at a time, each of which may use many
/// threads. The same bits for any number of threads.
class convnet {
 public:
  /// All parameters are 0, running means 0 and variances 1. Errors: invalid_argument ("stages", "data", or the field of
  /// a layer), unsupported (what conv::plan says of bf16), out_of_memory, or what make_kernel says.
  static result<convnet> make(const convnet_desc& d, const options& how = {}) noexcept;

  index rows() const noexcept { return images_; }
  index features() const noexcept { return channels_ * height_ * width_; }
  index classes() const noexcept { return classifier_->description().out; }
  index stages() const noexcept { return count_; }
  std::string_view backend() const noexcept { return at(0).conv->backend(); }

  /// All parameters; gaps between them stay 0. After changing them call `prepare`. The gradients lie in the same order.
  std::span<float> parameters() noexcept { return span_of(parameters_at_, parameters_); }
  std::span<const float> parameters() const noexcept { return span_of(parameters_at_, parameters_); }
  std::span<const float> gradients() const noexcept { return span_of(gradients_at_, parameters_); }
  /// The running means and variances of all stages, each (channels): what else a checkpoint keeps.
  std::span<float> statistics() noexcept { return span_of(statistics_at_, statistics_); }

  /// Parts of parameters(): stage s's weights (kernel, kernel, in, out), gamma and beta (out); the last layer's
  /// weights in its plan's layout, and its bias. The first two of gradients() too.
  std::span<float> weights(index s) noexcept { return span_of(weights_of(parameters_at_, s), at(s).conv->weights()); }
  std::span<float> gamma(index s) noexcept { return span_of(gamma_of(parameters_at_, s), channels_of(s)); }
  std::span<float> beta(index s) noexcept { return span_of(beta_of(parameters_at_, s), channels_of(s)); }
  const nn::linear& last_layer() const noexcept { return *classifier_; }
  std::span<float> last_weights() noexcept { return span_of(last_of(parameters_at_), classifier_->parameters()); }
  std::span<float> last_bias() noexcept { return span_of(bias_of(parameters_at_), classes()); }
  std::span<const float> weights_gradient(index s) const noexcept {
    return span_of(weights_of(gradients_at_, s), at(s).conv->weights());
  }

  /// After a change of the parameters: makes what the kernels read from them.
  result<void> prepare(loops::executor_ref threads) noexcept;

  /// Training: the logits (images, classes) of x (images, height * width * channels), f32, rows without gaps, channels
  /// adjacent; batch normalisation by the statistics of these images, which the running ones follow. The logits live
  /// here until the next call; x must stay as it is until backward has read it. Errors: invalid_argument "x" or "rows".
  result<view<const float, 2>> forward(loops::executor_ref threads, const view<const float, 2>& x) noexcept;

  /// The logits by the running statistics: each image's depend on no other.
  result<view<const float, 2>> predict(loops::executor_ref threads, const view<const float, 2>& x) noexcept;

  /// After `forward`: the gradients of all parameters, from the gradient by the logits: (images, classes), f32,
  /// row-major without gaps. It is not changed; it may be the logits, and lies nowhere else in this network's memory.
  result<void> backward(loops::executor_ref threads, const view<const float, 2>& gradient) noexcept;

  /// Floating-point operations of the products of a forward and backward pass over `rows` images.
  double step_operations(index rows) const noexcept;

 private:
  /// A stage and where its parts lie in the memory, in bytes.
  struct part {
    std::optional<nn::conv> conv;
    std::optional<nn::conv> inference;  ///< the same with batch normalisation folded, and relu
    std::optional<nn::batch_norm> norm;
    std::optional<nn::pool> pool;
    index parameters_at = 0;  ///< from the start of all parameters
    index statistics_at = 0;  ///< from the start of all statistics
    index weights_at = 0;
    index transposed_at = 0;
    index saved_at = 0;
    index indices_at = 0;
    index z_at = 0;       ///< the convolution's result
    index y_at = 0;       ///< after batch normalisation and relu
    index pooled_at = 0;  ///< y_at where nothing is pooled
  };

  convnet() = default;
  result<void> plan_stage(part& p, const convnet_stage& s, index channels, index& height, index& width,
                          const options& how) noexcept;
  result<void> plan(const convnet_desc& d, const options& how) noexcept;
  void place() noexcept;
  result<void> check_input(const view<const float, 2>& x) const noexcept;
  result<void> check_gradient(const view<const float, 2>& gradient) const noexcept;
  /// To bf16.
  static void round(loops::executor_ref threads, const float* from, index count, void* to) noexcept;
  const void* input(loops::executor_ref threads, const view<const float, 2>& x) noexcept;
  result<view<const float, 2>> finish(loops::executor_ref threads, index images) noexcept;

  part& at(index s) const noexcept { return parts_[static_cast<std::size_t>(s)]; }
  index channels_of(index s) const noexcept { return at(s).norm->description().channels; }
  index pixels_of(index s) const noexcept { return at(s).norm->description().pixels / images_; }
  static index lines(index floats) noexcept { return (floats + 15) / 16 * 64; }
  index weights_of(index from, index s) const noexcept { return from + at(s).parameters_at; }
  index gamma_of(index from, index s) const noexcept { return weights_of(from, s) + lines(at(s).conv->weights()); }
  index beta_of(index from, index s) const noexcept { return gamma_of(from, s) + lines(channels_of(s)); }
  index mean_of(index s) const noexcept { return statistics_at_ + at(s).statistics_at; }
  index variance_of(index s) const noexcept { return mean_of(s) + lines(channels_of(s)); }
  index last_of(index from) const noexcept { return from + last_at_; }
  index bias_of(index from) const noexcept { return last_of(from) + lines(classifier_->parameters()); }
  char* bytes(index offset) const noexcept { return memory_.at(offset); }
  float* floats(index offset) const noexcept { return memory_.floats(offset); }
  void* workspace(index needed) const noexcept { return needed > 0 ? bytes(workspace_at_) : nullptr; }
  std::span<float> span_of(index offset, index count) const noexcept {
    return {floats(offset), static_cast<std::size_t>(count)};
  }

  std::unique_ptr<part[]> parts_;
  std::optional<nn::pool> mean_;  ///< over all pixels
  std::optional<nn::linear> classifier_;
  detail::planned_memory memory_;
  index images_ = 0, channels_ = 0, height_ = 0, width_ = 0;
  index count_ = 0;
  index parameters_ = 0;  ///< floats
  index statistics_ = 0;  ///< floats
  index parameters_at_ = 0, gradients_at_ = 0, statistics_at_ = 0, workspace_at_ = 0;
  type data_ = type::f32;
  order sums_ = order::machine;
  index last_at_ = 0;                            ///< the last layer's, from the start of all parameters
  index x_at_ = 0, dz_at_ = 0, weights_at_ = 0;  ///< bf16: x, the gradient by the logits, the last layer's weights
  index transposed_at_ = 0, features_at_ = 0, logits_at_ = 0;
  index gradient_at_[2] = {};  ///< by activations: each layer reads one and writes the other
  const void* x_ = nullptr;    ///< what the first stage read in the last forward
  index forward_images_ = 0;
};

inline result<void> convnet::plan_stage(part& p, const convnet_stage& s, index channels, index& height, index& width,
                                        const options& how) noexcept {
  nn::conv_desc c;
  c.images = images_, c.in = channels, c.out = s.out;
  c.axes[1] = {height, s.kernel, s.stride, 1, s.kernel / 2, s.kernel / 2};
  c.axes[2] = {width, s.kernel, s.stride, 1, s.kernel / 2, s.kernel / 2};
  c.data = c.y = data_, c.sums = sums_, c.bias = false, c.training = true;
  auto conv = nn::conv::plan(c, how);
  if (!conv) return conv.error();
  p.conv.emplace(*std::move(conv));
  c.training = false, c.bias = c.scale = true, c.act = nn::activation::relu;
  auto inference = nn::conv::plan(c, how);
  if (!inference) return inference.error();
  p.inference.emplace(*std::move(inference));
  height = c.axes[1].out(), width = c.axes[2].out();
  auto norm = nn::batch_norm::plan(
      {.pixels = images_ * height * width, .channels = s.out, .act = nn::activation::relu, .data = data_});
  if (!norm) return norm.error();
  p.norm.emplace(*norm);
  if (s.pool == 1) return {};
  nn::pool_desc q;
  q.images = images_, q.channels = s.out, q.data = data_;
  q.axes[1] = {height, s.pool, s.pool};
  q.axes[2] = {width, s.pool, s.pool};
  auto pool = nn::pool::plan(q);
  if (!pool) return pool.error();
  p.pool.emplace(*pool);
  height = q.axes[1].out(), width = q.axes[2].out();
  return {};
}

inline result<void> convnet::plan(const convnet_desc& d, const options& how) noexcept {
  index channels = d.channels, height = d.height, width = d.width;
  for (index s = 0; s < count_; ++s) {
    const convnet_stage& stage = d.stages[static_cast<std::size_t>(s)];
    if (stage.pool < 1) {
      return error(errc::invalid_argument, "stages", "stages[%ld].pool is %ld; it must be 1 or more", s, stage.pool);
    }
    if (auto r = plan_stage(at(s), stage, channels, height, width, how); !r) return r;
    channels = stage.out;
  }
  nn::pool_desc q = nn::global_average(images_, channels, 1, height, width);
  q.data = data_;
  auto mean = nn::pool::plan(q);
  if (!mean) return mean.error();
  mean_.emplace(*mean);
  nn::linear_desc l;
  l.rows = images_, l.in = channels, l.out = d.classes, l.data = data_, l.sums = sums_, l.training = true;
  auto classifier = nn::linear::plan(l, how);
  if (!classifier) return classifier.error();
  classifier_.emplace(*std::move(classifier));
  return {};
}

inline result<convnet> convnet::make(const convnet_desc& d, const options& how) noexcept {
  if (d.stages.empty() || d.stages.data() == nullptr || d.stages.size() > 1024) {
    return error(errc::invalid_argument, "stages", "%zu stages at %p; a network has 1..1024", d.stages.size(),
                 static_cast<const void*>(d.stages.data()));
  }
  if (d.data != type::f32 && d.data != type::bf16) {
    return error(errc::invalid_argument, "data", "data is %s; a network has f32 or bf16", name_of(d.data).data());
  }
  convnet n;
  n.data_ = d.data;
  n.sums_ = d.sums;
  n.images_ = d.images, n.channels_ = d.channels, n.height_ = d.height, n.width_ = d.width;
  n.count_ = static_cast<index>(d.stages.size());
  n.parts_.reset(new (std::nothrow) part[d.stages.size()]);
  if (!n.parts_) return error(errc::out_of_memory, "stages", "no memory for the plans of %zu stages", d.stages.size());
  if (auto r = n.plan(d, how); !r) return r.error();
  n.place();
  if (auto r = n.memory_.allocate("stages"); !r) return r.error();
  for (index s = 0; s < n.count_; ++s) {
    const std::span<float> variance = n.span_of(n.variance_of(s), n.channels_of(s));
    std::fill(variance.begin(), variance.end(), 1.0f);
  }
  return n;
}

inline void convnet::place() noexcept {
  index parameters = 0, statistics = 0;
  for (index s = 0; s < count_; ++s) {
    at(s).parameters_at = parameters;
    at(s).statistics_at = statistics;
    parameters = beta_of(0, s) + lines(channels_of(s));
    statistics += 2 * lines(channels_of(s));
    if (parameters > index{1} << 61) {
      memory_.take((index{1} << 62) + 1);  // more than there can be
      return;
    }
  }
  last_at_ = parameters;
  parameters_ = (bias_of(0) + lines(classes())) / 4;
  statistics_ = statistics / 4;
  parameters_at_ = memory_.take(parameters_ * 4);
  gradients_at_ = memory_.take(parameters_ * 4);
  statistics_at_ = memory_.take(statistics);
  index workspace = classifier_->backward_weights_workspace_bytes();
  index largest = mean_->x_bytes();
  for (index s = 0; s < count_; ++s) {
    part& p = at(s);
    p.weights_at = memory_.take(p.conv->weights_bytes());
    if (s > 0) p.transposed_at = memory_.take(p.conv->transposed_bytes());
    p.saved_at = memory_.take(p.norm->saved_bytes());
    p.z_at = memory_.take(p.conv->y_bytes());
    p.y_at = memory_.take(p.conv->y_bytes());
    p.pooled_at = p.pool ? memory_.take(p.pool->y_bytes()) : p.y_at;
    if (p.pool) p.indices_at = memory_.take(p.pool->indices_bytes());
    workspace = std::max({workspace, p.norm->workspace_bytes(), p.conv->backward_weights_workspace_bytes()});
    largest = std::max(largest, p.conv->y_bytes());
  }
  if (data_ == type::bf16) {
    x_at_ = memory_.take(at(0).conv->x_bytes());
    dz_at_ = memory_.take(images_ * classes() * 2);
    weights_at_ = memory_.take(classifier_->weights_bytes());
  }
  transposed_at_ = memory_.take(classifier_->transposed_bytes());
  features_at_ = memory_.take(classifier_->x_bytes());
  logits_at_ = memory_.take(classifier_->y_bytes());
  for (index& gradient : gradient_at_) gradient = memory_.take(largest);
  workspace_at_ = memory_.take(workspace);
}

inline result<void> convnet::prepare(loops::executor_ref threads) noexcept {
  for (index s = 0; s < count_; ++s) {
    const part& p = at(s);
    auto r = p.conv->pack_weights(threads, floats(weights_of(parameters_at_, s)), nn::conv_weights::out_last,
                                  bytes(p.weights_at), s > 0 ? bytes(p.transposed_at) : nullptr);
    if (!r) return r;
  }
  return classifier_->prepare(threads, floats(last_of(parameters_at_)),
                              data_ == type::bf16 ? bytes(weights_at_) : nullptr, bytes(transposed_at_));
}

inline result<void> convnet::check_input(const view<const float, 2>& x) const noexcept {
  if (x.extent(0) < 1 || x.extent(0) > images_) {
    return error(errc::invalid_argument, "rows", "x has %ld rows; this network takes 1..%ld", x.extent(0), images_);
  }
  if (x.extent(1) != features() || x.stride(1) != 1 || (x.stride(0) != features() && x.extent(0) > 1)) {
    return error(errc::invalid_argument, "x",
                 "x is (%ld,%ld) with strides (%ld,%ld); needed is (images,%ld) with strides (%ld,1)", x.extent(0),
                 x.extent(1), x.stride(0), x.stride(1), features(), features());
  }
  return detail::check_buffers({detail::buffer_of("x", x)}, {memory_.all()});
}

inline void convnet::round(loops::executor_ref threads, const float* from, index count, void* to) noexcept {
  auto* const bits = static_cast<std::uint16_t*>(to);
  detail::for_each_block(threads, count, [&](index begin, index end) BRGEMM_ALWAYS_INLINE {
    for (index i = begin; i < end; ++i) bits[i] = detail::bf16_bits(from[i]);
  });
}

/// What the first stage reads.
inline const void* convnet::input(loops::executor_ref threads, const view<const float, 2>& x) noexcept {
  if (data_ == type::f32) return x.data();
  round(threads, x.data(), x.extent(0) * features(), bytes(x_at_));
  return bytes(x_at_);
}

/// From the last stage to the logits.
inline result<view<const float, 2>> convnet::finish(loops::executor_ref threads, index images) noexcept {
  auto r = mean_->forward(threads, images, bytes(at(count_ - 1).pooled_at), bytes(features_at_), nullptr);
  if (!r) return r.error();
  r = classifier_->forward(threads, images, bytes(features_at_),
                           bytes(data_ == type::bf16 ? weights_at_ : last_of(parameters_at_)),
                           floats(bias_of(parameters_at_)), bytes(logits_at_));
  if (!r) return r.error();
  return view<const float, 2>(floats(logits_at_), {images, classes()});
}

inline result<view<const float, 2>> convnet::forward(loops::executor_ref threads,
                                                     const view<const float, 2>& x) noexcept {
  if (auto r = check_input(x); !r) return r.error();
  const index images = x.extent(0);
  for (index s = 0; s < count_; ++s) {
    if (images * pixels_of(s) >= 2) continue;
    return error(errc::invalid_argument, "rows",
                 "x has %ld row, of which stage %ld makes one pixel: no variance to normalise by", images, s);
  }
  forward_images_ = 0;
  x_ = input(threads, x);
  const void* from = x_;
  for (index s = 0; s < count_; ++s) {
    const part& p = at(s);
    if (auto r = p.conv->forward(threads, images, from, bytes(p.weights_at), nullptr, bytes(p.z_at)); !r) {
      return r.error();
    }
    auto r = p.norm->forward(threads, images * pixels_of(s), bytes(p.z_at), floats(gamma_of(parameters_at_, s)),
                             floats(beta_of(parameters_at_, s)), floats(mean_of(s)), floats(variance_of(s)),
                             bytes(p.y_at), floats(p.saved_at), bytes(workspace_at_));
    if (!r) return r.error();
    if (p.pool) {
      r = p.pool->forward(threads, images, bytes(p.y_at), bytes(p.pooled_at),
                          reinterpret_cast<std::uint8_t*>(bytes(p.indices_at)));
      if (!r) return r.error();
    }
    from = bytes(p.pooled_at);
  }
  forward_images_ = images;
  return finish(threads, images);
}

inline result<view<const float, 2>> convnet::predict(loops::executor_ref threads,
                                                     const view<const float, 2>& x) noexcept {
  if (auto r = check_input(x); !r) return r.error();
  const index images = x.extent(0);
  forward_images_ = 0;  // backward would read what is written here
  const void* from = input(threads, x);
  for (index s = 0; s < count_; ++s) {
    const part& p = at(s);
    float* const scale = floats(p.saved_at);
    float* const shift = scale + channels_of(s);
    auto r = p.norm->fold(floats(gamma_of(parameters_at_, s)), floats(beta_of(parameters_at_, s)), floats(mean_of(s)),
                          floats(variance_of(s)), scale, shift);
    if (!r) return r.error();
    r = p.inference->forward(threads, images, from, bytes(p.weights_at), {.bias = shift, .scale = scale},
                             bytes(p.y_at));
    if (!r) return r.error();
    if (p.pool) {
      r = p.pool->forward(threads, images, bytes(p.y_at), bytes(p.pooled_at), nullptr);
      if (!r) return r.error();
    }
    from = bytes(p.pooled_at);
  }
  return finish(threads, images);
}

/// After it nothing that backward calls can fail.
inline result<void> convnet::check_gradient(const view<const float, 2>& gradient) const noexcept {
  if (forward_images_ == 0) return error(errc::invalid_argument, "rows", "backward needs a forward before it");
  if (gradient.extent(0) != forward_images_ || gradient.extent(1) != classes() || gradient.stride(1) != 1 ||
      gradient.stride(0) != classes()) {
    return error(errc::invalid_argument, "gradient",
                 "the gradient is (%ld,%ld) with strides (%ld,%ld); forward gave logits (%ld,%ld)", gradient.extent(0),
                 gradient.extent(1), gradient.stride(0), gradient.stride(1), forward_images_, classes());
  }
  const detail::buffer read = detail::buffer_of("gradient", gradient);
  if (gradient.data() == floats(logits_at_)) return {};
  return detail::check_buffers({read}, {memory_.all()});
}

inline result<void> convnet::backward(loops::executor_ref threads, const view<const float, 2>& gradient) noexcept {
  if (auto r = check_gradient(gradient); !r) return r;
  const index images = forward_images_;
  void* current = bytes(gradient_at_[0]);
  void* other = bytes(gradient_at_[1]);
  const void* dz = gradient.data();
  if (data_ == type::bf16) {
    round(threads, gradient.data(), images * classes(), bytes(dz_at_));
    dz = bytes(dz_at_);
  }
  auto r = classifier_->backward_weights(threads, images, bytes(features_at_), dz, floats(last_of(gradients_at_)),
                                         floats(bias_of(gradients_at_)),
                                         workspace(classifier_->backward_weights_workspace_bytes()));
  if (!r) return r;
  if (r = classifier_->backward_data(threads, images, dz, bytes(transposed_at_), other); !r) return r;
  if (r = mean_->backward(threads, images, other, nullptr, current); !r) return r;
  for (index s = count_ - 1; s >= 0; --s) {
    const part& p = at(s);
    if (p.pool) {
      r = p.pool->backward(threads, images, current, reinterpret_cast<const std::uint8_t*>(bytes(p.indices_at)), other);
      if (!r) return r;
      std::swap(current, other);
    }
    r = p.norm->backward(threads, images * pixels_of(s), bytes(p.z_at), current, floats(p.saved_at), current,
                         floats(gamma_of(gradients_at_, s)), floats(beta_of(gradients_at_, s)), bytes(workspace_at_));
    if (!r) return r;
    const void* const from = s == 0 ? x_ : bytes(at(s - 1).pooled_at);
    r = p.conv->backward_weights(threads, images, from, current, floats(weights_of(gradients_at_, s)), nullptr,
                                 workspace(p.conv->backward_weights_workspace_bytes()));
    if (!r || s == 0) return r;
    if (r = p.conv->backward_data(threads, images, current, bytes(p.transposed_at), other); !r) return r;
    std::swap(current, other);
  }
  return {};
}

inline double convnet::step_operations(index rows) const noexcept {
  double operations = 6 * static_cast<double>(classifier_->description().in) * static_cast<double>(classes());
  for (index s = 0; s < count_; ++s) operations += (s == 0 ? 2 : 3) * at(s).conv->operations();
  return operations * static_cast<double>(rows);
}

/// First values: weights by He, those of the last layer drawn in the order (in,out); gamma 1, beta and bias 0.
/// Errors: out_of_memory.
inline result<void> initialise(loops::executor_ref threads, convnet& network, generator& random) noexcept {
  for (index s = 0; s < network.stages(); ++s) {
    const std::span<float> weights = network.weights(s);
    he(random, static_cast<index>(weights.size() / network.gamma(s).size()), weights);
    for (float& gamma : network.gamma(s)) gamma = 1;
    for (float& beta : network.beta(s)) beta = 0;
  }
  const nn::linear_desc& d = network.last_layer().description();
  const auto count = static_cast<std::size_t>(d.in * d.out);
  const std::unique_ptr<float[]> values(new (std::nothrow) float[count]);
  if (!values) return error(errc::out_of_memory, "layer", "no memory for the %zu first weights", count);
  he(random, d.in, {values.get(), count});
  const view<const float, 2> w(values.get(), {d.in, d.out});
  if (auto r = network.last_layer().pack_weights(threads, w, layout::plain, network.last_weights().data()); !r)
    return r;
  for (float& bias : network.last_bias()) bias = 0;
  return network.prepare(threads);
}

}  // namespace brgemm::inline abi_0::train
