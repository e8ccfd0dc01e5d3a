#pragma once
// What every op shares on the ATen side: names to enums, layouts to segments, checks.
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "../group_layout.h"
#include "../math.h"

namespace sparse_accel {

// Dense, of a floating dtype and device that all share. Errors name the argument, what was expected and what came.
void check_tensors(const char* op, const char* name, const std::vector<at::Tensor>& tensors);

// One tensor per parameter, of its shape and device and the dtype given.
void check_state(const char* op, const char* name, const std::vector<at::Tensor>& state,
                 const std::vector<at::Tensor>& params, at::ScalarType dtype);

// Of an optimizer step: one element per parameter, all on the CPU or all on the parameters' device.
void check_clocks(const char* op, const char* name, const std::vector<at::Tensor>& clocks,
                  const std::vector<at::Tensor>& params, at::Device device, at::ScalarType dtype);

// One element, where there is a tensor.
void check_one_element(const char* op, const char* name, const std::optional<at::Tensor>& tensor);

// Same shape and same strides, but for dimensions of size 1.
bool same_memory_order(const at::Tensor& a, const at::Tensor& b);

// The gradients in their parameters' memory order, copied where they have another.
std::vector<at::Tensor> in_memory_order(const std::vector<at::Tensor>& grads, const std::vector<at::Tensor>& params);

// layouts: outer, groups, inner, blocks of each tensor.
std::vector<Segment> make_segments(const char* op, const std::vector<at::Tensor>& tensors,
                                   const std::vector<int64_t>& layouts);

Prox prox_from_name(const char* op, const std::string& name);
Score score_from_name(const char* op, const std::string& name);

// float for half, bfloat16 and float; double for double.
inline at::ScalarType compute_type(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

// Index into a table of CPU kernels.
int dtype_index(at::ScalarType dtype);

// at::empty, at::zeros and at::empty_like. What is in <ATen/ops/...> takes a compiler as long to read as the tensors
// themselves: where these and the methods of at::Tensor do, nothing of it is included.
at::Tensor make_empty(at::IntArrayRef sizes, const at::TensorOptions& options);
at::Tensor make_zeros(at::IntArrayRef sizes, const at::TensorOptions& options);
at::Tensor make_like(const at::Tensor& tensor, at::ScalarType dtype);

// True where the op runs on the CUDA kernels: CUDA tensors, or, in the emulated build of the
// tests, CPU tensors.
inline bool on_cuda(const at::Tensor& tensor) {
#ifdef SPARSE_ACCEL_EMULATED
  return tensor.is_cpu();
#else
  return tensor.is_cuda();
#endif
}

}  // namespace sparse_accel
