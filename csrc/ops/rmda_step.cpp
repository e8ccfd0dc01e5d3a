#include "rmda_step.h"

#include "../cpu/isa/kernel_set.h"
#include "../cpu/schedule.h"
#include "common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kRmdaStep = "rmda_step_";

void rmda_step_cpu(const std::vector<at::Tensor>& params, const std::vector<at::Tensor>& grads,
                   const std::vector<at::Tensor>& points, const std::vector<at::Tensor>& anchors,
                   const std::vector<at::Tensor>& steps, const std::vector<at::Tensor>& alphas,
                   const std::vector<Segment>& segments, Prox prox, const std::vector<double>& strengths, double lr,
                   double momentum, bool maximize, double grad_scale) {
  const int dtype = dtype_index(params[0].scalar_type());
  const auto size = static_cast<int64_t>(params[0].element_size());
  const auto state_size = static_cast<int64_t>(points[0].element_size());
  std::vector<RmdaTask> tasks(params.size());  // what the strips of one tensor share
  for (size_t i = 0; i < params.size(); ++i) {
    auto& t = steps[i].mutable_data_ptr<float>()[0];
    auto& alpha = alphas[i].mutable_data_ptr<double>()[0];
    const RmdaScalars scalars = rmda_scalars(t, alpha, lr, strengths[i]);
    tasks[i] = RmdaTask{{},
                        params[i].mutable_data_ptr(),
                        grads[i].const_data_ptr(),
                        points[i].mutable_data_ptr(),
                        anchors[i].const_data_ptr(),
                        (maximize ? -lr : lr) / grad_scale,
                        scalars.decay,
                        scalars.tau,
                        momentum,
                        0,
                        prox};
    t += 1;
    alpha = scalars.alpha;
  }
  const auto task = [&](const cpu::Piece& p) {
    RmdaTask out = tasks[p.tensor];
    out.strip = p.strip;
    out.size = p.size;
    out.param = static_cast<char*>(out.param) + p.element * size;
    out.grad = static_cast<const char*>(out.grad) + p.element * size;
    out.point = static_cast<char*>(out.point) + p.element * state_size;
    out.anchor = static_cast<const char*>(out.anchor) + p.element * state_size;
    return out;
  };
  const Kernels& kernels = cpu::kernel_set().groups;
  cpu::Work work;
  work.sum_size = state_size;
  work.whole = [&](const cpu::Piece& p, void* scratch) { kernels.rmda[dtype](task(p), scratch); };
  work.sums = [&](const cpu::Piece& p, void* sums) { kernels.rmda_sums[dtype](task(p), sums); };
  work.join = [&](const cpu::Piece& p, void* sums, int64_t parts) { kernels.rmda_join[dtype](task(p), sums, parts); };
  work.apply = [&](const cpu::Piece& p, const void* factors) { kernels.rmda_apply[dtype](task(p), factors); };
  cpu::run(segments, work);
}

}  // namespace

void rmda_step_(const std::vector<at::Tensor>& params, const std::vector<at::Tensor>& grads,
                const std::vector<at::Tensor>& points, const std::vector<at::Tensor>& anchors,
                const std::vector<at::Tensor>& steps, const std::vector<at::Tensor>& alphas,
                const std::vector<int64_t>& layouts, const std::string& prox_name, const std::vector<double>& strengths,
                double lr, const std::optional<at::Tensor>& lr_tensor, double momentum, bool maximize,
                const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf) {
  const Prox prox = prox_from_name(kRmdaStep, prox_name);
  check_tensors(kRmdaStep, "params", params);
  const auto segments = make_segments(kRmdaStep, params, layouts);
  if (params.empty()) return;
  const auto dtype = params[0].scalar_type();
  check_state(kRmdaStep, "grads", grads, params, dtype);
  check_state(kRmdaStep, "points", points, params, compute_type(dtype));
  check_state(kRmdaStep, "anchors", anchors, params, compute_type(dtype));
  const at::Device clocks = steps.empty() ? params[0].device() : steps[0].device();
  check_clocks(kRmdaStep, "steps", steps, params, clocks, at::kFloat);
  check_clocks(kRmdaStep, "alphas", alphas, params, clocks, at::kDouble);
  check_one_element(kRmdaStep, "lr", lr_tensor);
  check_one_element(kRmdaStep, "grad_scale", grad_scale);
  check_one_element(kRmdaStep, "found_inf", found_inf);
  TORCH_CHECK_VALUE(strengths.size() == params.size(), kRmdaStep, ": strengths: expected one for each of ",
                    params.size(), " parameters, got ", strengths.size());
  TORCH_CHECK_VALUE(momentum > 0 && momentum <= 1, kRmdaStep, ": momentum: expected 0 < momentum <= 1, got ", momentum);
  for (size_t i = 0; i < params.size(); ++i) {
    TORCH_CHECK_VALUE(strengths[i] >= 0, kRmdaStep, ": strengths[", i, "]: expected a number >= 0, got ", strengths[i]);
    TORCH_CHECK_VALUE(same_memory_order(points[i], params[i]) && same_memory_order(anchors[i], params[i]), kRmdaStep,
                      ": points[", i, "], anchors[", i, "]: expected the strides of the parameter, ",
                      params[i].strides(), ", got ", points[i].strides(), " and ", anchors[i].strides());
  }
  const std::vector<at::Tensor> aligned = in_memory_order(grads, params);
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(params[0])) {
    cuda::rmda_step_(params, aligned, points, anchors, steps, alphas, segments, prox, strengths, lr, lr_tensor,
                     momentum, maximize, grad_scale, found_inf);
    return;
  }
#endif
  TORCH_CHECK(params[0].is_cpu(), kRmdaStep, ": params: expected CPU or (in a CUDA build) CUDA tensors, got ",
              params[0].device());
  if (found_inf && found_inf->item<double>() != 0) return;
  rmda_step_cpu(params, aligned, points, anchors, steps, alphas, segments, prox, strengths,
                lr_tensor ? lr_tensor->item<double>() : lr, momentum, maximize,
                grad_scale ? grad_scale->item<double>() : 1.0);
}

}  // namespace sparse_accel
