// LIBXSMM 1.x: batch-reduce kernels with strides, for one product of f32 or f64 the plain kernel; dispatched once and
// called many times.
#include "libxsmm.hpp"

namespace {

using bench::peer_gemm;

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

template <class Function, class T>
struct plain_task final : bench::peer_task {
  Function kernel;
  const peer_gemm problem;
  plain_task(Function f, const peer_gemm& p) : kernel(f), problem(p) {}
  void run(std::int64_t times) override {
    for (std::int64_t i = 0; i < times; ++i) {
      kernel(static_cast<const T*>(problem.b), static_cast<const T*>(problem.a), static_cast<T*>(problem.c));
    }
  }
};

template <class T, class Dispatch>
bench::peer_task* make_plain(Dispatch dispatch, const peer_gemm& p) {
  const auto m = static_cast<libxsmm_blasint>(p.n);
  const auto n = static_cast<libxsmm_blasint>(p.m);
  const auto k = static_cast<libxsmm_blasint>(p.k);
  const T alpha = 1;
  const T beta = 0;
  const int flags = LIBXSMM_GEMM_FLAG_NONE;
  const int prefetch = LIBXSMM_GEMM_PREFETCH_NONE;
  const auto kernel = dispatch(m, n, k, &m, &k, &m, &alpha, &beta, &flags, &prefetch);
  return kernel == nullptr ? nullptr : new plain_task<decltype(kernel), T>(kernel, p);
}

// `dispatch` has the same parameters for every type but for the pointers to alpha and beta. Strides count bytes.
template <class TA, class TB, class TC, class Scalar, class Dispatch>
bench::peer_task* make(Dispatch dispatch, const peer_gemm& p) {
  const auto m = static_cast<libxsmm_blasint>(p.n);
  const auto n = static_cast<libxsmm_blasint>(p.m);
  const auto k = static_cast<libxsmm_blasint>(p.k);
  const libxsmm_blasint stride_a = k * m * static_cast<libxsmm_blasint>(sizeof(TB));
  const libxsmm_blasint stride_b = k * n * static_cast<libxsmm_blasint>(sizeof(TA));
  const Scalar alpha = 1;
  const Scalar beta = 0;
  const int flags = bench::group_of(p.type) > 1 ? LIBXSMM_GEMM_FLAG_VNNI_A : LIBXSMM_GEMM_FLAG_NONE;
  const int prefetch = LIBXSMM_GEMM_PREFETCH_NONE;
  const auto kernel = dispatch(m, n, k, stride_a, stride_b, &m, &k, &m, &alpha, &beta, &flags, &prefetch);
  return kernel == nullptr ? nullptr : new task<decltype(kernel), TA, TB, TC>(kernel, p);
}

}  // namespace

bench::peer_task* bench::kernel_of(const peer_gemm& p) {
  if (p.batch == 1 && p.type == peer_type::f32) return make_plain<float>(libxsmm_smmdispatch, p);
  if (p.batch == 1 && p.type == peer_type::f64) return make_plain<double>(libxsmm_dmmdispatch, p);
  switch (p.type) {
    case peer_type::f32: return make<float, float, float, float>(libxsmm_smmdispatch_reducebatch_strd, p);
    case peer_type::f64: return make<double, double, double, double>(libxsmm_dmmdispatch_reducebatch_strd, p);
    case peer_type::bf16:
      return make<libxsmm_bfloat16, libxsmm_bfloat16, float, float>(libxsmm_bsmmdispatch_reducebatch_strd, p);
    case peer_type::u8s8: return make<unsigned char, char, int, int>(libxsmm_subimmdispatch_reducebatch_strd, p);
  }
  return nullptr;
}
