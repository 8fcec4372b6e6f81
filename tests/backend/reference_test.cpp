// The reference against oracles that are not its own code: sums in a wider type with a proved bound, the contract's
// orders written out element by element, exact integers, and the CPU's own bf16 instruction.
#include "brgemm/backend/reference.hpp"

#include <gtest/gtest.h>
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "support/guarded_memory.hpp"

namespace brgemm {
namespace {

using brgemm_test::guard;
using brgemm_test::guarded_memory;

std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }

void write(type t, void* data, index i, double value) {
  switch (t) {
    case type::f32: static_cast<float*>(data)[i] = static_cast<float>(value); break;
    case type::f64: static_cast<double*>(data)[i] = value; break;
    case type::bf16: static_cast<bf16*>(data)[i] = to_bf16(static_cast<float>(value)); break;
    case type::f16: static_cast<f16*>(data)[i] = to_f16(static_cast<float>(value)); break;
    case type::s8: static_cast<std::int8_t*>(data)[i] = static_cast<std::int8_t>(value); break;
    case type::u8: static_cast<std::uint8_t*>(data)[i] = static_cast<std::uint8_t>(value); break;
    case type::s32: static_cast<std::int32_t*>(data)[i] = static_cast<std::int32_t>(value); break;
    case type::e4m3: static_cast<e4m3*>(data)[i] = to_e4m3(static_cast<float>(value)); break;
    case type::e5m2: static_cast<e5m2*>(data)[i] = to_e5m2(static_cast<float>(value)); break;
    case type::tf32: static_cast<tf32*>(data)[i] = {static_cast<float>(value)}; break;
  }
}

double read(type t, const void* data, index i) {
  switch (t) {
    case type::f32: return static_cast<double>(static_cast<const float*>(data)[i]);
    case type::f64: return static_cast<const double*>(data)[i];
    case type::bf16: return static_cast<double>(to_f32(static_cast<const bf16*>(data)[i]));
    case type::f16: return static_cast<double>(to_f32(static_cast<const f16*>(data)[i]));
    case type::s8: return static_cast<const std::int8_t*>(data)[i];
    case type::u8: return static_cast<const std::uint8_t*>(data)[i];
    case type::s32: return static_cast<const std::int32_t*>(data)[i];
    case type::e4m3: return static_cast<double>(to_f32(static_cast<const e4m3*>(data)[i]));
    case type::e5m2: return static_cast<double>(to_f32(static_cast<const e5m2*>(data)[i]));
    case type::tf32: return static_cast<double>(to_f32(static_cast<const tf32*>(data)[i]));
  }
  return 0;
}

class random_source {
 public:
  explicit random_source(std::uint64_t seed) : engine_(seed) {}
  index from(index low, index high) { return std::uniform_int_distribution<index>(low, high)(engine_); }
  template <class T, std::size_t N>
  T one_of(const std::array<T, N>& values) {
    return values[static_cast<std::size_t>(from(0, static_cast<index>(N) - 1))];
  }
  bool coin() { return from(0, 1) == 1; }
  /// A value of the type: integers over their whole range, else of magnitude 1/16 to 8 with a full mantissa.
  double value(type t) {
    if (t == type::s8) return static_cast<double>(from(-128, 127));
    if (t == type::u8) return static_cast<double>(from(0, 255));
    if (t == type::s32) return static_cast<double>(from(-(index{1} << 31), (index{1} << 31) - 1));
    const double x = std::ldexp(std::uniform_real_distribution<double>(1, 2)(engine_), static_cast<int>(from(-4, 2)));
    double kept = 0;
    write(t, &kept, 0, coin() ? x : -x);
    return read(t, &kept, 0);
  }

 private:
  std::mt19937_64 engine_;
};

/// One call: a desc, the matrices' values apart from any layout, and memory in which they lie as the desc says.
struct call {
  desc d;
  arguments x;
  index m = 1;
  std::vector<std::vector<double>> a, b;  // an entry each: (m,k), (k,n)
  std::vector<double> c;                  // (m,n) before the call
  std::vector<address_pair> addresses;
  std::vector<offset_pair> offsets;
  std::vector<std::int32_t> column_sums;
  guarded_memory memory_a{1 << 20}, memory_b{1 << 20}, memory_c{1 << 20};

