// Semantic version of the library, and the name of the inline namespace that carries its ABI version.
#pragma once

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error \
    "brgemm promises exact bits; -ffast-math and -ffinite-math-only would break them. Compile this file without them."
#endif

#define BRGEMM_VERSION_MAJOR 0
#define BRGEMM_VERSION_MINOR 1
#define BRGEMM_VERSION_PATCH 0

// Everything public lives in brgemm::abi_0. The number changes when the layout or meaning of a public type changes,
// so that two shared objects built with different versions cannot mix their objects by accident.
namespace brgemm {
inline namespace abi_0 {}
}  // namespace brgemm
