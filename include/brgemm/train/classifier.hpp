// Training of a classifier: first values, then steps of forward, loss, backward and update.
#pragma once

#include <memory>

#include "../nn/mlp.hpp"
#include "initialise.hpp"
#include "loss.hpp"
#include "optimizer.hpp"

namespace brgemm::inline abi_0::train {

/// First values of all layers: weights by He (for relu and its kin) or Glorot (tanh, sigmoid, no activation), biases 0.
/// The weights are drawn in the order (in,out), so they depend on the sizes and the generator alone.
/// Errors: out_of_memory.
inline result<void> initialise(loops::executor_ref threads, nn::mlp& network, generator& random) noexcept {
  for (index l = 0; l < network.layers(); ++l) {
    const nn::linear_desc& d = network.layer(l).description();
    const auto count = static_cast<std::size_t>(d.in * d.out);
    const auto bias_count = static_cast<std::size_t>(d.out);
    const std::unique_ptr<float[]> values(new (std::nothrow) float[count + bias_count]());
    if (!values) return error(errc::out_of_memory, "layer", "no memory for the %zu first weights", count);
    const std::span<float> weights(values.get(), count);
    const bool symmetric =
        d.act == nn::activation::none || d.act == nn::activation::tanh || d.act == nn::activation::sigmoid;
    if (symmetric) {
      glorot(random, d.in, d.out, weights);
    } else {
      he(random, d.in, weights);
    }
    const view<const float, 2> w(values.get(), {d.in, d.out});
    if (auto r = network.set(threads, l, w, layout::plain, {values.get() + count, bias_count}); !r) return r;
  }
  return network.prepare(threads);
}

/// Trains a network, an nn::mlp or a convnet, on labelled rows. Owns the optimizer's state, the losses and the gradient
/// by the logits; the network must outlive it. A step allocates nothing.
template <optimizer O, class Network = nn::mlp>
class classifier {
 public:
  /// Errors: invalid_argument "training" for a network without backward passes, out_of_memory.
  static result<classifier> make(Network& network, const O& how) noexcept {
    if (network.gradients().empty()) {
      return error(errc::invalid_argument, "training", "the network was made with training = false");
    }
    const index classes = network.classes();
    classifier c(network, how);
    c.state_size_ = network.parameters().size() * static_cast<std::size_t>(O::states);
    c.state_.reset(new (std::nothrow) float[c.state_size_]());
    c.losses_.reset(new (std::nothrow) double[static_cast<std::size_t>(network.rows())]);
    c.gradient_.reset(new (std::nothrow) float[static_cast<std::size_t>(network.rows() * classes)]);
    if (!c.state_ || !c.losses_ || !c.gradient_) {
      return error(errc::out_of_memory, "state", "no memory for %zu floats of state", c.state_size_);
    }
    return c;
  }

  /// One step on x (rows, in) with labels (rows); returns the mean loss before the update. Errors as for
  /// the network's forward and softmax_cross_entropy; the parameters are then unchanged.
  result<double> step(loops::executor_ref threads, const view<const float, 2>& x,
                      std::span<const std::int32_t> labels) noexcept {
    // Before forward, which a network may keep statistics of.
    if (auto r = detail::check_labels(x.extent(0), network_->classes(), labels); !r) return r.error();
    const auto logits = network_->forward(threads, x);
    if (!logits) return logits.error();
    const view<float, 2> gradient(gradient_.get(), logits->shape());
    const std::span<double> losses(losses_.get(), static_cast<std::size_t>(logits->extent(0)));
    const auto loss = softmax_cross_entropy(threads, *logits, labels, losses, gradient);
    if (!loss) return loss;
    if (auto r = network_->backward(threads, gradient); !r) return r.error();
    auto r = train::step(threads, how_, steps_ + 1, network_->parameters(), network_->gradients(), state());
    if (!r) return r.error();
    ++steps_;
    if (r = network_->prepare(threads); !r) return r.error();
    return loss;
  }

  O& optimizer() noexcept { return how_; }
  /// What a checkpoint keeps beside the network's parameters: the optimizer's state and the number of steps done.
  std::span<float> state() noexcept { return {state_.get(), state_size_}; }
  index steps() const noexcept { return steps_; }
  void set_steps(index steps) noexcept { steps_ = steps; }

 private:
  classifier(Network& network, const O& how) noexcept : network_(&network), how_(how) {}

  Network* network_;
  O how_;
  index steps_ = 0;
  std::size_t state_size_ = 0;
  std::unique_ptr<float[]> state_;
  std::unique_ptr<double[]> losses_;
  std::unique_ptr<float[]> gradient_;
};

}  // namespace brgemm::inline abi_0::train
