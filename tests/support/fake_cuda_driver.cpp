// A stand-in for NVIDIA's driver: it answers as the driver does and keeps what it was asked for. Its devices have the
// memory of the CPU; what a launch runs is the test's to say.
#include "support/fake_cuda_driver.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

brgemm_test::fake_cuda_driver& state() {
  static brgemm_test::fake_cuda_driver all;
  return all;
}
int contexts_of_devices[3];
struct module_of_fake {
  int number;
};

}  // namespace

extern "C" {

brgemm_test::fake_cuda_driver& brgemm_fake_cuda_driver() { return state(); }

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* count) {
  *count = 3;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int number) {
  *device = number;
  return number < 3 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetName(char* name, int size, CUdevice device) {
  std::snprintf(name, static_cast<std::size_t>(size), "stand-in %d", device);
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  *value = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? (device == 2 ? 7 : 9)
           : which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? (device == 2 ? 5 : 0)
                                                                   : 132;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = reinterpret_cast<CUcontext>(&contexts_of_devices[device]);
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = state().contexts.empty() ? nullptr : state().contexts.back();
  return CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent_v2(CUcontext context) {
  state().contexts.push_back(context);
  return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  *context = state().contexts.back();
  state().contexts.pop_back();
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* module, const void* code) {
  if (state().answer_to_load != CUDA_SUCCESS) return state().answer_to_load;
  state().code = code;
  state().loaded_in = state().contexts.back();
  *module = reinterpret_cast<CUmodule>(new module_of_fake{++state().loads});
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) {
  delete reinterpret_cast<module_of_fake*>(module);
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  state().function = name;
  *function = reinterpret_cast<CUfunction>(module);
  return CUDA_SUCCESS;
}
CUresult cuFuncLoad(CUfunction) {
  ++state().functions_loaded;
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned,
                        unsigned, CUstream stream, void** parameters, void**) {
  if (state().answer_to_launch != CUDA_SUCCESS) return state().answer_to_launch;
  ++state().launches;
  state().blocks = blocks, state().threads = threads, state().stream = stream;
  state().launched_in = state().contexts.back();
  const auto* const first = static_cast<const std::byte*>(parameters[0]);
  state().parameter.assign(first, first + state().parameter_bytes);
  if (state().run) state().run(function, blocks, first);
  return CUDA_SUCCESS;
}
CUresult cuMemAlloc_v2(CUdeviceptr* address, std::size_t bytes) {
  *address = reinterpret_cast<CUdeviceptr>(std::malloc(bytes));
  state().memory[*address] = bytes;
  return CUDA_SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr address) {
  if (state().memory.erase(address) == 0) std::abort();  // freed twice
  std::free(reinterpret_cast<void*>(address));
  return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, std::size_t bytes) {
  if (state().answer_to_copy != CUDA_SUCCESS) return state().answer_to_copy;
  if (state().memory.count(to) == 0 || state().memory.at(to) < bytes) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize() { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult status, const char** words) {
  *words = status == CUDA_ERROR_ILLEGAL_ADDRESS ? "an illegal address" : "something else";
  return CUDA_SUCCESS;
}
}
