// The primitive on NVIDIA GPUs of compute capability 8.0 and up: the same desc, batch kinds and epilogues, many blocks
// of C a launch. Opt-in, and compiled: link brgemm::cuda (CMake: find_package(brgemm COMPONENTS cuda)). Nothing of CUDA
// is needed to build against this header, and its driver and compiler (NVRTC) are loaded when they are first asked for.
//
//     desc d = ...;  d.where = place::gpu;
//     const auto multiply = cuda::make_kernel(d);
//     if (!multiply) return report(multiply.error());
//     multiply->call({.a = a, .b = b, .c = c, .batch = 16}, stream);   // addresses of the device
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../core/result.hpp"
#include "cuda_arguments.hpp"

namespace brgemm::inline abi_0::cuda {

/// A cudaStream_t or CUstream of the primary context of the kernel's device, which is that of CUDA's runtime; nullptr:
/// the default stream.
using stream = void*;

/// Compute capability.
struct capability {
  int major = 0;
  int minor = 0;
  friend bool operator==(const capability&, const capability&) = default;
};
inline constexpr capability least_capability{8, 0};

struct device_properties {
  std::string name;
  brgemm::cuda::capability capability;
  int multiprocessors = 0;
};

/// How many devices the driver has. Thread-safe, as all functions here. Errors: unsupported "device" where there is no
/// driver (libcuda.so.1, or what BRGEMM_CUDA_DRIVER names), or it knows no device; device with the driver's words.
result<int> device_count();
/// Errors: as device_count; invalid_argument "device" where it has no such device.
result<device_properties> properties_of(int device);

/// What is wrong with a desc for every device. Needs none. Errors: those of brgemm::validate; unsupported with the
/// field: depthwise layouts, ranges of rows, and bf16 in the orders or chains of the CPU's instructions.
result<void> supports(const desc& d);

/// Code for one architecture, and what it was made from.
struct compiled {
  std::string source;       ///< CUDA C++, one text
  std::vector<char> code;   ///< machine code; PTX for a device that is newer than NVRTC
  std::string log;          ///< the compiler's words on registers, stack and shared memory
  double milliseconds = 0;  ///< that the compiler took
};
/// Compiles the kernel of a desc by NVRTC, without a device and past all caches. A device that NVRTC does not know yet
/// gets PTX of the newest architecture before it. Errors: as `supports`; unsupported "nvrtc" where the library is not
/// found (BRGEMM_NVRTC may have its path); unsupported "capability" below 8.0; device with the first error of the
/// compiler's log; out_of_memory.
result<compiled> compile(const desc& d, capability of);

/// How make_kernel may work.
struct options {
  int device = 0;
  /// Where compiled code is kept from process to process; empty: $XDG_CACHE_HOME/brgemm, else $HOME/.cache/brgemm, and
  /// nothing is kept where neither is set. Files are written whole or not at all and read only where every byte of
  /// their key agrees; one that cannot be written is left out.
  std::string_view cache_folder = {};
};

class loaded_kernel;

/// A kernel: a handle that keeps its code alive, and must itself live until its launches have ended, and as long as a
/// graph that captured one. Copies may be used by any number of threads at a time. An empty one may only be assigned
/// to, destroyed and tested.
class kernel {
 public:
  kernel() noexcept = default;
  explicit operator bool() const noexcept { return code_ != nullptr; }

  /// Launches it on the stream and returns; C is there when the stream has come so far. Allocates nothing, waits for
  /// nothing, and may be captured in a graph. Nothing that the arguments point to is read by the CPU: lists, offsets
  /// and overlaps are the caller's to get right. Errors: invalid_argument with the field and the numbers, before
  /// anything is launched; device or out_of_memory with the driver's words.
  result<void> call(const arguments& x, stream on = nullptr) const noexcept;

  /// order::chain, with the bits of the CPU's backends; order::foreign where tensor cores sum: bf16, and f16, tf32,
  /// e4m3 and e5m2 unless the desc asks for order::chain or for several chains. Theirs are meant to be the same at each
  /// run and wherever in C an element lies; another architecture's may differ.
  brgemm::order order() const noexcept;
  const desc& description() const noexcept;
  int device() const noexcept;

 private:
  friend result<kernel> make_kernel(const desc& d, const options& o);
  explicit kernel(std::shared_ptr<const loaded_kernel> code) noexcept : code_(std::move(code)) {}
  std::shared_ptr<const loaded_kernel> code_;
};

/// A copy of `bytes` bytes in the device's memory, there when the call returns: lists of a plan, say. The last handle
/// frees it. Both wait for the device, and may not be done while a thread captures in the global mode. Errors: as
/// `properties_of`; out_of_memory; device with the driver's words.
result<std::shared_ptr<const void>> copy_to_device(const void* from, std::size_t bytes, int device = 0);

/// A kernel for the desc, whose `where` is place::gpu: compiled at the first request, or read from the folder, and
/// found in memory after that. k, strides and leading dimensions are no part of the code, and m and n only choose its
/// tile. The last 256 modules are kept. Threads that ask for the same new kernel at once compile it once. Errors: as
/// `supports`, `properties_of` and `compile`; out_of_memory.
result<kernel> make_kernel(const desc& d, const options& o = {});

}  // namespace brgemm::inline abi_0::cuda
