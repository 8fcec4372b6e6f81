// Allocations and calls to the system that fail in turn.
#pragma once

#include <sys/mman.h>

#include <brgemm/backend/executable_memory.hpp>
#include <cerrno>
#include <cstdlib>

namespace brgemm_test {

/// The call that fails: the n-th from when n is set.
inline int failing_call = 0;
inline bool fails_now() { return --failing_call == 0; }

/// The calls to the system that fail in turn, with all ways round them closed; the real ones at the end.
class failing_system {
 public:
  failing_system() {
    auto& os = brgemm::backend::current_system_calls;
    os.allocate = [](std::size_t bytes) noexcept -> void* { return fails_now() ? nullptr : std::malloc(bytes); };
    os.write = [](int, const void*, std::size_t, off_t) noexcept { return errno = EIO, ssize_t{-1}; };
    os.protect = [](void* at, std::size_t bytes, int protection) noexcept {
      return fails_now() ? (errno = EACCES, -1) : ::mprotect(at, bytes, protection);
    };
    os.map = [](void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
      return fails_now() ? (errno = ENOMEM, MAP_FAILED) : ::mmap(at, bytes, protection, flags, fd, offset);
    };
    os.create_file = []() noexcept { return errno = EPERM, -1; };
  }
  ~failing_system() { brgemm::backend::current_system_calls = brgemm::backend::real_system_calls; }
};

}  // namespace brgemm_test
