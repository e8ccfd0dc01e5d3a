#include "sparse_linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <vector>

#include "../cpu/sparse_linear/sparse_linear_run.h"
#include "common.h"
#include "operators.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/sparse_linear_ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

Activation activation_from_name(const char* op, const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  TORCH_CHECK_VALUE(false, op, ": activation: expected 'none', 'relu', 'gelu', 'gelu_tanh' or 'silu', got '", name,
                    "'");
}

int value_index(const char* op, at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return 0;
    case at::kBFloat16:
      return 1;
    case at::kHalf:
      return 2;
    case at::kChar:
      return 3;
    default:
      TORCH_CHECK_TYPE(false, op, ": values: expected float32, bfloat16, float16 or int8, got ", dtype);
  }
}

void check_part(const char* op, const char* name, const at::Tensor& t, const at::Tensor& values, at::ScalarType dtype,
                at::IntArrayRef sizes) {
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, op, ": ", name, ": expected ", dtype, ", got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.device() == values.device(), op, ": ", name, ": expected the device of values, ", values.device(),
                    ", got ", t.device());
  TORCH_CHECK_VALUE(t.layout() == at::kStrided && t.sizes() == sizes && t.is_contiguous(), op, ": ", name,
                    ": expected a contiguous tensor of shape ", sizes, ", got shape ", t.sizes(), " with layout ",
                    t.layout());
}

SparseWeight checked(const char* op, const at::Tensor& values, const at::Tensor& bits, const at::Tensor& offsets,
                     const std::optional<at::Tensor>& scales, int64_t rows, int64_t columns) {
  value_index(op, values.scalar_type());
  TORCH_CHECK_VALUE(values.layout() == at::kStrided && values.dim() == 1 && values.is_contiguous(), op,
                    ": values: expected a contiguous vector, got shape ", values.sizes());
  TORCH_CHECK_VALUE(rows >= 0 && columns >= 0, op, ": rows, columns: expected numbers >= 0, got ", rows, ", ", columns);
  const int64_t row_tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t column_tiles = (columns + kTileColumns - 1) / kTileColumns, tiles = row_tiles * column_tiles;
  check_part(op, "bits", bits, values, at::kByte, {tiles, kTileBytes});
  check_part(op, "offsets", offsets, values, at::kInt, {tiles + 1});
  const bool quantized = values.scalar_type() == at::kChar;
  TORCH_CHECK_VALUE(scales.has_value() == quantized, op, ": scales: expected ",
                    quantized ? "a tensor, as values are int8" : "None, as values are not int8");
  if (quantized) check_part(op, "scales", *scales, values, at::kFloat, {rows, column_tiles});
  TORCH_CHECK_VALUE(reinterpret_cast<uintptr_t>(values.const_data_ptr()) % kValueAlign == 0, op,
                    ": values: expected memory that begins at a multiple of ", kValueAlign, " bytes");
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
    TORCH_CHECK_VALUE(w.offsets[0] == 0 && end <= bytes, op, ": values: expected at least ", end,
                      " bytes, as offsets say, got ", bytes);
  }
  return w;
}

bool runs_on_cuda(const char* op, const at::Tensor& values) {
#ifdef SPARSE_ACCEL_WITH_CUDA
  const bool native_cuda = on_cuda(values);
#else
  constexpr bool native_cuda = false;
#endif
  TORCH_CHECK(native_cuda || values.is_cpu(), op, ": values: expected a CPU or (in a CUDA build) CUDA tensor, got ",
              values.device());
  return native_cuda;
}

// When a dense product of unpacked weights is faster than one of the kept alone. On a CPU a product of kept weights
// takes about twice as long for each, and unpacking as long as some 25 inputs of the dense one (measured, AVX2, 2048 x
// 2048). On a GPU from some number of inputs on, whatever is kept: dense products have tensor cores.
constexpr double kDenseShare = 0.5;
constexpr double kUnpackInputs = 25;
constexpr int64_t kDenseBatchCuda = 16;
constexpr int64_t kUnpackTiles = 64;  // row tiles that are unpacked at a time

// Row tiles of the dense weight, of dense's dtype.
void unpack_into(const at::Tensor& dense, const SparseWeight& w, const at::Tensor& values, int64_t first, int64_t last,
                 bool native_cuda) {
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (native_cuda) return cuda::sparse_unpack(w, values.scalar_type() == at::kChar, first, last, dense);
#else
  (void)native_cuda;
#endif
  cpu::sparse_unpack(value_index("", values.scalar_type()), w, first, last, dense.mutable_data_ptr<float>());
}

at::Tensor by_unpacking(const SparseWeight& w, const at::Tensor& values, const at::Tensor& x, bool native_cuda) {
  at::Tensor y = at::empty({x.size(0), w.rows}, x.options());
  for (int64_t first = 0; first < w.row_tiles; first += kUnpackTiles) {
    const int64_t last = std::min(first + kUnpackTiles, w.row_tiles), row = first * kTileRows;
    const int64_t rows = std::min(last * kTileRows, w.rows) - row;
    const at::Tensor dense = at::empty({rows, w.columns}, x.options());
    unpack_into(dense, w, values, first, last, native_cuda);
    y.narrow(1, row, rows).copy_(at::mm(x, dense.t()));
  }
  return y;
}

}  // namespace

