// What the generating backends have in common: which descs they take, making a kernel, and the paragraph that explains
// it.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <memory>
#include <new>

#include "jit_generator.hpp"

namespace brgemm::inline abi_0::backend {

/// Bytes of stack that a generated kernel without tiles uses at most, return addresses included.
inline constexpr std::size_t max_stack_bytes = 400;

static_assert(jit_generator::stack_bytes() <= max_stack_bytes);

namespace detail {

/// What the generators cannot do, with the reason and the way out. Registers are never too few, but for one block of
/// all rows: choose_blocking finds a block for every other desc (a test walks them all).
inline result<void> supported(const desc& d, const vector_unit& unit) noexcept {
  const type a = d.a;
  if (d.where != place::cpu)
    return error(errc::unsupported, "where", "generated code runs on the CPU, not at place %d",
                 static_cast<int>(d.where));
  if (a == type::s32 || a == type::tf32 || brgemm::detail::is_8bit_float(a)) {
    return error(errc::unsupported, "a", "a is %s, of which no code for the CPU is generated: name the reference",
                 name_of(a).data());
  }
  if (k_group_of(d) > 1 && d.layout_a == layout::transposed) {
    return error(
        errc::unsupported, "layout_a",
        "A of %s stored (k,m) cannot be read in groups of %d k: use pack_a and layout::plain, or layout::interleaved",
        name_of(a).data(), static_cast<int>(k_group_of(d)));
  }
  if (row_ranges(d) != 0 && shifts_a(d, choose_product(d, unit))) {
    return error(errc::unsupported, "rows",
                 "s8 x s8 is corrected by sums of B's columns, which are the same for all rows");
  }
  if ((d.line != 0 || d.k_step != 1) && lda_needs_register(d)) {
    return error(errc::unsupported, d.line != 0 ? "line_step" : "k_step",
                 "32 rows of C and 32 steps read A over 2^31 bytes or more: line_step is %ld, k_step %u, lda %ld",
                 d.line_step, d.k_step, d.lda);
  }
  if (has_all_rows(d) && choose_blocking(d, unit).accumulators() == 0) {
    return error(errc::unsupported, row_ranges(d) != 0 ? "rows" : "line", "%s need registers for all of m = %ld rows",
                 row_ranges(d) != 0 ? "entries of some rows only" : "several lines of A", d.m);
  }
  return {};
}

inline result<void> too_long(const desc& d) noexcept {
  return error(errc::unsupported, "epilogue_size",
               "the code of m=%lld n=%lld with %d steps would be too long: use fewer steps, or name the reference",
               static_cast<long long>(d.m), static_cast<long long>(d.n), static_cast<int>(d.epilogue_size));
}

/// Bytes of the code in `buffer`, 0 if they do not fit.
template <class Generator, class Blocking>
result<std::size_t> write_code(const desc& d, std::span<std::uint8_t> buffer, const vector_unit& unit,
                               const Blocking& b) noexcept {
  std::size_t bytes = 0;
#if defined(__cpp_exceptions)
  try {
#endif
    assembler_names::ClearError();  // the user may use the same Xbyak
    Generator generator(buffer, d, unit, b);
    bytes = generator.generate();
#if defined(__cpp_exceptions)
  } catch (const std::bad_alloc&) {
    return error(errc::out_of_memory, "", "no memory for the assembler");
  } catch (const assembler_names::Error& e) {
    if (static_cast<int>(e) == assembler_names::ERR_CODE_IS_TOO_BIG) return std::size_t{0};
    return error(errc::unsupported, "", "the assembler refused: %s", e.what());
  }
#endif
  if (assembler_names::GetError() != 0) bytes = 0;
  assembler_names::ClearError();
  return bytes;
}

/// A kernel in `buffer`, and how it is divided: into smaller blocks until the code fits.
inline result<program> generate_divided(const desc& d, std::span<std::uint8_t> buffer, const vector_unit& unit,
                                        blocking& b) noexcept {
  if (result<void> yes = supported(d, unit); !yes) return yes.error();
  for (const int limit : {30, 4, 1}) {
    b = choose_blocking(d, unit, limit);
    if (b.accumulators() == 0) break;
    const result<std::size_t> bytes = write_code<jit_generator>(d, buffer, unit, b);
    if (!bytes) return bytes.error();
    if (*bytes != 0) return program{.code_bytes = *bytes, .sums = machine_order(d)};
  }
  return too_long(d).error();
}

inline result<program> generate(const desc& d, std::span<std::uint8_t> buffer, const vector_unit& unit) noexcept {
  blocking b;
  return generate_divided(d, buffer, unit, b);
}

inline const char* instruction_of(product how) noexcept {
  switch (how) {
    case product::fma_f32: return "vfmadd231ps";
    case product::fma_f64: return "vfmadd231pd";
    case product::dot_bf16: return "vdpbf16ps";
    case product::split_bf16: return "two vfmadd231ps on the halves of each pair";
    case product::dot_8bit: return "vpdpbusd";
    case product::madd_8bit: return "two vpmaddwd on even and odd bytes";
    case product::mul_8bit: return "vpmulld and vpaddd";
  }
  return "?";
}

/// How generate() divides, as far as there is memory to see what fits.
inline blocking blocking_of(const desc& d, const vector_unit& unit) noexcept {
  blocking b = choose_blocking(d, unit);
  const std::unique_ptr<std::uint8_t[]> buffer(new (std::nothrow) std::uint8_t[max_code_bytes]);
  if (buffer != nullptr) (void)generate_divided(d, {buffer.get(), max_code_bytes}, unit, b);
  return b;
}

/// Appends to a text of bounded size.
class paragraph {
 public:
  paragraph(char* text, std::size_t size) : text_(text), size_(size) {}
  [[gnu::format(printf, 2, 3)]] void add(const char* format, ...) {
    if (length_ >= size_) return;
    std::va_list arguments;
    va_start(arguments, format);
    const int written = std::vsnprintf(text_ + length_, size_ - length_, format, arguments);
    va_end(arguments);
    if (written > 0) length_ = std::min(size_ - 1, length_ + static_cast<std::size_t>(written));
  }
  std::size_t length() const { return length_; }

