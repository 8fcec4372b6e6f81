// Memory for generated code: never writable and executable at once, and never writable again once it holds code.
//
// Three ways, tried in this order at each kernel:
//  1. Pages are reserved, made R+X while they are still untouched, and filled through /proc/self/mem. No page is ever
//     writable, and no core has to drop a translation.
//  2. Where /proc/self/mem cannot be written: pages of its own are filled while they are R+W, then made R+X. Threads
//     that do it at once interrupt each other's cores to drop the writable translation.
//  3. Where mprotect is denied (SELinux, seccomp): a memfd is filled with pwrite and mapped R+X.
// All mappings are private, so a fork's child is independent: 1 and 2 are copied on write; in 3 nobody can write.
#pragma once

#include <fcntl.h>
#include <linux/membarrier.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <span>

#include "../core/result.hpp"

namespace brgemm::inline abi_0::backend {

/// A mutex for sections that take less than a microsecond: to sleep and be woken would take ten times as long, so it
/// tries for a while first.
class brief_mutex {
 public:
  void lock() noexcept {
    for (int tries = 0; tries < 2000; ++tries) {
      if (mutex_.try_lock()) return;
      __builtin_ia32_pause();
    }
    mutex_.lock();
  }
  void unlock() noexcept { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

/// The calls to the system that memory needs, in a table so that tests can make each of them fail.
struct system_calls {
  void* (*map)(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) noexcept;
  int (*protect)(void* at, std::size_t bytes, int protection) noexcept;
  int (*unmap)(void* at, std::size_t bytes) noexcept;
  int (*open_memory)() noexcept;  ///< /proc/self/mem, for writing
  int (*create_file)() noexcept;  ///< memfd_create
  ssize_t (*write)(int fd, const void* data, std::size_t bytes, off_t offset) noexcept;
  int (*close)(int fd) noexcept;
  int (*barrier)(int command) noexcept;  ///< membarrier
  void* (*allocate)(std::size_t bytes) noexcept;
  void (*free)(void*) noexcept;
};

inline constexpr system_calls real_system_calls = {
    [](void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
      return ::mmap(at, bytes, protection, flags, fd, offset);
    },
    [](void* at, std::size_t bytes, int protection) noexcept { return ::mprotect(at, bytes, protection); },
    [](void* at, std::size_t bytes) noexcept { return ::munmap(at, bytes); },
    []() noexcept { return ::open("/proc/self/mem", O_RDWR | O_CLOEXEC); },
    []() noexcept { return ::memfd_create("brgemm", MFD_CLOEXEC); },
    [](int fd, const void* data, std::size_t bytes, off_t offset) noexcept {
      return ::pwrite(fd, data, bytes, offset);
    },
    [](int fd) noexcept { return ::close(fd); },
    [](int command) noexcept { return static_cast<int>(::syscall(SYS_membarrier, command, 0, 0)); },
    [](std::size_t bytes) noexcept { return std::malloc(bytes); },
    [](void* p) noexcept { std::free(p); },
};

/// The table in use. For tests: change it only while no kernel is being made.
inline constinit system_calls current_system_calls = real_system_calls;

/// Pages that hold one kernel, from its first byte on.
struct code_pages {
  std::uint8_t* address = nullptr;
  std::size_t bytes = 0;  ///< a multiple of the page size
};

namespace code_memory {

struct shared_state {
  brief_mutex lock;              // of the members below up to `reused`
  std::uint8_t* next = nullptr;  // reserved R+X pages that nothing was written to
  std::uint8_t* end = nullptr;
  int memory_file = -1;             // /proc/self/mem of this process
  std::atomic<bool> reused{false};  // addresses that held code have been given back to the system
};
inline constinit shared_state state;

inline std::size_t whole_pages(std::size_t bytes) noexcept {
  static const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

inline const char* reason(int error_number) noexcept {
  switch (error_number) {
    case 0: return "not tried";
    case EACCES: return "EACCES (denied)";
    case EPERM: return "EPERM (not permitted)";
    case ENOMEM: return "ENOMEM (out of memory or of mappings)";
    case EMFILE: return "EMFILE (too many open files)";
    case ENFILE: return "ENFILE (too many open files in the system)";
    case ENOENT: return "ENOENT (no such file)";
    case ENOSYS: return "ENOSYS (not in this kernel)";
    case EIO: return "EIO";
    case EINVAL: return "EINVAL";
    default: return "another error";
  }
}

/// Whether other cores can be made to drop instructions that they fetched. Registers the process on first use.
inline bool serialise_cores() noexcept {
  const auto barrier = current_system_calls.barrier;
  if (barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE) == 0) return true;
  return barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE) == 0 &&
         barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE) == 0;
}

inline bool write_all(int fd, std::span<const std::uint8_t> code, off_t at) noexcept {
  const ssize_t written = current_system_calls.write(fd, code.data(), code.size(), at);
  if (written == static_cast<ssize_t>(code.size())) return true;
  if (written >= 0) errno = EIO;
  return false;
}

/// Takes pages from the reserved range, or reserves another: a small range costs one kernel less than a large one
/// wastes.
inline std::uint8_t* reserve_executable(std::size_t bytes) noexcept {
  const system_calls& os = current_system_calls;
  if (static_cast<std::size_t>(state.end - state.next) < bytes) {
    const std::size_t range = std::max(bytes, whole_pages(256 * 1024));
    void* p = os.map(nullptr, range, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    if (os.protect(p, range, PROT_READ | PROT_EXEC) != 0) {
      const int why = errno;
      os.unmap(p, range);
      errno = why;
      return nullptr;
    }
    if (state.end != state.next) os.unmap(state.next, static_cast<std::size_t>(state.end - state.next));
    state.next = static_cast<std::uint8_t*>(p);
    state.end = state.next + range;
  }
  std::uint8_t* taken = state.next;
  state.next += bytes;
  return taken;
}

/// Way 1. What was written is compared, because emulators exist in which /proc/self/mem is another process's memory.
inline std::uint8_t* install_by_memory_file(std::span<const std::uint8_t> code, std::size_t bytes) noexcept {
  std::uint8_t* p = nullptr;
  int fd = -1;
  {
    std::lock_guard guard(state.lock);
    if (state.memory_file < 0) state.memory_file = current_system_calls.open_memory();
    if (state.memory_file < 0) return nullptr;
    fd = state.memory_file;
    p = reserve_executable(bytes);
  }
  if (p == nullptr) return nullptr;
  if (write_all(fd, code, static_cast<off_t>(reinterpret_cast<std::uintptr_t>(p)))) {
    if (std::memcmp(p, code.data(), code.size()) == 0) return p;
    errno = EIO;
  }
  const int why = errno;
  current_system_calls.unmap(p, bytes);
  errno = why;
  return nullptr;
}

/// Way 2.
inline std::uint8_t* install_by_protection(std::span<const std::uint8_t> code, std::size_t bytes) noexcept {
  const system_calls& os = current_system_calls;
  void* p = os.map(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  std::memcpy(p, code.data(), code.size());
  if (os.protect(p, bytes, PROT_READ | PROT_EXEC) == 0) return static_cast<std::uint8_t*>(p);
  const int why = errno;
  os.unmap(p, bytes);
  errno = why;
  return nullptr;
}

/// Way 3. The file is closed before its pages are used, so nobody can write to them, a fork's child neither.
inline std::uint8_t* install_by_file(std::span<const std::uint8_t> code, std::size_t bytes) noexcept {
  const system_calls& os = current_system_calls;
  const int fd = os.create_file();
  if (fd < 0) return nullptr;
  void* p = MAP_FAILED;
  if (write_all(fd, code, 0)) p = os.map(nullptr, bytes, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
  const int why = errno;
  os.close(fd);
  errno = why;
  return p == MAP_FAILED ? nullptr : static_cast<std::uint8_t*>(p);
}

}  // namespace code_memory

/// Copies position-independent code (at least one byte) to pages of its own that can be executed.
/// Errors: code_memory, with the system's reasons. Thread-safe; the code may be called by any thread that the pages are
/// passed to with the usual ordering (an atomic release and acquire, a lock).
inline result<code_pages> install_code(std::span<const std::uint8_t> code) noexcept {
  const std::size_t bytes = code_memory::whole_pages(code.size());
  std::uint8_t* p = code_memory::install_by_memory_file(code, bytes);
  const int memory_file = p != nullptr ? 0 : errno;
  if (p == nullptr) p = code_memory::install_by_protection(code, bytes);
  const int protection = p != nullptr ? 0 : errno;
  if (p == nullptr) p = code_memory::install_by_file(code, bytes);
  if (p == nullptr) {
    return error(errc::code_memory, "code_memory",
                 "no memory for %zu bytes of code: through /proc/self/mem: %s; by mmap and mprotect: %s; by memfd: %s",
                 bytes, code_memory::reason(memory_file), code_memory::reason(protection), code_memory::reason(errno));
  }
  if (code_memory::state.reused.load(std::memory_order_acquire)) code_memory::serialise_cores();
  return code_pages{p, bytes};
}

/// Gives the pages back; no thread may run in them any more. Their addresses are used again only where other cores can
/// be made to forget what they fetched from there (`reusable`: serialise_cores() works); elsewhere the memory goes back
/// and the addresses stay reserved.
inline void release_code(code_pages pages, bool reusable) noexcept {
  if (pages.address == nullptr) return;
  const system_calls& os = current_system_calls;
  if (reusable) {
    code_memory::state.reused.store(true, std::memory_order_release);
    os.unmap(pages.address, pages.bytes);
  } else {
    os.map(pages.address, pages.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  }
}

namespace code_memory {

/// Around fork: no other thread is inside while the process is copied. The child must not write through the file
/// of its parent's memory.
inline void before_fork() noexcept { state.lock.lock(); }
inline void after_fork(bool child) noexcept {
  if (child && state.memory_file >= 0) {
    current_system_calls.close(state.memory_file);
    state.memory_file = -1;
  }
  state.lock.unlock();
}

}  // namespace code_memory
}  // namespace brgemm::inline abi_0::backend
