#pragma once
// What every op shares on the ATen side: names to enums, layouts to segments, checks.
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "../group_layout.h"
#include "../math.h"

namespace sparse_accel {

// One [outer, groups, inner] piece of one tensor. A layout with several blocks (grouped
// convolutions by input channel, channels_last 2-D kernels) is that many segments.
struct Segment {
  int64_t tensor;   // index in the list
  int64_t element;  // first element of the segment in the tensor's memory
  int64_t group;    // first group of the segment in the tensor's score vector
  GroupLayout layout;
};

// Dense, of a floating dtype and device that all share. Errors name the argument, what was expected and what came.
void check_tensors(const char* op, const char* name, const std::vector<at::Tensor>& tensors);

// One tensor per parameter, of its shape and device and the dtype given.
void check_state(const char* op, const char* name, const std::vector<at::Tensor>& state,
                 const std::vector<at::Tensor>& params, at::ScalarType dtype);

// Same shape and same strides, but for dimensions of size 1.
bool same_memory_order(const at::Tensor& a, const at::Tensor& b);

// layouts: outer, groups, inner, blocks of each tensor.
std::vector<Segment> make_segments(const char* op, const std::vector<at::Tensor>& tensors,
                                   const std::vector<int64_t>& layouts);

Prox prox_from_name(const char* op, const std::string& name);
Score score_from_name(const char* op, const std::string& name);

// float for half, bfloat16 and float; double for double.
inline at::ScalarType compute_type(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

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
