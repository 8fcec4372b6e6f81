// Bad input to make_kernel and to the checked call, on every backend: the same cases as for validate, the same errors,
// and nothing is made or written before the error.
#include "support/bad_input.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "brgemm/kernel/kernel.hpp"

namespace brgemm_test {
namespace {

/// "" for any, and all that run here and that BRGEMM_BACKEND permits.
std::vector<std::string_view> backends() {
  std::vector<std::string_view> all = {""};
  for (const backend::entry& e : backend::built_in()) {
    if (e.runs_here() && make_kernel(desc{}, {.backend = e.name})) all.push_back(e.name);
  }
  return all;
}

void expect_not_made(const desc& d, errc code, const std::string& field, const std::vector<std::string>& words) {
  for (const std::string_view name : backends()) {
    SCOPED_TRACE(name);
    const auto kernels = code_cache_stats().kernels;
    const auto made = make_kernel(d, {.backend = name});
    expect_error(made, code, field, words);
    if (made) continue;
    EXPECT_EQ(made.error().message(), validate(d).error().message());
    EXPECT_EQ(code_cache_stats().kernels, kernels);
  }
}

TEST(MakeKernel, EveryFieldOfTheDesc) {
  std::set<std::string> seen;
  for (const auto& c : desc_cases()) {
    SCOPED_TRACE(c.field);
    desc d = c.base();
    const auto before = make_kernel(d);
    ASSERT_TRUE(before) << before.error().message();
    c.change(d);
    expect_not_made(d, c.code, c.field, c.words);
    seen.insert(c.field);
  }
  expect_a_case_for_each(fields_of(desc{}), seen);
}

TEST(MakeKernel, EveryFieldOfAStep) {
  std::set<std::string> seen;
  for (const auto& c : step_cases()) {
    SCOPED_TRACE(c.field);
    expect_not_made(with_step(c), c.code, "epilogue", c.words);
    seen.insert(c.field);
  }
  expect_a_case_for_each(fields_of(epilogue_op{}), seen);
}

/// What is right, but not for the backend that is named.
TEST(MakeKernel, EveryFieldOfTheOptions) {
  struct options_case {
    std::string field;
    options how;
    errc code;
    std::string error_field;
    std::vector<std::string> words;
    desc d = valid_f32();
  };
  desc transposed = valid_bf16();
  transposed.layout_a = layout::transposed;
  std::vector<options_case> cases = {
      {"backend", {.backend = "none such"}, errc::forbidden, "backend", {"\"none such\"", "not exist"}}};
  for (const std::string_view name : backends()) {
    if (name.empty() || name == "reference") continue;
    cases.push_back({"backend", {name}, unsupported, "layout_a", {std::string(name), "groups of 2 k"}, transposed});
  }
  std::set<std::string> seen;
  for (const auto& c : cases) {
    expect_error(make_kernel(c.d, c.how), c.code, c.error_field, c.words);
    seen.insert(c.field);
  }
  hide_cpu_features("-avx2,-avx512");
  for (const backend::entry& e : backend::built_in()) {
    if (!e.runs_here()) expect_error(make_kernel(desc{}, {.backend = e.name}), errc::forbidden, "backend", {"CPU"});
  }
  hide_cpu_features("");
  expect_a_case_for_each(NAMES_OF(options{}, backend), seen);
}

/// All bytes that a case of the arguments can name, C full of what no kernel writes there.
struct checked_call {
  call memory;
  explicit checked_call(const argument_case& c) : memory(c.base(), c.kind) {
    put_everything(memory);
    c.change(memory);
    std::memset(memory.c.data(), 0xa5, sizeof memory.c);
    std::memset(memory.mask.data(), 0xa5, sizeof memory.mask);
  }
  std::vector<char> bytes() const {
    const auto* const all = reinterpret_cast<const char*>(&memory);
    return {all, all + sizeof memory};
  }
};

TEST(CheckedCall, EveryFieldOfTheArguments) {
  for (const std::string_view name : backends()) {
    std::set<std::string> seen;
    int number = 0;
    for (const auto& c : argument_cases()) {
      SCOPED_TRACE(std::string(name) + ": " + c.field + ", case " + std::to_string(number++));
      checked_call t(c);
      const auto made = make_kernel(t.memory.d, {.backend = name});
      ASSERT_TRUE(made) << made.error().message();
      const auto before = t.bytes();
      const auto r = made->call(t.memory.x);
      if (c.right) {
        EXPECT_TRUE(r) << r.error().message();
      } else {
        expect_error(r, invalid, c.field, c.words);
      }
      EXPECT_EQ(t.bytes() == before, !c.right) << "C is written where there is no error, nothing where there is one";
      seen.insert(c.field);
    }
    expect_a_case_for_each(fields_of(arguments{}), seen);
  }
}

// ---- the checked call with views ----

/// What the call with views is given; a case changes one thing.
struct views_call {
  view<const float, 3> a, b;
  view<float, 2> c;
  call_options o;
};

struct views_case {
  std::string field;
  std::string error_field;
  desc (*base)();
  void (*change)(views_call&);
  std::vector<std::string> words;
};

desc offsets() {
  desc d = valid_f32();
  d.batch = batch_kind::offsets;
  d.stride_a = d.stride_b = 0;
  return d;
}

const views_case views_cases[] = {
    {"a",
     "A",
     valid_f32,
     [](auto& v) {
       v.a = {v.a.data(), {3, 4, 6}};
     },
     {"(4, 6)", "(4, 5)"}},
    {"a",
     "A",
     valid_f32,
     [](auto& v) {
       v.a = {v.a.data(), {3, 4, 5}, {20, 7, 1}};
     },
     {"7", "5"}},
    {"a",
     "A",
     valid_f32,
     [](auto& v) {
       v.a = {v.a.data(), {3, 4, 5}, {20, 5, 2}};
     },
     {"2 apart"}},
    {"a",
     "stride_a",
     valid_f32,
     [](auto& v) {
       v.a = {v.a.data(), {3, 4, 5}, {21, 5, 1}};
     },
     {"21", "20"}},
    {"a",
     "a",
     valid_f32,
     [](auto& v) {
       v.a = {nullptr, {3, 4, 5}};
     },
     {"null"}},
    {"a",
     "a",
     valid_f32,
     [](auto& v) {
       v.a = {v.c.data() - 59, {3, 4, 5}};
     },
     {"entry 2", "overlaps C"}},
    {"b",
     "B",
     valid_f32,
     [](auto& v) {
       v.b = {v.b.data(), {3, 6, 5}};
     },
     {"(6, 5)", "(5, 6)"}},
    {"b",
     "batch",
     valid_f32,
     [](auto& v) {
       v.b = {v.b.data(), {2, 5, 6}};
     },
     {"A has 3", "B 2"}},
    {"b",
     "stride_b",
     valid_f32,
     [](auto& v) {
       v.b = {v.b.data(), {3, 5, 6}, {-30, 6, 1}};
     },
     {"-30", "30"}},
    {"b", "batch", offsets, [](auto&) {}, {"constant strides", "pairs"}},
    {"c",
     "C",
     valid_f32,
     [](auto& v) {
       v.c = {v.c.data(), {3, 6}};
     },
     {"(3, 6)", "(4, 6)"}},
    {"c",
     "C",
     valid_f32,
     [](auto& v) {
       v.c = {v.c.data(), {4, 6}, {9, 1}};
     },
     {"9", "6"}},
    {"c",
     "c",
     valid_f32,
     [](auto& v) {
       v.c = {nullptr, {4, 6}};
     },
     {"null"}},
    {"c",
     "m",
     run_time,
     [](auto& v) {
       v.a = {v.a.data(), {3, 5, 5}, {20, 5, 1}}, v.c = {v.c.data(), {5, 6}};
     },
     {"m is 5", "1..4"}},
    {"column_sums", "column_sums", with_zero_points, [](auto& v) { v.o.column_sums = nullptr; }, {"null"}},
    {"operands", "operand", with_operands, [](auto& v) { v.o.operands[1] = nullptr; }, {"operand[1]", "null"}},
    {"operand_ld", "operand_ld", with_operands, [](auto& v) { v.o.operand_ld[0] = 5; }, {"operand_ld[0] is 5", "6"}},
};

TEST(CheckedCall, EveryView) {
  std::set<std::string> seen;
  for (const auto& c : views_cases) {
    SCOPED_TRACE(c.field + ": " + c.words[0]);
    call t(c.base());
    put_everything(t);
    std::memset(t.c.data(), 0xa5, sizeof t.c);
    views_call v{{floats(t.a), {3, 4, 5}}, {floats(t.b), {3, 5, 6}}, {floats(t.c), {4, 6}}, {}};
    v.o.column_sums = t.sums.data();
    for (int i = 0; i < 3; ++i) v.o.operands[i] = t.x.operand[i], v.o.operand_ld[i] = t.x.operand_ld[i];
    const auto made = make_kernel(c.base());
    ASSERT_TRUE(made) << made.error().message();
    c.change(v);
    const auto before = std::vector<char>(reinterpret_cast<char*>(&t), reinterpret_cast<char*>(&t + 1));
    const bool bytes = made->description().a == type::u8;
    const auto r =
        bytes ? (*made)(view<const std::uint8_t, 3>(reinterpret_cast<const std::uint8_t*>(t.a.data()), {3, 4, 5}),
                        view<const std::int8_t, 3>(reinterpret_cast<const std::int8_t*>(t.b.data()), {3, 5, 6}),
                        view<std::int32_t, 2>(reinterpret_cast<std::int32_t*>(t.c.data()), {4, 6}), v.o)
              : (*made)(v.a, v.b, v.c, v.o);
    expect_error(r, invalid, c.error_field, c.words);
    EXPECT_EQ(before, std::vector<char>(reinterpret_cast<char*>(&t), reinterpret_cast<char*>(&t + 1)));
    seen.insert(c.field);
  }
  auto names = NAMES_OF(call_options{}, alpha, beta, prefetch, zero_a, zero_b, column_sums, operands, operand_ld);
  for (const char* view : {"a", "b", "c"}) names.emplace_back(view);
  expect_a_case_for_each(names, seen, {"alpha", "beta", "prefetch", "zero_a", "zero_b"});
}

}  // namespace
}  // namespace brgemm_test
