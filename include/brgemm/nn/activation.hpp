// Activations of layers: the step they are in an epilogue, and their derivative.
#pragma once

#include <cmath>

#include "../core/activation.hpp"
#include "../core/desc.hpp"

namespace brgemm::inline abi_0::nn {

/// The function after a layer; defined by the step of the same name in op_kind.
enum class activation : std::uint8_t { none, relu, sigmoid, tanh, gelu_erf, gelu_tanh, silu, hardswish };
inline constexpr int activation_count = 8;

constexpr op_kind op_of(activation a) noexcept {
  constexpr op_kind kinds[activation_count] = {op_kind::none, op_kind::relu,     op_kind::sigmoid,
                                               op_kind::tanh, op_kind::gelu_erf, op_kind::gelu_tanh,
                                               op_kind::silu, op_kind::hardswish};
  return kinds[static_cast<int>(a)];
}

/// The derivative at z, in double and rounded once: it is needed once an element and step, beside in or out products.
inline float derivative(activation a, float at) noexcept {
  const double z = at;
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  switch (a) {
    case activation::none: return 1;
    case activation::relu: return at > 0 ? 1.0f : 0.0f;
    case activation::sigmoid: {
      const double s = sigmoid(z);
      return static_cast<float>(s * (1 - s));
    }
    case activation::tanh: {
      const double t = std::tanh(z);
      return static_cast<float>(1 - t * t);
    }
    case activation::gelu_erf: {
      constexpr double root_half = 0.70710678118654752440, density = 0.39894228040143267794;  // 1/sqrt(2), 1/sqrt(2 pi)
      return static_cast<float>(0.5 * (1 + std::erf(z * root_half)) + z * density * std::exp(-z * z / 2));
    }
    case activation::gelu_tanh: {
      constexpr double c = 0.79788456080286535588, cubic = 0.044715;  // sqrt(2/pi)
      const double t = std::tanh(c * (z + cubic * z * z * z));
      return static_cast<float>(0.5 * (1 + t) + 0.5 * z * (1 - t * t) * c * (1 + 3 * cubic * z * z));
    }
    case activation::silu: {
      const double s = sigmoid(z);
      return static_cast<float>(s + z * s * (1 - s));
    }
    case activation::hardswish:
      if (z <= -3) return 0;
      return z >= 3 ? 1.0f : static_cast<float>(z / 3 + 0.5);
  }
  return 0;
}

}  // namespace brgemm::inline abi_0::nn
