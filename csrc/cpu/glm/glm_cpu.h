// Implicit steps of generalized linear models on the CPU. Included once per instruction set: no include guard on
// purpose, everything lives in that set's namespace. Sums are in double, in a fixed order. Nothing of the standard
// library's templates here: the linker could keep an AVX-512 copy for the default build. Callers bring the memory.
namespace sparse_accel {
inline namespace CPU_CAPABILITY {

template <class T>
static GlmRow dense_row(const T* a, const T* z, int64_t columns, double y) {
  double u = 0, q = 0;
#pragma omp simd reduction(+ : u, q)
  for (int64_t j = 0; j < columns; ++j) {
    const double value = a[j];
    u += value * double(z[j]);
    q += value * value;
  }
  return GlmRow{u, q, y};
}

// The next row is on its way while this one's root is found: orders are random, rows come from memory.
static inline void prefetch(const void* begin, int64_t bytes) {
  constexpr int64_t kLine = 64, kMost = 4096;
  for (int64_t at = 0; at < bytes && at < kMost; at += kLine) __builtin_prefetch(static_cast<const char*>(begin) + at);
}

template <class T>
static int64_t glm_prox(const GlmProblem& problem, const void* z_data, void* out_data) {
  const GlmRows& data = problem.data;
  const T* const values = static_cast<const T*>(data.values);
  const T* const z = static_cast<const T*>(z_data);
  T* const out = static_cast<T*>(out_data);
  double* const sum = problem.sum;
  for (int64_t j = 0; j < data.columns; ++j) sum[j] = 0;
  int64_t most = 0;
  for (int64_t i = 0; i < data.rows; ++i) {
    const int64_t begin = data.crow ? data.crow[i] : 0, end = data.crow ? data.crow[i + 1] : 0;
    const T* const a = data.crow ? values : values + i * data.columns;
    GlmRow row{0, 0, data.targets[i]};
    if (data.crow) {
      for (int64_t k = begin; k < end; ++k) {
        row.u += double(a[k]) * double(z[data.col[k]]);
        row.q += double(a[k]) * double(a[k]);
      }
    } else {
      row = dense_row(a, z, data.columns, row.y);
    }
    const GlmStep step = glm_step(problem.family, row, problem.lr, problem.delta);
    most = step.iterations > most ? step.iterations : most;
    for (int64_t k = begin; k < end; ++k) sum[data.col[k]] += step.xi * double(a[k]);
    if (!data.crow) {
#pragma omp simd
      for (int64_t j = 0; j < data.columns; ++j) sum[j] += step.xi * double(a[j]);
    }
  }
  const double rows = data.rows > 0 ? double(data.rows) : 1.0;
  for (int64_t j = 0; j < data.columns; ++j) out[j] = T(double(z[j]) + sum[j] / rows);
  return most;
}

// z is formed in the place of x, with x moved to `previous`; then the step is added.
template <class T>
static int64_t dense_epoch(const GlmEpoch& epoch) {
  const GlmProblem& problem = epoch.problem;
  const int64_t columns = problem.data.columns;
  T* const x = static_cast<T*>(epoch.x);
  T* const previous = static_cast<T*>(epoch.previous);
  double* const average = epoch.average;
  const T beta = T(epoch.beta);
  int64_t total = 0;
  for (int64_t k = 0; k < epoch.steps; ++k) {
    const int64_t i = epoch.order[k];
    const T* const a = static_cast<const T*>(problem.data.values) + i * columns;
    if (k + 1 < epoch.steps) {
      const T* const next = static_cast<const T*>(problem.data.values) + epoch.order[k + 1] * columns;
      prefetch(next, columns * int64_t(sizeof(T)));
    }
    if (beta != T(0)) {
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) {
        const T now = x[j];
        x[j] = now + beta * (now - previous[j]);
        previous[j] = now;
      }
    } else if (k + 1 == epoch.steps) {
      for (int64_t j = 0; j < columns; ++j) previous[j] = x[j];
    }
    const GlmRow row = dense_row(a, x, columns, problem.data.targets[i]);
    const GlmStep step = glm_step(problem.family, row, problem.lr, problem.delta);
    total += step.iterations;
    const double xi = step.xi;
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) x[j] = T(double(x[j]) + xi * double(a[j]));
    if (average && k >= epoch.average_start) {
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) average[j] += double(x[j]);
    }
  }
  return total;
}