  double a_at(index e, index i, index k) const { return a[at(e)][at(i * d.k + k)]; }
  double b_at(index e, index k, index j) const { return b[at(e)][at(k * d.n + j)]; }
  double c_before(index i, index j) const { return c[at(i * d.n + j)]; }
  index ldc() const { return d.ldc == at_call ? x.ldc : d.ldc; }
  double c_after(index i, index j) const { return read(d.c, x.c, i * ldc() + j); }
  static std::size_t at(index i) { return static_cast<std::size_t>(i); }
};

/// Elements of one stored matrix of `rows` rows, from the first to the last.
index span_of(index rows, index columns, index ld) { return rows == 0 || columns == 0 ? 0 : (rows - 1) * ld + columns; }

index place_of_a(const desc& d, index lda, index i, index k) {
  const index g = k_group_of(d.a);
  if (d.layout_a == layout::interleaved) return (k / g * lda + i) * g + k % g;
  return d.layout_a == layout::transposed ? k * lda + i : i * lda + k;
}
/// Of groups of k, those that B or A is stored in.
index group_of(const desc& d, layout stored) { return stored == layout::interleaved ? k_group_of(d.a) : 1; }
index place_of_b(const desc& d, index ldb, index k, index j) {
  const index g = k_group_of(d.b);
  switch (d.layout_b) {
    case layout::plain: return k * ldb + j;
    case layout::transposed: return j * ldb + k;
    case layout::interleaved: return (k / g * ldb + j) * g + k % g;
    case layout::depthwise:
    case layout::depthwise_mirrored: break;
  }
  return 0;
}

/// Lays out the entries of A and B and the C of a call, with random values.
void fill(call& t, index batch, random_source& random) {
  const desc& d = t.d;
  const index ga = group_of(d, d.layout_a), g = group_of(d, d.layout_b);
  const index lda = d.lda == at_call ? t.x.lda : d.lda;
  const index ldb = d.ldb == at_call ? t.x.ldb : d.ldb;
  const index span_a =
      ga * (d.layout_a == layout::plain ? span_of(t.m, d.k, lda) : span_of((d.k + ga - 1) / ga, t.m, lda));
  const index span_b =
      g * (d.layout_b == layout::transposed ? span_of(d.n, d.k, ldb) : span_of((d.k + g - 1) / g, d.n, ldb));
  // Entries lie `apart` in memory, in order, backwards, or all in one place.
  const bool strided = d.batch == batch_kind::strides;
  const index apart_a = strided ? std::abs(d.stride_a) : span_a;
  const index apart_b = strided ? std::abs(d.stride_b) : span_b;
  const index distinct_a = strided && d.stride_a == 0 ? std::min<index>(batch, 1) : batch;
  const index distinct_b = strided && d.stride_b == 0 ? std::min<index>(batch, 1) : batch;
  const auto bytes = [](index elements, type type) { return static_cast<std::size_t>(elements * size_of(type)); };
  const guard side = random.coin() ? guard::before : guard::after;
  void* const all_a = t.memory_a.place(bytes(distinct_a == 0 ? 0 : (distinct_a - 1) * apart_a + span_a, d.a), side);
  void* const all_b = t.memory_b.place(bytes(distinct_b == 0 ? 0 : (distinct_b - 1) * apart_b + span_b, d.b), side);
  t.a.clear(), t.b.clear(), t.addresses.clear(), t.offsets.clear();
  t.column_sums.assign(call::at(d.n), 0);
  for (index e = 0; e < batch; ++e) {
    const index slot_a = distinct_a == 1 ? 0 : strided && d.stride_a > 0 ? e : batch - 1 - e;
    const index slot_b = distinct_b == 1 ? 0 : strided && d.stride_b > 0 ? e : batch - 1 - e;
    if (distinct_a == batch || e == 0) {
      t.a.emplace_back();
      for (index i = 0; i < t.m * d.k; ++i) t.a.back().push_back(random.value(d.a));
    } else {
      t.a.push_back(t.a.front());
    }
    if (distinct_b == batch || e == 0) {
      t.b.emplace_back();
      for (index i = 0; i < d.k * d.n; ++i) t.b.back().push_back(random.value(d.b));
    } else {
      t.b.push_back(t.b.front());
    }
    for (index k = 0; k < d.k; ++k) {
      for (index i = 0; i < t.m; ++i) write(d.a, all_a, slot_a * apart_a + place_of_a(d, lda, i, k), t.a_at(e, i, k));
      for (index j = 0; j < d.n; ++j) {
        write(d.b, all_b, slot_b * apart_b + place_of_b(d, ldb, k, j), t.b_at(e, k, j));
        if (d.zero_a == zero_point::at_call) t.column_sums[call::at(j)] += static_cast<std::int32_t>(t.b_at(e, k, j));
      }
    }
    t.offsets.push_back({slot_a * apart_a, slot_b * apart_b});
    t.addresses.push_back({static_cast<std::byte*>(all_a) + bytes(slot_a * apart_a, d.a),
                           static_cast<std::byte*>(all_b) + bytes(slot_b * apart_b, d.b)});
  }
  t.x.batch = batch;
  t.x.a = strided && batch > 0 ? t.addresses[0].a : all_a;
  t.x.b = strided && batch > 0 ? t.addresses[0].b : all_b;
  t.x.pairs = d.batch == batch_kind::addresses ? static_cast<const void*>(t.addresses.data()) : t.offsets.data();
  t.x.column_sums = t.column_sums.data();
  const index span_c = span_of(t.m, d.n, t.ldc());
  t.x.c = t.memory_c.place(bytes(span_c, d.c), side);
  std::memset(t.x.c, 0x5a, bytes(span_c, d.c));
  t.c.clear();
  for (index i = 0; i < t.m; ++i) {
    for (index j = 0; j < d.n; ++j) {
      t.c.push_back(random.value(d.c));
      write(d.c, t.x.c, i * t.ldc() + j, t.c.back());
    }
  }
}

void run(const desc& d, const arguments& x) {
  const auto valid = validate(d, x);
  ASSERT_TRUE(valid) << valid.error().message();
  auto made = backend::reference.make(d, {});
  ASSERT_TRUE(made) << made.error().message();
  (*made).entry(&x, (*made).context);
  (*made).release((*made).context);
}

/// The bytes between the rows of C hold what fill() put there.
void expect_gaps_untouched(const call& t) {
  const auto* const bytes = static_cast<const std::uint8_t*>(t.x.c);
  const index size = size_of(t.d.c);
  for (index i = 0; i + 1 < t.m; ++i) {
    for (index byte = (i * t.ldc() + t.d.n) * size; byte < (i + 1) * t.ldc() * size; ++byte) {
      ASSERT_EQ(bytes[byte], 0x5a) << "row " << i;
    }
  }
}

/// Sizes, layouts, batch kind and run-time values at random; types, order and C are the caller's.
void randomise(call& t, random_source& random) {
  desc& d = t.d;
  d.m = random.from(1, 9);
  d.n = random.coin() ? random.from(1, 20) : random.from(60, 70);
  d.k = random.from(0, 70);
  d.batch = random.one_of(std::array{batch_kind::addresses, batch_kind::offsets, batch_kind::strides});
  d.layout_a = random.coin() ? layout::plain : layout::transposed;
  if (k_group_of(d.a) > 1 && random.from(0, 2) == 0) d.layout_a = layout::interleaved;
  d.layout_b = random.coin() ? layout::plain : layout::transposed;
  if (k_group_of(d.b) > 1 && random.coin()) d.layout_b = layout::interleaved;
  d.chains = random.one_of(std::array<std::uint8_t, 4>{1, 2, 4, 8});
  if (d.sums == order::tile) d.chains = 1;
  t.m = d.m;
  if (random.coin()) d.m_extent = extent_kind::at_call, t.m = random.from(1, d.m), t.x.m = t.m;
  const index ga = group_of(d, d.layout_a), g = group_of(d, d.layout_b);
  const auto choose_ld = [&](index least, index& in_desc, index& in_call) {
    const index ld = least + random.from(0, 3);
    (random.coin() ? in_desc : (in_desc = at_call, in_call)) = ld;
    return ld;
  };
  const index lda = choose_ld(d.layout_a == layout::plain ? d.k : d.m, d.lda, t.x.lda);
  const index ldb = choose_ld(d.layout_b == layout::transposed ? d.k : d.n, d.ldb, t.x.ldb);
  choose_ld(d.n, d.ldc, t.x.ldc);
  if (d.batch == batch_kind::strides) {
    const index rows_a = d.layout_a == layout::plain ? d.m : (d.k + ga - 1) / ga;
    const index rows_b = d.layout_b == layout::transposed ? d.n : (d.k + g - 1) / g;
    d.stride_a = random.from(-1, 1) * (rows_a * lda * ga + random.from(0, 5));
    d.stride_b = random.from(-1, 1) * (rows_b * ldb * g + random.from(0, 5));
  }
}

// ---- Sums of floating point ----

/// The contract's order for one element, written out: f32 and f64 chains, and both orders of bf16. Values lie far from
/// subnormals here; what the bf16 instructions do with those is compared with the instruction itself, below.
template <class Acc>
double contract(const call& t, index i, index j) {
  const desc& d = t.d;
  const Acc beta = d.beta == beta_kind::zero ? Acc{0} : d.beta == beta_kind::one ? Acc{1} : static_cast<Acc>(t.x.beta);
  const bool scaled = d.alpha == alpha_kind::at_call;
  const Acc start = beta == 0 ? Acc{0} : static_cast<Acc>(beta * static_cast<Acc>(t.c_before(i, j)));
  std::vector<Acc> chain(d.chains, Acc{0});
  if (!scaled) chain[0] = start;
  const auto a = [&](index e, index k) { return k < d.k ? static_cast<Acc>(t.a_at(e, i, k)) : Acc{0}; };
  const auto b = [&](index e, index k) { return k < d.k ? static_cast<Acc>(t.b_at(e, k, j)) : Acc{0}; };
  for (index e = 0; e < t.x.batch; ++e) {
    if (machine_order(d) == order::tile) {
      for (index k0 = 0; k0 < d.k; k0 += 32) {
        Acc even = 0;
        Acc odd = 0;
        for (index k = k0; k < std::min(k0 + 32, d.k); k += 2) {
          even = std::fma(a(e, k), b(e, k), even);
          odd = std::fma(a(e, k + 1), b(e, k + 1), odd);
        }
        chain[0] = chain[0] + (even + odd);
      }
    } else if (machine_order(d) == order::pair) {
      for (index k = 0; k < d.k; k += 2) {
        Acc& sum = chain[static_cast<std::size_t>(k / 2 % d.chains)];
        sum = std::fma(a(e, k), b(e, k), std::fma(a(e, k + 1), b(e, k + 1), sum));
      }
    } else {
      for (index k = 0; k < d.k; ++k) {
        Acc& sum = chain[static_cast<std::size_t>(k % d.chains)];
        sum = std::fma(a(e, k), b(e, k), sum);
      }
    }
  }
  Acc sum = chain[0];
  if (d.chains == 2) sum = chain[0] + chain[1];
  if (d.chains == 4) sum = (chain[0] + chain[1]) + (chain[2] + chain[3]);
  if (d.chains == 8) {
    sum = ((chain[0] + chain[1]) + (chain[2] + chain[3])) + ((chain[4] + chain[5]) + (chain[6] + chain[7]));
  }
  if (scaled) sum = std::fma(static_cast<Acc>(t.x.alpha), sum, start);
  double stored = 0;
  write(d.c, &stored, 0, static_cast<double>(sum));
  return read(d.c, &stored, 0);
}

__extension__ typedef __float128 quad;

/// The exact value, and the bound on the distance to it of every order of the contract.
///
/// Let u = 2^-24 (2^-53 for f64). Each term passes through at most R roundings: one a term of the sum (K = batch * k of
/// them), at most 3 in the tree of chains, 2 a chunk of 32 in tile order, beta * C, and alpha. By the standard argument
/// (every rounding is a factor 1 + d, |d| <= u, and products of R such factors lie within 1 +- R u / (1 - R u)), the
/// result is off by at most R u / (1 - R u) times S = |beta C| + |alpha| sum |ab|. Storing as bf16 or f16 is one more
/// rounding, of relative size 2^-8 or 2^-11, of a value that is at most S (1 + R u); below the smallest normal number
/// of f16 the spacing 2^-24 bounds it. 8-bit floats: 2^-4 or 2^-3, and half of 2^-9 or 2^-16; what is beyond the
/// largest becomes the largest. With R u < 2^-10, 1.01 covers the second-order terms.
struct exact {
  double value;
  double bound;
};
exact exact_sum(const call& t, index i, index j) {
  const desc& d = t.d;
  const double alpha = d.alpha == alpha_kind::one ? 1 : d.a == type::f64 ? t.x.alpha : static_cast<float>(t.x.alpha);
  const double at_beta = d.a == type::f64 ? t.x.beta : static_cast<float>(t.x.beta);
  const double beta = d.beta == beta_kind::zero ? 0 : d.beta == beta_kind::one ? 1 : at_beta;
  quad sum = static_cast<quad>(beta) * static_cast<quad>(t.c_before(i, j));
  double magnitude = std::fabs(beta * t.c_before(i, j));
  for (index e = 0; e < t.x.batch; ++e) {
    for (index k = 0; k < d.k; ++k) {
      const double a = t.a_at(e, i, k);
      const double b = t.b_at(e, k, j);
      sum += static_cast<quad>(alpha) * static_cast<quad>(a) * static_cast<quad>(b);
      magnitude += std::fabs(alpha * a * b);
    }
  }
  const double u = d.a == type::f64 ? 0x1p-53 : 0x1p-24;
  const double roundings = static_cast<double>(t.x.batch * d.k + 3 + 2 * t.x.batch * ((d.k + 31) / 32) + 2);
  double bound = 1.01 * roundings * u * magnitude;
  if (d.c == type::bf16) bound += 0x1p-8 * (std::fabs(static_cast<double>(sum)) + bound);
  if (d.c == type::f16) bound += 0x1p-11 * (std::fabs(static_cast<double>(sum)) + bound) + 0x1p-25;
  if (d.c == type::e4m3) bound += 0x1p-4 * (std::fabs(static_cast<double>(sum)) + bound) + 0x1p-10;
  if (d.c == type::e5m2) bound += 0x1p-3 * (std::fabs(static_cast<double>(sum)) + bound) + 0x1p-17;
  const double most = d.c == type::e4m3 ? 448 : d.c == type::e5m2 ? 57344 : HUGE_VAL;
  return {std::clamp(static_cast<double>(sum), -most, most), bound};
}

struct float_types {
  type a;
  type b;
  type c;
  order sums;
};
constexpr std::array float_cases = {
    float_types{type::f32, type::f32, type::f32, order::machine},
    float_types{type::f32, type::f32, type::f32, order::chain},
    float_types{type::f64, type::f64, type::f64, order::machine},
    float_types{type::f16, type::f16, type::f32, order::machine},
    float_types{type::f16, type::f16, type::f16, order::chain},
    float_types{type::bf16, type::bf16, type::f32, order::machine},
    float_types{type::bf16, type::bf16, type::bf16, order::pair},
    float_types{type::bf16, type::bf16, type::f32, order::tile},
    float_types{type::bf16, type::bf16, type::bf16, order::tile},
    float_types{type::tf32, type::tf32, type::f32, order::machine},
    float_types{type::e4m3, type::e4m3, type::f32, order::machine},
    float_types{type::e5m2, type::e4m3, type::bf16, order::chain},
    float_types{type::e4m3, type::e5m2, type::f16, order::machine},
    float_types{type::e4m3, type::e4m3, type::e4m3, order::machine},
    float_types{type::e4m3, type::e5m2, type::e5m2, order::machine},
};

void check_float_case(const float_types& types, random_source& random) {
  call t;
  t.d.a = types.a, t.d.b = types.b;
  t.d.c = types.c;
  t.d.sums = types.sums;
  randomise(t, random);
  t.d.beta = random.one_of(std::array{beta_kind::zero, beta_kind::one, beta_kind::at_call});
  t.d.alpha = random.coin() ? alpha_kind::one : alpha_kind::at_call;
  t.x.beta = random.one_of(std::array{0.0, 1.0, -0.7, 3.1});
  t.x.alpha = random.one_of(std::array{1.0, 0.3, -2.0});
  fill(t, random.from(0, 4), random);
  run(t.d, t.x);
  for (index i = 0; i < t.m; ++i) {
    for (index j = 0; j < t.d.n; ++j) {
      const double value = t.c_after(i, j);
      ASSERT_EQ(value, types.a == type::f64 ? contract<double>(t, i, j) : contract<float>(t, i, j)) << i << ' ' << j;
      const exact e = exact_sum(t, i, j);
      ASSERT_LE(std::fabs(value - e.value), e.bound) << i << ' ' << j;
    }
  }
  expect_gaps_untouched(t);
}

TEST(Reference, FloatSumsHaveTheContractsBitsAndKeepTheBound) {
  random_source random(1);
  for (int round = 0; round < 60; ++round) {
    for (const auto& types : float_cases) {
      check_float_case(types, random);
      if (HasFatalFailure()) {
        FAIL() << name_of(types.a) << " to " << name_of(types.c) << ", order " << static_cast<int>(types.sums)
               << ", round " << round;
      }
    }
  }
}

/// A row of 64 terms in every named way to sum it: they round differently, so that the test above can tell them apart.
TEST(Reference, OrdersDiffer) {
  random_source random(2);
  call t;
  t.d.a = t.d.b = type::bf16;
  t.d.m = t.m = 16, t.d.n = t.d.ldb = t.d.ldc = 16, t.d.k = t.d.lda = 64;
  fill(t, 1, random);
  const auto results = [&](order sums, std::uint8_t chains) {
    t.d.sums = sums;
    t.d.chains = chains;
    run(t.d, t.x);
    std::vector<double> c;
    for (index i = 0; i < 16; ++i) {
      for (index j = 0; j < 16; ++j) c.push_back(t.c_after(i, j));
    }
    return c;
  };
  const std::vector<std::vector<double>> ways = {results(order::pair, 1), results(order::pair, 2),
                                                 results(order::pair, 4), results(order::pair, 8),
                                                 results(order::tile, 1)};
  for (std::size_t x = 0; x < ways.size(); ++x) {
    for (std::size_t y = x + 1; y < ways.size(); ++y) EXPECT_NE(ways[x], ways[y]) << x << ' ' << y;
  }
  t.d.sums = order::machine;
  const order meant = machine_order(t.d);
  EXPECT_EQ(results(order::machine, 1), results(meant, 1));
}

TEST(Reference, BetaZeroDoesNotReadC) {
  random_source random(3);
  for (const beta_kind beta : {beta_kind::zero, beta_kind::at_call}) {
    call t;
    t.d.m = t.m = 3, t.d.n = t.d.ldb = t.d.ldc = 5, t.d.k = t.d.lda = 4;
    t.d.beta = beta;
    fill(t, 2, random);
    for (const double zero : {0.0, -0.0, 1e-300}) {  // the last rounds to 0 in f32
      t.x.beta = zero;
      for (index i = 0; i < 15; ++i) static_cast<float*>(t.x.c)[i] = NAN;
      run(t.d, t.x);
      for (index i = 0; i < 15; ++i) ASSERT_FALSE(std::isnan(static_cast<float*>(t.x.c)[i]));
    }
  }
}

TEST(Reference, NoTermsGiveTheEpilogueOfBetaTimesC) {
  std::array<float, 2> c = {-3, 5};
  std::array<float, 2> bias = {1, 1};
  arguments x;
  x.c = c.data();
  x.operand[0] = bias.data();
  for (const index batch : {0, 3}) {
    desc d;
    d.n = d.ldb = d.ldc = 2;
    d.k = batch == 0 ? 7 : 0;
    d.lda = 7;
    d.beta = beta_kind::one;
    append(d, op::bias());
    append(d, op::relu());
    x.batch = batch;
    c = {-3, 5};
    run(d, x);
    EXPECT_EQ(c[0], 0);
    EXPECT_EQ(c[1], 6);
  }
}

TEST(Reference, ASumThatGoesOnHasTheBitsOfOneCall) {
  random_source random(4);
  for (const type ab : {type::f32, type::f64, type::f16, type::bf16}) {
    call t;
    t.d.a = t.d.b = ab;
    t.d.c = accumulator_of(ab);
    t.d.m = t.m = 4, t.d.n = t.d.ldb = t.d.ldc = 9, t.d.k = t.d.lda = 11;
    t.d.batch = batch_kind::offsets;
    fill(t, 5, random);
    run(t.d, t.x);
    std::vector<double> once;
    for (index i = 0; i < 4 * 9; ++i) once.push_back(read(t.d.c, t.x.c, i));
    t.x.batch = 2;
    run(t.d, t.x);
    t.d.beta = beta_kind::one;
    t.x.pairs = t.offsets.data() + 2;
    t.x.batch = 3;
    run(t.d, t.x);
    for (index i = 0; i < 4 * 9; ++i) ASSERT_EQ(read(t.d.c, t.x.c, i), once[call::at(i)]) << name_of(ab);
  }
}

TEST(Reference, WithAndWithoutFmaInstructionsTheSameBits) {
  random_source random(5);
  for (const auto& types : float_cases) {
    call t;
    t.d.a = types.a, t.d.b = types.b;
    t.d.c = types.c;
    t.d.sums = types.sums;
    t.d.m = t.m = 5, t.d.n = t.d.ldb = t.d.ldc = 17, t.d.k = t.d.lda = 40;
    append(t.d, op::leaky_relu(0.3f));
    fill(t, 2, random);
    run(t.d, t.x);
    std::vector<std::byte> with(call::at(5 * 17 * size_of(types.c)));
    std::memcpy(with.data(), t.x.c, with.size());
    hide_cpu_features("-avx2");
    run(t.d, t.x);
    hide_cpu_features("");
    EXPECT_EQ(std::memcmp(with.data(), t.x.c, with.size()), 0) << name_of(types.a);
  }
}

// ---- The bf16 instruction itself ----

[[gnu::target("avx512f,avx512bf16")]] void instruction(const std::uint32_t* a, const std::uint32_t* b, float* c) {
  __m512bh a_pairs, b_pairs;
  std::memcpy(&a_pairs, a, 64);
  std::memcpy(&b_pairs, b, 64);
  _mm512_storeu_ps(c, _mm512_dpbf16_ps(_mm512_loadu_ps(c), a_pairs, b_pairs));
}

/// Patterns that meet: anything, zeros, subnormals, infinities, the smallest normal numbers, and mid-range exponents.
std::uint16_t hard_bf16(std::mt19937_64& engine) {
  const auto r = static_cast<std::uint16_t>(engine());
  switch (engine() % 8) {
    case 0: return r;
    case 1: return r & 0x8000;
    case 2: return r & 0x807f;
    case 3: return static_cast<std::uint16_t>((r & 0x8000) | 0x7f80);
    case 4: return static_cast<std::uint16_t>((r & 0x80ff) | 0x3f00);
    case 5: return static_cast<std::uint16_t>((r & 0x807f) | 0x0080);
    case 6: return static_cast<std::uint16_t>((r & 0x9fff) | 0x2000);
    default: return static_cast<std::uint16_t>((r & 0x81ff) | 0x1f00);
  }
}

std::uint32_t hard_f32(std::mt19937_64& engine) {
  const auto r = static_cast<std::uint32_t>(engine());
  switch (engine() % 6) {
    case 0: return r;
    case 1: return r & 0x80000000u;
    case 2: return r & 0x807fffffu;
    case 3: return (r & 0x80000000u) + 0x00800000u + (r & 3u);
    case 4: return (r & 0x80000000u) + 0x01000000u - (r & 3u);
    default: return (r & 0x80000000u) | 0x7f800000u;
  }
}

/// One pair whose product is about 2^-151, to be added to about 2^-126: results at the edge of the flush.
void aim_at_the_edge(std::mt19937_64& engine, std::uint32_t& a, std::uint32_t& b, std::uint32_t& c) {
  const auto r = static_cast<std::uint32_t>(engine());
  const std::uint32_t exponent_a = 60 + r % 10;
  const std::uint32_t exponent_b = 254 - 151 - exponent_a + (r >> 8) % 5;  // exponents of a * b: -151 to -147
  a = (r & 0x8000u) | exponent_a << 7 | ((r >> 16) & 0x7fu);
  b = ((r >> 8) & 0x8000u) | exponent_b << 7 | ((r >> 24) & 0x7fu);
  if (engine() % 2) a <<= 16, b <<= 16;
  c = static_cast<std::uint32_t>(engine() & 0x80000000u) + 0x00800000u + static_cast<std::uint32_t>(engine() % 3);
}

TEST(Reference, PairOrderIsTheInstruction) {
  if (!__builtin_cpu_supports("avx512bf16")) GTEST_SKIP() << "no AVX512_BF16 on this CPU";
  constexpr index lanes = 16;
  std::mt19937_64 engine(6);
  desc d;  // C (1,16) += A (1,2) * B (2,16), interleaved: one instruction, with its own A for each of 16 calls
  d.k = d.lda = 2, d.n = d.ldb = d.ldc = lanes;
  d.a = d.b = type::bf16;
  d.layout_b = layout::interleaved;
  d.beta = beta_kind::one;
  d.sums = order::pair;
  auto made = backend::reference.make(d, {});
  ASSERT_TRUE(made);
  long edges = 0;
  for (int round = 0; round < 300000; ++round) {
    alignas(64) std::array<std::uint32_t, lanes> a, b, c;
    const std::uint32_t one_a = static_cast<std::uint32_t>(hard_bf16(engine)) << 16 | hard_bf16(engine);
    for (std::size_t i = 0; i < lanes; ++i) {
      a[i] = one_a;
      b[i] = static_cast<std::uint32_t>(hard_bf16(engine)) << 16 | hard_bf16(engine);
      c[i] = hard_f32(engine);
    }
    if (round % 3 == 0) {
      for (std::size_t i = 0; i < lanes; ++i) aim_at_the_edge(engine, a[0], b[i], c[i]);
      aim_at_the_edge(engine, a[0], b[0], c[0]);
      a.fill(a[0]);
    }
    std::array<float, lanes> expected;
    std::memcpy(expected.data(), c.data(), sizeof expected);
    instruction(a.data(), b.data(), expected.data());
    arguments x;
    x.a = a.data(), x.b = b.data(), x.c = c.data();
    (*made).entry(&x, (*made).context);
    for (std::size_t i = 0; i < lanes; ++i) {
      const float value = std::bit_cast<float>(c[i]);
      if (std::isnan(expected[i]) && std::isnan(value)) continue;
      ASSERT_EQ(bits_of(value), bits_of(expected[i])) << std::hex << one_a << ' ' << b[i];
      edges += std::fabs(value) == 0x1p-126f;
    }
  }
  EXPECT_GT(edges, 1000);
  (*made).release((*made).context);
}

TEST(Reference, TileOrderFlushesToo) {
  const std::array<bf16, 2> a = {bf16{0x0001}, bf16{0x3f80}};  // a subnormal, and 1
  const std::array<bf16, 2> b = {bf16{0x7f00}, bf16{0x8001}};
  float c = 1e-40f;
  desc d;
  d.a = d.b = type::bf16;
  d.k = d.lda = 2;
  d.sums = order::tile;
  d.beta = beta_kind::one;
  arguments x;
  x.a = a.data(), x.b = b.data(), x.c = &c;
  run(d, x);
  EXPECT_EQ(bits_of(c), 0u);
}

// ---- 8-bit ----

constexpr std::array bytes_of_c = {type::s32, type::f32, type::bf16, type::u8, type::s8};

std::int32_t low_32_bits(std::int64_t x) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(x)); }

