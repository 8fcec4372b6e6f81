// The cache of kernels: bounded, shared by all threads; a repeated request and a handle's copies take no lock.
//
// How a record is pinned. Every record has counters of pins taken and pins given back, one pair a thread: a thread adds
// to its own pair, so nothing is locked and no cache line travels; a pin may be given back by another thread, because
// only the sums matter. To evict, under the lock: `live` is cleared, a barrier is run on every core (membarrier), so
// that a thread either sees `live` cleared or its pin is seen; then all `released` are added up, then all `acquired`.
// If the sums agree, no pin existed from before the first sum to after the second, and none can come. Records are never
// freed, only used again, so that a stale pointer to one is harmless: its pin fails, or the desc does not match.
#pragma once

#include <dlfcn.h>

#include <atomic>
#include <mutex>
#include <optional>
#include <utility>

#include "../backend/backend.hpp"
#include "../backend/executable_memory.hpp"
#include "../backend/jit_registry.hpp"
#include "../backend/list.hpp"
#include "name.hpp"

namespace brgemm::inline abi_0 {

/// What the cache holds and has done. `bytes` counts all memory of the cache: code pages, contexts of kernels, what
/// debuggers are told of them, records (those of evicted kernels too, which wait to be used again), buffers that code
/// is generated in (256 KiB a thread that generates; at most four stay), and the table of buckets. Addresses that are
/// reserved for code and have no memory behind them yet (less than 256 KiB) are not counted.
struct code_cache_statistics {
  std::size_t kernels = 0;
  std::size_t bytes = 0;
  std::size_t limit = 0;
  std::uint64_t hits = 0;       ///< requests that were answered from the cache
  std::uint64_t misses = 0;     ///< requests for which a kernel was generated, or that failed
  std::uint64_t evictions = 0;  ///< kernels that left, cleared ones included
};

namespace detail {

inline constexpr unsigned shard_count = 16;
inline constexpr unsigned shared_shard = shard_count - 1;  // of all threads that found no number of their own
inline constexpr unsigned no_shard = shard_count;

/// A thread's counters for one record. They only grow. But for the shared shard, one thread writes them.
struct alignas(64) shard {
  std::atomic<std::uint64_t> acquired{0};
  std::atomic<std::uint64_t> released{0};
  std::atomic<std::uint64_t> hits{0};
  std::atomic<std::uint64_t> last_used{0};  // the cache's clock
};

/// What a kernel is looked up by.
struct cache_key {
  const desc* description;
  std::uint64_t circumstances;  // lower half: bits of cpu(), of which tests hide some; upper: the backend named, or 0

  cache_key(const desc& d, std::uint32_t backend) noexcept
      : description(&d),
        circumstances((std::uint64_t{backend} << 32) | visible_features().load(std::memory_order_relaxed)) {}
  std::uint32_t backend() const noexcept { return static_cast<std::uint32_t>(circumstances >> 32); }
};

enum class record_state : std::uint8_t { free, pending, ready };

struct code_cache;

/// One kernel. `live`, `hash` and `next` are read without a pin; what follows only with one, or under the lock. What a
/// request reads is together: the first line, and the fields of the desc before its epilogue behind that.
struct record {
  alignas(64) std::atomic<bool> live{false};
  std::atomic<std::uint64_t> hash{0};
  std::atomic<record*> next{nullptr};  // in its bucket
  std::uint64_t circumstances = 0;
  entry_point entry = nullptr;
  const void* context = nullptr;      // that of `program`
  const code_cache* owner = nullptr;  // for ever
  const backend::entry* maker = nullptr;
  desc description;
  backend::program program;
  backend::code_pages pages;

  record_state state = record_state::free;  // from here on under the lock
  bool generating = false;                  // counts in cache.generating
  void* buffer = nullptr;                   // that its code is being generated in
  record* older = nullptr;                  // in the list of pending or of ready records; `older` also in the free list
  record* newer = nullptr;
  std::size_t bytes = 0;
  std::uint64_t seen = 0;         // clock when it was put at the new end of the list
  std::uint64_t hits_before = 0;  // sum of the shards' hits when it was published

  shard shards[shard_count];
};

struct record_list {
  record* newest = nullptr;
  record* oldest = nullptr;

