// The handle of a kernel, and make_kernel, which chooses a backend and generates or finds the kernel.
#pragma once

#include <cstdlib>
#include <utility>

#include "../core/validate.hpp"
#include "code_cache.hpp"
#include "name.hpp"
#include "views.hpp"

namespace brgemm::inline abi_0 {

/// A kernel: a handle of three words that keeps its code alive. Copying and destroying it takes no lock, and may be
/// done in any thread, but like counting in general not in a signal handler. An empty (default-constructed or moved
/// from) kernel may only be assigned to, destroyed and tested.
class kernel {
 public:
  kernel() noexcept = default;
  kernel(const kernel& other) noexcept : entry_(other.entry_), context_(other.context_), record_(other.record_) {
    if (record_ != nullptr) detail::pin_again(record_);
  }
  kernel(kernel&& other) noexcept
      : entry_(std::exchange(other.entry_, nullptr)),
        context_(std::exchange(other.context_, nullptr)),
        record_(std::exchange(other.record_, nullptr)) {}
  kernel& operator=(kernel other) noexcept {
    std::swap(entry_, other.entry_);
    std::swap(context_, other.context_);
    std::swap(record_, other.record_);
    return *this;
  }
  ~kernel() {
    if (record_ != nullptr) detail::unpin(record_);
  }

  explicit operator bool() const noexcept { return record_ != nullptr; }

  /// The raw call: one indirect call, nothing is checked. `x` must be as `validate(description(), x)` wants it.
  /// Any number of threads may call one kernel at a time; those that write the same C are the caller's to order.
  void operator()(const arguments& x) const noexcept { entry_(&x, context_); }

  /// The checked call. Errors: invalid_argument with the field and the numbers, before anything is written.
  result<void> call(const arguments& x) const noexcept {
    if (auto r = validate(description(), x); !r) return r;
    entry_(&x, context_);
    return {};
  }

  /// The checked call with views: shapes as in `describe`; a kernel with m at the call takes m from C. Only for
  /// batch_kind::strides. Errors: invalid_argument with the field and the numbers, before anything is written.
  template <class TA, class TB, class TC>
  requires(element<std::remove_const_t<TA>>&& element<std::remove_const_t<TB>>&& element<TC>) result<void>
  operator()(const view<TA, 3>& a, const view<TB, 3>& b, const view<TC, 2>& c,
             const call_options& o = {}) const noexcept {
    const auto x = detail::arguments_of(description(), detail::erase(a), detail::erase(b), detail::erase(c), o);
    if (!x) return x.error();
    return call(*x);
  }

  /// The backend that made it: "reference", "avx512", "amx".
  std::string_view backend() const noexcept { return record_->maker->name; }
  /// The order of sums that it follows; never order::machine.
  brgemm::order order() const noexcept { return record_->program.sums; }
  /// What it was made from; valid as long as any handle of the kernel.
  const desc& description() const noexcept { return record_->description; }
  /// The name that debuggers and profilers show, `brgemm_f32_64x48x64_strd_b1_relu`.
  kernel_name name() const noexcept { return name_of(description()); }

 private:
  friend struct kernel_access;
  explicit kernel(detail::record* pinned) noexcept
      : entry_(pinned->entry), context_(pinned->context), record_(pinned) {}

