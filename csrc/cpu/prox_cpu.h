// Proximal operator on one strip, in place: group norms, then the shrink. Included once per instruction set
// (no include guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// Every element its own group: one pass.
template <class T>
void prox_elements(const ProxTask& task, T* x) {
  using A = Acc<T>;
  using V = Vec<T>;
  const V tau(static_cast<A>(task.tau)), zero(0), one(1);
  const bool hard = task.prox == Prox::hard;
  V value[2] = {zero, zero};  // the tail may hold fewer lanes: the rest are zeros
  for_lanes<T>(task.strip.groups, [&](int64_t at, auto count) {
    const V v = load_lanes<T>(x + at, count);
    V shrunk;
    if (hard) {
      shrunk = task.tau == 0 ? v : V::blendv(zero, v, v * v > tau + tau);
      value[(at / kLanes<T>) & 1] += V::blendv(one, zero, shrunk == zero);
    } else {
      const V size = at::vec::maximum(v.abs() - tau, zero);
      shrunk = V::blendv(size, size.neg(), v < zero);
      value[(at / kLanes<T>) & 1] += size;
    }
    store_lanes<T>(x + at, shrunk, count);
  });
  if (task.value) *task.value = static_cast<double>(sum_lanes(value[0] + value[1]));
}

template <class T>
void prox(const ProxTask& task, void* scratch) {
  using A = Acc<T>;
  using V = Vec<T>;
  const Strip& s = task.strip;
  auto* x = static_cast<T*>(task.x);
  if (task.size == 1) return prox_elements<T>(task, x);
  auto* factors = static_cast<A*>(scratch);  // squared norms at first
  score_strip<T, Score::l2sq>(ScoreTask{s, x, factors, Score::l2sq}, factors);

  const A tau = static_cast<A>(task.tau), size = static_cast<A>(task.size);
  double value = 0;
  for (int64_t g = 0; g < s.groups; ++g) {
    const A square = factors[g];
    factors[g] = prox_scale<A>(task.prox, square, tau, size);
    value += static_cast<double>(penalty_value<A>(task.prox, square, factors[g], size));
  }
  if (task.value) *task.value = value;
  if (tau == A(0)) return;

  if (s.inner >= kLongRun) {
    for (int64_t r = s.rows - 1; r >= 0; --r) {  // backwards: the last rows are the ones still in cache
      for (int64_t g = 0; g < s.groups; ++g) {
        T* run = x + r * s.row_stride + g * s.inner;
        const A factor = factors[g];
        if (factor == A(1)) continue;
        for_lanes<T>(s.inner, [&](int64_t at, auto count) {
          store_lanes<T>(run + at, factor == A(0) ? V(0) : load_lanes<T>(run + at, count) * V(factor), count);
        });
      }
    }
    return;
  }
  spread_runs(factors, s.groups, s.inner);
  for (int64_t r = s.rows - 1; r >= 0; --r) {
    T* row = x + r * s.row_stride;
    for_lanes<T>(s.groups * s.inner, [&](int64_t at, auto count) {
      const V factor = load_lanes<A>(factors + at, count);
      const V shrunk = load_lanes<T>(row + at, count) * factor;
      store_lanes<T>(row + at, V::blendv(shrunk, V(0), factor == V(0)), count);
    });
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
