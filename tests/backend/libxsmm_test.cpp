// LIBXSMM behind the handle: the reference's results where every sum is exact, so that its own order does not matter;
// its answers; and, for each thing that it cannot do, the field that the error names.
#include "brgemm/backend/libxsmm.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "brgemm/kernel/kernel.hpp"

namespace brgemm {
namespace {

struct problem {
  desc d;
  index batch = 0;
};

// Small integers, which every type here holds and whose sums no order of additions rounds.
void fill(std::vector<std::byte>& m, type t, unsigned seed) {
  std::mt19937 generator(seed);
  const auto small = [&generator] { return static_cast<float>(static_cast<int>(generator() % 7) - 3); };
  for (index i = 0; i < static_cast<index>(m.size()) / size_of(t); ++i) {
    std::byte* const at = m.data() + i * size_of(t);
    const float x = small();
    const double wide = static_cast<double>(x);
    const bf16 narrow = to_bf16(x);
    if (t == type::f32) std::memcpy(at, &x, 4);
    if (t == type::f64) std::memcpy(at, &wide, 8);
    if (t == type::bf16) std::memcpy(at, &narrow, 2);
  }
}

std::vector<std::byte> bytes(index elements, type t) {
  return std::vector<std::byte>(static_cast<std::size_t>(elements * size_of(t)));
}

// C after a call of the kernel; entries of lists in descending order, so that a list is not mistaken for strides.
std::vector<std::byte> run(const kernel& k, const problem& p) {
  const desc& d = p.d;
  const index entry_a = d.m * d.lda;
  const index entry_b = (d.k + 1) / 2 * 2 * d.ldb;
  auto a = bytes(entry_a * (p.batch + 1), d.a);
  auto b = bytes(entry_b * (p.batch + 1), d.b);
  auto c = bytes(d.m * d.ldc, d.c);
  fill(a, d.a, 1), fill(b, d.b, 2), fill(c, d.c, 3);
  std::vector<address_pair> addresses;
  std::vector<offset_pair> offsets;
  for (index i = p.batch; i > 0; --i) {
    addresses.push_back({a.data() + i * entry_a * size_of(d.a), b.data() + i * entry_b * size_of(d.b)});
    offsets.push_back({i * entry_a, i * entry_b});
  }
  arguments x;
  x.a = a.data(), x.b = b.data(), x.c = c.data(), x.batch = p.batch;
  x.pairs = d.batch == batch_kind::addresses ? static_cast<const void*>(addresses.data()) : offsets.data();
  const auto called = k.call(x);
  EXPECT_TRUE(called) << called.error().message();
  return c;
}

// Where two C differ first, gaps between rows included; empty where they do not.
std::string differs(const std::vector<std::byte>& x, const std::vector<std::byte>& y, const desc& d) {
  const auto at = std::mismatch(x.begin(), x.end(), y.begin()).first - x.begin();
  if (at == static_cast<std::ptrdiff_t>(x.size())) return "";
  const index element = at / size_of(d.c);
  return "row " + std::to_string(element / d.ldc) + ", column " + std::to_string(element % d.ldc);
}

desc make_desc(type ab, type c, batch_kind batch, beta_kind beta, index m, index n, index k, index gap) {
  desc d;
  d.m = m, d.n = n, d.k = k;
  d.a = d.b = ab, d.c = c;
  d.batch = batch, d.beta = beta;
  d.lda = k + gap, d.ldb = n + gap, d.ldc = n + gap;
  if (ab == type::bf16) d.layout_b = layout::interleaved;
  if (batch == batch_kind::strides) d.stride_a = m * d.lda, d.stride_b = (k + 1) / 2 * 2 * d.ldb;
  return d;
}

class libxsmm_backend : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(backend::register_libxsmm()); }
};

TEST_F(libxsmm_backend, registers_again_and_runs_only_where_it_is_named) {
  ASSERT_TRUE(backend::register_libxsmm());
  const desc d = make_desc(type::f32, type::f32, batch_kind::strides, beta_kind::zero, 4, 5, 6, 0);
  const auto named = make_kernel(d, {.backend = "libxsmm"});
  ASSERT_TRUE(named) << named.error().message();
  EXPECT_EQ(named->backend(), "libxsmm");
  EXPECT_EQ(named->order(), order::foreign);
  const auto any = make_kernel(d);
  ASSERT_TRUE(any) << any.error().message();
  EXPECT_NE(any->backend(), "libxsmm");
}

