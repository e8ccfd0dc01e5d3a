#pragma once
// The proximal operator of a group penalty in a diagonal metric P > 0,
//   argmin_w  1/2 sum_i P_i (w_i - x_i)^2 + tau psi(w),
// shared by the CPU and the CUDA kernels. Sums over a group are taken by the callers.
//
// Group lasso: with q = P x and the threshold tau of a group, the group is zero where ||q|| <= tau; else
//   w = n P x / (n P + tau),  n = ||w|| the root of S(n) = 1,  S(n) = sum y_i^2,  y_i = x_i P_i / (n P_i + tau).
// S(n)^(-1/2) is the power mean of order -2 of affine functions of n, hence concave and increasing: Newton's step on it
// lands left of the root from wherever it starts, and climbs from there. Where P is constant one step is exact.
#include <cstdint>
#include <cstring>

#include "math.h"

namespace sparse_accel {

// x^(1/3) of x >= 0, without a branch or a call, so that loops vectorize. NaN and infinity stay.
SPARSE_ACCEL_HOST_DEVICE float cube_root(float x) {
  const bool tiny = x < 1e-30f;  // where the bits of denormal numbers would mislead the guess
  const float scaled = x * (tiny ? 16777216.f : 1.f);
  std::int32_t bits;
  std::memcpy(&bits, &scaled, 4);
  bits = 0x54a21d2a - static_cast<std::int32_t>(static_cast<float>(bits) * (1.f / 3));
  float y;  // x^(-1/3), within 4 % at first
  std::memcpy(&y, &bits, 4);
  const float third = scaled * (-1.f / 3);
  y *= fused(third * y, y * y, 4.f / 3);
  y *= fused(third * y, y * y, 4.f / 3);
  const float square = y * y;
  float root = scaled * square;  // 0 stays 0
  root = fused(fused(root * root, root, -scaled), square * (-1.f / 3), root);
  root = scaled > 3.4028234663852886e38f ? scaled : root;  // infinity; NaN is NaN already
  return root * (tiny ? 1.f / 256 : 1.f);
}

SPARSE_ACCEL_HOST_DEVICE double cube_root(double x) {
  const bool tiny = x < 1e-290;
  const double scaled = x * (tiny ? 1152921504606846976.0 : 1.0);  // 2^60
  std::int64_t bits;
  std::memcpy(&bits, &scaled, 8);
  bits = 0x553ef0ff289dd796 - static_cast<std::int64_t>(static_cast<double>(bits) * (1.0 / 3));
  double y;
  std::memcpy(&y, &bits, 8);
  const double third = scaled * (-1.0 / 3);
  for (int i = 0; i < 3; ++i) y *= fused(third * y, y * y, 4.0 / 3);
  const double square = y * y;
  double root = scaled * square;
  root = fused(fused(root * root, root, -scaled), square * (-1.0 / 3), root);
  root = scaled > 1.7976931348623157e308 ? scaled : root;
  return root * (tiny ? 1.0 / 1048576 : 1.0);
}

// a / b. In float on a GPU within two units in the last place, in one instruction where the exact one is a dozen; b is
// below 2^126.
SPARSE_ACCEL_HOST_DEVICE float quick_divide(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdividef(a, b);
#else
  return a / b;
#endif
}
SPARSE_ACCEL_HOST_DEVICE double quick_divide(double a, double b) { return a / b; }

// The square root, likewise.
SPARSE_ACCEL_HOST_DEVICE float quick_root(float x) {
#ifdef __CUDA_ARCH__
  return x == 0.f || x > 3.4028234663852886e38f ? x : x * rsqrtf(x);
#else
  return std::sqrt(x);
#endif
}
SPARSE_ACCEL_HOST_DEVICE double quick_root(double x) { return std::sqrt(x); }

// What one element adds to S and to its derivatives; t = n P / (n P + tau), the factor that w is x by.
template <class A>
struct MetricTerm {
  A total, slope, bend;  // y^2, y^2 t, y^2 t^2
};

template <class A>
SPARSE_ACCEL_HOST_DEVICE MetricTerm<A> metric_term(A x, A p, A n, A tau) {
  const A share = p / fused(n, p, tau);
  const A y = x * share, t = n * share;
  const A square = y * y, slope = square * t;
  return MetricTerm<A>{square, slope, slope * t};
}

template <class A>
SPARSE_ACCEL_HOST_DEVICE A metric_shrunk(A x, A p, A n, A tau) {
  const A moved = n * p;
  return n == A(0) ? A(0) : x * (moved / (moved + tau));
}

// Groups of one element.
template <class A>
SPARSE_ACCEL_HOST_DEVICE A metric_shrunk_element(Prox prox, A x, A p, A tau) {
  if (prox == Prox::hard) return p * x * x <= A(2) * tau ? A(0) : x;
  const A bound = tau / p, size = x < A(0) ? -x : x;
  const A rest = size - bound;
  const A shrunk = x < A(0) ? -rest : rest;
  return size <= bound ? A(0) : shrunk;
}

struct MetricSums {
  double total, slope, bend;
};

struct MetricRoot {
  double n;
  double least;  // no more than 1/1000 beyond the root
  bool done;
};

// square = sum q^2, weighted = sum q^2 P; near: where the root may be, such as the norm before the step. 0 is zero.
SPARSE_ACCEL_HOST_DEVICE MetricRoot metric_start(double square, double weighted, double tau, double near) {
  const double norm = std::sqrt(square);
  if (norm <= tau) return MetricRoot{0, 0, true};
  const double n = (norm - tau) * square / weighted;  // Newton's step from 0
  return MetricRoot{near > n ? near : n, n * 0.999, !(n == n)};
}

// One step of Newton. `tolerance` is of S^(-1/2), thus of the optimality condition relative to tau.
SPARSE_ACCEL_HOST_DEVICE MetricRoot metric_next(const MetricRoot& at, const MetricSums& sums, double tolerance) {
  const double root = std::sqrt(sums.total);
  const double gap = 1 - 1 / root;  // how far S^(-1/2) is below 1
  double n = at.n * (1 + sums.total * (root - 1) / sums.slope);
  const double bent = sums.bend * sums.total / (sums.slope * sums.slope) - 1;
  const double ahead = 1.5 * (bent > 0 ? bent : 0) * gap * gap;  // of the gap after this step
  const double size = gap < 0 ? -gap : gap;
  const bool lost = !(n == n);
  const bool done = lost || size <= tolerance || (ahead <= tolerance && size <= 0.1);
  if (n < at.least) n = at.least;
  return MetricRoot{n, at.least, done};
}

constexpr int kMetricSteps = 60;  // more than any group takes
// Square sums in these bounds have lost nothing to underflow, and no more will; others are scaled first.
template <class A>
constexpr double kMetricLeast = sizeof(A) == 8 ? 1e-250 : 1e-30;
template <class A>
constexpr double kMetricMost = sizeof(A) == 8 ? 1e250 : 1e30;
template <class A>
constexpr double kMetricTolerance = sizeof(A) == 8 ? 1e-14 : 1e-7;

template <class A>
SPARSE_ACCEL_HOST_DEVICE bool metric_in_range(double square, double weighted) {
  return square > kMetricLeast<A> && square < kMetricMost<A> && weighted > kMetricLeast<A> / 1e4 &&
         weighted < kMetricMost<A>;
}

// The norm n of a group whose squares overflow or vanish: in double, everything scaled by powers of two. One thread
// goes through the group. element(i, x, p) gives x and P of element i.
template <class Element>
SPARSE_ACCEL_HOST_DEVICE double metric_norm_scaled(std::int64_t size, double tau, const Element& element) {
  double most_x = 0, most_p = 0, x = 0, p = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < size; ++i) {
    element(i, x, p);
    const double magnitude = std::fabs(x);
    finite = finite && magnitude <= 1.7976931348623157e308 && p <= 1.7976931348623157e308;
    if (magnitude > most_x) most_x = magnitude;
    if (p > most_p) most_p = p;
  }
  if (!finite) return NAN;
  if (most_x == 0 || most_p == 0) return 0;
  int of_x, of_p;
  std::frexp(most_x, &of_x);
  std::frexp(most_p, &of_p);
  const double bound = std::ldexp(std::ldexp(tau, -of_x), -of_p);
  // w / 2^of_x solves the problem of x / 2^of_x, P / 2^of_p and this bound; a magnitude below 1e-150 of the largest has
  // no part in a sum
  MetricSums sums{0, 0, 0};
  MetricRoot root{0, 0, true};
  for (int step = -1; step < kMetricSteps; ++step) {
    sums = MetricSums{0, 0, 0};
    for (std::int64_t i = 0; i < size; ++i) {
      element(i, x, p);
      x = std::ldexp(x, -of_x);
      p = std::ldexp(p, -of_p);
      const double q = x * p;
      const MetricTerm<double> term =
          step < 0 ? MetricTerm<double>{q * q, q * q * p, 0} : metric_term(x, p, root.n, bound);
      sums.total += term.total;
      sums.slope += term.slope;
      sums.bend += term.bend;
    }
    root =
        step < 0 ? metric_start(sums.total, sums.slope, bound, 0) : metric_next(root, sums, kMetricTolerance<double>);
    if (root.done) break;
  }
  return std::ldexp(root.n, of_x);
}

