#include "topk_threshold.h"

#include <ATen/MemoryOverlap.h>

#include "../cpu/topk_threshold/topk_threshold_run.h"
#include "common.h"
#include "group_score.h"
#include "group_topk.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/topk_threshold_ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kTopk = "topk_threshold_";

bool is_supported(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

void check_tensor(const char* name, const at::Tensor& t, const at::Tensor& x) {
  TORCH_CHECK_TYPE(t.layout() == at::kStrided, kTopk, ": ", name, ": expected a dense tensor, got ", t.layout());
  TORCH_CHECK_TYPE(is_supported(t.scalar_type()), kTopk, ": ", name,
                   ": expected float32, float64, bfloat16 or float16, got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.device() == x.device(), kTopk, ": ", name, ": expected the device of x, ", x.device(), ", got ",
                    t.device());
}

// The call's arguments, checked.
struct Call {
  const at::Tensor& x;
  const std::optional<at::Tensor>& scores;
  const std::vector<int64_t>& k;
  const std::string& by;
  const std::vector<int64_t>& layout;  // outer, groups, inner, blocks
  const std::optional<at::Tensor>& scale;

  bool in_blocks() const { return k.size() == 2; }
  bool of_groups() const { return !in_blocks() && (by == "group" || by == "within"); }
  int64_t num_groups() const { return layout[1] * layout[3]; }
  int64_t rows() const { return !in_blocks() && by == "row" && x.dim() > 1 ? x.size(0) : 1; }
  int64_t columns() const { return x.dim() > 0 ? x.size(-1) : 1; }
};

// How many elements (or groups) there are to choose from, each time.
int64_t choices(const Call& call) {
  if (call.by == "group") return call.num_groups();
  if (call.by == "within") return call.layout[0] * call.layout[2];
  if (call.rows() == 0) return call.x.numel() ? 1 : c10::multiply_integers(call.x.sizes().slice(1));
  return call.x.numel() / call.rows();
}

void check_k(const Call& call) {
  if (call.in_blocks()) {
    TORCH_CHECK_VALUE(1 <= call.k[0] && call.k[0] < call.k[1] && call.k[1] <= 32, kTopk,
                      ": k: expected (n, m) with 1 <= n < m <= 32, got (", call.k[0], ", ", call.k[1], ")");
    return;
  }
  TORCH_CHECK_VALUE(call.k.size() == 1, kTopk, ": k: expected a number or a pair (n, m), got ", call.k.size(),
                    " numbers");
  const int64_t most = choices(call);
  const char* const of = call.by == "group" ? "groups" : "elements";
  const char* const where = call.by == "row" ? " of a row" : call.by == "within" ? " of a group" : "";
  TORCH_CHECK_VALUE(0 <= call.k[0] && call.k[0] <= most, kTopk, ": k: expected 0 <= k <= ", most, ", the number of ",
                    of, where, ", got ", call.k[0]);
}

void check_call(const Call& call) {
  const auto& [x, scores, k, by, layout, scale] = call;
  check_tensor("x", x, x);
  TORCH_CHECK_VALUE(at::has_internal_overlap(x) != at::MemOverlap::Yes, kTopk,
                    ": x: expected elements that do not share memory, got shape ", x.sizes(), " with strides ",
                    x.strides());
  TORCH_CHECK_VALUE(by == "tensor" || by == "row" || by == "group" || by == "within", kTopk,
                    ": by: expected 'tensor', 'row', 'group' or 'within', got '", by, "'");
  if (call.of_groups()) make_segments(kTopk, {x}, layout);  // checks the layout
  if (scores.has_value()) {
    check_tensor("scores", *scores, x);
    const bool of_groups =
        call.of_groups() && by == "group" && scores->dim() == 1 && scores->numel() == call.num_groups();
    TORCH_CHECK_VALUE(of_groups || scores->sizes() == x.sizes(), kTopk, ": scores: expected the shape of x, ",
                      x.sizes(), ", got ", scores->sizes());
    TORCH_CHECK_VALUE(!scale.has_value(), kTopk, ": scale: expected None where scores are given");
  }
  if (scale.has_value()) {
    check_tensor("scale", *scale, x);
    TORCH_CHECK_VALUE(scale->dim() == 1 && x.dim() > 0 && scale->numel() == x.size(-1), kTopk,
                      ": scale: expected one number for each of the ", call.columns(),
                      " columns (last dimension) of x, got shape ", scale->sizes());
  }
  check_k(call);
}

// Large masks would only push out of the caches what is needed there.
bool passes_cache(const at::Tensor& mask) {
  constexpr int64_t kLarge = 4 << 20, kLine = 64;
  return mask.numel() >= kLarge && reinterpret_cast<uintptr_t>(mask.const_data_ptr()) % kLine == 0;
}

// On the CPU; x, scores and mask in the same memory order, scale [columns] in the compute type or undefined.
cpu::TopkTask make_task(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& scale, const at::Tensor& mask,
                        int64_t columns) {
  const at::Tensor& source = scores.defined() ? scores : x;
  return {x.mutable_data_ptr(),
          static_cast<int64_t>(x.element_size()),
          mask.mutable_data_ptr<bool>(),
          !scores.defined(),
          dtype_index(source.scalar_type()),
          source.const_data_ptr(),
          scale.defined() ? scale.const_data_ptr() : nullptr,
          columns,
          passes_cache(mask)};
}

// x and mask contiguous; scores contiguous or undefined; scale [columns] in the compute type or undefined.
void run_topk(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& scale, const at::Tensor& mask,
              int64_t rows, const std::vector<int64_t>& k) {
  if (x.numel() == 0) return;
  const int64_t columns = x.dim() > 0 ? x.size(-1) : 1;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(x)) {
    cuda::topk_threshold(x, scores, scale, mask, rows, k);
    return;
  }
#endif
  const cpu::TopkTask task = make_task(x, scores, scale, mask, columns);
  if (k.size() == 2) {
    cpu::topk_blocks(task, x.numel() / columns, columns, static_cast<int>(k[0]), static_cast<int>(k[1]));
  } else {
    cpu::topk_rows(task, rows, x.numel() / rows, k[0]);
  }
}

