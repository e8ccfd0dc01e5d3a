// Vectors in the compute type, loaded from and stored to any dtype. Included once per instruction set:
// no include guard on purpose, everything lives in that set's namespace.
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <type_traits>

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
using Vec = at::vec::Vectorized<Acc<T>>;
template <class T>
constexpr int64_t kLanes = Vec<T>::size();

template <class T>
constexpr bool kReduced = !std::is_same_v<T, Acc<T>>;

template <class T>
inline Vec<T> load_vec(const T* p) {
  if constexpr (kReduced<T>) {
    Vec<T> out;
    at::vec::load_to_float<T>(p, out);
    return out;
  } else {
    return Vec<T>::loadu(p);
  }
}

// The first `count` lanes; the others are zero.
template <class T>
inline Vec<T> load_vec(const T* p, int64_t count) {
  if constexpr (kReduced<T>) {
    Acc<T> lanes[kLanes<T>] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = static_cast<Acc<T>>(p[i]);
    return Vec<T>::loadu(lanes);
  } else {
    // by hand: loadu(p, 0) may leave lanes undefined
    return count ? Vec<T>::loadu(p, count) : Vec<T>(0);
  }
}

template <class T>
inline void store_lanes(T* p, Vec<T> v, int64_t count = kLanes<T>) {
  if constexpr (kReduced<T>) {
    at::vec::convert_from_float<T>(v, v).store(p, static_cast<int>(count));
  } else if (count == kLanes<T>) {
    v.store(p);
  } else {
    v.store(p, static_cast<int>(count));
  }
}

template <class V>
inline auto sum_lanes(V v) {
  return at::vec::vec_reduce_all<typename V::value_type>([](V a, V b) { return a + b; }, v);
}

template <class V>
inline auto max_lanes(V v) {
  return at::vec::vec_reduce_all<typename V::value_type>([](V a, V b) { return at::vec::maximum(a, b); }, v);
}

// body(offset, count) over [0, length): whole vectors (count is then a constant), then one tail.
template <class T, class Body>
inline void for_lanes(int64_t length, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= length; i += kLanes<T>) body(i, std::integral_constant<int64_t, kLanes<T>>());
  if (i < length) body(i, length - i);
}

template <class T>
inline Vec<T> load_lanes(const T* p, std::integral_constant<int64_t, kLanes<T>>) {
  return load_vec<T>(p);
}
template <class T>
inline Vec<T> load_lanes(const T* p, int64_t count) {
  return load_vec<T>(p, count);
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
