// LIBXSMM 1.x: batch-reduce kernels with strides, dispatched once and called many times.
// LIBXSMM is column-major, so our row-major C = A * B is its C' = B' * A': the operands change places.
#include <libxsmm.h>

#include <cstdio>

#include "peer.hpp"

namespace {

using bench::peer_gemm;
using bench::peer_type;

template <class Function, class TA, class TB, class TC>
struct task final : bench::peer_task {
  Function kernel;
  const peer_gemm problem;
  task(Function f, const peer_gemm& p) : kernel(f), problem(p) {}
  void run(std::int64_t times) override {
    const auto count = static_cast<unsigned long long>(problem.batch);
    for (std::int64_t i = 0; i < times; ++i) {
      kernel(static_cast<const TB*>(problem.b), static_cast<const TA*>(problem.a), static_cast<TC*>(problem.c), &count);
    }
  }
};

// `dispatch` has the same parameters for every type but for the pointers to alpha and beta. Strides count bytes.
template <class TA, class TB, class TC, class Scalar, class Dispatch>
bench::peer_task* make(Dispatch dispatch, const peer_gemm& p, std::int64_t group, bool interleaved) {
  const auto m = static_cast<libxsmm_blasint>(p.n);
  const auto n = static_cast<libxsmm_blasint>(p.m);
  const auto k = static_cast<libxsmm_blasint>((p.k + group - 1) / group * group);
  if (interleaved && k != p.k) return nullptr;  // A would have to be padded; the suite has no such case
  const libxsmm_blasint stride_a = k * m * static_cast<libxsmm_blasint>(sizeof(TB));
  const libxsmm_blasint stride_b = k * n * static_cast<libxsmm_blasint>(sizeof(TA));
  const Scalar alpha = 1;
  const Scalar beta = 0;
  const int flags = LIBXSMM_GEMM_FLAG_NONE | (interleaved ? LIBXSMM_GEMM_FLAG_VNNI_A : 0);
  const int prefetch = LIBXSMM_GEMM_PREFETCH_NONE;
  const auto kernel = dispatch(m, n, k, stride_a, stride_b, &m, &k, &m, &alpha, &beta, &flags, &prefetch);
  if (kernel == nullptr) return nullptr;
  return new task<decltype(kernel), TA, TB, TC>(kernel, p);
}

bench::peer_task* make_gemm(const peer_gemm& p, char* reason, std::size_t size) {
  bench::peer_task* made = nullptr;
  switch (p.type) {
    case peer_type::f32:
      made = make<float, float, float, float>(libxsmm_smmdispatch_reducebatch_strd, p, 1, false);
      break;
    case peer_type::f64:
      made = make<double, double, double, double>(libxsmm_dmmdispatch_reducebatch_strd, p, 1, false);
      break;
    case peer_type::bf16:
      made = make<libxsmm_bfloat16, libxsmm_bfloat16, float, float>(libxsmm_bsmmdispatch_reducebatch_strd, p, 2, true);
      break;
    case peer_type::u8s8:
      made = make<unsigned char, char, int, int>(libxsmm_subimmdispatch_reducebatch_strd, p, 4, true);
      break;
  }
  if (made == nullptr) std::snprintf(reason, size, "LIBXSMM has no kernel for this shape and type");
  return made;
}

bench::peer_task* make_linear(const bench::peer_linear&, char* reason, std::size_t size) {
  std::snprintf(reason, size, "a kernel library, not a layer library");
  return nullptr;
}

}  // namespace

extern "C" const bench::peer_api* brgemm_bench_peer() {
  libxsmm_init();
  // The suite compares AVX-512 with AVX-512; tiles have a suite of their own.
  if (libxsmm_get_target_archid() > LIBXSMM_X86_AVX512_CPX) libxsmm_set_target_archid(LIBXSMM_X86_AVX512_CPX);
  static const bench::peer_api api{"LIBXSMM " LIBXSMM_CONFIG_VERSION, make_gemm, make_linear};
  return &api;
}
