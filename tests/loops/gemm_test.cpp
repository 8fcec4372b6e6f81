// loops::gemm: the bits of the contract for every backend, thread count and way to store B; products of pieces to the
// bits of docs/numerics.md and within its bounds; what is wrong is said before anything is written.
#include <gtest/gtest.h>

#include <algorithm>
#include <brgemm/backend/amx.hpp>
#include <brgemm/loops/gemm.hpp>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "nn/bad_input.hpp"
#include "support/features.hpp"
#include "support/pieces.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using loops::gemm_desc;

constexpr loops::serial alone;

std::vector<float> random_floats(index count, unsigned seed, int exponents = 3) {
  std::mt19937 e(seed);
  std::uniform_real_distribution<float> mantissa(-1, 1);
  std::uniform_int_distribution<int> exponent(-exponents, exponents);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& v : values) v = std::ldexp(mantissa(e), exponent(e));
  return values;
}

/// A plain product's operands and result; rows of A and C are a few elements longer than they must be.
struct product {
  gemm_desc d;
  std::vector<float> a, b, c;
  explicit product(gemm_desc of, unsigned seed, int exponents = 3) : d(of) {
    if (d.lda == 0) d.lda = d.k + 3;
    if (d.ldc == 0) d.ldc = d.n + 5;
    a = random_floats(d.m * d.lda, seed, exponents);
    b = random_floats(d.k * d.n, seed + 1, exponents);
    c = random_floats(d.m * d.ldc, seed + 2, exponents);
  }
  float a_at(index i, index l) const { return a[static_cast<std::size_t>(i * d.lda + l)]; }
  float b_at(index l, index j) const { return b[static_cast<std::size_t>(l * d.n + j)]; }
};

struct way {
  std::string_view backend = "";
  int threads = 1;
  layout stored = layout::plain;
};

/// C after one call, of pieces after splitting A by itself too; empty where there is no plan.
std::vector<float> result_of(const product& p, const way& w) {
  const auto plan = loops::gemm::plan(p.d, {.backend = w.backend});
  const auto pool = loops::thread_pool::make(w.threads);
  EXPECT_TRUE(plan) << plan.error().message();
  if (!plan || !pool) return {};
  EXPECT_TRUE(w.backend.empty() || plan->backend() == w.backend);
  std::vector<float> b = p.b;
  if (w.stored == layout::transposed) {
    for (index l = 0; l < p.d.k; ++l) {
      for (index j = 0; j < p.d.n; ++j) b[static_cast<std::size_t>(j * p.d.k + l)] = p.b_at(l, j);
    }
  }
  const bool turned = w.stored == layout::transposed;
  const view<const float, 2> stored(b.data(), {turned ? p.d.n : p.d.k, turned ? p.d.k : p.d.n});
  std::vector<std::byte> packed(static_cast<std::size_t>(plan->packed_b_bytes()), std::byte{0xff});
  std::vector<std::byte> workspace(static_cast<std::size_t>(plan->workspace_bytes()), std::byte{0xff});
  std::vector<float> c = p.c;
  const auto data = [](auto& v) { return v.empty() ? nullptr : v.data(); };
  const auto done = plan->pack_b(*pool, stored, w.stored, data(packed));
  EXPECT_TRUE(done) << done.error().message();
  const auto called = (*plan)(*pool, p.d.m, p.d.k == 0 ? nullptr : p.a.data(), data(packed), c.data(), data(workspace));
  EXPECT_TRUE(called) << called.error().message();
  if (p.d.compute == math::f32) return c;
  std::vector<float> again = p.c;
  std::fill(workspace.begin(), workspace.end(), std::byte{0xff});
  const void* const a = p.d.k == 0 ? nullptr : p.a.data();
  EXPECT_TRUE(plan->split_a(*pool, p.d.m, a, data(workspace)));
  EXPECT_TRUE(plan->multiply_pieces(*pool, p.d.m, data(workspace), data(packed), again.data()));
  EXPECT_EQ(std::memcmp(c.data(), again.data(), c.size() * sizeof(float)), 0);
  return c;
}

