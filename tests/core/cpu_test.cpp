// CPU features: what the compiler's own detection says, and what hiding takes away with them.
#include "brgemm/core/cpu.hpp"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace brgemm {
namespace {

cpu_features of(std::initializer_list<feature> list) {
  cpu_features f;
  for (const feature x : list) f.bits |= static_cast<std::uint32_t>(x);
  return f;
}

const cpu_features everything =
    of({feature::avx2, feature::f16c, feature::avx_vnni, feature::avx512, feature::avx512_vnni, feature::avx512_bf16,
        feature::avx512_fp16, feature::amx_tile, feature::amx_bf16, feature::amx_int8});

cpu_features without(std::initializer_list<feature> list) { return {everything.bits & ~of(list).bits, false}; }

TEST(Cpu, DetectionAgreesWithTheCompilers) {
  const cpu_features f = detail::detect_cpu();
  EXPECT_EQ(f.has(feature::avx2), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(f.has(feature::avx512), __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
  EXPECT_EQ(f.has(feature::avx512_vnni), f.has(feature::avx512) && __builtin_cpu_supports("avx512vnni"));
  EXPECT_EQ(f.has(feature::avx512_bf16), f.has(feature::avx512) && __builtin_cpu_supports("avx512bf16"));
  EXPECT_EQ(f.intel, __builtin_cpu_is("intel") != 0);
}

TEST(Cpu, HidingByName) {
  EXPECT_EQ(detail::hide(everything, ""), everything);
  EXPECT_EQ(detail::hide(everything, "-bf16"), without({feature::avx512_bf16}));
  EXPECT_EQ(detail::hide(everything, "-vnni"), without({feature::avx512_vnni, feature::avx_vnni}));
  EXPECT_EQ(detail::hide(everything, "-f16c,-fp16"), without({feature::f16c, feature::avx512_fp16}));
  EXPECT_EQ(detail::hide(everything, "-amx_bf16"), without({feature::amx_bf16}));
  EXPECT_EQ(detail::hide(everything, "-amx_int8,-bf16"), without({feature::amx_int8, feature::avx512_bf16}));
}

TEST(Cpu, WhatNeedsAHiddenFeatureIsHiddenToo) {
  EXPECT_EQ(detail::hide(everything, "-avx512"),
            without({feature::avx512, feature::avx512_vnni, feature::avx512_bf16, feature::avx512_fp16}));
  EXPECT_EQ(detail::hide(everything, "-avx2"), of({feature::amx_tile, feature::amx_bf16, feature::amx_int8}));
  EXPECT_EQ(detail::hide(everything, "-amx"), without({feature::amx_tile, feature::amx_bf16, feature::amx_int8}));
}

TEST(Cpu, OtherWordsAreErrorsAndHideNothing) {
  const cpu_features before = cpu();
  for (const auto& [list, word] :
       {std::pair("bf16", "\"bf16\""), std::pair("-bf16, -vnni", "\" -vnni\""), std::pair("-BF16", "\"-BF16\""),
        std::pair("-avx512_bf16", "\"-avx512_bf16\""), std::pair("-", "\"-\""), std::pair("-vnni,+bf16", "\"+bf16\""),
        std::pair("--vnni", "\"--vnni\""), std::pair(" ", "\" \"")}) {
    const auto r = hide_cpu_features(list);
    ASSERT_FALSE(r) << list;
    EXPECT_EQ(r.error().code(), errc::invalid_argument);
    EXPECT_EQ(r.error().field(), "BRGEMM_CPU");
    EXPECT_NE(r.error().message().find(word), std::string_view::npos) << r.error().message();
    EXPECT_EQ(cpu(), before);
  }
  EXPECT_EQ(detail::hide(everything, ",,-bf16,"), without({feature::avx512_bf16}));
  EXPECT_TRUE(detail::check_hidden(",,-bf16,"));
}

TEST(Cpu, EveryNameIsKnownAndTold) {
  const auto wrong = detail::check_hidden(std::string(1000, 'x'));  // the longest message
  ASSERT_FALSE(wrong);
  for (const auto& [name, bit] : detail::feature_names) {
    const std::string word = "-" + std::string(name);
    EXPECT_TRUE(detail::check_hidden(word)) << word;
    EXPECT_NE(wrong.error().message().find(word), std::string_view::npos) << word;
    EXPECT_NE(detail::hide(everything, word), everything) << word;
  }
  EXPECT_TRUE(detail::check_hidden(""));
}

TEST(Cpu, TheHookHidesAndShows) {
  const cpu_features before = cpu();
  hide_cpu_features("-avx2");
  EXPECT_FALSE(cpu().has(feature::avx2));
  EXPECT_FALSE(cpu().has(feature::avx512));
  hide_cpu_features("");
  EXPECT_EQ(cpu(), detail::detect_cpu());
  EXPECT_EQ(cpu().bits | before.bits, cpu().bits);
}

}  // namespace
}  // namespace brgemm
