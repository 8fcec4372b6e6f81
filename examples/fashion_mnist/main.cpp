// Trains a network on the 60,000 training pictures of Fashion-MNIST and tests it on the 10,000 others.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <brgemm/brgemm.hpp>
#include <brgemm/train/classifier.hpp>
#include <brgemm/train/convnet.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <numeric>
#include <thread>

#include "checkpoint.hpp"
#include "peak.hpp"
#include "pictures.hpp"

namespace demo {
namespace {

namespace train = brgemm::train;
using brgemm::index;
using clock = std::chrono::steady_clock;

volatile std::sig_atomic_t interrupted = 0;

template <class T>
T take(brgemm::result<T> r) {
  if (!r) throw std::runtime_error(std::string(r.error().field()) + ": " + std::string(r.error().message()));
  return std::move(*r);
}
void take(const brgemm::result<void>& r) {
  if (!r) throw std::runtime_error(std::string(r.error().field()) + ": " + std::string(r.error().message()));
}

double seconds_since(clock::time_point start) { return std::chrono::duration<double>(clock::now() - start).count(); }

/// Rows of the network's input from pictures: the mean and deviation of the training pictures' bytes become 0 and 1.
class input {
 public:
  input(const pictures& training, index batch) : x_(static_cast<std::size_t>(batch) * picture_size) {
    double sum = 0, squares = 0;
    for (const double byte : training.bytes) sum += byte, squares += byte * byte;
    const double mean = sum / static_cast<double>(training.bytes.size());
    scale_ = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(training.bytes.size()) - mean * mean));
    shift_ = static_cast<float>(-mean) * scale_;
    labels_.reserve(static_cast<std::size_t>(batch));
  }

  /// Takes the pictures with these numbers.
  void load(brgemm::loops::executor_ref threads, const pictures& from, std::span<const std::uint32_t> numbers) {
    brgemm::loops::parallel_for(threads, {static_cast<index>(numbers.size())}, [&](index r) {
      const auto row = static_cast<std::size_t>(r);
      const std::uint8_t* const bytes = &from.bytes[numbers[row] * picture_size];
      float* const x = &x_[row * picture_size];
      for (std::size_t i = 0; i < picture_size; ++i) x[i] = static_cast<float>(bytes[i]) * scale_ + shift_;
    });
    labels_.clear();
    for (const std::uint32_t n : numbers) labels_.push_back(from.labels[n]);
  }
  brgemm::view<const float, 2> x() const { return {x_.data(), {static_cast<index>(labels_.size()), picture_size}}; }
  std::span<const std::int32_t> labels() const { return labels_; }

 private:
  std::vector<float> x_;
  std::vector<std::int32_t> labels_;
  float scale_, shift_;
};

using logits = brgemm::view<const float, 2>;
logits predict(brgemm::loops::executor_ref threads, brgemm::nn::mlp& network, const input& in) {
  return take(network.forward(threads, in.x()));
}
logits predict(brgemm::loops::executor_ref threads, train::convnet& network, const input& in) {
  return take(network.predict(threads, in.x()));
}

/// The class of each picture as the network sees it.
template <class Network>
std::vector<int> predict_all(brgemm::loops::executor_ref threads, Network& network, input& in, const pictures& test) {
  std::vector<std::uint32_t> numbers(test.size());
  std::iota(numbers.begin(), numbers.end(), 0u);
  const auto batch = static_cast<std::size_t>(network.rows());
  std::vector<int> predicted;
  for (std::size_t first = 0; first < test.size(); first += batch) {
    in.load(threads, test, std::span(numbers).subspan(first, std::min(batch, test.size() - first)));
    const logits found = predict(threads, network, in);
    for (index r = 0; r < found.extent(0); ++r) {
      const float* const row = &found(r, 0);
      predicted.push_back(static_cast<int>(std::max_element(row, row + found.extent(1)) - row));
    }
  }
  return predicted;
}

