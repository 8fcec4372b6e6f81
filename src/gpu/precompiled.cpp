#include "compiler.hpp"

// What nvcc made of precompiled.cu.
__asm__(
    ".pushsection .rodata\n"
    ".balign 16\n"
    ".globl brgemm_precompiled_begin, brgemm_precompiled_end\n"
    ".hidden brgemm_precompiled_begin, brgemm_precompiled_end\n"
    "brgemm_precompiled_begin:\n"
    ".incbin \"" BRGEMM_PRECOMPILED
    "\"\n"
    "brgemm_precompiled_end:\n"
    ".byte 0\n"
    ".popsection\n");

extern "C" const char brgemm_precompiled_begin[] __attribute__((visibility("hidden")));
extern "C" const char brgemm_precompiled_end[] __attribute__((visibility("hidden")));

namespace brgemm::inline abi_0::cuda {

std::string_view precompiled_code() noexcept {
  return {brgemm_precompiled_begin, static_cast<std::size_t>(brgemm_precompiled_end - brgemm_precompiled_begin)};
}

}  // namespace brgemm::inline abi_0::cuda
