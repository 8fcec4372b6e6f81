// Tensors of other frameworks, as DLPack describes them, for launches on a GPU. Needs no header of DLPack: what is here
// takes the DLTensor of any version that calls its device `device` (0.5 on).
#pragma once

#include <span>

#include "../core/result.hpp"

namespace brgemm::inline abi_0::cuda {

/// A DLDataType.
struct dlpack_type {
  std::uint8_t code = 0;
  std::uint8_t bits = 0;
};

/// DLPack's type for elements of `t`; a tf32 is an f32 there. The 8-bit floats are those of DLPack 1.1.
constexpr dlpack_type dlpack_type_of(type t) noexcept {
  const auto bits = static_cast<std::uint8_t>(8 * size_of(t));
  switch (t) {
    case type::s8:
    case type::s32: return {0, bits};  // kDLInt
    case type::u8: return {1, bits};   // kDLUInt
    case type::f32:
    case type::f64:
    case type::f16:
    case type::tf32: return {2, bits};   // kDLFloat
    case type::bf16: return {4, bits};   // kDLBfloat
    case type::e4m3: return {10, bits};  // kDLFloat8_e4m3fn
    case type::e5m2: return {12, bits};  // kDLFloat8_e5m2
  }
  return {};
}

inline constexpr int dlpack_cuda = 2;           ///< kDLCUDA
inline constexpr int dlpack_cuda_managed = 13;  ///< kDLCUDAManaged

/// Where the elements of a DLTensor begin, if they are of this type and shape, row-major without gaps, and in memory of
/// the device (kDLCUDA with its number, or kDLCUDAManaged); null where there are none and data is. Nothing of the
/// tensor's data is read. Thread-safe. Errors: invalid_argument with "device", "dtype", "shape", "strides", or "data"
/// where that is null.
template <class Tensor>
result<void*> address_of(const Tensor& t, type element, std::span<const index> shape, int device = 0) noexcept {
  const int where = static_cast<int>(t.device.device_type), number = static_cast<int>(t.device.device_id);
  if (where != dlpack_cuda_managed && (where != dlpack_cuda || number != device)) {
    return error(errc::invalid_argument, "device",
                 "the tensor is on device (%d,%d); needed is (%d,%d), or managed memory (%d)", where, number,
                 dlpack_cuda, device, dlpack_cuda_managed);
  }
  const dlpack_type right = dlpack_type_of(element);
  if (t.dtype.code != right.code || t.dtype.bits != right.bits || t.dtype.lanes != 1) {
    return error(errc::invalid_argument, "dtype", "the tensor's type is (%d,%d,%d); %s is (%d,%d,1)", int{t.dtype.code},
                 int{t.dtype.bits}, int{t.dtype.lanes}, name_of(element).data(), int{right.code}, int{right.bits});
  }
  const auto rank = static_cast<int>(shape.size());
  if (t.ndim != rank) {
    return error(errc::invalid_argument, "shape", "the tensor has %d dimensions; needed are %d",
                 static_cast<int>(t.ndim), rank);
  }
  bool empty = false;
  for (int i = 0; i < rank; ++i) {
    const index extent = shape[static_cast<std::size_t>(i)];
    empty = empty || extent == 0;
    if (t.shape[i] == extent && extent >= 0) continue;
    return error(errc::invalid_argument, "shape", "shape[%d] of the tensor is %ld; needed is %ld", i,
                 static_cast<index>(t.shape[i]), extent);
  }
  index adjacent = 1;
  for (int i = rank - 1; i >= 0 && t.strides != nullptr && !empty; --i) {
    const index extent = shape[static_cast<std::size_t>(i)];
    if (extent > 1 && t.strides[i] != adjacent) {
      return error(errc::invalid_argument, "strides", "strides[%d] of the tensor is %ld; without gaps it is %ld", i,
                   static_cast<index>(t.strides[i]), adjacent);
    }
    if (__builtin_mul_overflow(adjacent, extent, &adjacent)) {
      return error(errc::invalid_argument, "shape", "the tensor has more than 2^63 - 1 elements");
    }
  }
  if (t.data == nullptr && !empty) return error(errc::invalid_argument, "data", "data of the tensor is null");
  if (t.data == nullptr) return static_cast<void*>(nullptr);
  return static_cast<void*>(static_cast<char*>(t.data) + t.byte_offset);
}

}  // namespace brgemm::inline abi_0::cuda
