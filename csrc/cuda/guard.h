#pragma once
// Device guard, current stream, launch check and scratch memory. In the emulated build tensors are on the CPU and there
// is nothing to guard.
#include <cstring>
#include <vector>

#include "../ops/common.h"
#include "../torch_runtime.h"
#include "runtime.h"

namespace sparse_accel::cuda {

#ifdef SPARSE_ACCEL_EMULATED
inline void check_cuda(cudaError_t) {}
#else
inline void check_cuda(cudaError_t error) {
  CHECK_RUN(error == cudaSuccess, "CUDA error: ", cudaGetErrorString(error));
}
#endif

// Makes the tensors' device current while it lives, and launches on that device's current stream.
class Launch {
 public:
  explicit Launch(const Tensor& like) : device_(like.device()), guard_(device_) {}

  void check(cudaError_t error) const { check_cuda(error); }

#ifdef SPARSE_ACCEL_EMULATED
  cudaStream_t stream() const { return nullptr; }
  void fill(void* memory, int byte, std::size_t bytes) const { std::memset(memory, byte, bytes); }
  int read(const int* number) const { return *number; }
#else
  cudaStream_t stream() const { return static_cast<cudaStream_t>(current_stream(device_)); }
  void fill(void* memory, int byte, std::size_t bytes) const { check(cudaMemsetAsync(memory, byte, bytes, stream())); }
  // Waits for the stream.
  int read(const int* number) const {
    int out = 0;
    check(cudaMemcpyAsync(&out, number, sizeof out, cudaMemcpyDeviceToHost, stream()));
    check(cudaStreamSynchronize(stream()));
    return out;
  }
#endif

  // Memory for kernels. Held until everything is enqueued; from then on the caching allocator keeps it from
  // later work until the stream has passed. Under the emulator every part is an allocation of its own, whose ends
  // sanitizers see.
  Allocate scratch() {
#ifdef SPARSE_ACCEL_EMULATED
    return [this](std::size_t bytes) { return hold(bytes); };
#else
    return [this](std::size_t bytes) { return pool_.take(bytes); };
#endif
  }

 private:
#ifdef SPARSE_ACCEL_EMULATED
  struct Guard {
    explicit Guard(Device) {}
  };
#else
  class Guard {
   public:
    explicit Guard(Device device) {
      check_cuda(cudaGetDevice(&before_));
      if (device.index != before_) check_cuda(cudaSetDevice(device.index));
      changed_ = device.index != before_;
    }
    ~Guard() {
      if (changed_) (void)cudaSetDevice(before_);
    }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    int before_ = 0;
    bool changed_ = false;
  };
#endif

  void* hold(std::size_t bytes) {
    scratch_.emplace_back(device_, bytes);
    return scratch_.back().get();
  }

  const Device device_;
  const Guard guard_;
  std::vector<Memory> scratch_;
  Pool pool_{[this](std::size_t bytes) { return hold(bytes); }};
};

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case kFloat:
      return DType::f32;
    case kDouble:
      return DType::f64;
    case kBFloat16:
      return DType::bf16;
    case kHalf:
      return DType::f16;
    default:
      CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", tensor.scalar_type());
  }
}

// Address of an element of a dense tensor's memory.
inline void* element(const Tensor& tensor, int64_t index) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + index * int64_t(tensor.element_size());
}
inline const void* const_element(const Tensor& tensor, int64_t index) {
  return static_cast<const char*>(tensor.const_data_ptr()) + index * int64_t(tensor.element_size());
}

}  // namespace sparse_accel::cuda
