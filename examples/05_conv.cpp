// A convolution: 3 x 3 over a picture with 3 channels, bias and relu; padding needs no copy of the picture.
#include <brgemm/brgemm.hpp>
#include <cstdio>
#include <vector>

int main() {
  brgemm::nn::conv_desc d;
  d.images = 2;
  d.in = 3, d.out = 16;
  d.axes[1] = {.in = 32, .kernel = 3, .pad_before = 1, .pad_after = 1};  // height
  d.axes[2] = {.in = 48, .kernel = 3, .pad_before = 1, .pad_after = 1};  // width
  d.act = brgemm::nn::activation::relu;
  const auto layer = brgemm::nn::conv::plan(d);
  if (!layer) return std::fprintf(stderr, "%s\n", layer.error().message().data()), 1;

  // x (images, height, width, in), weights as PyTorch has them: (out, in, 3, 3).
  std::vector<float> x(2 * 32 * 48 * 3), w(16 * 3 * 3 * 3), bias(16, 0.5f), y(2 * 32 * 48 * 16);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 11) / 11;
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i % 7) / 7 - 0.4f;

  auto threads = brgemm::loops::thread_pool::make(2);
  if (!threads) return std::fprintf(stderr, "%s\n", threads.error().message().data()), 1;
  std::vector<float> packed(static_cast<std::size_t>(layer->weights_bytes()) / sizeof(float));
  if (auto r = layer->pack_weights(*threads, w.data(), brgemm::nn::conv_weights::out_first, packed.data()); !r) {
    return std::fprintf(stderr, "%s\n", r.error().message().data()), 1;
  }
  if (auto r = layer->forward(*threads, 2, x.data(), packed.data(), bias.data(), y.data()); !r) {
    return std::fprintf(stderr, "%s\n", r.error().message().data()), 1;
  }
  std::printf("%s: y(0, 0, 0, :) =", layer->backend().data());
  for (int k = 0; k < 4; ++k) std::printf(" %g", static_cast<double>(y[static_cast<std::size_t>(k)]));
  std::printf(" ...\n");
  return 0;
}
