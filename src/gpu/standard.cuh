// What core/types.hpp and core/desc.hpp want of the C++ standard library, for NVRTC, which has none: it stands before
// them in the text of a kernel.
#ifndef BRGEMM_GPU_STANDARD
#define BRGEMM_GPU_STANDARD

namespace std {

using size_t = decltype(sizeof 0);
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned;
using int64_t = long;
using uint64_t = unsigned long;
static_assert(sizeof(long) == 8);

template <class To, class From>
constexpr To bit_cast(const From& from) noexcept {
  return __builtin_bit_cast(To, from);
}
constexpr int countl_zero(uint32_t x) noexcept {
  int zeros = 0;
  for (uint32_t bit = 1u << 31; bit != 0 && (x & bit) == 0; bit >>= 1) ++zeros;
  return zeros;
}

template <class A, class B>
inline constexpr bool is_same_v = false;
template <class A>
inline constexpr bool is_same_v<A, A> = true;
template <class T>
inline constexpr bool has_unique_object_representations_v = __has_unique_object_representations(T);

class string_view {
 public:
  constexpr string_view(const char* text) noexcept : text_(text) {}
  constexpr const char* data() const noexcept { return text_; }

 private:
  const char* text_;
};

}  // namespace std
#endif
