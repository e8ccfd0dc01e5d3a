// Steps that end in a proximal operator in a diagonal metric, on a strip: the first pass takes in the gradient and
// leaves the point x and the metric P in scratch memory, some passes over that find the norm of every group, the last
// one writes the weights. Included once per instruction set (no include guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

constexpr int64_t kChunk = 512;     // elements between conversions; sums in the compute type are no longer
constexpr int64_t kFlushRows = 32;  // of a column sum in the compute type
constexpr int64_t kSumLanes = 16;   // sums side by side along a run

template <class T, bool kAdamw>
struct MetricStep {
  using A = Acc<T>;

  T* param;
  const T* grad;
  A* dual;
  A* square;
  const A* anchor;
  MetricNumbers<A> k;
  double tau;
  Prox prox;

  explicit MetricStep(const MetricTask& task)
      : param(static_cast<T*>(task.param)),
        grad(static_cast<const T*>(task.grad)),
        dual(static_cast<A*>(task.dual)),
        square(static_cast<A*>(task.square)),
        anchor(static_cast<const A*>(task.anchor)),
        k{static_cast<A>(task.numbers.grad_factor),  static_cast<A>(task.numbers.rate),
          static_cast<A>(task.numbers.eps),          static_cast<A>(task.numbers.momentum),
          static_cast<A>(task.numbers.mean_share),   static_cast<A>(task.numbers.decay),
          static_cast<A>(task.numbers.square_share), static_cast<A>(task.numbers.rest),
          static_cast<A>(task.numbers.size),         static_cast<A>(task.numbers.inverse_root),
          static_cast<A>(task.numbers.tau)},
        tau(task.numbers.tau),
        prox(task.prox) {}

  // `count` numbers as the compute type: where they are, or converted into `buffer`.
  static const A* widened(const T* from, int64_t count, A* buffer) {
    if constexpr (kReduced<T>) {
      for_lanes<T>(
          count, [&](int64_t at, auto lanes) { store_lanes<A>(buffer + at, load_lanes<T>(from + at, lanes), lanes); });
      return buffer;
    } else {
      return from;
    }
  }

  // Takes in the gradient of at most kChunk elements; their x and P, and AdamW's weights before the step.
  void points(int64_t first, int64_t count, A* x, A* p, A* before) const {
    A buffer[kChunk];
    const A* g = widened(grad + first, count, buffer);
    const A* w = kAdamw ? widened(param + first, count, before) : nullptr;
    A* v = dual + first;
    A* u = square + first;
    const A* w0 = kAdamw ? nullptr : anchor + first;
    const MetricNumbers<A> numbers = k;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      A mean = v[i], squares = u[i], point, metric;
      if constexpr (kAdamw) {
        adamw_point(numbers, g[i], w[i], mean, squares, point, metric);
      } else {
        ramda_point(numbers, g[i], w0[i], mean, squares, point, metric);
      }
      v[i] = mean;
      u[i] = squares;
      x[i] = point;
      p[i] = metric;
    }
    if constexpr (kAdamw && !kReduced<T>) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) before[i] = w[i];
    }
  }

  // W = (1 - c) W + c x; c = 1 takes x as it is, whatever W was.
  void write(int64_t first, int64_t count, const A* x) const {
    A buffer[kChunk];
    const A c = k.momentum, rest = A(1) - k.momentum;
    const bool mixed = !kAdamw && c != A(1);
    const A* w = mixed ? widened(param + first, count, buffer) : x;
    A* to = buffer;
    if constexpr (!kReduced<T>) to = param + first;
    if (mixed) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) to[i] = rest * w[i] + c * x[i];
    } else {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) to[i] = x[i];
    }
    if constexpr (kReduced<T>) {
      for_lanes<T>(count, [&](int64_t at, auto lanes) {
        store_lanes<T>(param + first + at, load_lanes<A>(buffer + at, lanes), lanes);
      });
    }
  }

  // No penalty, or every element its own group: one pass.
  void elements(int64_t length) const {
    A x[kChunk], p[kChunk], before[kChunk];
    const A bound = k.tau;
    for (int64_t at = 0; at < length; at += kChunk) {
      const int64_t count = length - at < kChunk ? length - at : kChunk;
      points(at, count, x, p, before);
      if (bound != A(0) && prox == Prox::hard) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) x[i] = metric_shrunk_element(Prox::hard, x[i], p[i], bound);
      } else if (bound != A(0)) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) x[i] = metric_shrunk_element(Prox::soft, x[i], p[i], bound);
      }
      write(at, count, x);
    }
  }
};

// Memory of one strip of whole groups: x and P [rows, groups * inner], sums by column and by group.
template <class A>
struct MetricScratch {
  A *x, *p, *before, *column[3], *norm;
  MetricSums* sums;   // [groups]
  MetricRoot* roots;  // [groups]

