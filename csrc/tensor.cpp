#include "tensor.h"

#include <algorithm>
#include <utility>

namespace sparse_accel {
namespace {

ScalarType type_of(const DLDataType& type) {
  if (type.lanes != 1) return ScalarType::other;
  const auto is = [&](int code, int bits) { return type.code == code && type.bits == bits; };
  if (is(kDLFloat, 32)) return ScalarType::f32;
  if (is(kDLFloat, 64)) return ScalarType::f64;
  if (is(kDLBfloat, 16)) return ScalarType::bf16;
  if (is(kDLFloat, 16)) return ScalarType::f16;
  if (is(kDLBool, 8)) return ScalarType::boolean;
  if (is(kDLUInt, 8)) return ScalarType::u8;
  if (is(kDLInt, 8)) return ScalarType::i8;
  if (is(kDLInt, 16)) return ScalarType::i16;
  if (is(kDLInt, 32)) return ScalarType::i32;
  if (is(kDLInt, 64)) return ScalarType::i64;
  return ScalarType::other;
}

}  // namespace

const char* name_of(ScalarType type) {
  constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16", "bool",         "uint8",
                                    "int8",    "int16",   "int32",    "int64",   "another dtype"};
  return kNames[static_cast<int>(type)];
}

std::ostream& operator<<(std::ostream& out, const Device& device) {
  if (device.type == kDLCPU) return out << "cpu";
  if (device.type == kDLCUDA) return out << "cuda:" << device.index;
  return out << "device " << int(device.type) << ":" << device.index;
}

std::ostream& operator<<(std::ostream& out, Sizes sizes) {
  out << '[';
  for (std::size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  return out << ']';
}

bool equal(Sizes a, Sizes b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

Tensor::Tensor(const DLTensor& view) : view_(view), type_(type_of(view.dtype)) {}

Tensor::Tensor(std::shared_ptr<const Opaque> opaque) : type_(opaque->type), opaque_(std::move(opaque)) {
  view_.ndim = std::int32_t(opaque_->sizes.size());
  view_.shape = const_cast<std::int64_t*>(opaque_->sizes.data());
}

std::string Tensor::device_name() const { return opaque_ ? opaque_->device : message(device()); }

std::int64_t Tensor::numel() const {
  std::int64_t number = 1;
  for (const std::int64_t size : sizes()) number *= size;
  return number;
}

bool Tensor::is_contiguous() const {
  if (!is_dense()) return false;
  if (numel() == 0) return true;
  std::int64_t expected = 1;
  for (std::int64_t d = dim() - 1; d >= 0; --d) {
    if (size(d) == 1) continue;
    if (stride(d) != expected) return false;
    expected *= size(d);
  }
  return true;
}

// In some order of its dimensions, each stride is the number of elements of those before it.
bool Tensor::is_non_overlapping_and_dense() const {
  if (is_contiguous()) return true;
  if (!is_dense()) return false;
  std::vector<std::pair<std::int64_t, std::int64_t>> order;  // stride, size
  for (std::int64_t d = 0; d < dim(); ++d) {
    if (size(d) != 1) order.emplace_back(stride(d), size(d));
  }
  std::sort(order.begin(), order.end());
  std::int64_t expected = 1;
  for (const auto& [stride, size] : order) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_dense() && b.is_dense() ? a.device() == b.device() : a.device_name() == b.device_name();
}

}  // namespace sparse_accel
