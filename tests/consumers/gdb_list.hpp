// The list of generated code as GDB sees it (its manual, JIT compilation interface).
#pragma once

#include <cstdint>

struct entry {
  entry* next;
  entry* previous;
  const void* object;
  std::uint64_t object_bytes;
};
struct list {
  std::uint32_t version;
  std::uint32_t action;
  entry* relevant;
  entry* first;
};
