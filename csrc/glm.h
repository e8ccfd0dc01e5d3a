#pragma once
// Generalized linear models, one row at a time: losses, and the scalar root of the implicit step. Shared by both
// backends; in double whatever the tensors' type, since a root costs one exponential per Newton step.
#include <cmath>
#include <cstdint>

#include "math.h"

namespace sparse_accel {

// loss(v; y) of the linear predictor v = a.x
enum class Family : int {
  gaussian = 0,  // (v - y)^2 / 2
  binomial = 1,  // log(1 + e^v) - y v,  y in {0, 1}
  poisson = 2,   // e^v - y v,           y >= 0
  huber = 3,     // (v - y)^2 / 2 within delta of y, delta (|v - y| - delta / 2) beyond
};

// What the root of a row needs: u = a.z, q = a.a, y, and the numbers of the call.
struct GlmRow {
  double u;
  double q;
  double y;
};

struct GlmStep {
  double xi;       // x = z + xi a
  int iterations;  // Newton steps; 0 in closed form
};

// Without overflow, and with full relative precision at both ends.
SPARSE_ACCEL_HOST_DEVICE double glm_sigmoid(double v) {
  const double e = std::exp(-std::fabs(v));
  return (v < 0 ? e : 1.0) / (1.0 + e);
}

// e^v - y, also where both are 1: the difference of two rounded numbers has no digits left there.
SPARSE_ACCEL_HOST_DEVICE double glm_poisson_slope(double v, double y) {
  return std::fabs(v) < 0.5 ? std::expm1(v) - (y - 1) : std::exp(v) - y;
}

// d loss / dv
SPARSE_ACCEL_HOST_DEVICE double glm_slope(Family family, double v, double y, double delta) {
  switch (family) {
    case Family::binomial:
      return y > 0.5 ? -glm_sigmoid(-v) : glm_sigmoid(v);
    case Family::poisson:
      return glm_poisson_slope(v, y);
    case Family::huber:
      return std::fmin(std::fmax(v - y, -delta), delta);
    default:
      return v - y;
  }
}

// Newton on the decrement d = u - v of the predictor, F(d) = d - c h(u - d) = 0 with F' = 1 + c h'(u - d), from a start
// on the side from which the steps are monotone: they then only shrink, and stop at rounding.
constexpr int kGlmIterations = 100;
// As |F''| <= 2 F', a step leaves at most its own square: the last one is the first whose square is at rounding.
constexpr double kGlmRounding = 1e-16;

// v + c sigmoid(v) = u. Left of 0 F is convex in v and the start is right of the root, right of 0 the other way round.
// The starts are one turn of the fixed point from the Lambert bound w + log w = k => w <= max(1, k): a few steps away
// from the root for any c.
SPARSE_ACCEL_HOST_DEVICE GlmStep glm_decrement_binomial(double u, double c) {
  double v;
  if (2 * u >= c) {
    const double rest = std::fmin(c / 2, std::fmax(1.0, std::log(c) - (u - c)));
    v = std::fmax(std::fmax(0.0, u - c * glm_sigmoid(u)), std::log(c / rest - 1));
    v = std::fmin(v, u);
  } else {
    double most = c * glm_sigmoid(std::fmin(u, 0.0));
    if (most > 1) most = std::fmin(most, std::fmax(1.0, std::log(c) + u));
    const double p = most / c;
    v = std::fmin(0.0, u);
    if (p > 0 && p < 0.5) v = std::fmin(v, std::log(p / (1 - p)));
  }
  double d = u - v, last = INFINITY;
  int iterations = 0;
  while (iterations < kGlmIterations) {
    const double e = std::exp(-std::fabs(u - d)), rest = 1 / (1 + e);
    const double mean = u < d ? e * rest : rest;
    const double step = (d - c * mean) / (1 + c * e * rest * rest);
    d -= step;
    ++iterations;
    const double size = std::fabs(step);
    if (!(size * size > kGlmRounding * std::fabs(d)) || (iterations > 8 && size >= last)) break;
    last = size;
  }
  return GlmStep{d, iterations};
}

// v + c (e^v - y) = u: F is convex in v, the start is right of the root.
SPARSE_ACCEL_HOST_DEVICE GlmStep glm_decrement_poisson(double u, double c, double y) {
  const double log_y = y > 0 ? std::log(y) : -INFINITY;
  double d;
  if (u >= log_y) {
    const double most = std::fmin(std::fmin(c * glm_poisson_slope(u, y), u - log_y), std::fmax(1.0, std::log(c) + u));
    const double bound = y + std::fmax(most, 0.0) / c;  // of e^v; 0 where that underflows
    d = bound > 0 ? std::fmax(0.0, u - std::log(bound)) : 0.0;
  } else {
    d = std::fmax(u - log_y, c * glm_poisson_slope(u, y));
  }
  double last = INFINITY;
  int iterations = 0;
  while (iterations < kGlmIterations) {
    const double step = (d - c * glm_poisson_slope(u - d, y)) / (1 + c * std::exp(u - d));
    d -= step;
    ++iterations;
    const double size = std::fabs(step);
    if (!(size * size > kGlmRounding * std::fabs(d)) || (iterations > 8 && size >= last)) break;
    last = size;
  }
  return GlmStep{d, iterations};
}

// The implicit step xi = -lr slope(u + xi q), for any lr > 0. Bracketed around u, the predictor at the extrapolated
// point. A decrement gives xi = -d / q where c = lr q is large against the curvature, and -lr slope(u - d) elsewhere:
// whichever of the two does not magnify rounding.
SPARSE_ACCEL_HOST_DEVICE GlmStep glm_step(Family family, const GlmRow& row, double lr, double delta) {
  const double c = lr * row.q;
  if (family == Family::gaussian) return GlmStep{lr * (row.y - row.u) / (1 + c), 0};
  if (family == Family::huber) {
    const double rest = row.u - row.y;
    if (std::fabs(rest) > delta * (1 + c)) return GlmStep{rest > 0 ? -lr * delta : lr * delta, 0};
    return GlmStep{-lr * rest / (1 + c), 0};
  }
  if (!(c > 0)) return GlmStep{-lr * glm_slope(family, row.u, row.y, delta), 0};
  if (family == Family::binomial) {
    const double sign = row.y > 0.5 ? -1 : 1;  // y = 1 is y = 0 mirrored
    const GlmStep found = glm_decrement_binomial(sign * row.u, c);
    const double mean = glm_sigmoid(sign * row.u - found.xi);
    return GlmStep{-sign * (c * mean * (1 - mean) < 1 ? lr * mean : found.xi / row.q), found.iterations};
  }
  const GlmStep found = glm_decrement_poisson(row.u, c, row.y);
  const double v = row.u - found.xi;
  return GlmStep{c * std::exp(v) < 1 ? -lr * glm_poisson_slope(v, row.y) : -found.xi / row.q, found.iterations};
}

}  // namespace sparse_accel
