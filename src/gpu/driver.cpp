#include "driver.hpp"

#include <atomic>
#include <cstdlib>
#include <mutex>

#include "brgemm/backend/cuda.hpp"
#include "shared_library.hpp"
#include "without_exceptions.hpp"

namespace brgemm::inline abi_0::cuda {

namespace {

result<driver> find_driver() {
  const char* const named = secure_getenv("BRGEMM_CUDA_DRIVER");
  const shared_library library(named == nullptr || *named == '\0' ? "libcuda.so.1" : named);
  if (!library) {
    return error(errc::unsupported, "device", "NVIDIA's driver is not there: %s", library.why());
  }
  driver d = {};
  // The names behind cuda.h's macros: a name without its suffix is an older function.
  const bool found =
      library.find(d.init, "cuInit") && library.find(d.get_version, "cuDriverGetVersion") &&
      library.find(d.device_count, "cuDeviceGetCount") && library.find(d.device, "cuDeviceGet") &&
      library.find(d.device_name, "cuDeviceGetName") && library.find(d.device_attribute, "cuDeviceGetAttribute") &&
      library.find(d.retain_context, "cuDevicePrimaryCtxRetain") &&
      library.find(d.current_context, "cuCtxGetCurrent") && library.find(d.push_context, "cuCtxPushCurrent_v2") &&
      library.find(d.pop_context, "cuCtxPopCurrent_v2") && library.find(d.load_module, "cuModuleLoadData") &&
      library.find(d.unload_module, "cuModuleUnload") && library.find(d.function_of, "cuModuleGetFunction") &&
      library.find(d.launch, "cuLaunchKernel") && library.find(d.allocate, "cuMemAlloc_v2") &&
      library.find(d.free, "cuMemFree_v2") && library.find(d.copy_to_device, "cuMemcpyHtoD_v2") &&
      library.find(d.synchronize, "cuCtxSynchronize") && library.find(d.words, "cuGetErrorString");
  if (!found) return error(errc::unsupported, "device", "NVIDIA's driver lacks a function: %s", dlerror());
  library.find(d.load_function, "cuFuncLoad");  // of CUDA 12.4; else a function is there when its module is
  const CUresult status = d.init(0);
  if (status == CUDA_ERROR_NO_DEVICE) return error(errc::unsupported, "device", "the driver knows no device");
  if (auto r = check(d, status, "cuInit"); !r) return r.error();
  if (auto r = check(d, d.get_version(&d.version), "cuDriverGetVersion"); !r) return r.error();
  return d;
}

result<int> attribute(const driver& d, CUdevice device, CUdevice_attribute which) {
  int value = 0;
  if (auto r = check(d, d.device_attribute(&value, which, device), "cuDeviceGetAttribute"); !r) return r.error();
  return value;
}

}  // namespace

result<const driver*> load_driver() {
  static std::mutex lock;
  static std::atomic<const driver*> loaded = nullptr;
  if (const driver* const there = loaded.load(std::memory_order_acquire)) return there;
  const std::lock_guard guard(lock);
  static driver kept;
  if (const driver* const there = loaded.load()) return there;
  const auto found = find_driver();  // a failure is not kept: the next call tries again
  if (!found) return found.error();
  kept = *found;
  loaded.store(&kept, std::memory_order_release);
  return &kept;
}

result<void> check(const driver& d, CUresult status, const char* what) noexcept {
  if (status == CUDA_SUCCESS) return {};
  const char* words = nullptr;
  if (d.words(status, &words) != CUDA_SUCCESS || words == nullptr) words = "no words for it";
  const errc code = status == CUDA_ERROR_OUT_OF_MEMORY ? errc::out_of_memory : errc::device;
  return error(code, "device", "%s: error %d, %s", what, static_cast<int>(status), words);
}

result<CUcontext> context_of(const driver& d, int device) noexcept {
  CUdevice handle = 0;
  if (auto r = check(d, d.device(&handle, device), "cuDeviceGet"); !r) return r.error();
  CUcontext context = nullptr;
  if (auto r = check(d, d.retain_context(&context, handle), "cuDevicePrimaryCtxRetain"); !r) return r.error();
  return context;
}

result<int> device_count() {
  const auto d = without_exceptions<const driver*>(load_driver);
  if (!d) return d.error();
  int count = 0;
  if (auto r = check(**d, (*d)->device_count(&count), "cuDeviceGetCount"); !r) return r.error();
  return count;
}

namespace {

result<device_properties> read_properties(int number) {
  const auto count = device_count();
  if (!count) return count.error();
  if (number < 0 || number >= *count) {
    return error(errc::invalid_argument, "device", "device is %d; there are %d, counted from 0", number, *count);
  }
  const driver& d = **load_driver();
  CUdevice device = 0;
  if (auto r = check(d, d.device(&device, number), "cuDeviceGet"); !r) return r.error();
  char name[256] = {};
  if (auto r = check(d, d.device_name(name, sizeof name, device), "cuDeviceGetName"); !r) return r.error();
  const auto major = attribute(d, device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  const auto minor = attribute(d, device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  const auto multiprocessors = attribute(d, device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  for (const auto* value : {&major, &minor, &multiprocessors}) {
    if (!*value) return value->error();
  }
  return device_properties{name, {*major, *minor}, *multiprocessors};
}

}  // namespace

result<device_properties> properties_of(int number) {
  return without_exceptions<device_properties>([number] { return read_properties(number); });
}

}  // namespace brgemm::inline abi_0::cuda
