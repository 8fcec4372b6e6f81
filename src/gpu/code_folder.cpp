#include "code_folder.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "brgemm/version.hpp"

namespace brgemm::inline abi_0::cuda {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view magic = "brgemm code 1\n";
constexpr std::string_view ending = ".cubin";

/// FNV-1a, from a start of one's own.
std::uint64_t hash_of(std::string_view text, std::uint64_t hash = 0xcbf29ce484222325u) {
  for (const char letter : text) hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001b3u;
  return hash;
}

std::string words(std::initializer_list<std::uint64_t> numbers) {
  std::string text;
  for (const std::uint64_t n : numbers) text.append(reinterpret_cast<const char*>(&n), sizeof n);
  return text;
}

std::string read(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

bool write(const fs::path& file, const std::string& content) {
  std::ofstream out(file, std::ios::binary);
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  out.close();
  return !out.fail();
}

std::string beginning(std::string_view key, const std::vector<char>& code) {
  const std::string_view bytes(code.data(), code.size());
  return std::string(magic) + words({key.size(), code.size(), hash_of(bytes)}) + std::string(key);
}

}  // namespace

code_folder::code_folder(std::string_view named, std::uintmax_t most_bytes) : folder_(named), most_bytes_(most_bytes) {
  if (!named.empty()) return;
  const char* const cache = std::getenv("XDG_CACHE_HOME");
  const char* const home = std::getenv("HOME");
  if (cache != nullptr && *cache != '\0') {
    folder_ = fs::path(cache) / "brgemm";
  } else if (home != nullptr && *home != '\0') {
    folder_ = fs::path(home) / ".cache" / "brgemm";
  }
}

fs::path code_folder::file_of(std::string_view key) const {
  char name[33];
  std::snprintf(name, sizeof name, "%016lx%016lx", hash_of(key), hash_of(key, 0x6c62272e07bb0142u));
  return folder_ / (std::string(name) + std::string(ending));
}

std::optional<std::vector<char>> code_folder::find(std::string_view key) const {
  if (folder_.empty()) return {};
  const std::string content = read(file_of(key));
  const std::size_t begin = magic.size() + 3 * sizeof(std::uint64_t) + key.size();
  if (content.size() <= begin) return {};
  const std::vector<char> code(content.begin() + static_cast<std::ptrdiff_t>(begin), content.end());
  if (content.compare(0, begin, beginning(key, code)) != 0) return {};
  return code;
}

bool code_folder::keep(std::string_view key, const std::vector<char>& code) const {
  if (folder_.empty()) return false;
  static std::atomic<unsigned> written = 0;
  std::error_code failed;
  fs::create_directories(folder_, failed);
  const fs::path file = file_of(key);
  const fs::path unfinished =
      file.string() + '.' + std::to_string(getpid()) + '.' + std::to_string(written++) + ".unfinished";
  bool kept = !failed && write(unfinished, beginning(key, code) + std::string(code.begin(), code.end()));
  if (kept) {
    fs::rename(unfinished, file, failed);
    kept = !failed;
  }
  if (!kept) {
    fs::remove(unfinished, failed);
    return false;
  }
  remove_oldest();
  return true;
}

void code_folder::remove_oldest() const {
  struct kept_file {
    fs::file_time_type written;
    std::uintmax_t bytes;
    fs::path path;
  };
  std::vector<kept_file> files;
  std::uintmax_t bytes = 0;
  std::error_code failed;
  for (fs::directory_iterator i(folder_, failed), end; !failed && i != end; i.increment(failed)) {
    std::error_code gone;
    const kept_file file{i->last_write_time(gone), i->file_size(gone), i->path()};
    if (gone || file.path.extension() != ending) continue;
    bytes += file.bytes;
    files.push_back(file);
  }
  std::sort(files.begin(), files.end(), [](const auto& x, const auto& y) { return x.written < y.written; });
  for (std::size_t i = 0; bytes > most_bytes_ && i + 1 < files.size(); ++i) {
    fs::remove(files[i].path, failed);
    bytes -= files[i].bytes;
  }
}

}  // namespace brgemm::inline abi_0::cuda
