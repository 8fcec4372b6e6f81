// Reads arrays of .npz files (a zip of .npy) with libzip, for tests that compare with values made elsewhere.
#pragma once

#include <zip.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace npz {

struct array {
  std::vector<std::int64_t> shape;
  std::vector<double> values;  ///< row-major; f32 and int64 fit without loss where |x| < 2^53
};

/// The array `name` of an archive. Throws std::runtime_error for what numpy writes but this does not need.
inline array load(const std::string& path, const std::string& name) {
  int reason = 0;
  const std::unique_ptr<zip_t, void (*)(zip_t*)> archive(zip_open(path.c_str(), ZIP_RDONLY, &reason), zip_discard);
  if (!archive) throw std::runtime_error("cannot open " + path);
  zip_stat_t about;
  const std::string member = name + ".npy";
  if (zip_stat(archive.get(), member.c_str(), 0, &about) != 0) throw std::runtime_error("no " + member + " in " + path);
  const std::unique_ptr<zip_file_t, int (*)(zip_file_t*)> file(zip_fopen(archive.get(), member.c_str(), 0), zip_fclose);
  std::string bytes(about.size, '\0');
  if (!file || zip_fread(file.get(), bytes.data(), about.size) != static_cast<zip_int64_t>(about.size)) {
    throw std::runtime_error("cannot read " + member);
  }
  // "\x93NUMPY", version 1.0, length of the header (u16), a Python dictionary, then the data.
  std::uint16_t header_size = 0;
  std::memcpy(&header_size, bytes.data() + 8, 2);
  const std::string header = bytes.substr(10, header_size);
  if (bytes.compare(1, 5, "NUMPY") != 0 || bytes[6] != 1 ||
      header.find("'fortran_order': False") == std::string::npos) {
    throw std::runtime_error(member + ": not a row-major .npy of version 1");
  }
  array result;
  std::size_t count = 1;
  for (std::size_t at = header.find("'shape': (") + 10; header[at] != ')';) {
    if (header[at] < '0' || header[at] > '9') {
      ++at;
      continue;
    }
    char* end = nullptr;
    result.shape.push_back(std::strtoll(header.c_str() + at, &end, 10));
    count *= static_cast<std::size_t>(result.shape.back());
    at = static_cast<std::size_t>(end - header.c_str());
  }
  const char* data = bytes.data() + 10 + header_size;
  const auto read = [&]<class T>(T value) {
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(&value, data + i * sizeof(T), sizeof(T));
      result.values.push_back(static_cast<double>(value));
    }
  };
  if (header.find("'<f4'") != std::string::npos) {
    read(float{});
  } else if (header.find("'<i8'") != std::string::npos) {
    read(std::int64_t{});
  } else {
    throw std::runtime_error(member + ": element type not read here: " + header);
  }
  return result;
}

/// The folder of the gradient files: in what the environment's BRGEMM_SHARED_DIR names, else where the build says. ""
/// where there is none.
inline std::string gradient_folder() {
  const char* shared = std::getenv("BRGEMM_SHARED_DIR");
#if defined(BRGEMM_SHARED_DIR)
  if (shared == nullptr) shared = BRGEMM_SHARED_DIR;
#endif
  const std::string folder = std::string(shared != nullptr ? shared : "") + "/data/gradients";
  return std::filesystem::exists(folder) ? folder : std::string();
}

}  // namespace npz
