#include "glm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../cpu/isa/kernel_set.h"
#ifdef SPARSE_ACCEL_WITH_CUDA
#include "../cuda/glm_ops_cuda.h"
#endif

namespace sparse_accel {
namespace {

Family family_from_name(const std::string& op, const std::string& name) {
  if (name == "gaussian") return Family::gaussian;
  if (name == "binomial") return Family::binomial;
  if (name == "poisson") return Family::poisson;
  if (name == "huber") return Family::huber;
  CHECK_VALUE(false, op, ": family: expected 'gaussian', 'binomial', 'poisson' or 'huber', got '", name, "'");
}

void check_targets(const std::string& op, const Tensor& targets, Family family) {
  const double* const begin = targets.const_data_ptr<double>();
  const double* const end = begin + targets.numel();
  CHECK_VALUE(std::all_of(begin, end, [](double y) { return std::isfinite(y); }), op,
              ": targets: expected finite numbers, got NaN or inf");
  if (begin == end) return;
  const auto [low, high] = std::minmax_element(begin, end);
  if (family == Family::poisson) {
    CHECK_VALUE(*low >= 0, op, ": targets: expected counts >= 0 for 'poisson', got ", *low);
  }
  if (family == Family::binomial) {
    CHECK_VALUE(std::all_of(begin, end, [](double y) { return y == 0 || y == 1; }), op,
                ": targets: expected 0 or 1 for 'binomial', got numbers from ", *low, " to ", *high);
  }
}

void check_rows(const std::string& op, const Tensor& crow, const Tensor& col, int64_t columns) {
  const int64_t rows = crow.numel() - 1, entries = col.numel();
  const int64_t* const begin = crow.const_data_ptr<int64_t>();
  const int64_t* const column = col.const_data_ptr<int64_t>();
  bool good = begin[0] == 0 && begin[rows] == entries;
  for (int64_t i = 0; i < rows && good; ++i) good = begin[i] <= begin[i + 1];
  CHECK_VALUE(good, op, ": crow_indices: expected numbers that rise from 0 to ", entries);
  for (int64_t i = 0; i < rows && good; ++i) {
    for (int64_t k = begin[i]; k < begin[i + 1] && good; ++k) {
      good = column[k] >= 0 && column[k] < columns && (k == begin[i] || column[k - 1] < column[k]);
    }
  }
  CHECK_VALUE(good, op, ": col_indices: expected numbers in [0, ", columns,
              "), ascending within each row without repeats");
}

// The rows, with arrays that have the sizes that they should.
GlmRows rows_of(const char* op, const Tensor& point, const Tensor& values, const std::optional<Tensor>& crow,
                const std::optional<Tensor>& col, const Tensor& targets) {
  const ScalarType dtype = point.scalar_type();
  CHECK_TYPE(dtype == kFloat || dtype == kDouble, op, ": expected float32 or float64, got ", dtype);
  const int64_t rows = targets.numel(), columns = point.numel();
  check_device(op, "x", point);
  check_array(op, "x", point, point, dtype, {columns});
  check_array(op, "targets", targets, point, kDouble, {rows});
  CHECK_VALUE(crow.has_value() == col.has_value(), op, ": expected crow_indices and col_indices, or neither");
  if (crow) {
    check_array(op, "features", values, point, dtype, {values.numel()});
    check_array(op, "crow_indices", *crow, point, kLong, {rows + 1});
    check_array(op, "col_indices", *col, point, kLong, {values.numel()});
  } else {
    check_array(op, "features", values, point, dtype, {rows, columns});
  }
  return GlmRows{values.const_data_ptr(),
                 crow ? crow->const_data_ptr<int64_t>() : nullptr,
                 crow ? col->const_data_ptr<int64_t>() : nullptr,
                 targets.const_data_ptr<double>(),
                 rows,
                 columns};
}

void check_iterations(const char* op, const Tensor& iterations, const Tensor& like) {
  check_array(op, "iterations", iterations, like, kLong, std::initializer_list<int64_t>{});
}

}  // namespace

void check_glm_data(const std::string& op, const std::optional<Tensor>& crow, const std::optional<Tensor>& col,
                    const Tensor& targets, int64_t columns, const std::string& family) {
  const char* const name = op.c_str();
  check_array(name, "targets", targets, targets, kDouble, {targets.numel()});
  if (crow && col) {
    check_array(name, "crow_indices", *crow, targets, kLong, {targets.numel() + 1});
    check_array(name, "col_indices", *col, targets, kLong, {col->numel()});
    CHECK_RUN(targets.is_cpu(), op, ": expected tensors on the CPU, got ", DeviceOf{targets});
    check_rows(op, *crow, *col, columns);
  }
  check_targets(op, targets, family_from_name(op, family));
}

void glm_prox(const Tensor& z, const Tensor& values, const std::optional<Tensor>& crow,
              const std::optional<Tensor>& col, const Tensor& targets, double lr, const std::string& family_name,
              double delta, const Tensor& out, const Tensor& iterations) {
  constexpr const char* kOp = "glm_prox";
  const Family family = family_from_name(kOp, family_name);
  const GlmRows rows = rows_of(kOp, z, values, crow, col, targets);
  check_array(kOp, "out", out, z, z.scalar_type(), z.sizes());
  check_iterations(kOp, iterations, z);
  if (z.numel() == 0) return;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(z)) return cuda::glm_prox(z, rows, lr, family, delta, out, iterations);
#endif
  std::vector<double> sum(static_cast<size_t>(rows.columns));
  const GlmProblem problem{rows, family, lr, delta, sum.data()};
  *iterations.mutable_data_ptr<int64_t>() =
      cpu::kernel_set().glm.prox[z.scalar_type() == kDouble](problem, z.const_data_ptr(), out.mutable_data_ptr());
}