double accuracy_of(const std::vector<int>& predicted, const pictures& test) {
  std::size_t right = 0;
  for (std::size_t i = 0; i < predicted.size(); ++i) right += predicted[i] == test.labels[i];
  return static_cast<double>(right) / static_cast<double>(predicted.size());
}

void print_confusion(const std::vector<int>& predicted, const pictures& test) {
  int counts[10][10] = {};
  for (std::size_t i = 0; i < predicted.size(); ++i) ++counts[test.labels[i]][predicted[i]];
  std::printf("\n%-10s", "is \\ seen");
  for (const char* name : class_names) std::printf(" %8s", name);
  for (std::size_t is = 0; is < 10; ++is) {
    std::printf("\n%-10s", class_names[is]);
    for (const int count : counts[is]) std::printf(" %8d", count);
  }
  std::printf("\n\n");
}

/// One line that is written over while an epoch runs; on a terminal only.
void print_bar(std::int64_t epoch, std::int64_t epochs, double share, const std::string& figures) {
  if (isatty(STDOUT_FILENO) == 0) return;
  constexpr int width = 24;
  std::string bar(width, ' ');
  bar.replace(0, static_cast<std::size_t>(share * width), static_cast<std::size_t>(share * width), '#');
  std::printf("\repoch %2ld/%ld [%s] %s\033[K", static_cast<long>(epoch + 1), static_cast<long>(epochs), bar.c_str(),
              figures.c_str());
  std::fflush(stdout);
}

/// Loss, pictures/s, GFLOP/s and the share of what the machine can do.
std::string figures_text(double loss, double pictures, double seconds, double operations, double peak) {
  char text[160];
  const double rate = operations / seconds * 1e-9;
  std::snprintf(text, sizeof text, "loss %.4f  %7.0f pictures/s  %6.1f GFLOP/s = %4.1f %% of the measured peak", loss,
                pictures / seconds, rate, peak > 0 ? 100 * rate / peak : 0);
  return text;
}

/// The learning rate falls linearly to 0 over the run.
float rate_at(const settings& s, std::int64_t step, std::int64_t steps) {
  return static_cast<float>(s.learning_rate * (1 - static_cast<double>(step) / static_cast<double>(steps)));
}

/// The network of the settings, an mlp or a cnn.
template <class Network>
Network make_network(const settings& s, const std::string& backend) {
  const auto data = s.type == "bf16" ? brgemm::type::bf16 : brgemm::type::f32;
  const auto sums = s.sums == "tile"   ? brgemm::order::tile
                    : s.sums == "pair" ? brgemm::order::pair
                                       : brgemm::order::chain;
  if constexpr (std::is_same_v<Network, brgemm::nn::mlp>) {
    std::vector<index> sizes{picture_size};
    sizes.insert(sizes.end(), s.layers.begin(), s.layers.end());
    sizes.push_back(class_names.size());
    return take(Network::make({.rows = s.batch, .sizes = sizes, .data = data, .sums = sums}, {.backend = backend}));
  } else {
    // 3 x 3 convolutions; behind the first two the largest of 2 x 2 pixels: 28 x 28, 14 x 14, 7 x 7.
    std::vector<train::convnet_stage> stages;
    for (const auto channels : s.layers) stages.push_back({.out = channels, .pool = stages.size() < 2 ? 2 : 1});
    return take(Network::make({.images = s.batch,
                               .height = picture_side,
                               .width = picture_side,
                               .stages = stages,
                               .classes = class_names.size(),
                               .data = data,
                               .sums = sums},
                              {.backend = backend}));
  }
}

/// What a checkpoint keeps beside parameters.
std::span<float> statistics_of(brgemm::nn::mlp&) { return {}; }
std::span<float> statistics_of(train::convnet& network) { return network.statistics(); }

