// The kernel of the library: C = sum of A_i * B_i, first made, then called.
#include <brgemm/brgemm.hpp>
#include <cstdio>
#include <string_view>
#include <vector>

namespace {
int report(const brgemm::error& e) {
  const std::string_view field = e.field(), message = e.message();
  std::fprintf(stderr, "%.*s: %.*s\n", static_cast<int>(field.size()), field.data(), static_cast<int>(message.size()),
               message.data());
  return 1;
}
}  // namespace

int main() {
  constexpr brgemm::index batch = 16, m = 23, n = 40, k = 64;
  std::vector<float> a(batch * m * k, 0.5f), b(batch * k * n, 2.0f), c(m * n);

  const brgemm::view<const float, 3> A{a.data(), {batch, m, k}};
  const brgemm::view<const float, 3> B{b.data(), {batch, k, n}};
  const brgemm::view<float, 2> C{c.data(), {m, n}};

  // Made once: code is generated at the first request for this desc, found in a cache after that.
  const auto kernel = brgemm::make_kernel(brgemm::describe(A, B, C, {.beta = 0}));
  if (!kernel) return report(kernel.error());  // a reason, in words

  // The call with views checks shapes, strides and overlap; a plain pointer call, without checks, is there too.
  if (const auto called = (*kernel)(A, B, C); !called) return report(called.error());
  std::printf("%s on %.*s: C(0,0) = %g\n", kernel->name().c_str(), static_cast<int>(kernel->backend().size()),
              kernel->backend().data(), static_cast<double>(C(0, 0)));

  // A wrong call is an error that names the argument, before anything is written.
  const brgemm::view<float, 2> small{c.data(), {m, n - 1}};
  const auto refused = (*kernel)(A, B, small);
  std::printf("refused: %s\n", refused.error().message().data());
  return C(0, 0) == 0.5f * 2.0f * k * batch && !refused ? 0 : 1;
}
