#pragma once
// Device guard, current stream, launch check and scratch memory of the ATen side. In the emulated build
// tensors are on the CPU and there is nothing to guard.
#include <ATen/core/Tensor.h>

#include <vector>

#include "../ops/common.h"
#include "runtime.h"

#ifndef SPARSE_ACCEL_EMULATED
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace sparse_accel::cuda {

// Makes the tensors' device current while it lives, and launches on that device's current stream.
class Launch {
 public:
  explicit Launch(const at::Tensor& like) : options_(like.options().dtype(at::kByte)), guard_(like.device()) {}

#ifdef SPARSE_ACCEL_EMULATED
  cudaStream_t stream() const { return nullptr; }
  void check(cudaError_t) const {}
#else
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(); }
  void check(cudaError_t error) const { C10_CUDA_CHECK(error); }
#endif

  // Memory for kernels. Held until everything is enqueued; from then on the caching allocator keeps it from
  // later work until the stream has passed.
  Allocate scratch() {
    return [this](std::size_t bytes) {
      scratch_.push_back(make_empty({int64_t(bytes)}, options_));
      return scratch_.back().mutable_data_ptr();
    };
  }

 private:
#ifdef SPARSE_ACCEL_EMULATED
  struct Guard {
    explicit Guard(at::Device) {}
  };
#else
  using Guard = c10::cuda::CUDAGuard;
#endif

  const at::TensorOptions options_;
  const Guard guard_;
  std::vector<at::Tensor> scratch_;
};

inline DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::f32;
    case at::kDouble:
      return DType::f64;
    case at::kBFloat16:
      return DType::bf16;
    case at::kHalf:
      return DType::f16;
    default:
      TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", tensor.scalar_type());
  }
}

// Address of an element of a dense tensor's memory.
inline void* element(const at::Tensor& tensor, int64_t index) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + index * int64_t(tensor.element_size());
}
inline const void* const_element(const at::Tensor& tensor, int64_t index) {
  return static_cast<const char*>(tensor.const_data_ptr()) + index * int64_t(tensor.element_size());
}

}  // namespace sparse_accel::cuda
