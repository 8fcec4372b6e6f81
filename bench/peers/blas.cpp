// A CBLAS: OpenBLAS or BLIS, by BRGEMM_BENCH_BLAS (1 or 2). Layers are one cblas_sgemm (cblas_sgemv for one row); a
// batch-reduce product is one cblas_sgemm an entry that adds to C.
#include <cblas.h>

#include <cstdio>
#include <cstring>

#include "peer.hpp"

#if BRGEMM_BENCH_BLAS == 2
extern "C" void bli_thread_set_num_threads(std::int64_t);
extern "C" const char* bli_info_get_version_str();
#endif

namespace {

using bench::peer_gemm;
using bench::peer_linear;
using bench::peer_pass;
using bench::peer_type;

#if BRGEMM_BENCH_BLAS == 2
void set_threads(int n) { bli_thread_set_num_threads(n); }
const char* name() {
  static char text[48];
  std::snprintf(text, sizeof text, "BLIS %s", bli_info_get_version_str());
  return text;
}
#else
void set_threads(int n) { openblas_set_num_threads(n); }
const char* name() {
  static char text[48];
  const char* config = openblas_get_config();  // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ..."
  const char* space = std::strchr(config, ' ');
  const char* end = space != nullptr ? std::strchr(space + 1, ' ') : nullptr;
  std::snprintf(text, sizeof text, "%.*s", end != nullptr ? static_cast<int>(end - config) : 40, config);
  return text;
}
#endif

void product(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
             std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c) {
  cblas_sgemm(CblasRowMajor, ta, tb, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), 1, a,
              static_cast<int>(lda), b, static_cast<int>(ldb), beta, c, static_cast<int>(n));
}

void product(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, std::int64_t m, std::int64_t n, std::int64_t k, const double* a,
             std::int64_t lda, const double* b, std::int64_t ldb, double beta, double* c) {
  cblas_dgemm(CblasRowMajor, ta, tb, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), 1, a,
              static_cast<int>(lda), b, static_cast<int>(ldb), beta, c, static_cast<int>(n));
}

template <class T>
struct gemm_task final : bench::peer_task {
  peer_gemm p;
  explicit gemm_task(const peer_gemm& problem) : p(problem) {}
  void run(std::int64_t times) override {
    set_threads(1);
    for (std::int64_t t = 0; t < times; ++t) {
      for (std::int64_t i = 0; i < p.batch; ++i) {
        product(CblasNoTrans, CblasNoTrans, p.m, p.n, p.k, static_cast<const T*>(p.a) + i * p.m * p.k, p.k,
                static_cast<const T*>(p.b) + i * p.k * p.n, p.n, i == 0 ? T{0} : T{1}, static_cast<T*>(p.c));
      }
    }
  }
};

// One row: a matrix times a vector. The weight update has no such form with beta 0 and stays a product.
bool is_vector(const peer_linear& p) { return p.rows == 1 && p.pass != peer_pass::backward_weights; }

void vector_product(const peer_linear& p) {
  const bool forward = p.pass == peer_pass::forward;
  cblas_sgemv(CblasRowMajor, forward ? CblasNoTrans : CblasTrans, static_cast<int>(p.out), static_cast<int>(p.in), 1,
              static_cast<const float*>(p.w), static_cast<int>(p.in), static_cast<const float*>(forward ? p.x : p.y), 1,
              0, static_cast<float*>(forward ? p.y : p.x), 1);
}

struct linear_task final : bench::peer_task {
  peer_linear p;
  explicit linear_task(const peer_linear& problem) : p(problem) {}
  void run(std::int64_t times) override {
    set_threads(p.threads);
    auto* x = static_cast<float*>(p.x);
    auto* w = static_cast<float*>(p.w);
    auto* y = static_cast<float*>(p.y);
    for (std::int64_t t = 0; t < times; ++t) {
      if (is_vector(p)) {
        vector_product(p);
        continue;
      }
      switch (p.pass) {
        case peer_pass::forward: product(CblasNoTrans, CblasTrans, p.rows, p.out, p.in, x, p.in, w, p.in, 0, y); break;
        case peer_pass::backward_data:
          product(CblasNoTrans, CblasNoTrans, p.rows, p.in, p.out, y, p.out, w, p.in, 0, x);
          break;
        case peer_pass::backward_weights:
          product(CblasTrans, CblasNoTrans, p.out, p.in, p.rows, y, p.out, x, p.in, 0, w);
          break;
      }
    }
  }
};

bench::peer_task* make_gemm(const peer_gemm& p, char* reason, std::size_t size) {
  if (p.type == peer_type::f32) return new gemm_task<float>(p);
  if (p.type == peer_type::f64) return new gemm_task<double>(p);
  std::snprintf(reason, size, "a BLAS has f32 and f64");
  return nullptr;
}

bench::peer_task* make_linear(const peer_linear& p, char* reason, std::size_t size) {
  if (p.type == peer_type::f32) return new linear_task(p);
  std::snprintf(reason, size, "a BLAS has f32 and f64");
  return nullptr;
}

bench::peer_task* make_conv(const bench::peer_conv&, char* reason, std::size_t size) {
  std::snprintf(reason, size, "a BLAS has no convolutions");
  return nullptr;
}

}  // namespace

extern "C" const bench::peer_api* brgemm_bench_peer(bool) {
  static const bench::peer_api api{name(), make_gemm, make_linear, make_conv};
  return &api;
}