/// C with each element from `sum(i, j, start)`.
template <class Sum>
std::vector<float> expected(const product& p, Sum&& sum) {
  std::vector<float> c = p.c;
  for (index i = 0; i < p.d.m; ++i) {
    for (index j = 0; j < p.d.n; ++j) {
      float& x = c[static_cast<std::size_t>(i * p.d.ldc + j)];
      x = sum(i, j, p.d.accumulate ? x : 0.0f);
    }
  }
  return c;
}

bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

// ---- f32 ----

constexpr gemm_desc shapes[] = {{.m = 1, .n = 1, .k = 1},     {.m = 3, .n = 70, .k = 33},   {.m = 64, .n = 64, .k = 64},
                                {.m = 65, .n = 129, .k = 31}, {.m = 130, .n = 48, .k = 97}, {.m = 7, .n = 200, .k = 0},
                                {.m = 1, .n = 100, .k = 300}, {.m = 200, .n = 17, .k = 65}};

TEST(Gemm, F32IsOneChainOfFma) {
  for (gemm_desc d : shapes) {
    for (const bool accumulate : {false, true}) {
      d.accumulate = accumulate;
      const product p(d, 1);
      const auto right = expected(p, [&p](index i, index j, float sum) {
        for (index l = 0; l < p.d.k; ++l) sum = std::fma(p.a_at(i, l), p.b_at(l, j), sum);
        return sum;
      });
      for (const int threads : {1, 2, 3}) {
        for (const layout stored : {layout::plain, layout::transposed}) {
          EXPECT_TRUE(same_bits(result_of(p, {"", threads, stored}), right))
              << d.m << " " << d.n << " " << d.k << " " << threads;
        }
      }
    }
  }
}

template <class T>
void expect_right_of(type sums_of, T (*from)(float), double (*to)(T), double tolerance) {
  constexpr index m = 70, n = 130, k = 37;
  for (const type c : {sums_of, element_traits<T>::value}) {
    const auto plan = loops::gemm::plan(
        {.m = m, .n = n, .k = k, .a = element_traits<T>::value, .b = element_traits<T>::value, .c = c});
    ASSERT_TRUE(plan) << plan.error().message();
    const std::vector<float> x = random_floats(m * k, 3, 0), y = random_floats(k * n, 4, 0);
    std::vector<T> a, b;
    for (const float v : x) a.push_back(from(v));
    for (const float v : y) b.push_back(from(v));
    std::vector<std::byte> packed(static_cast<std::size_t>(plan->packed_b_bytes())), result(m * n * 8);
    ASSERT_TRUE(plan->pack_b(alone, view<T, 2>(b.data(), {k, n}), layout::plain, packed.data()));
    ASSERT_TRUE((*plan)(alone, m, a.data(), packed.data(), result.data()));
    for (index i = 0; i < m; ++i) {
      for (index j = 0; j < n; ++j) {
        double sum = 0;
        for (index l = 0; l < k; ++l) {
          sum += to(a[static_cast<std::size_t>(i * k + l)]) * to(b[static_cast<std::size_t>(l * n + j)]);
        }
        const auto at = static_cast<std::size_t>(i * n + j);
        const double got = c == type::f64   ? reinterpret_cast<const double*>(result.data())[at]
                           : c == type::f32 ? static_cast<double>(reinterpret_cast<const float*>(result.data())[at])
                                            : to(reinterpret_cast<const T*>(result.data())[at]);
        ASSERT_NEAR(got, sum, c == sums_of ? 1e-5 : tolerance * std::fabs(sum) + 1e-5)
            << name_of(c).data() << i << " " << j;
      }
    }
  }
}

TEST(Gemm, OtherFloats) {
  expect_right_of<bf16>(
      type::f32, [](float x) { return to_bf16(x); }, [](bf16 x) { return static_cast<double>(to_f32(x)); }, 0x1p-8);
  expect_right_of<f16>(
      type::f32, [](float x) { return to_f16(x); }, [](f16 x) { return static_cast<double>(to_f32(x)); }, 0x1p-11);
  expect_right_of<double>(
      type::f64, [](float x) { return static_cast<double>(x); }, [](double x) { return x; }, 0);
}

