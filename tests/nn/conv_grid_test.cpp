// Every layer of a grid of small windows, in all directions, types and orders of channels, against plain loops: equal
// bits, which are within their bound of sums in double. The 8-bit types have their own in conv_8bit_test.cpp.
//
//   nn.conv_grid [--fraction=N]     one layer in N (default 1: all)
#include "support/conv_grid.hpp"

#include <charconv>
#include <cstdio>

#include "support/conv_problem.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using namespace convolution;
using brgemm::index;

struct layer_kind {
  type data;
  index x_block;
  index y_block;
};
constexpr layer_kind kinds[] = {
    {type::f32, 0, 0}, {type::bf16, 0, 0}, {type::f32, 16, 8}, {type::bf16, 8, 64}, {type::f32, 0, 32}};

/// Both tensors of p, which are in blocks, as pixels with adjacent channels.
problem with_adjacent_channels(const problem& p, const problem& blocked) {
  problem adjacent = in_blocks(p, p.d);
  adjacent.d = blocked.d;
  const auto layer = conv::plan(blocked.d);
  out_of_blocks(layer->reorder_y({}, {})->description(), blocked.d.y_block, blocked.y.data(), adjacent.y.data());
  out_of_blocks(layer->reorder_x({}, {})->description(), blocked.d.x_block, blocked.dx.data(), adjacent.dx.data());
  return adjacent;
}

TEST(ConvGrid, EveryWindowHasTheBitsOfThePlainLoops) {
  std::mt19937 random(20);
  long layers = 0, unsupported = 0;
  for (index number = 0; number < conv_grid_size; ++number) {
    for (const layer_kind& kind : kinds) {
      conv_desc d = conv_of_grid(number);
      d.data = d.y = kind.data;
      d.training = true;
      const problem p = draw_data(random, d);
      d.x_block = kind.x_block, d.y_block = kind.y_block;
      if (!conv::plan(d)) {
        ++unsupported;
        continue;
      }
      const problem b = in_blocks(p, d);
      run(b, b.y, b.dx, 1);
      const problem adjacent = with_adjacent_channels(p, b);
      expect_bits(adjacent);
      ASSERT_TRUE(same_bits(update_of(b, 1), expected_update(adjacent))) << text_of(d);
      if (testing::Test::HasFatalFailure()) return;
      ++layers;
    }
  }
  std::printf("conv grid: %ld layers in three directions; %ld more have blocks that groups or pairs don't fit\n",
              layers, unsupported);
  EXPECT_GT(layers, 4 * unsupported);
}

}  // namespace
}  // namespace brgemm_test
