// The text of kernels compiles by NVRTC for both architectures, and errors say why. No GPU needed; skipped where NVRTC
// is not.
#include "compiler.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "precompiled.hpp"
#include "support/expect_error.hpp"
#include "support/gpu_problem.hpp"

namespace brgemm::cuda {
namespace {

using brgemm_test::expect_error;

desc of_f32() {
  desc d;
  d.m = d.n = d.k = d.lda = d.ldb = d.ldc = 64;
  d.where = place::gpu;
  return d;
}

/// Empty where NVRTC is there.
std::string why_not() {
  const auto there = check_compiler({8, 0});
  return there ? "" : std::string(there.error().message());
}

bool is_elf(const std::vector<char>& code) { return code.size() > 4 && std::memcmp(code.data(), "\177ELF", 4) == 0; }

int count_of(const std::string& words, const std::string& text) {
  int count = 0;
  for (std::size_t at = text.find(words); at != std::string::npos; at = text.find(words, at + 1)) ++count;
  return count;
}

/// In any of its functions.
void expect_no_spill(const compiled& made) {
  const int functions = count_of("bytes spill stores", made.log);
  EXPECT_GT(functions, 0) << made.log;
  EXPECT_EQ(count_of(" 0 bytes spill stores, 0 bytes spill loads", made.log), functions) << made.log;
}

TEST(GpuCompiler, DrawnDescsCompileForEveryArchitecture) {
  if (const std::string why = why_not(); !why.empty()) GTEST_SKIP() << why;
  constexpr int count = 44;
  double milliseconds = 0, longest = 0;
  for (int i = 0; i < count; ++i) {
    brgemm_test::entropy e(static_cast<std::uint64_t>(i) + 1000);
    const desc d = brgemm_test::draw_desc_for_gpu(e, i, {e.between(1, 100), e.between(1, 100), 9}).d;
    const auto made = compile(d, i < count / 2 ? capability{9, 0} : capability{8, 0});
    ASSERT_TRUE(made) << i << ": " << made.error().message();
    ASSERT_TRUE(is_elf(made->code)) << i;
    expect_no_spill(*made);
    milliseconds += made->milliseconds / count;
    longest = std::max(longest, made->milliseconds);
  }
  std::printf("nvrtc: %d kernels, %.0f ms each, the longest %.0f ms\n", count, milliseconds, longest);
}

TEST(GpuCompiler, EveryStepOfAnEpilogueCompiles) {
  if (const std::string why = why_not(); !why.empty()) GTEST_SKIP() << why;
  for (const type t : {type::f32, type::bf16}) {
    for (int kind = 1; kind < op_kind_count;) {
      desc d = of_f32();
      d.a = d.b = d.c = t;
      for (; kind < op_kind_count && d.epilogue_size < max_epilogue; ++kind) {
        const auto step = static_cast<op_kind>(kind);
        const bool is_matrix = brgemm::detail::is_mask(step) || brgemm::detail::is_matrix(step);
        epilogue_op o = op::make(step);
        if (brgemm::detail::has_operand(step)) {
          o = op::make(step, brgemm::detail::is_mask(step) ? type::u8 : type::f32,
                       step == op_kind::bias ? axis::row : axis::none, is_matrix ? 64 : 0);
        }
        append(d, o);
      }
      const auto made = compile(d, {9, 0});
      EXPECT_TRUE(made) << kind << ": " << made.error().message();
    }
  }
}

/// What the text says of a desc is that desc: the compiler compares their words.
TEST(GpuCompiler, TheTextHasTheWholeDesc) {
  if (const std::string why = why_not(); !why.empty()) GTEST_SKIP() << why;
  desc d = of_f32();
  d.a = type::u8, d.b = type::s8, d.c = type::f32;
  d.batch = batch_kind::offsets, d.layout_a = layout::transposed, d.layout_b = layout::interleaved;
  d.beta = beta_kind::at_call, d.alpha = alpha_kind::at_call, d.chains = 4, d.m_extent = extent_kind::at_call;
  d.zero_a = d.zero_b = zero_point::at_call;
  append(d, op::bias(axis::row, type::bf16)), append(d, op::leaky_relu(0.1f)), append(d, op::clamp(-1.5f, 7));
  append(d, op::silu_backward(64, type::f16));
  const desc whole = specialised(d);
  std::uint64_t words[sizeof(desc) / 8];
  std::memcpy(words, &whole, sizeof whole);
  std::string source = source_of(whole, {64, 64, 16, 4});
  const std::size_t begin = source.rfind("desc{"), end = source.rfind(",\n");
  const std::string literal = source.substr(begin, end - begin);
  source += "struct words { unsigned long of[" + std::to_string(std::size(words)) + "]; };\n";
  for (std::size_t i = 0; i < std::size(words); ++i) {
    source += "static_assert(std::bit_cast<words>(" + literal + ").of[" + std::to_string(i) +
              "] == " + std::to_string(words[i]) + "ul);\n";
  }
  const auto made = compile_source(source, {9, 0});
  EXPECT_TRUE(made) << made.error().message();
}

TEST(GpuCompiler, ADeviceNewerThanNvrtcGetsPtx) {
  if (const std::string why = why_not(); !why.empty()) GTEST_SKIP() << why;
  const auto made = compile(of_f32(), {99, 0});
  ASSERT_TRUE(made) << made.error().message();
  const std::string text(made->code.begin(), made->code.end());
  EXPECT_NE(text.find(".visible .entry brgemm_batch_reduce"), std::string::npos) << text.substr(0, 300);
  EXPECT_EQ(text.back(), '\0');
}

/// Eight sums an element take the most registers.
TEST(GpuCompiler, ChainsAreNotSpilled) {
  if (const std::string why = why_not(); !why.empty()) GTEST_SKIP() << why;
  for (const type t : {type::f64, type::f32}) {
    desc d = of_f32();
    d.a = d.b = d.c = t;
    d.chains = 8;
    const auto made = compile(d, {9, 0});
    ASSERT_TRUE(made) << made.error().message();
    expect_no_spill(*made);
  }
}

TEST(GpuCompiler, ErrorsSayWhy) {
  if (const std::string why = why_not(); !why.empty()) GTEST_SKIP() << why;
  expect_error(compile(of_f32(), {7, 5}), errc::unsupported, "capability", {"7.5", "8.0"});
  expect_error(compile_source("int x = y;", {9, 0}), errc::device, "nvrtc", {"sm_90a", "\"y\" is undefined"});
  desc d = of_f32();
  d.n = 0;
  expect_error(compile(d, {9, 0}), errc::invalid_argument, "n", {"0"});
}

TEST(GpuCompiler, TheLibraryBringsKernels) {
  const std::string_view code = precompiled_code();
  for (int i = 0; i < precompiled_count; ++i) {
    EXPECT_NE(code.find(precompiled_name + std::to_string(i)), std::string_view::npos) << i;
    EXPECT_EQ(precompiled_for(precompiled(i).specialised), i);
  }
  EXPECT_EQ(code.find(precompiled_name + std::to_string(precompiled_count)), std::string_view::npos);
  desc d = of_f32();
  for (const auto beta : {beta_kind::zero, beta_kind::one, beta_kind::at_call}) {
    d.beta = beta;
    EXPECT_EQ(precompiled_for(specialised(d)), 2);
  }
  append(d, op::relu());
  EXPECT_EQ(precompiled_for(specialised(d)), -1);
}

/// Run by itself, with BRGEMM_NVRTC naming a file that is not there.
TEST(GpuCompiler, DISABLED_NvrtcIsMissing) {
  expect_error(compile(of_f32(), {9, 0}), errc::unsupported, "nvrtc", {std::getenv("BRGEMM_NVRTC")});
}

}  // namespace
}  // namespace brgemm::cuda
