#pragma once
// Scores as unsigned integers in their order, and zeros where they are not kept.
#include <type_traits>

#include "topk_threshold.h"
#include "cover.cuh"
#include "vec.cuh"

namespace sparse_accel::cuda {

template <int kBytes>
struct BitsOf {
  using type = std::uint16_t;
};
template <>
struct BitsOf<4> {
  using type = std::uint32_t;
};
template <>
struct BitsOf<8> {
  using type = std::uint64_t;
};

// The bits of +inf: larger magnitudes are NaN.
template <class T>
struct Infinity;
template <>
struct Infinity<float> {
  static constexpr std::uint32_t bits = 0x7f800000u;
};
template <>
struct Infinity<double> {
  static constexpr std::uint64_t bits = 0x7ff0000000000000ull;
};
template <>
struct Infinity<__half> {
  static constexpr std::uint16_t bits = 0x7c00u;
};
template <>
struct Infinity<__nv_bfloat16> {
  static constexpr std::uint16_t bits = 0x7f80u;
};

template <class Key>
struct Keyed {
  Key key;  // larger for larger scores; both zeros have one key. 0 is no number's
  bool nan;
};

// Reads the scores of a task. Given: the data themselves, keyed as they lie in memory. Magnitude: |x| scale, computed.
template <class T, bool kMagnitude>
struct ScoreReader {
  using Number = std::conditional_t<kMagnitude, Compute<T>, T>;
  using Key = typename BitsOf<sizeof(Number)>::type;
  static constexpr Key kSign = Key(Key(1) << (8 * sizeof(Key) - 1));

  const void* data;
  const void* scale;
  std::int64_t columns;

  explicit ScoreReader(const TopkTask& task) : data(task.data), scale(task.scale), columns(task.columns) {}

  __device__ __forceinline__ Key bits(std::int64_t i) const {
    if constexpr (kMagnitude) {
      union {
        Number number;
        Key bits;
      } cast;
      const Number x = widen(static_cast<const T*>(data)[i]);
      cast.number = x < Number(0) ? -x : x;
      if (scale != nullptr) {
        cast.number = cast.number * static_cast<const Number*>(scale)[i - divide(i, columns) * columns];
      }
      return cast.bits;
    } else {
      return static_cast<const Key*>(data)[i];
    }
  }

  __device__ __forceinline__ Keyed<Key> operator()(std::int64_t i) const {
    const Key raw = bits(i), size = Key(raw & Key(~kSign));
    const Key key = size == 0 ? kSign : raw & kSign ? Key(~raw) : Key(raw | kSign);
    return {key, size > Infinity<Number>::bits};
  }
};

// body(reader) with the reader of a task.
template <class Body>
void with_reader(const TopkTask& task, Body body) {
  with_type(task.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (task.magnitude) {
      body(ScoreReader<T, true>(task));
    } else {
      body(ScoreReader<T, false>(task));
    }
  });
}

// x and mask of a task.
struct Kept {
  void* x;
  int x_bytes;
  bool* mask;

  explicit Kept(const TopkTask& task) : x(task.x), x_bytes(task.x_bytes), mask(task.mask) {}
  Kept(void* x_, int bytes, bool* mask_) : x(x_), x_bytes(bytes), mask(mask_) {}

  __device__ __forceinline__ void zero(std::int64_t i) const {
    if (x_bytes == 4) {
      static_cast<std::uint32_t*>(x)[i] = 0;
    } else if (x_bytes == 2) {
      static_cast<std::uint16_t*>(x)[i] = 0;
    } else {
      static_cast<std::uint64_t*>(x)[i] = 0;
    }
  }
  __device__ __forceinline__ void write(std::int64_t i, bool keep) const {
    mask[i] = keep;
    if (!keep) zero(i);
  }
};

// What selections begin with: no NaN so far.
template <class Flag>
__global__ void __launch_bounds__(kThreads) topk_clear_kernel(Flag* has_nan) {
  if (threadIdx.x == 0) *has_nan = 0;
}

// What they end with, where the mask was written first: zeros where it is false, unless there was NaN. A thread has
// kFlags neighbours.
template <int kFlags>
__global__ void __launch_bounds__(kThreads) topk_zero_kernel(Kept target, std::int64_t count, const int* has_nan) {
  const std::int64_t begin = (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) * kFlags;
  if (*has_nan || begin >= count) return;
  if (begin + kFlags <= count) {
    Stored<unsigned char, kFlags> keep;
    keep.word[0] = *reinterpret_cast<const typename Stored<unsigned char, kFlags>::Word*>(target.mask + begin);
#pragma unroll
    for (int k = 0; k < kFlags; ++k) {
      if (!keep.value[k]) target.zero(begin + k);
    }
  } else {
    for (std::int64_t i = begin; i < count; ++i) {
      if (!target.mask[i]) target.zero(i);
    }
  }
}

inline void topk_clear(int* has_nan, cudaStream_t stream) {
  launch_kernel(topk_clear_kernel<int>, 1, kThreads, 0, stream, has_nan);
}

inline void topk_zero(const TopkTask& task, const int* has_nan, cudaStream_t stream) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(task.mask) % 4 == 0;
  const unsigned blocks = unsigned(ceil_div(task.count, kThreads * (aligned ? 4 : 1)));
  launch_kernel(aligned ? topk_zero_kernel<4> : topk_zero_kernel<1>, blocks, kThreads, 0, stream, Kept(task),
                task.count, has_nan);
}

}  // namespace sparse_accel::cuda
