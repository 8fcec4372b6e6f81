// Loads the peers' modules from a folder, each in a scope of its own.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "peer.hpp"

namespace bench {

/// Every peer that loads, held to what ours may use; of those that do not, a line on stderr says why. Modules stay
/// loaded.
inline std::vector<const peer_api*> load_peers(const std::string& folder, bool tiles) {
  std::vector<std::filesystem::path> modules;
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator(folder, failed)) {
    if (entry.path().extension() == ".so") modules.push_back(entry.path());
  }
  std::sort(modules.begin(), modules.end());
  std::vector<const peer_api*> peers;
  for (const auto& path : modules) {
    void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    if (module == nullptr) {
      std::fprintf(stderr, "peer left out: %s\n", dlerror());
      continue;
    }
    const auto entry = reinterpret_cast<const peer_api* (*)(bool)>(dlsym(module, "brgemm_bench_peer"));
    const peer_api* api = entry != nullptr ? entry(tiles) : nullptr;
    if (api == nullptr) {
      std::fprintf(stderr, "peer left out: %s has nothing that runs here\n", path.c_str());
      continue;
    }
    peers.push_back(api);
  }
  return peers;
}

}  // namespace bench
