// The backends, best first, and those that are registered at run time.
#pragma once

#include <atomic>
#include <mutex>
#include <span>

#include "backend.hpp"
#if __has_include("amx.hpp")
#include "amx.hpp"
#endif
#if __has_include("avx512.hpp")
#include "avx512.hpp"
#endif
#if __has_include("avx2.hpp")
#include "avx2.hpp"
#endif
#include "reference.hpp"

namespace brgemm::inline abi_0::backend {

namespace entries {

inline constexpr entry built_in_list[] = {
#if __has_include("amx.hpp")
    amx,
#endif
#if __has_include("avx512.hpp")
    avx512,
#endif
#if __has_include("avx2.hpp")
    avx2,
#endif
    reference,
};

inline constexpr int max_registered = 8;

/// Entries are written once, before `count` says so, and never change: reading takes no lock.
struct registry {
  std::mutex lock;
  std::atomic<int> count{0};
  entry list[max_registered] = {};
};
inline constinit registry added;

}  // namespace entries

/// The library's own backends, best first: those that generate code, and last the reference, which runs everywhere.
inline std::span<const entry> built_in() noexcept { return entries::built_in_list; }

/// Backends that were added at run time. `make_kernel` takes one only where it is named.
inline std::span<const entry> registered() noexcept {
  const int count = entries::added.count.load(std::memory_order_acquire);
  return {entries::added.list, static_cast<std::size_t>(count)};
}

/// Calls f(const entry&) for every backend, best first, registered ones last, until one returns true.
/// Returns whether one did.
template <class F>
bool any_of(F&& f) {
  for (const entry& e : built_in()) {
    if (f(e)) return true;
  }
  for (const entry& e : registered()) {
    if (f(e)) return true;
  }
  return false;
}

/// Calls f(const entry&) for every backend, best first, registered ones last.
template <class F>
void for_each(F&& f) {
  any_of([&f](const entry& e) {
    f(e);
    return false;
  });
}

/// The backend of this name, or nullptr. It stays where it is as long as the process.
inline const entry* find(std::string_view name) noexcept {
  const entry* found = nullptr;
  any_of([&](const entry& e) {
    if (e.name == name) found = &e;
    return found != nullptr;
  });
  return found;
}

/// Adds a backend, copied; its name and functions must stay as long as the process. A second registration of the same
/// backend does nothing. Thread-safe. Errors: invalid_argument where another backend has the name, a function is
/// missing, or the list is full.
inline result<void> register_backend(const entry& e) noexcept {
  if (e.name.empty() || e.runs_here == nullptr || e.supports == nullptr || e.make == nullptr || e.explain == nullptr) {
    return error(errc::invalid_argument, "backend", "a backend needs a name and all four functions");
  }
  entries::registry& added = entries::added;
  std::lock_guard guard(added.lock);
  if (const entry* other = find(e.name)) {
    if (other->make == e.make) return {};
    return error(errc::invalid_argument, "backend", "there is another backend with the name %.*s",
                 static_cast<int>(e.name.size()), e.name.data());
  }
  const int count = added.count.load(std::memory_order_relaxed);
  if (count == entries::max_registered) {
    return error(errc::invalid_argument, "backend", "%d backends are registered, which is the most", count);
  }
  added.list[count] = e;
  added.count.store(count + 1, std::memory_order_release);
  return {};
}

}  // namespace brgemm::inline abi_0::backend
