// Many calls of kernels on AMX tiles with one tile configuration, which costs as much as a small kernel. Opt-in, as the
// backend is.
#pragma once

#include "../backend/amx.hpp"
#include "kernel.hpp"

namespace brgemm::inline abi_0 {

/// While it lives, this thread has the tile configuration of a kernel loaded. Kernels called in it that take the same
/// one, because they divide C and k into tiles of the same sizes, load and release none; any other kernel loads its own
/// and brings this one back.
///
/// The end brings back the configuration that was there at the beginning, and zeros in the tiles. Scopes of a thread
/// may be nested. A kernel of another backend, or one that takes several configurations or one that a call's m decides,
/// has nothing to share: the scope then does nothing, and `loaded` says so.
///
///     brgemm::tile_scope scope(*kernel);
///     for (const brgemm::arguments& x : calls) (*kernel)(x);
class tile_scope {
 public:
  explicit tile_scope(const kernel& k) noexcept {
    if (k.backend() != backend::amx.name) return;
    const desc& d = k.description();
    const backend::tile_configuration own = backend::configuration_of(d, backend::choose_tile_blocking(d));
    loaded_ = own.words[0] != 0;
    if (!loaded_) return;
    __asm__ volatile("sttilecfg %0" : "=m"(before_));
    load(own);
  }
  ~tile_scope() {
    if (loaded_) load(before_);
  }
  tile_scope(const tile_scope&) = delete;
  tile_scope& operator=(const tile_scope&) = delete;

  bool loaded() const noexcept { return loaded_; }

 private:
  /// Zeros release the tiles.
  static void load(const backend::tile_configuration& c) noexcept { __asm__ volatile("ldtilecfg %0" ::"m"(c)); }

  backend::tile_configuration before_;
  bool loaded_ = false;
};

}  // namespace brgemm::inline abi_0
