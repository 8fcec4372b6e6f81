// make_kernel's choice and errors, the handle, describe and calls with views, names, dump.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "brgemm/kernel/describe.hpp"
#include "brgemm/kernel/dump.hpp"
#include "fake_backend.hpp"
#include "support/features.hpp"

namespace {

using namespace brgemm;

static_assert(sizeof(kernel) == 3 * sizeof(void*));
static_assert(std::is_nothrow_copy_constructible_v<kernel> && std::is_nothrow_move_constructible_v<kernel>);

class Kernel : public testing::Test {
 protected:
  void SetUp() override { fake::register_all(); }
  void TearDown() override {
    restrict_backend("");
    brgemm_test::hide_features("");
  }
};

void expect_error(const result<kernel>& made, errc code, std::string_view field, std::string_view words) {
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), code) << made.error().message();
  EXPECT_EQ(made.error().field(), field) << made.error().message();
  EXPECT_NE(made.error().message().find(words), std::string_view::npos) << made.error().message();
}

// The choice of a backend
// ----------------------------------------------------------------------------------------------

TEST_F(Kernel, AnyIsTheBestThatRunsHereAndIsNeverAnOptIn) {
  const auto k = make_kernel(fake::problem(3));
  ASSERT_TRUE(k);
  for (const backend::entry& e : backend::built_in()) {
    if (e.runs_here() && e.supports(fake::problem(3))) {
      EXPECT_EQ(k->backend(), e.name);
      break;
    }
  }
}

// What the generating backend cannot do is an error with its reason, never the far slower reference.
TEST_F(Kernel, TheReferenceRunsOnlyWhereItIsNamedOrNothingGenerates) {
  desc d;
  d.m = d.n = d.k = d.lda = d.ldb = d.ldc = 24;
  d.layout_a = layout::transposed;
  for (const char* hidden : {"", "-avx512"}) {
    brgemm_test::hide_features(hidden);
    const auto all = backend::built_in();
    const backend::entry& best = *std::find_if(all.begin(), all.end(), [](auto& e) { return e.runs_here(); });
    if (best.name == "reference") continue;  // no AVX2
    for (const type t : {type::bf16, type::u8, type::s8}) {
      d.a = t, d.b = t == type::u8 ? type::s8 : t;
      d.c = t == type::bf16 ? type::f32 : type::s32;
      const std::string words = "backend " + std::string(best.name) + ": A of " + std::string(name_of(t));
      expect_error(make_kernel(d), errc::unsupported, "layout_a", words);
      expect_error(make_kernel(d), errc::unsupported, "layout_a", "use pack_a");
      EXPECT_TRUE(make_kernel(d, {.backend = "reference"}));
    }
  }
  restrict_backend("reference");
  EXPECT_TRUE(make_kernel(d));
  restrict_backend("");
  brgemm_test::hide_features("-avx2");
  const auto k = make_kernel(d);
  ASSERT_TRUE(k);
  EXPECT_EQ(k->backend(), "reference");
}

TEST_F(Kernel, ANamedBackendIsTakenOrAnError) {
  const auto k = make_kernel(fake::problem(3), {.backend = "fake"});
  ASSERT_TRUE(k);
  EXPECT_EQ(k->backend(), "fake");
  EXPECT_EQ(k->order(), order::chain);
  expect_error(make_kernel(fake::problem(3), {.backend = "avx9"}), errc::forbidden, "backend", "avx9");
  expect_error(make_kernel(fake::problem(3), {.backend = "fake_absent"}), errc::forbidden, "backend", "fake_absent");
  desc d;
  d.k = d.lda = 13;
  expect_error(make_kernel(d, {.backend = "fake"}), errc::unsupported, "k", "backend fake: k is 13");
}