TEST(Gemm, OtherTypes) {
  constexpr index m = 70, n = 66, k = 37;
  const auto plan = loops::gemm::plan({.m = m, .n = n, .k = k, .a = type::u8, .b = type::s8, .c = type::s32});
  ASSERT_TRUE(plan) << plan.error().message();
  std::vector<std::uint8_t> a(m * k);
  std::vector<std::int8_t> b(k * n);
  std::vector<std::int32_t> c(m * n, -1);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<std::uint8_t>(i * 37);
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<std::int8_t>(i * 91);
  std::vector<std::byte> packed(static_cast<std::size_t>(plan->packed_b_bytes()));
  ASSERT_TRUE(plan->pack_b(alone, view<const std::int8_t, 2>(b.data(), {k, n}), layout::plain, packed.data()));
  ASSERT_TRUE((*plan)(alone, m, a.data(), packed.data(), c.data()));
  for (index i = 0; i < m; ++i) {
    for (index j = 0; j < n; ++j) {
      std::int32_t sum = 0;
      for (index l = 0; l < k; ++l)
        sum += a[static_cast<std::size_t>(i * k + l)] * b[static_cast<std::size_t>(l * n + j)];
      ASSERT_EQ(c[static_cast<std::size_t>(i * n + j)], sum) << i << " " << j;
    }
  }
}

// ---- pieces ----

float sum_of_pieces_at(const product& p, index i, index j, float c) {
  return sum_of_pieces(
      p.d.compute, p.d.k, c, [&](index l) { return p.a_at(i, l); }, [&](index l) { return p.b_at(l, j); });
}

TEST(Gemm, PiecesAreSummedAsDocumented) {
  const bool emulated = show_tiles();
  std::vector<std::string_view> backends = {""};
  if (backend::amx.runs_here()) backends.push_back(backend::amx.name);
  for (const backend::entry& e : backend::built_in()) {
    if (e.runs_here()) backends.push_back(e.name);
  }
  for (const math how : {math::bf16x2, math::bf16x3}) {
    for (gemm_desc d : shapes) {
      d.compute = how;
      d.accumulate = d.n % 2 == 0;
      const product p(d, 5);
      const auto right = expected(p, [&p](index i, index j, float c) { return sum_of_pieces_at(p, i, j, c); });
      for (const std::string_view backend : backends) {
        if (emulated && backend == backend::amx.name && d.m * d.n * d.k > 300000) continue;
        EXPECT_TRUE(same_bits(result_of(p, {backend, 1, layout::plain}), right))
            << backend << " " << d.m << " " << d.n << " " << d.k;
      }
      EXPECT_TRUE(same_bits(result_of(p, {"", 2, layout::transposed}), right));
      EXPECT_TRUE(same_bits(result_of(p, {"", 3, layout::plain}), right));
    }
  }
}

TEST(Gemm, TilesStayConfiguredFromCallToCall) {
  if (!show_tiles()) GTEST_SKIP() << "loads of configurations are counted where tiles are emulated, and none are here";
  EXPECT_EQ(loops::gemm::plan({.a = type::bf16, .b = type::bf16})->backend(), "amx");
  for (const int threads : {1, 2}) {
    const product p({.m = 192, .n = 128, .k = 40, .compute = math::bf16x3}, 3);
    const std::uint64_t before = tiles::loads_of_configuration;
    result_of(p, {backend::amx.name, threads, layout::plain});
    // Six kernels a call of the plan, which there are two of; each thread loads one and, at the end, that before it.
    EXPECT_EQ(tiles::loads_of_configuration - before, static_cast<std::uint64_t>(2 * threads * 2));
  }
}

/// The largest |computed - exact| / sum |a b|. long double sums of a few thousand f32 products are exact to 2^-50.
double largest_error(const product& p, const std::vector<float>& c) {
  double largest = 0;
  for (index i = 0; i < p.d.m; ++i) {
    for (index j = 0; j < p.d.n; ++j) {
      long double exact = 0, sizes = 0;
      for (index l = 0; l < p.d.k; ++l) {
        const long double term = static_cast<long double>(p.a_at(i, l)) * static_cast<long double>(p.b_at(l, j));
        exact += term;
        sizes += std::fabs(term);
      }
      const auto error = static_cast<double>(
          std::fabs(static_cast<long double>(c[static_cast<std::size_t>(i * p.d.ldc + j)]) - exact) / sizes);
      largest = std::max(largest, error);
    }
  }
  return largest;
}

