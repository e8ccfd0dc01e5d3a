#include "common.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

namespace sparse_accel {

Prox prox_from_name(const char* op, const std::string& name) {
  if (name == "soft") return Prox::soft;
  if (name == "hard") return Prox::hard;
  TORCH_CHECK_VALUE(false, op, ": prox: expected 'soft' or 'hard', got '", name, "'");
}

Score score_from_name(const char* op, const std::string& name) {
  if (name == "l2") return Score::l2;
  if (name == "l2sq") return Score::l2sq;
  if (name == "l1") return Score::l1;
  if (name == "sum") return Score::sum;
  if (name == "amax") return Score::amax;
  TORCH_CHECK_VALUE(false, op, ": kind: expected 'l2', 'l2sq', 'l1', 'sum' or 'amax', got '", name, "'");
}

int dtype_index(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return 0;
    case at::kDouble:
      return 1;
    case at::kBFloat16:
      return 2;
    case at::kHalf:
      return 3;
    default:
      TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", dtype);
  }
}

at::Tensor make_empty(at::IntArrayRef sizes, const at::TensorOptions& options) { return at::empty(sizes, options); }
at::Tensor make_zeros(at::IntArrayRef sizes, const at::TensorOptions& options) { return at::zeros(sizes, options); }
at::Tensor make_like(const at::Tensor& tensor, at::ScalarType dtype) {
  return at::empty_like(tensor, tensor.options().dtype(dtype));
}

void check_tensors(const char* op, const char* name, const std::vector<at::Tensor>& tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& t = tensors[i];
    const auto dtype = t.scalar_type();
    TORCH_CHECK_TYPE(t.layout() == at::kStrided, op, ": ", name, "[", i, "]: expected a dense tensor, got ",
                     t.layout());
    TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf, op,
                     ": ", name, "[", i, "]: expected float32, float64, bfloat16 or float16, got ", dtype);
    TORCH_CHECK_TYPE(dtype == tensors[0].scalar_type(), op, ": ", name, "[", i, "]: expected the dtype of ", name,
                     "[0], ", tensors[0].scalar_type(), ", got ", dtype);
    TORCH_CHECK_VALUE(t.device() == tensors[0].device(), op, ": ", name, "[", i, "]: expected the device of ", name,
                      "[0], ", tensors[0].device(), ", got ", t.device());
  }
}

void check_state(const char* op, const char* name, const std::vector<at::Tensor>& state,
                 const std::vector<at::Tensor>& params, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(state.size() == params.size(), op, ": ", name, ": expected ", params.size(),
                    " tensors, one per parameter, got ", state.size());
  for (size_t i = 0; i < state.size(); ++i) {
    TORCH_CHECK_TYPE(state[i].scalar_type() == dtype, op, ": ", name, "[", i, "]: expected ", dtype, ", got ",
                     state[i].scalar_type());
    TORCH_CHECK_VALUE(state[i].device() == params[i].device(), op, ": ", name, "[", i, "]: expected device ",
                      params[i].device(), ", got ", state[i].device());
    TORCH_CHECK_VALUE(state[i].sizes() == params[i].sizes(), op, ": ", name, "[", i, "]: expected shape ",
                      params[i].sizes(), ", got ", state[i].sizes());
  }
}

void check_clocks(const char* op, const char* name, const std::vector<at::Tensor>& clocks,
                  const std::vector<at::Tensor>& params, at::Device device, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(clocks.size() == params.size(), op, ": ", name, ": expected ", params.size(),
                    " tensors, one per parameter, got ", clocks.size());
  for (size_t i = 0; i < clocks.size(); ++i) {
    const at::Device own = clocks[i].device();
    TORCH_CHECK_VALUE(own == device && (own.is_cpu() || own == params[i].device()), op, ": ", name, "[", i,
                      "]: expected all clocks on the CPU or all on ", params[i].device(), ", as the parameters, got ",
                      own);
    TORCH_CHECK_VALUE(clocks[i].numel() == 1 && clocks[i].scalar_type() == dtype, op, ": ", name, "[", i,
                      "]: expected one ", dtype, " element, got shape ", clocks[i].sizes(), " of ",
                      clocks[i].scalar_type());
  }
}

void check_one_element(const char* op, const char* name, const std::optional<at::Tensor>& tensor) {
  TORCH_CHECK_VALUE(!tensor || tensor->numel() == 1, op, ": ", name, ": expected one element, got shape ",
                    tensor ? tensor->sizes() : at::IntArrayRef());
}

std::vector<at::Tensor> in_memory_order(const std::vector<at::Tensor>& grads, const std::vector<at::Tensor>& params) {
  std::vector<at::Tensor> out = grads;
  for (size_t i = 0; i < out.size(); ++i) {
    if (!same_memory_order(grads[i], params[i])) {
      out[i] = grads[i].new_empty_strided(params[i].sizes(), params[i].strides()).copy_(grads[i]);
    }
  }
  return out;
}

bool same_memory_order(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return false;
  if (a.numel() == 0 || a.strides() == b.strides()) return true;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

std::vector<Segment> make_segments(const char* op, const std::vector<at::Tensor>& tensors,
                                   const std::vector<int64_t>& layouts) {
  TORCH_CHECK_VALUE(layouts.size() == 4 * tensors.size(), op, ": layouts: expected one for each of ", tensors.size(),
                    " tensors, got ", layouts.size() / 4);
  std::vector<Segment> segments;
  segments.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t outer = layouts[4 * i], groups = layouts[4 * i + 1], inner = layouts[4 * i + 2],
                  blocks = layouts[4 * i + 3];
    const auto& t = tensors[i];
    TORCH_CHECK_VALUE(
        outer >= 0 && groups >= 0 && inner >= 0 && blocks >= 0 && blocks * outer * groups * inner == t.numel(), op,
        ": layouts[", i, "]: expected blocks * outer * groups * inner = ", t.numel(), ", got ", blocks, " * ", outer,
        " * ", groups, " * ", inner);
    TORCH_CHECK_VALUE(t.is_non_overlapping_and_dense(), op, ": tensors[", i,
                      "]: expected memory without gaps or overlaps, got shape ", t.sizes(), " with strides ",
                      t.strides());
    for (int64_t b = 0; b < blocks; ++b) {
      segments.push_back(
          Segment{static_cast<int64_t>(i), b * outer * groups * inner, b * groups, {outer, groups, inner}});
    }
  }
  return segments;
}

}  // namespace sparse_accel
