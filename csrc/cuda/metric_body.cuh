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
// block (or, of strips, a cluster) has the columns of `per_block` whole groups.
struct MetricCover {
  GroupLayout layout;
  int per_block;  // groups
  int team;       // runs: threads per group, a power of two; columns: 0
  bool packed;    // 16-byte accesses
  int copies;     // of the segment, one after another

  SPARSE_ACCEL_HOST_DEVICE std::int64_t columns() const { return layout.groups * layout.inner; }
  SPARSE_ACCEL_HOST_DEVICE std::int64_t group_size() const { return layout.outer * layout.inner; }
  SPARSE_ACCEL_HOST_DEVICE std::int64_t size() const { return layout.outer * columns(); }
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

// Elements of a pack: the state's in 16 bytes. Weights of 2 bytes move in 8: packs of 16 would have twice the numbers
// in registers, and no more of them in flight.
template <class T>
constexpr int kMetricWidth = kWidth<Compute<T>>;
template <class T, MetricRule kRule>
class MetricBody {
 public:
  using A = Compute<T>;
  static constexpr bool kAdamw = kRule == MetricRule::adamw;
  static constexpr int kPacks = kAdamw ? 1 : 2;  // that a thread loads before it uses the first: what registers hold

  // start: the first element of the copy
  __device__ MetricBody(const MetricEntry<T>& entry, const MetricNow<A>& now, std::int64_t start)
      : param_(entry.param + start),
        grad_(entry.grad + start),
        dual_(entry.dual + start),
        square_(entry.square + start),
        anchor_(kAdamw ? nullptr : entry.anchor + start),
        k_(now.numbers) {}

  template <int N>
  struct Loaded {
    Pack<A, N> grad, base, dual, square;
  };

  // What first() needs.
  template <int N>
  __device__ __forceinline__ Loaded<N> load_first(std::int64_t at) const {
    Loaded<N> loaded;
    loaded.grad = load<N>(grad_ + at);
    loaded.dual = load<N>(dual_ + at);
    loaded.square = load<N>(square_ + at);
    if constexpr (kAdamw) {
      loaded.base = load<N>(param_ + at);
    } else {
      loaded.base = load<N>(anchor_ + at);
    }
    return loaded;
  }

  // Takes in the gradient; the point x and the metric p, once per element.
  template <int N>
  __device__ __forceinline__ void first(std::int64_t at, const Loaded<N>& loaded, Pack<A, N>& x, Pack<A, N>& p) const {
    Pack<A, N> dual = loaded.dual, square = loaded.square;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A grad = loaded.grad.value[k], base = loaded.base.value[k];
      if (kAdamw) {
        adamw_point(k_, grad, base, dual.value[k], square.value[k], x.value[k], p.value[k]);
      } else {
        ramda_point(k_, grad, base, dual.value[k], square.value[k], x.value[k], p.value[k]);
      }
    }
    store<N>(dual_ + at, dual);
    store<N>(square_ + at, square);
  }

  // The same once more, from the state; before write().
  __device__ __forceinline__ void again(std::int64_t at, A& x, A& p) const {
    const A dual = dual_[at], square = square_[at];
    if (kAdamw) {
      p = quick_root(square) * k_.inverse_root + k_.eps;
      x = widen(param_[at]) * k_.rest - quick_divide(k_.size * dual, p);
    } else {
      p = cube_root(square) + k_.eps;
      x = anchor_[at] - quick_divide(dual, p);
    }
  }

  // What write() needs: W, where some of it stays.
  template <int N>
  __device__ __forceinline__ Pack<A, N> load_last(std::int64_t at) const {
    Pack<A, N> param{};
    if (!kAdamw && k_.momentum != A(1)) param = load<N>(param_ + at);
    return param;
  }

  // W = (1 - c) W + c x
  template <int N>
  __device__ __forceinline__ void write(std::int64_t at, Pack<A, N> x, const Pack<A, N>& param) const {
    if (!kAdamw && k_.momentum != A(1)) {
#pragma unroll
      for (int k = 0; k < N; ++k) x.value[k] = (A(1) - k_.momentum) * param.value[k] + k_.momentum * x.value[k];
    }
    store<N>(param_ + at, x);
  }

  // The norm of a group whose squares overflow or vanish, by one thread.
  __device__ double norm_scaled(const GroupLayout& layout, std::int64_t group, double tau) const {
    return metric_norm_scaled(layout.outer * layout.inner, tau, [&](std::int64_t i, double& x, double& p) {
      const std::int64_t row = divide(i, layout.inner);
      A of_x, of_p;
      again(row * layout.groups * layout.inner + group * layout.inner + (i - row * layout.inner), of_x, of_p);
      x = double(of_x);
      p = double(of_p);
    });
  }

 private:
  T* const param_;
  const T* const grad_;
  A* const dual_;
  A* const square_;
  const A* const anchor_;
  const MetricNumbers<A> k_;
};

}  // namespace sparse_accel::cuda
