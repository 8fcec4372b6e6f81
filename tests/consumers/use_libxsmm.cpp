// A user's program that prefers LIBXSMM: multiplies with it behind the same handle, and with brgemm's best backend. The
// numbers are small integers, whose sums are exact in any order, so the results are the same.
#include <brgemm/backend/libxsmm.hpp>
#include <brgemm/brgemm.hpp>
#include <cstdio>
#include <vector>

namespace {

std::vector<float> multiply(const brgemm::desc& d, std::string_view backend) {
  const auto kernel = brgemm::make_kernel(d, {.backend = backend});
  if (!kernel) return std::printf("%s\n", kernel.error().message().data()), std::vector<float>{};
  if (backend == "libxsmm" && (kernel->backend() != backend || kernel->order() != brgemm::order::foreign)) return {};
  std::vector<float> a(2 * 5 * 7), b(2 * 7 * 19), c(5 * 19);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i % 11) - 5;
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i % 13) - 6;
  const auto called = kernel->call({.a = a.data(), .b = b.data(), .c = c.data(), .batch = 2});
  return called ? c : std::vector<float>{};
}

}  // namespace

// Not 0 where both backends have the same results.
extern "C" unsigned long long use() {
  brgemm::desc d;
  d.m = 5, d.n = 19, d.k = 7;
  d.lda = 7, d.ldb = 19, d.ldc = 19;
  d.stride_a = 5 * 7, d.stride_b = 7 * 19;
  if (!brgemm::backend::register_libxsmm()) return 0;
  const std::vector<float> theirs = multiply(d, "libxsmm"), ours = multiply(d, "");
  return !ours.empty() && ours == theirs;
}
