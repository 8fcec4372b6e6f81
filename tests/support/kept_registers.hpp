// Calls a kernel and sees whether it kept the registers that the System V ABI says a function keeps.
#pragma once

#include <brgemm/backend/backend.hpp>

namespace brgemm_test {

/// Calls entry(x, context) with known numbers in rbx, rbp and r12 to r15; whether they came back.
bool keeps_registers(const brgemm::arguments* x, const void* context,
                     brgemm::entry_point entry) __asm__("brgemm_test_keeps_registers");

// Local to each object file. Six pushes and 8 bytes align the stack; the caller's registers come back in any case.
__asm__(R"(
.pushsection .text
.p2align 4
brgemm_test_keeps_registers:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  sub $8, %rsp
  mov $0x1b1b1b1b, %rbx
  mov $0x2b2b2b2b, %rbp
  mov $0x3b3b3b3b, %r12
  mov $0x4b4b4b4b, %r13
  mov $0x5b5b5b5b, %r14
  mov $0x6b6b6b6b, %r15
  call *%rdx
  xor %eax, %eax
  cmp $0x1b1b1b1b, %rbx
  jne 1f
  cmp $0x2b2b2b2b, %rbp
  jne 1f
  cmp $0x3b3b3b3b, %r12
  jne 1f
  cmp $0x4b4b4b4b, %r13
  jne 1f
  cmp $0x5b5b5b5b, %r14
  jne 1f
  cmp $0x6b6b6b6b, %r15
  jne 1f
  mov $1, %eax
1:
  add $8, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.popsection
)");

}  // namespace brgemm_test
