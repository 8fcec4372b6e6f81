// A user's own generator made with Xbyak, beside brgemm. XBYAK_FIRST, XBYAK_LAST: in one translation unit with it;
// neither: alone, with settings of its own given on the compiler's line.
#if defined(XBYAK_FIRST)
#include <xbyak/xbyak.h>
// brgemm afterwards
#include <brgemm/brgemm.hpp>
#elif defined(XBYAK_LAST)
#include <brgemm/brgemm.hpp>
// Xbyak afterwards
#include <xbyak/xbyak.h>
#else
#include <xbyak/xbyak.h>
#endif

namespace {

struct adder : Xbyak::CodeGenerator {
  adder() {
    lea(rax, ptr[rdi + rsi]);
    ret();
  }
};

}  // namespace

extern "C" unsigned long long use();

int main() {
  adder code;
  const auto add = code.getCode<long (*)(long, long)>();
  if (use() == 0 || add(40, 2) != 42 || use() == 0) return 1;
#if defined(XBYAK_FIRST) || defined(XBYAK_LAST)
  brgemm::desc d;
  d.m = d.n = d.k = 3;
  d.lda = d.ldb = d.ldc = 3;
  if (!brgemm::make_kernel(d)) return 1;
#endif
  return 0;
}