static inline void catch_up(GlmColumn& column, int64_t now, bool averaging, const GlmDrift* drift) {
  const int64_t e = now - column.time;
  if (e == 0) return;
  column.time = now;
  if (averaging) column.total += double(e) * column.x;
  if (drift == nullptr) {
    column.m = 0;
  } else if (column.m != 0) {
    if (averaging) column.total += column.m * drift[e].sum_of_sums;
    column.x += column.m * drift[e].sum;
    column.m *= drift[e].power;
  }
}

template <class T>
static int64_t sparse_epoch(const GlmEpoch& epoch) {
  const GlmProblem& problem = epoch.problem;
  const GlmRows& data = problem.data;
  const T* const values = static_cast<const T*>(data.values);
  T* const x = static_cast<T*>(epoch.x);
  T* const previous = static_cast<T*>(epoch.previous);
  const double beta = epoch.beta;
  GlmDrift* const drift = beta == 0 ? nullptr : epoch.drift;
  if (drift) {
    drift[0] = GlmDrift{1, 0, 0};
    for (int64_t e = 1; e <= epoch.steps; ++e) {
      const double power = drift[e - 1].power * beta, sum = drift[e - 1].sum + power;
      drift[e] = GlmDrift{power, sum, drift[e - 1].sum_of_sums + sum};
    }
  }
  GlmColumn* const columns = epoch.columns;
  for (int64_t j = 0; j < data.columns; ++j) {
    columns[j] = GlmColumn{double(x[j]), double(x[j]) - double(previous[j]), 0, 0};
  }
  int64_t total = 0;
  bool averaging = false;
  for (int64_t k = 0; k < epoch.steps; ++k) {
    if (epoch.average && k == epoch.average_start) {
      for (int64_t j = 0; j < data.columns; ++j) catch_up(columns[j], k, false, drift);
      averaging = true;
    }
    const int64_t i = epoch.order[k], begin = data.crow[i], end = data.crow[i + 1];
    if (k + 1 < epoch.steps) {
      const int64_t next = data.crow[epoch.order[k + 1]];
      prefetch(values + next, 128);
      prefetch(data.col + next, 128);
    }
    GlmRow row{0, 0, data.targets[i]};
    for (int64_t p = begin; p < end; ++p) {
      GlmColumn& column = columns[data.col[p]];
      catch_up(column, k, averaging, drift);
      const double value = values[p];
      row.u += value * (column.x + beta * column.m);
      row.q += value * value;
    }
    const GlmStep step = glm_step(problem.family, row, problem.lr, problem.delta);
    total += step.iterations;
    for (int64_t p = begin; p < end; ++p) {
      GlmColumn& column = columns[data.col[p]];
      column.m = beta * column.m + step.xi * double(values[p]);
      column.x += column.m;
      if (averaging) column.total += column.x;
      column.time = k + 1;
    }
  }
  for (int64_t j = 0; j < data.columns; ++j) {
    GlmColumn& column = columns[j];
    catch_up(column, epoch.steps, averaging, drift);
    x[j] = T(column.x);
    previous[j] = T(column.x - column.m);
    if (averaging) epoch.average[j] = column.total;
  }
  return total;
}

template <class T>
static int64_t glm_epoch(const GlmEpoch& epoch) {
  const int64_t columns = epoch.problem.data.columns;
  for (int64_t j = 0; epoch.average && j < columns; ++j) epoch.average[j] = 0;
  const int64_t total = epoch.problem.data.crow ? sparse_epoch<T>(epoch) : dense_epoch<T>(epoch);
  if (epoch.average) {
    const double count = double(epoch.steps - epoch.average_start);
    for (int64_t j = 0; j < columns; ++j) epoch.average[j] /= count;
  }
  return total;
}

static const GlmKernels glm_table = {{&glm_prox<float>, &glm_prox<double>}, {&glm_epoch<float>, &glm_epoch<double>}};

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
