// The emulated tiles, by instructions that the compiler encodes: sizes, strides, rounding, faults. Where the CPU has
// AMX the same checks run on its own tiles.
#include "support/tile_emulator.hpp"

#include <gtest/gtest.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <random>
#include <thread>
#include <vector>

#include "brgemm/core/cpu.hpp"

#define BRGEMM_TEST_TILES [[gnu::target("amx-tile,amx-bf16,amx-int8"), gnu::noinline]]

namespace brgemm_test {
namespace {

using tiles::configuration;

/// GCC 12 takes ldtilecfg to read 8 bytes, and leaves out stores to the rest.
[[gnu::always_inline]] inline void everything_is_read() { __asm__ volatile("" ::: "memory"); }

bool has_tiles() {
  const auto features = brgemm::detail::detect_cpu();
  return features.has(brgemm::feature::amx_bf16) && features.has(brgemm::feature::amx_int8);
}

class TileEmulator : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (has_tiles()) {
      constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
      ASSERT_EQ(0, ::syscall(SYS_arch_prctl, request_permission, tile_data));
    } else {
      emulate_tiles();
    }
  }
  static void TearDownTestSuite() {
    std::printf("[tiles] %s, %llu instructions emulated\n", has_tiles() ? "the CPU's own" : "emulated",
                static_cast<unsigned long long>(emulated_tile_instructions()));
  }
};

/// C (m,n) in tile 0, A (m,k) in tile 1, B (k,n) in tile 2; all in words of 4 bytes.
configuration product_of(int m, int n, int k) {
  configuration c;
  c.palette = 1;
  c.rows[0] = c.rows[1] = static_cast<std::uint8_t>(m);
  c.rows[2] = static_cast<std::uint8_t>(k);
  c.row_bytes[0] = c.row_bytes[2] = static_cast<std::uint16_t>(4 * n);
  c.row_bytes[1] = static_cast<std::uint16_t>(4 * k);
  return c;
}

float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

enum class product { bf16, ssd, sud, usd, uud };

struct matrices {
  std::vector<std::uint8_t> a, b, c;
};

BRGEMM_TEST_TILES void multiply(const configuration& sizes, product p, matrices& x) {
  everything_is_read();
  _tile_loadconfig(&sizes);
  _tile_loadd(0, x.c.data(), 80);
  _tile_loadd(1, x.a.data(), 64);
  _tile_stream_loadd(2, x.b.data(), 72);
  switch (p) {
    case product::bf16: _tile_dpbf16ps(0, 1, 2); break;
    case product::ssd: _tile_dpbssd(0, 1, 2); break;
    case product::sud: _tile_dpbsud(0, 1, 2); break;
    case product::usd: _tile_dpbusd(0, 1, 2); break;
    case product::uud: _tile_dpbuud(0, 1, 2); break;
  }
  _tile_stored(0, x.c.data(), 80);
  _tile_release();
}

matrices draw(std::mt19937& random, bool bf16) {
  matrices x{std::vector<std::uint8_t>(16 * 64), std::vector<std::uint8_t>(16 * 72),
             std::vector<std::uint8_t>(16 * 80)};
  for (auto* v : {&x.a, &x.b, &x.c}) {
    for (auto& byte : *v) byte = static_cast<std::uint8_t>(random());
  }
  if (!bf16) return x;
  const auto tame = [&](std::vector<std::uint8_t>& v,
                        std::size_t size) {  // exponents near 0, a few zeros and subnormals
    for (std::size_t i = size - 1; i < v.size(); i += size) {
      v[i] = static_cast<std::uint8_t>((v[i] & 0x80) | (random() % 16 == 0 ? 0 : 0x3c + random() % 8));
    }
  };
  tame(x.a, 2), tame(x.b, 2), tame(x.c, 4);
  return x;
}

template <class T>
T element(const std::vector<std::uint8_t>& v, std::size_t byte) {
  T t;
  std::memcpy(&t, v.data() + byte, sizeof t);
  return t;
}

/// What multiply() leaves in C, by the definition.
template <class A, class B>
std::vector<std::uint8_t> expected_8bit(const matrices& x, int m, int n, int k) {
  std::vector<std::uint8_t> c = x.c;
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      const auto at = static_cast<std::size_t>(i * 80 + j * 4);
      std::int64_t sum = element<std::int32_t>(x.c, at);
      for (int t = 0; t < 4 * k; ++t) {
        sum += std::int64_t{element<A>(x.a, static_cast<std::size_t>(i * 64 + t))} *
               element<B>(x.b, static_cast<std::size_t>(t / 4 * 72 + j * 4 + t % 4));
      }
      const auto low = static_cast<std::uint32_t>(sum);
      std::memcpy(c.data() + at, &low, 4);
    }
  }
  return c;
}

