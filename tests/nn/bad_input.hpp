// A walk over the arguments of a call: each wrong in its ways, the error that tells, and memory that shows what was
// written before it.
#pragma once

#include <gtest/gtest.h>

#include <brgemm/core/result.hpp>
#include <brgemm/core/view.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "support/expect_error.hpp"
#include "support/names.hpp"

namespace brgemm_test {

using brgemm::index;

/// Small positive numbers of every type, no two places alike: what a call writes there differs.
inline unsigned char filling(std::size_t i) { return static_cast<unsigned char>(0x30 + i * 2654435761u % 65521 % 13); }
inline void fill(std::span<unsigned char> bytes) {
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = filling(i);
}
inline bool is_filled(std::span<const unsigned char> bytes) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != filling(i)) return false;
  }
  return true;
}

/// The buffers of a call in one piece of memory.
class filled_memory {
 public:
  filled_memory() : bytes_(1u << 18) { fill(); }
  /// `bytes` bytes on a line of their own; null for none.
  template <class T = void>
  T* take(index bytes) {
    if (bytes == 0) return nullptr;
    const auto first = reinterpret_cast<std::uintptr_t>(bytes_.data());
    const std::uintptr_t start = (first + used_ + 63) / 64 * 64;
    used_ = start - first + static_cast<std::size_t>(bytes);
    EXPECT_LE(used_, bytes_.size());
    return reinterpret_cast<T*>(start);
  }
  bool is_untouched() const { return is_filled(bytes_); }
  void fill() { brgemm_test::fill(bytes_); }

 private:
  std::vector<unsigned char> bytes_;
  std::size_t used_ = 0;
};

/// Where no element can be.
template <class T>
T* shifted(T* p, std::intptr_t bytes = 2) {
  return reinterpret_cast<T*>(reinterpret_cast<std::intptr_t>(p) + bytes);
}

/// Another argument's memory, in the place of this one's.
template <class T, class U>
void lay_on(T*& to, const U* from) {
  to = const_cast<T*>(reinterpret_cast<const T*>(from));
}

/// A view of other extents and strides, or of other memory.
template <class T>
void reshape(brgemm::view<T, 2>& v, index rows, index columns) {
  v = {v.data(), {rows, columns}};
}
template <class T>
void reshape(brgemm::view<T, 2>& v, index rows, index columns, index ld, index step) {
  v = {v.data(), {rows, columns}, {ld, step}};
}
template <class T>
void move_to(brgemm::view<T, 2>& v, std::type_identity_t<T>* data) {
  v = {data, v.shape(), v.strides()};
}
template <class T>
void move_to(std::span<T>& s, std::type_identity_t<T>* data) {
  s = {data, s.size()};
}

/// One way in which an argument is wrong. Without a change it is what the call is made on that does not do it.
template <class Call>
struct bad_argument {
  std::string argument;
  std::string field;
  std::vector<std::string> words;
  std::function<void(Call&)> change = {};
  std::optional<typename Call::description> d = {};  ///< Call::usual() where there is none
  brgemm::errc code = brgemm::errc::invalid_argument;
};

/// Call: what is given, made right by Call(subject), and called by call(subject). Subject: made from a description;
/// `memory` holds all that a call may write, and `is_untouched` says whether it did.
template <class Subject, class Call>
void walk(const std::vector<bad_argument<Call>>& cases, const std::vector<std::string>& names,
          const std::set<std::string>& always_right = {}) {
  std::set<std::string> seen;
  int number = 0;
  for (const auto& c : cases) {
    SCOPED_TRACE(c.argument + " " + c.field + ", case " + std::to_string(number++));
    Subject subject(c.d ? *c.d : Call::usual());
    Call call(subject);
    if (c.change) {
      const auto right = call(subject);
      ASSERT_TRUE(right) << right.error().message();
      EXPECT_FALSE(subject.is_untouched()) << "a right call writes, or this test sees nothing";
      subject.begin_again();
      c.change(call);
      seen.insert(c.argument);
    }
    expect_error(call(subject), c.code, c.field, c.words);
    EXPECT_TRUE(subject.is_untouched());
  }
  expect_a_case_for_each(names, seen, always_right);
}

}  // namespace brgemm_test
