#pragma once
// What a step in a metric does to elements: takes in the gradient, gives the point and the metric, writes the weights.
#include "../metric.h"
#include "cover.cuh"
#include "metric_step.h"
#include "tables.cuh"
#include "vec.cuh"

namespace sparse_accel::cuda {

// This step's numbers for one tensor.
template <class A>
struct MetricNow {
  MetricNumbers<A> numbers;
  double tau;
  int skip;  // gradients are not finite: leave everything as it is
};

// How blocks cover a segment. Runs: a team of threads per group. Columns, for strided groups with short inner runs: a
// block has the columns of `per_block` whole groups, its threads stand in rows of that width.
struct MetricCover {
  GroupLayout layout;
  int per_block;  // groups
  int team;       // runs: threads per group, a power of two; columns: 0
  bool packed;    // elements: 16-byte accesses
  int copies;     // of the segment, one after another
};

template <class T>
struct MetricEntry {
  using A = Compute<T>;
  MetricCover cover;
  T* param;
  const T* grad;
  A* dual;
  A* square;
  const A* anchor;
  int tensor;
};

template <class T>
struct MetricOptions {
  Prox prox;
  const MetricNow<Compute<T>>* now;  // [tensors]
};

template <class T>
using MetricTable = Table<MetricEntry<T>, MetricOptions<T>>;

template <class T, MetricRule kRule>
class MetricBody {
 public:
  using A = Compute<T>;
  static constexpr bool kAdamw = kRule == MetricRule::adamw;

  __device__ MetricBody(const MetricEntry<T>& entry, const MetricNow<A>& now) : entry_(entry), k_(now.numbers) {}

  // Takes in the gradient; the point x and the metric p, once per element.
  template <int N>
  __device__ __forceinline__ void first(std::int64_t at, Pack<A, N>& x, Pack<A, N>& p) const {
    const Pack<A, N> grad = load<N>(entry_.grad + at);
    Pack<A, N> dual = load<N>(entry_.dual + at), square = load<N>(entry_.square + at);
    const Pack<A, N> base = kAdamw ? load<N>(entry_.param + at) : load_anchor<N>(at);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (kAdamw) {
        adamw_point(k_, grad.value[k], base.value[k], dual.value[k], square.value[k], x.value[k], p.value[k]);
      } else {
        ramda_point(k_, grad.value[k], base.value[k], dual.value[k], square.value[k], x.value[k], p.value[k]);
      }
    }
    store<N>(entry_.dual + at, dual);
    store<N>(entry_.square + at, square);
  }

  // The same once more, from the state; before write().
  __device__ __forceinline__ void again(std::int64_t at, A& x, A& p) const {
    const A dual = entry_.dual[at], square = entry_.square[at];
    if (kAdamw) {
      p = std::sqrt(square) * k_.inverse_root + k_.eps;
      x = widen(entry_.param[at]) * k_.rest - k_.size * dual / p;
    } else {
      p = cube_root(square) + k_.eps;
      x = entry_.anchor[at] - dual / p;
    }
  }

  // W = (1 - c) W + c x
  template <int N>
  __device__ __forceinline__ void write(std::int64_t at, Pack<A, N> x) const {
    if (!kAdamw && k_.momentum != A(1)) {
      const Pack<A, N> param = load<N>(entry_.param + at);
#pragma unroll
      for (int k = 0; k < N; ++k) x.value[k] = (A(1) - k_.momentum) * param.value[k] + k_.momentum * x.value[k];
    }
    store<N>(entry_.param + at, x);
  }

  // The norm of a group whose squares overflow or vanish, by one thread. start: of the group's copy.
  __device__ double norm_scaled(const GroupLayout& layout, std::int64_t start, std::int64_t group, double tau) const {
    return metric_norm_scaled(layout.outer * layout.inner, tau, [&](std::int64_t i, double& x, double& p) {
      const std::int64_t row = divide(i, layout.inner);
      A of_x, of_p;
      again(start + row * layout.groups * layout.inner + group * layout.inner + (i - row * layout.inner), of_x, of_p);
      x = double(of_x);
      p = double(of_p);
    });
  }

 private:
  template <int N>
  __device__ __forceinline__ Pack<A, N> load_anchor(std::int64_t at) const {
    return load<N>(entry_.anchor + at);
  }

  const MetricEntry<T>& entry_;
  const MetricNumbers<A> k_;
};

}  // namespace sparse_accel::cuda