/// A training run; `run` returns false where Ctrl-C ended it.
template <class Network>
class training {
 public:
  training(checkpoint& c, const pictures& set, const pictures& test, const std::string& backend,
           brgemm::loops::executor_ref threads, bool resumed)
      : c_(c),
        set_(set),
        test_(test),
        threads_(threads),
        in_(set, c.chosen.batch),
        network_(make_network<Network>(c.chosen, backend)) {
    trainer_.emplace(take(trainer::make(network_, {.momentum = 0.9f, .weight_decay = 1e-4f})));
    if (!resumed) {
      train::generator random(c.chosen.seed);
      take(train::initialise(threads, network_, random));
      return;
    }
    if (c.parameters.size() != network_.parameters().size() || c.state.size() != trainer_->state().size() ||
        c.statistics.size() != statistics_of(network_).size()) {
      throw std::runtime_error("the checkpoint's parameters do not fit its layers");
    }
    std::copy(c.parameters.begin(), c.parameters.end(), network_.parameters().begin());
    std::copy(c.state.begin(), c.state.end(), trainer_->state().begin());
    for (std::size_t i = 0; i < c.statistics.size(); ++i) statistics_of(network_)[i] = c.statistics[i];
    trainer_->set_steps(c.steps);
    take(network_.prepare(threads));
  }

  bool run() {
    while (c_.done.epoch < c_.chosen.epochs) {
      if (!run_epoch()) return false;
    }
    return true;
  }
  void keep() {
    c_.parameters.assign(network_.parameters().begin(), network_.parameters().end());
    c_.state.assign(trainer_->state().begin(), trainer_->state().end());
    c_.statistics.assign(statistics_of(network_).begin(), statistics_of(network_).end());
    c_.steps = trainer_->steps();
  }
  std::vector<int> predictions() { return predict_all(threads_, network_, in_, test_); }
  std::string_view backend() const { return network_.backend(); }

 private:
  using trainer = train::classifier<train::sgd, Network>;

  bool run_epoch() {
    const auto batch = static_cast<std::size_t>(c_.chosen.batch);
    const std::size_t batches = (set_.size() + batch - 1) / batch;
    std::vector<std::uint32_t> order(set_.size());
    // The order depends on seed and epoch alone, so that a resumed run goes on with the same.
    train::generator random(c_.chosen.seed * 1'000'003 + static_cast<std::uint64_t>(c_.done.epoch) + 1);
    train::shuffle(random, order);
    const double peak = measured_peak(threads_, c_.chosen.type == "bf16" ? brgemm::type::bf16 : brgemm::type::f32);
    progress& done = c_.done;
    const auto start = clock::now();
    double seen = 0, shown = 0, operations = 0;
    const auto figures = [&] {
      const auto pictures_done =
          static_cast<double>(std::min(static_cast<std::size_t>(done.batch) * batch, set_.size()));
      return figures_text(done.loss_sum / pictures_done, seen, seconds_since(start), operations, peak);
    };
    for (; static_cast<std::size_t>(done.batch) < batches; ++done.batch) {
      if (interrupted != 0) return false;
      const std::size_t first = static_cast<std::size_t>(done.batch) * batch;
      in_.load(threads_, set_, std::span(order).subspan(first, std::min(batch, set_.size() - first)));
      const index rows = in_.x().extent(0);
      trainer_->optimizer().learning_rate =
          rate_at(c_.chosen, trainer_->steps(), c_.chosen.epochs * static_cast<std::int64_t>(batches));
      done.loss_sum += take(trainer_->step(threads_, in_.x(), in_.labels())) * static_cast<double>(rows);
      seen += static_cast<double>(rows);
      operations += network_.step_operations(rows);
      if (seconds_since(start) < shown) continue;
      shown = seconds_since(start) + 0.1;
      ++done.batch;
      print_bar(done.epoch, c_.chosen.epochs, static_cast<double>(done.batch) / static_cast<double>(batches),
                figures());
      --done.batch;
    }
    const std::string text = figures();
    done.history.push_back({done.loss_sum / static_cast<double>(set_.size()), accuracy_of(predictions(), test_)});
    std::printf("%sepoch %2ld/%ld  %s  test %.2f %%\n", isatty(STDOUT_FILENO) != 0 ? "\r\033[K" : "",
                static_cast<long>(done.epoch + 1), static_cast<long>(c_.chosen.epochs), text.c_str(),
                100 * done.history.back().accuracy);
    std::fflush(stdout);
    ++done.epoch, done.batch = 0, done.loss_sum = 0;
    return true;
  }

