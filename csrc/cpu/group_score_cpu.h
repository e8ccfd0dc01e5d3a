// Scores of a strip's groups. Included once per instruction set (no include guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

template <Score kind, class V>
inline V score_add(V acc, V x) {
  if constexpr (kind == Score::l2 || kind == Score::l2sq) return at::vec::fmadd(x, x, acc);
  if constexpr (kind == Score::l1) return acc + x.abs();
  if constexpr (kind == Score::sum) return acc + x;
  if constexpr (kind == Score::amax) return at::vec::maximum(acc, x.abs());
}

template <Score kind, class V>
inline V score_join(V a, V b) {
  if constexpr (kind == Score::amax) return at::vec::maximum(a, b);
  return a + b;
}

template <Score kind, class A>
inline A score_fold(A a, A b) {
  if constexpr (kind == Score::amax) return a > b || a != a ? a : b;  // a NaN stays
  return a + b;
}

// Long runs: four accumulators per run, one total per group.
template <class T, Score kind>
void score_long_runs(const Strip& s, const T* x, Acc<T>* out) {
  using V = Vec<T>;
  for (int64_t g = 0; g < s.groups; ++g) out[g] = 0;
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t g = 0; g < s.groups; ++g) {
      const T* run = x + r * s.row_stride + g * s.inner;
      V acc[4] = {V(0), V(0), V(0), V(0)};
      int64_t i = 0;
      for (; i + 4 * kLanes<T> <= s.inner; i += 4 * kLanes<T>) {
        for (int k = 0; k < 4; ++k) acc[k] = score_add<kind>(acc[k], load_vec<T>(run + i + k * kLanes<T>));
      }
      for_lanes<T>(s.inner - i, [&](int64_t at, auto count) {
        acc[0] = score_add<kind>(acc[0], load_lanes<T>(run + i + at, count));
      });
      const V total = score_join<kind>(score_join<kind>(acc[0], acc[1]), score_join<kind>(acc[2], acc[3]));
      const Acc<T> run_score = kind == Score::amax ? max_lanes(total) : sum_lanes(total);
      out[g] = score_fold<kind>(out[g], run_score);
    }
  }
}

// Short runs: one accumulator per element of the row; four rows at a time spare its loads and stores.
template <class T, Score kind>
void score_short_runs(const Strip& s, const T* x, Acc<T>* out, Acc<T>* acc) {
  using A = Acc<T>;
  const int64_t length = s.groups * s.inner;
  int64_t r = 0;
  for (; r < s.rows || r == 0; r += 4) {
    const int64_t rows = s.rows - r < 4 ? s.rows - r : 4;
    const T* first = x + r * s.row_stride;
    for_lanes<T>(length, [&](int64_t at, auto count) {
      Vec<T> v = r == 0 ? Vec<T>(0) : load_lanes<A>(acc + at, count);
      for (int64_t k = 0; k < rows; ++k) v = score_add<kind>(v, load_lanes<T>(first + k * s.row_stride + at, count));
      store_lanes<A>(acc + at, v, count);
    });
  }
  fold_runs(acc, s.groups, s.inner, [](A a, A b) { return score_fold<kind>(a, b); });
  for (int64_t g = 0; g < s.groups; ++g) out[g] = acc[g];
}

template <class T, Score kind>
void score_strip(const ScoreTask& task, Acc<T>* scratch) {
  auto* out = static_cast<Acc<T>*>(task.out);
  const auto* x = static_cast<const T*>(task.x);
  if (task.strip.inner >= kLongRun) {
    score_long_runs<T, kind>(task.strip, x, out);
  } else {
    score_short_runs<T, kind>(task.strip, x, out, scratch);
  }
}

template <class T>
void group_score(const ScoreTask& task, void* scratch) {
  auto* acc = static_cast<Acc<T>*>(scratch);
  switch (task.kind) {
    case Score::l2:
    case Score::l2sq: return score_strip<T, Score::l2sq>(task, acc);
    case Score::l1: return score_strip<T, Score::l1>(task, acc);
    case Score::sum: return score_strip<T, Score::sum>(task, acc);
    case Score::amax: return score_strip<T, Score::amax>(task, acc);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
