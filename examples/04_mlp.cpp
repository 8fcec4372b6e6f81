// A network learns: which of two spirals does a point of the plane belong to?
#include <brgemm/brgemm.hpp>
#include <brgemm/train/classifier.hpp>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace {

/// Points (x, y, 1) of two spirals that turn around each other, and which of the two each is on.
struct spirals {
  std::vector<float> points;
  std::vector<std::int32_t> labels;
  explicit spirals(int count, brgemm::train::generator& random) {
    for (int i = 0; i < count; ++i) {
      const float turn = 9 * std::sqrt(random.uniform());
      const float side = i % 2 == 0 ? 0.1f : -0.1f;
      points.insert(points.end(), {side * turn * std::cos(turn), side * turn * std::sin(turn), 1});
      labels.push_back(i % 2);
    }
  }
};

int report(const brgemm::error& e) {
  std::fprintf(stderr, "%s\n", std::string(e.message()).c_str());
  return 1;
}

}  // namespace

int main() {
  constexpr brgemm::index batch = 128;
  const brgemm::index sizes[] = {3, 64, 64, 2};
  brgemm::train::generator random(1);

  // Plan once: kernels are made, one block of memory is laid out.
  auto threads = brgemm::loops::default_executor::make(2);
  auto network = brgemm::nn::mlp::make({.rows = batch, .sizes = sizes});
  if (!threads) return report(threads.error());
  if (!network) return report(network.error());
  auto trained = brgemm::train::initialise(*threads, *network, random);
  auto trainer = brgemm::train::classifier<brgemm::train::adam>::make(*network, {.learning_rate = 0.01f});
  if (!trained) return report(trained.error());
  if (!trainer) return report(trainer.error());

  // Then call: a step is forward, loss, backward and update, and allocates nothing.
  for (int step = 0; step <= 1000; ++step) {
    const spirals data(batch, random);
    const auto loss = trainer->step(*threads, {data.points.data(), {batch, 3}}, data.labels);
    if (!loss) return report(loss.error());
    if (step % 200 == 0) std::printf("step %4d  loss %.4f\n", step, *loss);
  }

  const spirals test(batch, random);
  const auto logits = network->forward(*threads, {test.points.data(), {batch, 3}});
  if (!logits) return report(logits.error());
  int right = 0;
  for (brgemm::index r = 0; r < batch; ++r) {
    right += ((*logits)(r, 1) > (*logits)(r, 0)) == (test.labels[static_cast<std::size_t>(r)] == 1);
  }
  std::printf("%d of %d points of another draw are right, on %s\n", right, static_cast<int>(batch),
              network->backend().data());
  return right >= 120 ? 0 : 1;
}
