// The names of a struct's members, so that a table of cases can be held against them.
#pragma once

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace brgemm_test {

template <class... T>
void mention(const T&...) {}

/// "a, b" to {"a", "b"}.
inline std::vector<std::string> split_names(std::string_view list) {
  std::vector<std::string> names(1);
  for (const char c : list) {
    if (c == ',') names.emplace_back();
    if (c != ',' && c != ' ') names.back() += c;
  }
  return names;
}

/// The members of `value` by these names: one more or less does not compile.
#define NAMES_OF(value, ...)                       \
  [](const auto& all) {                            \
    const auto& [__VA_ARGS__] = all;               \
    brgemm_test::mention(__VA_ARGS__);             \
    return brgemm_test::split_names(#__VA_ARGS__); \
  }(value)

/// Each name is in exactly one of the two sets, and they hold no other.
inline void expect_a_case_for_each(const std::vector<std::string>& names, const std::set<std::string>& with_cases,
                                   const std::set<std::string>& always_right = {}) {
  for (const auto& name : names) {
    EXPECT_EQ(with_cases.count(name) + always_right.count(name), 1u) << name << " has no case, or is always right";
  }
  EXPECT_EQ(names.size(), with_cases.size() + always_right.size()) << "cases for something else";
}

}  // namespace brgemm_test
