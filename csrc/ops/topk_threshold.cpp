#include "topk_threshold.h"

#include <stdexcept>
#include <utility>

#include "../cpu/topk_threshold/topk_threshold_run.h"
#include "group_score.h"
#include "group_topk.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/topk_threshold_ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kTopk = "topk_threshold_";

// Large masks would only push out of the caches what is needed there.
bool passes_cache(const Tensor& mask) {
  constexpr int64_t kLarge = 4 << 20, kLine = 64;
  return mask.numel() >= kLarge && reinterpret_cast<uintptr_t>(mask.const_data_ptr()) % kLine == 0;
}

cpu::TopkTask make_task(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
                        const Tensor& mask, int64_t columns) {
  const Tensor& source = scores ? *scores : x;
  return {x.mutable_data_ptr(),
          static_cast<int64_t>(x.element_size()),
          mask.mutable_data_ptr<bool>(),
          !scores,
          dtype_index(source.scalar_type()),
          source.const_data_ptr(),
          scale ? scale->const_data_ptr() : nullptr,
          columns,
          passes_cache(mask)};
}

// x, scores and mask in the same memory, without gaps.
void check_memory(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
                  const Tensor& mask, int64_t columns) {
  check_tensors(kTopk, "x", {x});
  check_device(kTopk, "x", x);
  CHECK_VALUE(x.is_non_overlapping_and_dense(), kTopk, ": x: expected memory without gaps or overlaps, got shape ",
              x.sizes(), " with strides ", x.strides());
  const auto like_x = [&](const char* name, const Tensor& t) {
    CHECK_VALUE(same_memory_order(t, x) && same_device(t, x), kTopk, ": ", name, ": expected shape, strides and device",
                " of x, ", x.sizes(), " ", x.strides(), ", got ", t.sizes(), " ", t.strides());
  };
  like_x("mask", mask);
  CHECK_TYPE(mask.scalar_type() == kBool, kTopk, ": mask: expected bool, got ", mask.scalar_type());
  if (scores) {
    check_tensors(kTopk, "scores", {*scores});
    like_x("scores", *scores);
  }
  if (scale) check_array(kTopk, "scale", *scale, x, compute_type(x.scalar_type()), {columns});
}

// A contiguous tensor of a floating dtype where the kernels are.
bool is_readable(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  const bool floating = type == kFloat || type == kDouble || type == kBFloat16 || type == kHalf;
  return t.is_dense() && floating && (t.is_cpu() || on_cuda(t)) && t.is_contiguous();
}

bool share_memory(const Tensor& a, const Tensor& b) {
  const auto range = [](const Tensor& t) {
    const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
    return std::pair(begin, begin + uintptr_t(t.numel()) * t.element_size());
  };
  const auto [a_begin, a_end] = range(a);
  const auto [b_begin, b_end] = range(b);
  return a_begin < b_end && b_begin < a_end;
}

int64_t columns_of(const Tensor& x) { return x.dim() > 0 ? x.size(-1) : 1; }

void check_layout(const Tensor& x, const std::vector<int64_t>& layout) { make_segments(kTopk, {x}, layout); }

}  // namespace

void topk_rows(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
               const Tensor& mask, int64_t rows, int64_t k) {
  const int64_t columns = columns_of(x), all = x.numel();
  check_memory(x, scores, scale, mask, columns);
  CHECK_VALUE(x.is_contiguous() && rows > 0 && all % rows == 0 && 0 <= k && k <= all / rows, kTopk,
              ": k: expected 0 <= k <= ", rows > 0 ? all / rows : 0, " of ", rows, " rows, got ", k);
  if (all == 0) return;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(x)) return cuda::topk_threshold(x, scores, scale, mask, rows, {k});
#endif
  cpu::topk_rows(make_task(x, scores, scale, mask, columns), rows, all / rows, k);
}

