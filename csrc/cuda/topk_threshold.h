#pragma once
// Launchers of topk_threshold_: raw pointers, sizes and a stream; no torch.
#include <cstdint>

#include "../group_layout.h"
#include "runtime.h"

namespace sparse_accel::cuda {

// Where scores come from, and what is written.
struct TopkTask {
  DType dtype;        // of the data
  bool magnitude;     // scores are |data|, times scale if there is one
  const void* data;   // [count]
  const void* scale;  // [columns] in the compute type, or null
  std::int64_t columns;
  std::int64_t count;  // > 0
  void* x;             // [count]: gets zeros
  int x_bytes;         // of an element: 2, 4 or 8
  bool* mask;          // [count]
};

// has_nan: one int on the device, set to 1 if any score is NaN, else 0. Where it is 1 x keeps all, and the mask has no
// meaning. topk_look does no more than that.
cudaError_t topk_look(const TopkTask& task, int* has_nan, cudaStream_t stream);

// Keeps k of each of `rows` rows of count / rows elements; ties go to the lowest index. 0 < k < elements of a row <
// 2^31.
cudaError_t topk_rows(const TopkTask& task, std::int64_t rows, std::int64_t k, int* has_nan, const Allocate& allocate,
                      cudaStream_t stream);

// Keeps n of every m neighbours of rows of `columns`; the last block of a row may be shorter.
cudaError_t topk_blocks(const TopkTask& task, int n, int m, int* has_nan, cudaStream_t stream);

// The mask of x [blocks, outer, groups, inner] from keep [blocks, groups].
cudaError_t topk_groups(void* x, int x_bytes, bool* mask, const bool* keep, GroupLayout layout, std::int64_t blocks,
                        cudaStream_t stream);

}  // namespace sparse_accel::cuda
