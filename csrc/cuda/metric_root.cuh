#pragma once
// A group's norm under a metric where x and P lie in shared memory: what metric_rows.cuh and metric_strips.cuh share.
// Newton's steps are those of metric.h, written for many threads: each of a group's threads takes every step itself,
// from the same sums, and finds the same bits.
#include "metric_body.cuh"
#include "reduce.cuh"

namespace sparse_accel::cuda {

// Blocks on a multiprocessor, which is to say registers: 64, of which numbers in double need twice as many.
template <class T>
constexpr int kMetricBlocks = sizeof(Compute<T>) == 8 ? 2 : 4;

__device__ __forceinline__ MetricSums operator+(const MetricSums& a, const MetricSums& b) {
  return {a.total + b.total, a.slope + b.slope, a.bend + b.bend};
}

// A step's numbers for all groups of a segment.
template <class A>
struct MetricBound {
  bool free;     // no penalty: x is what is written
  bool hard;     // groups stay as they are, or go
  double bound;  // of the group's norm; hard: of its energy

  __device__ MetricBound(Prox prox, const MetricNow<A>& now, std::int64_t group_size)
      : free(now.tau == 0), hard(prox == Prox::hard) {
    const double size = double(group_size);
    bound = hard ? 2 * now.tau * size : now.tau * std::sqrt(size);
  }

  // Adds an element to the sums of the first pass: squares of single numbers neither overflow nor vanish in double.
  // total: of q^2, or the energy; slope: of q^2 P.
  __device__ __forceinline__ void add(A x, A p, MetricSums& sums) const {
    const double q = double(x) * double(p), square = q * q;
    sums.total += hard ? q * double(x) : square;
    sums.slope += square * double(p);
  }

  // What is left of x in groups of norm n; n and scaled_tau are times the groups' scales. hard: n is 0 or 1.
  template <int N>
  __device__ __forceinline__ void shrink(Pack<A, N>& x, const Pack<A, N>& p, const Pack<A, N>& n,
                                         const Pack<A, N>& scaled_tau) const {
    if (free) return;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A moved = n.value[k] * p.value[k];
      if (!hard) x.value[k] *= quick_divide(moved, moved + scaled_tau.value[k]);
      if (n.value[k] == A(0)) x.value[k] = A(0);
    }
  }
};

// Where a group stands.
template <class A>
struct MetricState {
  MetricRoot root;
  A scale;      // of x, n and the bound in sums: a power of two, 1 but for norms that are very large or small
  bool scaled;  // metric_norm_scaled has to find n: nothing is wider than double
};

template <class A>
__device__ __forceinline__ MetricState<A> metric_begin(const MetricBound<A>& bound, const MetricSums& sums) {
  MetricState<A> state{{0, 0, true}, A(1), false};
  if (bound.free) return state;
  if (bound.hard) {
    state.root.n = sums.total <= bound.bound ? 0 : 1;
  } else if (sizeof(A) == 8 && !metric_in_range<A>(sums.total, sums.slope)) {
    state.scaled = true;
  } else {
    state.root = metric_start(sums.total, sums.slope, bound.bound, 0);
    if (sizeof(A) == 4 && sums.total < 1e-30) state.scale = A(0x1p100);
    if (sizeof(A) == 4 && sums.total > 1e30) state.scale = A(0x1p-100);
  }
  return state;
}

// metric_next in float: n stays in double, and only what a step adds to it, which shrinks with every step, is rounded.
__device__ __forceinline__ MetricRoot metric_next_float(const MetricRoot& at, const MetricSums& sums) {
  const float total = float(sums.total), slope = float(sums.slope), root = quick_root(total);
  const float further = quick_divide(float(sums.total - 1), root + 1.f);  // root - 1
  const float move = quick_divide(total, slope) * further;
  const float gap = quick_divide(further, root), size = gap < 0.f ? -gap : gap;
  const float bent = quick_divide(float(sums.bend), slope) * quick_divide(total, slope) - 1.f;
  const float ahead = 1.5f * (bent > 0.f ? bent : 0.f) * gap * gap;
  const float tolerance = float(kMetricTolerance<float>);
  double n = at.n * (1 + double(move));
  const bool lost = !(n == n);
  const bool done = lost || size <= tolerance || (ahead <= tolerance && size <= 0.1f);
  if (n < at.least) n = at.least;
  return MetricRoot{n, at.least, done};
}

template <class A>
__device__ __forceinline__ void metric_advance(MetricState<A>& state, const MetricSums& sums) {
  if constexpr (sizeof(A) == 8) {
    state.root = metric_next(state.root, sums, kMetricTolerance<A>);
  } else {
    state.root = metric_next_float(state.root, sums);
  }
}

// metric_term with a division that is as good as the sums need it, and one instruction in float.
template <class A>
__device__ __forceinline__ MetricTerm<A> metric_quick_term(A x, A p, A n, A tau) {
  const A share = quick_divide(p, n * p + tau);
  const A y = x * share, t = n * share;
  const A square = y * y, slope = square * t;
  return MetricTerm<A>{square, slope, slope * t};
}

// A thread's part of a step's sums: elements begin, begin + step, ..., N at each, of which x and p have the numbers.
// n and tau are times scale already.
template <int N, class A>
__device__ __forceinline__ MetricSums metric_sums(const A* x, const A* p, int begin, int end, int step, A n, A tau,
                                                  A scale) {
  MetricTerm<A> sums{};
#pragma unroll(N == 1 ? 4 : 2)
  for (int i = begin; i < end; i += step) {
    const Pack<A, N> of_x = *reinterpret_cast<const Pack<A, N>*>(x + i);
    const Pack<A, N> of_p = *reinterpret_cast<const Pack<A, N>*>(p + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const MetricTerm<A> term = metric_quick_term(of_x.value[k] * scale, of_p.value[k], n, tau);
      sums.total += term.total;
      sums.slope += term.slope;
      sums.bend += term.bend;
    }
  }
  return {double(sums.total), double(sums.slope), double(sums.bend)};
}

}  // namespace sparse_accel::cuda