/// What alpha, beta and C make of an exact sum that became f32, each operation rounded once from exact values.
float with_start(const call& t, float sum, index i, index j) {
  const desc& d = t.d;
  const float beta = d.beta == beta_kind::zero ? 0 : d.beta == beta_kind::one ? 1 : static_cast<float>(t.x.beta);
  const float start = beta == 0 ? 0 : static_cast<float>(static_cast<double>(beta) * t.c_before(i, j));
  if (d.alpha == alpha_kind::one) return static_cast<float>(static_cast<double>(start) + static_cast<double>(sum));
  const auto alpha = static_cast<quad>(static_cast<float>(t.x.alpha));
  return static_cast<float>(alpha * static_cast<quad>(sum) + static_cast<quad>(start));
}

void check_8bit_case(type a, type b, type c, random_source& random) {
  call t;
  t.d.a = a, t.d.b = b, t.d.c = c;
  randomise(t, random);
  if (c == type::s32 && random.coin()) t.d.beta = beta_kind::one;
  if (c != type::s32 && random.coin()) t.d.alpha = alpha_kind::at_call;
  if (c == type::f32 || c == type::bf16) {
    t.d.beta = random.one_of(std::array{beta_kind::zero, beta_kind::one, beta_kind::at_call});
  }
  t.x.alpha = random.one_of(std::array{1.0, 0.3, -2e-4, 0.0});
  t.x.beta = random.one_of(std::array{0.0, -0.0, 1.0, -0.7, 3e4});
  if (random.coin()) t.d.zero_a = zero_point::at_call, t.x.zero_a = static_cast<std::int32_t>(random.from(-300, 300));
  if (t.d.layout_a != layout::interleaved && random.coin())
    t.d.zero_b = zero_point::at_call, t.x.zero_b = static_cast<std::int32_t>(random.from(-300, 300));
  if (random.coin()) t.x.zero_a = std::numeric_limits<std::int32_t>::min() + 5;  // read only where the desc asks
  std::array<float, 70> factors;
  for (float& f : factors) f = static_cast<float>(random.from(1, 40)) * 0x1p-16f;
  if (c != type::s32) append(t.d, op::scale(axis::column)), t.x.operand[0] = factors.data();
  fill(t, random.from(0, 4), random);
  const std::int64_t za = t.d.zero_a == zero_point::at_call ? t.x.zero_a : 0;
  const std::int64_t zb = t.d.zero_b == zero_point::at_call ? t.x.zero_b : 0;
  run(t.d, t.x);
  for (index i = 0; i < t.m; ++i) {
    for (index j = 0; j < t.d.n; ++j) {
      // The int64 may wrap only where za is huge; wrapping is modulo 2^64, so its low 32 bits stay right.
      const bool adds_to_c = c == type::s32 && t.d.beta == beta_kind::one;
      std::uint64_t sum = adds_to_c ? static_cast<std::uint64_t>(std::int64_t(t.c_before(i, j))) : 0;
      for (index e = 0; e < t.x.batch; ++e) {
        for (index k = 0; k < t.d.k; ++k) {
          sum += static_cast<std::uint64_t>(std::int64_t(t.a_at(e, i, k)) - za) *
                 static_cast<std::uint64_t>(std::int64_t(t.b_at(e, k, j)) - zb);
        }
      }
      double expected = low_32_bits(static_cast<std::int64_t>(sum));
      if (c != type::s32) {  // each rounded once: the conversion to f32, alpha and C, the factor, the store
        const float finished = with_start(t, static_cast<float>(expected), i, j);
        const float scaled = finished * factors[static_cast<std::size_t>(j)];
        expected = static_cast<double>(scaled);
        if (c == type::bf16) expected = static_cast<double>(to_f32(to_bf16(scaled)));
        if (c == type::u8) expected = std::nearbyint(std::clamp(expected, 0.0, 255.0));
        if (c == type::s8) expected = std::nearbyint(std::clamp(expected, -128.0, 127.0));
      }
      ASSERT_EQ(t.c_after(i, j), expected) << i << ' ' << j;
    }
  }
  expect_gaps_untouched(t);
}