TEST(Gemm, PiecesAreAsExactAsPromised) {
  for (const index k : {64, 1024, 4096}) {
    double error[3] = {};
    for (const math how : {math::f32, math::bf16x2, math::bf16x3}) {
      const product p({.m = 40, .n = 50, .k = k, .compute = how}, 9, 0);
      const double e = error[static_cast<int>(how)] = largest_error(p, result_of(p, {}));
      const double u = std::ldexp(1.0, -24);
      const double chunks = static_cast<double>((k + 31) / 32);
      // The bounds of docs/numerics.md.
      const double left_out[] = {0, std::ldexp(3.0, -16), std::ldexp(1.0, -23)};
      const double roundings[] = {static_cast<double>(k), 17 + 3 * chunks, 17 + 6 * chunks};
      EXPECT_LT(e, left_out[static_cast<int>(how)] + 1.02 * roundings[static_cast<int>(how)] * u);
    }
    std::printf("[pieces] k = %ld: |error| / sum |ab| at most %.2g by f32, %.2g by bf16x3, %.2g by bf16x2\n", k,
                error[0], error[2], error[1]);
    EXPECT_LT(error[2], error[0]) << "three pieces and order::tile lose less than a chain of f32";
    EXPECT_LT(error[1], 4e-6);
  }
}

/// What a product of one row and one column of `value` and 1 gives.
float product_with_one(float value, math how) {
  product p({.m = 1, .n = 1, .k = 1, .compute = how}, 1);
  p.a[0] = value;
  p.b[0] = 1;
  return result_of(p, {})[0];
}

TEST(Gemm, ThreePiecesHoldEveryFloatInRange) {
  std::mt19937 e(3);
  // Each exponent and sign, many mantissas: one row of A times 1.
  constexpr index count = 1 << 16;
  product p({.m = count, .n = 1, .k = 1, .lda = 1, .ldc = 1, .compute = math::bf16x3}, 1);
  p.b[0] = 1;
  for (int round = 0; round < 20; ++round) {
    for (float& x : p.a) x = std::bit_cast<float>(static_cast<std::uint32_t>(e()));
    const auto c = result_of(p, {});
    for (std::size_t i = 0; i < p.a.size(); ++i) {
      const float x = p.a[i];
      const float size = std::fabs(x);
      if (!(size < std::ldexp(511.0f, 119))) {
        EXPECT_TRUE(std::isnan(c[i])) << x;  // rounds to infinity, or is not finite
      } else if (size >= std::ldexp(1.0f, -103)) {
        EXPECT_EQ(c[i], x) << "three pieces hold it";
      } else {
        EXPECT_LT(std::fabs(c[i] - x), std::ldexp(1.0f, -125)) << x;
      }
    }
  }
}

TEST(Gemm, PiecesAtTheEdges) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float first_to_infinity = std::ldexp(511.0f, 119);
  const float below = std::nextafter(first_to_infinity, 0.0f);
  for (const math how : {math::bf16x2, math::bf16x3}) {
    EXPECT_TRUE(std::isfinite(product_with_one(below, how)));
    for (const float x : {first_to_infinity, infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
      EXPECT_TRUE(std::isnan(product_with_one(x, how))) << x;
    }
    for (const float x : {std::ldexp(1.0f, -127), std::ldexp(-1.0f, -149), 0.0f}) {
      EXPECT_EQ(product_with_one(x, how), 0) << x;
    }
  }
  EXPECT_EQ(product_with_one(std::ldexp(1.0f, -126), math::bf16x3), std::ldexp(1.0f, -126));
}

TEST(Gemm, PiecesOfSmallAndLargeProducts) {
  const auto one_product = [](float x, float y, float c) {
    product p({.m = 1, .n = 1, .k = 1, .accumulate = true, .compute = math::bf16x3}, 1);
    p.a[0] = x, p.b[0] = y, p.c[0] = c;
    return result_of(p, {})[0];
  };
  // Products of pieces below 2^-126 are lost.
  const float x = std::ldexp(1.0f, -62), y = std::ldexp(1.0f + std::ldexp(1.0f, -9), -62);
  EXPECT_LE(std::fabs(one_product(x, y, 0) - x * y), 6 * std::ldexp(1.0f, -126));
  EXPECT_NE(one_product(x, y, 0), x * y);
  // The nearest bf16 may be larger than the element: the product of pieces overflows a little before the product does.
  EXPECT_FALSE(std::isfinite(one_product(0x1.010002p64f, 0x1.fd0002p63f, 0)));
  EXPECT_TRUE(std::isfinite(0x1.010002p64f * 0x1.fd0002p63f));
  // C takes part in each rounding.
  EXPECT_EQ(one_product(1, 1, std::ldexp(1.0f, 27)), std::ldexp(1.0f, 27));
}

