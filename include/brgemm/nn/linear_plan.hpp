// The plan of nn::linear: its desc checked, its kernels made. And the check of views.
#pragma once

#include "linear.hpp"

namespace brgemm::inline abi_0::nn {

inline result<void> linear::check(const linear_desc& d) noexcept {
  const struct {
    const char* name;
    index value;
  } sizes[] = {{"rows", d.rows}, {"in", d.in}, {"out", d.out}};
  // Up to this no product of two sizes and an element's bytes, rounded up to blocks, passes 2^63.
  constexpr index largest = largest_size;
  for (const auto& s : sizes) {
    if (s.value < 1 || s.value > largest) {
      return error(errc::invalid_argument, s.name, "%s is %ld; it must be in 1..2^29", s.name, s.value);
    }
  }
  const struct {
    const char* name;
    int value;
    int count;
  } enumerators[] = {{"data", static_cast<int>(d.data), type_count},
                     {"y", static_cast<int>(d.y), type_count},
                     {"act", static_cast<int>(d.act), activation_count},
                     {"input_act", static_cast<int>(d.input_act), activation_count},
                     {"compute", static_cast<int>(d.compute), math_count},
                     {"x_storage", static_cast<int>(d.x_storage), 2},
                     {"y_storage", static_cast<int>(d.y_storage), 2}};
  for (const auto& e : enumerators) {
    if (auto r = detail::check_enumerator(e.name, e.value, e.count); !r) return r;
  }
  const struct {
    const char* ld_name;
    const char* storage_name;
    storage stored;
    index ld;
    index features;
  } sides[] = {{"ldx", "x_storage", d.x_storage, d.ldx, d.in}, {"ldy", "y_storage", d.y_storage, d.ldy, d.out}};
  for (const auto& s : sides) {
    if (s.stored == storage::blocked && !can_block(s.features)) {
      return error(errc::invalid_argument, s.storage_name,
                   "%ld features have no block width that divides them (64, 48, 80, 96, 112, 32): use plain storage",
                   s.features);
    }
    const bool right = s.ld == 0 || (s.stored == storage::plain && s.ld >= s.features && s.ld <= largest);
    if (!right) {
      return error(errc::invalid_argument, s.ld_name, "%s is %ld with %ld features: 0, or for plain storage %ld..2^29",
                   s.ld_name, s.ld, s.features, s.features);
    }
  }
  if (auto r = check_types(d); !r) return r;
  if (!d.training && d.input_act != activation::none) {
    return error(errc::invalid_argument, "input_act", "input_act is for training, and training is false");
  }
  return {};
}

inline result<void> linear::check_types(const linear_desc& d) noexcept {
  const bool is_8bit = detail::is_8bit(d.data);
  if (d.data != type::f32 && d.data != type::bf16 && !is_8bit) {
    return error(errc::unsupported, "data", "data is %s; f32, bf16, u8 and s8 are there", name_of(d.data).data());
  }
  const bool y_fits = d.y == type::f32 || (d.data == type::bf16 && d.y == type::bf16) ||
                      (is_8bit && (d.y == type::bf16 || d.y == type::s32 || detail::is_8bit(d.y)));
  if (!y_fits) {
    return error(errc::unsupported, "y", "y is %s with data of %s", name_of(d.y).data(), name_of(d.data).data());
  }
  if (d.compute != math::f32 && d.data != type::f32) {
    return error(errc::unsupported, "compute", "compute is %d and data is %s; products of pieces are of f32",
                 static_cast<int>(d.compute), name_of(d.data).data());
  }
  if (auto r = detail::check_order_of_pieces(d.compute, d.sums); !r) return r;
  if (d.y == type::s32 && d.bias) {
    return error(errc::unsupported, "bias", "bias is true and y is s32, which is stored as summed");
  }
  if (d.y == type::s32 && d.act != activation::none) {
    return error(errc::unsupported, "act", "act is %d and y is s32, which is stored as summed",
                 static_cast<int>(d.act));
  }
  if (d.training && is_8bit) {
    return error(errc::unsupported, "training", "a layer of %s has a forward pass only", name_of(d.data).data());
  }
  return {};
}

inline result<linear> linear::plan(const linear_desc& d, const options& how) noexcept {
  if (auto r = check(d); !r) return r.error();
  linear l;
  l.d_ = d;
  auto forward = detail::row_product::make(l.forward_desc(), how);
  if (!forward) return forward.error();
  l.forward_.emplace(std::move(*forward));
  if (!d.training) return l;
  auto backward = detail::row_product::make(l.backward_desc(), how);
  if (!backward) return backward.error();
  l.backward_.emplace(std::move(*backward));
  if (d.act != activation::none) {
    auto step = detail::block_epilogue::make(d.out, l.y_tiles().ld, d.data, d.compute,
                                             backward_step(d.act, d.y_storage, d.out), how);
    if (!step) return step.error();
    l.activation_.emplace(std::move(*step));
  }
  auto gradient =
      detail::gradient_product::make(d.rows, d.in, d.out, {d.data, d.compute, d.sums}, l.x_blocks(), l.z_blocks(), how);
  if (!gradient) return gradient.error();
  l.gradient_.emplace(std::move(*gradient));
  return l;
}

template <class T>
result<void> linear::check_view(const char* name, const view<const T, 2>& v, index features, index ld,
                                type wanted) const noexcept {
  if (element_traits<T>::value != wanted) {
    return error(errc::invalid_argument, name, "%s has elements of %s; this plan has %s", name,
                 name_of(element_traits<T>::value).data(), name_of(wanted).data());
  }
  const bool is_x = name[0] == 'x';
  if ((is_x ? d_.x_storage : d_.y_storage) != storage::plain) {
    return error(errc::invalid_argument, name, "%s is blocked in this plan: pass a pointer, not a view", name);
  }
  const bool rows_fit = v.stride(0) == ld || v.extent(0) == 1;
  if (v.extent(1) != features || v.stride(1) != 1 || !rows_fit) {
    return error(errc::invalid_argument, name,
                 "%s is (%ld,%ld) with strides (%ld,%ld); this plan has %ld features, rows %ld apart", name,
                 v.extent(0), v.extent(1), v.stride(0), v.stride(1), features, ld);
  }
  return {};
}

}  // namespace brgemm::inline abi_0::nn