TEST(Reference, EightBitSumsAreExact) {
  random_source random(7);
  for (int round = 0; round < 15; ++round) {
    for (const type a : {type::u8, type::s8}) {
      for (const type b : {type::s8, type::u8}) {
        for (const type c : bytes_of_c) {
          check_8bit_case(a, b, c, random);
          if (HasFatalFailure()) FAIL() << name_of(a) << " x " << name_of(b) << " to " << name_of(c);
        }
      }
    }
  }
}

TEST(Reference, EightBitSumsWrapModulo32Bits) {
  std::vector<std::uint8_t> a(40000, 255);
  std::vector<std::uint8_t> b(40000, 255);
  std::int32_t c = 0;
  desc d;
  d.k = d.lda = 40000;
  d.a = d.b = type::u8, d.c = type::s32;
  arguments x;
  x.a = a.data(), x.b = b.data(), x.c = &c;
  run(d, x);
  EXPECT_EQ(c, low_32_bits(40000ll * 255 * 255));
}

// The exact sum here is 2^24 + 1, which is 2^24 in f32: what is added and multiplied is that.
TEST(Reference, EightBitSumsAreRoundedBeforeAlphaAndC) {
  std::vector<std::uint8_t> a(520, 255);
  std::vector<std::int8_t> b(520, 127);
  a[518] = 14, a[519] = 9, b[519] = 1;
  desc d;
  d.k = d.lda = 520;
  d.a = type::u8, d.b = type::s8, d.c = type::f32;
  arguments x;
  float c = 0;
  x.a = a.data(), x.b = b.data(), x.c = &c;
  const auto result = [&](beta_kind beta, alpha_kind alpha, float before) {
    d.beta = beta, d.alpha = alpha, c = before;
    run(d, x);
    return c;
  };
  x.alpha = 0.5;
  x.beta = 3;
  EXPECT_EQ(result(beta_kind::one, alpha_kind::one, 1.0f), 0x1p24f);
  EXPECT_EQ(result(beta_kind::at_call, alpha_kind::one, 1.0f), 0x1p24f + 4);  // 2^24 + 3: to even
  EXPECT_EQ(result(beta_kind::one, alpha_kind::at_call, 1.0f), 0x1p23f + 1);
  EXPECT_EQ(result(beta_kind::zero, alpha_kind::at_call, NAN), 0x1p23f);
  for (const double zero : {0.0, -0.0, 1e-300}) {  // C is not read
    x.beta = zero;
    EXPECT_EQ(result(beta_kind::at_call, alpha_kind::one, NAN), 0x1p24f);
    EXPECT_EQ(result(beta_kind::at_call, alpha_kind::at_call, NAN), 0x1p23f);
  }
}