void glm_epoch_(const Tensor& x, const Tensor& x_prev, const Tensor& values, const std::optional<Tensor>& crow,
                const std::optional<Tensor>& col, const Tensor& targets, const Tensor& order, double lr, double beta,
                const std::string& family_name, double delta, const std::optional<Tensor>& average,
                int64_t average_start, const Tensor& iterations) {
  constexpr const char* kOp = "glm_epoch";
  const Family family = family_from_name(kOp, family_name);
  const GlmRows rows = rows_of(kOp, x, values, crow, col, targets);
  check_array(kOp, "x_prev", x_prev, x, x.scalar_type(), x.sizes());
  check_array(kOp, "order", order, x, kLong, {order.numel()});
  check_iterations(kOp, iterations, x);
  if (average) check_array(kOp, "average", *average, x, kDouble, x.sizes());
  if (order.numel() == 0 || x.numel() == 0) return;
  double* const mean = average ? average->mutable_data_ptr<double>() : nullptr;
#ifdef SPARSE_ACCEL_WITH_CUDA
  if (on_cuda(x)) {
    const cuda::GlmPass pass{
        x.mutable_data_ptr(), x_prev.mutable_data_ptr(), order.const_data_ptr<int64_t>(), order.numel(), beta, mean,
        average_start};
    return cuda::glm_epoch(x, rows, pass, lr, family, delta, iterations);
  }
#endif
  const int64_t* const steps = order.const_data_ptr<int64_t>();
  const auto known = [&](int64_t row) { return 0 <= row && row < rows.rows; };
  CHECK_VALUE(std::all_of(steps, steps + order.numel(), known), kOp, ": order: expected rows in [0, ", rows.rows,
              "), got others");
  std::vector<GlmColumn> columns(crow ? static_cast<size_t>(rows.columns) : 0);
  std::vector<GlmDrift> drift(crow && beta != 0 ? static_cast<size_t>(order.numel()) + 1 : 0);
  const GlmEpoch epoch{{rows, family, lr, delta, nullptr},
                       x.mutable_data_ptr(),
                       x_prev.mutable_data_ptr(),
                       steps,
                       order.numel(),
                       beta,
                       mean,
                       average_start,
                       columns.data(),
                       drift.data()};
  *iterations.mutable_data_ptr<int64_t>() = cpu::kernel_set().glm.epoch[x.scalar_type() == kDouble](epoch);
}

