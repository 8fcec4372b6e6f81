// Sums become elements of C: alpha, beta, the desc's steps, one conversion. Eight columns of a row at a time, whole
// bytes of a mask.
#pragma once

#include "elements.cuh"
#include "launch.hpp"

namespace brgemm::inline abi_0::cuda {

inline constexpr int run_columns = 8;

/// Columns column..column + count - 1 of a row of the C of arguments.
struct run_of_columns {
  index row, column;
  index vectors;  // of the block
  int count;
};

template <desc D>
constexpr bool sums_become_f32 = accumulator_of(D.a) == type::s32&& D.c != type::s32;

/// Where a sum starts: +0, C, or round(beta * C).
template <desc D, class Real>
__device__ __forceinline__ void load_start(const launch& call, const run_of_columns& at, Real (&start)[run_columns]) {
#pragma unroll
  for (int j = 0; j < run_columns; ++j) start[j] = Real{0};
  if constexpr (D.beta != beta_kind::zero) {
    const Real beta = D.beta == beta_kind::one ? Real{1} : static_cast<Real>(call.x.beta);
    if (beta == Real{0}) return;
#pragma unroll
    for (int j = 0; j < run_columns; ++j) {
      if (j >= at.count) break;
      start[j] = load<D.c, Real>(call.x.c, at.row * call.x.ldc + at.column + j);
      if constexpr (D.beta == beta_kind::at_call) start[j] = multiply(beta, start[j]);
    }
  }
}

/// The operand of a step for the column `j` of the run.
template <epilogue_op O, class Real>
__device__ __forceinline__ Real operand(const void* from, index ld, const run_of_columns& at, int j) {
  constexpr bool is_vector = O.kind == op_kind::bias || O.kind == op_kind::scale;
  if constexpr (is_vector) {
    const index along = O.along == axis::row ? at.row : O.along == axis::column ? at.column + j : 0;
    return load<O.operand, Real>(from, at.vectors + along);
  } else {
    return load<O.operand, Real>(from, at.row * ld + at.column + j);
  }
}

template <epilogue_op O, class Real>
__device__ __forceinline__ void apply_mask(std::uint8_t* mask, int count, Real (&x)[run_columns]) {
  if constexpr (O.kind == op_kind::relu_mask) {
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < run_columns; ++j) {
      if (j < count && x[j] > 0) bits |= 1u << j;
      x[j] = x[j] < 0 ? Real{0} : x[j];
    }
    *mask = static_cast<std::uint8_t>(bits);
  } else {
    const unsigned bits = *mask;
#pragma unroll
    for (int j = 0; j < run_columns; ++j) x[j] = (bits >> j & 1) != 0 ? x[j] : Real{0};
  }
}

/// A step without an operand.
template <epilogue_op O, class Real>
__device__ __forceinline__ Real apply_function(Real x) {
  if constexpr (O.kind == op_kind::relu) {
    return x < 0 ? Real{0} : x;
  } else if constexpr (O.kind == op_kind::leaky_relu) {
    return x < 0 ? multiply(static_cast<Real>(__uint_as_float(O.slope.bits)), x) : x;
  } else if constexpr (O.kind == op_kind::clamp) {
    const Real lower = static_cast<Real>(__uint_as_float(O.lower.bits));
    const Real upper = static_cast<Real>(__uint_as_float(O.upper.bits));
    const Real raised = x < lower ? lower : x;
    return raised > upper ? upper : raised;
  } else {
    return activate_on_device<O.kind>(x);
  }
}

template <epilogue_op O, class Real>
__device__ __forceinline__ void apply(void* from, index ld, const run_of_columns& at, Real (&x)[run_columns]) {
  constexpr bool has_function = (O.kind >= op_kind::sigmoid && O.kind <= op_kind::hardswish) ||
                                O.kind == op_kind::relu || O.kind == op_kind::leaky_relu || O.kind == op_kind::clamp;
  if constexpr (O.kind == op_kind::relu_mask || O.kind == op_kind::multiply_mask) {
    apply_mask<O>(static_cast<std::uint8_t*>(from) + at.row * ld + at.column / 8, at.count, x);
  } else {
#pragma unroll
    for (int j = 0; j < run_columns; ++j) {
      if (j >= at.count) break;
      if constexpr (has_function) {
        x[j] = apply_function<O>(x[j]);
      } else if constexpr (O.kind == op_kind::store) {
        store<O.operand>(from, at.row * ld + at.column + j, x[j]);
      } else if constexpr (O.kind == op_kind::bias || O.kind == op_kind::add) {
        x[j] = add(x[j], operand<O, Real>(from, ld, at, j));
      } else if constexpr (O.kind == op_kind::scale || O.kind == op_kind::multiply) {
        x[j] = multiply(x[j], operand<O, Real>(from, ld, at, j));
      } else if constexpr (O.kind >= op_kind::sigmoid_backward) {
        x[j] = multiply(x[j], activate_on_device<O.kind>(operand<O, Real>(from, ld, at, j)));
      }
    }
  }
}

template <desc D, int Step, class Real>
__device__ __forceinline__ void apply_from(const launch& call, const run_of_columns& at, Real (&x)[run_columns]) {
  if constexpr (Step < D.epilogue_size) {
    apply<D.epilogue[Step]>(call.x.operand[Step], call.x.operand_ld[Step], at, x);
    apply_from<D, Step + 1>(call, at, x);
  }
}

/// The steps, and C. `x` has the sums with alpha and beta.
template <desc D, class Real>
__device__ __forceinline__ void finish(const launch& call, const run_of_columns& at, Real (&x)[run_columns]) {
  apply_from<D, 0>(call, at, x);
#pragma unroll
  for (int j = 0; j < run_columns; ++j) {
    if (j < at.count) store<D.c>(call.x.c, at.row * call.x.ldc + at.column + j, x[j]);
  }
}

}  // namespace brgemm::inline abi_0::cuda