  MetricScratch(double* memory, const Strip& s) {
    const int64_t width = s.groups * s.inner, elements = s.rows * width;
    auto* next = reinterpret_cast<A*>(memory);
    const auto take = [&](int64_t count) {
      A* const out = next;
      next += (count + 15) / 16 * 16;
      return out;
    };
    sums = reinterpret_cast<MetricSums*>(take(s.groups * int64_t(sizeof(MetricSums) / sizeof(A))));
    roots = reinterpret_cast<MetricRoot*>(take(s.groups * int64_t(sizeof(MetricRoot) / sizeof(A))));
    x = take(elements);
    p = take(elements);
    before = take(width);
    for (A*& c : column) c = take(width);
    norm = take(width);
  }
};

// Adds up terms of a strip by group: stretch(r, first, count) is called before the elements of row r from `first` on
// are summed (`count` at most kChunk); term(i, column) gives what element i of the scratch memory adds.
template <class A, class Stretch, class Term>
inline void metric_reduce(const Strip& s, MetricScratch<A>& m, const Stretch& stretch, const Term& term) {
  const int64_t width = s.groups * s.inner;
  for (int64_t g = 0; g < s.groups; ++g) m.sums[g] = MetricSums{0, 0, 0};
  if (s.inner >= kLongRun) {
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t g = 0; g < s.groups; ++g) {
        for (int64_t at = 0; at < s.inner; at += kChunk) {
          const int64_t first = g * s.inner + at, count = s.inner - at < kChunk ? s.inner - at : kChunk;
          if (!stretch(r, first, count, g)) continue;
          // Side by side as in columns: compilers vectorize this, and not every reduction of three sums.
          A lanes[3][kSumLanes] = {};
          int64_t i = 0;
          for (; i + kSumLanes <= count; i += kSumLanes) {
#pragma omp simd
            for (int64_t l = 0; l < kSumLanes; ++l) {
              const MetricTerm<A> t = term(r * width + first + i + l, first + i + l);
              lanes[0][l] += t.total;
              lanes[1][l] += t.slope;
              lanes[2][l] += t.bend;
            }
          }
          for (; i < count; ++i) {
            const MetricTerm<A> t = term(r * width + first + i, first + i);
            lanes[0][0] += t.total;
            lanes[1][0] += t.slope;
            lanes[2][0] += t.bend;
          }
          A total = 0, slope = 0, bend = 0;
          for (int64_t l = 0; l < kSumLanes; ++l) {
            total += lanes[0][l];
            slope += lanes[1][l];
            bend += lanes[2][l];
          }
          m.sums[g].total += total;
          m.sums[g].slope += slope;
          m.sums[g].bend += bend;
        }
      }
    }
    return;
  }
  A *const total = m.column[0], *const slope = m.column[1], *const bend = m.column[2];
  for (int64_t i = 0; i < width; ++i) total[i] = slope[i] = bend[i] = 0;
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t first = 0; first < width; first += kChunk) {
      const int64_t count = width - first < kChunk ? width - first : kChunk;
      stretch(r, first, count, 0);
#pragma omp simd
      for (int64_t i = first; i < first + count; ++i) {
        const MetricTerm<A> t = term(r * width + i, i);
        total[i] += t.total;
        slope[i] += t.slope;
        bend[i] += t.bend;
      }
    }
    if ((r + 1) % kFlushRows != 0 && r + 1 != s.rows) continue;
    for (int64_t g = 0; g < s.groups; ++g) {
      for (int64_t i = g * s.inner; i < (g + 1) * s.inner; ++i) {
        m.sums[g].total += static_cast<double>(total[i]);
        m.sums[g].slope += static_cast<double>(slope[i]);
        m.sums[g].bend += static_cast<double>(bend[i]);
        total[i] = slope[i] = bend[i] = 0;
      }
    }
  }
}

// The norm of a group whose squares overflow or vanish.
template <class A>
inline double metric_norm_of(const Strip& s, const MetricScratch<A>& m, int64_t group, double tau) {
  const int64_t width = s.groups * s.inner;
  return metric_norm_scaled(s.rows * s.inner, tau, [&](int64_t i, double& x, double& p) {
    const int64_t at = i / s.inner * width + group * s.inner + i % s.inner;
    x = static_cast<double>(m.x[at]);
    p = static_cast<double>(m.p[at]);
  });
}

// Newton on all groups of a strip; their norms by column, 0 for zero groups.
template <class A>
inline void metric_norms(const Strip& s, MetricScratch<A>& m, A tau, double bound) {
  for (int64_t g = 0; g < s.groups; ++g) {
    const MetricSums& sums = m.sums[g];
    if (metric_in_range<A>(sums.total, sums.slope)) {
      m.roots[g] = metric_start(sums.total, sums.slope, bound, std::sqrt(sums.bend));
    } else {
      m.roots[g] = MetricRoot{metric_norm_of(s, m, g, bound), 0, true};
    }
  }
  const auto spread = [&] {
    bool all = true;
    for (int64_t g = 0; g < s.groups; ++g) {
      all = all && m.roots[g].done;
      const A n = static_cast<A>(m.roots[g].n);
      for (int64_t i = g * s.inner; i < (g + 1) * s.inner; ++i) m.norm[i] = n;
    }
    return all;
  };
  const A *const x = m.x, *const p = m.p, *const norm = m.norm;
  for (int step = 0; !spread() && step < kMetricSteps; ++step) {
    metric_reduce(
        s, m, [&](int64_t, int64_t, int64_t, int64_t g) { return s.inner < kLongRun || !m.roots[g].done; },
        [=](int64_t i, int64_t column) { return metric_term(x[i], p[i], norm[column], tau); });
    for (int64_t g = 0; g < s.groups; ++g) {
      if (!m.roots[g].done) m.roots[g] = metric_next(m.roots[g], m.sums[g], kMetricTolerance<A>);
    }
  }
}

