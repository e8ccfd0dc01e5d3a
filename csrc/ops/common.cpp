#include "common.h"

namespace sparse_accel {

Prox prox_from_name(const char* op, const std::string& name) {
  if (name == "soft") return Prox::soft;
  if (name == "hard") return Prox::hard;
  CHECK_VALUE(false, op, ": prox: expected 'soft' or 'hard', got '", name, "'");
}

Score score_from_name(const char* op, const std::string& name) {
  if (name == "l2") return Score::l2;
  if (name == "l2sq") return Score::l2sq;
  if (name == "l1") return Score::l1;
  if (name == "sum") return Score::sum;
  if (name == "amax") return Score::amax;
  CHECK_VALUE(false, op, ": kind: expected 'l2', 'l2sq', 'l1', 'sum' or 'amax', got '", name, "'");
}

int dtype_index(ScalarType dtype) {
  switch (dtype) {
    case kFloat:
      return 0;
    case kDouble:
      return 1;
    case kBFloat16:
      return 2;
    case kHalf:
      return 3;
    default:
      CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", dtype);
  }
}

void check_tensors(const char* op, const char* name, const Tensors& tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& t = tensors[i];
    const auto dtype = t.scalar_type();
    CHECK_TYPE(t.is_strided(), op, ": ", name, "[", i, "]: expected a dense tensor, got ", t.layout_name());
    CHECK_TYPE(dtype == kFloat || dtype == kDouble || dtype == kBFloat16 || dtype == kHalf, op, ": ", name, "[", i,
               "]: expected float32, float64, bfloat16 or float16, got ", dtype);
    CHECK_TYPE(dtype == tensors[0].scalar_type(), op, ": ", name, "[", i, "]: expected the dtype of ", name, "[0], ",
               tensors[0].scalar_type(), ", got ", dtype);
    CHECK_VALUE(same_device(t, tensors[0]), op, ": ", name, "[", i, "]: expected the device of ", name, "[0], ",
                DeviceOf{tensors[0]}, ", got ", DeviceOf{t});
  }
}

void check_state(const char* op, const char* name, const Tensors& state, const Tensors& params, ScalarType dtype) {
  CHECK_VALUE(state.size() == params.size(), op, ": ", name, ": expected ", params.size(),
              " tensors, one per parameter, got ", state.size());
  for (size_t i = 0; i < state.size(); ++i) {
    CHECK_TYPE(state[i].scalar_type() == dtype, op, ": ", name, "[", i, "]: expected ", dtype, ", got ",
               state[i].scalar_type());
    CHECK_VALUE(same_device(state[i], params[i]), op, ": ", name, "[", i, "]: expected device ", DeviceOf{params[i]},
                ", got ", DeviceOf{state[i]});
    CHECK_VALUE(equal(state[i].sizes(), params[i].sizes()), op, ": ", name, "[", i, "]: expected shape ",
                params[i].sizes(), ", got ", state[i].sizes());
  }
}

void check_clocks(const char* op, const char* name, const Tensors& clocks, const Tensors& params, const Tensor& first,
                  ScalarType dtype) {
  CHECK_VALUE(clocks.size() == params.size(), op, ": ", name, ": expected ", params.size(),
              " tensors, one per parameter, got ", clocks.size());
  for (size_t i = 0; i < clocks.size(); ++i) {
    const Tensor& own = clocks[i];
    CHECK_VALUE(same_device(own, first) && (own.is_cpu() || same_device(own, params[i])), op, ": ", name, "[", i,
                "]: expected all clocks on the CPU or all on ", DeviceOf{params[i]}, ", as the parameters, got ",
                DeviceOf{own});
    CHECK_VALUE(own.numel() == 1 && own.scalar_type() == dtype, op, ": ", name, "[", i, "]: expected one ", dtype,
                " element, got shape ", own.sizes(), " of ", own.scalar_type());
  }
}

void check_number(const char* op, const char* name, const std::optional<Tensor>& number, const Tensor& param,
                  ScalarType dtype) {
  if (!number) return;
  CHECK_VALUE(number->numel() == 1 && number->scalar_type() == dtype && same_device(*number, param), op, ": ", name,
              ": expected one ", dtype, " element on ", DeviceOf{param}, ", got shape ", number->sizes(), " of ",
              number->scalar_type(), " on ", DeviceOf{*number});
}

void check_array(const char* op, const char* name, const Tensor& t, const Tensor& like, ScalarType dtype, Sizes sizes) {
  CHECK_TYPE(t.scalar_type() == dtype, op, ": ", name, ": expected ", dtype, ", got ", t.scalar_type());
  CHECK_VALUE(same_device(t, like), op, ": ", name, ": expected device ", DeviceOf{like}, ", got ", DeviceOf{t});
  CHECK_VALUE(equal(t.sizes(), sizes) && t.is_contiguous(), op, ": ", name, ": expected a contiguous tensor of shape ",
              sizes, ", got shape ", t.sizes(), " with strides ", t.strides());
}

void check_device(const char* op, const char* name, const Tensor& tensor) {
  CHECK_RUN(on_cuda(tensor) || tensor.is_cpu(), op, ": ", name,
            ": expected CPU or (in a CUDA build) CUDA tensors, got ", DeviceOf{tensor});
}

std::vector<std::int64_t> in_another_order(const Tensors& grads, const Tensors& params) {
  std::vector<std::int64_t> found;
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!same_memory_order(grads[i], params[i])) found.push_back(std::int64_t(i));
  }
  return found;
}

bool same_memory_order(const Tensor& a, const Tensor& b) {
  if (!equal(a.sizes(), b.sizes())) return false;
  if (a.numel() == 0) return true;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

std::vector<Segment> make_segments(const char* op, const Tensors& tensors, const std::vector<std::int64_t>& layouts) {
  CHECK_VALUE(layouts.size() == 4 * tensors.size(), op, ": layouts: expected one for each of ", tensors.size(),
              " tensors, got ", layouts.size() / 4);
  std::vector<Segment> segments;
  segments.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t outer = layouts[4 * i], groups = layouts[4 * i + 1], inner = layouts[4 * i + 2],
                  blocks = layouts[4 * i + 3];
    const auto& t = tensors[i];
    CHECK_VALUE(outer >= 0 && groups >= 0 && inner >= 0 && blocks >= 0 && blocks * outer * groups * inner == t.numel(),
                op, ": layouts[", i, "]: expected blocks * outer * groups * inner = ", t.numel(), ", got ", blocks,
                " * ", outer, " * ", groups, " * ", inner);
    CHECK_VALUE(t.is_non_overlapping_and_dense(), op, ": tensors[", i,
                "]: expected memory without gaps or overlaps, got shape ", t.sizes(), " with strides ", t.strides());
    for (int64_t b = 0; b < blocks; ++b) {
      segments.push_back(
          Segment{static_cast<int64_t>(i), b * outer * groups * inner, b * groups, {outer, groups, inner}});
    }
  }
  return segments;
}

void check_layouts(const std::string& op, const Tensors& tensors, const std::vector<std::int64_t>& layouts) {
  make_segments(op.c_str(), tensors, layouts);
}

}  // namespace sparse_accel
