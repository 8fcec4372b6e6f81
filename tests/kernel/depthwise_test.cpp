// layout::depthwise: every backend against plain loops over integers, whose sums are exact; order, views and errors.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <brgemm/kernel/describe.hpp>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "support/expect_error.hpp"
#include "support/features.hpp"
#include "support/guarded_memory.hpp"

namespace {

using namespace brgemm;
using brgemm_test::expect_error;

struct shape {
  brgemm::index m, n, k, batch;
};
constexpr shape shapes[] = {{1, 1, 1, 1},    {7, 64, 1, 9},  {28, 16, 1, 3}, {5, 17, 3, 3},  {3, 40, 14, 2},
                            {1, 3, 1, 25},   {64, 64, 1, 9}, {2, 100, 5, 1}, {13, 31, 2, 0}, {3, 8, 0, 4},
                            {3, 128, 12, 2}, {8, 48, 3, 3},  {2, 33, 4, 2},  {3, 20, 8, 1},  {5, 112, 7, 2}};

/// C = 3 + sum over entries: entry i reads A from row i, as the taps of a row do, and row block i of B.
template <class A, class B, class C>
void expect_plain_loops(const shape& s, layout stored, const char* backend) {
  constexpr brgemm::index room = 5;  // between rows of A
  std::mt19937 engine(1);
  const auto draw = [&engine]<class T>(T) {
    const int x = static_cast<int>(engine() % 9) - (std::is_same_v<T, std::uint8_t> ? 0 : 4);
    if constexpr (std::is_same_v<T, bf16>) {
      return to_bf16(static_cast<float>(x));
    } else if constexpr (std::is_same_v<T, f16>) {
      return to_f16(static_cast<float>(x));
    } else {
      return static_cast<T>(x);
    }
  };
  const auto number = []<class T>(T x) {
    if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
      return static_cast<double>(to_f32(x));
    } else {
      return static_cast<double>(x);
    }
  };
  const brgemm::index lda = s.n + room;
  std::vector<A> a(static_cast<std::size_t>((s.m + s.k + s.batch) * lda));
  std::vector<B> b(static_cast<std::size_t>((s.k * s.batch + 1) * s.n));
  std::vector<C> c(static_cast<std::size_t>(s.m * s.n), static_cast<C>(3));
  for (A& x : a) x = draw(A{});
  for (B& x : b) x = draw(B{});
  desc d;
  d.m = s.m, d.n = s.n, d.k = s.k, d.lda = lda, d.ldb = s.n, d.ldc = s.n;
  d.stride_a = lda, d.stride_b = s.k * s.n;
  d.a = element_traits<A>::value, d.b = element_traits<B>::value, d.c = element_traits<C>::value;
  d.layout_a = stored;
  d.beta = beta_kind::one;
  const auto k = make_kernel(d, {.backend = backend});
  ASSERT_TRUE(k) << k.error().message();
  EXPECT_EQ(k->order(), order::chain);
  (*k)({.a = a.data(), .b = b.data(), .c = c.data(), .batch = s.batch});
  const auto at = [](brgemm::index i) { return static_cast<std::size_t>(i); };
  for (brgemm::index i = 0; i < s.m; ++i) {
    for (brgemm::index j = 0; j < s.n; ++j) {
      double sum = 3;
      for (brgemm::index e = 0; e < s.batch; ++e) {
        for (brgemm::index q = 0; q < s.k; ++q) {
          const auto row = i + (stored == layout::depthwise ? q : s.k - 1 - q);
          sum += number(a[at((e + row) * lda + j)]) * number(b[at((e * s.k + q) * s.n + j)]);
        }
      }
      ASSERT_EQ(number(c[at(i * s.n + j)]), sum) << backend << " " << name_of(d).c_str() << " " << i << "," << j;
    }
  }
}

