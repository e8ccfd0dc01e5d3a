// RMDA on a strip: the first pass moves the dual-averaging point X and takes its group norms, the second shrinks it and
// mixes it into W. Included once per instruction set (no include guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

template <class T>
struct Rmda {
  using A = Acc<T>;
  using V = Vec<T>;

  T* param;
  const T* grad;
  A* point;
  const A* anchor;
  A lr, decay, tau, size, momentum;
  Prox prox;

  explicit Rmda(const RmdaTask& task)
      : param(static_cast<T*>(task.param)),
        grad(static_cast<const T*>(task.grad)),
        point(static_cast<A*>(task.point)),
        anchor(static_cast<const A*>(task.anchor)),
        lr(static_cast<A>(task.lr)),
        decay(static_cast<A>(task.decay)),
        tau(static_cast<A>(task.tau)),
        size(static_cast<A>(task.size)),
        momentum(static_cast<A>(task.momentum)),
        prox(task.prox) {}

  // X = W0 + decay (X - W0) - lr grad.
  template <class Count>
  V accumulate(int64_t at, Count count) const {
    const V w0 = load_lanes<A>(anchor + at, count);
    const V moved = at::vec::fmadd(V(decay), load_lanes<A>(point + at, count) - w0, w0);
    const V x = at::vec::fnmadd(V(lr), load_lanes<T>(grad + at, count), moved);
    store_lanes<A>(point + at, x, count);
    return x;
  }

  // W = (1 - c) W + c x; c = 1 takes x as it is, whatever W was.
  template <class Count>
  void mix(int64_t at, Count count, V x) const {
    if (momentum != A(1)) {
      x = at::vec::fmadd(load_lanes<T>(param + at, count), V(A(1) - momentum), V(momentum) * x);
    }
    store_lanes<T>(param + at, x, count);
  }

  // Every element its own group: one pass.
  void elements(int64_t length) const {
    for_lanes<T>(length, [&](int64_t at, auto count) {
      const V x = accumulate(at, count);
      if (tau == A(0)) return mix(at, count, x);
      if (prox == Prox::hard) return mix(at, count, V::blendv(V(0), x, x * x > V(A(2) * tau)));
      const V shrunk = at::vec::maximum(x.abs() - V(tau), V(0));
      mix(at, count, V::blendv(shrunk, shrunk.neg(), x < V(0)));
    });
  }

  void sums(const Strip& s, A* squares) const {
    const int64_t width = sums_width(s);
    for (int64_t i = 0; i < width; ++i) squares[i] = 0;
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t row = r * s.row_stride;
      if (s.inner >= kLongRun) {
        for (int64_t g = 0; g < s.groups; ++g) squares[g] += run_square(row + g * s.inner, s.inner);
        continue;
      }
      for_lanes<T>(width, [&](int64_t at, auto count) {
        __builtin_prefetch(grad + row + at + kAhead);
        __builtin_prefetch(point + row + at + kAhead, 1);
        __builtin_prefetch(anchor + row + at + kAhead);
        const V x = accumulate(row + at, count);
        store_lanes<A>(squares + at, at::vec::fmadd(x, x, load_lanes<A>(squares + at, count)), count);
      });
    }
  }

  A run_square(int64_t first, int64_t length) const {
    V total[2] = {V(0), V(0)};
    for_lanes<T>(length, [&](int64_t at, auto count) {
      __builtin_prefetch(param + first + at, 1);  // wanted as soon as the run's norm is known
      const V x = accumulate(first + at, count);
      V& t = total[(at / kLanes<T>)&1];
      t = at::vec::fmadd(x, x, t);
    });
    return sum_lanes(total[0] + total[1]);
  }

  void apply(const Strip& s, const A* factors) const {
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t row = r * s.row_stride;
      if (s.inner >= kLongRun) {
        for (int64_t g = 0; g < s.groups; ++g) {
          const A factor = factors[g];
          for_lanes<T>(s.inner, [&](int64_t at, auto count) {
            const int64_t i = row + g * s.inner + at;
            mix(i, count, factor == A(0) ? V(0) : load_lanes<A>(point + i, count) * V(factor));
          });
        }
        continue;
      }
      for_lanes<T>(s.groups * s.inner, [&](int64_t at, auto count) {
        __builtin_prefetch(param + row + at + kAhead, 1);
        __builtin_prefetch(point + row + at + kAhead);
        const V factor = load_lanes<A>(factors + at, count);
        const V x = load_lanes<A>(point + row + at, count) * factor;
        mix(row + at, count, V::blendv(x, V(0), factor == V(0)));
      });
    }
  }
};

template <class T>
void rmda_sums(const RmdaTask& task, void* sums) {
  Rmda<T>(task).sums(task.strip, static_cast<Acc<T>*>(sums));
}

template <class T>
void rmda_join(const RmdaTask& task, void* sums, int64_t parts) {
  using A = Acc<T>;
  prox_factors<A>(static_cast<A*>(sums), parts, task.strip, task.prox, static_cast<A>(task.tau),
                  static_cast<A>(task.size));
}

template <class T>
void rmda_apply(const RmdaTask& task, const void* factors) {
  Rmda<T>(task).apply(task.strip, static_cast<const Acc<T>*>(factors));
}

template <class T>
void rmda(const RmdaTask& task, void* scratch) {
  if (task.size == 1) return Rmda<T>(task).elements(task.strip.groups);
  const auto whole = [&](const Strip& s, int64_t first) {
    RmdaTask part = task;
    part.strip = s;
    part.param = static_cast<T*>(task.param) + first;
    part.grad = static_cast<const T*>(task.grad) + first;
    part.point = static_cast<Acc<T>*>(task.point) + first;
    part.anchor = static_cast<const Acc<T>*>(task.anchor) + first;
    rmda_sums<T>(part, scratch);
    rmda_join<T>(part, scratch, 1);
    rmda_apply<T>(part, scratch);
  };
  if (task.strip.rows == 1) {
    for_blocks(task.strip, whole);
  } else {
    whole(task.strip, 0);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
