// What an error must tell.
#pragma once

#include <gtest/gtest.h>

#include <brgemm/core/result.hpp>
#include <string>
#include <vector>

namespace brgemm_test {

/// There is an error of this code and field, and its message has all the words, the numbers above all.
inline void expect_error(const auto& r, brgemm::errc code, const std::string& field,
                         const std::vector<std::string>& words) {
  ASSERT_FALSE(r) << "no error for " << field;
  EXPECT_EQ(r.error().code(), code) << r.error().message();
  EXPECT_EQ(r.error().field(), field) << r.error().message();
  EXPECT_FALSE(words.empty()) << "which numbers does the message have? " << r.error().message();
  for (const auto& word : words) {
    EXPECT_NE(r.error().message().find(word), std::string_view::npos) << word << " in: " << r.error().message();
  }
}

}  // namespace brgemm_test
