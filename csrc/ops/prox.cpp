#include "prox.h"

#include <ATen/Functions.h>

#include "../cpu/schedule.h"
#include "common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kOp = "prox_";

void prox_cpu(const std::vector<at::Tensor>& tensors, const std::vector<Segment>& segments, Prox prox,
              const std::vector<double>& thresholds, const at::Tensor& values) {
  const int dtype = cpu::dtype_index(tensors[0].scalar_type());
  const auto pieces = cpu::cut(segments);
  const auto element_size = static_cast<int64_t>(tensors[0].element_size());
  std::vector<char*> data;
  for (const auto& t : tensors) data.push_back(static_cast<char*>(t.mutable_data_ptr()));
  std::vector<double> piece_values(values.defined() ? pieces.size() : 0);
  cpu::run(pieces, [&](int64_t i, void* scratch) {
    const cpu::Piece& p = pieces[i];
    cpu::kernels().prox[dtype](ProxTask{p.strip, data[p.tensor] + p.element * element_size, thresholds[p.tensor],
                                        p.size, values.defined() ? &piece_values[i] : nullptr, prox},
                               scratch);
  });
  if (!values.defined()) return;
  auto* out = values.mutable_data_ptr<double>();
  for (size_t i = 0; i < pieces.size(); ++i) out[pieces[i].tensor] += piece_values[i];
}

}  // namespace

at::Tensor prox_(const std::vector<at::Tensor>& tensors, const std::vector<int64_t>& layouts,
                 const std::string& prox_name, const std::vector<double>& thresholds, bool with_value) {
  const Prox prox = prox_from_name(kOp, prox_name);
  check_tensors(kOp, "tensors", tensors);
  const auto segments = make_segments(kOp, tensors, layouts);
  TORCH_CHECK_VALUE(thresholds.size() == tensors.size(), kOp, ": thresholds: expected one for each of ",
                    tensors.size(), " tensors, got ", thresholds.size());
  for (size_t i = 0; i < thresholds.size(); ++i) {
    TORCH_CHECK_VALUE(thresholds[i] >= 0, kOp, ": thresholds[", i, "]: expected a number >= 0, got ", thresholds[i]);
  }
  const auto device = tensors.empty() ? at::Device(at::kCPU) : tensors[0].device();
  const auto options = at::TensorOptions().dtype(at::kDouble).device(device);
  if (tensors.empty()) return at::empty({0}, options);
  at::Tensor values;
  if (with_value) values = at::zeros({static_cast<int64_t>(tensors.size())}, options);
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(tensors[0])) {
    cuda::prox_(tensors, segments, prox, thresholds, values);
    return with_value ? values : at::empty({0}, options);
  }
#endif
  TORCH_CHECK(tensors[0].is_cpu(), kOp, ": tensors: expected CPU or (in a CUDA build) CUDA tensors, got ",
              tensors[0].device());
  prox_cpu(tensors, segments, prox, thresholds, values);
  return with_value ? values : at::empty({0}, options);
}

}  // namespace sparse_accel
