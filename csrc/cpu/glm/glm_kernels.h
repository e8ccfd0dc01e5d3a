#pragma once
// The kernels of generalized linear models, of each instruction set.
#include <cstdint>

#include "../../glm.h"

namespace sparse_accel {

// Rows [rows, columns]: dense (crow null) or CSR, of float (dtype 0) or double (dtype 1).
struct GlmRows {
  const void* values;
  const int64_t* crow;    // [rows + 1]
  const int64_t* col;     // [nnz]
  const double* targets;  // [rows]
  int64_t rows;
  int64_t columns;
};

struct GlmProblem {
  GlmRows data;
  Family family;
  double lr;
  double delta;
  double* sum;  // [columns] to work on, prox only
};

// Columns that a sparse row does not touch move on their own: with m = x - previous, m <- beta m and x <- x + m. They
// are brought up to date when a row needs them, e steps at once: m beta^e and x + m (beta + ... + beta^e). Work thus
// goes with the entries of the rows, momentum or not.
struct GlmColumn {
  double x, m;
  double total;  // of the iterates to be averaged
  int64_t time;  // steps that x, m and total include
};

// By e: beta^e, the sum of beta^1 ... beta^e, and the sum of those sums.
struct GlmDrift {
  double power, sum, sum_of_sums;
};

struct GlmEpoch {
  GlmProblem problem;
  void* x;               // [columns]
  void* previous;        // [columns]
  const int64_t* order;  // [steps]
  int64_t steps;
  double beta;
  double* average;        // [columns] or null: receives the mean of the iterates after steps average_start, ...
  int64_t average_start;  // < steps
  GlmColumn* columns;     // [columns] to work on, CSR only
  GlmDrift* drift;        // [steps + 1] to work on, CSR with beta != 0 only
};

// z and out [columns]; returns the most Newton steps that a row took.
//   single, average: out = z + mean of the rows' implicit steps, taken from z.
// The epoch takes implicit steps of single rows one after another, and returns the sum of their Newton steps.
struct GlmKernels {
  int64_t (*prox[2])(const GlmProblem&, const void* z, void* out);
  int64_t (*epoch[2])(const GlmEpoch&);
};

}  // namespace sparse_accel
