// The arguments of one call of a kernel: data and what the desc left to the call.
#pragma once

#include "desc.hpp"

namespace brgemm::inline abi_0 {

/// One batch entry by addresses.
struct address_pair {
  const void* a;
  const void* b;
};

/// One batch entry by offsets, in elements of A and of B, from arguments.a and arguments.b.
struct offset_pair {
  index a;
  index b;
};

/// What a kernel reads at a call. Fields that the desc does not ask for are not read. The struct is only read, so one
/// may be reused and shared by threads. C must not overlap A, B or an operand, but for the operand of an `add`, a
/// `multiply` or a `*_backward` step that is C itself (same address, type and leading dimension).
struct arguments {
  const void* a = nullptr;  ///< first A (strides) or base of offsets
  const void* b = nullptr;  ///< first B (strides) or base of offsets
  void* c = nullptr;
  const void* pairs = nullptr;  ///< address_pair[batch] or offset_pair[batch]
  index batch = 1;              ///< number of entries, >= 0
  index m = 0;                  ///< rows, 1..desc.m, where desc.m_extent is at_call
  index lda = 0;                ///< where the desc says at_call
  index ldb = 0;
  index ldc = 0;
  double alpha = 1;         ///< rounded to the accumulator's type, that of u8 and s8 to f32
  double beta = 1;          ///< likewise
  index prefetch = 0;       ///< bytes from B to what is prefetched, of any sign, where desc.prefetch is not 0
  std::int32_t zero_a = 0;  ///< where desc.zero_a is at_call
  std::int32_t zero_b = 0;
  const std::int32_t* column_sums = nullptr;  ///< (n): sum over all entries and k of B, where desc.zero_a is at_call
  void* operand[max_epilogue] = {};           ///< one an epilogue step; nullptr where a step has none
  index operand_ld[max_epilogue] = {};        ///< where an epilogue step's ld is at_call
};

/// Code of a kernel. `context` is the kernel's own constant data, nullptr for generated code.
using entry_point = void (*)(const arguments*, const void* context);

}  // namespace brgemm::inline abi_0
