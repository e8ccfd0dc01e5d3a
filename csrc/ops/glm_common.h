#pragma once
// What the ops of generalized linear models share: their data, checked.
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "../glm.h"

namespace sparse_accel {

// Rows of a model with their targets; everything contiguous, on one device, without NaN among the targets.
struct GlmData {
  at::Tensor values;   // [rows, columns], or [nnz] of CSR; float or double
  at::Tensor crow;     // [rows + 1] int64, or undefined: dense
  at::Tensor col;      // [nnz] int64, ascending within each row
  at::Tensor targets;  // [rows] double
  int64_t rows;
  int64_t columns;

  bool is_sparse() const { return crow.defined(); }
};

Family family_from_name(const char* op, const std::string& name);

// point: [columns], gives dtype and device. Every check is made here, before anything is written.
GlmData check_glm(const char* op, const at::Tensor& point, const at::Tensor& values,
                  const std::optional<at::Tensor>& crow, const std::optional<at::Tensor>& col,
                  const at::Tensor& targets, Family family, double lr, double delta);

}  // namespace sparse_accel
