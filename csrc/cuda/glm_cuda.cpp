// ATen side of glm_prox and glm_epoch.
#include "glm.h"
#include "glm_ops_cuda.h"
#include "guard.h"

namespace sparse_accel::cuda {
namespace {

GlmTask task_of(const GlmData& data, double lr, Family family, double delta) {
  return GlmTask{data.values.const_data_ptr(),
                 data.is_sparse() ? data.crow.const_data_ptr<int64_t>() : nullptr,
                 data.is_sparse() ? data.col.const_data_ptr<int64_t>() : nullptr,
                 data.targets.const_data_ptr<double>(),
                 data.rows,
                 data.columns,
                 family,
                 lr,
                 delta};
}

}  // namespace

void glm_prox(const at::Tensor& z, const GlmData& data, double lr, Family family, double delta, const at::Tensor& out,
              const at::Tensor& iterations) {
  Launch launch(z);
  launch.check(glm_prox(dtype_of(z), task_of(data, lr, family, delta), z.const_data_ptr(), out.mutable_data_ptr(),
                        iterations.mutable_data_ptr<int64_t>(), launch.scratch(), launch.stream()));
}

void glm_epoch(const at::Tensor& x, const at::Tensor& x_prev, const GlmData& data, const at::Tensor& order, double lr,
               double beta, Family family, double delta, double* average, int64_t average_start,
               const at::Tensor& iterations) {
  Launch launch(x);
  const GlmPass pass{
      x.mutable_data_ptr(), x_prev.mutable_data_ptr(), order.const_data_ptr<int64_t>(), order.numel(), beta, average,
      average_start};
  launch.check(glm_epoch(dtype_of(x), task_of(data, lr, family, delta), pass, iterations.mutable_data_ptr<int64_t>(),
                         launch.stream()));
}

}  // namespace sparse_accel::cuda
