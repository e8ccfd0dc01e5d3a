#pragma once
// Launchers of the steps of generalized linear models: raw pointers, sizes and a stream; no torch.
#include <cstdint>

#include "../glm.h"
#include "runtime.h"

namespace sparse_accel::cuda {

// Rows [rows, columns] of float or double, dense (crow null) or CSR with ascending columns; and the call's numbers.
struct GlmTask {
  const void* values;
  const std::int64_t* crow;  // [rows + 1]
  const std::int64_t* col;   // [nnz]
  const double* targets;     // [rows]
  std::int64_t rows;
  std::int64_t columns;  // > 0
  Family family;
  double lr;
  double delta;
};

// out = z + mean over rows of their implicit steps from z; iterations: the most Newton steps of a row.
cudaError_t glm_prox(DType dtype, const GlmTask& task, const void* z, void* out, std::int64_t* iterations,
                     const Allocate& allocate, cudaStream_t stream);

struct GlmPass {
  void* x;                    // [columns]
  void* previous;             // [columns]
  const std::int64_t* order;  // [steps]
  std::int64_t steps;         // > 0
  double beta;
  double* average;  // [columns] or null: mean of the iterates after steps average_start, ...
  std::int64_t average_start;
};

// Implicit steps of single rows, one after another, on one block; iterations: the sum of their Newton steps.
cudaError_t glm_epoch(DType dtype, const GlmTask& task, const GlmPass& pass, std::int64_t* iterations,
                      cudaStream_t stream);

}  // namespace sparse_accel::cuda