 private:
  char* text_;
  std::size_t size_;
  std::size_t length_ = 0;
};

inline std::size_t explain(const desc& d, char* text, std::size_t size, const vector_unit& unit) noexcept {
  const blocking b = blocking_of(d, unit);
  const section& rows = b.rows[0];
  const section& columns = b.columns[0];
  paragraph p(text, size);
  p.add("Products by %s on vectors of %d bits, %d columns of C each. ", instruction_of(b.how), unit.bytes() * 8,
        b.lanes);
  p.add("C is divided into blocks of %d rows (%lld times", rows.size, static_cast<long long>(rows.count));
  if (b.rows[1].count != 0) p.add(", then %lld of %d", static_cast<long long>(b.rows[1].count), b.rows[1].size);
  const index vectors = (d.n - 1) / b.lanes + 1;
  p.add(") x %d vectors (%lld a row of C), %d chain%s of sums. ", columns.size, static_cast<long long>(vectors),
        b.chains, b.chains == 1 ? "" : "s");
  if (b.few != 0) p.add("Fewer than %lld rows are divided for their own sake. ", static_cast<long long>(b.few) + 1);
  if (b.pack > 1) p.add("The last %d columns of %d rows share a vector. ", b.tail, b.pack);
  if (is_depthwise(d.layout_a)) {
    const int together = depthwise_window(d, unit, b, rows.size, columns.size);
    if (d.line != 0) p.add("Rows of C read lines of %u rows of A. ", d.line);
    if (together > 1) {
      p.add("%d steps go together, for which vectors of B stay in registers and each vector of A passes by once. ",
            together);
    } else {
      p.add("In a step vectors of B stay in registers, vectors of A pass by%s. ",
            b.embed ? " as operands in memory" : "");
    }
  } else if (b.pack == 1 || !columns.masked) {
    p.add("In a step of %d k %s stay in registers, %s pass by%s; %d steps in the loop's body. ",
          static_cast<int>(k_group_of(d)), b.hold_a ? "broadcasts of A" : "vectors of B",
          b.hold_a ? "vectors of B" : "broadcasts of A", b.embed ? " as operands in memory" : "", b.unroll);
  }
  if (b.group != 0) p.add("C rests in memory between groups of %lld entries. ", static_cast<long long>(b.group));
  if (b.prefetch) p.add("B is prefetched if it exceeds L1. ");
  if (prefetches(d)) p.add("With one of %d steps what lies beyond B is prefetched. ", int{d.prefetch});
  if (prefetches_rows_of_a(d)) p.add("A is prefetched %d steps ahead. ", prefetched_steps);
  if (prefetches_rows_of_b(d)) p.add("Far rows of B are prefetched %d steps ahead. ", prefetched_steps);
  if (prefetches_c(d)) p.add("C is prefetched before its sums. ");
  if (row_ranges(d) != 0) p.add("Entries add to %d ranges of rows in turn. ", row_ranges(d));
  if (b.tile) p.add("Even and odd elements of each %d k are summed apart. ", 2 * steps_of_chunk);
  if (d.write_c == write_kind::streaming) p.add("Whole vectors of C are written past the caches. ");
  const step_cost cost = cost_of_step(d, unit, b, rows.size, columns, reads_by_four(d, unit, b, rows.size, columns));
  const char* const of_all = row_ranges(d) != 0 ? " if it had all rows" : "";
  p.add("A step of the first block needs %.1f cycles for products, %.1f for loads, %.1f for latency%s. ", cost.products,
        cost.loads / cost.loads_a_cycle, cost.latency, of_all);
  p.add("One call with a batch of 16, operands in L1: bound %.0f cycles, predicted %.0f cycles%s. ", 16 * b.bound,
        16 * b.cycles + b.block_cycles, of_all);
  p.add("At most %zu bytes of stack.", max_stack_bytes);
  return p.length();
}

}  // namespace detail
}  // namespace brgemm::inline abi_0::backend