TEST_F(TileEmulator, SumsOfBytesAreExactModulo32Bits) {
  std::mt19937 random(1);
  for (const auto& [m, n, k] : {std::array{16, 16, 16}, {1, 1, 1}, {3, 7, 5}, {16, 1, 9}, {2, 16, 16}}) {
    for (const product p : {product::ssd, product::sud, product::usd, product::uud}) {
      matrices x = draw(random, false);
      const auto expected = p == product::ssd   ? expected_8bit<std::int8_t, std::int8_t>(x, m, n, k)
                            : p == product::sud ? expected_8bit<std::int8_t, std::uint8_t>(x, m, n, k)
                            : p == product::usd ? expected_8bit<std::uint8_t, std::int8_t>(x, m, n, k)
                                                : expected_8bit<std::uint8_t, std::uint8_t>(x, m, n, k);
      multiply(product_of(m, n, k), p, x);
      ASSERT_EQ(x.c, expected) << m << " " << n << " " << k;
    }
  }
}

TEST_F(TileEmulator, PairsOfBf16AreTwoChains) {
  std::mt19937 random(2);
  const auto value = [](const std::vector<std::uint8_t>& v, std::size_t byte) {
    return flush(tiles::f32_of(element<std::uint16_t>(v, byte)));
  };
  for (int repeat = 0; repeat < 20; ++repeat) {
    const int m = 1 + repeat % 16, n = 16 - repeat % 16, k = 1 + repeat * 7 % 16;
    matrices x = draw(random, true);
    const matrices before = x;
    multiply(product_of(m, n, k), product::bf16, x);
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < n; ++j) {
        float even = 0, odd = 0;
        for (int t = 0; t < k; ++t) {
          const auto a = static_cast<std::size_t>(i * 64 + t * 4);
          const auto b = static_cast<std::size_t>(t * 72 + j * 4);
          even = flush(std::fma(value(before.a, a), value(before.b, b), even));
          odd = flush(std::fma(value(before.a, a + 2), value(before.b, b + 2), odd));
        }
        const auto at = static_cast<std::size_t>(i * 80 + j * 4);
        const float sum = flush(flush(element<float>(before.c, at)) + flush(even + odd));
        ASSERT_EQ(element<float>(x.c, at), sum) << i << " " << j << " of " << m << " " << n << " " << k;
      }
    }
  }
}

BRGEMM_TEST_TILES void zero_and_store(const configuration& sizes, std::uint8_t* c, configuration* seen) {
  everything_is_read();
  _tile_loadconfig(&sizes);
  _tile_storeconfig(seen);
  _tile_zero(0);
  _tile_stored(0, c, 64);
  _tile_release();
  _tile_storeconfig(seen + 1);
}

TEST_F(TileEmulator, OnlyConfiguredRowsAndBytesAreWritten) {
  std::vector<std::uint8_t> c(16 * 64, 7);
  const configuration sizes = product_of(5, 3, 1);
  configuration seen[2];
  zero_and_store(sizes, c.data(), seen);
  EXPECT_EQ(0, std::memcmp(&seen[0], &sizes, sizeof sizes));
  const configuration none;
  EXPECT_EQ(0, std::memcmp(&seen[1], &none, sizeof none));
  for (std::size_t i = 0; i < c.size(); ++i) EXPECT_EQ(c[i], i / 64 < 5 && i % 64 < 12 ? 0 : 7) << i;
}

BRGEMM_TEST_TILES void configure(const configuration& sizes) {
  everything_is_read();
  _tile_loadconfig(&sizes);
}
BRGEMM_TEST_TILES void store_tile_of_thread(std::uint8_t* c) { _tile_stored(0, c, 64); }

TEST_F(TileEmulator, EachThreadHasItsOwnTiles) {
  configure(product_of(2, 2, 2));
  std::thread other([] {
    std::vector<std::uint8_t> c(16 * 64, 9);
    configure(product_of(1, 1, 1));
    store_tile_of_thread(c.data());
    EXPECT_EQ(c[3], 0);
    EXPECT_EQ(c[4], 9);
  });
  other.join();
  std::vector<std::uint8_t> c(16 * 64, 9);
  store_tile_of_thread(c.data());
  EXPECT_EQ(c[64 + 7], 0);
  EXPECT_EQ(c[8], 9);
}

TEST_F(TileEmulator, WhatTheCpuRefusesEndsTheProgram) {
  configuration wrong = product_of(2, 2, 2);
  wrong.rows[1] = 3;
  std::mt19937 random(3);
  matrices x = draw(random, true);
  EXPECT_DEATH(multiply(wrong, product::bf16, x), "");
  configuration palette;
  palette.palette = 2;
  EXPECT_DEATH(configure(palette), "");
  EXPECT_DEATH(store_tile_of_thread((configure(configuration()), x.c.data())), "");
}

}  // namespace
}  // namespace brgemm_test