// Scores that the kernels may read while they write x: their own memory, or that of x itself.
at::Tensor readable(const at::Tensor& scores, const at::Tensor& x, const at::Tensor& source) {
  const at::Tensor out = scores.contiguous();
  const bool own = !out.is_alias_of(x) ||
                   (out.const_data_ptr() == x.const_data_ptr() && out.dtype() == x.dtype() && x.is_same(source));
  return own ? out : out.clone();
}

at::Tensor topk_elements(const Call& call) {
  const at::Tensor x = call.x.contiguous();
  at::Tensor scores, scale;
  if (call.scores.has_value()) scores = readable(*call.scores, x, call.x);
  if (call.scale.has_value()) scale = call.scale->to(compute_type(x.scalar_type())).contiguous();
  at::Tensor mask = make_empty(x.sizes(), x.options().dtype(at::kBool));
  run_topk(x, scores, scale, mask, call.rows(), call.k);
  if (x.is_same(call.x)) return mask;
  call.x.copy_(x);
  return make_like(call.x, at::kBool).copy_(mask);
}

// Scores of all elements, in the memory order of x.
at::Tensor element_scores(const Call& call) {
  if (call.scores.has_value()) {
    if (same_memory_order(*call.scores, call.x)) return *call.scores;
    return make_like(call.x, call.scores->scalar_type()).copy_(*call.scores);
  }
  if (!call.scale.has_value()) return {};
  return call.x.to(compute_type(call.x.scalar_type())).abs().mul_(*call.scale);
}

// The same but for their signs, which norms do not see.
at::Tensor signed_scores(const Call& call) {
  if (call.scores.has_value()) return element_scores(call);
  if (!call.scale.has_value()) return call.x;
  const at::ScalarType type = compute_type(call.x.scalar_type());
  return call.x.to(type).mul(call.scale->to(type));
}

