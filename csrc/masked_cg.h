#pragma once
// What masked_cg decides by, shared by the CPU and the CUDA kernels. Sums over a row are taken by the callers.
#include "math.h"

namespace sparse_accel {

// A row is solved where its residual, in the norm of the inverse diagonal, is this little of the row's own energy:
// rounding of the product w H makes more. Going on would divide noise by noise where H is singular.
template <class A>
SPARSE_ACCEL_HOST_DEVICE A cg_done(A energy) {
  const A rounding = sizeof(A) == 8 ? A(2.220446049250313e-16) : A(1.1920929e-7f);
  return A(64) * rounding * rounding * energy;
}

// The length of a step, 0 where the row is solved or H does not curve along p: p.Hp against p.Dp, D the diagonal of H.
// NaN is neither: it shows in the result.
template <class A>
SPARSE_ACCEL_HOST_DEVICE A cg_length(A rz, A done, A curvature, A diagonal_curvature) {
  const A rounding = sizeof(A) == 8 ? A(2.220446049250313e-16) : A(1.1920929e-7f);
  return rz <= done || curvature <= A(4) * rounding * diagonal_curvature ? A(0) : rz / curvature;
}

}  // namespace sparse_accel