TEST_F(Kernel, HiddenFeaturesForbidABackend) {
  hide_cpu_features("-avx2");
  for (const backend::entry& e : backend::built_in()) {
    if (e.runs_here()) continue;
    expect_error(make_kernel(fake::problem(3), {.backend = e.name}), errc::forbidden, "backend", e.name);
  }
  const auto k = make_kernel(fake::problem(3));
  ASSERT_TRUE(k);
  EXPECT_EQ(k->backend(), "reference");
}

TEST_F(Kernel, TheEnvironmentRestricts) {
  restrict_backend("reference");
  const auto k = make_kernel(fake::problem(3));
  ASSERT_TRUE(k);
  EXPECT_EQ(k->backend(), "reference");
  EXPECT_TRUE(make_kernel(fake::problem(3), {.backend = "reference"}));
  expect_error(make_kernel(fake::problem(3), {.backend = "fake"}), errc::forbidden, "backend",
               "BRGEMM_BACKEND permits only \"reference\"");
  restrict_backend("fake");
  EXPECT_EQ(make_kernel(fake::problem(3))->backend(), "fake");
  restrict_backend("rocket");
  expect_error(make_kernel(fake::problem(3)), errc::forbidden, "backend",
               "BRGEMM_BACKEND names the backend \"rocket\"");
  expect_error(make_kernel(fake::problem(3), {.backend = "fake"}), errc::forbidden, "backend", "rocket");
}

/// Run by the next test in a process of its own.
TEST_F(Kernel, DISABLED_SayBackend) {
  const auto k = make_kernel(fake::problem(3));
  std::printf("answer: %s\n", std::string(k ? k->backend() : k.error().message()).c_str());
}

/// What it says with this in the environment, `NAME=value`.
std::string answer_with(const std::string& environment) {
  std::array<char, 4096> self{};
  EXPECT_GT(readlink("/proc/self/exe", self.data(), self.size() - 1), 0);
  const std::string command =
      environment + " '" + self.data() + "' --gtest_also_run_disabled_tests --gtest_filter=Kernel.DISABLED_SayBackend";
  std::FILE* pipe = popen(command.c_str(), "r");
  std::string output;
  std::array<char, 1024> part{};
  while (std::fgets(part.data(), part.size(), pipe) != nullptr) output += part.data();
  pclose(pipe);
  return output;
}

TEST_F(Kernel, BRGEMM_BACKENDIsRead) {
  EXPECT_NE(answer_with("BRGEMM_BACKEND=reference").find("answer: reference"), std::string::npos);
  EXPECT_NE(answer_with("BRGEMM_BACKEND=rocket").find("names the backend \"rocket\""), std::string::npos);
}

/// A word that hides nothing would leave a test of a lesser CPU on this one.
TEST_F(Kernel, BRGEMM_CPUIsReadAndItsUnknownWordsAreErrors) {
  EXPECT_NE(answer_with("BRGEMM_CPU=-avx2").find("answer: reference"), std::string::npos);
  EXPECT_NE(answer_with("BRGEMM_CPU='-avx2, -vnni'").find("answer: BRGEMM_CPU has the word \" -vnni\""),
            std::string::npos);
  EXPECT_NE(answer_with("BRGEMM_CPU=-BF16").find("answer: BRGEMM_CPU has the word \"-BF16\""), std::string::npos);
  EXPECT_NE(answer_with("BRGEMM_CPU=-avx512_bf16").find("the word \"-avx512_bf16\""), std::string::npos);
}

TEST_F(Kernel, RegisteringTwiceIsNothingAndANameIsTakenOnce) {
  const auto count = backend::registered().size();
  EXPECT_TRUE(backend::register_backend(fake::code));
  EXPECT_EQ(backend::registered().size(), count);
  backend::entry other = fake::function;
  other.name = "reference";
  EXPECT_FALSE(backend::register_backend(other));
  other.name = "";
  EXPECT_FALSE(backend::register_backend(other));
  EXPECT_EQ(backend::find("fake")->name, "fake");
  EXPECT_EQ(backend::find("rocket"), nullptr);
}

