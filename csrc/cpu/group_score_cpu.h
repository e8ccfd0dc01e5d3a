// Scores of a strip's groups. Included once per instruction set (no include guard on purpose).

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

template <Score kind, class V>
inline V score_add(V sum, V x) {
  if constexpr (kind == Score::l2 || kind == Score::l2sq) return at::vec::fmadd(x, x, sum);
  if constexpr (kind == Score::l1) return sum + x.abs();
  if constexpr (kind == Score::sum) return sum + x;
  if constexpr (kind == Score::amax) return at::vec::maximum(sum, x.abs());
}

template <Score kind, class V>
inline V score_join_lanes(V a, V b) {
  if constexpr (kind == Score::amax) return at::vec::maximum(a, b);
  return a + b;
}

template <Score kind, class A>
inline A score_join_one(A a, A b) {
  if constexpr (kind == Score::amax) return a > b || a != a ? a : b;  // a NaN stays
  return a + b;
}

// Four accumulators per run hide the latency of the additions.
template <class T, Score kind>
inline Acc<T> score_run(const T* run, int64_t length) {
  using V = Vec<T>;
  V sum[4] = {V(0), V(0), V(0), V(0)};
  int64_t i = 0;
  for (; i + 4 * kLanes<T> <= length; i += 4 * kLanes<T>) {
    for (int k = 0; k < 4; ++k) {
      __builtin_prefetch(run + i + k * kLanes<T> + kAhead);
      sum[k] = score_add<kind>(sum[k], load_vec<T>(run + i + k * kLanes<T>));
    }
  }
  for_lanes<T>(length - i,
               [&](int64_t at, auto count) { sum[0] = score_add<kind>(sum[0], load_lanes<T>(run + i + at, count)); });
  const V total =
      score_join_lanes<kind>(score_join_lanes<kind>(sum[0], sum[1]), score_join_lanes<kind>(sum[2], sum[3]));
  return kind == Score::amax ? max_lanes(total) : sum_lanes(total);
}

template <class T, Score kind>
void score_sums_of(const Strip& s, const T* x, Acc<T>* sums) {
  using A = Acc<T>;
  const int64_t width = sums_width(s);
  for (int64_t i = 0; i < width; ++i) sums[i] = 0;
  for (int64_t r = 0; r < s.rows; ++r) {
    const T* row = x + r * s.row_stride;
    if (s.inner >= kLongRun) {
      for (int64_t g = 0; g < s.groups; ++g) {
        sums[g] = score_join_one<kind>(sums[g], score_run<T, kind>(row + g * s.inner, s.inner));
      }
      continue;
    }
    for_lanes<T>(width, [&](int64_t at, auto count) {
      __builtin_prefetch(row + at + kAhead);
      const auto sum = score_add<kind>(load_lanes<A>(sums + at, count), load_lanes<T>(row + at, count));
      store_lanes<A>(sums + at, sum, count);
    });
  }
}

template <class A, Score kind>
void score_join_of(const Strip& s, A* sums, int64_t parts, A* scores) {
  const auto join = [](A a, A b) { return score_join_one<kind>(a, b); };
  join_parts(sums, parts, s, join);
  fold_runs(sums, s, join);
  for (int64_t g = 0; g < s.groups; ++g) scores[g] = sums[g];
}

// f(integral constant of the kind); l2 is l2sq here, its root is taken over all coupled tensors at the end.
template <class F>
inline void with_kind(Score kind, const F& f) {
  switch (kind) {
    case Score::l2:
    case Score::l2sq:
      return f(std::integral_constant<Score, Score::l2sq>());
    case Score::l1:
      return f(std::integral_constant<Score, Score::l1>());
    case Score::sum:
      return f(std::integral_constant<Score, Score::sum>());
    case Score::amax:
      return f(std::integral_constant<Score, Score::amax>());
  }
}

template <class T>
void score_sums(const ScoreTask& task, void* sums) {
  with_kind(task.kind, [&](auto kind) {
    score_sums_of<T, decltype(kind)::value>(task.strip, static_cast<const T*>(task.x), static_cast<Acc<T>*>(sums));
  });
}

template <class T>
void score_join(const ScoreTask& task, void* sums, int64_t parts, void* scores) {
  with_kind(task.kind, [&](auto kind) {
    score_join_of<Acc<T>, decltype(kind)::value>(task.strip, static_cast<Acc<T>*>(sums), parts,
                                                 static_cast<Acc<T>*>(scores));
  });
}

template <class T>
void score(const ScoreTask& task, void* scores, void* scratch) {
  const auto whole = [&](const Strip& s, int64_t first) {
    ScoreTask part = task;
    part.strip = s;
    part.x = static_cast<const T*>(task.x) + first;
    score_sums<T>(part, scratch);
    score_join<T>(part, scratch, 1, static_cast<Acc<T>*>(scores) + (s.inner ? first / s.inner : 0));
  };
  if (task.strip.rows == 1) {
    for_blocks(task.strip, whole);
  } else {
    whole(task.strip, 0);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
