#pragma once
// The few names that launchers and their callers share: streams, errors, element types, scratch memory.
// Host code only, no torch header.
#include <cstddef>
#include <functional>
#include <utility>

#if defined(__CUDACC__) || !defined(SPARSE_ACCEL_EMULATED)
#include <cuda_runtime_api.h>
#else
#include "cuda_types.h"  // tests/cuda_emulator: no toolkit needed
#endif

namespace sparse_accel::cuda {

// Element type of tensors that a launcher gets as void*.
enum class DType : int { f32, f64, bf16, f16 };

// Gives a launcher device memory that lives until its kernels have run (16-byte aligned, contents undefined).
using Allocate = std::function<void*(std::size_t bytes)>;

// Parts of few large pieces of memory: a launcher asks for many small ones, and an allocation costs the host as much as
// a launch. What a piece had left when the next was taken stays unused.
class Pool {
 public:
  explicit Pool(Allocate allocate) : allocate_(std::move(allocate)) {}

  void* take(std::size_t bytes) {
    const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (rounded > left_) {
      left_ = rounded > piece_ ? rounded : piece_;
      next_ = static_cast<char*>(allocate_(left_));
      piece_ *= 4;
    }
    char* const part = next_;
    next_ += rounded;
    left_ -= rounded;
    return part;
  }

 private:
  static constexpr std::size_t kAlignment = 256;
  const Allocate allocate_;
  std::size_t piece_ = 256 << 10, left_ = 0;
  char* next_ = nullptr;
};

}  // namespace sparse_accel::cuda
