// A convolutional network learns: does a picture show a ring or a disc, wherever it is and however large?
#include <brgemm/brgemm.hpp>
#include <brgemm/train/classifier.hpp>
#include <brgemm/train/convnet.hpp>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace {

constexpr brgemm::index batch = 64, side = 16;

/// Pictures of one channel with noise, and which of the two each shows.
struct shapes {
  std::vector<float> pixels;
  std::vector<std::int32_t> labels;
  explicit shapes(brgemm::train::generator& random) {
    for (int i = 0; i < batch; ++i) {
      const float radius = 3 + 2 * random.uniform(), x = 5 + 6 * random.uniform(), y = 5 + 6 * random.uniform();
      for (int p = 0; p < side * side; ++p) {
        const float distance = std::hypot(static_cast<float>(p % side) - x, static_cast<float>(p / side) - y);
        const bool inside = distance < radius && (i % 2 == 0 || distance > radius - 1.5f);
        pixels.push_back((inside ? 1.0f : 0.0f) + random.uniform() - 0.5f);
      }
      labels.push_back(i % 2);
    }
  }
  brgemm::view<const float, 2> x() const { return {pixels.data(), {batch, side * side}}; }
};

int report(const brgemm::error& e) {
  std::fprintf(stderr, "%s\n", std::string(e.message()).c_str());
  return 1;
}

}  // namespace

int main() {
  using brgemm::train::convnet;
  // Two stages of 3 x 3 convolution, batch normalisation, relu and the largest of 2 x 2 pixels; then a mean and a
  // layer.
  const brgemm::train::convnet_stage stages[] = {{.out = 16, .pool = 2}, {.out = 32, .pool = 2}};
  brgemm::train::generator random(1);

  auto threads = brgemm::loops::default_executor::make(2);
  auto network = convnet::make({.images = batch, .height = side, .width = side, .stages = stages, .classes = 2});
  if (!threads) return report(threads.error());
  if (!network) return report(network.error());
  auto begun = brgemm::train::initialise(*threads, *network, random);
  auto trainer = brgemm::train::classifier<brgemm::train::adam, convnet>::make(*network, {.learning_rate = 0.003f});
  if (!begun) return report(begun.error());
  if (!trainer) return report(trainer.error());

  for (int step = 0; step <= 200; ++step) {
    const shapes data(random);
    const auto loss = trainer->step(*threads, data.x(), data.labels);
    if (!loss) return report(loss.error());
    if (step % 50 == 0) std::printf("step %4d  loss %.4f\n", step, *loss);
  }

  const shapes test(random);
  const auto logits = network->predict(*threads, test.x());  // by the running statistics, each picture for itself
  if (!logits) return report(logits.error());
  int right = 0;
  for (brgemm::index r = 0; r < batch; ++r) {
    right += ((*logits)(r, 1) > (*logits)(r, 0)) == (test.labels[static_cast<std::size_t>(r)] == 1);
  }
  std::printf("%d of %d other pictures are right, on %s\n", right, static_cast<int>(batch),
              std::string(network->backend()).c_str());
  return right >= 58 ? 0 : 1;
}
