#pragma once
// A step in a metric by the kernels, and what it should have come to, for test_metric_step.cpp: plain loops, the norms
// of groups by bisection.
#include <cmath>
#include <vector>

#include "check.h"
#include "metric_step.h"

namespace check {

using namespace sparse_accel;

constexpr double kLr = 0.25, kEps = 0.01, kBeta1 = 0.75, kBeta2 = 0.875, kDecay = 0.125, kAlpha = 0.75;
constexpr float kStep = 3;

struct Options {
  cuda::MetricRule rule = cuda::MetricRule::ramda;
  Prox prox = Prox::soft;
  double strength = 0.4, momentum = 0.3;
  double magnitude = 1;  // of weights and of what goes with them
  bool maximize = false;
  bool clocks_on_device = true;
  bool lr_on_device = false;
  bool zero_group = false;
  double lr = kLr, alpha = kAlpha;
  float grad_scale = 0, found_inf = 0;  // grad_scale > 0: as under AMP, both on the device
  std::size_t shift = 0;
};

template <class T>
struct State {
  using A = Compute<T>;
  std::vector<std::vector<T>> params, grads;
  std::vector<std::vector<A>> duals, squares, anchors;
  std::vector<float> steps;
  std::vector<double> alphas;
};

template <class T>
State<T> step(const State<T>& before, const std::vector<GroupLayout>& shapes, const Options& options) {
  using A = Compute<T>;
  const bool ramda = options.rule == cuda::MetricRule::ramda;
  std::vector<Device<T>> params, grads;
  std::vector<Device<A>> duals, squares, anchors;
  Device<float> steps(before.steps);
  Device<double> alphas(before.alphas);
  Device<double> lr(std::vector<double>{options.lr});
  Device<float> grad_scale(std::vector<float>{options.grad_scale}), found_inf(std::vector<float>{options.found_inf});
  std::vector<cuda::MetricSegment> segments;
  std::vector<cuda::MetricClock> clocks;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    params.emplace_back(before.params[i], options.shift);
    grads.emplace_back(before.grads[i], options.shift);
    duals.emplace_back(before.duals[i], options.shift);
    squares.emplace_back(before.squares[i], options.shift);
    anchors.emplace_back(before.anchors[i], options.shift);
    segments.push_back({params[i].get(), grads[i].get(), duals[i].get(), squares[i].get(),
                        ramda ? anchors[i].get() : nullptr, shapes[i], int(i)});
    double* const alpha = ramda ? alphas.get() + i : nullptr;
    if (options.clocks_on_device) {
      clocks.push_back({steps.get() + i, alpha, 0, 0, options.strength});
    } else {
      clocks.push_back({nullptr, nullptr, before.steps[i], before.alphas[i], options.strength});
    }
  }
  const bool amp = options.grad_scale > 0;
  const cuda::MetricSettings settings{options.rule,
                                      options.lr_on_device ? 0 : options.lr,
                                      ramda ? options.momentum : 1,
                                      kEps,
                                      kBeta1,
                                      kBeta2,
                                      kDecay,
                                      options.maximize,
                                      options.lr_on_device ? lr.get() : nullptr,
                                      amp ? grad_scale.get() : nullptr,
                                      amp ? found_inf.get() : nullptr};
  Scratch scratch;
  CHECK(cuda::metric_step(kDType<T>, segments, clocks, settings, options.prox, scratch.allocate(), nullptr) ==
            cudaSuccess,
        "launch");
  cudaDeviceSynchronize();
  State<T> after;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    after.params.push_back(params[i].read());
    after.grads.push_back(grads[i].read());
    after.duals.push_back(duals[i].read());
    after.squares.push_back(squares[i].read());
    after.anchors.push_back(anchors[i].read());
  }
  after.steps = steps.read();
  after.alphas = alphas.read();
  return after;
}

// The root of sum (x P / (n P + tau))^2 = 1, or 0; q in numbers whose squares a double holds.
inline double norm_of(const std::vector<double>& x, const std::vector<double>& p, double tau) {
  double square = 0, least = 1e300;
  for (std::size_t i = 0; i < x.size(); ++i) {
    square += x[i] * p[i] * x[i] * p[i];
    least = std::fmin(least, p[i]);
  }
  const double length = std::sqrt(square);
  if (length <= tau) return 0;
  double low = 0, high = (length - tau) / least;
  for (int i = 0; i < 200; ++i) {
    const double n = (low + high) / 2;
    double sum = 0;
    for (std::size_t k = 0; k < x.size(); ++k) {
      const double y = x[k] * p[k] / (n * p[k] + tau);
      sum += y * y;
    }
    (sum > 1 ? low : high) = n;
  }
  return high;
}

