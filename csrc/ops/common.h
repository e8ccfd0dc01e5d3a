#pragma once
// What every op shares in front of its kernels: names to enums, layouts to segments, checks.
#include <optional>
#include <string>
#include <vector>

#include "../group_layout.h"
#include "../math.h"
#include "../tensor.h"

namespace sparse_accel {

using Tensors = std::vector<Tensor>;

// Dense, of a floating dtype and device that all share. Errors name the argument, what was expected and what came.
void check_tensors(const char* op, const char* name, const Tensors& tensors);

// One tensor per parameter, of its shape and device and the dtype given.
void check_state(const char* op, const char* name, const Tensors& state, const Tensors& params, ScalarType dtype);

// Of an optimizer step: one element per parameter, all on the CPU or all on the parameters' device.
void check_clocks(const char* op, const char* name, const Tensors& clocks, const Tensors& params, const Tensor& first,
                  ScalarType dtype);

// A number that stays on the parameters' device: one element of the dtype given.
void check_number(const char* op, const char* name, const std::optional<Tensor>& number, const Tensor& param,
                  ScalarType dtype);

// A contiguous tensor on the device of `like`.
void check_array(const char* op, const char* name, const Tensor& t, const Tensor& like, ScalarType dtype, Sizes sizes);
inline void check_array(const char* op, const char* name, const Tensor& t, const Tensor& like, ScalarType dtype,
                        std::initializer_list<std::int64_t> sizes) {
  check_array(op, name, t, like, dtype, Sizes(sizes.begin(), sizes.size()));
}

// Same shape and same strides, but for dimensions of size 1.
bool same_memory_order(const Tensor& a, const Tensor& b);

// Which gradients lie in another order than their parameters: the caller copies those, and calls again.
std::vector<std::int64_t> in_another_order(const Tensors& grads, const Tensors& params);

// layouts: outer, groups, inner, blocks of each tensor.
std::vector<Segment> make_segments(const char* op, const Tensors& tensors, const std::vector<std::int64_t>& layouts);

// The checks of make_segments alone.
void check_layouts(const std::string& op, const Tensors& tensors, const std::vector<std::int64_t>& layouts);

Prox prox_from_name(const char* op, const std::string& name);
Score score_from_name(const char* op, const std::string& name);

// float for half, bfloat16 and float; double for double.
inline ScalarType compute_type(ScalarType dtype) { return dtype == kDouble ? kDouble : kFloat; }

// Index into a table of CPU kernels.
int dtype_index(ScalarType dtype);

// True where the op runs on the CUDA kernels: CUDA tensors, or, in the emulated build of the tests, CPU tensors.
inline bool on_cuda(const Tensor& tensor) {
#if defined(SPARSE_ACCEL_EMULATED)
  return tensor.is_cpu();
#elif defined(SPARSE_ACCEL_WITH_CUDA)
  return tensor.is_cuda();
#else
  return (void)tensor, false;
#endif
}

// Raises where there are no kernels for a tensor's device.
void check_device(const char* op, const char* name, const Tensor& tensor);

}  // namespace sparse_accel
