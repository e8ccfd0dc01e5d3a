#pragma once
// Generalized linear models. What the ops have in common:
//   values        [rows, columns], or with crow [rows + 1] and col [nnz] int64 the values [nnz] of CSR rows; float32 or
//                 float64, contiguous
//   targets       [rows] float64
//   family        "gaussian", "binomial", "poisson" or "huber"
//   delta         where the huber loss turns linear
// Rows and targets are not looked at again: check_glm_data says whether they fit.
#include <optional>
#include <string>
#include <tuple>

#include "../glm.h"
#include "common.h"

namespace sparse_accel {

// Raises where CSR indices of tensors on the CPU do not rise or leave the columns, or targets do not suit the family.
void check_glm_data(const std::string& op, const std::optional<Tensor>& crow, const std::optional<Tensor>& col,
                    const Tensor& targets, std::int64_t columns, const std::string& family);

// The mean of the proximal steps of single rows, each from z:
//   out, z        [columns] of the dtype of values
//   iterations    [] int64: receives the most Newton steps that a row took
void glm_prox(const Tensor& z, const Tensor& values, const std::optional<Tensor>& crow,
              const std::optional<Tensor>& col, const Tensor& targets, double lr, const std::string& family,
              double delta, const Tensor& out, const Tensor& iterations);

// A pass of implicit steps of single rows, one after another, in place:
//   z = x + beta (x - x_prev);  x_prev = x;  x = z + xi a_i,  xi = -lr slope(a_i.z + xi |a_i|^2)
//   x, x_prev      [columns] of the dtype of values
//   order          [steps] int64, the row of each step
//   average        [columns] float64 or nothing: receives the mean of the iterates after steps average_start, ...,
//                  steps - 1
//   iterations     [] int64: receives the sum of the Newton steps
void glm_epoch_(const Tensor& x, const Tensor& x_prev, const Tensor& values, const std::optional<Tensor>& crow,
                const std::optional<Tensor>& col, const Tensor& targets, const Tensor& order, double lr, double beta,
                const std::string& family, double delta, const std::optional<Tensor>& average,
                std::int64_t average_start, const Tensor& iterations);

// Of predictors v [rows] float64 on the CPU: slope and curvature of every row's loss; returns the sum of the losses.
double glm_terms(const Tensor& v, const Tensor& targets, const std::string& family, double delta, const Tensor& slopes,
                 const Tensor& curvatures);

// On float64 vectors [d] on the CPU: pull *= eta, moved = x - z, residual = moved + pull. Returns their norms, in the
// order moved, pull, residual.
std::tuple<double, double, double> glm_residual(const Tensor& x, const Tensor& z, const Tensor& pull, double eta,
                                                const Tensor& moved, const Tensor& residual);

}  // namespace sparse_accel
