// The text of a kernel, and NVRTC, which compiles it.
#pragma once

#include <string>
#include <vector>

#include "brgemm/backend/cuda.hpp"
#include "plan.hpp"

namespace brgemm::inline abi_0::cuda {

inline constexpr char entry_name[] = "brgemm_batch_reduce";

/// The whole program: the headers of the library that kernels are made of, and one kernel.
std::string source_of(const desc& specialised, const tile& t);

/// Whether there is a compiler for the architecture. Errors: unsupported "nvrtc" and "capability".
result<void> check_compiler(capability of);

/// What, beside the source, two compilations have in common that give the same code: NVRTC's version, what it is asked
/// for, and its options. Errors: as check_compiler.
result<std::string> identity_of_compiler(capability of);

/// The code of the kernels of precompiled.hpp, for all architectures; their names end with their numbers.
std::string_view precompiled_code() noexcept;
inline constexpr char precompiled_name[] = "brgemm_precompiled_";

/// Errors: unsupported "nvrtc" and "capability"; device.
result<compiled> compile_source(std::string source, capability of);

}  // namespace brgemm::inline abi_0::cuda
