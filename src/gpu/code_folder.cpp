#include "code_folder.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>

#include "brgemm/core/user_cache.hpp"
#include "brgemm/version.hpp"

namespace brgemm::inline abi_0::cuda {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view magic = "brgemm code 1\n";
constexpr std::string_view ending = ".brgemm-code";
constexpr std::string_view unfinished = ".brgemm-unfinished";

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

/// Empty where it cannot be read.
std::string read(const fs::path& file) {
  std::error_code failed;
  const std::uintmax_t size = fs::is_regular_file(file, failed) ? fs::file_size(file, failed) : 0;
  if (failed || size > (std::uintmax_t{1} << 30)) return {};
  std::string content(size, '\0');
  std::ifstream in(file, std::ios::binary);
  in.read(content.data(), static_cast<std::streamsize>(size));
  return in.gcount() == static_cast<std::streamsize>(size) ? content : std::string();
}

/// A new file of the user's own, which nobody else may read; its name, empty where there is none.
std::string write_new(const fs::path& folder, const std::string& content) {
  std::string name = (folder / "XXXXXX").string() + std::string(unfinished);
  const int file = mkstemps(name.data(), static_cast<int>(unfinished.size()));
  if (file < 0) return {};
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t wrote = ::write(file, content.data() + done, content.size() - done);
    if (wrote <= 0) break;
    done += static_cast<std::size_t>(wrote);
  }
  const bool closed = ::close(file) == 0;
  if (closed && done == content.size()) return name;
  ::unlink(name.c_str());
  return {};
}

std::string beginning(std::string_view key, const std::vector<char>& code) {
  const std::string_view bytes(code.data(), code.size());
  return std::string(magic) + words({key.size(), code.size(), hash_of(bytes)}) + std::string(key);
}

}  // namespace

code_folder::code_folder(std::string_view named, std::uintmax_t most_bytes) : folder_(named), most_bytes_(most_bytes) {
  if (!named.empty()) return;
  const std::string cache = detail::user_cache();
  if (!cache.empty()) folder_ = fs::path(cache) / "brgemm";
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
  std::error_code failed;
  if (fs::create_directories(folder_, failed)) fs::permissions(folder_, fs::perms::owner_all, failed);
  const std::string written = write_new(folder_, beginning(key, code) + std::string(code.begin(), code.end()));
  if (written.empty()) return false;
  fs::rename(written, file_of(key), failed);
  if (failed) {
    ::unlink(written.c_str());
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
    // What a process that was killed left behind counts as old.
    const bool is_left =
        file.path.extension() == unfinished && file.written < fs::file_time_type::clock::now() - std::chrono::hours(1);
    if (gone || (file.path.extension() != ending && !is_left)) continue;
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