TEST_F(Kernel, AWrongDescIsAnErrorOfTheField) {
  desc d;
  d.lda = 0;
  expect_error(make_kernel(d), errc::invalid_argument, "lda", "0");
  d = desc{};
  d.beta = static_cast<beta_kind>(77);
  expect_error(make_kernel(d), errc::invalid_argument, "beta", "77");
}

// The handle
// -----------------------------------------------------------------------------------------------------------

TEST_F(Kernel, CopiesMovesAndAssigns) {
  kernel empty;
  EXPECT_FALSE(empty);
  kernel one = *make_kernel(fake::problem(1), {.backend = "fake"});
  kernel two = *make_kernel(fake::problem(2), {.backend = "fake"});
  kernel copy = one;
  EXPECT_EQ(fake::run(copy), 1);
  copy = two;
  EXPECT_EQ(fake::run(copy), 2);
  copy = std::move(one);
  EXPECT_FALSE(one);  // NOLINT: moved from on purpose
  EXPECT_EQ(fake::run(copy), 1);
  kernel& same = copy;
  copy = same;
  EXPECT_EQ(fake::run(copy), 1);
  copy = empty;
  EXPECT_FALSE(copy);
  clear_code_cache();
  EXPECT_EQ(fake::run(two), 2);
  two = {};
  clear_code_cache();
  EXPECT_EQ(code_cache_stats().kernels, 0u);
}

// Views
// ----------------------------------------------------------------------------------------------------------------

class Views : public Kernel {
 protected:
  std::vector<float> a_ = std::vector<float>(2 * 3 * 4, 1.0f);
  std::vector<float> b_ = std::vector<float>(2 * 4 * 5, 2.0f);
  std::vector<float> c_ = std::vector<float>(3 * 5, -7.0f);
  view<const float, 3> A{a_.data(), {2, 3, 4}};  // NOLINT: as the papers write them
  view<float, 3> B{b_.data(), {2, 4, 5}};        // NOLINT
  view<float, 2> C{c_.data(), {3, 5}};           // NOLINT
};

TEST_F(Views, DescribeAndCall) {
  const auto described = describe(A, B, C, {.beta = 0, .epilogue = {op::bias(), op::relu()}});
  ASSERT_TRUE(described) << described.error().message();
  const desc& d = *described;
  EXPECT_EQ(d.m, 3);
  EXPECT_EQ(d.n, 5);
  EXPECT_EQ(d.k, 4);
  EXPECT_EQ(d.lda, 4);
  EXPECT_EQ(d.ldb, 5);
  EXPECT_EQ(d.ldc, 5);
  EXPECT_EQ(d.stride_a, 12);
  EXPECT_EQ(d.stride_b, 20);
  EXPECT_EQ(d.beta, beta_kind::zero);
  EXPECT_EQ(d.epilogue_size, 2);
  EXPECT_EQ(d.epilogue[1], op::relu());
  const auto k = make_kernel(d);
  ASSERT_TRUE(k) << k.error().message();
  const std::vector<float> bias = {0, 1, 2, 3, -100};
  const auto called = (*k)(A, B, C, {.operands = {bias.data()}});
  ASSERT_TRUE(called) << called.error().message();
  for (int i = 0; i < 15; ++i) EXPECT_EQ(c_[static_cast<std::size_t>(i)], i % 5 == 4 ? 0.0f : 16.0f + float(i % 5));
}

