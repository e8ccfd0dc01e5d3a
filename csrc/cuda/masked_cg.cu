// Conjugate gradients on masked rows: what is left beside the products with H. A block per row; its sums are taken in a
// fixed order, so that the same input gives the same bits.
#include "masked_cg.h"

#include "../masked_cg.h"
#include "reduce.cuh"

namespace sparse_accel::cuda {
namespace {

template <class A>
__global__ void __launch_bounds__(kThreads) cg_begin_kernel(CgRows rows) {
  const std::int64_t row = blockIdx.x, first = row * rows.columns;
  const bool* const mask = rows.mask + first;
  const A* const w = static_cast<const A*>(rows.w) + first;
  A* const r = static_cast<A*>(rows.r) + first;
  A* const p = static_cast<A*>(rows.p) + first;
  const A* const diagonal = static_cast<const A*>(rows.diagonal);
  const A* const inverse = static_cast<const A*>(rows.inverse);
  A rz = 0, energy = 0;
  for (std::int64_t j = threadIdx.x; j < rows.columns; j += kThreads) {
    const A residual = mask[j] ? r[j] : A(0);
    const A z = residual * inverse[j];
    r[j] = residual;
    p[j] = z;
    rz += residual * z;
    energy += diagonal[j] * w[j] * w[j];
  }
  rz = block_reduce(rz, Add());
  energy = block_reduce(energy, Add());
  if (threadIdx.x == 0) {
    rows.rz[row] = double(rz);
    rows.done[row] = double(cg_done(energy));
  }
}

// A thread keeps to its columns, so that only the sums need barriers.
template <class A>
__global__ void __launch_bounds__(kThreads) cg_step_kernel(CgRows rows) {
  const std::int64_t row = blockIdx.x, first = row * rows.columns;
  const bool* const mask = rows.mask + first;
  A* const x = static_cast<A*>(rows.x) + first;
  A* const r = static_cast<A*>(rows.r) + first;
  A* const p = static_cast<A*>(rows.p) + first;
  const A* const q = static_cast<const A*>(rows.q) + first;
  const A* const diagonal = static_cast<const A*>(rows.diagonal);
  const A* const inverse = static_cast<const A*>(rows.inverse);
  const A old = A(rows.rz[row]), done = A(rows.done[row]);
  if (old <= done) return;  // the whole block
  A curvature = 0, diagonal_curvature = 0;
  for (std::int64_t j = threadIdx.x; j < rows.columns; j += kThreads) {
    curvature += p[j] * q[j];
    diagonal_curvature += diagonal[j] * p[j] * p[j];
  }
  curvature = block_reduce(curvature, Add());
  diagonal_curvature = block_reduce(diagonal_curvature, Add());  // its barriers: everyone has read rz
  const A length = cg_length(old, done, curvature, diagonal_curvature);
  if (length == A(0)) {  // solved, as far as H tells; the same for the whole block
    for (std::int64_t j = threadIdx.x; j < rows.columns; j += kThreads) p[j] = 0;
    if (threadIdx.x == 0) rows.rz[row] = 0;
    return;
  }
  A rz = 0;
  for (std::int64_t j = threadIdx.x; j < rows.columns; j += kThreads) {
    const A residual = mask[j] ? r[j] - length * q[j] : A(0);
    x[j] += length * p[j];
    r[j] = residual;
    rz += residual * residual * inverse[j];
  }
  rz = block_reduce(rz, Add());
  const A turn = rz / old;
  for (std::int64_t j = threadIdx.x; j < rows.columns; j += kThreads) p[j] = r[j] * inverse[j] + turn * p[j];
  if (threadIdx.x == 0) rows.rz[row] = double(rz);
}

using Kernel = void (*)(CgRows);

cudaError_t launch(Kernel kernel, const CgRows& rows, std::int64_t number, cudaStream_t stream) {
  launch_kernel(kernel, unsigned(number), kThreads, 0, stream, rows);
  return cudaGetLastError();
}

}  // namespace

cudaError_t cg_begin(DType dtype, const CgRows& rows, std::int64_t number, cudaStream_t stream) {
  return launch(dtype == DType::f64 ? Kernel(cg_begin_kernel<double>) : Kernel(cg_begin_kernel<float>), rows, number,
                stream);
}

cudaError_t cg_step(DType dtype, const CgRows& rows, std::int64_t number, cudaStream_t stream) {
  return launch(dtype == DType::f64 ? Kernel(cg_step_kernel<double>) : Kernel(cg_step_kernel<float>), rows, number,
                stream);
}

}  // namespace sparse_accel::cuda