  void push(record* r) noexcept {
    r->older = newest;
    r->newer = nullptr;
    (newest != nullptr ? newest->newer : oldest) = r;
    newest = r;
  }
  void remove(record* r) noexcept {
    (r->newer != nullptr ? r->newer->older : newest) = r->older;
    (r->older != nullptr ? r->older->newer : oldest) = r->newer;
  }
};

inline constexpr int bucket_shift = 52;
inline constexpr std::size_t bucket_count = std::size_t{1} << (64 - bucket_shift);
inline constexpr std::size_t record_bytes = sizeof(record) + alignof(record);  // as allocated
inline constexpr std::size_t default_code_cache_limit = std::size_t{64} << 20;
inline constexpr int scratch_count = 4;

/// Constant-initialised and trivially destructible: it exists before and after every object with static storage.
struct code_cache {
  alignas(64) std::atomic<std::uint64_t> clock{0};  // read at every hit, written when a kernel is published
  std::atomic<bool> started{false};
  std::atomic<bool> asymmetric{false};  // membarrier works: a pin needs no locked instruction
  alignas(64) std::atomic<record*> buckets[bucket_count] = {};
  alignas(64) backend::brief_mutex lock;
  record_list ready;
  record_list pending;
  record* free = nullptr;
  std::size_t kernels = 0;
  std::size_t bytes = 0;            // code pages, contexts, registrations
  std::size_t records = 0;          // allocated, for ever
  std::size_t scratch_buffers = 0;  // allocated
  std::size_t generating = 0;       // kernels being generated; not those that wait for room
  std::size_t limit = default_code_cache_limit;
  std::uint64_t hits = 0;  // of kernels that left
  std::uint64_t misses = 0;
  std::uint64_t evictions = 0;
  std::atomic<std::uint32_t> finished{0};  // generations that ended; waited on
  void* scratch[scratch_count] = {};       // buffers that nobody generates in
};
inline constinit code_cache cache;

// Numbers of threads -------------------------------------------------------------------------------------------------

inline constinit std::atomic<std::uint32_t> shards_taken{1u << shared_shard};
inline constinit thread_local unsigned own_shard = no_shard;

/// Gives the number back when its thread ends; what the thread does after that counts in the shared shard.
struct shard_owner {
  ~shard_owner() {
    if (own_shard < shared_shard) shards_taken.fetch_and(~(1u << own_shard), std::memory_order_release);
    own_shard = shared_shard;
  }
};

[[gnu::noinline, gnu::cold]] inline unsigned take_shard() noexcept {
  static thread_local shard_owner owner;
  std::uint32_t taken = shards_taken.load(std::memory_order_relaxed);
  own_shard = shared_shard;
  while (~taken & ((1u << shard_count) - 1)) {
    const auto number = static_cast<unsigned>(std::countr_one(taken));
    if (shards_taken.compare_exchange_weak(taken, taken | (1u << number), std::memory_order_acquire)) {
      own_shard = number;
      break;
    }
  }
  static_cast<void>(&owner);
  return own_shard;
}

inline unsigned this_shard() noexcept {
  const unsigned number = own_shard;
  return number != no_shard ? number : take_shard();
}

// Pins ---------------------------------------------------------------------------------------------------------------

inline void count(std::atomic<std::uint64_t>& counter, unsigned number, std::memory_order order) noexcept {
  if (number != shared_shard) {
    counter.store(counter.load(std::memory_order_relaxed) + 1, order);
  } else {
    counter.fetch_add(1, order);
  }
}

/// The number to count under. Shared objects that were built to share nothing (hidden visibility, clang with
/// RTLD_LOCAL) number threads each in their own way: in another's record, only the shard that all may write is safe.
inline unsigned shard_for(const record* r) noexcept { return r->owner == &cache ? this_shard() : shared_shard; }

/// Adds a pin where there is one already.
inline void pin_again(record* r) noexcept {
  const unsigned number = shard_for(r);
  count(r->shards[number].acquired, number, std::memory_order_relaxed);
}

/// What was done with the kernel happens before its eviction.
inline void unpin(record* r, unsigned number) noexcept {
  count(r->shards[number].released, number, std::memory_order_release);
}
inline void unpin(record* r) noexcept { unpin(r, shard_for(r)); }

/// A pin, if the record is live; of this cache's own records, so that `number` is this_shard(). Without membarrier the
/// counter and `live` are sequentially consistent.
inline bool pin(record* r, unsigned number) noexcept {
  shard& s = r->shards[number];
  if (cache.asymmetric.load(std::memory_order_relaxed)) {
    count(s.acquired, number, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  } else {
    s.acquired.fetch_add(1, std::memory_order_seq_cst);
  }
  if (r->live.load(std::memory_order_seq_cst)) return true;
  unpin(r, number);
  return false;
}

/// Sixteen bytes, in a register that every x86-64 has: a call of memcmp costs a third of a whole request.
using sixteen_bytes [[gnu::vector_size(16), gnu::may_alias, gnu::aligned(8)]] = long long;

/// Whether `bytes` bytes are the same, or, without y, zero.
template <std::size_t bytes, class... Y>
[[gnu::always_inline]] inline bool same_bytes(const void* x, const Y*... y) noexcept {
  static_assert(bytes % sizeof(sixteen_bytes) == 0);
  sixteen_bytes differences = {};
#pragma GCC unroll 16  // which -O2 would not do
  for (std::size_t i = 0; i < bytes / sizeof(sixteen_bytes); ++i) {
    differences |= (static_cast<const sixteen_bytes*>(x)[i] ^ ... ^ reinterpret_cast<const sixteen_bytes*>(y)[i]);
  }
  return (differences[0] | differences[1]) == 0;
}

/// A record's unused epilogue entries are zero, as validate has seen; so of a desc without epilogue they need only be
/// zero too, and the record's are not read.
inline bool matches(const record& r, cache_key key) noexcept {
  constexpr std::size_t head = offsetof(desc, epilogue);
  const desc& wanted = *key.description;
  if (r.circumstances != key.circumstances || !same_bytes<head>(&r.description, &wanted)) return false;
  if (wanted.epilogue_size == 0) return same_bytes<sizeof wanted.epilogue>(wanted.epilogue);
  return same_bytes<sizeof wanted.epilogue>(wanted.epilogue, r.description.epilogue);
}

inline void count_hit(record* r, unsigned number) noexcept {
  shard& s = r->shards[number];
  count(s.hits, number, std::memory_order_relaxed);
  const std::uint64_t now = cache.clock.load(std::memory_order_relaxed) | 1;
  if (s.last_used.load(std::memory_order_relaxed) != now) s.last_used.store(now, std::memory_order_relaxed);
}

// Lookup -------------------------------------------------------------------------------------------------------------

/// Of the part of a desc that is in use (the comparison is of all of it). A sum of products of two words each, which
/// the CPU forms side by side; after the last product the upper bits, which choose the bucket, depend on all of it.
[[gnu::always_inline]] inline std::uint64_t bucket_hash(cache_key key) noexcept {
  constexpr std::size_t head = offsetof(desc, epilogue) / 8;
  constexpr std::size_t step = sizeof(epilogue_op) / 8;
  static_assert(head == 14 && step == 3);
  constexpr std::uint64_t odd[head] = {0x1e3779b9, 0x42b2ae3d, 0x365667b1, 0x56e8feb9, 0x2a0761d7,
                                       0x67037ed1, 0x0ebc6af1, 0x589965cd, 0x1d8e4e27, 0x6b44accb,
                                       0x4cf5ad43, 0x2745937f, 0x7c9e6865, 0x331e0ab7};
  constexpr std::uint64_t last = 0x9e3779b97f4a7c15u;
  const auto word = [bytes = reinterpret_cast<const unsigned char*>(key.description)](std::size_t i) {
    std::uint64_t w = 0;
    std::memcpy(&w, bytes + 8 * i, 8);
    return w;
  };
  std::uint64_t h = key.circumstances;
#pragma GCC unroll 8
  for (std::size_t i = 0; i < head; i += 2) h += (word(i) + odd[i]) * (word(i + 1) + odd[i + 1]);
  const std::size_t words = head + std::min<std::size_t>(key.description->epilogue_size, max_epilogue) * step;
  for (std::size_t i = head; i < words; i += step) {
    h = (std::rotl(h, 29) ^ word(i)) * last + (word(i + 1) + odd[0]) * (word(i + 2) + odd[1]);
  }
  return h * last;
}

inline std::atomic<record*>& bucket_of(std::uint64_t hash) noexcept { return cache.buckets[hash >> bucket_shift]; }

/// Pins a record that may have been evicted, or made another, since it was seen; if it is still the one.
inline bool pin_if(record* r, cache_key key, std::uint64_t hash, unsigned number) noexcept {
  if (r->hash.load(std::memory_order_relaxed) != hash || !pin(r, number)) return false;
  if (matches(*r, key)) return true;
  unpin(r, number);
  return false;
}

/// A pinned record, or nullptr: then it may still be there, and the lock tells. A chain can change under the walk, and
/// lead it astray for ever, so the walk is bounded.
inline record* find_pinned(cache_key key, std::uint64_t hash) noexcept {
  record* r = bucket_of(hash).load(std::memory_order_acquire);
  for (int steps = 0; r != nullptr && steps < 64; ++steps) {
    if (pin_if(r, key, hash, this_shard())) return r;
    r = r->next.load(std::memory_order_acquire);
  }
  return nullptr;
}

inline record* find_locked(cache_key key, std::uint64_t hash) noexcept {
  record* r = bucket_of(hash).load(std::memory_order_relaxed);
  while (r != nullptr && !(r->hash.load(std::memory_order_relaxed) == hash && matches(*r, key))) {
    r = r->next.load(std::memory_order_relaxed);
  }
  return r;
}

inline void unlink_locked(record* r) noexcept {
  std::atomic<record*>* link = &bucket_of(r->hash.load(std::memory_order_relaxed));
  while (link->load(std::memory_order_relaxed) != r) link = &link->load(std::memory_order_relaxed)->next;
  link->store(r->next.load(std::memory_order_relaxed), std::memory_order_release);
}

// Eviction -----------------------------------------------------------------------------------------------------------

/// Pins that were not given back. Zero is certain only while no pin can be added; the order of the two loops matters.
inline std::uint64_t pins_of(const record& r) noexcept {
  std::uint64_t released = 0;
  std::uint64_t acquired = 0;
  for (const shard& s : r.shards) released += s.released.load(std::memory_order_seq_cst);
  for (const shard& s : r.shards) acquired += s.acquired.load(std::memory_order_seq_cst);
  return acquired - released;
}

inline std::uint64_t last_use_of(const record& r) noexcept {
  std::uint64_t latest = 0;
  for (const shard& s : r.shards) latest = std::max(latest, s.last_used.load(std::memory_order_relaxed));
  return latest;
}

inline std::uint64_t hits_of(const record& r) noexcept {
  std::uint64_t sum = 0;
  for (const shard& s : r.shards) sum += s.hits.load(std::memory_order_relaxed);
  return sum - r.hits_before;
}

/// Forgets the program, but for its pages, which the caller gives back.
inline backend::code_pages release_program(record* r) noexcept {
  backend::jit_registry::remove(r->pages.address);
  if (r->program.release != nullptr) r->program.release(r->program.context);
  r->program = {};
  return std::exchange(r->pages, {});
}

/// Everything that the cache has allocated, and itself.
inline std::size_t total_locked() noexcept {
  return sizeof(code_cache) + cache.bytes + cache.records * record_bytes +
         cache.scratch_buffers * backend::max_code_bytes;
}

/// Puts a record that is in no list and holds no program on the free list.
inline void recycle_locked(record* r) noexcept {
  unlink_locked(r);
  cache.bytes -= r->bytes;
  r->bytes = 0;
  r->generating = false;
  r->state = record_state::free;
  r->older = cache.free;
  cache.free = r;
}

/// Gives pages back, those that adjoin together: kernels made one after the other lie so, and one call to the system
/// serves them all.
class leaving_pages {
 public:
  explicit leaving_pages(bool reusable) noexcept : reusable_(reusable) {}
  leaving_pages(const leaving_pages&) = delete;
  leaving_pages& operator=(const leaving_pages&) = delete;
  ~leaving_pages() { backend::release_code(joined_, reusable_); }
  void add(backend::code_pages p) noexcept {
    const bool behind = p.address == joined_.address + joined_.bytes;
    if (behind || p.address + p.bytes == joined_.address) {
      joined_ = {behind ? joined_.address : p.address, joined_.bytes + p.bytes};
    } else if (p.address != nullptr) {
      backend::release_code(std::exchange(joined_, p), reusable_);
    }
  }

 private:
  backend::code_pages joined_;
  bool reusable_;
};

/// Evicts those of the records, which are not live and in no list but this, that nobody has pinned; the others are
/// ready again. One barrier for all.
inline void evict_locked(record_list leaving) noexcept {
  if (leaving.oldest == nullptr) return;
  const bool serialised = backend::code_memory::serialise_cores();
  const bool all_seen = serialised || !cache.asymmetric.load(std::memory_order_relaxed);
  leaving_pages pages(serialised);
  while (record* r = leaving.oldest) {
    leaving.remove(r);
    if (!all_seen || pins_of(*r) != 0) {
      r->live.store(true, std::memory_order_release);
      cache.ready.push(r);
      continue;
    }
    cache.hits += hits_of(*r);
    --cache.kernels;
    ++cache.evictions;
    pages.add(release_program(r));
    recycle_locked(r);
  }
}

/// Takes a ready record out, to be evicted, unless somebody holds it.
inline bool begin_eviction_locked(record* r, record_list& leaving) noexcept {
  if (pins_of(*r) != 0) return false;
  r->live.store(false, std::memory_order_seq_cst);
  cache.ready.remove(r);
  leaving.push(r);
  return true;
}

/// Evicts until `enough()`, oldest first. A kernel that was used since it was put into the list, or is held, goes
/// to the new end instead (second chance), so "least recently used" is exact up to the time between two generations.
/// In a large cache several leave at a time, for one barrier and few calls to the system; so many that others need not
/// sleep until the lock is free.
template <class Enough>
void evict_until_locked(Enough enough) noexcept {
  std::size_t steps = 2 * cache.kernels;
  while (!enough() && steps > 0) {
    record_list leaving;
    std::size_t more = std::clamp<std::size_t>(cache.limit >> 22, 1, 16);
    for (; more > 0 && steps > 0 && cache.ready.oldest != nullptr; --steps) {
      record* r = cache.ready.oldest;
      const std::uint64_t used = last_use_of(*r);
      if (used > r->seen || !begin_eviction_locked(r, leaving)) {
        r->seen = std::max(used, r->seen);
        cache.ready.remove(r);
        cache.ready.push(r);
      }
      if (leaving.oldest != nullptr) --more;
    }
    if (leaving.oldest == nullptr) return;
    evict_locked(leaving);
  }
}

/// Makes `more` bytes fit, by eviction, and where that is not enough without the buffers that nobody uses now.
inline bool make_room_locked(std::size_t more) noexcept {
  const auto fits = [more] { return more <= cache.limit && total_locked() <= cache.limit - more; };
  evict_until_locked(fits);
  for (void*& slot : cache.scratch) {
    if (slot == nullptr || fits()) continue;
    backend::current_system_calls.free(std::exchange(slot, nullptr));
    --cache.scratch_buffers;
  }
  return fits();
}

// Fork: nobody is inside the cache while the process is copied. In the child, what other threads were generating is
// forgotten, because they do not exist there; kernels that they held stay held.

/// In handlers of the program's own that run while the locks are held, on the thread that forks.
inline constinit thread_local bool forking = false;

inline void before_fork() noexcept {
  forking = true;
  backend::entries::added.lock.lock();
  cache.lock.lock();
  backend::code_memory::before_fork();
  backend::jit_registry::before_fork();
}

inline void after_fork_in_parent() noexcept {
  backend::jit_registry::after_fork(false);
  backend::code_memory::after_fork(false);
  cache.lock.unlock();
  backend::entries::added.lock.unlock();
  forking = false;
}

inline void after_fork_in_child() noexcept {
  backend::jit_registry::after_fork(true);
  backend::code_memory::after_fork(true);
  while (record* r = cache.pending.oldest) {
    cache.pending.remove(r);
    r->pages = {};  // whether they are there still, only the thread knew that stayed behind
    r->program = {};
    if (r->buffer != nullptr) --cache.scratch_buffers;
    backend::current_system_calls.free(std::exchange(r->buffer, nullptr));
    recycle_locked(r);
  }
  cache.generating = 0;
  const std::uint32_t own = own_shard < shared_shard ? 1u << own_shard : 0u;
  shards_taken.store(own | (1u << shared_shard), std::memory_order_relaxed);
  cache.lock.unlock();
  backend::entries::added.lock.unlock();
  forking = false;
}

/// Keeps the shared object that holds this code loaded for ever: kernels, the cache, and handlers of fork and thread
/// exit have addresses in it. Hidden, so that every shared object has its own; in an executable it does nothing.
[[gnu::visibility("hidden"), gnu::noinline, gnu::cold]] inline bool stay_loaded() noexcept {
  static const bool done = [] {
    static const char here = 0;
    Dl_info info;
    if (::dladdr(&here, &info) != 0 && info.dli_fname != nullptr) {
      static_cast<void>(::dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE));
    }
    return true;
  }();
  return done;
}

/// Once a process, under the lock.
inline bool start_locked() noexcept {
  if (cache.started.load(std::memory_order_relaxed)) return true;
  if (backend::current_system_calls.at_fork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) return false;
  cache.asymmetric.store(backend::code_memory::serialise_cores(), std::memory_order_relaxed);
  cache.started.store(true, std::memory_order_release);
  return true;
}

// Generation ---------------------------------------------------------------------------------------------------------

// Where the limit is taken up by what others need while they generate, a request waits for one of them to end. Who
// generates never waits and the last one is never among those that wait, so somebody always goes on. What a request
// that waits has of the limit is its record.

/// Generations that this thread is in: a backend may ask for kernels to make its own of. It does not wait for itself.
inline constinit thread_local int generations_here = 0;

inline void begin_generating_locked(record* r) noexcept {
  r->generating = true;
  ++cache.generating;
}

inline void end_generating_locked(record* r) noexcept {
  if (std::exchange(r->generating, false)) --cache.generating;
}

/// The end of a generation that is worth to wait for, if there is one.
using awaited = std::optional<std::uint32_t>;

/// What to wait for where there was no room, besides `own` generations.
inline awaited other_generation_locked(std::size_t own) noexcept {
  if (generations_here != 0 || cache.generating == own) return std::nullopt;
  return cache.finished.load(std::memory_order_acquire);
}

/// The buffer that a backend generates into. A few stay, because getting one from the system costs a page fault a page.
/// Who has it stands in `holder` from the moment that it leaves its slot, so that a fork's child can give it back.
class scratch_buffer {
 public:
  explicit scratch_buffer(void*& holder) noexcept : data_(holder) {}
  scratch_buffer(const scratch_buffer&) = delete;
  scratch_buffer& operator=(const scratch_buffer&) = delete;
  ~scratch_buffer() {
    void* spare = nullptr;
    {
      std::lock_guard guard(cache.lock);
      spare = give_back_locked();
    }
    if (spare != nullptr) backend::current_system_calls.free(spare);
  }
  explicit operator bool() const noexcept { return data_ != nullptr; }
  std::span<std::uint8_t> bytes() const noexcept {
    return {static_cast<std::uint8_t*>(data_), backend::max_code_bytes};
  }

