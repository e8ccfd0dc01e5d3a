// Sums over groups and what becomes of them, shared by the CPU kernels. Included once per instruction set (no include
// guard on purpose).
//
// A strip is read row by row, strictly forwards: on memory-bound sizes every detour (two rows at a time, narrow strips
// that would fit the second-level cache, going backwards) cost more than the traffic it saved.

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// How far ahead streams are fetched, in elements: the hardware stops at page ends.
constexpr int64_t kAhead = 1024;

// sums[0][i] <- join over p of sums[p][i], in order of p.
template <class A, class Join>
inline void join_parts(A* sums, int64_t parts, const Strip& s, const Join& join) {
  const int64_t width = sums_width(s);
  for (int64_t p = 1; p < parts; ++p) {
    const A* part = sums + p * sums_stride(s);
    for (int64_t i = 0; i < width; ++i) sums[i] = join(sums[i], part[i]);
  }
}

// sums[g * inner + i] -> sums[g], in order of i, where a strip keeps sums per element.
template <class A, class Join>
inline void fold_runs(A* sums, const Strip& s, const Join& join) {
  if (s.inner == 1 || s.inner >= kLongRun) return;
  for (int64_t g = 0; g < s.groups; ++g) {
    A total = sums[g * s.inner];
    for (int64_t i = 1; i < s.inner; ++i) total = join(total, sums[g * s.inner + i]);
    sums[g] = total;
  }
}

// factors[g] -> factors[g * inner + i], in place from the back, where a strip keeps them per element.
template <class A>
inline void spread_runs(A* factors, const Strip& s) {
  if (s.inner == 1 || s.inner >= kLongRun) return;
  for (int64_t g = s.groups - 1; g >= 0; --g) {
    const A value = factors[g];
    for (int64_t i = s.inner - 1; i >= 0; --i) factors[g * s.inner + i] = value;
  }
}

// Squared norms of all parts -> the factor of every sum's place. Returns the penalty without its strength.
template <class A>
inline double prox_factors(A* sums, int64_t parts, const Strip& s, Prox prox, A tau, A size) {
  const auto add = [](A a, A b) { return a + b; };
  join_parts(sums, parts, s, add);
  fold_runs(sums, s, add);
  double value = 0;
  for (int64_t g = 0; g < s.groups; ++g) {
    const A square = sums[g];
    sums[g] = prox_scale<A>(prox, square, tau, size);
    value += static_cast<double>(penalty_value<A>(prox, square, sums[g], size));
  }
  spread_runs(sums, s);
  return value;
}

// body(substrip, first element) over a strip of contiguous groups, so much at a time that several passes stay in cache.
template <class Body>
inline void for_blocks(const Strip& s, const Body& body) {
  const int64_t step = s.inner < kBlock ? kBlock / s.inner : 1;
  for (int64_t g = 0; g < s.groups; g += step) {
    Strip block = s;
    block.groups = s.groups - g < step ? s.groups - g : step;
    body(block, g * s.inner);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