/// What one f32 becomes in an 8-bit C: an empty sum, plus a bias.
template <class T>
T stored(float value) {
  T c{};
  desc d;
  d.k = 0;
  d.a = type::u8, d.b = type::s8, d.c = element_traits<T>::value;
  append(d, op::bias());
  arguments x;
  x.c = &c;
  x.operand[0] = &value;
  run(d, x);
  return c;
}

TEST(Reference, ConversionToEightBits) {
  const float inf = HUGE_VALF;
  EXPECT_EQ(stored<std::uint8_t>(NAN), 0);
  EXPECT_EQ(stored<std::int8_t>(NAN), -128);
  EXPECT_EQ(stored<std::uint8_t>(inf), 255);
  EXPECT_EQ(stored<std::int8_t>(inf), 127);
  EXPECT_EQ(stored<std::uint8_t>(-inf), 0);
  EXPECT_EQ(stored<std::int8_t>(-inf), -128);
  EXPECT_EQ(stored<std::uint8_t>(1e30f), 255);
  for (int i = -400; i <= 400; ++i) {  // ties go to even
    const float x = static_cast<float>(i) / 2;
    const double nearest = std::nearbyint(static_cast<double>(x));
    ASSERT_EQ(stored<std::uint8_t>(x), std::clamp(nearest, 0.0, 255.0)) << x;
    ASSERT_EQ(stored<std::int8_t>(x), std::clamp(nearest, -128.0, 127.0)) << x;
    const float above = std::nextafterf(x, inf);
    ASSERT_EQ(stored<std::int8_t>(above), std::clamp(std::nearbyint(static_cast<double>(above)), -128.0, 127.0));
  }
}

