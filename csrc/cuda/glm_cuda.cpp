// Between tensors and launchers: glm_prox and glm_epoch.
#include "glm.h"
#include "glm_ops_cuda.h"
#include "guard.h"

namespace sparse_accel::cuda {
namespace {

GlmTask task_of(const GlmRows& rows, double lr, Family family, double delta) {
  return GlmTask{rows.values, rows.crow, rows.col, rows.targets, rows.rows, rows.columns, family, lr, delta};
}

}  // namespace

void glm_prox(const Tensor& z, const GlmRows& rows, double lr, Family family, double delta, const Tensor& out,
              const Tensor& iterations) {
  Launch launch(z);
  launch.check(glm_prox(dtype_of(z), task_of(rows, lr, family, delta), z.const_data_ptr(), out.mutable_data_ptr(),
                        iterations.mutable_data_ptr<int64_t>(), launch.scratch(), launch.stream()));
}

void glm_epoch(const Tensor& x, const GlmRows& rows, const GlmPass& pass, double lr, Family family, double delta,
               const Tensor& iterations) {
  Launch launch(x);
  launch.check(glm_epoch(dtype_of(x), task_of(rows, lr, family, delta), pass, iterations.mutable_data_ptr<int64_t>(),
                         launch.stream()));
}

}  // namespace sparse_accel::cuda
