// nn::linear and nn::mlp where memory is short: every allocation and every call to the system fails in turn. Each gives
// a typed error, and nothing is leaked.
#include <gtest/gtest.h>

#include <brgemm/nn/mlp.hpp>
#include <cstdlib>
#include <new>

#include "support/failing_system.hpp"

namespace {

using brgemm_test::failing_call;
using brgemm_test::failing_system;
using brgemm_test::fails_now;
long alive = 0;  ///< allocations by `new (std::nothrow)`

void* take(std::size_t bytes, std::size_t alignment) {
  if (fails_now()) return nullptr;
  void* const p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (p != nullptr) ++alive;
  return p;
}
void give_back(void* p) {
  if (p != nullptr) --alive;
  std::free(p);
}

}  // namespace

// All that the library allocates with; what throws is the test's own.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++alive;
  if (void* p = std::malloc(bytes)) return p;
  std::abort();
}
[[gnu::noinline]] void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return take(bytes, 16); }
[[gnu::noinline]] void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return take(bytes, 16); }
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
  return take(bytes, static_cast<std::size_t>(a));
}
[[gnu::noinline]] void operator delete(void* p) noexcept { give_back(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { give_back(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { give_back(p); }
[[gnu::noinline]] void operator delete[](void* p, std::size_t) noexcept { give_back(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { give_back(p); }

namespace brgemm {  // so that index is not the one of <strings.h>
namespace {

/// Calls make(size, how) with ever other sizes, so that kernels are made each time, until no call is left to fail;
/// returns how many failed.
template <class Make>
int fail_in_turn(const backend::entry& e, Make make) {
  const bool keeps_contexts = e.name == "reference";  // a kernel without code is a `new` of the cache
  int failed = 0;
  EXPECT_TRUE(make(0, options{.backend = e.name}));  // what is asked for once a process
  for (int n = 1; n < 1000; ++n) {
    const long before = alive - (keeps_contexts ? static_cast<long>(code_cache_stats().kernels) : 0);
    bool made = false;
    bool failure_came = false;
    {
      failing_system system;
      failing_call = n;
      const auto r = make(n, options{.backend = e.name});
      failure_came = failing_call <= 0;
      failing_call = 0;
      made = static_cast<bool>(r);
      if (!r) {
        const errc code = r.error().code();
        EXPECT_TRUE(code == errc::out_of_memory || code == errc::code_memory) << r.error().message();
        EXPECT_FALSE(r.error().message().empty());
      }
    }
    const long after = alive - (keeps_contexts ? static_cast<long>(code_cache_stats().kernels) : 0);
    EXPECT_EQ(before, after) << e.name << ": the failure of call " << n << " leaks";
    if (!failure_came) {
      EXPECT_TRUE(made);
      return failed;
    }
    failed += !made;
  }
  ADD_FAILURE() << "no end of failures";
  return failed;
}

type data_for(const options& how) { return how.backend == "amx" ? type::bf16 : type::f32; }

TEST(Allocation, FailuresOfLinearAreTypedAndLeakNothing) {
  for (const backend::entry& e : backend::built_in()) {
    if (!e.runs_here()) continue;
    const int failed = fail_in_turn(e, [](int n, const options& how) {
      return nn::linear::plan({.rows = 8,
                               .in = 20 + n,
                               .out = 70,
                               .data = data_for(how),
                               .act = nn::activation::silu,
                               .training = true,
                               .ldy = 100 + n},
                              how);
    });
    EXPECT_GE(failed, 5) << e.name;
  }
}

TEST(Allocation, FailuresOfMlpAreTypedAndLeakNothing) {
  for (const backend::entry& e : backend::built_in()) {
    if (!e.runs_here()) continue;
    const int failed = fail_in_turn(e, [](int n, const options& how) {
      const index sizes[] = {200 + n, 70, 10 + n};
      return nn::mlp::make({.rows = 8, .sizes = sizes, .data = data_for(how)}, how);
    });
    EXPECT_GE(failed, 7) << e.name;
  }
}

/// What can be made later is made: a failure leaves nothing behind that stands in the way.
TEST(Allocation, TheSameSucceedsAfterAFailure) {
  const index sizes[] = {500, 300, 11};
  {
    failing_system system;
    failing_call = 1;
    const auto failed = nn::mlp::make({.rows = 8, .sizes = sizes});
    failing_call = 0;
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code(), errc::out_of_memory);
    EXPECT_EQ(failed.error().field(), "sizes");
  }
  EXPECT_TRUE(nn::mlp::make({.rows = 8, .sizes = sizes}));
}

}  // namespace
}  // namespace brgemm