template <class A, class B, class C>
void on_every_backend() {
  for (const char* hidden : {"", "-avx512", "-avx512,-f16c"}) {
    brgemm_test::hide_features(hidden);
    for (const auto& backend : backend::built_in()) {
      if (!backend.runs_here() || backend.name == "amx") continue;  // tiles multiply matrices
      for (const shape& s : shapes) {
        expect_plain_loops<A, B, C>(s, layout::depthwise, backend.name.data());
        expect_plain_loops<A, B, C>(s, layout::depthwise_mirrored, backend.name.data());
      }
    }
  }
  brgemm_test::hide_features("");
}

TEST(Depthwise, F32) { on_every_backend<float, float, float>(); }
TEST(Depthwise, F64) { on_every_backend<double, double, double>(); }
TEST(Depthwise, Bf16) { on_every_backend<bf16, bf16, float>(); }
TEST(Depthwise, F16) { on_every_backend<f16, f16, float>(); }
TEST(Depthwise, U8) { on_every_backend<std::uint8_t, std::int8_t, std::int32_t>(); }
TEST(Depthwise, S8) { on_every_backend<std::int8_t, std::int8_t, std::int32_t>(); }
TEST(Depthwise, U8AndF32) { on_every_backend<std::uint8_t, std::int8_t, float>(); }

desc depthwise(brgemm::index m, brgemm::index n, brgemm::index k) {
  desc d;
  d.m = m, d.n = n, d.k = k, d.lda = d.ldb = d.ldc = n;
  d.layout_a = layout::depthwise;
  return d;
}

/// One fma a term: the product is not rounded, and subnormal numbers count, in bf16 too.
TEST(Depthwise, OneFusedTermAfterTheOther) {
  for (const auto& backend : backend::built_in()) {
    if (!backend.runs_here() || backend.name == "amx") continue;  // tiles multiply matrices
    desc d = depthwise(1, 1, 2);
    const float a[] = {1, 1 + 0x1p-12f};
    const float b[] = {-1, 1 + 0x1p-12f};
    float c = 0;
    auto k = make_kernel(d, {.backend = backend.name});
    ASSERT_TRUE(k) << k.error().message();
    (*k)({.a = a, .b = b, .c = &c, .batch = 1});
    EXPECT_EQ(c, 0x1p-11f + 0x1p-24f) << backend.name;
    d = depthwise(1, 1, 1);
    d.a = d.b = type::bf16;
    const bf16 small = {0x0001};
    const bf16 one = to_bf16(1.0f);
    k = make_kernel(d, {.backend = backend.name});
    ASSERT_TRUE(k) << k.error().message();
    (*k)({.a = &small, .b = &one, .c = &c, .batch = 1});
    EXPECT_EQ(c, to_f32(small)) << backend.name;
  }
}

