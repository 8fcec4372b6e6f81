// Memory for generated code: never writable and executable at once, and never writable again once it holds code.
//
// Three ways, tried in this order at each kernel:
//  1. /proc/self/mem: pages are mapped R+X and filled through this file. No page is ever writable, and no core has to
//     drop a translation.
//  2. mprotect: pages of its own are filled while they are R+W, then made R+X. Threads that do it at once interrupt
//     each other's cores to drop the writable translation.
//  3. memfd: where mprotect is denied too (SELinux, seccomp), a file is filled with pwrite and mapped R+X.
// All mappings are private, so a child is independent, however it was made (fork, _Fork, clone): 1 and 2 are copied on
// write, and the file of 1 is used by the process that opened it only; in 3 nobody can write.
// BRGEMM_CODE_MEMORY=mprotect,memfd (any of the three names, with commas) permits these ways only.
#pragma once

#include <fcntl.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <mutex>
#include <span>
#include <string_view>

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
  int (*advise)(void* at, std::size_t bytes, int advice) noexcept;  ///< madvise
  int (*open_memory)() noexcept;                                    ///< /proc/self/mem, for writing
  int (*create_file)() noexcept;                                    ///< memfd_create
  ssize_t (*write)(int fd, const void* data, std::size_t bytes, off_t offset) noexcept;
  int (*close)(int fd) noexcept;
  int (*barrier)(int command) noexcept;  ///< membarrier
  void* (*allocate)(std::size_t bytes) noexcept;
  void (*free)(void*) noexcept;
  int (*at_fork)(void (*before)(), void (*in_parent)(), void (*in_child)()) noexcept;  ///< pthread_atfork
  int (*request_tiles)() noexcept;  ///< arch_prctl, for the state of AMX tiles
};

inline constexpr system_calls real_system_calls = {
    [](void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
      return ::mmap(at, bytes, protection, flags, fd, offset);
    },
    [](void* at, std::size_t bytes, int protection) noexcept { return ::mprotect(at, bytes, protection); },
    [](void* at, std::size_t bytes) noexcept { return ::munmap(at, bytes); },
    [](void* at, std::size_t bytes, int advice) noexcept { return ::madvise(at, bytes, advice); },
    []() noexcept { return ::open("/proc/self/mem", O_RDWR | O_CLOEXEC); },
    []() noexcept { return ::memfd_create("brgemm", MFD_CLOEXEC); },
    [](int fd, const void* data, std::size_t bytes, off_t offset) noexcept {
      return ::pwrite(fd, data, bytes, offset);
    },
    [](int fd) noexcept { return ::close(fd); },
    [](int command) noexcept { return static_cast<int>(::syscall(SYS_membarrier, command, 0, 0)); },
    [](std::size_t bytes) noexcept { return std::malloc(bytes); },
    [](void* p) noexcept { std::free(p); },
    [](void (*before)(), void (*in_parent)(), void (*in_child)()) noexcept {
      return ::pthread_atfork(before, in_parent, in_child);
    },
    []() noexcept {
      constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
      return static_cast<int>(::syscall(SYS_arch_prctl, request_permission, tile_data));
    },
};

/// The table in use. For tests: change it only while no kernel is being made.
inline constinit system_calls current_system_calls = real_system_calls;

/// Pages that hold one kernel, from its first byte on.
struct code_pages {
  std::uint8_t* address = nullptr;
  std::size_t bytes = 0;  ///< a multiple of the page size
};

/// A file that stays open. Its number is used only while it stands for the same file: a program may close files that
/// it does not know of (closefrom, as daemons do), and then has a file of its own under this number.
class kept_file {
 public:
  /// Takes an open file, or -1; what was kept is forgotten.
  bool keep(int number) noexcept {
    number_ = number;
    struct stat status {};
    if (number < 0 || ::fstat(number, &status) != 0) return false;
    device_ = status.st_dev;
    inode_ = status.st_ino;
    return true;
  }
  int number() const noexcept { return number_; }
  bool is_open() const noexcept {
    struct stat status {};
    return number_ >= 0 && ::fstat(number_, &status) == 0 && status.st_dev == device_ && status.st_ino == inode_;
  }
  void close() noexcept {
    if (is_open()) current_system_calls.close(number_);
    number_ = -1;
  }

