// Opt-in: LIBXSMM (https://github.com/libxsmm/libxsmm, 1.17 or 2.x) behind the same handle. Link brgemm::libxsmm and
// call backend::register_libxsmm() once; then make_kernel(d, {.backend = "libxsmm"}) or BRGEMM_BACKEND=libxsmm.
//
// LIBXSMM is column-major: our row-major C = A * B is its C' = B' * A', so the operands change places. The order of its
// sums is its own; kernel.order() answers `foreign`.
#pragma once

#include <climits>
#include <cmath>
#include <cstring>
#include <new>

#include "../core/validate.hpp"
#include "list.hpp"

// After the standard headers: LIBXSMM 2.x redefines __STRICT_ANSI__, on which they depend.
#include <libxsmm.h>

namespace brgemm::inline abi_0::backend {

namespace libxsmm_detail {

// Entries of a list that are rewritten at a time for LIBXSMM, which wants A and B in arrays of their own.
inline constexpr index chunk = 256;

#if LIBXSMM_CONFIG_VERSION_MAJOR >= 2
using function = libxsmm_gemmfunction;
#else
using function = void (*)(const void* a, const void* b, void* c, ...);  // every kernel of 1.x, with pointers only
#endif

/// What a kernel holds: a desc and LIBXSMM's code for it, which LIBXSMM keeps until the process ends.
struct context {
  desc d;
  function first = nullptr;  ///< with the desc's beta
  function next = nullptr;   ///< adds to C: what lists longer than a chunk go on with
};

inline bool fits_int(index x) noexcept { return x >= 0 && x <= INT_MAX; }

#if LIBXSMM_CONFIG_VERSION_MAJOR >= 2
inline libxsmm_datatype datatype_of(type t) noexcept {
  switch (t) {
    case type::f64: return LIBXSMM_DATATYPE_F64;
    case type::bf16: return LIBXSMM_DATATYPE_BF16;
    default: return LIBXSMM_DATATYPE_F32;
  }
}

inline function dispatch(const desc& d, bool add) noexcept {
  const auto to_int = [](index x) { return static_cast<libxsmm_blasint>(x); };
  const libxsmm_gemm_shape shape =
      libxsmm_create_gemm_shape(to_int(d.n), to_int(d.m), to_int(d.k), to_int(d.ldb), to_int(d.lda), to_int(d.ldc),
                                datatype_of(d.b), datatype_of(d.a), datatype_of(d.c), datatype_of(accumulator_of(d)));
  const int flags = (add ? LIBXSMM_GEMM_FLAG_NONE : LIBXSMM_GEMM_FLAG_BETA_0) |
                    (d.a == type::bf16 ? LIBXSMM_GEMM_FLAG_VNNI_A : LIBXSMM_GEMM_FLAG_NONE);
  const libxsmm_gemm_batch_reduce_type kind = d.batch == batch_kind::addresses ? LIBXSMM_GEMM_BATCH_REDUCE_ADDRESS
                                              : d.batch == batch_kind::offsets ? LIBXSMM_GEMM_BATCH_REDUCE_OFFSET
                                                                               : LIBXSMM_GEMM_BATCH_REDUCE_STRIDE;
  const libxsmm_gemm_batch_reduce_config config = libxsmm_create_gemm_batch_reduce_config(
      kind, to_int(d.stride_b * size_of(d.b)), to_int(d.stride_a * size_of(d.a)), 0);
  return libxsmm_dispatch_brgemm(shape, static_cast<libxsmm_bitfield>(flags), LIBXSMM_GEMM_PREFETCH_NONE, config);
}

inline void call(function f, const void* a, const void* b, void* c, unsigned long long count,
                 unsigned long long* offsets_a = nullptr, unsigned long long* offsets_b = nullptr) noexcept {
  libxsmm_gemm_param p = {};
  p.op.tertiary = &count;
  p.a.primary = const_cast<void*>(b);
  p.a.secondary = offsets_b;
  p.b.primary = const_cast<void*>(a);
  p.b.secondary = offsets_a;
  p.c.primary = c;
  f(&p);
}
#else
// The dispatchers of a type differ in nothing but the pointer to beta and what they return.
template <class Beta, class Addresses, class Offsets, class Strides>
function dispatch_as(const desc& d, bool add, Addresses addresses, Offsets offsets, Strides strides) noexcept {
  const auto to_int = [](index x) { return static_cast<libxsmm_blasint>(x); };
  const libxsmm_blasint m = to_int(d.n), n = to_int(d.m), k = to_int(d.k);
  const libxsmm_blasint lda = to_int(d.ldb), ldb = to_int(d.lda), ldc = to_int(d.ldc);
  const Beta alpha = 1;
  const Beta beta = add ? 1 : 0;
  const int flags = d.a == type::bf16 ? LIBXSMM_GEMM_FLAG_VNNI_A : LIBXSMM_GEMM_FLAG_NONE;
  const int prefetch = LIBXSMM_GEMM_PREFETCH_NONE;
  switch (d.batch) {
    case batch_kind::addresses:
      return reinterpret_cast<function>(addresses(m, n, k, &lda, &ldb, &ldc, &alpha, &beta, &flags, &prefetch));
    case batch_kind::offsets:
      return reinterpret_cast<function>(offsets(m, n, k, &lda, &ldb, &ldc, &alpha, &beta, &flags, &prefetch));
    case batch_kind::strides: break;
  }
  return reinterpret_cast<function>(strides(m, n, k, to_int(d.stride_b * size_of(d.b)),
                                            to_int(d.stride_a * size_of(d.a)), &lda, &ldb, &ldc, &alpha, &beta, &flags,
                                            &prefetch));
}

inline function dispatch(const desc& d, bool add) noexcept {
  if (d.a == type::f64) {
    return dispatch_as<double>(d, add, libxsmm_dmmdispatch_reducebatch_addr, libxsmm_dmmdispatch_reducebatch_offs,
                               libxsmm_dmmdispatch_reducebatch_strd);
  }
  if (d.a == type::bf16 && d.c == type::bf16) {
    return dispatch_as<float>(d, add, libxsmm_bmmdispatch_reducebatch_addr, libxsmm_bmmdispatch_reducebatch_offs,
                              libxsmm_bmmdispatch_reducebatch_strd);
  }
  if (d.a == type::bf16) {
    return dispatch_as<float>(d, add, libxsmm_bsmmdispatch_reducebatch_addr, libxsmm_bsmmdispatch_reducebatch_offs,
                              libxsmm_bsmmdispatch_reducebatch_strd);
  }
  return dispatch_as<float>(d, add, libxsmm_smmdispatch_reducebatch_addr, libxsmm_smmdispatch_reducebatch_offs,
                            libxsmm_smmdispatch_reducebatch_strd);
}

inline void call(function f, const void* a, const void* b, void* c, unsigned long long count,
                 const unsigned long long* offsets_a = nullptr,
                 const unsigned long long* offsets_b = nullptr) noexcept {
  f(b, a, c, &count, offsets_b, offsets_a);
}
#endif

inline void run_addresses(const context& k, const arguments& args) noexcept {
  const auto* pairs = static_cast<const address_pair*>(args.pairs);
  const void* a[chunk];
  const void* b[chunk];
  for (index begin = 0; begin < args.batch; begin += chunk) {
    const index count = args.batch - begin < chunk ? args.batch - begin : chunk;
    for (index i = 0; i < count; ++i) {
      a[i] = pairs[begin + i].a;
      b[i] = pairs[begin + i].b;
    }
    call(begin == 0 ? k.first : k.next, a, b, args.c, static_cast<unsigned long long>(count));
  }
}

inline void run_offsets(const context& k, const arguments& args) noexcept {
  const auto* pairs = static_cast<const offset_pair*>(args.pairs);
  unsigned long long a[chunk];
  unsigned long long b[chunk];
  const auto bytes_a = static_cast<unsigned long long>(size_of(k.d.a));
  const auto bytes_b = static_cast<unsigned long long>(size_of(k.d.b));
  for (index begin = 0; begin < args.batch; begin += chunk) {
    const index count = args.batch - begin < chunk ? args.batch - begin : chunk;
    for (index i = 0; i < count; ++i) {  // LIBXSMM's offsets count bytes
      a[i] = static_cast<unsigned long long>(pairs[begin + i].a) * bytes_a;
      b[i] = static_cast<unsigned long long>(pairs[begin + i].b) * bytes_b;
    }
    call(begin == 0 ? k.first : k.next, args.a, args.b, args.c, static_cast<unsigned long long>(count), a, b);
  }
}

inline void run(const arguments* args, const void* opaque) {
  const context& k = *static_cast<const context*>(opaque);
  if (args->batch == 0) {  // LIBXSMM's kernels do at least one entry
    if (k.d.beta == beta_kind::one) return;
    const auto row = static_cast<std::size_t>(k.d.n * size_of(k.d.c));
    for (index i = 0; i < k.d.m; ++i) std::memset(static_cast<char*>(args->c) + i * k.d.ldc * size_of(k.d.c), 0, row);
    return;
  }
  switch (k.d.batch) {
    case batch_kind::addresses: return run_addresses(k, *args);
    case batch_kind::offsets: return run_offsets(k, *args);
    case batch_kind::strides:
      return call(k.first, args->a, args->b, args->c, static_cast<unsigned long long>(args->batch));
  }
}

inline bool runs_here() noexcept {
  libxsmm_init();
  return true;
}

inline result<void> supports_types(const desc& d) noexcept {
  const bool plain = (d.a == type::f32 && d.b == type::f32 && d.c == type::f32) ||
                     (d.a == type::f64 && d.b == type::f64 && d.c == type::f64);
  const bool pairs = d.a == type::bf16 && d.b == type::bf16 && (d.c == type::f32 || d.c == type::bf16);
  if (!plain && !pairs) {
    return error(errc::unsupported, "a", "libxsmm does f32, f64 and bf16 to f32 or bf16, not %s x %s to %s",
                 name_of(d.a).data(), name_of(d.b).data(), name_of(d.c).data());
  }
  if (d.lda == at_call) return error(errc::unsupported, "lda", "libxsmm wants leading dimensions in the desc");
  if (d.layout_a != layout::plain) return error(errc::unsupported, "layout_a", "libxsmm reads A in plain layout only");
  if (d.layout_b != (pairs ? layout::interleaved : layout::plain)) {
    return error(errc::unsupported, "layout_b", "libxsmm reads B of %s %s", name_of(d.b).data(),
                 pairs ? "interleaved: pack it with pack_b" : "in plain layout only");
  }
  if (pairs && d.k % 2 != 0) {
    return error(errc::unsupported, "k", "libxsmm needs an even k for bf16, not %lld", static_cast<long long>(d.k));
  }
  if (pairs && d.lda % 2 != 0) {  // it counts rows of A in pairs
    return error(errc::unsupported, "lda", "libxsmm needs an even lda for bf16, not %lld",
                 static_cast<long long>(d.lda));
  }
  if (pairs && d.c == type::bf16 && d.batch != batch_kind::strides) {
    return error(errc::unsupported, "batch", "libxsmm with C in bf16 does strides: a long list would be rounded often");
  }
  return {};
}

inline result<void> supports_rest(const desc& d) noexcept {
  if (d.beta == beta_kind::at_call) return error(errc::unsupported, "beta", "libxsmm does a beta of 0 or 1");
  if (d.alpha != alpha_kind::one) return error(errc::unsupported, "alpha", "libxsmm does an alpha of 1");
  if (d.sums != order::machine) return error(errc::unsupported, "sums", "libxsmm has an order of sums of its own");
  if (d.chains != 1) return error(errc::unsupported, "chains", "libxsmm does 1 chain, not %d", int{d.chains});
  if (d.write_c != write_kind::cached)
    return error(errc::unsupported, "write_c", "libxsmm stores C through the caches");
  if (d.m_extent != extent_kind::fixed) return error(errc::unsupported, "m_extent", "libxsmm wants m in the desc");
  if (d.ldb == at_call) return error(errc::unsupported, "ldb", "libxsmm wants leading dimensions in the desc");
  if (d.ldc == at_call) return error(errc::unsupported, "ldc", "libxsmm wants leading dimensions in the desc");
  if (d.epilogue_size != 0) {
    return error(errc::unsupported, "epilogue", "libxsmm is behind this handle without an epilogue, not with %d steps",
                 int{d.epilogue_size});
  }
  if (row_ranges(d) != 0) return error(errc::unsupported, "rows", "libxsmm sums all rows of every entry");
  if (d.k == 0) return error(errc::unsupported, "k", "libxsmm needs a k of at least 1");
  return {};
}

inline result<void> supports_sizes(const desc& d) noexcept {
  const struct {
    const char* field;
    index value;
  } sizes[] = {{"m", d.m},
               {"n", d.n},
               {"k", d.k},
               {"lda", d.lda},
               {"ldb", d.ldb},
               {"ldc", d.ldc},
               {"stride_a", d.stride_a > INT_MAX ? d.stride_a : d.stride_a * size_of(d.a)},
               {"stride_b", d.stride_b > INT_MAX ? d.stride_b : d.stride_b * size_of(d.b)}};
  for (const auto& [field, value] : sizes) {
    if (!fits_int(value)) {
      return error(errc::unsupported, field, "libxsmm counts in int, from 0 on: %s is %lld", field,
                   static_cast<long long>(value));
    }
  }
  return {};
}

inline result<void> supports(const desc& d) noexcept {
  if (auto r = validate(d); !r) return r;
  if (auto r = supports_types(d); !r) return r;
  if (auto r = supports_rest(d); !r) return r;
  if (auto r = supports_sizes(d); !r) return r;
  // LIBXSMM keeps what it generates, so asking it costs a look-up later.
  if (dispatch(d, d.beta == beta_kind::one) == nullptr || dispatch(d, true) == nullptr) {
    return error(errc::unsupported, "desc", "libxsmm made no kernel for %lld x %lld x %lld",
                 static_cast<long long>(d.m), static_cast<long long>(d.n), static_cast<long long>(d.k));
  }
  return {};
}

inline void release(void* opaque) noexcept { delete static_cast<context*>(opaque); }

inline result<program> make(const desc& d, std::span<std::uint8_t>) noexcept {
  if (auto r = supports(d); !r) return r.error();
  auto* const made = new (std::nothrow) context{d, dispatch(d, d.beta == beta_kind::one), dispatch(d, true)};
  if (made == nullptr) {
    return error(errc::out_of_memory, "desc", "no memory for the %zu bytes of a libxsmm kernel", sizeof(context));
  }
  program p;
  p.entry = run;
  p.context = made;
  p.release = release;
  p.sums = order::foreign;
  return p;
}

inline std::size_t explain(const desc&, char* text, std::size_t size) noexcept {
  constexpr std::string_view words = "libxsmm: generated by LIBXSMM " LIBXSMM_CONFIG_VERSION
                                     ", which says nothing of its blocking; no cycles are predicted.";
  const std::size_t length = words.size() < size ? words.size() : size;
  std::memcpy(text, words.data(), length);
  return length;
}

}  // namespace libxsmm_detail

/// f32, f64, and bf16 with an interleaved B; every batch kind, beta 0 or 1, sizes in the desc, no epilogue. Where it
/// says no, the reason is in the error. Kernels are LIBXSMM's and stay in its own cache until the process ends.
inline constexpr entry libxsmm{"libxsmm", libxsmm_detail::runs_here, libxsmm_detail::supports, libxsmm_detail::make,
                               libxsmm_detail::explain};

/// Adds LIBXSMM to the backends that can be named. Calling it again does nothing. Thread-safe.
/// Errors: invalid_argument "backend" where the list of backends is full.
inline result<void> register_libxsmm() noexcept { return register_backend(libxsmm); }

}  // namespace brgemm::inline abi_0::backend
