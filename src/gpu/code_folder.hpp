// Compiled code in a folder, from process to process.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace brgemm::inline abi_0::cuda {

/// One file a key, named after the key's hash. Several processes and threads may share a folder: files come into being
/// by a rename. What cannot be read or written is as if it were not there. Code is trusted as the folder is: hashes
/// find damage, not ill will. A folder that is made here is the user's alone.
class code_folder {
 public:
  /// The folder where `named` is empty: $XDG_CACHE_HOME/brgemm, $HOME/.cache/brgemm, or none.
  explicit code_folder(std::string_view named, std::uintmax_t most_bytes = std::uintmax_t{256} << 20);

  /// Nothing unless the file's key is this one, byte for byte, and the code as it was written.
  std::optional<std::vector<char>> find(std::string_view key) const;
  /// Then the oldest files go until the folder's code has at most `most_bytes`. False where nothing was written.
  bool keep(std::string_view key, const std::vector<char>& code) const;

  std::filesystem::path file_of(std::string_view key) const;

 private:
  void remove_oldest() const;

  std::filesystem::path folder_;
  std::uintmax_t most_bytes_;
};

}  // namespace brgemm::inline abi_0::cuda
