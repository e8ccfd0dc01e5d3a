#include "masked_cg.h"

#include "../cpu/masked_cg/masked_cg_run.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/masked_cg_ops_cuda.h"
#endif

namespace sparse_accel {

std::int64_t masked_cg_rows(const Tensor& mask, const Tensor& w, const Tensor& x, const Tensor& r, const Tensor& p,
                            const Tensor& q, const Tensor& diagonal, const Tensor& inverse, const Tensor& rz,
                            const Tensor& done, bool begin) {
  constexpr const char* kOp = "masked_cg";
  const ScalarType dtype = w.scalar_type();
  CHECK_TYPE(dtype == kFloat || dtype == kDouble, kOp, ": W: expected float32 or float64, got ", dtype);
  CHECK_VALUE(w.dim() == 2, kOp, ": W: expected a matrix, got shape ", w.sizes());
  check_device(kOp, "W", w);
  check_array(kOp, "W", w, w, dtype, w.sizes());
  check_array(kOp, "mask", mask, w, kBool, w.sizes());
  check_array(kOp, "x", x, w, dtype, w.sizes());
  check_array(kOp, "r", r, w, dtype, w.sizes());
  check_array(kOp, "p", p, w, dtype, w.sizes());
  check_array(kOp, "q", q, w, dtype, w.sizes());
  check_array(kOp, "diagonal", diagonal, w, dtype, {w.size(1)});
  check_array(kOp, "inverse", inverse, w, dtype, {w.size(1)});
  check_array(kOp, "rz", rz, w, kDouble, {w.size(0)});
  check_array(kOp, "done", done, w, kDouble, {w.size(0)});
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
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(w)) {
    cuda::cg(w, rows, w.size(0), begin);
    return w.size(0);
  }
#endif
  return (begin ? cpu::cg_begin : cpu::cg_step)(dtype == kDouble, rows, w.size(0));
}

}  // namespace sparse_accel
