// What the stand-in for NVIDIA's driver (fake_cuda_driver.cpp) was asked for. Its devices are numbered 0 and 1, of
// compute capability 9.0, and 2, of 7.5.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace brgemm_test {

struct fake_cuda_driver {
  int loads = 0;
  int functions_loaded = 0;
  int launches = 0;
  std::vector<CUcontext> contexts;  // the stack
  const void* code = nullptr;       // of the last load
  CUcontext loaded_in = nullptr;
  CUcontext launched_in = nullptr;
  std::string function;  // the last name asked for
  unsigned blocks = 0, threads = 0;
  CUstream stream = nullptr;
  std::vector<std::byte> parameter;  // the first `parameter_bytes` of the last launch's
  std::size_t parameter_bytes = 0;
  std::function<void(CUfunction, unsigned blocks, const void* parameter)> run;  // at a launch
  std::map<CUdeviceptr, std::size_t> memory;                                    // that is allocated
  CUresult answer_to_load = CUDA_SUCCESS;
  CUresult answer_to_launch = CUDA_SUCCESS;
  CUresult answer_to_copy = CUDA_SUCCESS;
};

using fake_cuda_driver_of = fake_cuda_driver& (*)();  // the symbol brgemm_fake_cuda_driver

}  // namespace brgemm_test