TEST_F(Views, RowsAndPrefetchesAreThoseOfTheOptions) {
  const auto d = describe(A, B, C, {.prefetch = 2, .rows = {{0, 2}, {1, 3}}});
  ASSERT_TRUE(d) << d.error().message();
  EXPECT_EQ(d->prefetch, 2);
  EXPECT_EQ(row_ranges(*d), 2);
  const auto k = make_kernel(d);
  ASSERT_TRUE(k) << k.error().message();
  ASSERT_TRUE((*k)(A, B, C, {.prefetch = 80}));
  const auto x = detail::arguments_of(*d, detail::erase(A), detail::erase(B), detail::erase(C), {.prefetch = 80});
  EXPECT_EQ(x->prefetch, 80);
  // The first entry adds to the first two rows, the second one to the last two.
  std::vector<float> right(15, 0.0f);
  for (const std::size_t entry : {0, 1}) {
    for (std::size_t i = entry; i < entry + 2; ++i) {
      for (std::size_t j = 0; j < 5; ++j) {
        for (std::size_t l = 0; l < 4; ++l) {
          right[(i * 5 + j)] += a_[((entry * 3 + i) * 4 + l)] * b_[((entry * 4 + l) * 5 + j)];
        }
      }
    }
  }
  EXPECT_EQ(c_, right);
}

TEST_F(Views, RunTimeBetaAndAlpha) {
  const auto k = make_kernel(describe(A, B, C, {.beta = beta_kind::at_call, .alpha = alpha_kind::at_call}));
  ASSERT_TRUE(k);
  ASSERT_TRUE((*k)(A, B, C, {.alpha = 0.5, .beta = 2}));
  for (float x : c_) EXPECT_EQ(x, -14.0f + 8.0f);
}

TEST_F(Views, RowsGivenAtTheCall) {
  const auto k = make_kernel(describe(A, B, C, {.m_extent = extent_kind::at_call}));
  ASSERT_TRUE(k);
  const auto called =
      (*k)(view<const float, 3>(a_.data(), {2, 2, 4}, {12, 4, 1}), B, view<float, 2>(c_.data(), {2, 5}));
  ASSERT_TRUE(called) << called.error().message();
  EXPECT_EQ(c_[9], 16.0f);
  EXPECT_EQ(c_[10], -7.0f);
  const std::vector<float> more(2 * 4 * 4);
  std::vector<float> c(4 * 5);
  EXPECT_FALSE((*k)(view<const float, 3>(more.data(), {2, 4, 4}, {12, 4, 1}), B, view<float, 2>(c.data(), {4, 5})));
}

// Sums that are too large for an integer, infinite or no number, on each backend as on the reference.
TEST(EightBit, ResultsSaturate) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const std::vector<std::uint8_t> a(4, 255);
  const std::vector<std::int8_t> b(std::size_t{4} * 20, 127);
  std::vector<float> scale = {1e9f, inf, -inf, -1e9f, NAN, -NAN, 16578.0f, 16579.0f, 0.002f, 0.00197f, -0.001f, -0.0f};
  scale.resize(20, 0.5f / 129540);  // of 255 * 127 * 4
  for (const type c : {type::u8, type::s8}) {
    for (const bool relu : {false, true}) {
      desc d;
      d.m = 1, d.n = d.ldb = d.ldc = 20, d.k = d.lda = 4;
      d.a = type::u8, d.b = type::s8, d.c = c;
      d.epilogue[d.epilogue_size++] = op::scale(axis::column);
      if (relu) d.epilogue[d.epilogue_size++] = op::relu();
      const auto result_of = [&](std::string_view backend) {
        std::vector<std::uint8_t> y(20, 7);
        const auto k = make_kernel(d, {.backend = backend});
        EXPECT_TRUE(k) << k.error().message();
        arguments x{.a = a.data(), .b = b.data(), .c = y.data(), .batch = 1};
        x.operand[0] = scale.data();
        if (k) (*k)(x);
        return y;
      };
      const auto right = result_of("reference");
      EXPECT_EQ(right[0], c == type::u8 ? 255 : 127);
      for (const backend::entry& e : backend::built_in()) {
        if (e.runs_here()) {
          EXPECT_EQ(result_of(e.name), right) << e.name << ' ' << relu;
        }
      }
    }
  }
}

