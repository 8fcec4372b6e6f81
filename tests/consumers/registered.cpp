// A shared object that makes kernels, drops them, and shows the list of them that GDB reads.
#include <brgemm/brgemm.hpp>

#pragma GCC visibility push(default)
extern "C" {

bool make(int m) {
  brgemm::desc d;
  d.m = m, d.n = d.ldb = d.ldc = 16, d.k = d.lda = 3;
  return brgemm::make_kernel(d).has_value();
}

void clear() { brgemm::clear_code_cache(); }

const void* descriptor() { return &__jit_debug_descriptor; }
}
#pragma GCC visibility pop