  checkpoint& c_;
  const pictures& set_;
  const pictures& test_;
  brgemm::loops::executor_ref threads_;
  input in_;
  Network network_;
  std::optional<trainer> trainer_;
};

/// What plot.py draws: the learning curve, and for each test picture its class and the one seen.
void write_results(const std::string& folder, const progress& done, const std::vector<int>& predicted,
                   const pictures& test) {
  std::ofstream history(folder + "/history.csv");
  history << "epoch,loss,accuracy\n";
  for (std::size_t e = 0; e < done.history.size(); ++e) {
    history << e + 1 << ',' << done.history[e].loss << ',' << done.history[e].accuracy << '\n';
  }
  std::ofstream predictions(folder + "/predictions.csv");
  predictions << "picture,class,predicted,class_name,predicted_name\n";
  for (std::size_t i = 0; i < predicted.size(); ++i) {
    const auto seen = static_cast<std::size_t>(predicted[i]);
    predictions << i << ',' << int{test.labels[i]} << ',' << seen << ',' << class_names[test.labels[i]] << ','
                << class_names[seen] << '\n';
  }
  if (!history.flush() || !predictions.flush()) throw std::runtime_error("cannot write into " + folder);
}

/// A resumed run goes on with the checkpoint's settings: any other that is asked for is refused.
void expect_same_settings(const CLI::App& app, const settings& asked, const settings& kept) {
  const auto expect = [&app](const char* option, bool same) {
    if (app.count(option) == 0 || same) return;
    throw std::runtime_error(std::string(option) + " differs from the checkpoint's, with which --resume goes on");
  };
  expect("--network", asked.network == kept.network);
  expect("--type", asked.type == kept.type);
  expect("--epochs", asked.epochs == kept.epochs);
  expect("--layers", asked.layers == kept.layers);
  expect("--batch", asked.batch == kept.batch);
  expect("--learning-rate", asked.learning_rate == kept.learning_rate);
  expect("--seed", asked.seed == kept.seed);
}

/// Opens all that the run will write into the folder: what is forbidden is found before the training, not after it.
void expect_writable(const std::string& folder) {
  std::filesystem::create_directories(folder);
  for (const char* name : {"checkpoint", "checkpoint.part", "history.csv", "predictions.csv"}) {
    const std::string path = folder + "/" + name;
    const bool there = std::filesystem::exists(path);
    if (!std::ofstream(path, std::ios::app)) throw std::runtime_error("cannot write " + path);
    if (!there) std::filesystem::remove(path);
  }
}

/// The whole run, and what the program ends with.
template <class Network>
int train_and_test(checkpoint& c, const pictures& set, const pictures& test, const std::string& backend, int threads,
                   const std::string& output, bool resumed) {
  auto executor = take(brgemm::loops::default_executor::make(threads));
  std::signal(SIGINT, [](int) { interrupted = 1; });
  const auto start = clock::now();
  training<Network> t(c, set, test, backend, executor, resumed);
  const settings& s = c.chosen;
  std::string sizes;
  for (const auto size : s.layers) sizes += std::to_string(size) + "-";
  std::printf("%s%zu-%s10, %s, %s, %d thread%s, batch %ld, seed %lu%s\n", s.network == "cnn" ? "cnn " : "",
              picture_size, sizes.c_str(), s.type.c_str(), std::string(t.backend()).c_str(), threads,
              threads == 1 ? "" : "s", static_cast<long>(s.batch), static_cast<unsigned long>(s.seed),
              resumed ? ", resumed" : "");
  std::fflush(stdout);
  const bool finished = t.run();
  t.keep();
  const std::string checkpoint_path = output + "/checkpoint";
  save(c, checkpoint_path);
  if (!finished) {
    std::printf("%sInterrupted in epoch %ld; %s has it all. Go on with --resume.\n",
                isatty(STDOUT_FILENO) != 0 ? "\n" : "", static_cast<long>(c.done.epoch + 1), checkpoint_path.c_str());
    return 130;
  }
  const std::vector<int> predicted = t.predictions();
  print_confusion(predicted, test);
  write_results(output, c.done, predicted, test);
  std::printf("%.2f %% of %zu test pictures right after %ld epochs, %.1f s\n", 100 * accuracy_of(predicted, test),
              test.size(), static_cast<long>(s.epochs), seconds_since(start));
  return 0;
}

