// The values that were asked for last.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

namespace brgemm::inline abi_0::cuda {

/// Thread-safe. What is dropped lives on in the hands that hold it, and ends outside the lock.
template <class T>
class recent {
 public:
  using shared = std::shared_ptr<const T>;
  explicit recent(std::size_t most) : most_(most) {}

  /// Null where it is not there.
  shared find(const std::string& key) {
    const std::lock_guard guard(lock_);
    const auto found = places_.find(key);
    if (found == places_.end()) return {};
    newest_first_.splice(newest_first_.begin(), newest_first_, found->second);
    return found->second->second;
  }
  /// The value that another thread brought first, where one did.
  shared keep(const std::string& key, shared made) {
    shared dropped;
    const std::lock_guard guard(lock_);
    if (const auto found = places_.find(key); found != places_.end()) return found->second->second;
    std::list<entry> fresh;  // what can fail comes first
    fresh.emplace_front(key, std::move(made));
    places_[key] = fresh.begin();
    newest_first_.splice(newest_first_.begin(), fresh);
    if (newest_first_.size() > most_) {
      dropped = std::move(newest_first_.back().second);
      places_.erase(newest_first_.back().first);
      newest_first_.pop_back();
    }
    return newest_first_.front().second;
  }

 private:
  using entry = std::pair<std::string, shared>;
  std::size_t most_;
  std::mutex lock_;
  std::list<entry> newest_first_;
  std::unordered_map<std::string, typename std::list<entry>::iterator> places_;
};

}  // namespace brgemm::inline abi_0::cuda
