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

void rmda_step_cpu(const Tensors& params, const Tensors& grads, const Tensors& points, const Tensors& anchors,
                   const Tensors& steps, const Tensors& alphas, const std::vector<Segment>& segments, Prox prox,
                   const std::vector<double>& strengths, double lr, double momentum, bool maximize, double grad_scale) {
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

std::vector<std::int64_t> rmda_step_(const Tensors& params, const Tensors& grads, const Tensors& points,
                                     const Tensors& anchors, const Tensors& steps, const Tensors& alphas,
                                     const std::vector<std::int64_t>& layouts, const std::string& prox_name,
                                     const std::vector<double>& strengths, double lr,
                                     const std::optional<Tensor>& lr_tensor, double momentum, bool maximize,
                                     double grad_scale, const std::optional<Tensor>& grad_scale_tensor,
                                     const std::optional<Tensor>& found_inf) {
  const Prox prox = prox_from_name(kRmdaStep, prox_name);
  check_tensors(kRmdaStep, "params", params);
  const auto segments = make_segments(kRmdaStep, params, layouts);
  if (params.empty()) return {};
  const auto dtype = params[0].scalar_type();
  check_state(kRmdaStep, "grads", grads, params, dtype);
  check_state(kRmdaStep, "points", points, params, compute_type(dtype));
  check_state(kRmdaStep, "anchors", anchors, params, compute_type(dtype));
  const Tensor& clock = steps.empty() ? params[0] : steps[0];
  check_clocks(kRmdaStep, "steps", steps, params, clock, kFloat);
  check_clocks(kRmdaStep, "alphas", alphas, params, clock, kDouble);
  check_number(kRmdaStep, "lr", lr_tensor, params[0], kDouble);
  check_number(kRmdaStep, "grad_scale", grad_scale_tensor, params[0], kFloat);
  check_number(kRmdaStep, "found_inf", found_inf, params[0], kFloat);
  CHECK_VALUE(strengths.size() == params.size(), kRmdaStep, ": strengths: expected one for each of ", params.size(),
              " parameters, got ", strengths.size());
  CHECK_VALUE(momentum > 0 && momentum <= 1, kRmdaStep, ": momentum: expected 0 < momentum <= 1, got ", momentum);
  for (size_t i = 0; i < params.size(); ++i) {
    CHECK_VALUE(strengths[i] >= 0, kRmdaStep, ": strengths[", i, "]: expected a number >= 0, got ", strengths[i]);
    CHECK_VALUE(same_memory_order(points[i], params[i]) && same_memory_order(anchors[i], params[i]), kRmdaStep,
                ": points[", i, "], anchors[", i, "]: expected the strides of the parameter, ", params[i].strides(),
                ", got ", points[i].strides(), " and ", anchors[i].strides());
  }
  check_device(kRmdaStep, "params", params[0]);
  if (const auto others = in_another_order(grads, params); !others.empty()) return others;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(params[0])) {
    CHECK_VALUE(grad_scale == 1, kRmdaStep, ": grad_scale: expected a tensor on CUDA, got ", grad_scale);
    cuda::rmda_step_(params, grads, points, anchors, steps, alphas, segments, prox, strengths, lr, lr_tensor, momentum,
                     maximize, grad_scale_tensor, found_inf);
    return {};
  }
#endif
  CHECK_VALUE(!lr_tensor && !grad_scale_tensor && !found_inf, kRmdaStep, ": expected numbers on the CPU, got tensors");
  rmda_step_cpu(params, grads, points, anchors, steps, alphas, segments, prox, strengths, lr, momentum, maximize,
                grad_scale);
  return {};
}

}  // namespace sparse_accel
