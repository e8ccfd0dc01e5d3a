// ProxSGD on a strip: the first pass takes the gradient into the momentum and the group norms of x = W - lr M, the
// second forms x again, shrunk, as the new W. Included once per instruction set (no include guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

template <class T>
struct Sgd {
  using A = Acc<T>;
  using V = Vec<T>;

  T* param;
  const T* grad;
  A* buffer;
  A lr, keep, grad_factor, tau;
  Prox prox;

  explicit Sgd(const SgdTask& task)
      : param(static_cast<T*>(task.param)),
        grad(static_cast<const T*>(task.grad)),
        buffer(static_cast<A*>(task.buffer)),
        lr(static_cast<A>(task.lr)),
        keep(static_cast<A>(task.keep)),
        grad_factor(static_cast<A>(task.grad_factor)),
        tau(static_cast<A>(task.tau)),
        prox(task.prox) {}

  // M = keep M + grad_factor grad; returns W - lr M.
  template <class Count>
  V accumulate(int64_t at, Count count) const {
    const V kept = load_lanes<A>(buffer + at, count) * V(keep);
    const V moved = at::vec::fmadd(load_lanes<T>(grad + at, count), V(grad_factor), kept);
    store_lanes<A>(buffer + at, moved, count);
    return at::vec::fnmadd(moved, V(lr), load_lanes<T>(param + at, count));
  }

  // The same number once more, from the momentum as it is now.
  template <class Count>
  V again(int64_t at, Count count) const {
    return at::vec::fnmadd(load_lanes<A>(buffer + at, count), V(lr), load_lanes<T>(param + at, count));
  }

  // No penalty, or every element its own group: one pass.
  void elements(int64_t length) const {
    for_lanes<T>(length, [&](int64_t at, auto count) {
      const V x = accumulate(at, count);
      if (tau == A(0)) return store_lanes<T>(param + at, x, count);
      if (prox == Prox::hard) return store_lanes<T>(param + at, V::blendv(x, V(0), x * x <= V(A(2) * tau)), count);
      const V shrunk = at::vec::maximum(x.abs() - V(tau), V(0));
      store_lanes<T>(param + at, V::blendv(shrunk, shrunk.neg(), x < V(0)), count);
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
        __builtin_prefetch(buffer + row + at + kAhead, 1);
        __builtin_prefetch(param + row + at + kAhead, 1);
        const V x = accumulate(row + at, count);
        store_lanes<A>(squares + at, at::vec::fmadd(x, x, load_lanes<A>(squares + at, count)), count);
      });
    }
  }

  A run_square(int64_t first, int64_t length) const {
    V total[2] = {V(0), V(0)};
    for_lanes<T>(length, [&](int64_t at, auto count) {
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
            store_lanes<T>(param + i, factor == A(0) ? V(0) : again(i, count) * V(factor), count);
          });
        }
        continue;
      }
      for_lanes<T>(s.groups * s.inner, [&](int64_t at, auto count) {
        __builtin_prefetch(param + row + at + kAhead, 1);
        __builtin_prefetch(buffer + row + at + kAhead);
        const V factor = load_lanes<A>(factors + at, count);
        const V x = again(row + at, count) * factor;
        store_lanes<T>(param + row + at, V::blendv(x, V(0), factor == V(0)), count);
      });
    }
  }
};

template <class T>
void sgd_sums(const SgdTask& task, void* sums) {
  Sgd<T>(task).sums(task.strip, static_cast<Acc<T>*>(sums));
}

template <class T>
void sgd_join(const SgdTask& task, void* sums, int64_t parts) {
  using A = Acc<T>;
  prox_factors<A>(static_cast<A*>(sums), parts, task.strip, task.prox, static_cast<A>(task.tau),
                  static_cast<A>(task.size));
}

template <class T>
void sgd_apply(const SgdTask& task, const void* factors) {
  Sgd<T>(task).apply(task.strip, static_cast<const Acc<T>*>(factors));
}

template <class T>
void sgd(const SgdTask& task, void* scratch) {
  const Strip& strip = task.strip;
  const bool dense = strip.rows == 1 || strip.row_stride == strip.groups * strip.inner;
  if (task.size == 1 || (task.tau == 0 && dense)) {
    return Sgd<T>(task).elements(strip.rows * strip.groups * strip.inner);
  }
  const auto whole = [&](const Strip& s, int64_t first) {
    SgdTask part = task;
    part.strip = s;
    part.param = static_cast<T*>(task.param) + first;
    part.grad = static_cast<const T*>(task.grad) + first;
    part.buffer = static_cast<Acc<T>*>(task.buffer) + first;
    sgd_sums<T>(part, scratch);
    sgd_join<T>(part, scratch, 1);
    sgd_apply<T>(part, scratch);
  };
  if (strip.rows == 1) {
    for_blocks(strip, whole);
  } else {
    whole(strip, 0);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
