// Errors as values: a kind, the field that is wrong, and a sentence with the numbers.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <new>
#include <optional>
#include <string_view>
#include <utility>
#if defined(__cpp_exceptions)
#include <stdexcept>
#endif

#include "types.hpp"

namespace brgemm::inline abi_0 {

/// What kind of thing went wrong; the message says the rest.
enum class errc : std::uint8_t {
  invalid_argument,  ///< a field or an argument is wrong for every backend
  unsupported,       ///< right, but no permitted backend on this machine does it
  forbidden,         ///< a backend was named, by options or BRGEMM_BACKEND, that does not exist or cannot run here
  out_of_memory,     ///< an allocation failed
  code_memory,       ///< memory for code could not be mapped or protected; the message has the system's reason
  cache_full,        ///< the bound on code memory is reached and every kernel in it is held
  device,            ///< a GPU's driver or compiler refused; the message has its words
};

/// An error: trivially copyable, holds its text itself, so making one never allocates.
class error {
 public:
  error() noexcept { text_[0] = '\0'; }  // not the whole text: a result is made at every lookup of a kernel
  /// `format` as printf's; a message that is too long is cut. `field` must be a string literal.
  [[gnu::format(printf, 4, 5), gnu::cold]] error(errc code, const char* field, const char* format, ...) noexcept
      : code_(code), field_(field) {
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text_, sizeof text_, format, arguments);
    va_end(arguments);
  }

  errc code() const noexcept { return code_; }
  /// The field of the desc, or the argument, that is wrong: "lda", "k", "backend".
  std::string_view field() const noexcept { return field_; }
  /// One sentence, with the offending numbers.
  std::string_view message() const noexcept { return text_; }

 private:
  errc code_ = errc::invalid_argument;
  const char* field_ = "";
  char text_[240];  // zero-terminated
};

/// A value or an error. Test it with `if (!r)`, or take the value with `value_or_throw()` where exceptions are on.
template <class T>
class [[nodiscard]] result {
 public:
  result(T value) noexcept : value_(std::move(value)) {}  // NOLINT: implicit on purpose
  result(const brgemm::error& e) noexcept : error_(e) {}  // NOLINT: implicit on purpose

  explicit operator bool() const noexcept { return value_.has_value(); }
  bool has_value() const noexcept { return value_.has_value(); }
  T& operator*() & noexcept { return *value_; }
  const T& operator*() const& noexcept { return *value_; }
  T&& operator*() && noexcept { return std::move(*value_); }
  T* operator->() noexcept { return &*value_; }
  const T* operator->() const noexcept { return &*value_; }
  const brgemm::error& error() const noexcept { return error_; }
#if defined(__cpp_exceptions)
  T value_or_throw() && {
    if (!value_) throw std::runtime_error(error_.message().data());
    return std::move(*value_);
  }
#endif

 private:
  std::optional<T> value_;
  brgemm::error error_;
};

/// Nothing or an error. Not [[nodiscard]]: the checked call of a kernel may be written as a plain statement.
template <>
class result<void> {
 public:
  result() noexcept = default;
  result(const brgemm::error& e) noexcept : error_(e), failed_(true) {}  // NOLINT: implicit on purpose
  explicit operator bool() const noexcept { return !failed_; }
  bool has_value() const noexcept { return !failed_; }
  const brgemm::error& error() const noexcept { return error_; }
#if defined(__cpp_exceptions)
  void value_or_throw() const {
    if (failed_) throw std::runtime_error(error_.message().data());
  }
#endif

 private:
  brgemm::error error_;
  bool failed_ = false;
};

}  // namespace brgemm::inline abi_0
