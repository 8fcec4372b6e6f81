// Every layer of a grid of small windows, in all directions, types and orders of channels, against plain loops: equal
// bits, which are within their bound of sums in double. The 8-bit types have their own in conv_8bit_test.cpp.
#include "support/conv_grid.hpp"

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
  EXPECT_EQ(unsupported, 999);
}

}  // namespace
}  // namespace brgemm_test
