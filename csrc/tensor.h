#pragma once
// A tensor as the ops see it: a view of memory that the caller owns, in DLPack's terms. Nothing here includes or links
// to a tensor library, so that a compiled module fits every release of it.
#include <ATen/dlpack.h>  // DLPack's own header, in C

#include <cstddef>
#include <cstdint>
#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "check.h"

namespace sparse_accel {

enum class ScalarType : std::uint8_t { f32, f64, bf16, f16, boolean, u8, i8, i16, i32, i64, other };
constexpr ScalarType kFloat = ScalarType::f32, kDouble = ScalarType::f64, kBFloat16 = ScalarType::bf16;
constexpr ScalarType kHalf = ScalarType::f16, kBool = ScalarType::boolean, kByte = ScalarType::u8;
constexpr ScalarType kChar = ScalarType::i8, kInt = ScalarType::i32, kLong = ScalarType::i64;

// As torch's Python names them, without "torch.".
const char* name_of(ScalarType type);
inline std::ostream& operator<<(std::ostream& out, ScalarType type) { return out << name_of(type); }

struct Device {
  DLDeviceType type = kDLCPU;
  std::int32_t index = 0;
  bool operator==(const Device&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Device& device);

// Sizes or strides: [2, 3].
struct Sizes : std::span<const std::int64_t> {
  using std::span<const std::int64_t>::span;
};
std::ostream& operator<<(std::ostream& out, Sizes sizes);
bool equal(Sizes a, Sizes b);
inline bool equal(Sizes a, std::initializer_list<std::int64_t> b) { return equal(a, Sizes(b.begin(), b.size())); }

class Tensor {
 public:
  // What memory cannot be said of: a tensor without any (meta), a sparse one. For the error that names the argument.
  struct Opaque {
    std::string device, layout;
    std::vector<std::int64_t> sizes;
    ScalarType type;
  };

  Tensor() = default;
  // Sizes and strides stay where they are, and must outlive the view.
  explicit Tensor(const DLTensor& view);
  explicit Tensor(std::shared_ptr<const Opaque> opaque);

  ScalarType scalar_type() const { return type_; }
  Device device() const { return {view_.device.device_type, view_.device.device_id}; }
  bool is_cpu() const { return !opaque_ && view_.device.device_type == kDLCPU; }
  bool is_cuda() const { return !opaque_ && view_.device.device_type == kDLCUDA; }
  bool is_dense() const { return !opaque_; }
  bool is_strided() const { return !opaque_ || opaque_->layout == "strided"; }
  std::string device_name() const;
  const char* layout_name() const { return opaque_ ? opaque_->layout.c_str() : "strided"; }

  std::int64_t dim() const { return view_.ndim; }
  std::int64_t size(std::int64_t d) const { return view_.shape[d < 0 ? d + view_.ndim : d]; }
  std::int64_t stride(std::int64_t d) const { return view_.strides[d]; }
  Sizes sizes() const { return {view_.shape, std::size_t(view_.ndim)}; }
  Sizes strides() const { return {view_.strides, std::size_t(view_.strides ? view_.ndim : 0)}; }
  std::int64_t numel() const;
  std::size_t element_size() const { return view_.dtype.bits / 8; }
  bool is_contiguous() const;
  bool is_non_overlapping_and_dense() const;

  void* mutable_data_ptr() const { return static_cast<char*>(view_.data) + view_.byte_offset; }
  const void* const_data_ptr() const { return mutable_data_ptr(); }
  template <class T>
  T* mutable_data_ptr() const {
    return static_cast<T*>(mutable_data_ptr());
  }
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(const_data_ptr());
  }

 private:
  DLTensor view_{nullptr, {kDLCPU, 0}, 0, {kDLFloat, 32, 1}, nullptr, nullptr, 0};
  ScalarType type_ = ScalarType::f32;
  std::shared_ptr<const Opaque> opaque_;
};

// Prints its device: "cpu", "cuda:0", "meta".
struct DeviceOf {
  const Tensor& tensor;
};
inline std::ostream& operator<<(std::ostream& out, DeviceOf of) { return out << of.tensor.device_name(); }

// On one device.
bool same_device(const Tensor& a, const Tensor& b);

}  // namespace sparse_accel
