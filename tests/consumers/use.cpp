// A user's program: multiplies on every backend that runs here, checks the sum, and prints a digest of results that
// must not depend on compiler or flags. Also compiled as a plugin, and with other flags as a second translation unit.
#include <brgemm/brgemm.hpp>
#include <cstdio>
#include <vector>

#ifndef USE_NAME
#define USE_NAME use
#endif

namespace {

brgemm::desc desc_of(brgemm::type t, brgemm::op_kind step) {
  brgemm::desc d;
  d.m = 5, d.n = 19, d.k = 7;
  d.lda = 7, d.ldb = 19, d.ldc = 19;
  d.stride_a = 5 * 7, d.stride_b = 7 * 19;
  d.a = d.b = t;
  d.c = t;
  if (step != brgemm::op_kind::none) append(d, brgemm::op::make(step));
  if (t == brgemm::type::f32) append(d, brgemm::op::bias());
  return d;
}

// FNV-1a over the bytes of C.
unsigned long long digest(const void* data, std::size_t size, unsigned long long h) {
  const auto* const bytes = static_cast<const unsigned char*>(data);
  for (std::size_t i = 0; i < size; ++i) h = (h ^ bytes[i]) * 0x100000001b3u;
  return h;
}

bool run(const brgemm::desc& d, std::string_view backend, unsigned long long& h) {
  const auto kernel = brgemm::make_kernel(d, {.backend = backend});
  if (!kernel) {
    if (kernel.error().code() == brgemm::errc::unsupported) return true;
    std::printf("%s\n", kernel.error().message().data());
    return false;
  }
  std::vector<double> a(2 * 5 * 7), b(2 * 7 * 19), c(5 * 19), bias(19, 0.25);
  const auto fill = [](std::vector<double>& v, auto element) {
    auto* const to = reinterpret_cast<decltype(element)*>(v.data());
    for (std::size_t i = 0; i < v.size(); ++i)
      to[i] = static_cast<decltype(element)>(static_cast<int>(i * 37 % 101) - 50) / 64;
  };
  d.a == brgemm::type::f64 ? (fill(a, 0.0), fill(b, 0.0)) : (fill(a, 0.0f), fill(b, 0.0f), fill(bias, 0.0f));
  brgemm::arguments x{.a = a.data(), .b = b.data(), .c = c.data(), .batch = 2};
  x.operand[d.epilogue_size > 0 ? d.epilogue_size - 1 : 0] = bias.data();
  if (const auto called = kernel->call(x); !called) {
    std::printf("%s\n", called.error().message().data());
    return false;
  }
  h = digest(c.data(), 5 * 19 * static_cast<std::size_t>(size_of(d.c)), h);
  return true;
}

// Layers whose loops the user's compiler translates: batch normalisation and the mean of windows.
bool run_layers(unsigned long long& h) {
  constexpr brgemm::index pixels = 40, channels = 300;
  const auto norm = brgemm::nn::batch_norm::plan({pixels, channels, brgemm::nn::activation::relu});
  brgemm::nn::pool_desc windows;
  windows.channels = channels, windows.kind = brgemm::nn::pool_kind::average;
  windows.axes[2] = {pixels, 3, 2};
  const auto pool = brgemm::nn::pool::plan(windows);
  if (!norm || !pool) return false;
  const auto size = static_cast<std::size_t>(pixels * channels);
  std::vector<float> x(size), y(size), dx(size), vectors(6 * channels, 0.7f);
  std::vector<float> saved(4 * channels), workspace(static_cast<std::size_t>(norm->workspace_bytes() / 4));
  for (std::size_t i = 0; i < size; ++i) x[i] = static_cast<float>(i * 37 % 101) / 7;
  float* const v = vectors.data();  // gamma, beta, the running mean and variance, dgamma, dbeta
  brgemm::loops::serial alone;
  bool right = norm->forward(alone, pixels, x.data(), v, v + channels, v + 2 * channels, v + 3 * channels, y.data(),
                             saved.data(), workspace.data()) &&
               norm->backward(alone, pixels, x.data(), y.data(), saved.data(), dx.data(), v + 4 * channels,
                              v + 5 * channels, workspace.data());
  for (const auto& result : {y, dx, vectors, saved}) h = digest(result.data(), result.size() * sizeof(float), h);
  right &= static_cast<bool>(pool->forward(alone, 1, dx.data(), y.data(), nullptr));
  h = digest(y.data(), static_cast<std::size_t>(pool->y_bytes()), h);
  return right;
}

}  // namespace

// Returns the digest, 0 where something failed or two backends disagree.
extern "C" unsigned long long USE_NAME() {
  using brgemm::op_kind;
  unsigned long long all[8] = {};
  int backends = 0;
  bool right = true;
  brgemm::backend::for_each([&](const brgemm::backend::entry& backend) {
    if (!backend.runs_here() || backend.name == "amx") return;  // tiles have neither f32 nor f64
    unsigned long long h = 0xcbf29ce484222325u;
    right &= run(desc_of(brgemm::type::f64, op_kind::none), backend.name, h);
    for (const op_kind step : {op_kind::none, op_kind::relu, op_kind::tanh, op_kind::gelu_erf, op_kind::silu}) {
      right &= run(desc_of(brgemm::type::f32, step), backend.name, h);
    }
    all[backends++] = h;
  });
  for (int i = 1; i < backends; ++i) right &= all[i] == all[0];
  right &= run_layers(all[0]);
  return right && backends > 0 ? all[0] : 0;
}
