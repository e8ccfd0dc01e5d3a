// The joint step on ATen's dense algebra: the systems are dense, of min(b, d) unknowns, and want a real BLAS.
//
// With eta = lr / b, m = x - z and g the rows' slopes, the residual is R = m + eta A' g, and Newton's system
// (I + eta A' D A) s = -R. With more rows than columns it is solved as it stands, else by the Gram matrix of the rows,
// M = I + eta D A A', in one of two forms:
//   s = -m + eta A' M^-1 (D A m - g)    far from the solution: R may be 1e15 times as large as s, and cancels
//   s = -R + eta A' M^-1 D A R          near it: the dual variables grow with lr where rows depend on each other, R
//   does
//                                       not, and computed afresh it repairs what the step before lost to rounding
#include "glm_joint.h"

#include <ATen/ops/_unique.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cholesky_solve.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_lu_factor_ex.h>
#include <ATen/ops/linalg_lu_solve.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mv.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <tuple>

#include "operators.h"

namespace sparse_accel {
namespace {

constexpr int kMaxNewton = 200;
constexpr int kMaxWarmUp = 500;
constexpr int kMaxHalvings = 60;
constexpr double kFar = 1e-6;  // of the residual over its terms: above it, the first form of Newton's step
constexpr double kSteep = 20;  // predictors of a poisson model above this are first brought down row by row

class Joint {
 public:
  Joint(const at::Tensor& z, const at::Tensor& rows, const at::Tensor& targets, double lr, Family family, double delta)
      : z_(z), a_(rows), y_(targets), eta_(lr / double(rows.size(0))), family_(family), delta_(delta) {
    by_rows_ = a_.size(0) <= a_.size(1);
    if (by_rows_) gram_ = at::mm(a_, a_.t());
  }

  struct Point {
    at::Tensor x, v, moved, slopes, residual;  // [d], [b], [d], [b], [d]
    double value, norm, scale;                 // objective; |R|; size of the terms of R
  };

  Point at_point(const at::Tensor& x) const {
    Point p;
    p.x = x;
    p.v = at::mv(a_, x);
    p.moved = x - z_;
    p.slopes = slope(p.v);
    const at::Tensor pull = at::mv(a_.t(), p.slopes) * eta_;
    p.residual = p.moved + pull;
    const at::Tensor numbers =
        at::stack({eta_ * loss(p.v) + p.moved.dot(p.moved) / 2, p.residual.norm(), p.moved.norm() + pull.norm()}).cpu();
    const double* const number = numbers.const_data_ptr<double>();
    p.value = number[0];
    p.norm = number[1];
    p.scale = number[2];
    return p;
  }

  // The Newton step at a point, [d].
  at::Tensor direction(const Point& p) {
    if (!factor_.defined() || family_ != Family::gaussian) factorize(p.v);
    const at::Tensor& r = p.residual;
    if (!by_rows_) return at::cholesky_solve(r.unsqueeze(1), factor_).squeeze(1).neg();
    const bool far = p.norm > kFar * p.scale;
    const at::Tensor& from = far ? p.moved : r;
    at::Tensor right = curve_ * at::mv(a_, from);
    if (far) right = right - p.slopes;
    right = right.unsqueeze(1);
    const bool symmetric = family_ == Family::gaussian;
    const at::Tensor dual =
        symmetric ? at::cholesky_solve(right, factor_) : at::linalg_lu_solve(factor_, pivots_, right);
    return eta_ * at::mv(a_.t(), dual.squeeze(1)) - from;
  }

  double top(const Point& p) const { return p.v.max().item<double>(); }

 private:
  void factorize(const at::Tensor& v) {
    curve_ = curvature(v);
    at::Tensor matrix = by_rows_ ? gram_ * (curve_ * eta_).unsqueeze(1) : at::mm(a_.t() * (curve_ * eta_), a_);
    matrix.diagonal().add_(1.0);
    if (by_rows_ && family_ != Family::gaussian) {
      std::tie(factor_, pivots_, std::ignore) = at::linalg_lu_factor_ex(matrix);
    } else {
      factor_ = std::get<0>(at::linalg_cholesky_ex(matrix));
    }
  }

  at::Tensor slope(const at::Tensor& v) const {
    switch (family_) {
      case Family::binomial: {  // full relative precision on both sides
        const at::Tensor sign = 1 - 2 * y_;
        return sign * at::sigmoid(sign * v);
      }
      case Family::poisson:
        return v.exp() - y_;
      case Family::huber:
        return (v - y_).clamp(-delta_, delta_);
      default:
        return v - y_;
    }
  }