/// Taps of several rows of an image, whose width is 17, at once: C's rows are those taps, of which m / line lines.
/// Pixels may leave some out, as a convolution's stride does.
void expect_lines(brgemm::index m, std::uint32_t line, brgemm::index steps, std::uint32_t k_step) {
  constexpr brgemm::index width = 17, n = 37, batch = 4;
  const auto value = [](brgemm::index i) { return static_cast<float>(i * 37 % 23) - 11; };
  const auto at = [](brgemm::index i) { return static_cast<std::size_t>(i); };
  std::vector<float> a(at((batch * width + m / line * width + m + steps * k_step) * n)), b(at(batch * width * n));
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = value(static_cast<brgemm::index>(i));
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = value(static_cast<brgemm::index>(i) + 5);
  desc d = depthwise(m, n, steps);
  d.line = line, d.line_step = line == 1 ? 2 : width, d.k_step = k_step;
  d.stride_a = d.stride_b = width * n;
  for (const auto& backend : backend::built_in()) {
    if (!backend.runs_here() || backend.name == "amx") continue;  // tiles multiply matrices
    const auto made = make_kernel(d, {.backend = backend.name});
    ASSERT_TRUE(made) << made.error().message();
    std::vector<float> c(at(m * n));
    (*made)({.a = a.data(), .b = b.data(), .c = c.data(), .batch = batch});
    for (brgemm::index i = 0; i < m * n; ++i) {
      float sum = 0;
      for (brgemm::index e = 0; e < batch; ++e) {
        for (brgemm::index q = 0; q < steps; ++q) {
          const brgemm::index row = e * width + i / n / line * d.line_step + i / n % line + q * k_step;
          sum += a[at(row * n + i % n)] * b[at((e * width + q) * n + i % n)];
        }
      }
      ASSERT_EQ(c[at(i)], sum) << backend.name << " " << name_of(d).c_str() << " " << i;
    }
  }
}
TEST(Depthwise, LinesOfRows) {
  for (const brgemm::index m : {3, 6, 9, 12}) {
    for (const brgemm::index steps : {1, 2, 7}) {
      for (const std::uint32_t k_step : {1u, 2u, 3u}) expect_lines(m, 3, steps, k_step);
    }
  }
}
/// Rows of A a constant number of rows apart, as outputs of a stride read them, in several blocks of rows of C.
TEST(Depthwise, LinesOfOneRow) {
  for (const brgemm::index m : {1, 2, 31, 64}) {
    for (const std::uint32_t k_step : {1u, 2u, 3u}) expect_lines(m, 1, 3, k_step);
  }
}
TEST(Depthwise, OneLineAndLongSteps) {
  for (const std::uint32_t m : {3u, 31u, 64u}) expect_lines(m, m, 3, 2);
  expect_lines(6, 3, 3, 8192);
}

/// Generated code has all lines in registers, and in the reach of a displacement; the reference has any.
TEST(Depthwise, TooManyOrFarLines) {
  desc d = depthwise(64, 16, 3);
  d.line = 2, d.line_step = 5;
  expect_error(make_kernel(d, {.backend = "avx2"}), errc::unsupported, "line", {"m = 64"});
  EXPECT_TRUE(make_kernel(d, {.backend = "reference"}));
  d.line = 64, d.line_step = 1;
  EXPECT_TRUE(make_kernel(d, {.backend = "avx2"}));  // one line: all rows are adjacent
  d.m = 4, d.line = 2, d.line_step = brgemm::index{1} << 25;
  expect_error(make_kernel(d, {.backend = "avx2"}), errc::unsupported, "line_step", {"33554432"});
  d.line = 0, d.line_step = 0, d.k_step = 1u << 25;
  expect_error(make_kernel(d, {.backend = "avx2"}), errc::unsupported, "k_step", {"33554432"});
  d.k_step = 8192;
  EXPECT_TRUE(make_kernel(d, {.backend = "avx2"}));
  d.m = 1, d.line = 1, d.line_step = brgemm::index{1} << 62, d.k_step = 1;  // there is no second line
  EXPECT_TRUE(make_kernel(d, {.backend = "avx2"}));
  d.m = 300000, d.line_step = 2;
  EXPECT_TRUE(make_kernel(d, {.backend = "avx2"}));
}

/// Rows of A around the distance from which an instruction's displacement no longer reaches all of them.
TEST(Depthwise, FarRows) {
  constexpr brgemm::index m = 24, n = 16, k = 4, rows = m + k - 1;
  for (const brgemm::index lda : {8387583, 8387584, 16776191, 16776192}) {
    const auto bytes = static_cast<std::size_t>(4 * ((rows - 1) * lda + n));
    void* const memory =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) GTEST_SKIP() << "no " << bytes << " bytes of addresses";
    auto* const a = static_cast<float*>(memory);
    for (brgemm::index i = 0; i < rows * n; ++i) a[i / n * lda + i % n] = static_cast<float>(i);
    const std::vector<float> b(k * n, 2.0f);
    desc d = depthwise(m, n, k);
    d.lda = lda;
    for (const auto& backend : backend::built_in()) {
      if (!backend.runs_here() || backend.name == "amx") continue;  // tiles multiply matrices
      for (const layout l : {layout::depthwise, layout::depthwise_mirrored}) {
        d.layout_a = l;
        std::vector<float> c(m * n);
        const auto made = make_kernel(d, {.backend = backend.name});
        ASSERT_TRUE(made) << made.error().message();
        (*made)({.a = a, .b = b.data(), .c = c.data(), .batch = 1});
        for (brgemm::index i = 0; i < m * n; ++i) {  // 2 * (i + (i + n) + (i + 2n) + (i + 3n))
          ASSERT_EQ(c[static_cast<std::size_t>(i)], static_cast<float>(8 * i + 12 * n)) << backend.name << " " << lda;
        }
      }
    }
    ::munmap(memory, bytes);
  }
}

