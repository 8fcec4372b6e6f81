// A problem's data on a GPU: all that a launch touches lies in one allocation, which goes there and comes back whole.
#pragma once

#include <cuda.h>
#include <dlfcn.h>

#include <string>

#include "brgemm/backend/cuda.hpp"
#include "support/problem.hpp"

namespace brgemm_test {

/// The driver's functions for memory, in the primary context of device 0, which is made current.
class device_memory {
 public:
  explicit device_memory(std::size_t size) : bytes(size, std::byte{0xa5}) {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    CUcontext context = nullptr;
    CUdevice device = 0;
    ok_ = library != nullptr && call<decltype(&cuInit)>(library, "cuInit", 0u) &&
          call<decltype(&cuDeviceGet)>(library, "cuDeviceGet", &device, 0) &&
          call<decltype(&cuDevicePrimaryCtxRetain)>(library, "cuDevicePrimaryCtxRetain", &context, device) &&
          call<decltype(&cuCtxSetCurrent)>(library, "cuCtxSetCurrent", context) &&
          call<decltype(&cuMemAlloc)>(library, "cuMemAlloc_v2", &address_, size);
    library_ = library;
  }
  ~device_memory() {
    if (ok_) call<decltype(&cuMemFree)>(library_, "cuMemFree_v2", address_);
  }
  device_memory(const device_memory&) = delete;
  device_memory& operator=(const device_memory&) = delete;

  explicit operator bool() const { return ok_; }
  bool send() { return call<decltype(&cuMemcpyHtoD)>(library_, "cuMemcpyHtoD_v2", address_, bytes.data(), used_); }
  /// Waits for what runs.
  bool fetch() { return call<decltype(&cuMemcpyDtoH)>(library_, "cuMemcpyDtoH_v2", bytes.data(), address_, used_); }

  void clear() {
    std::fill(bytes.begin(), bytes.end(), std::byte{0xa5});
    used_ = 0;
  }
  /// Where the copy of `size` bytes will lie; pieces are 256 bytes apart at least.
  std::byte* put(const void* from, std::size_t size) {
    const std::size_t at = (used_ + 511) / 256 * 256;
    used_ = at + size;
    if (used_ > bytes.size()) std::abort();
    std::memcpy(bytes.data() + at, from, size);
    return reinterpret_cast<std::byte*>(address_) + at;
  }
  std::byte* on_host(const void* on_device) {
    return bytes.data() + (reinterpret_cast<CUdeviceptr>(on_device) - address_);
  }

  std::vector<std::byte> bytes;

 private:
  template <class Function, class... X>
  static bool call(void* library, const char* name, X... x) {
    const auto f = reinterpret_cast<Function>(dlsym(library, name));
    return f != nullptr && f(x...) == CUDA_SUCCESS;
  }

  void* library_ = nullptr;
  CUdeviceptr address_ = 0;
  std::size_t used_ = 0;
  bool ok_ = false;
};

/// The problem's first `batch` entries in device memory.
inline brgemm::cuda::arguments place(const problem& p, index batch, device_memory& memory) {
  brgemm::cuda::arguments x;
  x.batch = batch, x.m = p.m, x.lda = p.lda, x.ldb = p.ldb, x.ldc = p.ldc;
  x.alpha = p.alpha, x.beta = p.beta, x.zero_a = p.zero_a, x.zero_b = p.zero_b;
  const std::byte* const a = memory.put(p.a.block.data(), p.a.block.size());
  const std::byte* const b = memory.put(p.b.block.data(), p.b.block.size());
  x.a = a, x.b = b;
  if (p.d.batch == brgemm::batch_kind::strides && batch > 0) x.a = a + p.a.begin_bytes(0), x.b = b + p.b.begin_bytes(0);
  std::vector<brgemm::offset_pair> offsets;
  std::vector<brgemm::address_pair> addresses;
  for (std::size_t i = 0; i < static_cast<std::size_t>(batch); ++i) {
    offsets.push_back({p.a.begins[i], p.b.begins[i]});
    addresses.push_back({a + p.a.begin_bytes(i), b + p.b.begin_bytes(i)});
  }
  const bool by_address = p.d.batch == brgemm::batch_kind::addresses;
  x.pairs = by_address ? memory.put(addresses.data(), addresses.size() * sizeof addresses[0])
                       : memory.put(offsets.data(), offsets.size() * sizeof offsets[0]);
  x.c = memory.put(p.c.data(), p.c.size());
  const std::vector<std::int32_t> sums =
      brgemm::detail::is_8bit(p.d.b) ? column_sums_of(p, batch) : std::vector<std::int32_t>();
  x.column_sums = reinterpret_cast<const std::int32_t*>(memory.put(sums.data(), sums.size() * 4));
  for (std::size_t i = 0; i < p.d.epilogue_size; ++i) {
    const operand& o = p.operands[i];
    if (o.present) x.operand[i] = o.is_c ? x.c : memory.put(o.data.data(), o.data.size());
    x.operand_ld[i] = o.of.ld;
  }
  return x;
}

/// What a launch left in the bytes that came back: C and the operands, at the host's addresses.
inline brgemm::arguments results_of(const problem& p, const brgemm::cuda::arguments& x, device_memory& memory) {
  brgemm::arguments results;
  results.c = memory.on_host(x.c);
  for (std::size_t i = 0; i < p.d.epilogue_size; ++i) {
    if (p.operands[i].present) results.operand[i] = memory.on_host(x.operand[i]);
  }
  return results;
}

}  // namespace brgemm_test