  at::Tensor curvature(const at::Tensor& v) const {
    switch (family_) {
      case Family::binomial:
        return at::sigmoid(v) * at::sigmoid(-v);
      case Family::poisson:
        return v.exp();
      case Family::huber:
        return (v - y_).abs().le(delta_).to(at::kDouble);
      default:
        return at::ones_like(v);
    }
  }

  at::Tensor loss(const at::Tensor& v) const {
    switch (family_) {
      case Family::binomial: {
        const at::Tensor w = (1 - 2 * y_) * v;
        return (w.clamp_min(0) + w.abs().neg().exp().log1p()).sum();
      }
      case Family::poisson:
        return (v.exp() - y_ * v).sum();
      case Family::huber: {
        const at::Tensor size = (v - y_).abs(), inner = size.clamp_max(delta_);
        return (inner * (size - inner / 2)).sum();
      }
      default:
        return (v - y_).square().sum() / 2;
    }
  }

  const at::Tensor z_, a_, y_;
  const double eta_;
  const Family family_;
  const double delta_;
  bool by_rows_;
  at::Tensor gram_, curve_, factor_, pivots_;
};

// The rows as a dense matrix of the columns that they touch, and which those are (undefined: all).
struct Compact {
  at::Tensor rows;     // [b, used] double
  at::Tensor columns;  // [used]
};

Compact compact_rows(const GlmData& data) {
  if (!data.is_sparse()) return {data.values.to(at::kDouble), {}};
  const auto [columns, place] = at::_unique(data.col, true, true);
  const at::Tensor counts = data.crow.slice(0, 1) - data.crow.slice(0, 0, data.rows);
  const at::Tensor row = at::arange(data.rows, data.col.options()).repeat_interleave(counts);
  at::Tensor rows = at::zeros({data.rows, columns.numel()}, data.values.options().dtype(at::kDouble));
  rows.index_put_({row, place}, data.values.to(at::kDouble));
  return {rows, columns};
}

at::Tensor solve_joint(Joint& problem, const at::Tensor& z, Family family, const GlmAverage& average,
                       int64_t& iterations) {
  Joint::Point now = problem.at_point(z);
  if (family == Family::poisson) {
    for (int i = 0; i < kMaxWarmUp && !(std::isfinite(now.value) && problem.top(now) < kSteep); ++i) {
      Joint::Point next = problem.at_point(average(now.x));
      if (std::isfinite(now.value) && !(next.value < now.value)) break;
      now = next;
    }
  }
  for (; iterations < kMaxNewton && now.norm > 1e-15 * now.scale; ++iterations) {
    const at::Tensor step = problem.direction(now);
    Joint::Point next = problem.at_point(now.x + step);
    if (!(std::isfinite(next.value) && next.norm <= 0.5 * now.norm)) {
      const double slope = step.dot(now.residual).item<double>();
      if (!(slope < 0)) break;
      if (-slope <= 1e-13 * std::fabs(now.value)) {  // the objective has no digits left, the residual has
        if (next.norm < now.norm) now = next;
        break;
      }
      double t = 1;
      int halvings = 0;
      while (!(next.value <= now.value + 1e-4 * t * slope) && halvings < kMaxHalvings) {
        t /= 2;
        ++halvings;
        next = problem.at_point(now.x + t * step);
      }
      if (halvings == kMaxHalvings) break;
    }
    now = next;
  }
  return now.x;
}

}  // namespace

GlmJoint glm_joint(const at::Tensor& z, const GlmData& data, double lr, Family family, double delta,
                   const GlmAverage& average) {
  GlmJoint out{z.clone(), 0};
  if (data.rows == 0 || data.columns == 0) return out;
  const Compact rows = compact_rows(data);
  if (rows.rows.size(1) == 0) return out;
  const at::Tensor wide = z.to(at::kDouble);
  const at::Tensor start = rows.columns.defined() ? wide.index_select(0, rows.columns) : wide;
  Joint problem(start, rows.rows, data.targets, lr, family, delta);
  const auto mean_step = [&](const at::Tensor& x) {  // on the columns in use
    if (!rows.columns.defined()) return average(x.to(z.scalar_type())).to(at::kDouble);
    const at::Tensor all = wide.index_copy(0, rows.columns, x).to(z.scalar_type());
    return average(all).to(at::kDouble).index_select(0, rows.columns);
  };
  const at::Tensor x = solve_joint(problem, start, family, mean_step, out.iterations).to(z.scalar_type());
  if (rows.columns.defined()) {
    out.x.index_copy_(0, rows.columns, x);
  } else {
    out.x = x;
  }
  return out;
}

}  // namespace sparse_accel