 private:
  int number_ = -1;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

namespace code_memory {

struct shared_state {
  brief_mutex lock;              // of all members
  std::uint8_t* next = nullptr;  // R+X pages that nothing was written to
  std::uint8_t* end = nullptr;
  kept_file memory_file;               // /proc/self/mem of the process that opened it
  bool* memory_file_is_own = nullptr;  // in a page that the system clears in a child, however that was made
  std::uintptr_t retired_first = 0;    // between these lie all pages that held code and were given back since the last
  std::uintptr_t retired_end = 0;      // barrier
};
inline constinit shared_state state;

inline std::size_t whole_pages(std::size_t bytes) noexcept {
  static const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

inline const char* reason(int error_number) noexcept {
  switch (error_number) {
    case 0: return "not permitted by BRGEMM_CODE_MEMORY";
    case EACCES: return "EACCES (denied)";
    case EPERM: return "EPERM (not permitted)";
    case ENOSPC: return "ENOSPC (no space)";
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

/// Gives back what is of no use, and keeps the reason.
inline std::uint8_t* give_up(void* p, std::size_t bytes) noexcept {
  const int why = errno;
  current_system_calls.unmap(p, bytes);
  errno = why;
  return nullptr;
}

/// Gives memory back and keeps its addresses from being used again.
inline void reserve(void* p, std::size_t bytes) noexcept {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
  static_cast<void>(current_system_calls.map(p, bytes, PROT_NONE, flags, -1, 0));
}

/// Whether pages may hold code: where they lie among pages that did, other cores are made to drop what they fetched
/// from there; one barrier serves all pages that were given back before it.
inline bool free_of_old_code_locked(const void* p, std::size_t bytes) noexcept {
  const auto first = reinterpret_cast<std::uintptr_t>(p);
  if (state.retired_end <= first || first + bytes <= state.retired_first) return true;
  if (!serialise_cores()) return false;
  state.retired_first = state.retired_end = 0;
  return true;
}

/// Maps pages. Where the system gives some that held code and denies the barrier, those stay reserved, and others are
/// asked for below all that held code: farther and farther, as addresses there may be in use. What stays reserved is
/// addresses only, and never given back.
inline std::uint8_t* map_locked(std::size_t bytes, int protection, int flags, int fd) noexcept {
  std::uintptr_t wish = 0;
  for (std::uintptr_t distance = bytes;; distance *= 2) {
    void* p = current_system_calls.map(reinterpret_cast<void*>(wish), bytes, protection, MAP_PRIVATE | flags, fd, 0);
    if (p == MAP_FAILED) return nullptr;
    if (free_of_old_code_locked(p, bytes)) return static_cast<std::uint8_t*>(p);
    const int why = errno;
    reserve(p, bytes);
    errno = why;
    if (distance >= state.retired_first) return nullptr;
    wish = (state.retired_first - distance) / whole_pages(1) * whole_pages(1);
  }
}

inline std::uint8_t* map_pages(std::size_t bytes, int protection, int flags, int fd) noexcept {
  std::lock_guard guard(state.lock);
  return map_locked(bytes, protection, flags, fd);
}

/// Takes pages from the range at hand, or maps another: a small range costs one kernel less than a large one wastes.
inline std::uint8_t* take_executable_locked(std::size_t bytes) noexcept {
  if (static_cast<std::size_t>(state.end - state.next) < bytes) {
    const std::size_t range = std::max(bytes, whole_pages(256 * 1024));
    std::uint8_t* p = map_locked(range, PROT_READ | PROT_EXEC, MAP_ANONYMOUS, -1);
    if (p == nullptr) return nullptr;
    if (state.end != state.next)
      current_system_calls.unmap(state.next, static_cast<std::size_t>(state.end - state.next));
    state.next = p;
    state.end = p + range;
  }
  std::uint8_t* taken = state.next;
  state.next += bytes;
  return taken;
}

/// /proc/self/mem of this process, -1 where it cannot be opened. A child has its parent's file, which is the memory of
/// the parent: the page that tells is cleared there (Linux 4.14; the process id would not do, both can have number 1,
/// each in a namespace of its own). To open the file for each kernel would take 3 us of the 12 that one takes.
inline int memory_file_locked() noexcept {
  if (state.memory_file_is_own == nullptr) {
    const std::size_t bytes = whole_pages(1);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    void* page = current_system_calls.map(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (page == MAP_FAILED) return -1;
    if (current_system_calls.advise(page, bytes, MADV_WIPEONFORK) != 0) return give_up(page, bytes), -1;
    state.memory_file_is_own = static_cast<bool*>(page);
  }
  if (*state.memory_file_is_own && state.memory_file.is_open()) return state.memory_file.number();
  if (!*state.memory_file_is_own) state.memory_file.close();
  *state.memory_file_is_own = state.memory_file.keep(current_system_calls.open_memory());
  return *state.memory_file_is_own ? state.memory_file.number() : -1;
}

/// Way 1. What was written is compared, because emulators exist in which /proc/self/mem is another process's memory.
/// Linux from 6.12 on may be told to let nobody write where the process could not (proc_mem.force_override): then the
/// file opens, and the write fails.
inline std::uint8_t* install_by_memory_file(std::span<const std::uint8_t> code, std::size_t bytes) noexcept {
  std::uint8_t* p = nullptr;
  int fd = -1;
  {
    std::lock_guard guard(state.lock);
    fd = memory_file_locked();
    if (fd < 0) return nullptr;
    p = take_executable_locked(bytes);
  }
  if (p == nullptr) return nullptr;
  if (!write_all(fd, code, static_cast<off_t>(reinterpret_cast<std::uintptr_t>(p)))) return give_up(p, bytes);
  if (std::memcmp(p, code.data(), code.size()) == 0) return p;
  errno = EIO;
  return give_up(p, bytes);
}

/// Way 2.
inline std::uint8_t* install_by_protection(std::span<const std::uint8_t> code, std::size_t bytes) noexcept {
  std::uint8_t* p = map_pages(bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS, -1);
  if (p == nullptr) return nullptr;
  std::memcpy(p, code.data(), code.size());
  return current_system_calls.protect(p, bytes, PROT_READ | PROT_EXEC) == 0 ? p : give_up(p, bytes);
}

/// Way 3. The file is closed before its pages are used, so nobody can write to them, a fork's child neither.
inline std::uint8_t* install_by_file(std::span<const std::uint8_t> code, std::size_t bytes) noexcept {
  const int fd = current_system_calls.create_file();
  if (fd < 0) return nullptr;
  std::uint8_t* p = write_all(fd, code, 0) ? map_pages(bytes, PROT_READ | PROT_EXEC, 0, fd) : nullptr;
  const int why = errno;
  current_system_calls.close(fd);
  errno = why;
  return p;
}

struct way {
  std::string_view name;
  std::uint8_t* (*install)(std::span<const std::uint8_t> code, std::size_t bytes) noexcept;
};
inline constexpr way ways[] = {
    {"/proc/self/mem", install_by_memory_file}, {"mprotect", install_by_protection}, {"memfd", install_by_file}};
inline constexpr unsigned all_ways = 7;
inline constexpr unsigned unknown_way = 8;

/// A bit for each way of the list; all where it is empty.
inline unsigned parse(std::string_view list) noexcept {
  unsigned bits = list.empty() ? all_ways : 0;
  while (!list.empty()) {
    const auto end = list.find(',');
    const std::string_view word = list.substr(0, end);
    list = end == std::string_view::npos ? std::string_view{} : list.substr(end + 1);
    unsigned bit = unknown_way;
    for (unsigned i = 0; i < std::size(ways); ++i) bit = word == ways[i].name ? 1u << i : bit;
    bits |= bit;
  }
  return bits;
}

inline constinit std::atomic<unsigned> permitted_ways{0};  // 0: the environment was not read yet

/// What is permitted; the environment is read once.
inline unsigned permitted() noexcept {
  unsigned bits = permitted_ways.load(std::memory_order_relaxed);
  if (bits == 0) {
    const char* list = std::getenv("BRGEMM_CODE_MEMORY");
    const unsigned from_environment = parse(list != nullptr ? list : "");
    if (permitted_ways.compare_exchange_strong(bits, from_environment, std::memory_order_relaxed)) {
      bits = from_environment;  // else set_code_memory was quicker, and stands
    }
  }
  return bits;
}

}  // namespace code_memory

/// Stands in the place of BRGEMM_CODE_MEMORY from now on: the ways that are permitted, "mprotect,memfd"; "" permits
/// all.
inline void set_code_memory(std::string_view list) noexcept {
  code_memory::permitted_ways.store(code_memory::parse(list), std::memory_order_relaxed);
}

/// Copies position-independent code (at least one byte) to pages of its own that can be executed.
/// Errors: code_memory, with the system's reason for each way; invalid_argument where BRGEMM_CODE_MEMORY has an unknown
/// word. Thread-safe; the code may be called by any thread that the pages are passed to with the usual ordering (an
/// atomic release and acquire, a lock).
inline result<code_pages> install_code(std::span<const std::uint8_t> code) noexcept {
  const unsigned permitted = code_memory::permitted();
  if ((permitted & code_memory::unknown_way) != 0) {
    return error(errc::invalid_argument, "BRGEMM_CODE_MEMORY",
                 "BRGEMM_CODE_MEMORY takes /proc/self/mem, mprotect and memfd, with commas");
  }
  const std::size_t bytes = code_memory::whole_pages(code.size());
  int why[std::size(code_memory::ways)] = {};
  for (unsigned i = 0; i < std::size(code_memory::ways); ++i) {
    if ((permitted >> i & 1u) == 0) continue;
    std::uint8_t* p = code_memory::ways[i].install(code, bytes);
    if (p != nullptr) return code_pages{p, bytes};
    why[i] = errno;
  }
  return error(errc::code_memory, "code_memory",
               "no memory for %zu bytes of code: /proc/self/mem: %s; mprotect: %s; memfd: %s. options.backend or "
               "BRGEMM_BACKEND = reference needs none",
               bytes, code_memory::reason(why[0]), code_memory::reason(why[1]), code_memory::reason(why[2]));
}

/// Gives the pages back; no thread may run in them any more. Their addresses are used again only where other cores can
/// be made to forget what they fetched from there (`reusable`: serialise_cores() works); elsewhere the memory goes back
/// and the addresses stay reserved.
inline void release_code(code_pages pages, bool reusable) noexcept {
  if (pages.address == nullptr) return;
  if (!reusable) return code_memory::reserve(pages.address, pages.bytes);
  auto& state = code_memory::state;
  std::lock_guard guard(state.lock);  // until the pages are gone: a barrier before that does not count for them
  const auto first = reinterpret_cast<std::uintptr_t>(pages.address);
  const bool none = state.retired_end == 0;
  state.retired_first = none ? first : std::min(state.retired_first, first);
  state.retired_end = std::max(state.retired_end, first + pages.bytes);
  current_system_calls.unmap(pages.address, pages.bytes);
}

/// Gives pages back in which no thread ever ran: no core has fetched from there.
inline void discard_code(code_pages pages) noexcept {
  if (pages.address != nullptr) current_system_calls.unmap(pages.address, pages.bytes);
}

namespace code_memory {

/// Around fork: no other thread is inside while the process is copied. The child does not need the file of its parent's
/// memory.
inline void before_fork() noexcept { state.lock.lock(); }
inline void after_fork(bool child) noexcept {
  if (child) state.memory_file.close();
  state.lock.unlock();
}

}  // namespace code_memory
}  // namespace brgemm::inline abi_0::backend
