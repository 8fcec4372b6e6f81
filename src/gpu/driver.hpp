// The functions of NVIDIA's driver that launches need, and errors in its words.
#pragma once

#include <cuda.h>

#include "brgemm/core/result.hpp"

namespace brgemm::inline abi_0::cuda {

struct driver {
  decltype(&cuInit) init;
  decltype(&cuDriverGetVersion) get_version;
  decltype(&cuDeviceGetCount) device_count;
  decltype(&cuDeviceGet) device;
  decltype(&cuDeviceGetName) device_name;
  decltype(&cuDeviceGetAttribute) device_attribute;
  decltype(&cuDevicePrimaryCtxRetain) retain_context;
  decltype(&cuCtxGetCurrent) current_context;
  decltype(&cuCtxPushCurrent) push_context;
  decltype(&cuCtxPopCurrent) pop_context;
  decltype(&cuModuleLoadData) load_module;
  decltype(&cuModuleUnload) unload_module;
  decltype(&cuModuleGetFunction) function_of;
  decltype(&cuFuncLoad) load_function;  // may be null
  decltype(&cuLaunchKernel) launch;
  decltype(&cuMemAlloc) allocate;
  decltype(&cuMemFree) free;
  decltype(&cuMemcpyHtoD) copy_to_device;
  decltype(&cuCtxSynchronize) synchronize;
  decltype(&cuGetErrorString) words;
  int version;
};

/// The driver, loaded and initialised once. Errors: unsupported "device".
result<const driver*> load_driver();

/// The primary context of a device that is there, kept to the end of the process.
result<CUcontext> context_of(const driver& d, int device) noexcept;

/// Nothing where `status` is CUDA_SUCCESS. Errors: out_of_memory; device with what was asked for and the driver's
/// words.
result<void> check(const driver& d, CUresult status, const char* what) noexcept;

/// A context of the device stands at the top of the thread's stack.
class current_context {
 public:
  current_context(const driver& d, CUcontext context) noexcept : driver_(d) {
    CUcontext now = nullptr;
    if (d.current_context(&now) == CUDA_SUCCESS && now == context) return;
    status_ = d.push_context(context);
    pushed_ = status_ == CUDA_SUCCESS;
  }
  ~current_context() {
    CUcontext popped = nullptr;
    if (pushed_) driver_.pop_context(&popped);
  }
  current_context(const current_context&) = delete;
  current_context& operator=(const current_context&) = delete;
  CUresult status() const noexcept { return status_; }

 private:
  const driver& driver_;
  CUresult status_ = CUDA_SUCCESS;
  bool pushed_ = false;
};

}  // namespace brgemm::inline abi_0::cuda