template <class T, bool kAdamw>
void metric_groups(const MetricTask& task, double* memory) {
  using A = Acc<T>;
  const Strip& s = task.strip;
  const MetricStep<T, kAdamw> step(task);
  MetricScratch<A> m(memory, s);
  const int64_t width = s.groups * s.inner;
  const bool hard = task.prox == Prox::hard;
  constexpr int64_t kAheadRows = 4;
  const auto take_in = [&](int64_t r, int64_t first, int64_t count, int64_t) {
    const int64_t at = r * s.row_stride + first;
    if (r + kAheadRows < s.rows) {  // streams that the hardware does not see
      const int64_t next = at + kAheadRows * s.row_stride;
      for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(A))) {
        __builtin_prefetch(step.grad + next + i);
        __builtin_prefetch(step.dual + next + i, 1);
        __builtin_prefetch(step.square + next + i, 1);
        __builtin_prefetch(step.param + next + i, 1);
        if (!kAdamw) __builtin_prefetch(step.anchor + next + i);
      }
    }
    step.points(at, count, m.x + r * width + first, m.p + r * width + first, m.before + first);
    return true;
  };
  const A *const x = m.x, *const p = m.p, *const before = m.before;
  if (hard) {
    metric_reduce(s, m, take_in, [=](int64_t i, int64_t) { return MetricTerm<A>{p[i] * x[i] * x[i], A(0), A(0)}; });
    const double bound = 2 * task.numbers.tau * task.size;
    for (int64_t g = 0; g < s.groups; ++g) {
      const A kept = m.sums[g].total <= bound ? A(0) : A(1);
      for (int64_t i = g * s.inner; i < (g + 1) * s.inner; ++i) m.norm[i] = kept;
    }
  } else {
    metric_reduce(s, m, take_in, [=](int64_t i, int64_t column) {
      const A q = x[i] * p[i], square = q * q;
      // AdamW's weights are the last minimizer, whose norms are near. Those of RAMDA are a mean, and no part of its
      // state.
      return MetricTerm<A>{square, square * p[i], kAdamw ? before[column] * before[column] : A(0)};
    });
    metric_norms<A>(s, m, static_cast<A>(task.numbers.tau), task.numbers.tau);
  }
  A shrunk[kChunk];
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t first = 0; first < width; first += kChunk) {
      const int64_t count = width - first < kChunk ? width - first : kChunk;
      const A *const xs = x + r * width + first, *const ps = p + r * width + first, *const norm = m.norm + first;
      if (hard) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) shrunk[i] = norm[i] == A(0) ? A(0) : xs[i];
      } else {
        const A tau = static_cast<A>(task.numbers.tau);
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) shrunk[i] = metric_shrunk(xs[i], ps[i], norm[i], tau);
      }
      step.write(r * s.row_stride + first, count, shrunk);
    }
  }
}

template <class T, bool kAdamw>
void metric_step(const MetricTask& task, double* scratch) {
  using A = Acc<T>;
  if (task.numbers.tau == 0 || task.size == 1) {
    return MetricStep<T, kAdamw>(task).elements(task.strip.groups * task.strip.inner);  // one row
  }
  if (task.strip.rows > 1) return metric_groups<T, kAdamw>(task, scratch);
  const int64_t groups = task.strip.inner < kMetricBlock ? kMetricBlock / task.strip.inner : 1;
  for (int64_t g = 0; g < task.strip.groups; g += groups) {
    MetricTask part = task;
    const int64_t first = g * task.strip.inner;
    part.strip.groups = task.strip.groups - g < groups ? task.strip.groups - g : groups;
    part.param = static_cast<T*>(task.param) + first;
    part.grad = static_cast<const T*>(task.grad) + first;
    part.dual = static_cast<A*>(task.dual) + first;
    part.square = static_cast<A*>(task.square) + first;
    if (!kAdamw) part.anchor = static_cast<const A*>(task.anchor) + first;
    metric_groups<T, kAdamw>(part, scratch);
  }
}

template <class T>
void ramda_step(const MetricTask& task, double* scratch) {
  metric_step<T, false>(task, scratch);
}
template <class T>
void adamw_step(const MetricTask& task, double* scratch) {
  metric_step<T, true>(task, scratch);
}

// In the order of dtype_index.
static const MetricKernels metric_table = {
    {&ramda_step<float>, &ramda_step<double>, &ramda_step<c10::BFloat16>, &ramda_step<c10::Half>},
    {&adamw_step<float>, &adamw_step<double>, &adamw_step<c10::BFloat16>, &adamw_step<c10::Half>}};

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
