// A backend for tests of the cache: its kernels store desc.m to C and return, so that a call shows which kernel ran.
#pragma once

#include <atomic>
#include <cstring>

#include "brgemm/kernel/kernel.hpp"

namespace fake {

using namespace brgemm;

inline std::atomic<int> made{0};
inline std::atomic<int> inside{0};  // threads in `make`
inline std::atomic<int> most_inside{0};
inline std::atomic<int> contexts{0};  // alive
inline std::atomic<void (*)()> in_make{nullptr};
inline std::atomic<bool> fails{false};

inline bool runs_here() noexcept { return true; }
inline bool runs_nowhere() noexcept { return false; }
inline result<void> supports(const desc& d) noexcept {
  if (d.k == 13) return error(errc::unsupported, "k", "k is 13");
  return {};
}

/// endbr64; push rbp; mov rbp, rsp; mov rax, [rdi + offsetof(arguments, c)]; mov dword [rax], m; pop rbp; ret
inline result<backend::program> make(const desc& d, std::span<std::uint8_t> buffer) noexcept {
  const int now = ++inside;
  int most = most_inside;
  while (most < now && !most_inside.compare_exchange_weak(most, now)) {
  }
  if (void (*hook)() = in_make) hook();
  --inside;
  if (fails) return error(errc::out_of_memory, "memory", "as asked for");
  ++made;
  static_assert(offsetof(arguments, c) < 128);
  std::uint8_t code[] = {0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x8b, 0x47, offsetof(arguments, c),
                         0xc7, 0x00, 0,    0,    0,    0,    0x5d, 0xc3};
  const auto m = static_cast<std::uint32_t>(d.m);
  std::memcpy(code + 14, &m, 4);
  std::memcpy(buffer.data(), code, sizeof code);
  return backend::program{.code_bytes = sizeof code};
}

inline std::size_t explain(const desc& d, char* text, std::size_t size) noexcept {
  return static_cast<std::size_t>(std::snprintf(text, size, "stores %d", static_cast<int>(d.m)));
}

/// The same without code: a function with a context.
inline void store(const arguments* x, const void* context) {
  *static_cast<std::int32_t*>(x->c) = static_cast<std::int32_t>(static_cast<const desc*>(context)->m);
}
inline result<backend::program> make_function(const desc& d, std::span<std::uint8_t>) noexcept {
  if (void (*hook)() = in_make) hook();
  ++contexts;
  const auto release = [](void* context) noexcept {
    --contexts;
    delete static_cast<desc*>(context);
  };
  return backend::program{.entry = store,
                          .context = new desc(d),
                          .release = release,
                          .sums = order::foreign,
                          .context_bytes = sizeof(desc)};
}

inline constexpr backend::entry code{"fake", runs_here, supports, make, explain};
inline constexpr backend::entry function{"fake_function", runs_here, supports, make_function, explain};
inline constexpr backend::entry absent{"fake_absent", runs_nowhere, supports, make, explain};

inline void register_all() {
  for (const auto& e : {code, function, absent}) static_cast<void>(backend::register_backend(e));
}

inline desc problem(brgemm::index m) {
  desc d;
  d.m = m;
  return d;
}

/// What a kernel stores.
inline std::int32_t run(const kernel& k) {
  std::int32_t c = -1;
  arguments x;
  x.c = &c;
  k(x);
  return c;
}

}  // namespace fake