  /// Whether the limit has room for it; there can be none nonetheless, where memory is out.
  bool take_locked() noexcept {
    for (void*& slot : cache.scratch) {
      if (data_ == nullptr) std::swap(data_, slot);
    }
    if (data_ != nullptr) return true;
    if (!make_room_locked(backend::max_code_bytes)) return false;
    data_ = backend::current_system_calls.allocate(backend::max_code_bytes);
    if (data_ != nullptr) ++cache.scratch_buffers;
    return true;
  }

  /// Puts it into a slot; where none is free, it is not the cache's any more.
  void* give_back_locked() noexcept {
    void* spare = std::exchange(data_, nullptr);
    for (void*& slot : cache.scratch) {
      if (slot == nullptr) std::swap(slot, spare);
    }
    if (spare != nullptr) --cache.scratch_buffers;
    return spare;
  }

 private:
  void*& data_;
};

/// A record that nothing refers to; nullptr where memory is out, or the bound. Records are never given back, so that at
/// most half of the bound may become records: beyond that, kernels leave and theirs are used again.
inline record* new_record_locked() noexcept {
  const auto may_grow = [] { return (cache.records + 1) * record_bytes <= cache.limit / 2; };
  if (cache.free == nullptr && !may_grow()) evict_until_locked([] { return cache.free != nullptr; });
  if (cache.free == nullptr && !make_room_locked(record_bytes)) return nullptr;
  if (record* r = cache.free; r != nullptr) {
    cache.free = r->older;
    return r;
  }
  constexpr std::size_t align = alignof(record);  // by hand, as the table of system calls has malloc
  void* block = backend::current_system_calls.allocate(record_bytes);
  if (block == nullptr) return nullptr;
  ++cache.records;
  const auto address = (reinterpret_cast<std::uintptr_t>(block) + align - 1) / align * align;
  auto* r = new (reinterpret_cast<void*>(address)) record;
  r->owner = &cache;
  return r;
}

/// A record that no list holds, with the key filled in; nullptr where memory is out.
inline record* take_record_locked(cache_key key, std::uint64_t hash) noexcept {
  record* r = new_record_locked();
  if (r == nullptr) return nullptr;
  r->description = *key.description;
  r->circumstances = key.circumstances;
  r->state = record_state::pending;
  r->hash.store(hash, std::memory_order_relaxed);
  std::atomic<record*>& bucket = bucket_of(hash);
  r->next.store(bucket.load(std::memory_order_relaxed), std::memory_order_relaxed);
  bucket.store(r, std::memory_order_release);
  cache.pending.push(r);
  return r;
}

inline error cache_full_error(std::size_t needed) noexcept {
  const std::size_t in_records = cache.records * record_bytes;
  const bool barrier_denied =
      cache.asymmetric.load(std::memory_order_relaxed) && !backend::code_memory::serialise_cores();
  return {errc::cache_full,
          "code_cache",
          "%zu bytes for a kernel do not fit in the limit of %zu: %zu are in use by %zu kernels that are held or being "
          "made%s, "
          "%zu by records, which stay, %zu by buffers and the table",
          needed,
          cache.limit,
          cache.bytes,
          cache.kernels,
          barrier_denied ? ", or that cannot leave because membarrier is denied" : "",
          in_records,
          total_locked() - cache.bytes - in_records};
}

/// Whether a record would exceed the limit, and not only memory be out.
inline bool no_room_for_record_locked() noexcept { return total_locked() + record_bytes > cache.limit; }

/// Why there is no record.
inline error no_record_error() noexcept {
  if (!cache.started.load(std::memory_order_acquire)) {
    return {errc::out_of_memory, "memory", "pthread_atfork has no memory to note what a fork needs"};
  }
  std::lock_guard guard(cache.lock);
  if (no_room_for_record_locked()) return cache_full_error(record_bytes);
  return {errc::out_of_memory, "memory", "no %zu bytes for a kernel's record", record_bytes};
}

/// Whether to wait, as `needed` bytes are not there; what this kernel has of the limit is given back then.
inline result<awaited> wait_or_refuse_locked(record* r, scratch_buffer& buffer, std::size_t needed) noexcept {
  const awaited other = other_generation_locked(1);
  if (!other) return cache_full_error(needed);
  if (void* spare = buffer.give_back_locked()) backend::current_system_calls.free(spare);
  end_generating_locked(r);
  return other;
}

/// Generates what `r` stands for, and copies it to executable memory within the bound. No lock is held while a backend
/// works; `r` is not seen by others until it is published. What is not done yet is to be tried again after a wait.
inline result<awaited> try_fill(record* r, const backend::entry& maker) noexcept {
  scratch_buffer buffer(r->buffer);
  {
    std::lock_guard guard(cache.lock);
    begin_generating_locked(r);
    if (!buffer.take_locked()) return wait_or_refuse_locked(r, buffer, backend::max_code_bytes);
  }
  if (!buffer) {
    return error(errc::out_of_memory, "memory", "no %zu bytes for a buffer to generate code in",
                 backend::max_code_bytes);
  }
  ++generations_here;
  const result<backend::program> made = maker.make(r->description, buffer.bytes());
  --generations_here;
  if (!made) return made.error();
  r->program = *made;
  r->maker = &maker;
  std::size_t needed = made->context_bytes;
  if (made->code_bytes != 0) {
    needed += backend::code_memory::whole_pages(made->code_bytes) + backend::jit_registry::bytes_for_each();
  }
  {
    std::lock_guard guard(cache.lock);
    if (!make_room_locked(needed)) return wait_or_refuse_locked(r, buffer, needed);
    r->bytes = needed;
    cache.bytes += needed;
  }
  r->entry = made->entry;
  r->context = made->context;
  if (made->code_bytes == 0) return awaited{};
  const result<backend::code_pages> pages = backend::install_code(buffer.bytes().first(made->code_bytes));
  if (!pages) return pages.error();
  r->pages = *pages;
  r->entry = reinterpret_cast<entry_point>(reinterpret_cast<std::uintptr_t>(pages->address));
  if (backend::jit_registry::wanted() == 0) return awaited{};
  const auto told = backend::jit_registry::add({pages->address, made->code_bytes}, name_of(r->description).c_str());
  return told ? result<awaited>(awaited{}) : told.error();
}

inline result<void> fill(record* r, const backend::entry& maker) noexcept {
  for (;;) {
    const result<awaited> other = try_fill(r, maker);
    if (!other) return other.error();
    if (!*other) return {};
    static_cast<void>(release_program(r));  // made, and without room
    cache.finished.wait(**other, std::memory_order_acquire);
  }
}

/// Makes a generated kernel visible, pinned once; or forgets one that failed. Wakes who waits for it.
inline void finish(record* r, bool made) noexcept {
  if (!made) backend::discard_code(release_program(r));
  {
    std::lock_guard guard(cache.lock);
    cache.pending.remove(r);
    end_generating_locked(r);
    if (made) {
      r->state = record_state::ready;
      r->seen = cache.clock.fetch_add(2, std::memory_order_relaxed) + 2;
      r->hits_before += hits_of(*r);
      ++cache.kernels;
      cache.ready.push(r);
      pin_again(r);
      r->live.store(true, std::memory_order_release);
    } else {
      recycle_locked(r);
    }
  }
  cache.finished.fetch_add(1, std::memory_order_release);
  cache.finished.notify_all();
}

/// What the lock says: a pinned record, or a pending one of this thread's own (`mine`), or nullptr for no memory.
/// Waits while another thread generates the same, or has what is left of the limit.
inline record* find_or_begin(cache_key key, std::uint64_t hash, bool& mine) noexcept {
  for (;;) {
    awaited other;
    {
      std::lock_guard guard(cache.lock);
      record* r = find_locked(key, hash);
      if (r != nullptr && r->state == record_state::ready) {
        pin_again(r);
        count_hit(r, this_shard());
        return r;
      }
      if (r != nullptr) {
        other = cache.finished.load(std::memory_order_acquire);
      } else {
        r = start_locked() ? take_record_locked(key, hash) : nullptr;
        if (r == nullptr && no_room_for_record_locked()) other = other_generation_locked(0);
      }
      if (!other) {
        ++cache.misses;
        mine = true;
        return r;
      }
    }
    cache.finished.wait(*other, std::memory_order_acquire);
  }
}

/// A pinned record for the key, generated by the backend that `choose()` names where it is not in the cache.
template <class Choose>
[[gnu::noinline]] result<record*> obtain(cache_key key, std::uint64_t hash, Choose&& choose) noexcept {
  stay_loaded();
  if (forking) {
    return error(errc::unsupported, "fork",
                 "a handler of pthread_atfork that was registered before the first kernel was made cannot make one");
  }
  bool mine = false;
  record* r = find_or_begin(key, hash, mine);
  if (r == nullptr) return no_record_error();
  if (!mine) return r;
  const result<const backend::entry*> maker = choose();
  const result<void> made = maker ? fill(r, **maker) : result<void>(maker.error());
  finish(r, made.has_value());
  if (!made) return made.error();
  return r;
}

}  // namespace detail

/// What the cache holds and has done, as of one moment. Thread-safe.
inline code_cache_statistics code_cache_stats() noexcept {
  std::lock_guard guard(detail::cache.lock);
  code_cache_statistics s{detail::cache.kernels, detail::total_locked(), detail::cache.limit,
                          detail::cache.hits,    detail::cache.misses,   detail::cache.evictions};
  for (const detail::record* r = detail::cache.ready.oldest; r != nullptr; r = r->newer) s.hits += detail::hits_of(*r);
  return s;
}

/// Bounds the cache to this many bytes (64 MiB at first), and evicts what does not fit and nobody holds. Generating
/// needs some 300 KiB besides the kernels themselves. What is held stays, and so do the records of all kernels that
/// ever were in the cache at a time (1.6 KiB each; `bytes` counts them): while that alone exceeds a lowered limit, a
/// request for a kernel that is not in the cache fails with errc::cache_full, which tells the shares. Where the limit
/// is taken up by other threads that generate, a request waits for one of them. Thread-safe; like what stands around it
/// here, not for handlers of pthread_atfork.
inline void set_code_cache_limit(std::size_t bytes) noexcept {
  std::lock_guard guard(detail::cache.lock);
  detail::cache.limit = bytes;
  detail::make_room_locked(0);
}

/// Evicts every kernel that nobody holds. Thread-safe.
inline void clear_code_cache() noexcept {
  std::lock_guard guard(detail::cache.lock);
  detail::record_list leaving;
  for (detail::record* r = detail::cache.ready.oldest; r != nullptr;) {
    detail::record* newer = r->newer;
    detail::begin_eviction_locked(r, leaving);
    r = newer;
  }
  detail::evict_locked(leaving);
}

}  // namespace brgemm::inline abi_0
