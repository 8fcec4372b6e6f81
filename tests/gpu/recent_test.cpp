// The last values are kept; a dropped one lives as long as it is held.
#include "recent.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace brgemm::cuda {
namespace {

TEST(GpuRecent, KeepsWhatWasAskedForLast) {
  recent<int> values(2);
  int made = 0;
  const auto value_of = [&](const char* key) {
    return *values.find_or_make(key, [&] { return result<recent<int>::shared>(std::make_shared<int>(++made)); });
  };
  const auto a = value_of("a");
  const std::weak_ptr<const int> b = value_of("b");
  EXPECT_EQ(value_of("a"), a);  // now b is the oldest
  EXPECT_EQ(*value_of("c"), 3);
  EXPECT_TRUE(b.expired());
  EXPECT_EQ(value_of("a"), a);
  value_of("d"), value_of("e");
  EXPECT_EQ(*value_of("a"), 6);
  EXPECT_EQ(*a, 1);
}

TEST(GpuRecent, KeepsNoFailure) {
  recent<int> values(2);
  const auto failed =
      values.find_or_make("a", [] { return result<recent<int>::shared>(error(errc::device, "device", "no")); });
  EXPECT_FALSE(failed);
  EXPECT_TRUE(values.find_or_make("a", [] { return result<recent<int>::shared>(std::make_shared<int>(1)); }));
}

/// A value that at its end asks for another, as a lock that is held would not allow.
struct asking {
  recent<asking>* values;
  explicit asking(recent<asking>* v) : values(v) {}
  ~asking() {
    if (values == nullptr) return;
    EXPECT_TRUE(ask(*values, "z", nullptr));
  }
  static result<recent<asking>::shared> ask(recent<asking>& values, const char* key, recent<asking>* at_end) {
    return values.find_or_make(key, [&] { return result<recent<asking>::shared>(std::make_shared<asking>(at_end)); });
  }
};

TEST(GpuRecent, ValuesEndOutsideTheLocks) {
  recent<asking> values(1);
  EXPECT_TRUE(asking::ask(values, "x", &values));
  EXPECT_TRUE(asking::ask(values, "y", nullptr));  // drops x, which asks for z
}

TEST(GpuRecent, ThreadsShareIt) {
  recent<int> few(8), all(20);
  std::atomic<int> made = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        const auto make = [&] {
          ++made;
          return result<recent<int>::shared>(std::make_shared<int>(i % 20));
        };
        for (recent<int>* values : {&few, &all})
          EXPECT_EQ(**values->find_or_make(std::to_string(i % 20), make), i % 20);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_GT(made, 40);  // few are dropped and made again
  made = 0;
  threads.clear();
  recent<int> one(1);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      const auto make = [&] {
        ++made;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        return result<recent<int>::shared>(std::make_shared<int>(7));
      };
      EXPECT_EQ(**one.find_or_make("a", make), 7);
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(made, 1);
}

}  // namespace
}  // namespace brgemm::cuda
