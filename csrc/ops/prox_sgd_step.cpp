#include "prox_sgd_step.h"

#include "../cpu/isa/kernel_set.h"
#include "../cpu/schedule.h"
#include "common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/prox_sgd_step_ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kSgdStep = "prox_sgd_step_";

void prox_sgd_step_cpu(const Tensors& params, const Tensors& grads, const Tensors& buffers, const Tensors& steps,
                       const std::vector<Segment>& segments, Prox prox, const std::vector<double>& strengths, double lr,
                       double rho, double grad_factor) {
  const int dtype = dtype_index(params[0].scalar_type());
  const auto size = static_cast<int64_t>(params[0].element_size());
  const auto state_size = static_cast<int64_t>(buffers[0].element_size());
  for (const Tensor& step : steps) step.mutable_data_ptr<float>()[0] += 1;
  const auto task = [&](const cpu::Piece& p) {
    const auto i = size_t(p.tensor);
    return SgdTask{p.strip,
                   params[i].mutable_data_ptr<char>() + p.element * size,
                   grads[i].const_data_ptr<char>() + p.element * size,
                   buffers[i].mutable_data_ptr<char>() + p.element * state_size,
                   lr,
                   1 - rho,
                   grad_factor,
                   lr * strengths[i],
                   p.size,
                   prox};
  };
  const Kernels& kernels = cpu::kernel_set().groups;
  cpu::Work work;
  work.sum_size = state_size;
  work.whole = [&](const cpu::Piece& p, void* scratch) { kernels.sgd[dtype](task(p), scratch); };
  work.sums = [&](const cpu::Piece& p, void* sums) { kernels.sgd_sums[dtype](task(p), sums); };
  work.join = [&](const cpu::Piece& p, void* sums, int64_t parts) { kernels.sgd_join[dtype](task(p), sums, parts); };
  work.apply = [&](const cpu::Piece& p, const void* factors) { kernels.sgd_apply[dtype](task(p), factors); };
  cpu::run(segments, work);
}

}  // namespace

std::vector<std::int64_t> prox_sgd_step_(const Tensors& params, const Tensors& grads, const Tensors& buffers,
                                         const Tensors& steps, const std::vector<std::int64_t>& layouts,
                                         const std::string& prox_name, const std::vector<double>& strengths, double lr,
                                         const std::optional<Tensor>& lr_tensor, double rho, bool maximize,
                                         double grad_scale, const std::optional<Tensor>& grad_scale_tensor,
                                         const std::optional<Tensor>& found_inf) {
  const Prox prox = prox_from_name(kSgdStep, prox_name);
  check_tensors(kSgdStep, "params", params);
  const auto segments = make_segments(kSgdStep, params, layouts);
  if (params.empty()) return {};
  const auto dtype = params[0].scalar_type();
  check_state(kSgdStep, "grads", grads, params, dtype);
  check_state(kSgdStep, "buffers", buffers, params, compute_type(dtype));
  check_clocks(kSgdStep, "steps", steps, params, steps.empty() ? params[0] : steps[0], kFloat);
  check_number(kSgdStep, "lr", lr_tensor, params[0], kDouble);
  check_number(kSgdStep, "grad_scale", grad_scale_tensor, params[0], kFloat);
  check_number(kSgdStep, "found_inf", found_inf, params[0], kFloat);
  CHECK_VALUE(strengths.size() == params.size(), kSgdStep, ": strengths: expected one for each of ", params.size(),
              " parameters, got ", strengths.size());
  CHECK_VALUE(rho > 0 && rho <= 1, kSgdStep, ": rho: expected 0 < rho <= 1, got ", rho);
  for (size_t i = 0; i < params.size(); ++i) {
    CHECK_VALUE(strengths[i] >= 0, kSgdStep, ": strengths[", i, "]: expected a number >= 0, got ", strengths[i]);
    CHECK_VALUE(same_memory_order(buffers[i], params[i]), kSgdStep, ": buffers[", i,
                "]: expected the strides of the parameter, ", params[i].strides(), ", got ", buffers[i].strides());
  }
  check_device(kSgdStep, "params", params[0]);
  if (const auto others = in_another_order(grads, params); !others.empty()) return others;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(params[0])) {
    CHECK_VALUE(grad_scale == 1, kSgdStep, ": grad_scale: expected a tensor on CUDA, got ", grad_scale);
    cuda::prox_sgd_step_(params, grads, buffers, steps, segments, prox, strengths, lr, lr_tensor, rho, maximize,
                         grad_scale_tensor, found_inf);
    return {};
  }
#endif
  CHECK_VALUE(!lr_tensor && !grad_scale_tensor && !found_inf, kSgdStep, ": expected numbers on the CPU, got tensors");
  prox_sgd_step_cpu(params, grads, buffers, steps, segments, prox, strengths, lr, rho,
                    (maximize ? -rho : rho) / grad_scale);
  return {};
}

}  // namespace sparse_accel
