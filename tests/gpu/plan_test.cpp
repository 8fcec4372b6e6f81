// What the GPU's backend says no to, with the numbers, and what it puts into code and what into a launch. No GPU
// needed.
#include "plan.hpp"

#include <gtest/gtest.h>

#include <string>

#include "support/expect_error.hpp"

namespace brgemm::cuda {
namespace {

using brgemm_test::expect_error;

desc of_f32() {
  desc d;
  d.m = 100, d.n = 70, d.k = 30;
  d.lda = 30, d.ldb = 70, d.ldc = 70;
  d.where = place::gpu;
  return d;
}
desc of(type ab, type c) {
  desc d = of_f32();
  d.a = d.b = ab, d.c = c;
  return d;
}

TEST(GpuPlan, SaysWhyThereIsNoKernel) {
  EXPECT_TRUE(check_supported(of_f32()));
  EXPECT_TRUE(check_supported(of(type::bf16, type::bf16)));
  desc d = of_f32();
  d.where = place::cpu;
  expect_error(check_supported(d), errc::invalid_argument, "where", {"where is 0", "which is 1"});
  d = of_f32();
  d.lda = 29;
  expect_error(check_supported(d), errc::invalid_argument, "lda", {"29", "30"});
  d = of_f32();
  d.layout_a = layout::depthwise, d.lda = 70;
  expect_error(check_supported(d), errc::unsupported, "layout_a", {"layout_a is 3"});
  d = of_f32();
  d.rows[0] = {0, 5}, d.rows[1] = {5, 9};
  expect_error(check_supported(d), errc::unsupported, "rows", {"2 ranges"});
  d = of(type::bf16, type::f32);
  d.sums = order::pair;
  expect_error(check_supported(d), errc::unsupported, "sums", {"sums is 2"});
  d = of(type::bf16, type::f32);
  d.chains = 4;
  expect_error(check_supported(d), errc::unsupported, "chains", {"chains is 4"});
}

TEST(GpuPlan, TensorCoresSumWhereNoChainIsAskedFor) {
  EXPECT_EQ(order_of(of(type::bf16, type::f32)), order::foreign);
  EXPECT_EQ(order_of(of(type::f16, type::f16)), order::foreign);
  desc d = of(type::f16, type::f16);
  d.sums = order::chain;
  EXPECT_EQ(order_of(d), order::chain);
  d.sums = order::machine, d.chains = 2;
  EXPECT_EQ(order_of(d), order::chain);
  for (const type t : {type::tf32, type::e4m3, type::e5m2}) {
    d = of(t, type::f32);
    EXPECT_EQ(order_of(d), order::foreign);
    d.sums = order::chain;
    EXPECT_EQ(order_of(d), order::chain);
  }
  for (const type t : {type::f32, type::f64}) EXPECT_EQ(order_of(of(t, t)), order::chain);
  EXPECT_EQ(order_of(of(type::u8, type::s32)), order::chain);
}

TEST(GpuPlan, SizesAreNoPartOfTheCode) {
  desc one = of_f32(), other = of_f32();
  append(one, op::add(70)), append(other, op::add(at_call));
  other.m = 7, other.n = 8, other.k = 9, other.lda = 10, other.ldb = at_call, other.ldc = 12;
  other.stride_a = 13, other.stride_b = -14, other.prefetch = 2;
  other.write_c = write_kind::streaming;
  EXPECT_EQ(specialised(one), specialised(other));
  for (int field = 0; field < 11; ++field) {
    other = one;
    switch (field) {
      case 0: other.a = other.b = other.c = type::f64; break;
      case 1: other.c = type::bf16; break;
      case 2: other.batch = batch_kind::offsets; break;
      case 3: other.layout_a = layout::transposed; break;
      case 4: other.layout_b = layout::transposed; break;
      case 5: other.beta = beta_kind::at_call; break;
      case 6: other.alpha = alpha_kind::at_call; break;
      case 7: other.chains = 4; break;
      case 8: other.m_extent = extent_kind::at_call; break;
      case 9: other.zero_a = zero_point::at_call; break;
      case 10: append(other, op::relu()); break;
    }
    EXPECT_FALSE(specialised(one) == specialised(other)) << field;
  }
}

TEST(GpuPlan, TilesLeaveFewElementsOver) {
  desc d = of_f32();
  d.m = d.n = 1024;
  EXPECT_EQ(choose_tile(d), (tile{64, 64, 16, 4}));
  d.m = 33;  // 48 rows instead of 64
  EXPECT_EQ(choose_tile(d).m, 16);
  d.a = d.b = d.c = type::bf16;
  EXPECT_EQ(choose_tile(d), (tile{64, 64, 32, 0}));
  d.m = 32;
  EXPECT_EQ(choose_tile(d), (tile{32, 32, 32, 0}));
  d.a = d.b = type::tf32, d.c = type::f32;
  EXPECT_EQ(choose_tile(d), (tile{32, 32, 16, 0}));
}

struct memory {
  float a[4], b[4], c[4];
  offset_pair pairs[2];
  output outputs[2];
};

TEST(GpuPlan, SaysWhatIsWrongWithArguments) {
  memory m = {};
  arguments right;
  right.a = m.a, right.b = m.b, right.c = m.c;
  EXPECT_TRUE(validate(of_f32(), right));
  const auto wrong = [&](const desc& d, auto&& change, const char* field, const std::vector<std::string>& words) {
    arguments x = right;
    change(x);
    SCOPED_TRACE(field);
    expect_error(validate(d, x), errc::invalid_argument, field, words);
  };
  desc d = of_f32();
  wrong(d, [](auto& x) { x.count = -1; }, "count", {"count is -1"});
  wrong(d, [](auto& x) { x.batch = -2; }, "batch", {"batch is -2"});
  wrong(d, [](auto& x) { x.count = 3; }, "outputs", {"count is 3"});
  wrong(d, [](auto& x) { x.c = nullptr; }, "c", {"null"});
  wrong(d, [](auto& x) { x.a = nullptr; }, "a", {"null"});
  wrong(d, [](auto& x) { x.b = nullptr; }, "b", {"null"});
  wrong(d, [](auto& x) { x.c = static_cast<char*>(x.c) + 1; }, "c", {"multiple of 4"});
  d.ldc = at_call;
  wrong(d, [](auto& x) { x.ldc = 69; }, "ldc", {"69", "70"});
  d = of_f32();
  d.batch = batch_kind::offsets;
  wrong(d, [](auto&) {}, "pairs", {"null"});
  d = of_f32();
  d.m_extent = extent_kind::at_call;
  wrong(d, [](auto& x) { x.m = 101; }, "m", {"101", "100"});
  d = of_f32();
  append(d, op::bias());
  wrong(d, [](auto&) {}, "operand", {"operand[0]", "null"});
  d = of_f32();
  append(d, op::add(at_call));
  wrong(d, [&m](auto& x) { x.operand[0] = m.c, x.operand_ld[0] = 5; }, "operand_ld", {"operand_ld[0] is 5"});
  d = of(type::u8, type::s32);
  d.zero_a = zero_point::at_call;
  wrong(d, [](auto&) {}, "column_sums", {"null"});

  arguments none = right;  // nothing is read
  none.batch = 0, none.a = none.b = nullptr;
  EXPECT_TRUE(validate(of_f32(), none));
  none.count = 0, none.c = nullptr;
  EXPECT_TRUE(validate(of_f32(), none));
}

TEST(GpuPlan, LaunchesHaveWhatCodeHasNot) {
  desc d = of_f32();
  d.ldb = at_call, d.stride_a = 5, d.stride_b = 6;
  append(d, op::relu()), append(d, op::add(71)), append(d, op::add(at_call));
  memory m = {};
  arguments x;
  x.a = m.a, x.b = m.b, x.c = m.c, x.ldb = 99, x.outputs = m.outputs, x.count = 2;
  x.operand_ld[2] = 72;
  const tile t{64, 32, 16, 2};
  const launch l = make_launch(d, t, x);
  EXPECT_EQ(l.x.lda, 30);
  EXPECT_EQ(l.x.ldb, 99);
  EXPECT_EQ(l.x.ldc, 70);
  EXPECT_EQ(l.m, 100);
  EXPECT_EQ(l.n, 70);
  EXPECT_EQ(l.k, 30);
  EXPECT_EQ(l.stride_a, 5);
  EXPECT_EQ(l.stride_b, 6);
  EXPECT_EQ(l.x.operand_ld[1], 71);
  EXPECT_EQ(l.x.operand_ld[2], 72);
  EXPECT_EQ(l.tiles_m, 2);
  EXPECT_EQ(l.tiles_n, 3);
  EXPECT_EQ(l.x.beta, 0);
  d.beta = beta_kind::one, x.beta = 0.5;
  EXPECT_EQ(make_launch(d, t, x).x.beta, 1);
  d.beta = beta_kind::at_call;
  EXPECT_EQ(make_launch(d, t, x).x.beta, 0.5);
  EXPECT_EQ(*grid_of(d, t, x), 12u);
  x.count = 0;
  EXPECT_EQ(*grid_of(d, t, x), 0u);
  x.count = index{1} << 40;
  const auto many = grid_of(d, t, x);
  ASSERT_FALSE(many);
  EXPECT_NE(many.error().message().find("1099511627776"), std::string_view::npos) << many.error().message();
}

}  // namespace
}  // namespace brgemm::cuda