double glm_terms(const Tensor& v, const Tensor& targets, const std::string& family_name, double delta,
                 const Tensor& slopes, const Tensor& curvatures) {
  constexpr const char* kOp = "glm_prox";
  const Family family = family_from_name(kOp, family_name);
  const int64_t rows = targets.numel();
  CHECK_RUN(v.is_cpu(), kOp, ": v: expected a CPU tensor, got ", DeviceOf{v});
  check_array(kOp, "v", v, v, kDouble, {rows});
  check_array(kOp, "targets", targets, v, kDouble, {rows});
  check_array(kOp, "slopes", slopes, v, kDouble, {rows});
  check_array(kOp, "curvatures", curvatures, v, kDouble, {rows});
  const double* const at = v.const_data_ptr<double>();
  const double* const target = targets.const_data_ptr<double>();
  double* const slope = slopes.mutable_data_ptr<double>();
  double* const curvature = curvatures.mutable_data_ptr<double>();
  double total = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const double u = at[i], y = target[i], away = u - y;
    switch (family) {
      case Family::binomial: {
        const double sign = 1 - 2 * y, w = sign * u, e = std::exp(-std::fabs(w)), rest = 1 / (1 + e);
        slope[i] = sign * (w < 0 ? e * rest : rest);
        curvature[i] = e * rest * rest;
        total += (w > 0 ? w : 0) + std::log1p(e);
        if (w != w) total = w;
        break;
      }
      case Family::poisson: {
        const double mean = std::exp(u);
        slope[i] = mean - y;
        curvature[i] = mean;
        total += mean - y * u;
        break;
      }
      case Family::huber: {
        const double size = std::fabs(away), inner = size < delta ? size : delta;
        slope[i] = away > delta ? delta : away < -delta ? -delta : away;
        curvature[i] = size <= delta ? 1 : 0;
        total += inner * (size - inner / 2);
        break;
      }
      default:
        slope[i] = away;
        curvature[i] = 1;
        total += away * away / 2;
    }
  }
  return total;
}

std::tuple<double, double, double> glm_residual(const Tensor& x, const Tensor& z, const Tensor& pull, double eta,
                                                const Tensor& moved, const Tensor& residual) {
  constexpr const char* kOp = "glm_prox";
  const int64_t number = x.numel();
  CHECK_RUN(x.is_cpu(), kOp, ": x: expected a CPU tensor, got ", DeviceOf{x});
  for (const Tensor* t : {&x, &z, &pull, &moved, &residual}) check_array(kOp, "vector", *t, x, kDouble, {number});
  const double* const to = x.const_data_ptr<double>();
  const double* const from = z.const_data_ptr<double>();
  double* const force = pull.mutable_data_ptr<double>();
  double* const step = moved.mutable_data_ptr<double>();
  double* const rest = residual.mutable_data_ptr<double>();
  double most = 0;  // squares of what is divided by it neither overflow nor vanish
  for (int64_t i = 0; i < number; ++i) {
    force[i] *= eta;
    step[i] = to[i] - from[i];
    rest[i] = step[i] + force[i];
    for (const double part : {force[i], step[i], rest[i]}) {
      if (!(std::fabs(part) <= most)) most = std::fabs(part);  // a NaN stays
    }
  }
  const auto norm = [&](const double* values) {
    double sum = 0;
    for (int64_t i = 0; i < number; ++i) sum += (values[i] / most) * (values[i] / most);
    return most * std::sqrt(sum);
  };
  if (most == 0) return {0, 0, 0};
  return {norm(step), norm(force), norm(rest)};
}

}  // namespace sparse_accel
