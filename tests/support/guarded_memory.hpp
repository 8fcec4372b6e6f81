// Memory between two inaccessible pages: a read or write one byte outside a matrix that touches one ends the program.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <utility>

namespace brgemm_test {

/// Which side of a matrix touches an inaccessible page.
enum class guard { before, after };

/// Room for up to `capacity` bytes between two inaccessible pages. `place` chooses where in it a matrix lies; the room
/// is reused from one case to the next.
class guarded_memory {
 public:
  explicit guarded_memory(std::size_t capacity) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    room_ = (capacity + page - 1) / page * page;
    mapped_ = room_ + 2 * page;
    void* const base = ::mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) std::abort();
    base_ = static_cast<std::byte*>(base);
    first_ = base_ + page;
    if (room_ != 0 && ::mprotect(first_, room_, PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  guarded_memory(guarded_memory&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), first_(other.first_), room_(other.room_), mapped_(other.mapped_) {}
  guarded_memory& operator=(guarded_memory&&) = delete;
  ~guarded_memory() {
    if (base_ != nullptr) ::munmap(base_, mapped_);
  }

  std::size_t capacity() const { return room_; }

  /// `bytes` bytes that begin right behind the first inaccessible page, or end right before the second.
  std::byte* place(std::size_t bytes, guard side) const {
    if (bytes > room_) std::abort();
    return side == guard::before ? first_ : first_ + (room_ - bytes);
  }

 private:
  std::byte* base_ = nullptr;
  std::byte* first_ = nullptr;
  std::size_t room_ = 0;
  std::size_t mapped_ = 0;
};

}  // namespace brgemm_test
