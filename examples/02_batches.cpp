// Three ways to say where the A_i and B_i are: constant strides, pairs of addresses, pairs of offsets. Equal bits.
#include <array>
#include <brgemm/brgemm.hpp>
#include <cstdio>
#include <vector>

int main() {
  constexpr brgemm::index batch = 4, m = 8, n = 32, k = 16;
  std::vector<float> a(batch * m * k), b(batch * k * n);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i % 7) - 3;
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i % 5) - 2;

  brgemm::desc d;
  d.m = m, d.n = n, d.k = k;
  d.lda = k, d.ldb = n, d.ldc = n;

  // Entry i at a + i * stride_a and b + i * stride_b.
  brgemm::desc strided = d;
  strided.batch = brgemm::batch_kind::strides;
  strided.stride_a = m * k, strided.stride_b = k * n;

  // Entry i anywhere in memory.
  brgemm::desc addressed = d;
  addressed.batch = brgemm::batch_kind::addresses;
  std::array<brgemm::address_pair, batch> addresses;
  // Entry i at offsets from two bases: a convolution's taps, planned once and used at every position.
  brgemm::desc offset = d;
  offset.batch = brgemm::batch_kind::offsets;
  std::array<brgemm::offset_pair, batch> offsets;
  for (std::size_t i = 0; i < batch; ++i) {
    addresses[i] = {&a[i * m * k], &b[i * k * n]};
    offsets[i] = {static_cast<brgemm::index>(i) * m * k, static_cast<brgemm::index>(i) * k * n};
  }

  std::vector<std::vector<float>> results;
  for (const brgemm::desc& kind : {strided, addressed, offset}) {
    const auto kernel = brgemm::make_kernel(kind);
    if (!kernel) return std::fprintf(stderr, "%s\n", kernel.error().message().data()), 1;
    std::vector<float> c(m * n);
    brgemm::arguments call;
    call.a = a.data(), call.b = b.data(), call.c = c.data(), call.batch = batch;
    if (kind.batch == brgemm::batch_kind::addresses) call.pairs = addresses.data();
    if (kind.batch == brgemm::batch_kind::offsets) call.pairs = offsets.data();
    if (const auto called = kernel->call(call); !called) {
      return std::fprintf(stderr, "%s\n", called.error().message().data()), 1;
    }
    std::printf("%-40s C(0,0) = %g\n", kernel->name().c_str(), static_cast<double>(c[0]));
    results.push_back(c);
  }
  return results[0] == results[1] && results[0] == results[2] ? 0 : 1;
}