void topk_blocks(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
                 const Tensor& mask, int64_t n, int64_t m) {
  const int64_t columns = columns_of(x);
  check_memory(x, scores, scale, mask, columns);
  CHECK_VALUE(x.is_contiguous() && 1 <= n && n < m && m <= 32, kTopk,
              ": k: expected (n, m) with 1 <= n < m <= 32, got (", n, ", ", m, ")");
  if (x.numel() == 0) return;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(x)) return cuda::topk_threshold(x, scores, scale, mask, 1, {n, m});
#endif
  cpu::topk_blocks(make_task(x, scores, scale, mask, columns), x.numel() / columns, columns, int(n), int(m));
}

bool topk_as_it_is(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
                   const Tensor& mask, bool by_row, const std::vector<int64_t>& k) {
  if (!is_readable(x) || x.dim() == 0 || x.numel() == 0) return false;
  const auto fits = [&](const Tensor& t, Sizes sizes) {
    return is_readable(t) && equal(t.sizes(), sizes) && same_device(t, x) && !share_memory(t, x);
  };
  if (scores && (scale || !fits(*scores, x.sizes()))) return false;
  const int64_t columns = columns_of(x);
  if (scale && (scale->scalar_type() != compute_type(x.scalar_type()) || !fits(*scale, Sizes(&columns, 1))))
    return false;
  const int64_t rows = by_row && x.dim() > 1 ? x.size(0) : 1;
  if (k.size() == 1 && 0 <= k[0] && k[0] <= x.numel() / rows) {
    topk_rows(x, scores, scale, mask, rows, k[0]);
  } else if (k.size() == 2 && 1 <= k[0] && k[0] < k[1] && k[1] <= 32) {
    topk_blocks(x, scores, scale, mask, k[0], k[1]);
  } else {
    return false;
  }
  return true;
}

void topk_within(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
                 const Tensor& mask, const std::vector<int64_t>& layout, int64_t k) {
  check_layout(x, layout);
  const int64_t columns = layout[1] * layout[2], each = layout[0] * layout[2];
  check_memory(x, scores, scale, mask, columns);
  CHECK_RUN(x.is_cpu(), kTopk, ": x: expected a CPU tensor, got ", DeviceOf{x});
  CHECK_VALUE(0 <= k && k <= each, kTopk, ": k: expected 0 <= k <= ", each, ", got ", k);
  if (x.numel() == 0) return;
  cpu::topk_within(make_task(x, scores, scale, mask, columns), layout[3], layout[0], layout[1], layout[2], k);
}

void topk_groups(const Tensor& x, const Tensor& mask, const Tensor& keep, const std::vector<int64_t>& layout) {
  check_layout(x, layout);
  check_memory(x, std::nullopt, std::nullopt, mask, 1);
  check_array(kTopk, "keep", keep, x, kBool, {layout[1] * layout[3]});
  if (x.numel() == 0) return;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(x)) return cuda::topk_groups(x, mask, keep, layout);
#endif
  cpu::topk_groups(x.mutable_data_ptr(), int64_t(x.element_size()), mask.mutable_data_ptr<bool>(),
                   keep.const_data_ptr<bool>(), layout[3], layout[0], layout[1], layout[2]);
}

bool topk_norms(const Tensor& x, const Tensor& source, const Tensor& norms, const Tensor& keep, const Tensor& mask,
                const std::vector<int64_t>& layout, int64_t k) {
  if (!is_readable(x) || x.numel() == 0 || layout.size() != 4) return false;
  if (!is_readable(source) || !equal(source.sizes(), x.sizes()) || !same_device(source, x)) return false;
  int64_t left = x.numel();
  for (const int64_t part : layout) {
    if (part <= 0 || left % part != 0) return false;
    left /= part;
  }
  if (left != 1 || k < 0 || k > layout[1] * layout[3]) return false;
  group_score({source}, layout, {norms}, "l2", false);
  try {
    group_topk({norms}, {keep}, k);
  } catch (const std::invalid_argument&) {  // NaN
    return false;
  }
  topk_groups(x, mask, keep, layout);
  return true;
}

}  // namespace sparse_accel