// ---- Epilogue ----

constexpr index rows = 3;
constexpr index columns = 75;  // a mask's row ends within a byte, and more than one block of the reference

/// Runs an epilogue over C = x (3,75): beta one and no terms.
template <class T>
std::vector<T> epilogue_of(std::vector<T> x, std::initializer_list<epilogue_op> steps,
                           std::initializer_list<void*> operands = {}) {
  desc d;
  d.m = rows, d.n = d.ldb = d.ldc = columns, d.k = 0;
  d.a = d.b = d.c = element_traits<T>::value;
  d.beta = beta_kind::one;
  arguments args;
  args.c = x.data();
  for (const auto& o : steps) append(d, o);
  std::copy(operands.begin(), operands.end(), args.operand);
  run(d, args);
  return x;
}

template <class T>
std::vector<T> values(std::uint64_t seed, index count = rows * columns) {
  random_source random(seed);
  std::vector<T> x;
  for (index i = 0; i < count; ++i) x.push_back(static_cast<T>(random.value(element_traits<T>::value)));
  return x;
}

template <class T>
std::vector<T> special() {
  std::vector<T> x = values<T>(8);
  const T inf = std::numeric_limits<T>::infinity();
  const std::array<T, 8> hard = {T{0},
                                 -T{0},
                                 inf,
                                 -inf,
                                 std::numeric_limits<T>::quiet_NaN(),
                                 std::numeric_limits<T>::denorm_min(),
                                 -std::numeric_limits<T>::denorm_min(),
                                 T{1}};
  std::copy(hard.begin(), hard.end(), x.begin() + columns - 4);
  return x;
}

