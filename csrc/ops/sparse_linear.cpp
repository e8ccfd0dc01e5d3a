#include "sparse_linear.h"

#include <algorithm>

#include "../cpu/sparse_linear/sparse_linear_run.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/sparse_linear_ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

Activation activation_from_name(const std::string& op, const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  CHECK_VALUE(false, op, ": activation: expected 'none', 'relu', 'gelu', 'gelu_tanh' or 'silu', got '", name, "'");
}

int value_index(const std::string& op, ScalarType dtype) {
  switch (dtype) {
    case kFloat:
      return 0;
    case kBFloat16:
      return 1;
    case kHalf:
      return 2;
    case kChar:
      return 3;
    default:
      CHECK_TYPE(false, op, ": values: expected float32, bfloat16, float16 or int8, got ", dtype);
  }
}

SparseWeight checked(const std::string& name, const Tensor& values, const Tensor& bits, const Tensor& offsets,
                     const std::optional<Tensor>& scales, int64_t rows, int64_t columns) {
  const char* const op = name.c_str();
  value_index(name, values.scalar_type());
  CHECK_VALUE(values.is_dense() && values.dim() == 1 && values.is_contiguous(), op,
              ": values: expected a contiguous vector, got shape ", values.sizes());
  CHECK_VALUE(rows >= 0 && columns >= 0, op, ": rows, columns: expected numbers >= 0, got ", rows, ", ", columns);
  const int64_t row_tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t column_tiles = (columns + kTileColumns - 1) / kTileColumns, tiles = row_tiles * column_tiles;
  check_array(op, "bits", bits, values, kByte, {tiles, kTileBytes});
  check_array(op, "offsets", offsets, values, kInt, {tiles + 1});
  const bool quantized = values.scalar_type() == kChar;
  CHECK_VALUE(scales.has_value() == quantized, op, ": scales: expected ",
              quantized ? "a tensor, as values are int8" : "None, as values are not int8");
  if (quantized) check_array(op, "scales", *scales, values, kFloat, {rows, column_tiles});
  CHECK_VALUE(reinterpret_cast<uintptr_t>(values.const_data_ptr()) % kValueAlign == 0, op,
              ": values: expected memory that begins at a multiple of ", kValueAlign, " bytes");
  check_device(op, "values", values);
  const SparseWeight w{values.const_data_ptr(),
                       bits.const_data_ptr<uint8_t>(),
                       offsets.const_data_ptr<int32_t>(),
                       quantized ? scales->const_data_ptr<float>() : nullptr,
                       rows,
                       columns,
                       row_tiles,
                       column_tiles};
  if (values.is_cpu()) {  // on a GPU nothing waits for the number
    const int64_t end = int64_t(w.offsets[tiles]) * kValueAlign + kValueTail;
    const int64_t bytes = values.numel() * int64_t(values.element_size());
    CHECK_VALUE(w.offsets[0] == 0 && end <= bytes, op, ": values: expected at least ", end,
                " bytes, as offsets say, got ", bytes);
  }
  return w;
}

// The dtype of what stands beside values.
ScalarType wide(const Tensor& values, const Tensor& other) {
  if (!on_cuda(values)) return kFloat;
  return values.scalar_type() == kChar ? other.scalar_type() : values.scalar_type();
}

const void* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

// When a dense product of unpacked weights is faster than one of the kept alone. On a CPU a product of kept weights
// takes about twice as long for each, and unpacking as long as some 25 inputs of the dense one (measured, AVX2, 2048 x
// 2048). On a GPU from some number of inputs on, whatever is kept: dense products have tensor cores.
constexpr double kDenseShare = 0.5;
constexpr double kUnpackInputs = 25;
constexpr int64_t kDenseBatchCuda = 16;

bool dense_is_faster(const SparseWeight& w, const Tensor& values, int64_t batch) {
  if (w.rows == 0 || w.columns == 0) return false;
  if (on_cuda(values)) return batch >= kDenseBatchCuda;
  const double bytes = double(w.offsets[w.row_tiles * w.column_tiles]) * kValueAlign;
  const double share = bytes / (double(values.element_size()) * double(w.rows) * double(w.columns));
  return double(batch) * (share - kDenseShare) >= kUnpackInputs;
}

}  // namespace