TEST_F(libxsmm_backend, has_the_results_of_the_reference) {
  const std::pair<type, type> types[] = {
      {type::f32, type::f32}, {type::f64, type::f64}, {type::bf16, type::f32}, {type::bf16, type::bf16}};
  int compared = 0;
  for (const auto& [ab, c] : types) {
    for (const auto batch : {batch_kind::addresses, batch_kind::offsets, batch_kind::strides}) {
      if (c == type::bf16 && batch != batch_kind::strides) continue;
      for (const auto beta : {beta_kind::zero, beta_kind::one}) {
        for (const auto& [m, n, k, gap] :
             {std::array<index, 4>{1, 1, 2, 0}, {5, 7, 10, 0}, {13, 33, 24, 2}, {64, 64, 64, 0}}) {
          const desc d = make_desc(ab, c, batch, beta, m, n, k, gap);
          const auto theirs = make_kernel(d, {.backend = "libxsmm"});
          ASSERT_TRUE(theirs) << theirs.error().message();
          const auto reference = make_kernel(d, {.backend = "reference"});
          ASSERT_TRUE(reference) << reference.error().message();
          // 300 entries are more than are passed on at a time; in bf16 so large a sum would be rounded, and 64 take
          // long.
          for (const index entries : {0, 1, 7, c == type::bf16 || m == 64 ? 2 : 300}) {
            EXPECT_EQ(differs(run(*theirs, {d, entries}), run(*reference, {d, entries}), d), "")
                << std::string_view(theirs->name()) << ", batch " << entries;
            ++compared;
          }
        }
      }
    }
  }
  EXPECT_EQ(compared, (3 * 3 + 1) * 2 * 4 * 4);
}

TEST_F(libxsmm_backend, names_the_field_that_it_cannot_do) {
  const desc f32 = make_desc(type::f32, type::f32, batch_kind::strides, beta_kind::zero, 4, 6, 8, 0);
  const desc bf = make_desc(type::bf16, type::f32, batch_kind::strides, beta_kind::zero, 4, 6, 8, 0);
  const auto with = [](desc d, auto change) {
    change(d);
    return d;
  };
  const std::pair<const char*, desc> refused[] = {
      {"a", with(f32, [](desc& d) { d.a = d.b = type::f16; })},
      {"layout_a", with(f32, [](desc& d) { d.layout_a = layout::transposed; })},
      {"layout_b", with(f32, [](desc& d) { d.layout_b = layout::transposed, d.ldb = 8; })},
      {"layout_b", with(bf, [](desc& d) { d.layout_b = layout::plain; })},
      {"k", with(bf, [](desc& d) { d.k = 7; })},
      {"lda", with(bf, [](desc& d) { d.lda = 9; })},
      {"k", with(f32, [](desc& d) { d.k = 0; })},
      {"batch",
       with(bf, [](desc& d) { d.c = type::bf16, d.batch = batch_kind::offsets, d.stride_a = d.stride_b = 0; })},
      {"beta", with(f32, [](desc& d) { d.beta = beta_kind::at_call; })},
      {"alpha", with(f32, [](desc& d) { d.alpha = alpha_kind::at_call; })},
      {"sums", with(f32, [](desc& d) { d.sums = order::chain; })},
      {"chains", with(f32, [](desc& d) { d.chains = 2; })},
      {"m_extent", with(f32, [](desc& d) { d.m_extent = extent_kind::at_call; })},
      {"rows", with(f32,
                    [](desc& d) {
                      d.rows[0] = {0, 3};
                    })},
      {"write_c", with(f32, [](desc& d) { d.write_c = write_kind::streaming, d.ldc = 16; })},
      {"lda", with(f32, [](desc& d) { d.lda = at_call; })},
      {"ldb", with(f32, [](desc& d) { d.ldb = at_call; })},
      {"ldc", with(f32, [](desc& d) { d.ldc = at_call; })},
      {"epilogue", with(f32, [](desc& d) { append(d, op::relu()); })},
      {"stride_a", with(f32, [](desc& d) { d.stride_a = -32; })},
      {"stride_b", with(f32, [](desc& d) { d.stride_b = index{1} << 40; })},
      {"lda", with(f32, [](desc& d) { d.lda = index{1} << 31; })},
  };
  for (const auto& [field, d] : refused) {
    const auto made = make_kernel(d, {.backend = "libxsmm"});
    ASSERT_FALSE(made) << field;
    EXPECT_EQ(made.error().code(), errc::unsupported) << made.error().message();
    EXPECT_EQ(made.error().field(), field) << made.error().message();
  }
}

}  // namespace
}  // namespace brgemm
