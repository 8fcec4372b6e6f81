// Every small window of a convolution: kernel 1..7, stride 1..3, dilation 1 and 2, padding 0..3 before and after, in 1
// group, in 2 and depthwise.
#pragma once

#include <brgemm/nn/conv.hpp>

namespace brgemm_test {

inline constexpr brgemm::index conv_grid_size = 7 * 3 * 2 * 4 * 4 * 3;

/// Layer `number` of the grid, below conv_grid_size, on types of its default. The window is the width's; the height has
/// a smaller one. Sizes are as small as the window allows, or a few more.
inline brgemm::nn::conv_desc conv_of_grid(brgemm::index number) {
  brgemm::index rest = number;
  const auto next = [&rest](brgemm::index count) {
    const brgemm::index value = rest % count;
    rest /= count;
    return value;
  };
  brgemm::nn::conv_desc d;
  const brgemm::index groups = next(3);
  auto& w = d.axes[2];
  w = {1, 1 + next(7), 1 + next(3), 1 + next(2), next(4), next(4)};
  const brgemm::index extent = w.dilation * (w.kernel - 1) + 1;
  // What is not of the grid goes by digits that have nothing to do with it.
  auto other = static_cast<std::uint64_t>(number) * 0x9e3779b97f4a7c15 >> 16;
  const auto pick = [&other](std::uint64_t count) {
    const auto value = static_cast<brgemm::index>(other % count);
    other /= count;
    return value;
  };
  w.in = std::max<brgemm::index>(extent - w.pad_before - w.pad_after, 1) + pick(5);
  d.axes[1] = {3 + pick(3), 1 + pick(3), 1 + pick(2), 1, pick(3), pick(3)};
  d.images = 1 + pick(2);
  const bool narrow = pick(2) == 0;
  d.groups = groups == 2 ? (narrow ? 3 : 17) : groups + 1;
  d.in = groups == 2 ? d.groups : d.groups * (narrow ? 3 : 16);
  d.out = groups == 2 ? d.groups : d.groups * (narrow ? 17 : 8);
  return d;
}

}  // namespace brgemm_test