// ---- bad input ----

TEST(Gemm, EveryFieldOfTheDesc) {
  constexpr gemm_desc right{.m = 4, .n = 20, .k = 30};
  const struct {
    std::string field;
    std::vector<std::string> words;
    void (*change)(gemm_desc&);
    errc code = errc::invalid_argument;
  } cases[] = {
      {"m", {"m is 0", "1..2^29"}, [](auto& d) { d.m = 0; }},
      {"m", {"m is 536870913"}, [](auto& d) { d.m = (1 << 29) + 1; }},
      {"n", {"n is -7"}, [](auto& d) { d.n = -7; }},
      {"accumulate",
       {"true", "u8"},
       [](auto& d) { d.a = d.c = type::u8, d.b = type::s8, d.accumulate = true; },
       errc::unsupported},
      {"k", {"k is -1", "0..2^29"}, [](auto& d) { d.k = -1; }},
      {"k", {"4611686018427387904"}, [](auto& d) { d.k = index{1} << 62; }},
      {"lda", {"lda is 29", "30"}, [](auto& d) { d.lda = 29; }},
      {"ldc", {"ldc is -1", "20"}, [](auto& d) { d.ldc = -1; }},
      {"ldc", {"536870913"}, [](auto& d) { d.ldc = (1 << 29) + 1; }},
      {"a", {"a is 99"}, [](auto& d) { d.a = static_cast<type>(99); }},
      {"a", {"bf16", "f32"}, [](auto& d) { d.a = d.b = type::bf16, d.compute = math::bf16x3; }, errc::unsupported},
      {"b", {"f32", "f64"}, [](auto& d) { d.b = type::f64; }, errc::unsupported},
      {"b", {"b is 77"}, [](auto& d) { d.b = static_cast<type>(77); }},
      {"c", {"bf16", "f32"}, [](auto& d) { d.c = type::bf16; }, errc::unsupported},
      {"c", {"c is bf16"}, [](auto& d) { d.c = type::bf16, d.compute = math::bf16x2; }, errc::unsupported},
      {"compute", {"compute is 3"}, [](auto& d) { d.compute = static_cast<math>(3); }},
      {"sums", {"pair", "f32"}, [](auto& d) { d.sums = order::pair; }, errc::unsupported},
      {"sums", {"sums is 9"}, [](auto& d) { d.sums = static_cast<order>(9); }},
      {"sums",
       {"pieces", "order::tile"},
       [](auto& d) { d.compute = math::bf16x3, d.sums = order::pair; },
       errc::unsupported},
  };
  std::set<std::string> with_cases;
  for (const auto& c : cases) {
    gemm_desc d = right;
    c.change(d);
    expect_error(loops::gemm::plan(d), c.code, c.field, c.words);
    with_cases.insert(c.field);
  }
  expect_a_case_for_each(NAMES_OF(right, m, n, k, lda, ldc, a, b, c, accumulate, compute, sums), with_cases);
}

