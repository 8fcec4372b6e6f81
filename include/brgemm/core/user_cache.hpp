// Where this user's programs keep what they can make again.
#pragma once

#include <cstdlib>
#include <string>

namespace brgemm::inline abi_0::detail {

/// $XDG_CACHE_HOME, else $HOME/.cache; empty where neither is an absolute path (the XDG Base Directory Specification
/// says to ignore others), or where the program has more rights than who started it. The folder need not exist.
inline std::string user_cache() {
  const char* const cache = secure_getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache == '/') return cache;
  const char* const home = secure_getenv("HOME");
  return home != nullptr && *home == '/' ? std::string(home) + "/.cache" : std::string();
}

}  // namespace brgemm::inline abi_0::detail
