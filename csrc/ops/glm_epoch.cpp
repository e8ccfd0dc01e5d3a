#include "glm_epoch.h"

#include <cmath>
#include <vector>

#include "../cpu/isa/kernel_set.h"
#include "common.h"
#include "glm_common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/glm_ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kGlmEpoch = "glm_epoch";

int64_t epoch_on_cpu(const at::Tensor& x, const at::Tensor& x_prev, const GlmData& data, const at::Tensor& order,
                     double lr, double beta, Family family, double delta, double* average, int64_t average_start) {
  const bool sparse = data.is_sparse();
  std::vector<GlmColumn> columns(sparse ? static_cast<size_t>(data.columns) : 0);
  std::vector<GlmDrift> drift(sparse && beta != 0 ? static_cast<size_t>(order.numel()) + 1 : 0);
  const GlmRows rows{data.values.const_data_ptr(),
                     sparse ? data.crow.const_data_ptr<int64_t>() : nullptr,
                     sparse ? data.col.const_data_ptr<int64_t>() : nullptr,
                     data.targets.const_data_ptr<double>(),
                     data.rows,
                     data.columns};
  const GlmEpoch epoch{{rows, family, lr, delta, nullptr},
                       x.mutable_data_ptr(),
                       x_prev.mutable_data_ptr(),
                       order.const_data_ptr<int64_t>(),
                       order.numel(),
                       beta,
                       average,
                       average_start,
                       columns.data(),
                       drift.data()};
  return cpu::kernel_set().glm.epoch[x.scalar_type() == at::kDouble](epoch);
}

}  // namespace

at::Tensor glm_epoch_(const at::Tensor& x, const at::Tensor& x_prev, const at::Tensor& values,
                      const std::optional<at::Tensor>& crow, const std::optional<at::Tensor>& col,
                      const at::Tensor& targets, const at::Tensor& order, double lr, double beta,
                      const std::string& family_name, double delta, const std::optional<at::Tensor>& average,
                      int64_t average_start) {
  const Family family = family_from_name(kGlmEpoch, family_name);
  const GlmData data = check_glm(kGlmEpoch, x, values, crow, col, targets, family, lr, delta);
  TORCH_CHECK_VALUE(std::isfinite(beta), kGlmEpoch, ": beta: expected a finite number, got ", beta);
  TORCH_CHECK_VALUE(
      x_prev.sizes() == x.sizes() && x_prev.scalar_type() == x.scalar_type() && x_prev.device() == x.device(),
      kGlmEpoch, ": x_prev: expected shape, dtype and device of x, got ", x_prev.sizes(), ", ", x_prev.scalar_type(),
      ", ", x_prev.device());
  TORCH_CHECK_VALUE(x.is_contiguous() && x_prev.is_contiguous() && x.data_ptr() != x_prev.data_ptr(), kGlmEpoch,
                    ": x and x_prev: expected contiguous vectors that share no memory");
  TORCH_CHECK_VALUE(order.dim() == 1 && order.scalar_type() == at::kLong && order.device() == x.device(), kGlmEpoch,
                    ": order: expected a vector of int64 on ", x.device(), ", got shape ", order.sizes(), ", ",
                    order.scalar_type(), ", ", order.device());
  const at::Tensor steps = order.contiguous();
  const at::Tensor iterations = make_zeros({}, x.options().dtype(at::kLong));
  if (steps.numel() > 0) {
    const int64_t low = steps.min().item<int64_t>(), high = steps.max().item<int64_t>();
    TORCH_CHECK_VALUE(low >= 0 && high < data.rows, kGlmEpoch, ": order: expected rows in [0, ", data.rows,
                      "), got numbers from ", low, " to ", high);
  }
  if (average.has_value()) {
    TORCH_CHECK_VALUE(average->sizes() == x.sizes() && average->scalar_type() == at::kDouble &&
                          average->device() == x.device() && average->is_contiguous(),
                      kGlmEpoch, ": average: expected a contiguous float64 vector like x, got ", average->sizes(), ", ",
                      average->scalar_type());
    TORCH_CHECK_VALUE(0 <= average_start && average_start < steps.numel(), kGlmEpoch,
                      ": average_start: expected 0 <= start < ", steps.numel(), ", the number of steps, got ",
                      average_start);
  }
  if (steps.numel() == 0 || x.numel() == 0) return iterations;
  double* const mean = average.has_value() ? average->mutable_data_ptr<double>() : nullptr;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(x)) {
    cuda::glm_epoch(x, x_prev, data, steps, lr, beta, family, delta, mean, average_start, iterations);
    return iterations;
  }
#endif
  TORCH_CHECK(x.is_cpu(), kGlmEpoch, ": expected CPU or (in a CUDA build) CUDA tensors, got ", x.device());
  iterations.fill_(epoch_on_cpu(x, x_prev, data, steps, lr, beta, family, delta, mean, average_start));
  return iterations;
}

}  // namespace sparse_accel
