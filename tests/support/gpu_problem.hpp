// Descs that kernels of the GPU have, and what they are compared with.
#pragma once

#include "brgemm/kernel/kernel.hpp"
#include "plan.hpp"
#include "support/draw.hpp"

namespace brgemm_test {

/// Types that only the reference and the GPU multiply.
inline constexpr types types_of_gpu[] = {
    {brgemm::type::tf32, brgemm::type::tf32, brgemm::type::f32},
    {brgemm::type::e4m3, brgemm::type::e4m3, brgemm::type::f32},
    {brgemm::type::e4m3, brgemm::type::e5m2, brgemm::type::bf16},
    {brgemm::type::e5m2, brgemm::type::e4m3, brgemm::type::f16},
    {brgemm::type::e4m3, brgemm::type::e4m3, brgemm::type::e4m3},
    {brgemm::type::e5m2, brgemm::type::e5m2, brgemm::type::e5m2},
};

/// Of the types of `sample`: every combination comes in turn.
constexpr drawn_desc draw_desc_for_gpu(entropy& e, int sample, const shape& s) {
  const index i = sample % (type_combination_count + static_cast<index>(std::size(types_of_gpu)));
  const types& t = i < type_combination_count ? type_combinations[i] : types_of_gpu[i - type_combination_count];
  drawn_desc x = draw_desc(e, s, t, static_cast<brgemm::batch_kind>(e.between(0, 2)));
  x.d.where = brgemm::place::gpu;
  if (t.a == brgemm::type::bf16) x.d.sums = brgemm::order::machine, x.d.chains = 1;
  return x;
}

/// The reference's kernel with the bits of the GPU's: tensor cores sum from +0 and add to beta * C last, as with alpha.
inline brgemm::result<brgemm::kernel> reference_of(desc d) {
  d.where = brgemm::place::cpu;
  if (brgemm::cuda::by_tensor_cores(d)) d.alpha = brgemm::alpha_kind::at_call;
  return make_kernel(d, {.backend = "reference"});
}

}  // namespace brgemm_test
