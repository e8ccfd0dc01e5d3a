#pragma once

#include "common.h"

namespace sparse_accel {

// The work on rows between two products of conjugate gradients for min_X tr((X - W) H (X - W)^T), X zero outside a
// mask: every row on its own, all in step, preconditioned by the diagonal of H. See CgRows for what is what.
//   mask                   [R, C] bool
//   w, x, r, p, q          [R, C] float32 or float64; with `begin`, r and p are written, else x, r and p
//   diagonal, inverse      [C]
//   rz, done               [R] float64
// Returns how many rows go on; on CUDA, where nothing waits for the device, R.
std::int64_t masked_cg_rows(const Tensor& mask, const Tensor& w, const Tensor& x, const Tensor& r, const Tensor& p,
                            const Tensor& q, const Tensor& diagonal, const Tensor& inverse, const Tensor& rz,
                            const Tensor& done, bool begin);

}  // namespace sparse_accel
