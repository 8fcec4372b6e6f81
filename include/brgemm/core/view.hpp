// A view: a pointer, a shape and strides. Owns nothing, checks nothing; plans and checked calls do the checking.
#pragma once

#include <array>
#include <type_traits>

#include "types.hpp"

namespace brgemm::inline abi_0 {

/// A `Rank`-dimensional array of T that somebody else owns. Strides count elements; row-major unless they are given.
template <class T, int Rank>
class view {
 public:
  static_assert(Rank >= 1);
  using element_type = T;
  static constexpr int rank = Rank;

  constexpr view() = default;
  constexpr view(T* data, const std::array<index, Rank>& shape) : data_(data), shape_(shape) {
    index stride = 1;
    for (int d = Rank - 1; d >= 0; --d) {
      strides_[at(d)] = stride;
      if (__builtin_mul_overflow(stride, shape[at(d)], &stride)) stride = 0;  // the checks see shape and say so
    }
  }
  constexpr view(T* data, const std::array<index, Rank>& shape, const std::array<index, Rank>& strides)
      : data_(data), shape_(shape), strides_(strides) {}
  /// A view of T is one of const T.
  constexpr operator view<const T, Rank>() const requires(!std::is_const_v<T>) { return {data_, shape_, strides_}; }

  constexpr T* data() const { return data_; }
  constexpr index extent(int d) const { return shape_[at(d)]; }
  constexpr index stride(int d) const { return strides_[at(d)]; }
  constexpr const std::array<index, Rank>& shape() const { return shape_; }
  constexpr const std::array<index, Rank>& strides() const { return strides_; }

  /// Distance in elements from data() to the element at these indices, one a dimension.
  template <class... Index>
  requires(sizeof...(Index) == Rank) constexpr index offset(Index... i) const {
    const std::array<index, Rank> position{static_cast<index>(i)...};
    index sum = 0;
    for (int d = 0; d < Rank; ++d) sum += position[at(d)] * strides_[at(d)];
    return sum;
  }
  template <class... Index>
  requires(sizeof...(Index) == Rank) constexpr T& operator()(Index... i) const { return data_[offset(i...)]; }

 private:
  static constexpr std::size_t at(int d) { return static_cast<std::size_t>(d); }
  T* data_ = nullptr;
  std::array<index, Rank> shape_{};
  std::array<index, Rank> strides_{};
};

}  // namespace brgemm::inline abi_0