at::Tensor sparse_linear(const at::Tensor& x_given, const at::Tensor& values, const at::Tensor& bits,
                         const at::Tensor& offsets, const std::optional<at::Tensor>& scales,
                         const std::optional<at::Tensor>& bias, int64_t rows, const std::string& activation_name) {
  constexpr const char* kOp = "sparse_linear";
  const Activation activation = activation_from_name(kOp, activation_name);
  const auto dtype = x_given.scalar_type();
  TORCH_CHECK_VALUE(x_given.layout() == at::kStrided && x_given.dim() >= 1, kOp,
                    ": x: expected a dense tensor [.., columns], got shape ", x_given.sizes());
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, kOp,
                   ": x: expected float32, bfloat16 or float16, got ", dtype);
  TORCH_CHECK_TYPE(values.scalar_type() == at::kChar || values.scalar_type() == dtype, kOp, ": values: expected ",
                   dtype, ", as x, or int8, got ", values.scalar_type());
  TORCH_CHECK_VALUE(x_given.device() == values.device(), kOp, ": x: expected the device of values, ", values.device(),
                    ", got ", x_given.device());
  const int64_t columns = x_given.size(-1);
  const SparseWeight w = checked(kOp, values, bits, offsets, scales, rows, columns);
  if (bias.has_value()) check_part(kOp, "bias", *bias, values, dtype, {rows});
  const bool native_cuda = runs_on_cuda(kOp, values);
  std::vector<int64_t> sizes = x_given.sizes().vec();
  sizes.back() = rows;
  int64_t batch = 1;
  for (size_t d = 0; d + 1 < sizes.size(); ++d) batch *= sizes[d];
  if (batch == 0 || rows == 0) return make_empty(sizes, x_given.options());
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (native_cuda) {
    const at::Tensor x = x_given.reshape({batch, columns}).contiguous();
    if (batch >= kDenseBatchCuda && columns > 0) {
      const at::Tensor y = by_unpacking(w, values, x, true);
      cuda::sparse_finish(y, bias, activation);
      return y.view(sizes);
    }
    const at::Tensor y = make_empty({batch, rows}, x.options());
    cuda::sparse_linear(w, values.scalar_type() == at::kChar, x, bias, activation, y);
    return y.view(sizes);
  }
#else
  (void)native_cuda;
#endif
  const at::Tensor x = x_given.reshape({batch, columns}).to(at::kFloat).contiguous();
  const at::Tensor wide_bias = bias.has_value() ? bias->to(at::kFloat) : at::Tensor();
  const float* const bias_data = bias.has_value() ? wide_bias.const_data_ptr<float>() : nullptr;
  const int index = value_index(kOp, values.scalar_type());
  const double share = double(w.offsets[w.row_tiles * w.column_tiles]) * kValueAlign /
                       double(values.element_size() * std::max<int64_t>(1, rows * columns));
  at::Tensor y;
  if (double(batch) * (share - kDenseShare) >= kUnpackInputs) {
    y = by_unpacking(w, values, x, false);
    cpu::sparse_finish(y.mutable_data_ptr<float>(), batch, rows, bias_data, activation);
  } else {
    y = make_empty({batch, rows}, x.options());
    cpu::sparse_linear(index, w, x.const_data_ptr<float>(), batch, bias_data, activation, y.mutable_data_ptr<float>());
  }
  return y.to(dtype).view(sizes);
}

at::Tensor sparse_unpack(const at::Tensor& values, const at::Tensor& bits, const at::Tensor& offsets,
                         const std::optional<at::Tensor>& scales, int64_t rows, int64_t columns) {
  constexpr const char* kOp = "sparse_unpack";
  const SparseWeight w = checked(kOp, values, bits, offsets, scales, rows, columns);
  const bool native_cuda = runs_on_cuda(kOp, values);
  const auto dtype = values.scalar_type() == at::kChar ? at::kFloat : values.scalar_type();
  // The kernels of the CPU write float32.
  const at::Tensor dense = make_empty({rows, columns}, values.options().dtype(native_cuda ? dtype : at::kFloat));
  if (dense.numel() > 0) unpack_into(dense, w, values, 0, w.row_tiles, native_cuda);
  return dense.to(dtype);
}

at::Tensor sparse_collect(const at::Tensor& dense_given, const at::Tensor& bits, const at::Tensor& offsets,
                          int64_t length) {
  constexpr const char* kOp = "sparse_collect";
  TORCH_CHECK_VALUE(dense_given.layout() == at::kStrided && dense_given.dim() == 2, kOp,
                    ": dense: expected a matrix, got shape ", dense_given.sizes());
  TORCH_CHECK_TYPE(value_index(kOp, dense_given.scalar_type()) < 3, kOp,
                   ": dense: expected float32, bfloat16 or float16, got ", dense_given.scalar_type());
  const at::Tensor dense = dense_given.contiguous(), values = at::zeros({length}, dense.options());
  const SparseWeight w = checked(kOp, values, bits, offsets, std::nullopt, dense.size(0), dense.size(1));
  const bool native_cuda = runs_on_cuda(kOp, values);
  if (dense.numel() == 0) return values;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (native_cuda) {
    cuda::sparse_collect(w, dense, values);
    return values;
  }
#else
  (void)native_cuda;
#endif
  cpu::sparse_collect(int(dense.element_size()), w, dense.const_data_ptr(), values.mutable_data_ptr());
  return values;
}

}  // namespace sparse_accel