int run(int argc, char** argv) {
  CLI::App app{"Trains a network on Fashion-MNIST with brgemm. Ctrl-C ends it with a checkpoint."};
  checkpoint c;
  settings& s = c.chosen;
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::string backend, data = "/usr/share/datasets/fashion-mnist", output = "demo-output";
  bool resume = false;
  app.add_option("--threads", threads, "threads")->capture_default_str()->check(CLI::Range(1, 1024));
  app.add_option("--network", s.network, "cnn: convolutions; mlp: fully connected layers")
      ->capture_default_str()
      ->check(CLI::IsMember({"cnn", "mlp"}));
  app.add_option("--type", s.type, "f32, or bf16 with f32 parameters")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  app.add_option("--backend", backend, "reference, avx2, avx512, amx, ...; the best one without it");
  app.add_option("--epochs", s.epochs, "passes over the training pictures [cnn 8, mlp 12]")
      ->check(CLI::Range(1, 10000));
  app.add_option("--layers", s.layers, "channels [32,64,128]; mlp: sizes of the hidden layers [512,512]")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--batch", s.batch, "pictures a step")->capture_default_str()->check(CLI::Range(1, 60000));
  app.add_option("--learning-rate", s.learning_rate, "at the start; it falls linearly to 0")->capture_default_str();
  app.add_option("--seed", s.seed, "of the first weights and the orders of pictures")->capture_default_str();
  app.add_option("--data", data, "folder of the four IDX files")->capture_default_str();
  app.add_option("--output", output, "folder for the checkpoint and the results")->capture_default_str();
  app.add_flag("--resume", resume,
               "go on from the checkpoint, with its settings (threads, backend and machine may differ)");
  CLI11_PARSE(app, argc, argv);

  if (!(s.learning_rate > 0) || !std::isfinite(static_cast<float>(s.learning_rate))) {
    throw std::runtime_error("--learning-rate must be a finite number above 0");
  }

  const bool convolutions = s.network == "cnn";
  if (s.epochs == 0) s.epochs = convolutions ? 8 : 12;
  if (s.layers.empty()) s.layers = convolutions ? std::vector<index>{32, 64, 128} : std::vector<index>{512, 512};
  if (s.type == "bf16") {
    brgemm::desc product;
    product.a = product.b = brgemm::type::bf16;
    s.sums = brgemm::machine_order(product) == brgemm::order::tile ? "tile" : "pair";
  }
  if (resume) {
    const settings asked = s;
    c = load_checkpoint(output + "/checkpoint");
    expect_same_settings(app, asked, s);
  }
  expect_writable(output);
  const pictures set = load_pictures(data, "train");
  if (resume) check(c, set.size());
  const pictures test = load_pictures(data, "t10k");
  return s.network == "cnn" ? train_and_test<train::convnet>(c, set, test, backend, threads, output, resume)
                            : train_and_test<brgemm::nn::mlp>(c, set, test, backend, threads, output, resume);
}

}  // namespace
}  // namespace demo

int main(int argc, char** argv) try { return demo::run(argc, argv); } catch (const std::exception& e) {
  std::fprintf(stderr, "fashion_mnist: %s\n", e.what());
  return 1;
}