TEST_F(Views, TransposedAndInterleaved) {
  const view<const float, 3> at{a_.data(), {2, 4, 3}};
  const view<const float, 3> bt{b_.data(), {2, 5, 4}};
  const auto d = describe(at, bt, C, {.layout_a = layout::transposed, .layout_b = layout::transposed});
  ASSERT_TRUE(d) << d.error().message();
  EXPECT_EQ(d->k, 4);
  EXPECT_EQ(d->lda, 3);
  EXPECT_EQ(d->ldb, 4);
  const auto k = make_kernel(d);
  ASSERT_TRUE(k) << k.error().message();
  ASSERT_TRUE((*k)(at, bt, C));
  EXPECT_EQ(c_[14], 16.0f);
  const std::vector<bf16> a(7, to_bf16(1.0f));
  const std::vector<bf16> b(4 * 5 * 2, to_bf16(1.0f));
  const view<const bf16, 3> va{a.data(), {1, 1, 7}};
  const view<const bf16, 3> vb{b.data(), {1, 4, 10}};
  const view<float, 2> vc{c_.data(), {1, 5}};
  const auto e = describe(va, vb, vc, {.layout_b = layout::interleaved});
  ASSERT_TRUE(e) << e.error().message();
  EXPECT_EQ(e->ldb, 5);
  const auto l = make_kernel(e);
  ASSERT_TRUE(l) << l.error().message();
  const auto called = (*l)(va, vb, vc);
  ASSERT_TRUE(called) << called.error().message();
  // Pairs of k in both: a multiple of 2. With a plain B, or one stored (n,k), its own k; the last pair of A lacks one.
  const view<const bf16, 3> ia{a.data(), {1, 2, 2}};
  const auto both = describe(ia, view<const bf16, 3>{b.data(), {1, 2, 10}}, vc,
                             {.layout_a = layout::interleaved, .layout_b = layout::interleaved});
  ASSERT_TRUE(both) << both.error().message();
  EXPECT_EQ(both->k, 4);
  EXPECT_EQ(both->lda, 1);
  const view<const bf16, 3> plain{b.data(), {1, 3, 5}};
  const auto odd = make_kernel(describe(ia, plain, vc, {.layout_a = layout::interleaved}));
  ASSERT_TRUE(odd) << odd.error().message();
  ASSERT_TRUE((*odd)(ia, plain, vc));
  EXPECT_EQ(c_[4], 3.0f);
  const view<const bf16, 3> turned{b.data(), {1, 5, 3}};
  const auto by = describe(ia, turned, vc, {.layout_a = layout::interleaved, .layout_b = layout::transposed});
  ASSERT_TRUE(by) << by.error().message();
  EXPECT_EQ(by->k, 3);
  expect_error(
      make_kernel(describe(ia, view<const bf16, 3>{b.data(), {1, 5, 5}}, vc, {.layout_a = layout::interleaved})),
      errc::invalid_argument, "A", "(3, 2)");
}

TEST_F(Views, AnotherBetaThan0Or1IsAnError) {
  expect_error(make_kernel(describe(A, B, C, {.beta = 2})), errc::invalid_argument, "beta", "beta is 2;");
  expect_error(make_kernel(describe(A, B, C, {.beta = -1})), errc::invalid_argument, "beta", "beta is -1;");
  expect_error(make_kernel(describe(A, B, C, {.beta = 0.5})), errc::invalid_argument, "beta", "beta is 0.5;");
}

TEST_F(Views, TooLongAnEpilogueIsAnError) {
  const auto o = op::relu();
  expect_error(make_kernel(describe(A, B, C, {.epilogue = {o, o, o, o, o, o, o, o, o}})), errc::invalid_argument,
               "epilogue_size", "9");
}

