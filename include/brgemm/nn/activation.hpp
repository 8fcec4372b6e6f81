// Activations of layers: the steps of an epilogue that they are forward and backward.
#pragma once

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

/// The step that multiplies by the derivative: relu reads the mask of relu_mask, the others what they were given.
constexpr op_kind backward_of(activation a) noexcept {
  constexpr op_kind kinds[activation_count] = {
      op_kind::none,          op_kind::multiply_mask,     op_kind::sigmoid_backward,
      op_kind::tanh_backward, op_kind::gelu_erf_backward, op_kind::gelu_tanh_backward,
      op_kind::silu_backward, op_kind::hardswish_backward};
  return kinds[static_cast<int>(a)];
}

/// The derivative at z, with the bits that the backward steps have; its error is in docs/numerics.md.
inline float derivative(activation a, float z) noexcept {
  if (a == activation::none) return 1;
  if (a == activation::relu) return z > 0 ? 1.0f : 0.0f;
  return brgemm::activate(backward_of(a), z);
}

}  // namespace brgemm::inline abi_0::nn
