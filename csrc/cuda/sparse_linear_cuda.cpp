// ATen side of sparse_linear.
#include "guard.h"
#include "sparse_linear.h"
#include "sparse_linear_ops_cuda.h"

namespace sparse_accel::cuda {
namespace {

const void* bias_of(const std::optional<at::Tensor>& bias) {
  return bias.has_value() ? bias->const_data_ptr() : nullptr;
}

}  // namespace

void sparse_linear(const SparseWeight& w, bool int8, const at::Tensor& x, const std::optional<at::Tensor>& bias,
                   Activation activation, const at::Tensor& y) {
  Launch launch(x);
  launch.check(sparse_linear({int8, dtype_of(x)}, w, x.const_data_ptr(), x.size(0), bias_of(bias), activation,
                             y.mutable_data_ptr(), launch.scratch(), launch.stream()));
}

void sparse_unpack(const SparseWeight& w, bool int8, int64_t first, int64_t last, const at::Tensor& dense) {
  Launch launch(dense);
  launch.check(sparse_unpack({int8, dtype_of(dense)}, w, first, last, dense.mutable_data_ptr(), launch.stream()));
}

void sparse_collect(const SparseWeight& w, const at::Tensor& dense, const at::Tensor& values) {
  Launch launch(dense);
  launch.check(sparse_collect(dtype_of(dense), w, dense.const_data_ptr(), values.mutable_data_ptr(), launch.stream()));
}

void sparse_finish(const at::Tensor& y, const std::optional<at::Tensor>& bias, Activation activation) {
  Launch launch(y);
  launch.check(sparse_finish(dtype_of(y), y.mutable_data_ptr(), y.size(0), y.size(1), bias_of(bias), activation,
                             launch.stream()));
}

}  // namespace sparse_accel::cuda