/// A kernel for them would read or write beyond one of them.
TEST_F(Views, ViewsThatDoNotFitEachOtherHaveNoDesc) {
  const auto expect = [](const result<desc>& d, std::string_view field, std::string_view words) {
    ASSERT_FALSE(d) << field << ' ' << words;
    expect_error(make_kernel(d), errc::invalid_argument, field, words);
  };
  const float* a = a_.data();
  float* b = b_.data();
  float* c = c_.data();
  using va = view<const float, 3>;
  using vb = view<float, 3>;
  using vc = view<float, 2>;
  expect(describe(A, vb(b, {2, 3, 5}), C), "B", "(3, 5)");                 // k
  expect(describe(va(a, {2, 3, 5}), B, C), "B", "(4, 5)");                 // k
  expect(describe(A, vb(b, {2, 4, 6}), C), "B", "(4, 6)");                 // n
  expect(describe(A, B, vc(c, {3, 4})), "B", "(4, 5)");                    // n
  expect(describe(va(a, {2, 2, 4}), B, C), "A", "(2, 4)");                 // m
  expect(describe(A, B, vc(c, {2, 5})), "A", "(3, 4)");                    // m
  expect(describe(A, vb(b, {1, 4, 5}), C), "batch", "2 entries, B 1");     // batch
  expect(describe(va(a, {-1, 3, 4}), vb(b, {-1, 4, 5}), C), "A", "-1");    // batch
  expect(describe(A, B, vc(c, {3, 5}, {10, 2})), "C", "2 apart");          // columns
  expect(describe(va(a, {2, 3, 4}, {12, 1, 3}), B, C), "A", "3 apart");    // columns, as of a transposed A
  expect(describe(A, vb(b, {2, 4, 5}, {20, 5, -1}), C), "B", "-1 apart");  // columns
  expect(describe(va(a + 8, {2, 3, 4}, {12, -1, 1}), B, C), "lda", "-1");  // -1 stands for at_call in a desc
  expect(describe(A, vb(b + 8, {2, 4, 5}, {20, -1, 1}), C), "ldb", "-1");
  expect(describe(A, B, vc(c + 8, {3, 5}, {-1, 1})), "ldc", "-1");
  // By their layout, and with groups of k.
  expect(describe(A, B, C, {.layout_a = layout::transposed}), "A", "(3, 4)");
  expect(describe(A, B, C, {.layout_b = layout::transposed}), "B", "(4, 5)");
  const std::vector<bf16> narrow(64);
  const view<const bf16, 3> na{narrow.data(), {1, 3, 7}};
  using nb = view<const bf16, 3>;
  EXPECT_TRUE(describe(na, nb(narrow.data(), {1, 4, 10}), C, {.layout_b = layout::interleaved}));
  expect(describe(na, nb(narrow.data(), {1, 3, 10}), C, {.layout_b = layout::interleaved}), "B", "(3, 10)");
  expect(describe(na, nb(narrow.data(), {1, 4, 5}), C, {.layout_b = layout::interleaved}), "B", "(4, 5)");
  expect(describe(na, nb(narrow.data(), {1, 4, 10}, {44, 11, 1}), C, {.layout_b = layout::interleaved}), "B", "11");
  // What is wrong with the desc itself, make_kernel tells.
  expect_error(make_kernel(describe(va(a, {2, -3, 4}), B, vc(c, {-3, 5}))), errc::invalid_argument, "m", "-3");
  EXPECT_TRUE(make_kernel(describe(va(nullptr, {0, 3, 4}), vb(nullptr, {0, 4, 5}), C)));
  EXPECT_TRUE(make_kernel(describe(va(nullptr, {2, 3, 0}), vb(nullptr, {2, 0, 5}), C)));
}

