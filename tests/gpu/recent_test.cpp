// The last values are kept; a dropped one lives as long as it is held.
#include "recent.hpp"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace brgemm::cuda {
namespace {

TEST(GpuRecent, KeepsWhatWasAskedForLast) {
  recent<int> values(2);
  EXPECT_EQ(values.find("a"), nullptr);
  const auto a = values.keep("a", std::make_shared<int>(1));
  const std::weak_ptr<const int> b = values.keep("b", std::make_shared<int>(2));
  EXPECT_EQ(values.keep("a", std::make_shared<int>(3)), a);
  EXPECT_EQ(values.find("a"), a);  // now b is the oldest
  values.keep("c", std::make_shared<int>(4));
  EXPECT_EQ(values.find("b"), nullptr);
  EXPECT_TRUE(b.expired());
  EXPECT_EQ(values.find("a"), a);
  values.keep("d", std::make_shared<int>(5));
  values.keep("e", std::make_shared<int>(6));
  EXPECT_EQ(values.find("a"), nullptr);
  EXPECT_EQ(*a, 1);
}

/// A value that asks for another one at its end, as a lock that is held would not allow.
struct asking {
  recent<asking>* values;
  explicit asking(recent<asking>* v) : values(v) {}
  ~asking() {
    if (values != nullptr) values->find("x");
  }
};

TEST(GpuRecent, ValuesEndOutsideTheLock) {
  recent<asking> values(1);
  for (const char* key : {"x", "y"}) values.keep(key, std::make_shared<asking>(&values));
  values.keep("z", std::make_shared<asking>(nullptr));  // the last one ends with the list itself
}

TEST(GpuRecent, ThreadsShareIt) {
  recent<int> values(8);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&values] {
      for (int i = 0; i < 2000; ++i) {
        const std::string key = std::to_string(i % 20);
        auto found = values.find(key);
        if (found == nullptr) found = values.keep(key, std::make_shared<int>(i % 20));
        EXPECT_EQ(*found, i % 20);
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

}  // namespace
}  // namespace brgemm::cuda
