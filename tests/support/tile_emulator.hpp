// The tile instructions of AMX in software, so that generated code with them can be tested where the CPU has none: they
// raise SIGILL there, and the handler executes them on tiles of the thread's own. Encodings and faults are those of
// Intel's manual (volume 2, AMX-TILE, AMX-BF16, AMX-INT8); bf16 products round as docs/numerics.md says of order::tile.
#pragma once

#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace brgemm_test {

namespace tiles {

/// What ldtilecfg reads: 64 bytes, as the CPU defines them.
struct configuration {
  std::uint8_t palette = 0;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(configuration) == 64);

inline constexpr int count = 8;
inline constexpr int most_rows = 16;
inline constexpr int most_bytes = 64;

struct tile {
  std::uint8_t bytes[most_rows][most_bytes] = {};
  template <class T>
  T at(int row, int column) const {
    T x;
    std::memcpy(&x, bytes[row] + column * static_cast<int>(sizeof(T)), sizeof(T));
    return x;
  }
  template <class T>
  void set(int row, int column, T x) {
    std::memcpy(bytes[row] + column * static_cast<int>(sizeof(T)), &x, sizeof(T));
  }
};

/// A thread's tiles; palette 0: not configured.
struct state {
  configuration now;
  tile tiles[count];
};
inline thread_local state own;
inline std::atomic<std::uint64_t> executed{0};
inline std::atomic<std::uint64_t> loads_of_configuration{0};

// ---- what the instructions do; false where the CPU would raise a fault ---------------------------

inline bool is_valid(const configuration& c) {
  if (c.palette != 1 || c.start_row != 0) return false;  // a start_row is only for what a fault interrupted
  for (const std::uint8_t b : c.reserved) {
    if (b != 0) return false;
  }
  for (int t = 0; t < 16; ++t) {
    if (c.row_bytes[t] > most_bytes || c.rows[t] > most_rows || (c.row_bytes[t] == 0) != (c.rows[t] == 0)) return false;
    if (t >= count && c.rows[t] != 0) return false;
  }
  return true;
}

inline bool load_configuration(const void* from) {
  configuration c;
  std::memcpy(&c, from, sizeof c);
  if (c.palette != 0 && !is_valid(c)) return false;
  own = {};
  if (c.palette != 0) own.now = c;
  return true;
}

inline bool is_configured(int t) { return own.now.palette == 1 && t < count && own.now.rows[t] != 0; }

inline bool load(int t, const std::uint8_t* from, std::int64_t stride) {
  if (!is_configured(t)) return false;
  tile read;  // rows and bytes beyond the configured ones become zero
  for (int row = 0; row < own.now.rows[t]; ++row)
    std::memcpy(read.bytes[row], from + row * stride, own.now.row_bytes[t]);
  own.tiles[t] = read;
  return true;
}

inline bool store(int t, std::uint8_t* to, std::int64_t stride) {
  if (!is_configured(t)) return false;
  for (int row = 0; row < own.now.rows[t]; ++row) {
    std::memcpy(to + row * stride, own.tiles[t].bytes[row], own.now.row_bytes[t]);
  }
  return true;
}

inline bool clear(int t) {
  if (!is_configured(t)) return false;
  own.tiles[t] = {};
  return true;
}

/// C (m, n words) += A (m, k words) * B (k, n words): the sizes must agree, and the tiles differ.
inline bool may_multiply(int c, int a, int b) {
  const configuration& now = own.now;
  return is_configured(c) && is_configured(a) && is_configured(b) && c != a && c != b && a != b &&
         now.rows[c] == now.rows[a] && now.row_bytes[c] == now.row_bytes[b] && now.row_bytes[a] == now.rows[b] * 4 &&
         now.row_bytes[c] % 4 == 0;
}

inline float f32_of(std::uint16_t bf16) {
  const std::uint32_t bits = static_cast<std::uint32_t>(bf16) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

/// Rows of sums, with subnormals flushed by MXCSR. All 16 columns: nobody sees what is beyond the configured ones.
[[gnu::always_inline]] inline void add_bf16_products(tile& sums, const tile& a, const tile& b, int rows, int depth) {
  float b_values[most_rows][2][most_rows];  // [k][even or odd][n]
  for (int k = 0; k < depth; ++k) {
    for (int n = 0; n < most_rows; ++n) {
      for (int half = 0; half < 2; ++half) b_values[k][half][n] = f32_of(b.at<std::uint16_t>(k, 2 * n + half));
    }
  }
  for (int m = 0; m < rows; ++m) {
    float chain[2][most_rows] = {};  // of the even and of the odd elements
    for (int k = 0; k < depth; ++k) {
      for (int half = 0; half < 2; ++half) {
        const float x = f32_of(a.at<std::uint16_t>(m, 2 * k + half));
        for (int n = 0; n < most_rows; ++n) chain[half][n] = std::fma(x, b_values[k][half][n], chain[half][n]);
      }
    }
    for (int n = 0; n < most_rows; ++n) sums.set(m, n, sums.at<float>(m, n) + (chain[0][n] + chain[1][n]));
  }
}
[[gnu::noinline]] inline void add_bf16_products_anywhere(tile& sums, const tile& a, const tile& b, int rows,
                                                         int depth) {
  add_bf16_products(sums, a, b, rows, depth);
}
[[gnu::noinline, gnu::target("avx2,fma")]] inline void add_bf16_products_with_fma(tile& sums, const tile& a,
                                                                                  const tile& b, int rows, int depth) {
  add_bf16_products(sums, a, b, rows, depth);
}

inline bool multiply_bf16(int c, int a, int b) {
  if (!may_multiply(c, a, b)) return false;
  static const bool has_fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  constexpr unsigned nearest_and_flushed = 0x9fc0;  // FTZ, DAZ, no exceptions
  const unsigned before = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(nearest_and_flushed);
  const auto add = has_fma ? add_bf16_products_with_fma : add_bf16_products_anywhere;
  add(own.tiles[c], own.tiles[a], own.tiles[b], own.now.rows[c], own.now.rows[b]);
  __builtin_ia32_ldmxcsr(before);
  return true;
}

template <class A, class B>
bool multiply_8bit(int c, int a, int b) {
  if (!may_multiply(c, a, b)) return false;
  tile& sums = own.tiles[c];
  for (int m = 0; m < own.now.rows[c]; ++m) {
    for (int n = 0; n < own.now.row_bytes[c] / 4; ++n) {
      auto sum = sums.at<std::uint32_t>(m, n);  // modulo 2^32
      for (int k = 0; k < own.now.rows[b]; ++k) {
        for (int q = 0; q < 4; ++q) {
          sum +=
              static_cast<std::uint32_t>(int{own.tiles[a].at<A>(m, 4 * k + q)} * int{own.tiles[b].at<B>(k, 4 * n + q)});
        }
      }
      sums.set(m, n, sum);
    }
  }
  return true;
}

// ---- decoding ------------------------------------------------------------------------------------

/// The general registers by their numbers in an instruction.
inline std::uint64_t general(const ucontext_t& context, int number) {
  static constexpr int places[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<std::uint64_t>(context.uc_mcontext.gregs[places[number]]);
}

/// An instruction with a VEX prefix of three bytes in map 0F38, 128 bits, W 0, as all of AMX are.
struct instruction {
  int prefix = 0;  // 0 none, 1 66, 2 F3, 3 F2
  int opcode = 0;
  bool in_memory = false;
  bool has_index_byte = false;
  int reg = 0;    // ModRM.reg
  int rm = 0;     // ModRM.rm, where it is a register
  int other = 0;  // VEX.vvvv, 0 where it is unused
  std::uint8_t* address = nullptr;
  std::int64_t stride = 0;  // the index times its scale, which is no part of the address
  int length = 0;
};

inline bool decode(const ucontext_t& context, instruction& x) {
  const auto* const at = reinterpret_cast<const std::uint8_t*>(context.uc_mcontext.gregs[REG_RIP]);
  if (at[0] != 0xc4 || (at[1] & 0x9f) != 0x82 || (at[2] & 0x84) != 0) return false;  // R: there are only eight tiles
  const int index_high = (at[1] & 0x40) != 0 ? 0 : 8;
  const int base_high = (at[1] & 0x20) != 0 ? 0 : 8;
  x.prefix = at[2] & 3;
  x.other = (at[2] >> 3 & 15) ^ 15;
  x.opcode = at[3];
  const int mod = at[4] >> 6;
  x.reg = at[4] >> 3 & 7;
  x.rm = at[4] & 7;
  x.length = 5;
  x.in_memory = mod != 3;
  if (!x.in_memory) return base_high == 0;  // the bit of the index counts for nothing
  x.has_index_byte = x.rm == 4;
  int base = x.rm + base_high;
  bool has_base = !(mod == 0 && x.rm == 5);  // else relative to the next instruction, as LIBXSMM's configurations are
  const bool is_relative = !has_base;
  std::int64_t displacement = 0;
  if (x.has_index_byte) {
    const std::uint8_t sib = at[x.length++];
    base = (sib & 7) + base_high;
    has_base = !(mod == 0 && (sib & 7) == 5);
    const int index = (sib >> 3 & 7) + index_high;
    if (index != 4) x.stride = static_cast<std::int64_t>(general(context, index) << (sib >> 6));
  }
  if (mod == 1) {
    displacement = static_cast<std::int8_t>(at[x.length++]);
  } else if (mod == 2 || !has_base) {
    std::int32_t four = 0;
    std::memcpy(&four, at + x.length, 4);
    displacement = four;
    x.length += 4;
  }
  const std::uint64_t next = reinterpret_cast<std::uintptr_t>(at) + static_cast<std::uint64_t>(x.length);
  const std::uint64_t start = has_base ? general(context, base) : is_relative ? next : 0;
  x.address = reinterpret_cast<std::uint8_t*>(start + static_cast<std::uint64_t>(displacement));
  return true;
}

/// Executes x; false where it is none of AMX, or the CPU would raise a fault.
inline bool execute(const instruction& x) {
  enum { none, h66, f3, f2 };
  const bool is_product = x.opcode == 0x5c || x.opcode == 0x5e;
  if (!is_product && x.other != 0) return false;
  if (x.opcode == 0x49 && x.in_memory && x.reg == 0) {
    if (x.prefix == none) return ++loads_of_configuration, load_configuration(x.address + x.stride);
    if (x.prefix == h66) return std::memcpy(x.address + x.stride, &own.now, sizeof own.now), true;
  }
  if (x.opcode == 0x49 && !x.in_memory) {
    if (x.prefix == none && x.reg == 0 && x.rm == 0) return own = {}, true;  // tilerelease
    if (x.prefix == f2 && x.rm == 0) return clear(x.reg);
  }
  if (x.opcode == 0x4b && x.in_memory && x.has_index_byte) {
    if (x.prefix == f2 || x.prefix == h66) return load(x.reg, x.address, x.stride);
    if (x.prefix == f3) return store(x.reg, x.address, x.stride);
  }
  if (x.in_memory) return false;
  if (x.opcode == 0x5c && x.prefix == f3) return multiply_bf16(x.reg, x.rm, x.other);
  if (x.opcode != 0x5e) return false;
  switch (x.prefix) {
    case none: return multiply_8bit<std::uint8_t, std::uint8_t>(x.reg, x.rm, x.other);
    case h66: return multiply_8bit<std::uint8_t, std::int8_t>(x.reg, x.rm, x.other);
    case f3: return multiply_8bit<std::int8_t, std::uint8_t>(x.reg, x.rm, x.other);
    default: return multiply_8bit<std::int8_t, std::int8_t>(x.reg, x.rm, x.other);
  }
}

/// What it cannot execute is left to SIGILL's default action: the program ends at the instruction.
inline void on_illegal_instruction(int, siginfo_t*, void* context_of_signal) {
  auto& context = *static_cast<ucontext_t*>(context_of_signal);
  instruction x;
  if (!decode(context, x) || !execute(x)) {
    ::signal(SIGILL, SIG_DFL);
    return;
  }
  context.uc_mcontext.gregs[REG_RIP] += x.length;
  executed.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace tiles

/// From now on tile instructions are executed in software, in every thread. For CPUs without AMX: where they do not
/// raise SIGILL nothing is emulated.
inline void emulate_tiles() {
  struct sigaction action = {};
  action.sa_sigaction = tiles::on_illegal_instruction;
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  ::sigaction(SIGILL, &action, nullptr);
}

/// Tile instructions that were emulated so far.
inline std::uint64_t emulated_tile_instructions() { return tiles::executed.load(); }

}  // namespace brgemm_test