TEST_F(Views, WrongViewsAreErrorsAndNothingIsWritten) {
  const auto k = make_kernel(describe(A, B, C));
  ASSERT_TRUE(k);
  const auto expect = [&](const result<void>& called, std::string_view field, std::string_view words) {
    ASSERT_FALSE(called);
    EXPECT_EQ(called.error().code(), errc::invalid_argument);
    EXPECT_EQ(called.error().field(), field) << called.error().message();
    EXPECT_NE(called.error().message().find(words), std::string_view::npos) << called.error().message();
    for (float x : c_) ASSERT_EQ(x, -7.0f);
  };
  const float* a = a_.data();
  float* b = b_.data();
  using va = view<const float, 3>;
  using vb = view<float, 3>;
  using vc = view<float, 2>;
  const std::vector<double> wide(24);
  expect((*k)(view<const double, 3>(wide.data(), {2, 3, 4}), B, C), "A", "f64");
  expect((*k)(va(a, {2, 3, 5}), B, C), "A", "(3, 5)");
  expect((*k)(va(a, {2, 4, 3}), B, C), "A", "(4, 3)");
  expect((*k)(va(a, {2, 3, 4}, {12, 5, 1}), B, C), "A", "5");
  expect((*k)(va(a, {2, 3, 4}, {12, 4, 2}), B, C), "A", "2 apart");
  expect((*k)(va(a, {2, 3, 4}, {13, 4, 1}), B, C), "stride_a", "13");
  expect((*k)(A, vb(b, {2, 4, 6}), C), "B", "(4, 6)");
  expect((*k)(A, vb(b, {2, 4, 5}, {21, 5, 1}), C), "stride_b", "21");
  expect((*k)(A, vb(b, {1, 4, 5}), C), "batch", "2 entries");
  expect((*k)(A, B, vc(c_.data(), {3, 4})), "C", "(3, 4)");
  expect((*k)(A, B, vc(c_.data(), {3, 5}, {6, 1})), "C", "6");
  expect((*k)(va(nullptr, {2, 3, 4}), B, C), "a", "");
  expect((*k)(A, vb(c_.data(), {2, 4, 5}), C), "b", "overlap");
  desc pairs = *describe(A, B, C);
  pairs.batch = batch_kind::addresses;
  pairs.stride_a = pairs.stride_b = 0;
  const auto by_pairs = make_kernel(pairs);
  ASSERT_TRUE(by_pairs);
  expect((*by_pairs)(A, B, C), "batch", "pairs");
}

// Names and dumps
// --------------------------------------------------------------------------------------------------------

TEST(Name, SaysWhatIsUsualAndWhatIsNot) {
  desc d;
  d.m = 64;
  d.n = d.ldb = d.ldc = 48;
  d.k = d.lda = 64;
  d.stride_a = 64 * 64;
  d.stride_b = 64 * 48;
  d.beta = beta_kind::one;
  append(d, op::relu());
  EXPECT_EQ(std::string_view(name_of(d)), "brgemm_f32_64x48x64_strd_b1_relu");
  d.batch = batch_kind::offsets;
  d.stride_a = d.stride_b = 0;
  d.a = type::u8;
  d.b = type::s8;
  d.c = type::bf16;
  d.ldc = 50;
  d.lda = at_call;
  d.layout_b = layout::interleaved;
  d.m_extent = extent_kind::at_call;
  d.epilogue[0] = op::bias(axis::row, type::bf16);
  EXPECT_EQ(std::string_view(name_of(d)), "brgemm_u8s8bf16_upto64x48x64_offs_b1_bi_ldax_ldc50_biasrowbf16");
}

