// Conjugate gradients on masked rows: what is left beside the products with H, fused row by row. Included once per
// instruction set (no include guard on purpose).
#include "../../masked_cg.h"

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

template <class A>
static A* row_of(void* data, int64_t row, int64_t columns) {
  return static_cast<A*>(data) + row * columns;
}
template <class A>
static const A* row_of(const void* data, int64_t row, int64_t columns) {
  return static_cast<const A*>(data) + row * columns;
}

template <class A>
static int64_t cg_begin(const CgRows& rows, int64_t first, int64_t last) {
  const int64_t columns = rows.columns;
  const A* const diagonal = static_cast<const A*>(rows.diagonal);
  const A* const inverse = static_cast<const A*>(rows.inverse);
  int64_t open = 0;
  for (int64_t i = first; i < last; ++i) {
    const bool* const mask = rows.mask + i * columns;
    const A* const w = row_of<A>(rows.w, i, columns);
    A* const r = row_of<A>(rows.r, i, columns);
    A* const p = row_of<A>(rows.p, i, columns);
    A rz = 0, energy = 0;
#pragma omp simd reduction(+ : rz, energy)
    for (int64_t j = 0; j < columns; ++j) {
      const A residual = mask[j] ? r[j] : A(0);
      const A z = residual * inverse[j];
      r[j] = residual;
      p[j] = z;
      rz += residual * z;
      energy += diagonal[j] * w[j] * w[j];
    }
    rows.rz[i] = rz;
    rows.done[i] = cg_done(energy);
    open += !(rows.rz[i] <= rows.done[i]);
  }
  return open;
}

template <class A>
static int64_t cg_step(const CgRows& rows, int64_t first, int64_t last) {
  const int64_t columns = rows.columns;
  const A* const diagonal = static_cast<const A*>(rows.diagonal);
  const A* const inverse = static_cast<const A*>(rows.inverse);
  int64_t open = 0;
  for (int64_t i = first; i < last; ++i) {
    const A old = static_cast<A>(rows.rz[i]), done = static_cast<A>(rows.done[i]);
    if (old <= done) continue;
    const bool* const mask = rows.mask + i * columns;
    A* const x = row_of<A>(rows.x, i, columns);
    A* const r = row_of<A>(rows.r, i, columns);
    A* const p = row_of<A>(rows.p, i, columns);
    const A* const q = row_of<A>(rows.q, i, columns);
    A curvature = 0, diagonal_curvature = 0;
#pragma omp simd reduction(+ : curvature, diagonal_curvature)
    for (int64_t j = 0; j < columns; ++j) {
      curvature += p[j] * q[j];
      diagonal_curvature += diagonal[j] * p[j] * p[j];
    }
    const A length = cg_length(old, done, curvature, diagonal_curvature);
    if (length == A(0)) {
      rows.rz[i] = 0;  // solved, as far as H tells
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) p[j] = 0;
      continue;
    }
    A rz = 0;
#pragma omp simd reduction(+ : rz)
    for (int64_t j = 0; j < columns; ++j) {
      const A next = r[j] - length * q[j];
      const A residual = mask[j] ? next : A(0);
      x[j] += length * p[j];
      r[j] = residual;
      rz += residual * residual * inverse[j];
    }
    const A turn = rz / old;
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) p[j] = r[j] * inverse[j] + turn * p[j];
    rows.rz[i] = rz;
    open += !(rz <= done);
  }
  return open;
}

static const CgKernels cg_table = {{&cg_begin<float>, &cg_begin<double>}, {&cg_step<float>, &cg_step<double>}};

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