// [blocks, outer, groups, inner] of a dense tensor's memory.
at::Tensor grouped(const at::Tensor& t, const std::vector<int64_t>& l) {
  return t.as_strided({l[3], l[0], l[1], l[2]}, {l[0] * l[1] * l[2], l[1] * l[2], l[2], 1});
}

// A factor for each element of a row of memory, where every row has the same: the scale, over and over.
at::Tensor row_scale(const Call& call) {
  const int64_t row = call.layout[1] * call.layout[2];
  if (!call.scale.has_value() || !call.x.is_contiguous() || row % call.columns() != 0) return {};
  return call.scale->to(compute_type(call.x.scalar_type())).repeat({row / call.columns()});
}

at::Tensor topk_apart(const Call& call) {
  const auto& l = call.layout;
  at::Tensor mask = make_like(call.x, at::kBool);
  if (call.x.numel() == 0) return mask;
  const at::Tensor scale = row_scale(call), scores = scale.defined() ? at::Tensor() : element_scores(call);
  cpu::topk_within(make_task(call.x, scores, scale, mask, l[1] * l[2]), l[3], l[0], l[1], l[2], call.k[0]);
  return mask;
}

at::Tensor topk_within(const Call& call) {
  const auto& l = call.layout;
  if (call.x.is_cpu() && l[0] > 1 && l[1] > 1) return topk_apart(call);
  const auto rows_of = [&](const at::Tensor& t) { return grouped(t, call.layout).permute({0, 2, 1, 3}); };
  at::Tensor mask = make_like(call.x, at::kBool);
  const at::Tensor element = element_scores(call), view = rows_of(call.x), mask_view = rows_of(mask);
  const at::Tensor x = view.contiguous(), row_mask = mask_view.contiguous();
  run_topk(x, element.defined() ? readable(rows_of(element), x, view) : element, {}, row_mask, call.num_groups(),
           call.k);
  if (!x.is_alias_of(view)) view.copy_(x);
  if (!row_mask.is_alias_of(mask_view)) mask_view.copy_(row_mask);
  return mask;
}

at::Tensor topk_groups(const Call& call) {
  const auto& l = call.layout;
  at::Tensor scores;
  if (call.scores.has_value() && call.scores->dim() == 1 && call.scores->numel() == call.num_groups()) {
    scores = call.scores->contiguous();
  } else {
    scores = group_score({signed_scores(call)}, l, "l2", false)[0];
  }
  TORCH_CHECK_VALUE(!scores.isnan().any().item<bool>(), kTopk,
                    ": scores: expected numbers that can be ordered, got NaN");
  const at::Tensor keep = group_topk({scores}, call.k[0])[0];
  at::Tensor mask = make_like(call.x, at::kBool);
  if (call.x.numel() == 0) return mask;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(call.x)) {
    cuda::topk_groups(call.x, mask, keep, l);
    return mask;
  }
#endif
  cpu::topk_groups(call.x.mutable_data_ptr(), static_cast<int64_t>(call.x.element_size()),
                   mask.mutable_data_ptr<bool>(), keep.const_data_ptr<bool>(), l[3], l[0], l[1], l[2]);
  return mask;
}

}  // namespace

at::Tensor topk_threshold_(const at::Tensor& x, const std::optional<at::Tensor>& scores, const std::vector<int64_t>& k,
                           const std::string& by, const std::vector<int64_t>& layout,
                           const std::optional<at::Tensor>& scale) {
  const Call call{x, scores, k, by, layout, scale};
  check_call(call);
#ifdef SPARSE_ACCEL_WITH_CUDA
  const bool known = on_cuda(x) || x.is_cpu();
#else
  const bool known = x.is_cpu();
#endif
  TORCH_CHECK(known, kTopk, ": x: expected a CPU or (in a CUDA build) CUDA tensor, got ", x.device());
  at::Tensor mask = !call.of_groups() ? topk_elements(call) : by == "group" ? topk_groups(call) : topk_within(call);
  if (!x.is_inference()) x.unsafeGetTensorImpl()->bump_version();
  return mask;
}

}  // namespace sparse_accel
