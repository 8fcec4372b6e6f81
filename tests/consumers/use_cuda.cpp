// A user's program that asks for a GPU, and where there is none reads why.
#include <brgemm/backend/cuda.hpp>
#include <cstdio>

// Not 0 where there is a kernel, or an error with its reason.
extern "C" unsigned long long use() {
  brgemm::desc d;
  d.m = d.n = d.k = d.lda = d.ldb = d.ldc = 64;
  d.where = brgemm::place::gpu;
  const auto kernel = brgemm::cuda::make_kernel(d);
  if (kernel) return 1;
  std::printf("%s\n", kernel.error().message().data());
  return !kernel.error().message().empty();
}
