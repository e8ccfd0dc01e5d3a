#include "glm_prox.h"

#include <vector>

#include "../cpu/isa/kernel_set.h"
#include "common.h"
#include "glm_common.h"
#include "glm_joint.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/glm_ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kGlmProx = "glm_prox";

// The mean of the steps of single rows; iterations: [] int64, the most of a row.
at::Tensor average_step(const at::Tensor& z, const GlmData& data, double lr, Family family, double delta,
                        const at::Tensor& iterations) {
  const at::Tensor out = make_like(z, z.scalar_type());
  if (z.numel() == 0) return out;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(z)) {
    cuda::glm_prox(z, data, lr, family, delta, out, iterations);
    return out;
  }
#endif
  std::vector<double> sum(static_cast<size_t>(data.columns));
  const bool sparse = data.is_sparse();
  const GlmRows rows{data.values.const_data_ptr(),
                     sparse ? data.crow.const_data_ptr<int64_t>() : nullptr,
                     sparse ? data.col.const_data_ptr<int64_t>() : nullptr,
                     data.targets.const_data_ptr<double>(),
                     data.rows,
                     data.columns};
  const GlmProblem problem{rows, family, lr, delta, sum.data()};
  const int index = z.scalar_type() == at::kDouble;
  iterations.fill_(cpu::kernel_set().glm.prox[index](problem, z.const_data_ptr(), out.mutable_data_ptr()));
  return out;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> glm_prox(const at::Tensor& z, const at::Tensor& values,
                                            const std::optional<at::Tensor>& crow, const std::optional<at::Tensor>& col,
                                            const at::Tensor& targets, double lr, const std::string& family_name,
                                            const std::string& mode, double delta) {
  const Family family = family_from_name(kGlmProx, family_name);
  TORCH_CHECK_VALUE(mode == "single" || mode == "average" || mode == "joint", kGlmProx,
                    ": mode: expected 'single', 'average' or 'joint', got '", mode, "'");
  const GlmData data = check_glm(kGlmProx, z, values, crow, col, targets, family, lr, delta);
  TORCH_CHECK_VALUE(mode != "single" || data.rows == 1, kGlmProx, ": mode 'single': expected one row, got ", data.rows);
#ifdef SPARSE_ACCEL_WITH_CUDA
  const bool known = on_cuda(z) || z.is_cpu();
#else
  const bool known = z.is_cpu();
#endif
  TORCH_CHECK(known, kGlmProx, ": expected CPU or (in a CUDA build) CUDA tensors, got ", z.device());
  const at::Tensor iterations = make_zeros({}, z.options().dtype(at::kLong));
  const at::Tensor point = z.contiguous();
  const auto average = [&](const at::Tensor& x) {
    return average_step(x.contiguous(), data, lr, family, delta, iterations);
  };
  if (mode != "joint") return {average(point), iterations};
  const GlmJoint joint = glm_joint(point, data, lr, family, delta, average);
  iterations.fill_(joint.iterations);
  return {joint.x, iterations};
}

}  // namespace sparse_accel
