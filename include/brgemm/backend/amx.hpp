// The backend `amx`: kernels on AMX tiles, for bf16 and 8-bit types. What tiles leave to vectors is AVX-512.
#pragma once

#include "avx512.hpp"
#include "executable_memory.hpp"
#include "jit_tiles.hpp"

namespace brgemm::inline abi_0::backend {
namespace detail {

/// The system's answer to the request for the state of tiles: 0 not asked yet, 1 granted, else the error, negative.
inline constinit std::atomic<int> tiles_granted{0};

inline const char* reason_of_refusal(int error_number) noexcept {
  switch (error_number) {
    case ENOSPC: return "ENOSPC (a thread's alternate stack for signals is too small for it)";
    case EOPNOTSUPP: return "EOPNOTSUPP (not by this kernel)";
    default: return code_memory::reason(error_number);
  }
}

/// Asks once a process, and only when a kernel needs tiles, because their state enlarges the frames of signals by some
/// 8 KiB. A child has what its parent has. A lack of space can pass, so then it asks again.
inline result<void> request_tiles() noexcept {
  int answer = tiles_granted.load(std::memory_order_relaxed);
  if (answer == 0) {
    answer = current_system_calls.request_tiles() == 0 ? 1 : -errno;
    if (answer != -ENOSPC) tiles_granted.store(answer, std::memory_order_relaxed);
  }
  if (answer == 1) return {};
  return error(errc::unsupported, "backend", "the system does not grant the state of AMX tiles: %s",
               reason_of_refusal(-answer));
}

/// What vectors refuse is refused in their words.
inline result<void> supported_by_tiles(const desc& d) noexcept {
  if (result<void> yes = supported(d, avx512_unit()); !yes) return yes;
  if (d.layout_a == layout::transposed || d.layout_a == layout::interleaved) {
    return error(errc::unsupported, "layout_a", "tiles take rows of A, not columns: use pack_a and layout::plain");
  }
  if (row_ranges(d) != 0) return error(errc::unsupported, "rows", "tiles sum all rows of every entry");
  if (is_depthwise(d.layout_a)) {
    return error(errc::unsupported, "layout_a", "tiles multiply matrices: a depthwise product is for other backends");
  }
  const bool bytes = brgemm::detail::is_8bit(d.a);
  if (!bytes && d.a != type::bf16) {
    return error(errc::unsupported, "a", "tiles take bf16, u8 and s8, not %s", name_of(d.a).data());
  }
  if (!cpu().has(bytes ? feature::amx_int8 : feature::amx_bf16)) {
    return error(errc::unsupported, "a", "tiles for %s are not in this CPU, or hidden by BRGEMM_CPU",
                 name_of(d.a).data());
  }
  if (d.layout_b == layout::transposed) {
    return error(errc::unsupported, "layout_b",
                 "B of %s stored (n,k) is not turned for tiles: use pack_b and layout::interleaved",
                 name_of(d.b).data());
  }
  if (!bytes && machine_order(d) != order::tile) {
    return error(errc::unsupported, "sums", "tiles sum bf16 in order::tile and in one chain");
  }
  return request_tiles();
}

inline result<program> generate_tiles(const desc& d, std::span<std::uint8_t> buffer) noexcept {
  if (result<void> yes = supported_by_tiles(d); !yes) return yes.error();
  tile_blocking t = choose_tile_blocking(d);
  for (const int rows : {8, 4, 1}) {
    t.most_rows_of_part = rows;
    const result<std::size_t> bytes = write_code<jit_tiles>(d, buffer, avx512_unit(), t);
    if (!bytes) return bytes.error();
    if (*bytes != 0) {
      return program{.code_bytes = *bytes, .sums = machine_order(d), .tiles = configuration_of(d, t)};
    }
  }
  return too_long(d).error();
}

inline const char* tile_instruction_of(const desc& d) noexcept {
  if (d.a == type::bf16) return "tdpbf16ps";
  if (d.a == type::u8) return d.b == type::u8 ? "tdpbuud" : "tdpbusd";
  return d.b == type::u8 ? "tdpbsud" : "tdpbssd";
}

/// Which part of a call with a batch of 16 takes longest, where each hides behind the longest one.
inline const char* what_binds(const tile_blocking& t, double loads) noexcept {
  const struct {
    const char* name;
    double cycles;
  } parts[] = {{"the products bind", 16 * t.bound},
               {"loads bind", 16 * loads},
               {"stores bind", t.stores},
               {"the configuration binds", t.block_cycles - t.stores}};
  const auto* const most =
      std::max_element(std::begin(parts), std::end(parts), [](auto& x, auto& y) { return x.cycles < y.cycles; });
  return most->name;
}

inline std::size_t explain_tiles(const desc& d, char* text, std::size_t size) noexcept {
  const tile_blocking t = choose_tile_blocking(d);
  paragraph p(text, size);
  const auto list = [&p](const strip(&strips)[2]) {
    for (const strip& s : strips) {
      if (s.count == 0) continue;
      p.add("%s%lld of %d", &s == strips ? "" : ", then ", static_cast<long long>(s.count), s.total());
    }
  };
  p.add("Products by %s on tiles of 16 rows of 64 bytes. C is divided into blocks of rows (", tile_instruction_of(d));
  if (d.m_extent == extent_kind::at_call) {
    p.add(d.m >= tile_rows ? "16 each, then what is left" : "all");
  } else {
    list(t.rows);
  }
  p.add(") and of columns (");
  list(t.columns);
  p.add("): %d tile configuration%s. ", t.areas(), t.areas() == 1 ? "" : "s");
  p.add("An entry has %lld chunk%s of %d k", static_cast<long long>(t.chunks), t.chunks == 1 ? "" : "s",
        static_cast<int>(tile_bytes / size_of(d.a)));
  if (t.depth[1].k != 0) p.add(" and one of %d", t.depth[1].k);
  p.add(". %s ", t.direct ? "Tiles are stored to C." : "Tiles are stored to the stack; vectors finish C from there.");
  const double from_l2 = std::max(t.loads, t.bytes / l2_bytes_a_cycle);
  p.add("An entry needs %.0f cycles for products, %.0f for loads from L1, %.0f from L2; ", t.bound, t.loads, from_l2);
  p.add("a call %.0f for stores and %.0f for configurations. ", t.stores, t.block_cycles - t.stores);
  p.add("With a batch of 16 in L1 %s, in L2 %s. ", what_binds(t, t.loads), what_binds(t, from_l2));
  p.add(
      "One call with a batch of 16, operands in L1: bound %.0f cycles, predicted %.0f cycles, %.0f of them once a "
      "call. ",
      16 * t.bound, 16 * t.cycles + t.block_cycles, t.block_cycles);
  p.add("At most %zu bytes of stack.", max_stack_bytes + jit_tiles::layout_of_stack(d, t).bytes + 64);
  return p.length();
}

}  // namespace detail

/// Of bf16 in order::tile, and u8 and s8, with A in rows and B plain or interleaved (pack_b), on CPUs with AVX-512 and
/// AMX where the system grants the state of tiles.
inline constexpr entry amx{
    "amx",
    []() noexcept {
      return cpu().has(feature::avx512) && (cpu().has(feature::amx_bf16) || cpu().has(feature::amx_int8));
    },
    [](const desc& d) noexcept { return detail::supported_by_tiles(d); },
    [](const desc& d, std::span<std::uint8_t> buffer) noexcept { return detail::generate_tiles(d, buffer); },
    [](const desc& d, char* text, std::size_t size) noexcept { return detail::explain_tiles(d, text, size); },
};

}  // namespace brgemm::inline abi_0::backend
