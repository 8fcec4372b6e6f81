// An epilogue runs while C is still in registers: here y = relu(x * W + bias) + residual, and the bits that a backward
// pass needs of relu.
#include <brgemm/brgemm.hpp>
#include <cstdint>
#include <cstdio>
#include <vector>

int main() {
  namespace op = brgemm::op;
  constexpr brgemm::index m = 4, n = 20, k = 8, mask_bytes = (n + 7) / 8;
  std::vector<float> x(m * k, 1.0f), w(k * n), y(m * n), bias(n, 2.0f), residual(m * n, 100.0f);
  std::vector<std::uint8_t> mask(m * mask_bytes);
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = i % n < 10 ? -1.0f : 1.0f;  // ten negative columns, ten positive

  const brgemm::view<const float, 3> A{x.data(), {1, m, k}};
  const brgemm::view<const float, 3> B{w.data(), {1, k, n}};
  const brgemm::view<float, 2> C{y.data(), {m, n}};

  // Steps run in the order of the list. The second writes bit j%8 of byte j/8 of row r where C(r,j) was above 0.
  const auto kernel =
      brgemm::make_kernel(brgemm::describe(A, B, C, {.epilogue = {op::bias(), op::relu_mask(mask_bytes), op::add(n)}}));
  if (!kernel) return std::fprintf(stderr, "%s\n", kernel.error().message().data()), 1;

  // One operand a step, in the same order.
  const auto called = (*kernel)(A, B, C, {.operands = {bias.data(), mask.data(), residual.data()}});
  if (!called) return std::fprintf(stderr, "%s\n", called.error().message().data()), 1;

  std::printf("%s\n", kernel->name().c_str());
  std::printf("y(0,0) = %g, y(0,19) = %g, mask of row 0: %02x %02x %02x\n", static_cast<double>(C(0, 0)),
              static_cast<double>(C(0, 19)), mask[0], mask[1], mask[2]);
  const bool right = C(0, 0) == 100.0f && C(0, 19) == 110.0f && mask[0] == 0x00 && mask[1] == 0xfc && mask[2] == 0x0f;
  return right ? 0 : 1;
}
