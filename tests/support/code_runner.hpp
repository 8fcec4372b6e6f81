// Runs what a backend made without the code cache: code is written through one mapping of a file in memory and run
// through another, so that hundreds of thousands of kernels cost no system call each.
#pragma once

#include <linux/membarrier.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <brgemm/backend/backend.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "support/kept_registers.hpp"

namespace brgemm_test {

/// What a backend made for one desc, ready to be called. Generated code lives until the runner has gone round.
struct runnable {
  brgemm::entry_point entry = nullptr;
  brgemm::backend::program made;
  std::size_t code_bytes = 0;
  runnable() = default;
  runnable(runnable&& other) noexcept { *this = std::move(other); }
  runnable& operator=(runnable&& other) noexcept {
    std::swap(entry, other.entry);
    std::swap(made, other.made);
    std::swap(code_bytes, other.code_bytes);
    return *this;
  }
  ~runnable() {
    if (made.release != nullptr) made.release(made.context);
  }
  /// Ends the process if generated code does not keep the registers that it must.
  void operator()(const brgemm::arguments& x) const {
    if (code_bytes == 0) return entry(&x, made.context);
    if (keeps_registers(&x, made.context, entry)) return;
    std::fputs("a kernel changed a callee-saved register\n", stderr);
    std::abort();
  }
  /// Whether a call would run the same instructions.
  bool same_code(const runnable& other) const {
    if (code_bytes != other.code_bytes) return false;
    if (code_bytes == 0) return entry == other.entry;
    return std::memcmp(reinterpret_cast<const void*>(entry), reinterpret_cast<const void*>(other.entry), code_bytes) ==
           0;
  }
};

class code_runner {
 public:
  code_runner() : buffer_(brgemm::backend::max_code_bytes) {
    const int file = ::memfd_create("brgemm-test-code", 0);
    if (file < 0 || ::ftruncate(file, room) != 0) std::abort();
    written_ = map(file, PROT_READ | PROT_WRITE);
    run_ = map(file, PROT_READ | PROT_EXEC);
    ::close(file);
    ::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
  }
  code_runner(const code_runner&) = delete;
  ~code_runner() {
    ::munmap(written_, room);
    ::munmap(run_, room);
  }

  brgemm::result<runnable> make(const brgemm::backend::entry& backend, const brgemm::desc& d) {
    auto made = backend.make(d, buffer_);
    if (!made) return made.error();
    runnable r;
    r.made = *made;
    r.entry = made->entry;
    r.code_bytes = made->code_bytes;
    if (r.code_bytes != 0) r.entry = keep(r.code_bytes);
    return r;
  }

 private:
  /// The code was written at another address than it runs at: the core must drop what it fetched. A virtual machine may
  /// take microseconds for a cpuid, so that is the second choice.
  static void serialize() {
    if (::syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) == 0) return;
    unsigned a = 0, b = 0, c = 0, d = 0;
    __cpuid(0, a, b, c, d);
  }

  static constexpr std::size_t room = 64u << 20;

  static std::uint8_t* map(int file, int protection) {
    void* const p = ::mmap(nullptr, room, protection, MAP_SHARED, file, 0);
    if (p == MAP_FAILED) std::abort();
    return static_cast<std::uint8_t*>(p);
  }
  brgemm::entry_point keep(std::size_t size) {
    if (used_ + size > room) used_ = 0;
    std::memcpy(written_ + used_, buffer_.data(), size);
    std::uint8_t* const code = run_ + used_;
    used_ += (size + 63) / 64 * 64;
    serialize();
    return reinterpret_cast<brgemm::entry_point>(code);
  }

  std::vector<std::uint8_t> buffer_;
  std::uint8_t* written_ = nullptr;
  std::uint8_t* run_ = nullptr;
  std::size_t used_ = 0;
};

}  // namespace brgemm_test
