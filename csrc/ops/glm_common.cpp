#include "glm_common.h"

#include <c10/util/Exception.h>

#include <cmath>

namespace sparse_accel {
namespace {

bool holds(const at::Tensor& mask) { return mask.any().item<bool>(); }

void check_targets(const char* op, const at::Tensor& targets, Family family) {
  TORCH_CHECK_VALUE(!holds(targets.isfinite().logical_not_()), op,
                    ": targets: expected finite numbers, got NaN or inf");
  if (family == Family::poisson) {
    TORCH_CHECK_VALUE(!holds(targets.lt(0)), op, ": targets: expected counts >= 0 for 'poisson', got ",
                      targets.min().item<double>());
  }
  if (family == Family::binomial) {
    TORCH_CHECK_VALUE(!holds(targets.ne(0).logical_and_(targets.ne(1))), op,
                      ": targets: expected 0 or 1 for 'binomial', got numbers from ", targets.min().item<double>(),
                      " to ", targets.max().item<double>());
  }
}

void check_rows(const char* op, const GlmData& data) {
  TORCH_CHECK_VALUE(data.crow.dim() == 1 && data.crow.numel() == data.rows + 1, op, ": crow_indices: expected ",
                    data.rows + 1, " numbers, one more than targets, got shape ", data.crow.sizes());
  TORCH_CHECK_VALUE(data.col.dim() == 1 && data.col.numel() == data.values.numel() && data.values.dim() == 1, op,
                    ": col_indices: expected one for each of ", data.values.numel(), " values, got shape ",
                    data.col.sizes());
  const at::Tensor crow = data.crow.cpu(), col = data.col.cpu();
  const int64_t* const begin = crow.const_data_ptr<int64_t>();
  const int64_t* const column = col.const_data_ptr<int64_t>();
  bool good = begin[0] == 0 && begin[data.rows] == col.numel();
  for (int64_t i = 0; i < data.rows && good; ++i) good = begin[i] <= begin[i + 1];
  TORCH_CHECK_VALUE(good, op, ": crow_indices: expected numbers that rise from 0 to ", col.numel());
  for (int64_t i = 0; i < data.rows && good; ++i) {
    for (int64_t k = begin[i]; k < begin[i + 1] && good; ++k) {
      good = column[k] >= 0 && column[k] < data.columns && (k == begin[i] || column[k - 1] < column[k]);
    }
  }
  TORCH_CHECK_VALUE(good, op, ": col_indices: expected numbers in [0, ", data.columns,
                    "), ascending within each row without repeats");
}

}  // namespace

Family family_from_name(const char* op, const std::string& name) {
  if (name == "gaussian") return Family::gaussian;
  if (name == "binomial") return Family::binomial;
  if (name == "poisson") return Family::poisson;
  if (name == "huber") return Family::huber;
  TORCH_CHECK_VALUE(false, op, ": family: expected 'gaussian', 'binomial', 'poisson' or 'huber', got '", name, "'");
}

GlmData check_glm(const char* op, const at::Tensor& point, const at::Tensor& values,
                  const std::optional<at::Tensor>& crow, const std::optional<at::Tensor>& col,
                  const at::Tensor& targets, Family family, double lr, double delta) {
  const auto dtype = point.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, op, ": expected float32 or float64, got ", dtype);
  TORCH_CHECK_TYPE(values.scalar_type() == dtype, op, ": features: expected the parameters' dtype, ", dtype, ", got ",
                   values.scalar_type());
  TORCH_CHECK_VALUE(std::isfinite(lr) && lr > 0, op, ": lr: expected a finite number > 0, got ", lr);
  TORCH_CHECK_VALUE(std::isfinite(delta) && delta > 0, op, ": delta: expected a finite number > 0, got ", delta);
  TORCH_CHECK_VALUE(point.dim() == 1, op, ": expected a vector of parameters, got shape ", point.sizes());
  TORCH_CHECK_VALUE(targets.dim() == 1, op, ": targets: expected a vector, one number per row, got shape ",
                    targets.sizes());
  TORCH_CHECK_VALUE(crow.has_value() == col.has_value(), op, ": expected crow_indices and col_indices, or neither");
  for (const at::Tensor* tensor : {&values, &targets}) {
    TORCH_CHECK_VALUE(tensor->device() == point.device(), op, ": expected one device, got ", point.device(), " and ",
                      tensor->device());
  }
  GlmData data{values.contiguous(), {}, {}, targets.to(at::kDouble).contiguous(), targets.numel(), point.numel()};
  if (crow.has_value()) {
    TORCH_CHECK_VALUE(crow->device() == point.device() && col->device() == point.device(), op,
                      ": features: expected indices on ", point.device(), ", got ", crow->device());
    data.crow = crow->to(at::kLong).contiguous();
    data.col = col->to(at::kLong).contiguous();
    check_rows(op, data);
  } else {
    TORCH_CHECK_VALUE(values.dim() == 2 && values.size(0) == data.rows && values.size(1) == data.columns, op,
                      ": features: expected shape [", data.rows, ", ", data.columns, "] (targets, parameters), got ",
                      values.sizes());
  }
  check_targets(op, data.targets, family);
  return data;
}

}  // namespace sparse_accel