/// Equal bits; NaNs as a class.
template <class T, class F>
void expect_each(const std::vector<T>& after, F expected) {
  for (std::size_t p = 0; p < after.size(); ++p) {
    const T e = expected(p, p / columns, p % columns);
    if (std::isnan(e) && std::isnan(after[p])) continue;
    ASSERT_EQ(std::memcmp(&after[p], &e, sizeof e), 0) << p << ": " << after[p] << " for " << e;
  }
}

template <class T>
class ReferenceEpilogue : public testing::Test {};
using accumulators = testing::Types<float, double>;
TYPED_TEST_SUITE(ReferenceEpilogue, accumulators);

TYPED_TEST(ReferenceEpilogue, StepsWithoutOperands) {
  using T = TypeParam;
  const auto x = special<T>();
  expect_each(epilogue_of(x, {op::relu()}), [&](auto p, auto, auto) { return x[p] < 0 ? T{0} : x[p]; });
  const T slope = static_cast<T>(0.3f);
  expect_each(epilogue_of(x, {op::leaky_relu(0.3f)}),
              [&](auto p, auto, auto) { return x[p] < 0 ? slope * x[p] : x[p]; });
  expect_each(epilogue_of(x, {op::clamp(-0.5f, 0.7f)}), [&](auto p, auto, auto) {
    return std::isnan(x[p]) ? x[p] : std::min(std::max(x[p], static_cast<T>(-0.5f)), static_cast<T>(0.7f));
  });
}

TYPED_TEST(ReferenceEpilogue, VectorsAndMatrices) {
  using T = TypeParam;
  constexpr type t = element_traits<T>::value;
  const auto x = values<T>(9);
  auto v = values<T>(10, columns);
  auto matrix = values<T>(11, rows * (columns + 2));
  const auto at = [&](auto r, auto c) { return matrix[r * (columns + 2) + c]; };
  expect_each(epilogue_of(x, {op::bias(axis::column, t)}, {v.data()}),
              [&](auto p, auto, auto c) { return x[p] + v[c]; });
  expect_each(epilogue_of(x, {op::bias(axis::row, t)}, {v.data()}), [&](auto p, auto r, auto) { return x[p] + v[r]; });
  expect_each(epilogue_of(x, {op::scale(axis::none, t)}, {v.data()}), [&](auto p, auto, auto) { return x[p] * v[0]; });
  expect_each(epilogue_of(x, {op::scale(axis::column, t)}, {v.data()}),
              [&](auto p, auto, auto c) { return x[p] * v[c]; });
  expect_each(epilogue_of(x, {op::scale(axis::row, t)}, {v.data()}), [&](auto p, auto r, auto) { return x[p] * v[r]; });
  expect_each(epilogue_of(x, {op::add(columns + 2, t)}, {matrix.data()}),
              [&](auto p, auto r, auto c) { return x[p] + at(r, c); });
  expect_each(epilogue_of(x, {op::multiply(columns + 2, t)}, {matrix.data()}),
              [&](auto p, auto r, auto c) { return x[p] * at(r, c); });
}

/// A product and the addition behind it are rounded one after the other, whatever the compiler may join.
TYPED_TEST(ReferenceEpilogue, ProductsAreRoundedBeforeTheyAreAddedTo) {
  using T = TypeParam;
  constexpr type t = element_traits<T>::value;
  const auto x = values<T>(12);
  auto factor = values<T>(13, columns);
  auto bias = values<T>(14, columns);
  int joined_differs = 0;
  expect_each(epilogue_of(x, {op::scale(axis::column, t), op::bias(axis::column, t)}, {factor.data(), bias.data()}),
              [&](auto p, auto, auto c) {
                volatile T product = x[p] * factor[c];
                joined_differs += product + bias[c] != std::fma(x[p], factor[c], bias[c]);
                return product + bias[c];
              });
  EXPECT_GT(joined_differs, 0);
}