TEST(Gemm, ArgumentsOfItsCalls) {
  const auto plan = loops::gemm::plan({.m = 4, .n = 20, .k = 30, .compute = math::bf16x3});
  ASSERT_TRUE(plan);
  filled_memory memory;
  auto* const a = memory.take<float>(4 * 30 * 4);
  auto* const b = memory.take<float>(30 * 20 * 4);
  auto* const c = memory.take<float>(4 * 20 * 4);
  auto* const packed = memory.take<char>(plan->packed_b_bytes());
  auto* const workspace = memory.take<char>(plan->workspace_bytes());
  const view<const float, 2> right(b, {30, 20});
  const view<float, 2> c_of_4(c, {4, 20});
  const auto views = [&](const view<const float, 2>& x, const auto& z) {
    return (*plan)(alone, x, packed, z, workspace);
  };
  constexpr errc bad = errc::invalid_argument;
  expect_error(views({a, {4, 29}}, c_of_4), bad, "a", {"(4,29)", "rows of 30"});
  expect_error(views({a, {4, 30}, {31, 1}}, c_of_4), bad, "a", {"strides (31,1)", "30 apart"});
  expect_error(views({a, {3, 30}}, c_of_4), bad, "c", {"a has 3 rows, c has 4"});
  expect_error(views({a, {4, 30}}, view<float, 2>(c, {4, 20}, {20, 2})), bad, "c", {"(20,2)"});
  expect_error(views({a, {4, 30}}, view<double, 2>(nullptr, {4, 20})), bad, "c", {"f64", "f32"});
  const auto call = [&](index rows, const void* x, const void* y, void* z, void* w) {
    return (*plan)(alone, rows, x, y, z, w);
  };
  constexpr errc wrong = errc::invalid_argument;
  expect_error(call(0, a, packed, c, workspace), wrong, "rows", {"rows is 0", "1..4"});
  expect_error(call(5, a, packed, c, workspace), wrong, "rows", {"rows is 5", "1..4"});
  expect_error(call(4, nullptr, packed, c, workspace), wrong, "a", {"null", "480 bytes"});
  expect_error(call(4, a, nullptr, c, workspace), wrong, "packed_b", {"null"});
  expect_error(call(4, a, packed, nullptr, workspace), wrong, "c", {"null", "320 bytes"});
  expect_error(call(4, a, packed, c, nullptr), wrong, "workspace", {"null", "768 bytes"});
  expect_error(call(4, c, packed, c, workspace), wrong, "c", {"overlaps a"});
  expect_error(call(4, a, packed, c, packed), wrong, "workspace", {"overlaps packed_b"});
  expect_error(call(4, reinterpret_cast<char*>(a) + 2, packed, c, workspace), wrong, "a", {"no multiple of 4"});
  const auto pack = [&](const view<const float, 2>& v, layout stored, void* to) {
    return plan->pack_b(alone, v, stored, to);
  };
  expect_error(pack({b, {20, 30}}, layout::plain, packed), wrong, "b", {"(20,30)", "(30,20)"});
  expect_error(pack({b, {30, 20}, {20, 2}}, layout::plain, packed), wrong, "b", {"(20,2)"});
  expect_error(pack(right, layout::interleaved, packed), wrong, "stored", {"stored is 2"});
  expect_error(pack(right, layout::plain, nullptr), wrong, "packed", {"null"});
  expect_error(pack(right, layout::plain, b), wrong, "packed", {"overlaps b"});
  expect_error(pack({nullptr, {30, 20}}, layout::plain, packed), wrong, "b", {"null"});
  expect_error(plan->pack_b(alone, view<const double, 2>(nullptr, {30, 20}), layout::plain, packed), wrong, "b",
               {"f64", "f32"});
  const auto split = [&](index rows, const void* x, void* to) { return plan->split_a(alone, rows, x, to); };
  expect_error(split(5, a, workspace), wrong, "rows", {"rows is 5", "1..4"});
  expect_error(split(4, nullptr, workspace), wrong, "a", {"null", "480 bytes"});
  expect_error(split(4, a, nullptr), wrong, "pieces", {"null", "768 bytes"});
  expect_error(split(4, a, a), wrong, "pieces", {"overlaps a"});
  const auto multiply = [&](index rows, const void* x, const void* y, void* z) {
    return plan->multiply_pieces(alone, rows, x, y, z);
  };
  expect_error(multiply(0, workspace, packed, c), wrong, "rows", {"rows is 0"});
  expect_error(multiply(4, nullptr, packed, c), wrong, "pieces", {"null", "768 bytes"});
  expect_error(multiply(4, workspace, nullptr, c), wrong, "packed_b", {"null"});
  expect_error(multiply(4, workspace, packed, nullptr), wrong, "c", {"null", "320 bytes"});
  expect_error(multiply(4, c, packed, c), wrong, "c", {"overlaps pieces"});
  const auto plain = loops::gemm::plan({.m = 4, .n = 20, .k = 30});
  ASSERT_TRUE(plain);
  expect_error(plain->split_a(alone, 4, a, workspace), wrong, "compute", {"split_a", "compute is 0"});
  expect_error(plain->multiply_pieces(alone, 4, workspace, packed, c), wrong, "compute", {"multiply_pieces"});
  EXPECT_TRUE(memory.is_untouched());
}

}  // namespace
}  // namespace brgemm_test
