// Turning and sorting in lanes. Included once per instruction set, after topk_threshold_lanes.h (no include guard on
// purpose).
#include <algorithm>
#include <bit>
#include <tuple>

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// Vectors one after another in memory, from [block][element] to [element][block], of `size` elements to a block.
template <int size, class V>
C10_ALWAYS_INLINE void turn(V* v) {
  if constexpr (size > 1) {
    V even[size / 2], odd[size / 2];
    for (int i = 0; i < size / 2; ++i) std::tie(even[i], odd[i]) = at::vec::deinterleave2(v[2 * i], v[2 * i + 1]);
    turn<size / 2>(even);
    turn<size / 2>(odd);
    for (int i = 0; i < size / 2; ++i) v[2 * i] = even[i], v[2 * i + 1] = odd[i];
  }
}

template <class A>
constexpr A kLeast = -A(__builtin_inf());

template <class V>
C10_ALWAYS_INLINE void put_in_order(V& first, V& second) {
  const V larger = at::vec::clamp_min(first, second);  // no NaN is there, or what becomes of it does not matter
  second = at::vec::clamp_max(first, second);
  first = larger;
}

template <int begin, int end, int step, class V>
C10_ALWAYS_INLINE void put_neighbours_in_order(V* v) {
  if constexpr (begin + step < end) {
    put_in_order(v[begin], v[begin + step]);
    put_neighbours_in_order<begin + 2 * step, end, step>(v);
  }
}

// Of every step-th of n vectors, of which there are the first `there`, both halves are in order; then all of it is.
template <int there, int n, int step, class V>
C10_ALWAYS_INLINE void merge(V* v) {
  if constexpr (step < there && 2 * step < n) {
    merge<there, n, 2 * step>(v);
    merge<there - step, n, 2 * step>(v + step);
    put_neighbours_in_order<step, std::min(n, there), step>(v);
  } else if constexpr (step < there) {
    put_in_order(v[0], v[step]);
  }
}

// Sorts vectors in each lane, largest first: a network (K. E. Batcher, "Sorting networks and their applications",
// 1968), that is, comparisons that depend on nothing and stay in registers.
template <int n, class V>
C10_ALWAYS_INLINE void sort(V* v) {
  if constexpr (n > 1) {
    constexpr int half = std::bit_ceil(unsigned(n)) / 2;
    sort<half>(v);
    sort<n - half>(v + half);
    merge<n, 2 * half, 1>(v);
  }
}

// The same from memory, to memory.
template <int n, class V>
SPARSE_ACCEL_ONCE void sort_to(const V* in, V* out) {
  V v[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) v[i] = in[i];
  sort<n>(v);
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) out[i] = v[i];
}

// The same for as many as `number`, of the 64 that are there: the network goes on in memory where registers end.
template <class V>
SPARSE_ACCEL_ONCE void sort_word(V* v, int64_t number) {
  constexpr int64_t kSorted = 16;
  const int64_t n = number <= kSorted ? kSorted : kTopkWord;
  for (int64_t i = 0; i < n; i += kSorted) sort_to<kSorted>(v + i, v + i);
  for (int64_t half = kSorted; half < n; half *= 2) {
    for (V* own = v; own < v + n; own += 2 * half) {
      for (int64_t i = 0; i < half; ++i) put_in_order(own[i], own[i + half]);
      for (int64_t step = half / 2; step > 0; step /= 2) {
        for (int64_t j = step; j + step < 2 * half; j += 2 * step) {
          for (int64_t i = j; i < j + step; ++i) put_in_order(own[i], own[i + step]);
        }
      }
    }
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
