// Implicit steps of generalized linear models. A block takes a row's two sums in a fixed order; one thread then finds
// the scalar root. No atomics: the same input gives the same bits.
#include "glm.h"

#include "reduce.cuh"

namespace sparse_accel::cuda {
namespace {

// u = a.z and q = a.a of one row; all threads of the block get them.
template <class T, class Point>
__device__ GlmRow read_row(const GlmTask& task, std::int64_t i, Point point) {
  const T* const values = static_cast<const T*>(task.values);
  double u = 0, q = 0;
  if (task.crow != nullptr) {
    for (std::int64_t k = task.crow[i] + threadIdx.x; k < task.crow[i + 1]; k += kThreads) {
      const double value = double(values[k]);
      u += value * point(task.col[k]);
      q += value * value;
    }
  } else {
    for (std::int64_t j = threadIdx.x; j < task.columns; j += kThreads) {
      const double value = double(values[i * task.columns + j]);
      u += value * point(j);
      q += value * value;
    }
  }
  u = block_reduce(u, Add());
  q = block_reduce(q, Add());
  return GlmRow{u, q, task.targets[i]};
}

// A block per row: the root and how many Newton steps it took.
template <class T>
__global__ void __launch_bounds__(kThreads) glm_roots_kernel(GlmTask task, const T* z, double* xi, int* counts) {
  const std::int64_t i = blockIdx.x;
  const GlmRow row = read_row<T>(task, i, [=](std::int64_t j) { return double(z[j]); });
  if (threadIdx.x == 0) {
    const GlmStep step = glm_step(task.family, row, task.lr, task.delta);
    xi[i] = step.xi;
    counts[i] = step.iterations;
  }
}

// A thread per column walks down the rows. The first block also finds the largest count.
template <class T>
__global__ void __launch_bounds__(kThreads) glm_dense_mean_kernel(GlmTask task, const T* z, const double* xi,
                                                                  const int* counts, T* out, std::int64_t* iterations) {
  const T* const values = static_cast<const T*>(task.values);
  const std::int64_t j = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (j < task.columns) {
    double sum = 0;
    for (std::int64_t i = 0; i < task.rows; ++i) sum += xi[i] * double(values[i * task.columns + j]);
    out[j] = T(double(z[j]) + (task.rows > 0 ? sum / double(task.rows) : 0.0));
  }
  if (blockIdx.x != 0) return;  // the whole block
  int most = 0;
  for (std::int64_t i = threadIdx.x; i < task.rows; i += kThreads) most = counts[i] > most ? counts[i] : most;
  most = block_reduce(most, Max());
  if (threadIdx.x == 0) *iterations = most;
}

// One block: rows one after another, so that sums keep their order; a row's columns are all different.
template <class T>
__global__ void __launch_bounds__(kThreads)
    glm_sparse_mean_kernel(GlmTask task, const T* z, const double* xi, const int* counts, double* sum, T* out,
                           std::int64_t* iterations) {
  const T* const values = static_cast<const T*>(task.values);
  for (std::int64_t j = threadIdx.x; j < task.columns; j += kThreads) sum[j] = 0;
  __syncthreads();
  int most = 0;
  for (std::int64_t i = 0; i < task.rows; ++i) {
    for (std::int64_t k = task.crow[i] + threadIdx.x; k < task.crow[i + 1]; k += kThreads) {
      sum[task.col[k]] += xi[i] * double(values[k]);
    }
    most = counts[i] > most ? counts[i] : most;
    __syncthreads();  // the next row may touch the same columns
  }
  const double rows = task.rows > 0 ? double(task.rows) : 1.0;
  for (std::int64_t j = threadIdx.x; j < task.columns; j += kThreads) out[j] = T(double(z[j]) + sum[j] / rows);
  if (threadIdx.x == 0) *iterations = most;
}

// One block. z is formed in the place of x, with x moved to `previous`; then the step is added. Between barriers a
// column is touched by one thread only.
template <class T>
__global__ void __launch_bounds__(kThreads) glm_epoch_kernel(GlmTask task, GlmPass pass, std::int64_t* iterations) {
  SHARED(double, root, [1]);
  const T* const values = static_cast<const T*>(task.values);
  T* const x = static_cast<T*>(pass.x);
  T* const previous = static_cast<T*>(pass.previous);
  const T beta = T(pass.beta);
  std::int64_t total = 0;
  for (std::int64_t j = threadIdx.x; pass.average != nullptr && j < task.columns; j += kThreads) pass.average[j] = 0;
  for (std::int64_t k = 0; k < pass.steps; ++k) {
    const std::int64_t i = pass.order[k];
    if (beta != T(0) || k + 1 == pass.steps) {
      for (std::int64_t j = threadIdx.x; j < task.columns; j += kThreads) {
        const T now = x[j];
        x[j] = now + beta * (now - previous[j]);
        previous[j] = now;
      }
      __syncthreads();  // z is complete
    }
    const GlmRow row = read_row<T>(task, i, [=](std::int64_t j) { return double(x[j]); });
    if (threadIdx.x == 0) {
      const GlmStep step = glm_step(task.family, row, task.lr, task.delta);
      total += step.iterations;
      root[0] = step.xi;
    }
    __syncthreads();  // root is there, and x has been read
    const double xi = root[0];
    if (task.crow != nullptr) {
      for (std::int64_t p = task.crow[i] + threadIdx.x; p < task.crow[i + 1]; p += kThreads) {
        const std::int64_t j = task.col[p];
        x[j] = T(double(x[j]) + xi * double(values[p]));
      }
    } else {
      for (std::int64_t j = threadIdx.x; j < task.columns; j += kThreads) {
        x[j] = T(double(x[j]) + xi * double(values[i * task.columns + j]));
      }
    }
    __syncthreads();  // x is complete
    if (pass.average != nullptr && k >= pass.average_start) {
      for (std::int64_t j = threadIdx.x; j < task.columns; j += kThreads) pass.average[j] += double(x[j]);
    }
  }
  const double count = double(pass.steps - pass.average_start);
  for (std::int64_t j = threadIdx.x; pass.average != nullptr && j < task.columns; j += kThreads) {
    pass.average[j] /= count;
  }
  if (threadIdx.x == 0) *iterations = total;
}

template <class T>
void launch_prox(const GlmTask& task, const T* z, T* out, std::int64_t* iterations, const Allocate& allocate,
                 cudaStream_t stream) {
  const std::size_t rows = std::size_t(task.rows > 0 ? task.rows : 1);
  auto* const xi = static_cast<double*>(allocate(rows * sizeof(double)));
  auto* const counts = static_cast<int*>(allocate(rows * sizeof(int)));
  if (task.rows > 0) {
    launch_kernel(glm_roots_kernel<T>, unsigned(task.rows), kThreads, 0, stream, task, z, xi, counts);
  }
  if (task.crow != nullptr) {
    auto* const sum = static_cast<double*>(allocate(std::size_t(task.columns) * sizeof(double)));
    launch_kernel(glm_sparse_mean_kernel<T>, 1, kThreads, 0, stream, task, z, xi, counts, sum, out, iterations);
  } else {
    const unsigned blocks = unsigned(ceil_div(task.columns, kThreads));
    launch_kernel(glm_dense_mean_kernel<T>, blocks, kThreads, 0, stream, task, z, xi, counts, out, iterations);
  }
}

}  // namespace

cudaError_t glm_prox(DType dtype, const GlmTask& task, const void* z, void* out, std::int64_t* iterations,
                     const Allocate& allocate, cudaStream_t stream) {
  if (dtype == DType::f64) {
    launch_prox(task, static_cast<const double*>(z), static_cast<double*>(out), iterations, allocate, stream);
  } else if (dtype == DType::f32) {
    launch_prox(task, static_cast<const float*>(z), static_cast<float*>(out), iterations, allocate, stream);
  } else {
    return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

cudaError_t glm_epoch(DType dtype, const GlmTask& task, const GlmPass& pass, std::int64_t* iterations,
                      cudaStream_t stream) {
  if (dtype == DType::f64) {
    launch_kernel(glm_epoch_kernel<double>, 1, kThreads, 0, stream, task, pass, iterations);
  } else if (dtype == DType::f32) {
    launch_kernel(glm_epoch_kernel<float>, 1, kThreads, 0, stream, task, pass, iterations);
  } else {
    return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace sparse_accel::cuda
