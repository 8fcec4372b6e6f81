// Loads two shared objects with hidden visibility, each with a cache of its own, that share the list for GDB: both make
// kernels at the same time and the list is whole. Run with BRGEMM_JIT_PROFILE=gdb.
#include <dlfcn.h>

#include <cstdio>
#include <thread>

#include "gdb_list.hpp"

namespace {

struct plugin {
  bool (*make)(int);
  const list* entries;
  int made = 0;

  explicit plugin(const char* path) {
    void* const handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    make = reinterpret_cast<bool (*)(int)>(dlsym(handle, "make"));
    entries = static_cast<const list*>(reinterpret_cast<const void* (*)()>(dlsym(handle, "descriptor"))());
  }
  void make_many() {
    for (int m = 1; m <= 2000; ++m) made += make(m) ? 1 : 0;
  }
};

}  // namespace

int main(int, char** paths) {
  plugin one(paths[1]);
  plugin two(paths[2]);
  if (one.entries != two.entries) return std::printf("each has a list of its own\n"), 1;
  std::thread other([&] { two.make_many(); });
  one.make_many();
  other.join();
  int listed = 0;
  for (const entry* e = one.entries->first; e != nullptr; e = e->next, ++listed) {
    if (e->next != nullptr && e->next->previous != e) return std::printf("entry %d: wrong link\n", listed), 1;
  }
  std::printf("made %d and %d, listed %d\n", one.made, two.made, listed);
  return one.made == 2000 && two.made == 2000 && listed == 4000 ? 0 : 1;
}
