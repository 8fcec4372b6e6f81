// Xbyak (Debian: libxbyak-dev), the assembler of the code generators, under a name of its own.
//
// Xbyak's classes change their layout with macros that a user may have set for another purpose. So it is included here
// in namespace brgemm_xbyak with settings of ours: no symbol is shared with a user's own Xbyak in another translation
// unit. xbyak.h has `#pragma once`, which leaves two cases of one translation unit that includes both:
// - the user's Xbyak came first: the generators use that one (with its AVX-512) in an inline namespace that says so;
// - ours came first: the user's later `#include <xbyak/xbyak.h>` does nothing, and `Xbyak::` finds the names of ours.
#pragma once

#if defined(XBYAK_XBYAK_H_)

#if defined(XBYAK_DISABLE_AVX512)
#error "brgemm needs AVX-512 of Xbyak, which was included before it with XBYAK_DISABLE_AVX512: include brgemm first"
#endif

namespace brgemm_assembler = ::Xbyak;
#define BRGEMM_WITH_XBYAK with_xbyak_of_user

#else

#pragma push_macro("NDEBUG")
#pragma push_macro("Xbyak")
#pragma push_macro("XBYAK_NO_EXCEPTION")
#pragma push_macro("XBYAK_USE_MMAP_ALLOCATOR")
#pragma push_macro("XBYAK_DONT_USE_MMAP_ALLOCATOR")
#pragma push_macro("XBYAK_USE_MEMFD")
#pragma push_macro("XBYAK_DISABLE_AVX512")
#pragma push_macro("XBYAK_ENABLE_OMITTED_OPERAND")
#pragma push_macro("XBYAK_OLD_DISP_CHECK")
#undef NDEBUG
#undef XBYAK_NO_EXCEPTION
#undef XBYAK_USE_MMAP_ALLOCATOR
#undef XBYAK_DONT_USE_MMAP_ALLOCATOR
#undef XBYAK_USE_MEMFD
#undef XBYAK_DISABLE_AVX512
#undef XBYAK_ENABLE_OMITTED_OPERAND
#undef XBYAK_OLD_DISP_CHECK

#define NDEBUG  // without it xbyak.h includes <iostream>
#define XBYAK_DONT_USE_MMAP_ALLOCATOR
#if defined(__cpp_exceptions)
#define Xbyak brgemm_xbyak
#define BRGEMM_WITH_XBYAK with_own_xbyak
#else
#define XBYAK_NO_EXCEPTION
#define Xbyak brgemm_xbyak_without_exceptions
#define BRGEMM_WITH_XBYAK with_own_xbyak_without_exceptions
#endif

#if !defined(__clang__)  // GCC takes long to look for dead stores in the constructor, which makes every register
#pragma GCC push_options
#pragma GCC optimize("no-tree-dse")
#endif
#include <xbyak/xbyak.h>
#if !defined(__clang__)
#pragma GCC pop_options
#endif

namespace brgemm_assembler = Xbyak;

#undef NDEBUG
#undef Xbyak
#undef XBYAK_NO_EXCEPTION
#undef XBYAK_DONT_USE_MMAP_ALLOCATOR
#pragma pop_macro("XBYAK_OLD_DISP_CHECK")
#pragma pop_macro("XBYAK_ENABLE_OMITTED_OPERAND")
#pragma pop_macro("XBYAK_DISABLE_AVX512")
#pragma pop_macro("XBYAK_USE_MEMFD")
#pragma pop_macro("XBYAK_DONT_USE_MMAP_ALLOCATOR")
#pragma pop_macro("XBYAK_USE_MMAP_ALLOCATOR")
#pragma pop_macro("XBYAK_NO_EXCEPTION")
#pragma pop_macro("Xbyak")
#pragma pop_macro("NDEBUG")
#include <cassert>  // again, with the user's NDEBUG

// A copy of Xbyak with another path may still come and define namespace Xbyak: its own names then win over these.
namespace Xbyak {
using namespace brgemm_assembler;
}

#undef XBYAK_XBYAK_H_

#endif
