// A product of plain matrices: C = A * B or C += A * B, in blocks, spread over threads. Two steps: plan once, then
// call.
#pragma once

#include <optional>

#include "buffers.hpp"
#include "row_product.hpp"

namespace brgemm::inline abi_0::loops {

/// C (m,n) = A (m,k) * B (k,n), or C += A * B. Sizes count elements.
struct gemm_desc {
  index m = 1;  ///< the most rows of A and C in one call
  index n = 1;
  index k = 1;    ///< >= 0
  index lda = 0;  ///< rows of A are so far apart; 0 stands for k
  index ldc = 0;  ///< rows of C; 0 stands for n
  type a = type::f32;
  type b = type::f32;
  type c = type::f32;
  bool accumulate = false;  ///< C += A * B: C begins each sum (desc.beta = one)
  /// f32 only: by products of bf16 pieces.
  math compute = math::f32;
  /// Of bf16: one order for a cluster of mixed machines. All of k is one entry.
  order sums = order::machine;
};

/// The plan of one product: immutable, so any number of threads may call it at once with different memory. It owns
/// kernels (by pieces also a list of where they lie, so it moves and is not copied) and no data. A call allocates
/// nothing.
///
/// B is packed once and may then serve many calls. Each element of C is one sum in the order of the contract, of all of
/// k in one entry: the same bits for any rows, threads and backend. With pieces it is order::tile over the products
/// that docs/numerics.md lists, chunk after chunk of 32 k. With k = 0 nothing is read but C, and A and B may be
/// anything. Errors are invalid_argument with the argument's name, found before anything is written.
class gemm {
 public:
  /// Errors: invalid_argument or unsupported with the field of the desc, or what make_kernel says; out_of_memory.
  static result<gemm> plan(const gemm_desc& d, const options& how = {}) noexcept {
    if (auto r = check(d); !r) return r.error();
    gemm g;
    g.d_ = d;
    auto product = detail::row_product::make(g.product_desc(), how);
    if (!product) return product.error();
    g.product_.emplace(std::move(*product));
    return g;
  }

  const gemm_desc& description() const noexcept { return d_; }
  std::string_view backend() const noexcept { return product_->backend(); }
  brgemm::order order() const noexcept { return product_->order(); }
  /// Of B as pack_b writes it, or of its pieces; align them to 64.
  index packed_b_bytes() const noexcept { return product_->packed_bytes(); }
  /// For the pieces of A: bytes that a call needs besides its arguments, 0 for math::f32; align them to 64.
  index workspace_bytes() const noexcept { return pieces_bytes(d_.m); }

  /// B (k,n) where `stored` is plain, (n,k) where it is transposed, rows of adjacent elements, to the panels that
  /// kernels read, or to pieces. packed: packed_b_bytes(); overlaps nothing.
  template <class T>
  requires element<std::remove_const_t<T>> result<void> pack_b(executor_ref threads, const view<T, 2>& b, layout stored,
                                                               void* packed)
  const noexcept {
    constexpr type t = element_traits<std::remove_const_t<T>>::value;
    if (auto r = check_type("b", t, d_.b); !r) return r;
    if (auto r = detail::check_stored("b", b, stored, d_.k, d_.n); !r) return r;
    if (d_.k == 0) return {};
    const detail::buffer written[] = {{"packed", packed, packed_b_bytes(), size_of(d_.b)}};
    const detail::buffer read[] = {detail::buffer_of("b", b)};
    if (auto r = detail::check_buffers(written, read); !r) return r;
    if (d_.compute == math::f32) {
      detail::pack_panels(threads, {d_.b, d_.k, d_.n, stored, b.data(), b.stride(0), packed, 0}, nullptr);
    } else if constexpr (t == type::f32) {
      const index panel_step = block_width(d_.n) * (stored == layout::transposed ? b.stride(0) : 1);
      detail::split_panels(threads, d_.compute, b.data(), b.stride(0), panel_step, stored, d_.k, d_.n,
                           static_cast<std::uint32_t*>(packed));
    }
    return {};
  }