// Sums that round, so their order shows, next to pages that must not be touched.
TEST(Depthwise, StepsTogetherHaveTheBitsOfTheReference) {
  using brgemm_test::guard;
  std::mt19937 engine(2);
  std::uniform_real_distribution<float> numbers(-1, 1);
  const auto fill = [&](std::byte* at, brgemm::index count) {
    for (brgemm::index i = 0; i < count; ++i) {
      const float x = numbers(engine);
      std::memcpy(at + 4 * i, &x, 4);
    }
    return at;
  };
  const brgemm_test::guarded_memory of_a(1 << 16), of_b(1 << 16), of_c(1 << 16);
  for (const brgemm::index m : {2, 3, 8, 13}) {
    for (const brgemm::index k : {2, 5, 7, 8, 11}) {
      for (const brgemm::index n : {7, 16, 48, 130}) {
        for (const int kind : {0, 1, 2, 3}) {
          const bool m_at_call = kind % 2 != 0;
          desc d = depthwise(m_at_call ? m + 9 : m, n, k);
          if (kind > 1) d.layout_a = layout::depthwise_mirrored;
          d.m_extent = m_at_call ? extent_kind::at_call : extent_kind::fixed;
          d.stride_a = n, d.stride_b = k * n;
          const brgemm::index batch = 2, in_a = (m + k) * n, in_b = batch * k * n, in_c = m * n;
          const guard side = engine() % 2 == 0 ? guard::before : guard::after;
          const std::byte* const a = fill(of_a.place(static_cast<std::size_t>(4 * in_a), side), in_a);
          const std::byte* const b = fill(of_b.place(static_cast<std::size_t>(4 * in_b), side), in_b);
          std::byte* const c = of_c.place(static_cast<std::size_t>(4 * in_c), side);
          const auto bits_of = [&](std::string_view backend) {
            const auto made = make_kernel(d, {.backend = backend});
            EXPECT_TRUE(made) << made.error().message();
            if (made) (*made)({.a = a, .b = b, .c = c, .batch = batch, .m = m});
            return std::vector<std::byte>(c, c + 4 * in_c);
          };
          const auto right = bits_of("reference");
          for (const char* hidden : {"", "-avx512"}) {
            brgemm_test::hide_features(hidden);
            for (const auto& backend : backend::built_in()) {
              if (!backend.runs_here() || backend.name == "amx") continue;  // tiles multiply matrices
              ASSERT_EQ(bits_of(backend.name), right) << backend.name << " " << name_of(d).c_str();
            }
          }
          brgemm_test::hide_features("");
        }
      }
    }
  }
}

TEST(Depthwise, Views) {
  std::vector<float> a(2 * 6 * 10), b(2 * 3 * 8), c(4 * 8);
  const view<const float, 3> va(a.data(), {2, 6, 8}, {60, 10, 1});
  const view<const float, 3> vb(b.data(), {2, 3, 8});
  const view<float, 2> vc(c.data(), {4, 8});
  const auto d = describe(va, vb, vc, {.layout_a = layout::depthwise});
  ASSERT_TRUE(d) << d.error().message();
  EXPECT_EQ(d->k, 3);
  EXPECT_EQ(d->lda, 10);
  EXPECT_EQ(std::string_view(name_of(*d).c_str()), "brgemm_f32_4x8x3_strd_b0_ad_lda10");
  EXPECT_TRUE(make_kernel(*d));
  const view<const float, 3> shorter(a.data(), {2, 5, 8}, {60, 10, 1});
  expect_error(describe(shorter, vb, vc, {.layout_a = layout::depthwise}), errc::invalid_argument, "A", {"5", "6"});
}

