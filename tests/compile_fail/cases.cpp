// What must not compile, and the words with which it must fail.
#if CASE == 13
#include <xbyak/xbyak.h>
#endif
#include <brgemm/brgemm.hpp>

struct unknown_type {};
float data[64];
extern const float constant[64];
brgemm::view<float, 3> a{data, {1, 2, 2}};
brgemm::view<float, 3> b{data, {1, 2, 2}};
brgemm::view<float, 2> c{data, {2, 2}};
brgemm::kernel kernel;

#if CASE == 0
const auto made = brgemm::make_kernel(brgemm::describe(a, b, c, {.beta = 1, .epilogue = {brgemm::op::relu()}}));
#elif CASE == 1   // flags: -ffast-math; error: brgemm promises exact bits
#elif CASE == 2   // flags: -ffinite-math-only; error: brgemm promises exact bits
#elif CASE == 3   // flags: none; error: element
brgemm::view<unknown_type, 3> unknown;
const auto d = brgemm::describe(unknown, b, c);
#elif CASE == 4   // flags: none; error: no matching function
const auto d = brgemm::describe(c, b, c);
#elif CASE == 5   // flags: none; error: no match|no matching function|const
brgemm::view<const float, 2> read_only{constant, {2, 2}};
void call() { kernel(a, b, read_only); }
#elif CASE == 6   // flags: none; error: nodiscard|unused-result|ignoring
void call(const brgemm::desc& d) { brgemm::make_kernel(d); }
#elif CASE == 7   // flags: none; error: conver|no viable
brgemm::kernel from_result(const brgemm::desc& d) { return brgemm::make_kernel(d); }
#elif CASE == 8   // flags: none; error: conver|no viable
brgemm::view<float, 2> writable = brgemm::view<const float, 2>{constant, {2, 2}};
#elif CASE == 9   // flags: none; error: conver|no viable|no match|cannot initialize
const brgemm::desc wrong{.a = 3};
#elif CASE == 10  // flags: none; error: no match|no matching function|no viable
const float x = c(1);
#elif CASE == 11  // flags: none; error: converted to .bool.|conver|no viable|could not convert
bool implicit() {
  bool made = brgemm::make_kernel(brgemm::desc{});
  return made;
}
#elif CASE == 12  // flags: none; error: element|undefined|incomplete
constexpr auto t = brgemm::element_traits<unknown_type>::value;
#elif CASE == 13  // flags: -DXBYAK_DISABLE_AVX512; error: brgemm needs AVX-512 of Xbyak
#endif
