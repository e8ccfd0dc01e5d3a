// Proximal operator on a strip, in place: group norms, then the shrink. Included once per instruction set (no include
// guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// Every element its own group: one pass, also exact where squares would overflow or vanish.
template <class T>
double prox_elements(const ProxTask& task, T* x) {
  using A = Acc<T>;
  using V = Vec<T>;
  const V tau(static_cast<A>(task.tau)), zero(0), one(1);
  const bool hard = task.prox == Prox::hard;
  V value[2] = {zero, zero};  // lanes past the tail hold zeros, which add nothing
  for_lanes<T>(task.strip.groups, [&](int64_t at, auto count) {
    const V v = load_lanes<T>(x + at, count);
    V shrunk;
    if (hard) {
      shrunk = task.tau == 0 ? v : V::blendv(zero, v, v * v > tau + tau);
      value[(at / kLanes<T>)&1] += V::blendv(one, zero, shrunk == zero);
    } else {
      const V size = at::vec::maximum(v.abs() - tau, zero);
      shrunk = V::blendv(size, size.neg(), v < zero);
      value[(at / kLanes<T>)&1] += size;
    }
    store_lanes<T>(x + at, shrunk, count);
  });
  return static_cast<double>(sum_lanes(value[0] + value[1]));
}

template <class T>
void prox_sums(const ProxTask& task, void* sums) {
  score_sums_of<T, Score::l2sq>(task.strip, static_cast<const T*>(task.x), static_cast<Acc<T>*>(sums));
}

template <class T>
double prox_join(const ProxTask& task, void* sums, int64_t parts) {
  using A = Acc<T>;
  return prox_factors<A>(static_cast<A*>(sums), parts, task.strip, task.prox, static_cast<A>(task.tau),
                         static_cast<A>(task.size));
}

template <class T>
void prox_apply(const ProxTask& task, const void* factors_) {
  using A = Acc<T>;
  using V = Vec<T>;
  const Strip& s = task.strip;
  const auto* factors = static_cast<const A*>(factors_);
  if (task.tau == 0) return;
  for (int64_t r = 0; r < s.rows; ++r) {
    T* row = static_cast<T*>(task.x) + r * s.row_stride;
    if (s.inner < kLongRun) {
      for_lanes<T>(s.groups * s.inner, [&](int64_t at, auto count) {
        __builtin_prefetch(row + at + kAhead, 1);
        const V factor = load_lanes<A>(factors + at, count);
        const V shrunk = load_lanes<T>(row + at, count) * factor;
        store_lanes<T>(row + at, V::blendv(shrunk, V(0), factor == V(0)), count);
      });
      continue;
    }
    for (int64_t g = 0; g < s.groups; ++g) {
      T* run = row + g * s.inner;
      const A factor = factors[g];
      if (factor == A(1)) continue;
      for_lanes<T>(s.inner, [&](int64_t at, auto count) {
        store_lanes<T>(run + at, factor == A(0) ? V(0) : load_lanes<T>(run + at, count) * V(factor), count);
      });
    }
  }
}

template <class T>
double prox(const ProxTask& task, void* scratch) {
  auto* x = static_cast<T*>(task.x);
  if (task.size == 1) return prox_elements<T>(task, x);
  double value = 0;
  const auto whole = [&](const Strip& s, int64_t first) {
    ProxTask part = task;
    part.strip = s;
    part.x = x + first;
    prox_sums<T>(part, scratch);
    value += prox_join<T>(part, scratch, 1);
    prox_apply<T>(part, scratch);
  };
  if (task.strip.rows == 1) {
    for_blocks(task.strip, whole);
  } else {
    whole(task.strip, 0);
  }
  return value;
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
