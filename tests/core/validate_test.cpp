// Every field of the desc, of an epilogue step and of the arguments, wrong in each of its ways: the error names the
// field and the numbers. A field without a case fails to compile or fails the walk.
#include "brgemm/core/validate.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <set>
#include <string>

#include "support/bad_input.hpp"

namespace brgemm_test {
namespace {

TEST(Validate, EveryFieldOfTheDesc) {
  std::set<std::string> seen;
  for (const auto& c : desc_cases()) {
    SCOPED_TRACE(c.field);
    desc d = c.base();
    ASSERT_TRUE(validate(d)) << validate(d).error().message();
    c.change(d);
    expect_error(validate(d), c.code, c.field, c.words);
    seen.insert(c.field);
  }
  expect_a_case_for_each(fields_of(desc{}), seen);
}

TEST(Validate, EveryFieldOfAStep) {
  std::set<std::string> seen;
  for (const auto& c : step_cases()) {
    SCOPED_TRACE(c.field);
    const desc d = with_step(c);
    expect_error(validate(d), c.code, "epilogue", c.words);
    EXPECT_NE(validate(d).error().message().find("epilogue[1]"), std::string_view::npos);
    seen.insert(c.field);
  }
  expect_a_case_for_each(fields_of(epilogue_op{}), seen);
}

TEST(Validate, WhatIsRight) {
  for (const auto& base : {valid_f32, valid_f64, valid_bf16, valid_u8}) EXPECT_TRUE(validate(base()));
  EXPECT_TRUE(validate(desc{}));
  desc d = valid_f32();
  d.k = 0, d.lda = 0;
  EXPECT_TRUE(validate(d));
  d = valid_f32();
  d.m_extent = extent_kind::at_call, d.lda = d.ldb = d.ldc = at_call;
  EXPECT_TRUE(validate(d));
  d = valid_bf16();
  d.c = type::bf16, d.layout_b = layout::interleaved;
  for (const order sums : {order::machine, order::pair, order::tile}) {
    d.sums = sums;
    EXPECT_TRUE(validate(d));
  }
  d = valid_u8();
  d.beta = beta_kind::one, d.chains = 8, d.zero_a = d.zero_b = zero_point::at_call;
  for (const type a : {type::u8, type::s8}) {
    for (const type b : {type::u8, type::s8}) {
      d.a = a, d.b = b;
      EXPECT_TRUE(validate(d));
    }
  }
  d.alpha = alpha_kind::at_call;
  for (const type c : {type::f32, type::bf16}) {
    for (const beta_kind beta : {beta_kind::zero, beta_kind::one, beta_kind::at_call}) {
      d.c = c, d.beta = beta;
      EXPECT_TRUE(validate(d)) << name_of(c);
    }
  }
  d.beta = beta_kind::zero;
  for (const type c : {type::u8, type::s8}) {
    d.c = c;
    EXPECT_TRUE(validate(d)) << name_of(c);
  }
  d = valid_f32();
  for (const auto& o : {op::bias(), op::bias(axis::row, type::bf16), op::add(at_call, type::f16), op::scale(),
                        op::relu_mask(1), op::store(at_call, type::bf16), op::clamp(1, 1), op::gelu_erf_backward(6)}) {
    append(d, o);
    EXPECT_TRUE(validate(d)) << validate(d).error().message();
  }
}

TEST(Validate, EveryFieldOfTheArguments) {
  std::set<std::string> seen;
  int number = 0;
  for (const auto& c : argument_cases()) {
    SCOPED_TRACE(c.field + ", case " + std::to_string(number++));
    call t(c.base(), c.kind);
    put_everything(t);
    const auto before = validate(t.d, t.x);
    ASSERT_TRUE(before) << before.error().message();
    c.change(t);
    const auto r = validate(t.d, t.x);
    if (c.right) {
      EXPECT_TRUE(r) << r.error().message();
    } else {
      expect_error(r, invalid, c.field, c.words);
    }
    seen.insert(c.field);
  }
  expect_a_case_for_each(fields_of(arguments{}), seen);
}

/// Extreme numbers in every field at once: under UndefinedBehaviorSanitizer, no check overflows.
TEST(Validate, ExtremeNumbersAreCheckedWithoutOverflow) {
  constexpr auto top = std::numeric_limits<index>::max();
  constexpr std::array<index, 14> extremes = {0,   1,       2,    5,        6,    -1,    -2,
                                              top, top - 1, -top, -top - 1, huge, -huge, index{1} << 31};
  std::mt19937_64 engine(1);
  const auto number = [&] { return extremes[engine() % extremes.size()]; };
  const std::array bases = {valid_f32, valid_f64, valid_bf16, valid_u8, run_time, with_zero_points, with_operands};
  int right_descs = 0;
  int right_calls = 0;
  for (int round = 0; round < 300000; ++round) {
    call t(bases[engine() % bases.size()](), static_cast<batch_kind>(engine() % 3));
    desc& d = t.d;
    const std::array<index*, 20> fields = {&d.m,
                                           &d.n,
                                           &d.k,
                                           &d.lda,
                                           &d.ldb,
                                           &d.ldc,
                                           &d.stride_a,
                                           &d.stride_b,
                                           &t.x.batch,
                                           &t.x.m,
                                           &t.x.lda,
                                           &t.x.ldb,
                                           &t.x.ldc,
                                           &t.x.operand_ld[0],
                                           &t.x.operand_ld[1],
                                           &d.epilogue[0].ld,
                                           &t.offsets[0].a,
                                           &t.offsets[2].b,
                                           &d.m,
                                           &d.k};
    put_everything(t);
    if (d.layout_b == layout::plain && engine() % 2) d.layout_a = layout::transposed, d.lda = 7;
    if (k_group_of(d.b) > 1 && engine() % 2) d.layout_b = layout::interleaved;
    for (std::size_t changes = engine() % 4; changes > 0; --changes) *fields[engine() % fields.size()] = number();
    if (d.batch != batch_kind::strides) t.x.batch = static_cast<index>(engine() % 4);  // pairs are read
    if (!validate(d)) continue;
    ++right_descs;
    if (validate(d, t.x)) ++right_calls;
  }
  EXPECT_GT(right_descs, 1000);
  EXPECT_GT(right_calls, 1000);
}

/// Overlaps, against a set of the floats of each matrix: none is missed, and with equal leading dimensions none
/// invented.
TEST(Validate, OverlapsAreThoseOfTheElements) {
  std::mt19937_64 engine(2);
  const auto from = [&](int low, int high) {
    return low + static_cast<int>(engine() % static_cast<unsigned>(high - low + 1));
  };
  int overlapping = 0;
  int apart = 0;
  for (int round = 0; round < 100000; ++round) {
    std::array<float, 400> memory;
    std::array<float, 16> b;
    desc d;
    d.m = from(1, 4), d.n = from(1, 4), d.k = from(1, 4);
    d.lda = d.ldc = from(4, 9);
    if (engine() % 4 == 0) d.lda = from(4, 9);
    d.ldb = d.n;
    d.stride_a = from(-40, 40);
    arguments x;
    const int a_begin = 170 + from(-20, 20);
    const int c_begin = 170 + from(-110, 110);
    x.a = memory.data() + a_begin, x.b = b.data(), x.c = memory.data() + c_begin;
    x.batch = from(1, 4);
    std::set<index> of_c;
    for (index i = 0; i < d.m; ++i) {
      for (index j = 0; j < d.n; ++j) of_c.insert(c_begin + i * d.ldc + j);
    }
    bool shared = false;
    for (index e = 0; e < x.batch; ++e) {
      for (index i = 0; i < d.m; ++i) {
        for (index k = 0; k < d.k; ++k) shared |= of_c.contains(a_begin + e * d.stride_a + i * d.lda + k);
      }
    }
    const auto r = validate(d, x);
    ASSERT_TRUE(!shared || !r) << round;
    ASSERT_TRUE(shared || (d.lda != d.ldc && d.m > 1) || r) << round << ' ' << r.error().message();
    (shared ? overlapping : apart) += 1;
  }
  EXPECT_GT(overlapping, 10000);
  EXPECT_GT(apart, 10000);
}

/// C of one row beside the first row of B, and in B's columns, in memory with rows of 16: its own leading dimension
/// says nothing.
TEST(Validate, ASingleRowLiesBetweenRows) {
  std::array<float, 64> memory{};
  std::array<float, 4> a{};
  desc d;
  d.m = 1, d.n = 8, d.k = 4;
  d.lda = 4, d.ldb = 16, d.ldc = 8;
  arguments x;
  x.a = a.data(), x.b = memory.data(), x.c = memory.data() + 8;
  x.batch = 1;
  EXPECT_TRUE(validate(d, x)) << validate(d, x).error().message();
  x.c = memory.data() + 7;
  EXPECT_FALSE(validate(d, x));
  x.c = memory.data() + 9;  // its end is the start of B's second row
  EXPECT_FALSE(validate(d, x));
}

/// A column of C that lies among the entries of A with one large stride: each entry is looked at.
TEST(Validate, CBetweenStridedEntries) {
  call t(valid_f32());
  t.d.stride_a = 100;
  t.x.a = floats(t.a);
  t.x.c = floats(t.a) + 40;  // entries are 0..19, 100..119, 200..219
  EXPECT_TRUE(validate(t.d, t.x)) << validate(t.d, t.x).error().message();
  t.x.c = floats(t.a) + 77;  // ends at 101
  expect_error(validate(t.d, t.x), invalid, "a", {"entry 1"});
}

}  // namespace
}  // namespace brgemm_test