TYPED_TEST(ReferenceEpilogue, MasksAreWrittenAndRead) {
  using T = TypeParam;
  const auto x = special<T>();
  constexpr index ld = columns / 8 + 3;
  std::vector<std::uint8_t> mask(rows * ld, 0xa5);
  expect_each(epilogue_of(x, {op::relu_mask(ld)}, {mask.data()}),
              [&](auto p, auto, auto) { return x[p] < 0 ? T{0} : x[p]; });
  for (index r = 0; r < rows; ++r) {
    for (index byte = 0; byte < ld; ++byte) {
      unsigned expected = byte > columns / 8 ? 0xa5 : 0;
      for (index j = byte * 8; j < std::min(byte * 8 + 8, columns); ++j) {
        if (x[call::at(r * columns + j)] > 0) expected |= 1u << (j % 8);
      }
      ASSERT_EQ(mask[call::at(r * ld + byte)], expected) << r << ' ' << byte;
    }
  }
  expect_each(epilogue_of(x, {op::multiply_mask(ld)}, {mask.data()}),
              [&](auto p, auto, auto) { return x[p] > 0 ? x[p] : T{0}; });
}

TEST(ReferenceEpilogue, ActivationsAreThoseOfTheLibrary) {
  const auto x = special<float>();
  for (const auto& o : {op::sigmoid(), op::tanh(), op::gelu_erf(), op::gelu_tanh(), op::silu(), op::hardswish()}) {
    expect_each(epilogue_of(x, {o}), [&](auto p, auto, auto) { return activate(o.kind, x[p]); });
  }
  EXPECT_NEAR(epilogue_of(x, {op::sigmoid()})[columns - 4], 0.5, 1e-6);    // of 0
  EXPECT_NEAR(epilogue_of(x, {op::silu()})[columns + 3], 0.731059, 1e-5);  // of 1
}

TEST(ReferenceEpilogue, BackwardStepsMultiplyByTheDerivative) {
  const auto x = values<float>(30);
  auto z = special<float>();
  for (const auto& o : {op::sigmoid_backward(columns), op::tanh_backward(columns), op::gelu_erf_backward(columns),
                        op::gelu_tanh_backward(columns), op::silu_backward(columns), op::hardswish_backward(columns)}) {
    expect_each(epilogue_of(x, {o}, {z.data()}), [&](auto p, auto, auto) { return x[p] * activate(o.kind, z[p]); });
  }
  EXPECT_NEAR(activate(op_kind::silu_backward, 1), 0.927671, 1e-5);
}

TYPED_TEST(ReferenceEpilogue, StoreWritesWhatHasComeSoFar) {
  using T = TypeParam;
  constexpr type t = element_traits<T>::value;
  constexpr index ld = columns + 3;
  const auto x = special<T>();
  std::vector<T> stored(rows * ld, T{7});
  expect_each(epilogue_of(x, {op::relu(), op::store(ld, t), op::leaky_relu(-1)}, {nullptr, stored.data()}),
              [&](auto p, auto, auto) { return x[p] < 0 ? T{0} : x[p]; });
  for (index r = 0; r < rows; ++r) {
    for (index j = 0; j < ld; ++j) {
      const T value = j < columns ? x[call::at(r * columns + j)] : T{7};
      const T expected = value < 0 ? T{0} : value;
      const T got = stored[call::at(r * ld + j)];
      ASSERT_TRUE(got == expected || (std::isnan(got) && std::isnan(expected))) << r << ' ' << j;
    }
  }
}

TEST(ReferenceEpilogue, StoreConverts) {
  const auto x = values<float>(31);
  std::vector<bf16> b(x.size());
  std::vector<f16> h(x.size());
  epilogue_of(x, {op::store(columns, type::bf16), op::store(columns, type::f16)}, {b.data(), h.data()});
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(to_f32(b[i]), to_f32(to_bf16(x[i]))) << i;
    ASSERT_EQ(to_f32(h[i]), to_f32(to_f16(x[i]))) << i;
  }
}

TEST(ReferenceEpilogue, SixteenBitOperandsWidenExactly) {
  const auto x = values<float>(15);
  std::vector<bf16> b;
  std::vector<f16> h;
  for (const float value : values<float>(16)) b.push_back(to_bf16(value)), h.push_back(to_f16(value));
  expect_each(epilogue_of(x, {op::add(columns, type::bf16), op::multiply(columns, type::f16)}, {b.data(), h.data()}),
              [&](auto p, auto, auto) {
                volatile float sum = x[p] + to_f32(b[p]);
                return sum * to_f32(h[p]);
              });
}

TEST(ReferenceEpilogue, CItselfMayBeTheResidual) {
  const auto x = values<float>(17);
  std::vector<float> c = x;
  desc d;
  d.m = rows, d.n = d.ldb = d.ldc = columns, d.k = 0;
  append(d, op::bias());
  append(d, op::add(columns));
  std::vector<float> bias = values<float>(18, columns);
  arguments args;
  args.c = args.operand[1] = c.data();
  args.operand[0] = bias.data();
  run(d, args);
  expect_each(c, [&](auto p, auto, auto j) { return bias[j] + x[p]; });
}

TEST(ReferenceEpilogue, RunTimeLeadingDimensionsOfOperands) {
  const auto x = values<float>(19);
  auto matrix = values<float>(20, rows * 100);
  std::vector<float> c = x;
  desc d;
  d.m = rows, d.n = d.ldb = d.ldc = columns, d.k = 0, d.beta = beta_kind::one;
  append(d, op::add(at_call));
  arguments args;
  args.c = c.data();
  args.operand[0] = matrix.data();
  args.operand_ld[0] = 100;
  run(d, args);
  expect_each(c, [&](auto p, auto r, auto j) { return x[p] + matrix[r * 100 + j]; });
}

// ---- The backend ----

TEST(Reference, SaysWhatItIs) {
  EXPECT_EQ(backend::reference.name, "reference");
  EXPECT_TRUE(backend::reference.runs_here());
  std::array<char, 400> text{};
  const std::size_t length = backend::reference.explain(desc{}, text.data(), text.size());
  EXPECT_NE(std::string_view(text.data(), length).find("no code is generated"), std::string_view::npos);
  EXPECT_EQ(backend::reference.explain(desc{}, text.data(), 9), 9u);
  desc d;
  d.a = d.b = type::bf16;
  for (const order sums : {order::machine, order::pair, order::tile}) {
    d.sums = sums;
    auto made = backend::reference.make(d, {});
    ASSERT_TRUE(made);
    EXPECT_EQ((*made).sums, machine_order(d));
    EXPECT_EQ((*made).code_bytes, 0u);
    (*made).release((*made).context);
  }
  d.m = 0;
  EXPECT_EQ(backend::reference.make(d, {}).error().field(), "m");
  EXPECT_EQ(backend::reference.supports(d).error().field(), "m");
}

}  // namespace
}  // namespace brgemm
