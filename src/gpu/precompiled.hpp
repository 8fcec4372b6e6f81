// The kernels that are compiled with the library, for where NVRTC is not: products without an epilogue of the common
// types, A and B row-major.
#pragma once

#include "launch.hpp"

namespace brgemm::inline abi_0::cuda {

struct precompiled_kernel {
  desc specialised;
  tile of_c;
};

inline constexpr int precompiled_count = 18;

constexpr precompiled_kernel precompiled(int i) noexcept {
  constexpr struct {
    type a, b, c;
  } types[] = {{type::f32, type::f32, type::f32},   {type::f64, type::f64, type::f64},
               {type::bf16, type::bf16, type::f32}, {type::bf16, type::bf16, type::bf16},
               {type::f16, type::f16, type::f16},   {type::u8, type::s8, type::s32}};
  precompiled_kernel k = {};
  desc& d = k.specialised;
  d.a = types[i / 3].a, d.b = types[i / 3].b, d.c = types[i / 3].c;
  d.batch = static_cast<batch_kind>(i % 3);
  // Any beta: at the call, 0 and 1 have the bits of beta_kind::zero and one.
  if (d.c != type::s32) d.beta = beta_kind::at_call;
  const bool by_warps = d.a == type::bf16 || d.a == type::f16;
  d.sums = by_warps ? order::foreign : order::chain;
  d.where = place::gpu;
  k.of_c = by_warps ? tile{64, 64, 32, 0} : d.a == type::f64 ? tile{32, 32, 16, 2} : tile{64, 64, 16, 4};
  return k;
}

/// The number of the kernel that does what `specialised` asks for; -1 where none does.
constexpr int precompiled_for(desc specialised) noexcept {
  if (specialised.c != type::s32) specialised.beta = beta_kind::at_call;
  for (int i = 0; i < precompiled_count; ++i) {
    if (precompiled(i).specialised == specialised) return i;
  }
  return -1;
}

}  // namespace brgemm::inline abi_0::cuda
