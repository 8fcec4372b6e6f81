// The backend `avx512`: kernels generated for AVX-512 (F, BW, DQ, VL), with VNNI and BF16 where the CPU has them.
#pragma once

#include "jit_backend.hpp"

namespace brgemm::inline abi_0::backend {
namespace detail {
inline vector_unit avx512_unit() noexcept { return {true, cpu()}; }
}  // namespace detail

inline constexpr entry avx512{
    "avx512",
    []() noexcept { return cpu().has(feature::avx512); },
    [](const desc& d) noexcept { return detail::supported(d, detail::avx512_unit()); },
    [](const desc& d, std::span<std::uint8_t> buffer) noexcept {
      return detail::generate(d, buffer, detail::avx512_unit());
    },
    [](const desc& d, char* text, std::size_t size) noexcept {
      return detail::explain(d, text, size, detail::avx512_unit());
    },
};

}  // namespace brgemm::inline abi_0::backend
