#pragma once
// The kernels of masked_cg, of each instruction set.
#include <cstdint>

namespace sparse_accel {

// Rows of float (dtype 0) or double (dtype 1), contiguous [rows, columns] each; conjugate gradients for all of them in
// step: x solutions, r residuals, p directions, q the directions times H.
struct CgRows {
  const bool* mask;
  const void* w;
  void* x;
  void* r;
  void* p;
  const void* q;
  const void* diagonal;  // [columns] of H
  const void* inverse;   // [columns] its inverses, 0 where it is not positive
  double* rz;            // [rows] r.z, z = inverse * r
  double* done;          // [rows] where r.z is at most this the row is solved to rounding
  int64_t columns;
};

struct CgKernels {
  // From r = (w - x) H: first directions. Returns how many rows are not solved yet.
  int64_t (*begin[2])(const CgRows&, int64_t first, int64_t last);
  // One step of rows first, ..., last - 1, with q = p H. Returns how many rows are not solved yet.
  int64_t (*step[2])(const CgRows&, int64_t first, int64_t last);
};

}  // namespace sparse_accel
