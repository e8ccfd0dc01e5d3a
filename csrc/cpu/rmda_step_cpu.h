// RMDA on one strip: pass 1 adds the gradient into V and takes the group norms of x = W0 - V / beta,
// pass 2 shrinks x and mixes it into W. Included once per instruction set (no include guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

template <class T>
struct Rmda {
  using A = Acc<T>;
  using V = Vec<T>;

  T* param;
  const T* grad;
  A* grad_sum;
  const A* anchor;
  A step, inv_beta, tau, size, momentum;
  Prox prox;

  explicit Rmda(const RmdaTask& task)
      : param(static_cast<T*>(task.param)),
        grad(static_cast<const T*>(task.grad)),
        grad_sum(static_cast<A*>(task.grad_sum)),
        anchor(static_cast<const A*>(task.anchor)),
        step(static_cast<A>(task.step_size * task.inv_grad_scale)),
        inv_beta(static_cast<A>(task.inv_beta)),
        tau(static_cast<A>(task.tau)),
        size(static_cast<A>(task.size)),
        momentum(static_cast<A>(task.momentum)),
        prox(task.prox) {}

  // V += s grad; returns x = W0 - V / beta.
  template <class Count>
  V accumulate(int64_t at, Count count) const {
    const V sum = at::vec::fmadd(V(step), load_lanes<T>(grad + at, count), load_lanes<A>(grad_sum + at, count));
    store_lanes<A>(grad_sum + at, sum, count);
    return at::vec::fnmadd(sum, V(inv_beta), load_lanes<A>(anchor + at, count));
  }

  template <class Count>
  V point(int64_t at, Count count) const {
    return at::vec::fnmadd(load_lanes<A>(grad_sum + at, count), V(inv_beta), load_lanes<A>(anchor + at, count));
  }

  // W = (1 - c) W + c x; c = 1 takes x as it is, whatever W was.
  template <class Count>
  void mix(int64_t at, Count count, V x) const {
    if (momentum != A(1)) {
      x = at::vec::fmadd(load_lanes<T>(param + at, count), V(A(1) - momentum), V(momentum) * x);
    }
    store_lanes<T>(param + at, x, count);
  }

  A scale(A square) const { return prox_scale<A>(prox, square, tau, size); }

  // Every element its own group: one pass.
  void elements(int64_t length) const {
    for_lanes<T>(length, [&](int64_t at, auto count) {
      const V x = accumulate(at, count);
      if (tau == A(0)) return mix(at, count, x);
      if (prox == Prox::hard) {
        const V keep = x * x > V(A(2) * tau);
        return mix(at, count, V::blendv(V(0), x, keep));
      }
      const V shrunk = at::vec::maximum(x.abs() - V(tau), V(0));
      mix(at, count, V::blendv(shrunk, shrunk.neg(), x < V(0)));
    });
  }

  // Groups of long runs; one row of groups is still in cache when it is shrunk.
  void long_runs(const Strip& s, A* squares) const {
    for (int64_t g = 0; g < s.groups; ++g) squares[g] = 0;
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t g = 0; g < s.groups; ++g) {
        const int64_t first = r * s.row_stride + g * s.inner;
        V total[2] = {V(0), V(0)};
        for_lanes<T>(s.inner, [&](int64_t at, auto count) {
          const V x = accumulate(first + at, count);
          V& t = total[(at / kLanes<T>) & 1];
          t = at::vec::fmadd(x, x, t);
        });
        squares[g] += sum_lanes(total[0] + total[1]);
      }
    }
    for (int64_t r = s.rows - 1; r >= 0; --r) {
      for (int64_t g = 0; g < s.groups; ++g) {
        const int64_t first = r * s.row_stride + g * s.inner;
        const A factor = scale(squares[g]);
        for_lanes<T>(s.inner, [&](int64_t at, auto count) {
          mix(first + at, count, factor == A(0) ? V(0) : point(first + at, count) * V(factor));
        });
      }
    }
  }

  void short_runs(const Strip& s, A* acc) const {
    const int64_t length = s.groups * s.inner;
    for_lanes<A>(length, [&](int64_t at, auto count) { store_lanes<A>(acc + at, V(0), count); });
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t first = r * s.row_stride;
      for_lanes<T>(length, [&](int64_t at, auto count) {
        const V x = accumulate(first + at, count);
        store_lanes<A>(acc + at, at::vec::fmadd(x, x, load_lanes<A>(acc + at, count)), count);
      });
    }
    fold_runs(acc, s.groups, s.inner, [](A a, A b) { return a + b; });
    for (int64_t g = 0; g < s.groups; ++g) acc[g] = scale(acc[g]);
    spread_runs(acc, s.groups, s.inner);
    for (int64_t r = s.rows - 1; r >= 0; --r) {  // backwards: the last rows are the ones still in cache
      const int64_t first = r * s.row_stride;
      for_lanes<T>(length, [&](int64_t at, auto count) {
        const V factor = load_lanes<A>(acc + at, count);
        const V x = point(first + at, count) * factor;
        mix(first + at, count, V::blendv(x, V(0), factor == V(0)));
      });
    }
  }
};

template <class T>
void rmda_step(const RmdaTask& task, void* scratch) {
  const Rmda<T> rmda(task);
  const Strip& s = task.strip;
  auto* acc = static_cast<Acc<T>*>(scratch);
  if (task.size == 1) {
    rmda.elements(s.groups);
  } else if (s.inner >= kLongRun) {
    rmda.long_runs(s, acc);
  } else {
    rmda.short_runs(s, acc);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