/// Two lines of two rows, four rows apart, and steps of two: 1 * 4 + 2 + 2 * 2 rows of A.
TEST(Depthwise, ViewsWithLines) {
  std::vector<float> a(2 * 10 * 8), b(2 * 3 * 8), c(4 * 8);
  const view<const float, 3> va(a.data(), {2, 10, 8});
  const view<const float, 3> vb(b.data(), {2, 3, 8});
  const view<float, 2> vc(c.data(), {4, 8});
  describe_options o{.layout_a = layout::depthwise, .line_step = 4, .line = 2, .k_step = 2};
  const auto d = describe(va, vb, vc, o);
  ASSERT_TRUE(d) << d.error().message();
  EXPECT_EQ(std::string_view(name_of(*d).c_str()), "brgemm_f32_4x8x3_strd_b0_ad_lines2by4_kstep2_by80and24");
  const auto made = make_kernel(*d);
  ASSERT_TRUE(made) << made.error().message();
  // Row 6 of A is that of row 2 of C in step 1, and of no other.
  std::fill(a.begin() + 48, a.begin() + 56, 2.0f), std::fill(b.begin() + 8, b.begin() + 16, 3.0f);
  EXPECT_TRUE((*made)(va, vb, vc));
  for (std::size_t row = 0; row < 4; ++row) EXPECT_EQ(c[8 * row], row == 2 ? 6.0f : 0.0f) << row;
  o.line_step = brgemm::index{1} << 62, o.line = 1;
  expect_error(describe(va, vb, vc, o), errc::invalid_argument, "A", {"10", "9223372036854775807"});
  o.line_step = std::numeric_limits<brgemm::index>::min();
  expect_error(describe(va, vb, vc, o), errc::invalid_argument, "A", {"10"});
}

TEST(Depthwise, BadDescs) {
  const auto expect = [](auto change, errc code, const char* field, const std::vector<std::string>& words) {
    desc d = depthwise(4, 8, 3);
    change(d);
    expect_error(make_kernel(d), code, field, words);
  };
  const auto wrong = errc::invalid_argument;
  const auto missing = errc::unsupported;
  expect([](desc& d) { d.lda = 7; }, wrong, "lda", {"7", "8"});
  expect([](desc& d) { d.layout_b = layout::transposed; }, missing, "layout_b", {"transposed"});
  expect([](desc& d) { d.layout_a = layout::plain, d.layout_b = layout::depthwise; }, wrong, "layout_b", {"only A"});
  expect([](desc& d) { d.chains = 2; }, missing, "chains", {"2"});
  expect([](desc& d) { d.sums = order::tile; }, missing, "sums", {"tile"});
  expect([](desc& d) { d.k = std::numeric_limits<brgemm::index>::max() - 2; }, wrong, "k",
         {"9223372036854775805", "4"});
  expect(
      [](desc& d) {
        d.a = type::u8, d.b = type::s8, d.c = type::s32;
        d.zero_b = zero_point::at_call;
      },
      missing, "zero_b", {"zero point"});
  expect([](desc& d) { d.a = d.b = type::bf16, d.sums = order::pair; }, missing, "sums", {"pair", "chain"});
  desc d = depthwise(4, 8, 3);
  d.a = d.b = type::bf16, d.sums = order::chain;
  EXPECT_TRUE(make_kernel(d));
  expect_error(backend::amx.supports(d), missing, "layout_a", {"depthwise"});
}

}  // namespace
