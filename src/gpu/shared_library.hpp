// A library that is loaded when it is first asked for.
#pragma once

#include <dlfcn.h>

#include <string>

namespace brgemm::inline abi_0::cuda {

/// Stays loaded until the process ends.
class shared_library {
 public:
  explicit shared_library(const char* name) : handle_(dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) why_ = dlerror();
  }
  explicit operator bool() const noexcept { return handle_ != nullptr; }
  /// The loader's words where it is not there.
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
