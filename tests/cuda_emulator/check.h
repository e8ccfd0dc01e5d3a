#pragma once
// What the kernel tests share: device memory, random numbers, layouts that reach every path, and a main that
// counts failures. With nvcc (-x cu) the same tests run on a GPU.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "group_layout.h"
#include "launch.cuh"
#include "runtime.h"
#include "vec.cuh"

namespace check {

using sparse_accel::GroupLayout;
using sparse_accel::cuda::Compute;
using sparse_accel::cuda::DType;

inline int failures = 0;
inline const bool stops = std::getenv("CHECK_STOP") != nullptr;  // at the first failure

#define CHECK(condition, ...)                                         \
  do {                                                                \
    if (!(condition) && ++check::failures < 10) {                     \
      std::printf("FAIL %s:%d %s  ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                       \
      std::printf("\n");                                              \
      if (check::stops) std::_Exit(1);                                \
    }                                                                 \
  } while (0)

inline bool close(double got, double want, double tolerance) {
  if (std::isnan(want) || std::isnan(got)) return std::isnan(want) && std::isnan(got);
  return std::fabs(got - want) <= tolerance * (1 + std::fabs(want));
}

// "Device" memory of the exact size. The emulator's holds NaN until it is written; a GPU's is given the same bytes,
// so that an element that no kernel has written shows there too. Not with CHECK_UNWRITTEN in the environment: then
// compute-sanitizer's initcheck sees which bytes nobody wrote.
inline void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  bool good = cudaMalloc(&memory, bytes ? bytes : 1) == cudaSuccess;
#ifdef __CUDACC__
  static const bool unwritten = std::getenv("CHECK_UNWRITTEN") != nullptr;
  if (good && bytes && !unwritten) good = cudaMemset(memory, 0xFF, bytes) == cudaSuccess;
#endif
  if (!good) {
    std::printf("no memory of %zu bytes: %s\n", bytes, cudaGetErrorString(cudaGetLastError()));
    std::exit(3);
  }
  return memory;
}

// Memory of the exact size, so that sanitizers see its ends; `shift` elements before it make it misaligned.
template <class T>
class Device {
 public:
  explicit Device(std::size_t size, std::size_t shift = 0)
      : memory_(static_cast<T*>(allocate((size + shift) * sizeof(T)))), size_(size), shift_(shift) {}
  explicit Device(const std::vector<T>& values, std::size_t shift = 0) : Device(values.size(), shift) {
    if (size_) cudaMemcpy(get(), values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice);
  }
  Device(Device&& other) : memory_(other.memory_), size_(other.size_), shift_(other.shift_) { other.memory_ = nullptr; }
  ~Device() { cudaFree(memory_); }
  T* get() const { return memory_ + shift_; }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    if (size_) cudaMemcpy(values.data(), get(), size_ * sizeof(T), cudaMemcpyDeviceToHost);
    return values;
  }

 private:
  T* memory_;
  std::size_t size_, shift_;
};

// Scratch memory of one launch.
class Scratch {
 public:
  sparse_accel::cuda::Allocate allocate() {
    return [this](std::size_t bytes) -> void* {
      blocks_.emplace_back(bytes);
      return blocks_.back().get();
    };
  }

 private:
  std::deque<Device<unsigned char>> blocks_;
};

template <class T>
constexpr DType kDType = sizeof(T) == 8 ? DType::f64 : DType::f32;
template <>
inline constexpr DType kDType<__half> = DType::f16;
template <>
inline constexpr DType kDType<__nv_bfloat16> = DType::bf16;

// How far a result may be off, relative to 1 + |result|.
template <class T>
constexpr double kTolerance = sizeof(T) == 8 ? 1e-12 : 2e-6;
template <>
inline constexpr double kTolerance<__half> = 1e-3;
template <>
inline constexpr double kTolerance<__nv_bfloat16> = 8e-3;

template <class T>
T number(double x) {
  T out;
  sparse_accel::cuda::narrow(Compute<T>(x), out);
  return out;
}
template <class T>
double value(T x) {
  return double(sparse_accel::cuda::widen(x));
}

inline std::mt19937& generator() {
  static std::mt19937 rng(7);
  return rng;
}
template <class T>
std::vector<T> normal(std::int64_t count) {
  std::normal_distribution<double> distribution;
  std::vector<T> out(static_cast<std::size_t>(count));
  for (T& x : out) x = number<T>(distribution(generator()));
  return out;
}

inline std::int64_t numel(const GroupLayout& layout) { return layout.outer * layout.groups * layout.inner; }

// body(index) for every element of group g
template <class Body>
void for_group(const GroupLayout& layout, std::int64_t g, Body body) {
  for (std::int64_t o = 0; o < layout.outer; ++o) {
    for (std::int64_t i = 0; i < layout.inner; ++i) body(std::size_t((o * layout.groups + g) * layout.inner + i));
  }
}

// Every path: elements, teams of 1 to 256 threads, several pieces, columns in one and several chunks and tiles,
// with and without 16-byte accesses, nothing at all. {outer, groups, inner}
inline std::vector<GroupLayout> layouts() {
  return {
      {1, 4099, 1}, {1, 64, 1},  {1, 300, 3},  {1, 130, 8}, {1, 21, 25}, {1, 20, 64}, {1, 3, 516},   {1, 3, 600},
      {1, 2, 8201}, {40, 3, 64}, {300, 2, 33}, {6, 5, 1},   {70, 33, 1}, {64, 12, 9}, {65, 32, 4},   {2, 300, 2},
      {300, 1, 9},  {9, 1, 1},   {1000, 2, 1}, {2, 600, 1}, {0, 3, 2},   {1, 0, 5},   {1, 2, 11000}, {1, 1, 28004},
  };
}

// Strided groups that take strips (cluster.cuh) on a device with clusters: blocks on their own and clusters, the rows
// not shared evenly, the last strip not full, strips of several runs, and what the strips leave to the plain kernels.
// The last: two, four and eight blocks for a strip.
inline std::vector<GroupLayout> strips() {
  return {{333, 40, 1}, {350, 8, 9}, {2, 72, 1}, {70, 16, 3}, {500, 5, 1}, {600, 36, 1}, {900, 8, 1}, {1700, 4, 1}};
}

// As on a device with clusters. (A GPU has them or not. Eight blocks of fibers are more than ThreadSanitizer should
// keep.)
template <class Body>
void with_clusters(Body body) {
#ifdef __CUDACC__
  body();
#else
#ifdef EMU_RACES
  emu::config.clusters = 2;
#else
  emu::config.clusters = 8;
#endif
  body();
  emu::config.clusters = 0;
#endif
}

// Under ThreadSanitizer float alone: a race is one in any type, and what is seen there costs tenfold. Under
// AddressSanitizer one of the two types of 2 bytes. (csrc/cuda/vec.cuh knows these names, too.)
template <class T>
inline bool tested() {
#if defined(SPARSE_ACCEL_FLOAT_ALONE)
  return std::is_same<T, float>::value;
#elif defined(SPARSE_ACCEL_ONE_HALF)
  return !std::is_same<T, __half>::value;
#else
  return true;
#endif
}

// Under the emulator another order of threads and blocks, which must not change a bit.
inline void another_order() {
#ifndef __CUDACC__
  emu::config.order = emu::config.order == emu::Order::reverse ? emu::Order::forward : emu::Order::reverse;
#endif
}

// What comes of it then; under ThreadSanitizer, which sees a race in any order, what came before.
template <class First, class Again>
First in_another_order(const First& first, [[maybe_unused]] const Again& again) {
#ifdef SPARSE_ACCEL_FLOAT_ALONE
  return first;
#else
  another_order();
  return again();
#endif
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// 0: all correct, 1: wrong results, 2: the emulator or the CUDA runtime refused.
template <class Body>
int run(Body body) {
#ifdef __CUDACC__
  body();
  const cudaError_t finished = cudaDeviceSynchronize(), launched = cudaGetLastError();
  for (const cudaError_t error : {finished, launched}) {
    if (error != cudaSuccess) return std::printf("CUDA ERROR %s\n", cudaGetErrorString(error)), 2;
  }
#else
  try {
    body();
  } catch (const emu::error& e) {
    return std::printf("EMU ERROR %s\n", e.what()), 2;
  }
#endif
  if (failures) return std::printf("%d checks FAILED\n", failures), 1;
  return std::printf("all correct\n"), 0;
}

}  // namespace check
