// The backends that are compared with the reference: those of the list, and what is to join it.
#pragma once

#include <brgemm/backend/amx.hpp>
#include <brgemm/backend/list.hpp>
#include <span>
#include <vector>

namespace brgemm_test {

/// The reference is the last one.
inline std::span<const brgemm::backend::entry> backends() {
  static const std::vector<brgemm::backend::entry> all = [] {
    std::vector<brgemm::backend::entry> list = {brgemm::backend::amx};
    const auto own = brgemm::backend::built_in();
    list.insert(list.end(), own.begin(), own.end());
    return list;
  }();
  return all;
}

}  // namespace brgemm_test
