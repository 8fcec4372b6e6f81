// Reads pictures and labels of Fashion-MNIST: IDX files, compressed with gzip.
#pragma once

#include <zlib.h>

#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace demo {

inline constexpr std::size_t picture_side = 28;
inline constexpr std::size_t picture_size = picture_side * picture_side;
inline constexpr std::array<const char*, 10> class_names = {"T-shirt", "Trouser", "Pullover", "Dress", "Coat",
                                                            "Sandal",  "Shirt",   "Sneaker",  "Bag",   "Boot"};

/// The bytes of an IDX file behind its header: 0, 0, 8 (bytes), the number of sizes, then each size as 4 bytes, the
/// largest first. Throws std::runtime_error where the file is not that.
inline std::vector<std::uint8_t> read_idx(const std::string& path, std::size_t bytes_an_item) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) throw std::runtime_error("cannot open " + path + " (Debian: apt-get install dataset-fashion-mnist)");
  const auto read = [&](void* to, std::size_t size) {
    if (gzread(file.get(), to, static_cast<unsigned>(size)) != static_cast<int>(size)) {
      throw std::runtime_error(path + " is too short, or not compressed with gzip");
    }
  };
  std::uint8_t header[4];
  read(header, 4);
  if (header[0] != 0 || header[1] != 0 || header[2] != 8) throw std::runtime_error(path + " is no IDX file of bytes");
  std::size_t items = 0, size = 1;
  for (int d = 0; d < header[3]; ++d) {
    std::uint8_t extent[4];
    read(extent, 4);
    std::size_t value = 0;
    for (const std::uint8_t byte : extent) value = value << 8 | byte;
    if (d == 0) items = value;
    if (d > 0) size *= value;
  }
  if (size != bytes_an_item) throw std::runtime_error(path + " has items of another size");
  std::vector<std::uint8_t> bytes(items * size);
  read(bytes.data(), bytes.size());
  return bytes;
}

/// Pictures of 28 x 28 bytes with a label 0..9 each.
struct pictures {
  std::vector<std::uint8_t> bytes;
  std::vector<std::uint8_t> labels;
  std::size_t size() const { return labels.size(); }
};

/// `which` is "train" (60,000) or "t10k" (10,000).
inline pictures load_pictures(const std::string& folder, const std::string& which) {
  pictures p{read_idx(folder + "/" + which + "-images-idx3-ubyte.gz", picture_size),
             read_idx(folder + "/" + which + "-labels-idx1-ubyte.gz", 1)};
  if (p.bytes.size() != p.size() * picture_size) throw std::runtime_error("as many labels as pictures are needed");
  return p;
}

}  // namespace demo