  /// The first `rows` rows of C, 1 <= rows <= m. `a` and `c` in rows of lda and ldc, `packed_b` from pack_b; workspace:
  /// workspace_bytes(), null where that is 0. c and workspace overlap nothing.
  result<void> operator()(executor_ref threads, index rows, const void* a, const void* packed_b, void* c,
                          void* workspace = nullptr) const noexcept {
    if (auto r = check_rows(rows); !r) return r;
    const detail::buffer written[] = {buffer_of_c(rows, c), {"workspace", workspace, pieces_bytes(rows)}};
    const detail::buffer read[] = {buffer_of_a(rows, a), buffer_of_b(packed_b)};
    if (auto r = detail::check_buffers(written, read); !r) return r;
    if (d_.compute != math::f32) split(threads, rows, a, workspace);
    multiply(threads, rows, d_.compute == math::f32 ? a : workspace, packed_b, c);
    return {};
  }

  /// The same for views of plain matrices, with shapes, types and strides checked.
  template <class A, class C>
  requires element<std::remove_const_t<A>> && element<C> result<void>
  operator()(executor_ref threads, const view<A, 2>& a, const void* packed_b, const view<C, 2>& c,
             void* workspace = nullptr) const noexcept {
    if (auto r = check_view("a", a, d_.a, d_.k, lda()); !r) return r;
    if (auto r = check_view("c", c, d_.c, d_.n, ldc()); !r) return r;
    if (a.extent(0) != c.extent(0)) {
      return error(errc::invalid_argument, "c", "a has %ld rows, c has %ld", a.extent(0), c.extent(0));
    }
    return (*this)(threads, a.extent(0), a.data(), packed_b, c.data(), workspace);
  }

  /// Pieces of an A that meets several B: split_a once, then multiply_pieces for each B. Not for math::f32.
  /// pieces: workspace_bytes(); overlaps nothing.
  result<void> split_a(executor_ref threads, index rows, const void* a, void* pieces) const noexcept {
    if (auto r = check_pieces("split_a", rows); !r) return r;
    const detail::buffer written[] = {{"pieces", pieces, pieces_bytes(rows)}};
    const detail::buffer read[] = {buffer_of_a(rows, a)};
    if (auto r = detail::check_buffers(written, read); !r) return r;
    split(threads, rows, a, pieces);
    return {};
  }
  /// As operator(), with `pieces` from split_a of a plan of the same k and math.
  result<void> multiply_pieces(executor_ref threads, index rows, const void* pieces, const void* packed_b,
                               void* c) const noexcept {
    if (auto r = check_pieces("multiply_pieces", rows); !r) return r;
    const detail::buffer written[] = {buffer_of_c(rows, c)};
    const detail::buffer read[] = {{"pieces", pieces, pieces_bytes(rows)}, buffer_of_b(packed_b)};
    if (auto r = detail::check_buffers(written, read); !r) return r;
    multiply(threads, rows, pieces, packed_b, c);
    return {};
  }

 private:
  gemm() = default;

  static constexpr index largest_size = index{1} << 29;  // no product of two, in bytes and whole blocks, passes 2^63

  static result<void> check(const gemm_desc& d) noexcept {
    const struct {
      const char* name;
      index value;
      index least;
    } sizes[] = {{"m", d.m, 1}, {"n", d.n, 1}, {"k", d.k, 0}};
    for (const auto& s : sizes) {
      if (s.value >= s.least && s.value <= largest_size) continue;
      return error(errc::invalid_argument, s.name, "%s is %ld; it must be in %ld..2^29", s.name, s.value, s.least);
    }
    const struct {
      const char* name;
      index value;
      index columns;
    } pitches[] = {{"lda", d.lda, d.k}, {"ldc", d.ldc, d.n}};
    for (const auto& p : pitches) {
      if (p.value == 0 || (p.value >= p.columns && p.value <= largest_size)) continue;
      return error(errc::invalid_argument, p.name, "%s is %ld, with rows of %ld: 0, or %ld..2^29", p.name, p.value,
                   p.columns, p.columns);
    }
    if (auto r = detail::check_enumerator("compute", static_cast<int>(d.compute), math_count); !r) return r;
    const struct {
      const char* name;
      type value;
    } types[] = {{"a", d.a}, {"b", d.b}, {"c", d.c}};
    for (const auto& t : types) {
      if (auto r = detail::check_enumerator(t.name, static_cast<int>(t.value), type_count); !r) return r;
      if (d.compute == math::f32 || t.value == type::f32) continue;
      return error(errc::unsupported, t.name, "%s is %s; products of pieces are of f32", t.name,
                   name_of(t.value).data());
    }
    if (auto r = detail::check_order_of_pieces(d.compute, d.sums); !r) return r;
    if (d.accumulate && detail::is_8bit(d.c)) {
      return error(errc::unsupported, "accumulate", "accumulate is true and c is %s", name_of(d.c).data());
    }
    return {};
  }