  entry_point entry_ = nullptr;
  const void* context_ = nullptr;
  detail::record* record_ = nullptr;
};

/// For the library's own files: makes a handle from a pinned record, and shows the record.
struct kernel_access {
  static kernel make(detail::record* pinned) noexcept { return kernel(pinned); }
  static const detail::record& record_of(const kernel& k) noexcept { return *k.record_; }
  static const backend::tile_configuration& tiles_of(const kernel& k) noexcept { return k.record_->program.tiles; }
};

/// How make_kernel may choose.
struct options {
  std::string_view backend = {};  ///< the only backend permitted; empty: the best that generates code on this CPU, and
                                  ///< the reference where none does
};

namespace detail {

/// What BRGEMM_BACKEND, or a test in its place, permits.
struct backend_restriction {
  std::mutex lock;
  std::atomic<int> number{-1};  // of the named backend, 0 for any; -1: not known yet, or no such backend
  bool read = false;
  char name[32] = {};
};
inline constinit backend_restriction restriction;

/// Backends are numbered from 1 as `backend::for_each` meets them; 0 where no backend has the name.
inline int number_of(std::string_view name) noexcept {
  int number = 0;
  const bool found = backend::any_of([&](const backend::entry& e) {
    ++number;
    return e.name == name;
  });
  return found ? number : 0;
}

inline const backend::entry* backend_number(std::uint32_t number) noexcept {
  const auto first = backend::built_in();
  return number <= first.size() ? &first[number - 1] : &backend::registered()[number - 1 - first.size()];
}

inline error unknown_backend(const char* where, std::string_view name) noexcept {
  return {errc::forbidden,
          "backend",
          "%s names the backend \"%.*s\", which does not exist or is not registered",
          where,
          static_cast<int>(name.size()),
          name.data()};
}

/// BRGEMM_BACKEND is read once a process; the name may be registered later.
inline result<int> restricted_number() noexcept {
  std::lock_guard guard(restriction.lock);
  if (!restriction.read) {
    const char* name = std::getenv("BRGEMM_BACKEND");
    std::snprintf(restriction.name, sizeof restriction.name, "%s", name != nullptr ? name : "");
    restriction.read = true;
  }
  const int number = restriction.name[0] != '\0' ? number_of(restriction.name) : 0;
  if (number == 0 && restriction.name[0] != '\0') return unknown_backend("BRGEMM_BACKEND", restriction.name);
  restriction.number.store(number, std::memory_order_release);
  return number;
}

/// The number of the only backend that the options and BRGEMM_BACKEND permit, 0 for any.
inline result<int> permitted_number(std::string_view wanted) noexcept {
  int number = restriction.number.load(std::memory_order_acquire);
  if (number < 0) {
    const result<int> read = restricted_number();
    if (!read) return read;
    number = *read;
  }
  if (wanted.empty()) return number;
  const int named = number_of(wanted);
  if (named == 0) return unknown_backend("options.backend", wanted);
  if (number == 0 || number == named) return named;
  const std::string_view only = backend_number(static_cast<std::uint32_t>(number))->name;
  return error(errc::forbidden, "backend", "options.backend is \"%.*s\", but BRGEMM_BACKEND permits only \"%.*s\"",
               static_cast<int>(wanted.size()), wanted.data(), static_cast<int>(only.size()), only.data());
}

inline error unsupported_by(const backend::entry& e, const error& why) noexcept {
  return {why.code(),           why.field().data(),
          "backend %.*s: %.*s", static_cast<int>(e.name.size()),
          e.name.data(),        static_cast<int>(why.message().size()),
          why.message().data()};
}

/// The named backend, or the first of the library's own that generates code here and does the desc. The reference, the
/// last one, is slower by orders of magnitude: it is the answer only where it is named, or where nothing generates
/// code.
inline result<const backend::entry*> choose_backend(const desc& d, std::uint32_t named) noexcept {
  if (const auto& r = check_cpu_list(); !r) return r.error();
  if (auto r = validate(d); !r) return r.error();
  if (named != 0) {
    const backend::entry& e = *backend_number(named);
    if (!e.runs_here()) {
      return error(errc::forbidden, "backend", "backend \"%.*s\" is named, but cannot run on this CPU",
                   static_cast<int>(e.name.size()), e.name.data());
    }
    if (auto r = e.supports(d); !r) return unsupported_by(e, r.error());
    return &e;
  }
  const auto own = backend::built_in();
  result<const backend::entry*> otherwise = &own.back();
  for (const backend::entry& e : own.first(own.size() - 1)) {
    if (!e.runs_here()) continue;
    const auto r = e.supports(d);
    if (r) return &e;
    if (otherwise) otherwise = unsupported_by(e, r.error());
  }
  return otherwise;
}

/// Where the first record of the bucket is not the one.
[[gnu::noinline]] inline result<kernel> make_permitted(cache_key key, std::uint64_t hash) noexcept {
  record* const found = find_pinned(key, hash);
  if (found != nullptr) {
    count_hit(found, this_shard());
    return kernel_access::make(found);
  }
  const auto made = obtain(key, hash, [&key] { return choose_backend(*key.description, key.backend()); });
  if (!made) return made.error();
  return kernel_access::make(*made);
}

[[gnu::noinline]] inline result<kernel> make_named(const desc& d, std::string_view wanted) noexcept {
  const result<int> number = permitted_number(wanted);
  if (!number) return number.error();
  const cache_key key(d, static_cast<std::uint32_t>(*number));
  return make_permitted(key, bucket_hash(key));
}

/// Whether `d` is not for the backend that is best for `rather`. Nothing is generated.
inline bool loses_backend(const desc& d, const desc& rather, const options& how) noexcept {
  const auto permitted = permitted_number(how.backend);
  if (!permitted) return false;
  const auto best = choose_backend(rather, static_cast<std::uint32_t>(*permitted));
  const auto own = choose_backend(d, static_cast<std::uint32_t>(*permitted));
  return best && (!own || *own != *best);
}

}  // namespace detail

/// A kernel for the desc: generated at the first request, found in the cache after that, without a lock. Thread-safe;
/// different descs are generated in parallel, the same desc once. Errors: invalid_argument with the wrong field;
/// unsupported with the reason of the named, or the best, backend; forbidden where the options or BRGEMM_BACKEND name
/// a backend that does not exist or cannot run here; out_of_memory; code_memory, where the system denies memory for
/// code (the reference, if named, needs none); cache_full. Making a new kernel takes up to 128 KiB of the calling
/// thread's stack.
inline result<kernel> make_kernel(const desc& d, const options& o = {}) noexcept {
  const int number = detail::restriction.number.load(std::memory_order_acquire);
  if (number < 0 || !o.backend.empty()) return detail::make_named(d, o.backend);
  const detail::cache_key key(d, static_cast<std::uint32_t>(number));
  const std::uint64_t hash = detail::bucket_hash(key);
  detail::record* const first = detail::bucket_of(hash).load(std::memory_order_acquire);
  if (first != nullptr) {
    const unsigned shard = detail::this_shard();
    if (detail::pin_if(first, key, hash, shard)) {
      detail::count_hit(first, shard);
      return kernel_access::make(first);
    }
  }
  return detail::make_permitted(key, hash);
}

/// For tests: stands in the place of BRGEMM_BACKEND from now on; "" permits all. Kernels made before are untouched.
inline void restrict_backend(std::string_view name) noexcept {
  auto& r = detail::restriction;
  std::lock_guard guard(r.lock);
  std::snprintf(r.name, sizeof r.name, "%.*s", static_cast<int>(name.size()), name.data());
  r.read = true;
  r.number.store(-1, std::memory_order_release);
}

}  // namespace brgemm::inline abi_0
