// Sums over groups, shared by the CPU kernels. Included once per instruction set (no include guard on purpose).
//
// A strip is read row by row, as memory lies. Short runs (inner < kLongRun) add into one accumulator per element of
// the row, folded into groups at the end; long runs are reduced at once into one accumulator per group.

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// acc[g * inner + i] -> acc[g], in order of i.
template <class A, class Fold>
inline void fold_runs(A* acc, int64_t groups, int64_t inner, const Fold& fold) {
  if (inner == 1) return;
  for (int64_t g = 0; g < groups; ++g) {
    A total = acc[g * inner];
    for (int64_t i = 1; i < inner; ++i) total = fold(total, acc[g * inner + i]);
    acc[g] = total;
  }
}

// scale[g] -> scale[g * inner + i], in place from the back.
template <class A>
inline void spread_runs(A* scale, int64_t groups, int64_t inner) {
  if (inner == 1) return;
  for (int64_t g = groups - 1; g >= 0; --g) {
    const A value = scale[g];
    for (int64_t i = inner - 1; i >= 0; --i) scale[g * inner + i] = value;
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