bool sparse_linear(const Tensor& x, const Tensor& values, const Tensor& bits, const Tensor& offsets,
                   const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
                   const std::string& activation_name, const Tensor& y) {
  constexpr const char* kOp = "sparse_linear";
  const Activation activation = activation_from_name(kOp, activation_name);
  CHECK_VALUE(x.dim() == 2 && y.dim() == 2, kOp, ": x, y: expected matrices, got shapes ", x.sizes(), " and ",
              y.sizes());
  const int64_t batch = x.size(0), rows = y.size(1);
  const SparseWeight w = checked(kOp, values, bits, offsets, scales, rows, x.size(1));
  const ScalarType dtype = wide(values, x);
  check_array(kOp, "x", x, values, dtype, x.sizes());
  check_array(kOp, "y", y, values, dtype, {batch, rows});
  if (bias) check_array(kOp, "bias", *bias, values, dtype, {rows});
  if (y.numel() == 0) return true;
  if (dense_is_faster(w, values, batch)) return false;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(values)) {
    cuda::sparse_linear(w, values.scalar_type() == kChar, x, data_of(bias), activation, y);
    return true;
  }
#endif
  cpu::sparse_linear(value_index(kOp, values.scalar_type()), w, x.const_data_ptr<float>(), batch,
                     static_cast<const float*>(data_of(bias)), activation, y.mutable_data_ptr<float>());
  return true;
}

void sparse_unpack(const Tensor& values, const Tensor& bits, const Tensor& offsets, const std::optional<Tensor>& scales,
                   int64_t rows, int64_t first, int64_t last, const Tensor& dense) {
  constexpr const char* kOp = "sparse_unpack";
  CHECK_VALUE(dense.dim() == 2, kOp, ": dense: expected a matrix, got shape ", dense.sizes());
  const SparseWeight w = checked(kOp, values, bits, offsets, scales, rows, dense.size(1));
  CHECK_VALUE(0 <= first && first <= last && last <= w.row_tiles, kOp,
              ": first, last: expected 0 <= first <= last <= ", w.row_tiles, ", got ", first, ", ", last);
  const int64_t count = std::min(last * kTileRows, rows) - std::min(first * kTileRows, rows);
  check_array(kOp, "dense", dense, values, wide(values, dense), {count, w.columns});
  if (dense.numel() == 0) return;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(values)) return cuda::sparse_unpack(w, values.scalar_type() == kChar, first, last, dense);
#endif
  cpu::sparse_unpack(value_index(kOp, values.scalar_type()), w, first, last, dense.mutable_data_ptr<float>());
}

void sparse_collect(const Tensor& dense, const Tensor& bits, const Tensor& offsets, const Tensor& values) {
  constexpr const char* kOp = "sparse_collect";
  CHECK_VALUE(dense.is_dense() && dense.dim() == 2, kOp, ": dense: expected a matrix, got shape ", dense.sizes());
  CHECK_TYPE(value_index(kOp, dense.scalar_type()) < 3, kOp, ": dense: expected float32, bfloat16 or float16, got ",
             dense.scalar_type());
  const SparseWeight w = checked(kOp, values, bits, offsets, std::nullopt, dense.size(0), dense.size(1));
  check_array(kOp, "dense", dense, values, values.scalar_type(), dense.sizes());
  if (dense.numel() == 0) return;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(values)) return cuda::sparse_collect(w, dense, values);
#endif
  cpu::sparse_collect(int(dense.element_size()), w, dense.const_data_ptr(), values.mutable_data_ptr());
}

void sparse_finish(const Tensor& y, const std::optional<Tensor>& bias, const std::string& activation_name) {
  constexpr const char* kOp = "sparse_finish";
  const Activation activation = activation_from_name(kOp, activation_name);
  CHECK_VALUE(y.dim() == 2, kOp, ": y: expected a matrix, got shape ", y.sizes());
  check_device(kOp, "y", y);
  check_array(kOp, "y", y, y, on_cuda(y) ? y.scalar_type() : kFloat, y.sizes());
  if (bias) check_array(kOp, "bias", *bias, y, y.scalar_type(), {y.size(1)});
  if (y.numel() == 0) return;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(y)) return cuda::sparse_finish(y, data_of(bias), activation);
#endif
  cpu::sparse_finish(y.mutable_data_ptr<float>(), y.size(0), y.size(1), static_cast<const float*>(data_of(bias)),
                     activation);
}

}  // namespace sparse_accel
