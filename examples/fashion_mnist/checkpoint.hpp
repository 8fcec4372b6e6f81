// Everything that a training run is, in one file: settings, where it stands, parameters and the optimizer's state.
#pragma once

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace demo {

/// What the user chose; the bits of a run depend on nothing else (not on threads or backend).
struct settings {
  std::vector<std::int64_t> layers;  ///< mlp: sizes of the hidden layers; cnn: channels of the convolutions
  std::string type = "f32";
  std::string sums = "chain";  ///< bf16: the order of the machine that the run began on, pair or tile
  std::string network = "cnn";
  std::int64_t epochs = 0;
  std::int64_t batch = 128;
  std::uint64_t seed = 1;
  double learning_rate = 0.1;
};

/// One finished epoch.
struct epoch_result {
  double loss = 0;      ///< mean over the training pictures, each before its step
  double accuracy = 0;  ///< of the test pictures, after the epoch
};

/// Where a run stands: `batch` batches of epoch `epoch` are done.
struct progress {
  std::int64_t epoch = 0;
  std::int64_t batch = 0;
  double loss_sum = 0;  ///< over the pictures of this epoch so far
  std::vector<epoch_result> history;
};

struct checkpoint {
  settings chosen;
  progress done;
  std::vector<float> parameters;
  std::vector<float> state;
  std::vector<float> statistics;  ///< of batch normalisation
  std::int64_t steps = 0;
};

/// Calls f with every member: one list for writing and reading.
template <class Checkpoint, class F>
void each_member(Checkpoint& c, F&& f) {
  f(c.chosen.layers), f(c.chosen.type), f(c.chosen.sums), f(c.chosen.network), f(c.chosen.epochs), f(c.chosen.batch),
      f(c.chosen.seed), f(c.chosen.learning_rate);
  f(c.done.epoch), f(c.done.batch), f(c.done.loss_sum), f(c.done.history);
  f(c.parameters), f(c.state), f(c.statistics), f(c.steps);
}

template <class T>
concept container = requires(T t) {
  t.resize(1);
};

inline constexpr std::uint64_t checkpoint_magic = 0x34'6d'6d'65'67'72'62;  // "brgemm4"

inline std::uint64_t checksum_of(std::span<const char> bytes) {
  return crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
}

/// Written beside the file and then renamed, so that the file is always whole. It ends with the checksum of the rest.
inline void save(const checkpoint& c, const std::string& path) {
  std::vector<char> bytes;
  const auto write = [&](const void* from, std::size_t size) {
    bytes.insert(bytes.end(), static_cast<const char*>(from), static_cast<const char*>(from) + size);
  };
  write(&checkpoint_magic, sizeof checkpoint_magic);
  each_member(c, [&]<class T>(const T& member) {
    if constexpr (container<T>) {
      const std::uint64_t size = member.size();
      write(&size, sizeof size);
      write(member.data(), size * sizeof(member[0]));
    } else {
      write(&member, sizeof member);
    }
  });
  const std::uint64_t checksum = checksum_of(bytes);
  write(&checksum, sizeof checksum);
  const std::string beside = path + ".part";
  std::ofstream file(beside, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) throw std::runtime_error("cannot write " + beside);
  std::filesystem::rename(beside, path);
}

/// Throws std::runtime_error where the file is not as `save` wrote it. What it says is not checked here.
inline checkpoint load_checkpoint(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::span<const char> left(bytes);
  const auto read = [&](void* to, std::size_t size) {
    if (size > left.size()) throw std::runtime_error(path + " is no whole checkpoint");
    std::copy_n(left.begin(), size, static_cast<char*>(to));
    left = left.subspan(size);
  };
  std::uint64_t magic = 0;
  read(&magic, sizeof magic);
  if (magic != checkpoint_magic) throw std::runtime_error(path + " is no checkpoint of this program");
  std::uint64_t checksum = 0;
  if (left.size() < sizeof checksum) throw std::runtime_error(path + " is no whole checkpoint");
  std::copy_n(left.end() - sizeof checksum, sizeof checksum, reinterpret_cast<char*>(&checksum));
  left = left.first(left.size() - sizeof checksum);
  if (checksum_of(std::span(bytes).first(bytes.size() - sizeof checksum)) != checksum) {
    throw std::runtime_error(path + " is damaged: its checksum is not that of its bytes");
  }
  checkpoint c;
  each_member(c, [&]<class T>(T& member) {
    if constexpr (container<T>) {
      std::uint64_t size = 0;
      read(&size, sizeof size);
      if (size > left.size() / sizeof(member[0])) throw std::runtime_error(path + " is no whole checkpoint");
      member.resize(size);
      read(member.data(), size * sizeof(member[0]));
    } else {
      read(&member, sizeof member);
    }
  });
  if (!left.empty()) throw std::runtime_error(path + " has bytes behind its end");
  return c;
}

/// Throws std::runtime_error where settings and progress are none that this program writes for so many pictures.
inline void check(const checkpoint& c, std::size_t pictures) {
  const auto expect = [](bool holds, const std::string& what, const auto& value) {
    if (holds) return;
    std::ostringstream text;
    text << "the checkpoint says " << what << " " << value << ", which this program does not write";
    throw std::runtime_error(text.str());
  };
  const settings& s = c.chosen;
  const progress& done = c.done;
  for (const std::int64_t size : s.layers) expect(size >= 1 && size <= 1 << 20, "a layer of", size);
  expect(!s.layers.empty(), "hidden layers:", s.layers.size());
  expect(s.network == "cnn" || s.network == "mlp", "network", s.network);
  expect(s.type == "f32" || s.type == "bf16", "type", s.type);
  expect(s.type == "f32" ? s.sums == "chain" : s.sums == "pair" || s.sums == "tile", "sums", s.sums);
  expect(s.epochs >= 1 && s.epochs <= 10'000, "epochs", s.epochs);
  expect(s.batch >= 1 && s.batch <= 60'000, "batch", s.batch);
  expect(s.learning_rate > 0 && std::isfinite(s.learning_rate), "learning rate", s.learning_rate);
  const std::int64_t batches = (static_cast<std::int64_t>(pictures) + s.batch - 1) / s.batch;
  expect(done.epoch >= 0 && done.epoch <= s.epochs, "finished epochs", done.epoch);
  expect(done.history.size() == static_cast<std::size_t>(done.epoch), "epochs in the history", done.history.size());
  expect(done.batch >= 0 && done.batch < batches && (done.epoch < s.epochs || done.batch == 0), "finished batches",
         done.batch);
  expect(c.steps == done.epoch * batches + done.batch, "steps", c.steps);
}

}  // namespace demo
