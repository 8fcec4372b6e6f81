// The desc: equality sees every field and no padding; the steps of an epilogue; the order that machine means.
#include "brgemm/core/desc.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "brgemm/core/cpu.hpp"

namespace brgemm {
namespace {

/// The default with one byte changed, for each byte.
std::vector<desc> one_byte_changed() {
  std::vector<desc> all;
  for (std::size_t byte = 0; byte < sizeof(desc); ++byte) {
    desc d;
    unsigned char bytes[sizeof(desc)];
    std::memcpy(bytes, &d, sizeof d);
    bytes[byte] = static_cast<unsigned char>(bytes[byte] ^ 0x40);
    std::memcpy(&d, bytes, sizeof d);
    all.push_back(d);
  }
  return all;
}

TEST(Desc, EqualitySeesEveryByte) {
  for (const desc& d : one_byte_changed()) {
    EXPECT_FALSE(d == desc{});
    EXPECT_TRUE(d == desc{d});
  }
}

TEST(Desc, FloatsCompareByTheirBits) {
  EXPECT_FALSE(f32_bits(0.0f) == f32_bits(-0.0f));
  EXPECT_TRUE(f32_bits(NAN) == f32_bits(NAN));
  EXPECT_EQ(static_cast<float>(f32_bits(1.5f)), 1.5f);
}

TEST(Desc, StepsAreMadeByFunctions) {
  const epilogue_op bias = op::bias(axis::row, type::bf16);
  EXPECT_EQ(bias.kind, op_kind::bias);
  EXPECT_EQ(bias.along, axis::row);
  EXPECT_EQ(bias.operand, type::bf16);
  EXPECT_EQ(op::add(7).ld, 7);
  EXPECT_EQ(op::scale().along, axis::none);
  EXPECT_EQ(op::relu_mask(3).operand, type::u8);
  EXPECT_EQ(static_cast<float>(op::leaky_relu(0.1f).slope), 0.1f);
  EXPECT_EQ(static_cast<float>(op::clamp(-1, 2).lower), -1.0f);
  EXPECT_EQ(static_cast<float>(op::clamp(-1, 2).upper), 2.0f);
  EXPECT_EQ(op::multiply(5, type::f16).operand, type::f16);
  EXPECT_EQ(op::multiply_mask(2).ld, 2);
  EXPECT_EQ(op::sigmoid().kind, op_kind::sigmoid);
  EXPECT_EQ(op::tanh().kind, op_kind::tanh);
  EXPECT_EQ(op::gelu_erf().kind, op_kind::gelu_erf);
  EXPECT_EQ(op::gelu_tanh().kind, op_kind::gelu_tanh);
  EXPECT_EQ(op::silu().kind, op_kind::silu);
  EXPECT_EQ(op::hardswish().kind, op_kind::hardswish);
}

TEST(Desc, AppendCountsEvenWhatDoesNotFit) {
  desc d;
  for (int i = 0; i < max_epilogue + 2; ++i) append(d, op::relu());
  EXPECT_EQ(d.epilogue_size, max_epilogue + 2);
  for (const auto& o : d.epilogue) EXPECT_EQ(o, op::relu());
}

TEST(Desc, AccumulatorAndGroupFollowTheTypeOfA) {
  desc d;
  EXPECT_EQ(accumulator_of(d), type::f32);
  EXPECT_EQ(k_group_of(d), 1);
  d.a = d.b = type::bf16;
  EXPECT_EQ(accumulator_of(d), type::f32);
  EXPECT_EQ(k_group_of(d), 2);
  d.a = type::u8, d.b = type::s8;
  EXPECT_EQ(accumulator_of(d), type::s32);
  EXPECT_EQ(k_group_of(d), 4);
}

TEST(Desc, MachineOrderIsFixedByTypesNotByShape) {
  desc d;
  for (const type t : {type::f32, type::f64, type::f16, type::u8, type::s8}) {
    d.a = d.b = t;
    EXPECT_EQ(machine_order(d), order::chain);
  }
  d.a = d.b = type::bf16;
  const order fixed = machine_order(d);
  EXPECT_TRUE(fixed == order::pair || fixed == order::tile);
  for (const index size : {1, 16, 333}) {
    d.m = d.n = d.k = size;
    EXPECT_EQ(machine_order(d), fixed);
  }
  d.chains = 2;
  EXPECT_EQ(machine_order(d), order::pair) << "order::tile has one chain";
  for (const order asked : {order::pair, order::tile}) {
    d.sums = asked;
    EXPECT_EQ(machine_order(d), asked);
  }
}

}  // namespace
}  // namespace brgemm
