#include "prox.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "../cpu/isa/kernel_set.h"
#include "../cpu/schedule.h"
#include "common.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kProx = "prox_";

void prox_cpu(const Tensors& tensors, const std::vector<Segment>& segments, Prox prox,
              const std::vector<double>& thresholds, const std::optional<Tensor>& values) {
  const int dtype = dtype_index(tensors[0].scalar_type());
  const auto element_size = static_cast<int64_t>(tensors[0].element_size());
  std::vector<char*> data;
  for (const auto& t : tensors) data.push_back(static_cast<char*>(t.mutable_data_ptr()));
  const Kernels& kernels = cpu::kernel_set().groups;
  const auto task = [&](const cpu::Piece& p) {
    return ProxTask{p.strip, data[p.tensor] + p.element * element_size, thresholds[p.tensor], p.size, prox};
  };
  // Values of the pieces, to be added up in an order that does not depend on the threads.
  struct Value {
    int64_t tensor, element;
    double value;
  };
  std::mutex mutex;
  std::vector<Value> found;
  const auto note = [&](const cpu::Piece& p, double value) {
    if (!values) return;
    const std::lock_guard<std::mutex> lock(mutex);
    found.push_back(Value{p.tensor, p.element, value});
  };

  cpu::Work work;
  work.sum_size = tensors[0].scalar_type() == kDouble ? sizeof(double) : sizeof(float);
  work.whole = [&](const cpu::Piece& p, void* scratch) { note(p, kernels.prox[dtype](task(p), scratch)); };
  work.sums = [&](const cpu::Piece& p, void* sums) { kernels.prox_sums[dtype](task(p), sums); };
  work.join = [&](const cpu::Piece& p, void* sums, int64_t parts) {
    note(p, kernels.prox_join[dtype](task(p), sums, parts));
  };
  work.apply = [&](const cpu::Piece& p, const void* factors) { kernels.prox_apply[dtype](task(p), factors); };
  cpu::run(segments, work);

  if (!values) return;
  std::sort(found.begin(), found.end(), [](const Value& a, const Value& b) {
    return std::pair(a.tensor, a.element) < std::pair(b.tensor, b.element);
  });
  auto* out = values->mutable_data_ptr<double>();
  for (const Value& v : found) out[v.tensor] += v.value;
}

}  // namespace

void prox_(const Tensors& tensors, const std::vector<std::int64_t>& layouts, const std::string& prox_name,
           const std::vector<double>& thresholds, const std::optional<Tensor>& values) {
  const Prox prox = prox_from_name(kProx, prox_name);
  check_tensors(kProx, "tensors", tensors);
  const auto segments = make_segments(kProx, tensors, layouts);
  CHECK_VALUE(thresholds.size() == tensors.size(), kProx, ": thresholds: expected one for each of ", tensors.size(),
              " tensors, got ", thresholds.size());
  for (size_t i = 0; i < thresholds.size(); ++i) {
    CHECK_VALUE(thresholds[i] >= 0, kProx, ": thresholds[", i, "]: expected a number >= 0, got ", thresholds[i]);
  }
  if (tensors.empty()) return;
  check_device(kProx, "tensors", tensors[0]);
  if (values) check_array(kProx, "values", *values, tensors[0], kDouble, {std::int64_t(tensors.size())});
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(tensors[0])) return cuda::prox_(tensors, segments, prox, thresholds, values);
#endif
  prox_cpu(tensors, segments, prox, thresholds, values);
}

}  // namespace sparse_accel
