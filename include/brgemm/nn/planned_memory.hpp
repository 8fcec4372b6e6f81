// The memory of a network: parts are taken while it is planned, then all of it is allocated in one piece.
#pragma once

#include <cstring>
#include <memory>
#include <new>

#include "../core/result.hpp"
#include "../core/types.hpp"
#include "../loops/buffers.hpp"

namespace brgemm::inline abi_0::detail {

class planned_memory {
 public:
  /// The offset of `bytes` more bytes, which begin a line. size() becomes -1, and stays it, where it would pass 2^62.
  index take(index bytes) noexcept {
    const index offset = size_;
    if (size_ >= 0) size_ += (bytes + 63) / 64 * 64;
    if (size_ > index{1} << 62) size_ = -1;
    return offset;
  }
  index size() const noexcept { return size_; }

  /// All that was taken, zero. Errors: out_of_memory with the field.
  result<void> allocate(const char* field) noexcept {
    if (size_ < 0) return error(errc::out_of_memory, field, "the network would have more than 2^62 bytes");
    bytes_.reset(static_cast<char*>(::operator new(static_cast<std::size_t>(size_), alignment, std::nothrow)));
    if (!bytes_) return error(errc::out_of_memory, field, "no %ld bytes for the network", size_);
    std::memset(bytes_.get(), 0, static_cast<std::size_t>(size_));
    return {};
  }

  char* at(index offset) const noexcept { return bytes_.get() + offset; }
  float* floats(index offset) const noexcept { return reinterpret_cast<float*>(at(offset)); }
  buffer all() const noexcept { return {"the network's memory", bytes_.get(), size_}; }

 private:
  static constexpr std::align_val_t alignment{64};
  struct free_bytes {
    void operator()(char* p) const noexcept { ::operator delete(p, alignment); }
  };
  std::unique_ptr<char, free_bytes> bytes_;
  index size_ = 0;
};

}  // namespace brgemm::inline abi_0::detail