/// Each field, changed alone, changes the name: two kernels in a profile can be told apart.
TEST(Name, EveryFieldShows) {
  desc base;
  base.m = 9;
  base.n = base.ldb = base.ldc = 8;
  base.k = base.lda = 7;
  base.stride_a = 63;
  base.stride_b = 56;
  append(base, op::clamp(0, 1));
  append(base, op::add(8));
  const std::string usual = name_of(base).c_str();
  const auto differs = [&](auto change) {
    desc d = base;
    change(d);
    return usual != name_of(d).c_str();
  };
  EXPECT_TRUE(differs([](desc& d) { d.m = 10; }));
  EXPECT_TRUE(differs([](desc& d) { d.n = 10; }));
  EXPECT_TRUE(differs([](desc& d) { d.k = 10; }));
  EXPECT_TRUE(differs([](desc& d) { d.lda = 10; }));
  EXPECT_TRUE(differs([](desc& d) { d.ldb = 10; }));
  EXPECT_TRUE(differs([](desc& d) { d.ldc = 10; }));
  EXPECT_TRUE(differs([](desc& d) { d.stride_a = 10; }));
  EXPECT_TRUE(differs([](desc& d) { d.stride_b = 10; }));
  EXPECT_TRUE(differs([](desc& d) { d.a = type::bf16; }));
  EXPECT_TRUE(differs([](desc& d) { d.b = type::bf16; }));
  EXPECT_TRUE(differs([](desc& d) { d.c = type::bf16; }));
  EXPECT_TRUE(differs([](desc& d) { d.batch = batch_kind::addresses; }));
  EXPECT_TRUE(differs([](desc& d) { d.layout_a = layout::transposed; }));
  EXPECT_TRUE(differs([](desc& d) { d.layout_b = layout::transposed; }));
  EXPECT_TRUE(differs([](desc& d) { d.beta = beta_kind::at_call; }));
  EXPECT_TRUE(differs([](desc& d) { d.alpha = alpha_kind::at_call; }));
  EXPECT_TRUE(differs([](desc& d) { d.sums = order::tile; }));
  EXPECT_TRUE(differs([](desc& d) { d.chains = 2; }));
  EXPECT_TRUE(differs([](desc& d) { d.m_extent = extent_kind::at_call; }));
  EXPECT_TRUE(differs([](desc& d) { d.zero_a = zero_point::at_call; }));
  EXPECT_TRUE(differs([](desc& d) { d.zero_b = zero_point::at_call; }));
  EXPECT_TRUE(differs([](desc& d) { d.where = place::gpu; }));
  EXPECT_TRUE(differs([](desc& d) { d.write_c = write_kind::streaming; }));
  EXPECT_TRUE(differs([](desc& d) { d.line = 3, d.line_step = 5; }));
  EXPECT_TRUE(differs([](desc& d) { d.k_step = 2; }));
  EXPECT_TRUE(differs([](desc& d) { d.prefetch = 1; }));
  EXPECT_TRUE(differs([](desc& d) { d.epilogue_size = 1; }));
  EXPECT_TRUE(differs([](desc& d) { d.epilogue[0].upper = 2; }));
  EXPECT_TRUE(differs([](desc& d) { d.epilogue[0].lower = -1; }));
  EXPECT_TRUE(differs([](desc& d) { d.epilogue[1].ld = at_call; }));
  EXPECT_TRUE(differs([](desc& d) { d.epilogue[1].operand = type::bf16; }));
  EXPECT_TRUE(differs([](desc& d) { d.epilogue[1].along = axis::row; }));
  EXPECT_TRUE(differs([](desc& d) { d.epilogue[1].kind = op_kind::multiply; }));
}

TEST_F(Kernel, DumpShowsCodeAndWords) {
  auto k = make_kernel(fake::problem(5), {.backend = "fake"});
  ASSERT_TRUE(k);
  auto d = dump(*k);
  ASSERT_TRUE(d);
  *k = {};
  clear_code_cache();  // the dump holds it
  ASSERT_EQ(d->code().size(), 20u);
  EXPECT_EQ(d->code()[0], 0xf3);
  EXPECT_EQ(d->code()[19], 0xc3);
  EXPECT_EQ(d->text(), "stores 5");
  EXPECT_FALSE(dump(kernel()));
  const auto function = make_kernel(fake::problem(5), {.backend = "fake_function"});
  EXPECT_TRUE(dump(*function)->code().empty());
}

}  // namespace
