// Everything that a training run is, in one file: settings, where it stands, parameters and the optimizer's state.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace demo {

/// What the user chose; the bits of a run depend on nothing else (not on threads or backend).
struct settings {
  std::vector<std::int64_t> layers = {512, 512};  ///< sizes of the hidden layers
  std::string type = "f32";
  std::int64_t epochs = 12;
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
  std::int64_t steps = 0;
};

/// Calls f with every member: one list for writing and reading.
template <class Checkpoint, class F>
void each_member(Checkpoint& c, F&& f) {
  f(c.chosen.layers), f(c.chosen.type), f(c.chosen.epochs), f(c.chosen.batch), f(c.chosen.seed),
      f(c.chosen.learning_rate);
  f(c.done.epoch), f(c.done.batch), f(c.done.loss_sum), f(c.done.history);
  f(c.parameters), f(c.state), f(c.steps);
}

template <class T>
concept container = requires(T t) {
  t.resize(1);
};

inline constexpr std::uint64_t checkpoint_magic = 0x31'6d'6d'65'67'72'62;  // "brgemm1"

/// Written beside the file and then renamed, so that the file is always whole.
inline void save(const checkpoint& c, const std::string& path) {
  const std::string beside = path + ".part";
  std::ofstream file(beside, std::ios::binary);
  const auto write = [&](const void* from, std::size_t size) {
    file.write(static_cast<const char*>(from), static_cast<std::streamsize>(size));
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
  file.close();
  if (!file) throw std::runtime_error("cannot write " + beside);
  std::filesystem::rename(beside, path);
}

inline checkpoint load_checkpoint(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  const std::uint64_t whole = std::filesystem::file_size(path);
  const auto read = [&](void* to, std::size_t size) {
    file.read(static_cast<char*>(to), static_cast<std::streamsize>(size));
    if (!file) throw std::runtime_error(path + " is no whole checkpoint");
  };
  std::uint64_t magic = 0;
  read(&magic, sizeof magic);
  if (magic != checkpoint_magic) throw std::runtime_error(path + " is no checkpoint of this program");
  checkpoint c;
  each_member(c, [&]<class T>(T& member) {
    if constexpr (container<T>) {
      std::uint64_t size = 0;
      read(&size, sizeof size);
      if (size > whole / sizeof(member[0])) throw std::runtime_error(path + " is no whole checkpoint");
      member.resize(size);
      read(member.data(), size * sizeof(member[0]));
    } else {
      read(&member, sizeof member);
    }
  });
  return c;
}

}  // namespace demo
