#include "masked_cg.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include "../cpu/masked_cg/masked_cg_run.h"
#include "common.h"
#include "operators.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/masked_cg_ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

constexpr const char* kMaskedCg = "masked_cg";

void check_like(const char* name, const at::Tensor& t, const at::Tensor& w, at::ScalarType dtype,
                at::IntArrayRef sizes) {
  TORCH_CHECK_TYPE(t.layout() == at::kStrided, kMaskedCg, ": ", name, ": expected a dense tensor, got ", t.layout());
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, kMaskedCg, ": ", name, ": expected ", dtype, ", got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.device() == w.device(), kMaskedCg, ": ", name, ": expected the device of W, ", w.device(),
                    ", got ", t.device());
  TORCH_CHECK_VALUE(t.sizes() == sizes, kMaskedCg, ": ", name, ": expected shape ", sizes, ", got ", t.sizes());
}

void check_masked_cg(const at::Tensor& w, const at::Tensor& mask, const at::Tensor& h, int64_t iters,
                     const std::optional<at::Tensor>& start) {
  const auto dtype = w.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, kMaskedCg, ": W: expected float32 or float64, got ",
                   dtype);
  TORCH_CHECK_VALUE(w.dim() == 2, kMaskedCg, ": W: expected a matrix, got shape ", w.sizes());
  check_like("W", w, w, dtype, w.sizes());
  check_like("mask", mask, w, at::kBool, w.sizes());
  check_like("H", h, w, dtype, {w.size(1), w.size(1)});
  if (start.has_value()) check_like("start", *start, w, dtype, w.sizes());
  TORCH_CHECK_VALUE(iters >= 0, kMaskedCg, ": iters: expected a number >= 0, got ", iters);
}

}  // namespace

at::Tensor masked_cg(const at::Tensor& w_given, const at::Tensor& mask_given, const at::Tensor& h, int64_t iters,
                     const std::optional<at::Tensor>& start) {
  check_masked_cg(w_given, mask_given, h, iters, start);
#ifdef SPARSE_ACCEL_WITH_CUDA
  const bool native_cuda = on_cuda(w_given);
#else
  constexpr bool native_cuda = false;
#endif
  TORCH_CHECK(native_cuda || w_given.is_cpu(), kMaskedCg, ": W: expected a CPU or (in a CUDA build) CUDA tensor, got ",
              w_given.device());
  const at::Tensor w = w_given.contiguous(), mask = mask_given.contiguous();
  const at::Tensor x = at::where(mask, start.has_value() ? *start : w, at::zeros({}, w.options())).contiguous();
  if (x.numel() == 0 || iters == 0) return x;
  const at::Tensor diagonal = h.diagonal().contiguous();
  const at::Tensor inverse = at::where(diagonal > 0, diagonal.reciprocal(), at::zeros({}, w.options()));
  const at::Tensor r = at::mm(w - x, h), p = at::empty_like(x), q = at::empty_like(x);
  const at::Tensor rz = at::empty({w.size(0)}, w.options().dtype(at::kDouble)), done = at::empty_like(rz);
  const CgRows rows{mask.const_data_ptr<bool>(),
                    w.const_data_ptr(),
                    x.mutable_data_ptr(),
                    r.mutable_data_ptr(),
                    p.mutable_data_ptr(),
                    q.const_data_ptr(),
                    diagonal.const_data_ptr(),
                    inverse.const_data_ptr(),
                    rz.mutable_data_ptr<double>(),
                    done.mutable_data_ptr<double>(),
                    w.size(1)};
  const int dtype = w.scalar_type() == at::kDouble;
  const auto run = [&](bool begin) -> int64_t {
#ifdef SPARSE_ACCEL_WITH_CUDA
    if (native_cuda) {
      cuda::cg(w, rows, w.size(0), begin);
      return w.size(0);  // nothing waits for the device
    }
#endif
    return begin ? cpu::cg_begin(dtype, rows, w.size(0)) : cpu::cg_step(dtype, rows, w.size(0));
  };
  int64_t open = run(true);
  for (int64_t i = 0; i < iters && open > 0; ++i) {
    at::Tensor out = q;
    at::mm_out(out, p, h);
    open = run(false);
  }
  return x;
}

}  // namespace sparse_accel
