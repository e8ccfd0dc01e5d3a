// Between tensors and launchers: sparse_linear.
#include "guard.h"
#include "sparse_linear.h"
#include "sparse_linear_ops_cuda.h"

namespace sparse_accel::cuda {
void sparse_linear(const SparseWeight& w, bool int8, const Tensor& x, const void* bias, Activation activation,
                   const Tensor& y) {
  Launch launch(x);
  launch.check(sparse_linear({int8, dtype_of(x)}, w, x.const_data_ptr(), x.size(0), bias, activation,
                             y.mutable_data_ptr(), launch.scratch(), launch.stream()));
}

void sparse_unpack(const SparseWeight& w, bool int8, int64_t first, int64_t last, const Tensor& dense) {
  Launch launch(dense);
  launch.check(sparse_unpack({int8, dtype_of(dense)}, w, first, last, dense.mutable_data_ptr(), launch.stream()));
}

void sparse_collect(const SparseWeight& w, const Tensor& dense, const Tensor& values) {
  Launch launch(dense);
  launch.check(sparse_collect(dtype_of(dense), w, dense.const_data_ptr(), values.mutable_data_ptr(), launch.stream()));
}

void sparse_finish(const Tensor& y, const void* bias, Activation activation) {
  Launch launch(y);
  launch.check(
      sparse_finish(dtype_of(y), y.mutable_data_ptr(), y.size(0), y.size(1), bias, activation, launch.stream()));
}

}  // namespace sparse_accel::cuda
