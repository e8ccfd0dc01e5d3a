#pragma once
// How the CPU backend runs topk_threshold_: passes over memory, threads, ties.
#include <cstdint>

#include "topk_threshold_kernels.h"

namespace sparse_accel::cpu {

// Contiguous x and what its elements are scored by; dtypes as in dtype_index.
struct TopkTask {
  void* x;
  int64_t x_bytes;  // of an element
  bool* mask;
  bool magnitude;     // scores are |data|
  int dtype;          // of the data
  const void* data;   // scores, or x itself
  const void* scale;  // [columns] in the compute type, of magnitudes; or null
  int64_t columns;
  bool passes_cache;  // whether to write the mask past the caches: it is large, and aligned to 64 bytes
};

// x is [rows, n]; k of each row are kept. Raises ValueError on NaN, with nothing changed.
void topk_rows(const TopkTask& task, int64_t rows, int64_t n, int64_t k);

// x is [rows, columns], cut into blocks of m columns, the last of a row being shorter where m does not divide them. Of
// each block n are kept.
void topk_blocks(const TopkTask& task, int64_t rows, int64_t columns, int n, int m);

// x is [blocks, outer, groups, inner]; k of each group [b, :, g, :] are kept. `columns` are groups * inner.
void topk_within(const TopkTask& task, int64_t blocks, int64_t outer, int64_t groups, int64_t inner, int64_t k);

// x is [blocks, outer, groups, inner]; keep [blocks, groups] becomes the mask of all its elements.
void topk_groups(void* x, int64_t x_bytes, bool* mask, const bool* keep, int64_t blocks, int64_t outer, int64_t groups,
                 int64_t inner);

}  // namespace sparse_accel::cpu
