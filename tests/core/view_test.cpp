// Views: shapes, strides, offsets, and the conversion to const.
#include "brgemm/core/view.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <numeric>

namespace brgemm {
namespace {

TEST(View, RowMajorUnlessStridesAreGiven) {
  std::array<int, 24> data;
  std::iota(data.begin(), data.end(), 0);
  const view<int, 3> v{data.data(), {2, 3, 4}};
  EXPECT_EQ(v.strides(), (std::array<index, 3>{12, 4, 1}));
  EXPECT_EQ(v.shape(), (std::array<index, 3>{2, 3, 4}));
  EXPECT_EQ(v.data(), data.data());
  int expected = 0;
  for (index i = 0; i < v.extent(0); ++i) {
    for (index j = 0; j < v.extent(1); ++j) {
      for (index k = 0; k < v.extent(2); ++k) {
        EXPECT_EQ(v(i, j, k), expected);
        EXPECT_EQ(v.offset(i, j, k), expected++);
      }
    }
  }
}

TEST(View, AnyStrides) {
  std::array<int, 24> data;
  std::iota(data.begin(), data.end(), 0);
  const view<int, 2> columns{data.data(), {4, 3}, {1, 8}};  // a transposed part of (3,8)
  EXPECT_EQ(columns(2, 1), 10);
  EXPECT_EQ(columns.stride(1), 8);
  const view<int, 1> backwards{data.data() + 23, {24}, {-1}};
  EXPECT_EQ(backwards(23), 0);
  EXPECT_EQ(backwards.offset(5), -5);
}

TEST(View, WritesThroughAndConvertsToConst) {
  std::array<float, 4> data{};
  const view<float, 2> v{data.data(), {2, 2}};
  v(1, 0) = 3;
  const view<const float, 2> read = v;
  EXPECT_EQ(read(1, 0), 3);
  EXPECT_EQ(read.strides(), v.strides());
  static_assert(!std::is_convertible_v<view<const float, 2>, view<float, 2>>);
  static_assert(!std::is_convertible_v<view<float, 2>, view<const float, 3>>);
}

TEST(View, EmptyAndOverflowingShapes) {
  EXPECT_EQ((view<int, 2>{}.data()), nullptr);
  EXPECT_EQ((view<int, 2>{}.extent(0)), 0);
  constexpr index big = std::numeric_limits<index>::max() / 2;
  const view<int, 3> v{nullptr, {2, big, 4}};  // stride(0) would be 4 * big
  EXPECT_EQ(v.stride(0), 0);
  EXPECT_EQ(v.extent(1), big);
}

}  // namespace
}  // namespace brgemm
