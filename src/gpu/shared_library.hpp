// A library that is loaded when it is first asked for.
#pragma once

#include <dlfcn.h>

#include <initializer_list>
#include <string>

namespace brgemm::inline abi_0::cuda {

/// Stays loaded until the process ends.
class shared_library {
 public:
  /// The first of the names that can be loaded.
  explicit shared_library(std::initializer_list<std::string> names) {
    for (const std::string& name : names) {
      if (name.empty()) continue;
      handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle_ != nullptr) return;
      why_ = dlerror();
    }
  }
  explicit operator bool() const noexcept { return handle_ != nullptr; }
  /// The loader's words on the last name.
  const char* why() const noexcept { return why_.c_str(); }

  template <class Function>
  bool find(Function*& f, const char* name) const noexcept {
    f = reinterpret_cast<Function*>(dlsym(handle_, name));
    return f != nullptr;
  }

 private:
  void* handle_ = nullptr;
  std::string why_;
};

}  // namespace brgemm::inline abi_0::cuda
