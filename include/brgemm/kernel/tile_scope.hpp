// Many calls of kernels on AMX tiles with one tile configuration, which costs as much as a small kernel.
#pragma once

#include "kernel.hpp"

namespace brgemm::inline abi_0 {

/// Keeps a tile configuration loaded in this thread from one call to the next. Kernels that take the loaded one,
/// because they divide C and k into tiles of the same sizes, load and release none; any other kernel loads its own and
/// brings the loaded one back.
///
/// The end brings back the configuration that was there before the first one was loaded, and zeros in the tiles. Scopes
/// of a thread may be nested, and each belongs to the thread that made it. The loops of this library have their own.
///
///     brgemm::tile_scope tiles;
///     for (const auto& [kernel, x] : calls) tiles.call(kernel, x);
class tile_scope {
 public:
  tile_scope() noexcept = default;
  /// For many calls of one kernel, which may be made as ever.
  explicit tile_scope(const kernel& k) noexcept { load(k); }
  ~tile_scope() {
    if (loaded()) configure(before_);
  }
  tile_scope(const tile_scope&) = delete;
  tile_scope& operator=(const tile_scope&) = delete;

  /// The raw call, with the configuration of `k` loaded from here on. A kernel of another backend, or one that takes
  /// several configurations or one that a call's m decides, has none to share: that which is loaded stays.
  void call(const kernel& k, const arguments& x) noexcept {
    load(k);
    k(x);
  }
  /// Whether any configuration was loaded.
  bool loaded() const noexcept { return now_.words[0] != 0; }

 private:
  void load(const kernel& k) noexcept {
    const backend::tile_configuration& own = kernel_access::tiles_of(k);
    if (own.words[0] != 0 && own != now_) change(own);
  }
  [[gnu::noinline]] void change(const backend::tile_configuration& own) noexcept {
    if (!loaded()) __asm__ volatile("sttilecfg %0" : "=m"(before_));
    configure(own);
    now_ = own;
  }
  /// Zeros release the tiles.
  static void configure(const backend::tile_configuration& c) noexcept { __asm__ volatile("ldtilecfg %0" ::"m"(c)); }

  backend::tile_configuration now_;  ///< zeros: none
  backend::tile_configuration before_;
};

}  // namespace brgemm::inline abi_0