// The numbers of one RAMDA step for one tensor (Huang & Lee, NeurIPS 2024), from the state before the step.
struct RamdaScalars {
  double rate;   // s = lr sqrt(t + 1)
  double alpha;  // alpha + s
};

SPARSE_ACCEL_HOST_DEVICE RamdaScalars ramda_scalars(double t, double alpha, double lr) {
  const double rate = lr * std::sqrt(t + 1.0);
  return RamdaScalars{rate, alpha + rate};
}

// Those of one AdamW step.
struct AdamwScalars {
  double rest;          // what decay leaves of W
  double size;          // lr / (1 - beta1^t)
  double inverse_root;  // 1 / sqrt(1 - beta2^t)
};

SPARSE_ACCEL_HOST_DEVICE AdamwScalars adamw_scalars(double t, double lr, double beta1, double beta2, double decay) {
  return AdamwScalars{1 - lr * decay, lr / (1 - std::pow(beta1, t + 1)), 1 / std::sqrt(1 - std::pow(beta2, t + 1))};
}

// What a step does to the state of one element, and the point x and the metric P that it leaves for the penalty.
// Numbers of one tensor, in the compute type.
template <class A>
struct MetricNumbers {
  A grad_factor;  // over the gradients' scale, negative to maximize
  A rate;         // RAMDA: s
  A eps;
  A momentum;      // RAMDA: c; 1 for AdamW
  A mean_share;    // AdamW: 1 - beta1
  A decay;         // AdamW: beta2
  A square_share;  // AdamW: 1 - beta2
  A rest, size, inverse_root;
  A tau;  // of an element, or of a whole group under the soft threshold
};

template <class A>
SPARSE_ACCEL_HOST_DEVICE void ramda_point(const MetricNumbers<A>& k, A grad, A anchor, A& dual, A& square, A& x, A& p) {
  const A g = grad * k.grad_factor, moved = k.rate * g;
  dual += moved;
  square = fused(moved, g, square);
  p = cube_root(square) + k.eps;
  x = anchor - quick_divide(dual, p);
}

template <class A>
SPARSE_ACCEL_HOST_DEVICE void adamw_point(const MetricNumbers<A>& k, A grad, A param, A& mean, A& square, A& x, A& p) {
  const A g = grad * k.grad_factor;
  mean = fused(k.mean_share, g - mean, mean);
  square = fused(square, k.decay, k.square_share * g * g);
  p = fused(quick_root(square), k.inverse_root, k.eps);
  x = fused(param, k.rest, -quick_divide(k.size * mean, p));
}

}  // namespace sparse_accel
