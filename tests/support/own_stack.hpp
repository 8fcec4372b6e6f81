// Calls a kernel on a stack of its own, painted, and measures how much of it the kernel wrote.
#pragma once

#include <algorithm>
#include <brgemm/backend/backend.hpp>
#include <iterator>

namespace brgemm_test {

/// Calls entry(x, context) with the stack that ends at `top`, a multiple of 16.
void call_on_stack(const brgemm::arguments* x, const void* context, brgemm::entry_point entry,
                   void* top) __asm__("brgemm_test_call_on_stack");

// Local to each object file.
__asm__(R"(
.pushsection .text
.p2align 4
brgemm_test_call_on_stack:
  push %rbp
  mov %rsp, %rbp
  mov %rcx, %rsp
  call *%rdx
  mov %rbp, %rsp
  pop %rbp
  ret
.popsection
)");

/// Bytes from the deepest one written to the stack's end, the return address included.
inline std::size_t stack_used(const brgemm::arguments& x, const void* context, brgemm::entry_point entry) {
  static constexpr unsigned char paint = 0xa5;
  alignas(64) static unsigned char stack[64 << 10];
  std::fill(std::begin(stack), std::end(stack), paint);
  call_on_stack(&x, context, entry, std::end(stack));
  const auto* const deepest = std::find_if(std::begin(stack), std::end(stack), [](auto b) { return b != paint; });
  return static_cast<std::size_t>(std::end(stack) - deepest);
}

}  // namespace brgemm_test
