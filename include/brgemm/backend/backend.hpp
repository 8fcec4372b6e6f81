// What a backend is: one entry in the ordered list, best first.
#pragma once

#include <span>

#include "../core/arguments.hpp"
#include "../core/cpu.hpp"
#include "../core/result.hpp"

namespace brgemm::inline abi_0::backend {

/// What ldtilecfg loads: palette 1, bytes of a row of each AMX tile from byte 16, its rows from byte 48. Zeros: none.
struct tile_configuration {
  std::uint64_t words[8] = {};
  friend bool operator==(const tile_configuration&, const tile_configuration&) = default;
};

/// What a backend made for a desc. Either generated code, `code_bytes` of it at the start of the buffer that `make` was
/// given (position-independent; the entry point is its first byte), or a function of the library with its own context.
struct program {
  std::size_t code_bytes = 0;                         ///< 0: not generated, `entry` is a function of the library
  entry_point entry = nullptr;                        ///< for code that is not generated
  void* context = nullptr;                            ///< passed to `entry`; owned by the kernel
  void (*release)(void* context) noexcept = nullptr;  ///< frees the context; nullptr where there is nothing to free
  order sums = order::chain;                          ///< what kernel.order() answers
  std::size_t context_bytes = 0;                      ///< memory behind the context, for the bound on the code cache
  tile_configuration tiles = {};                      ///< the only one that the code loads; zeros: none, or several
};

/// One backend. `supports` says why not; `make` fails only for lack of memory, or what `supports` said.
/// Every function is thread-safe and depends on the desc and on cpu() alone.
struct entry {
  std::string_view name;
  bool (*runs_here)() noexcept;
  result<void> (*supports)(const desc&) noexcept;
  result<program> (*make)(const desc&, std::span<std::uint8_t> buffer) noexcept;
  /// Writes at most `size` bytes of a paragraph on the blocking and the cycles predicted; returns its length.
  std::size_t (*explain)(const desc&, char* text, std::size_t size) noexcept;
};

/// Room for the largest kernel that a backend generates; what would be longer is `unsupported`.
inline constexpr std::size_t max_code_bytes = 256 * 1024;

}  // namespace brgemm::inline abi_0::backend
