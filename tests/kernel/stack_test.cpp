// The stack that make_kernel and a call need, as docs/architecture.md says: measured on a thread whose stack is
// painted.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>

#include "brgemm/kernel/kernel.hpp"

namespace {

using namespace brgemm;

constexpr std::size_t kib = 1024;
constexpr std::size_t stack_bytes = 512 * kib;
constexpr std::size_t promised = 128 * kib;
constexpr unsigned char paint = 0xa5;

struct work {
  std::string_view backend;
  desc description;
  bool right = false;
};

void* make_and_call(void* argument) {
  static float a[64 * 64], b[64 * 64], c[64 * 64], bias[64];
  auto& w = *static_cast<work*>(argument);
  const auto k = make_kernel(w.description, {.backend = w.backend});
  if (!k) return nullptr;
  arguments x{.a = a, .b = b, .c = c, .batch = 1};
  x.operand[0] = bias;
  w.right = k->call(x).has_value();
  return nullptr;
}

/// Bytes of its stack that a thread touched, what the system keeps there for it included.
std::size_t stack_of(work& w) {
  void* stack = ::mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) return 0;
  std::memset(stack, paint, stack_bytes);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stack, stack_bytes);
  pthread_t thread;
  const bool started = pthread_create(&thread, &attributes, make_and_call, &w) == 0;
  if (started) pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  const auto* const bytes = static_cast<const unsigned char*>(stack);
  const auto* const touched = std::find_if(bytes, bytes + stack_bytes, [](unsigned char x) { return x != paint; });
  const auto used = static_cast<std::size_t>(bytes + stack_bytes - touched);
  ::munmap(stack, stack_bytes);
  return used;
}

desc small(brgemm::index m, brgemm::index n, brgemm::index k) {
  desc d;
  d.m = m, d.n = n, d.k = k;
  d.lda = k, d.ldb = d.ldc = n;
  return d;
}

TEST(Stack, MakeKernelNeedsNoMoreThanPromised) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
  GTEST_SKIP() << "the promise is of optimised code";
#endif
  desc chain = small(7, 19, 5);
  for (const epilogue_op& step : {op::bias(), op::gelu_erf(), op::tanh(), op::silu()}) append(chain, step);
  desc strided = small(14, 33, 20);
  strided.lda = strided.ldb = strided.ldc = at_call;
  for (const backend::entry& e : backend::built_in()) {
    if (!e.runs_here()) continue;
    std::size_t most = 0;
    for (const desc& d : {small(64, 64, 64), small(5, 7, 9), chain, strided}) {
      work w{e.name, d};
      most = std::max(most, stack_of(w));
      EXPECT_TRUE(w.right || d == strided) << e.name;  // which needs more arguments: only made
    }
    std::printf("%s: %zu bytes\n", std::string(e.name).c_str(), most);
    EXPECT_GT(most, kib);
    EXPECT_LE(most, promised);
  }
}

}  // namespace