template <class T>
void compare(const State<T>& before, const State<T>& after, std::size_t t, const GroupLayout& shape,
             const Options& options) {
  using A = Compute<T>;
  const bool ramda = options.rule == cuda::MetricRule::ramda, moved = options.found_inf == 0;
  const double tolerance = kTolerance<A> * 8, size = double(shape.outer * shape.inner);
  if (options.clocks_on_device) {
    CHECK(after.steps[t] == (moved ? kStep + 1 : kStep), "t %zu: %g", t, double(after.steps[t]));
    const double alpha = moved && ramda ? options.alpha + options.lr * std::sqrt(kStep + 1.0) : options.alpha;
    CHECK(close(after.alphas[t], alpha, 1e-15), "alpha %zu: %.17g want %.17g", t, after.alphas[t], alpha);
  }
  CHECK(same_bits(before.grads[t], after.grads[t]) && same_bits(before.anchors[t], after.anchors[t]), "read only");
  if (!moved) {
    CHECK(same_bits(before.params[t], after.params[t]) && same_bits(before.duals[t], after.duals[t]) &&
              same_bits(before.squares[t], after.squares[t]),
          "inf");
    return;
  }
  const double scale = options.grad_scale > 0 ? double(options.grad_scale) : 1.0,
               rate = options.lr * std::sqrt(kStep + 1.0);
  const std::size_t count = before.params[t].size();
  std::vector<double> x(count), p(count);
  for (std::size_t i = 0; i < count; ++i) {
    const double g = (options.maximize ? -1 : 1) * value(before.grads[t][i]) / scale;
    double dual, square;
    if (ramda) {
      dual = before.duals[t][i] + rate * g;
      square = before.squares[t][i] + rate * g * g;
      p[i] = std::cbrt(square) + kEps;
      x[i] = before.anchors[t][i] - dual / p[i];
    } else {
      dual = kBeta1 * before.duals[t][i] + (1 - kBeta1) * g;
      square = kBeta2 * before.squares[t][i] + (1 - kBeta2) * g * g;
      p[i] = std::sqrt(square / (1 - std::pow(kBeta2, kStep + 1.0))) + kEps;
      x[i] = (1 - options.lr * kDecay) * value(before.params[t][i]) -
             options.lr / (1 - std::pow(kBeta1, kStep + 1.0)) * dual / p[i];
    }
    CHECK(close(after.duals[t][i] / options.magnitude, dual / options.magnitude, tolerance), "V %zu [%zu]: %g want %g",
          t, i, double(after.duals[t][i]), dual);
    CHECK(close(after.squares[t][i], square, tolerance), "U %zu [%zu]: %g want %g", t, i, double(after.squares[t][i]),
          square);
  }
  const double tau = (ramda ? options.alpha + rate : options.lr) * options.strength;
  const double momentum = ramda ? options.momentum : 1;
  for (std::int64_t g = 0; g < shape.groups; ++g) {
    std::vector<double> of_x, of_p;
    double energy = 0;
    for_group(shape, g, [&](std::size_t i) {
      of_x.push_back(x[i] / options.magnitude);
      of_p.push_back(p[i]);
      energy += p[i] * x[i] * x[i];
    });
    const double bound = tau * std::sqrt(size) / options.magnitude;
    const double n = norm_of(of_x, of_p, bound);
    for_group(shape, g, [&](std::size_t i) {
      double w = energy <= 2 * tau * size ? 0 : x[i];
      if (options.prox == Prox::soft) w = x[i] * (n == 0 ? 0 : n * p[i] / (n * p[i] + bound));
      if (tau == 0) w = x[i];
      const double want = (1 - momentum) * value(before.params[t][i]) + momentum * w;
      const double got = value(after.params[t][i]);
      CHECK(close(got / options.magnitude, want / options.magnitude, kTolerance<T> * 8), "W %zu [%zu]: %g want %g", t,
            i, got, want);
    });
  }
}

}  // namespace check
