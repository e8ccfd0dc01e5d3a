#pragma once
// The few names that launchers and their callers share: streams, errors, element types, scratch memory.
// Host code only, no torch header.
#include <cstddef>
#include <functional>

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

}  // namespace sparse_accel::cuda
