// The values that were asked for last.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "brgemm/core/result.hpp"

namespace brgemm::inline abi_0::cuda {

/// Thread-safe. What is dropped lives on in the hands that hold it, and ends outside the lock.
template <class T>
class recent {
 public:
  using shared = std::shared_ptr<const T>;
  explicit recent(std::size_t most) : most_(most) {}

  /// What is there, or what `make` gives, which is kept. Threads that ask for one new value make it once, and those
  /// that ask for others seldom wait for each other. Errors: those of `make`.
  template <class Make>
  result<shared> find_or_make(const std::string& key, Make&& make) {
    if (auto found = find(key)) return found;
    shared dropped;  // ends behind the locks
    const std::lock_guard guard(making_[std::hash<std::string>()(key) % std::size(making_)]);
    if (auto found = find(key)) return found;
    result<shared> made = make();
    return made ? keep(key, std::move(*made), dropped) : made;
  }

 private:
  using entry = std::pair<std::string, shared>;

  /// Null where it is not there.
  shared find(const std::string& key) {
    const std::lock_guard guard(lock_);
    const auto found = places_.find(key);
    if (found == places_.end()) return {};
    newest_first_.splice(newest_first_.begin(), newest_first_, found->second);
    return found->second->second;
  }
  shared keep(const std::string& key, shared made, shared& dropped) {
    std::list<entry> fresh;  // what can fail comes first
    fresh.emplace_front(key, std::move(made));
    const std::lock_guard guard(lock_);
    places_[key] = fresh.begin();
    newest_first_.splice(newest_first_.begin(), fresh);
    if (newest_first_.size() > most_) {
      dropped = std::move(newest_first_.back().second);
      places_.erase(newest_first_.back().first);
      newest_first_.pop_back();
    }
    return newest_first_.front().second;
  }

  std::size_t most_;
  std::mutex making_[16];
  std::mutex lock_;
  std::list<entry> newest_first_;
  std::unordered_map<std::string, typename std::list<entry>::iterator> places_;
};

}  // namespace brgemm::inline abi_0::cuda