  static result<void> check_type(const char* name, type element, type wanted) noexcept {
    if (element == wanted) return {};
    return error(errc::invalid_argument, name, "%s has elements of %s; this plan has %s", name, name_of(element).data(),
                 name_of(wanted).data());
  }
  template <class T>
  static result<void> check_view(const char* name, const view<T, 2>& v, type wanted, index columns, index ld) noexcept {
    if (auto r = check_type(name, element_traits<std::remove_const_t<T>>::value, wanted); !r) return r;
    if (v.extent(1) == columns && v.stride(1) == 1 && (v.stride(0) == ld || v.extent(0) == 1)) return {};
    return error(errc::invalid_argument, name,
                 "%s is (%ld,%ld) with strides (%ld,%ld); this plan has rows of %ld, %ld apart", name, v.extent(0),
                 v.extent(1), v.stride(0), v.stride(1), columns, ld);
  }

  result<void> check_rows(index rows) const noexcept {
    if (rows >= 1 && rows <= d_.m) return {};
    return error(errc::invalid_argument, "rows", "rows is %ld; this plan takes 1..%ld", rows, d_.m);
  }
  result<void> check_pieces(const char* call, index rows) const noexcept {
    if (d_.compute != math::f32) return check_rows(rows);
    return error(errc::invalid_argument, "compute", "%s is for products of pieces, and compute is 0, f32", call);
  }
  detail::buffer buffer_of_a(index rows, const void* a) const noexcept {
    if (d_.k == 0) return {"a", nullptr, 0};
    return {"a", a, ((rows - 1) * lda() + d_.k) * size_of(d_.a), size_of(d_.a)};
  }
  detail::buffer buffer_of_b(const void* packed_b) const noexcept {
    if (d_.k == 0) return {"packed_b", nullptr, 0};
    return {"packed_b", packed_b, packed_b_bytes(), size_of(d_.b)};
  }
  detail::buffer buffer_of_c(index rows, const void* c) const noexcept {
    return {"c", c, ((rows - 1) * ldc() + d_.n) * size_of(d_.c), size_of(d_.c)};
  }

  void split(executor_ref threads, index rows, const void* a, void* pieces) const noexcept {
    detail::split_matrix(threads, d_.compute, static_cast<const float*>(a), plain_tiling(d_.k, lda()), rows, d_.k,
                         static_cast<std::uint16_t*>(pieces));
  }
  void multiply(executor_ref threads, index rows, const void* a, const void* packed_b, void* c) const noexcept {
    detail::row_product_arguments call;
    call.a = a;
    call.b = packed_b;
    call.c = c;
    (*product_)(threads, rows, call);
  }

  index lda() const noexcept { return d_.lda != 0 ? d_.lda : std::max<index>(d_.k, 1); }
  index ldc() const noexcept { return d_.ldc != 0 ? d_.ldc : d_.n; }
  /// Elements from a row of A's pieces to the next.
  index pieces() const noexcept { return d_.compute == math::f32 ? 0 : detail::split_pitch(d_.k, d_.compute); }
  index pieces_bytes(index rows) const noexcept { return rows * pieces() * size_of(type::bf16); }

  detail::row_product_desc product_desc() const noexcept {
    detail::row_product_desc p;
    p.rows = d_.m;
    p.n = d_.n;
    p.k = d_.k;
    p.k_entry = std::max<index>(d_.k, 1);
    p.compute = d_.compute;
    p.sums = d_.sums;
    p.beta = d_.accumulate ? beta_kind::one : beta_kind::zero;
    p.a = d_.compute == math::f32 ? d_.a : type::bf16;
    p.b = d_.compute == math::f32 ? d_.b : type::bf16;
    p.c = d_.c;
    const index ld = d_.compute == math::f32 ? lda() : std::max<index>(pieces(), detail::split_chunk);
    p.a_tiles = {ld, block_rows * ld, 0};
    p.c_tiles = plain_tiling(d_.n, ldc());
    return p;
  }

  gemm_desc d_;
  std::optional<detail::row_product> product_;
};

}  // namespace brgemm::inline abi_0::loops
