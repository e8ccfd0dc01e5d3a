#pragma once
// What the three instruction-set builds of the CPU kernels export: plain data in, plain data out.
#include <cstdint>

#include "../math.h"

namespace sparse_accel {

constexpr int kDtypes = 4;  // float, double, bfloat16, half: see dtype_index

// The unit of work of every CPU kernel: a strip of neighbouring groups of one segment, over all its rows.
// Group g of the strip is [rows, inner] at element (r * row_stride + g * inner).
struct Strip {
  int64_t rows;
  int64_t row_stride;
  int64_t groups;
  int64_t inner;
};

struct ScoreTask {
  Strip strip;
  const void* x;
  void* out;  // [groups] in the compute type
  Score kind;
};

struct ProxTask {
  Strip strip;
  void* x;
  double tau;
  double size;    // elements of a whole group
  double* value;  // where the strip's penalty goes, or null
  Prox prox;
};

struct RmdaTask {
  Strip strip;
  void* param;
  const void* grad;
  void* grad_sum;
  const void* anchor;
  double step_size;  // s, negative to maximize
  double inv_beta;
  double tau;
  double momentum;
  double size;
  double inv_grad_scale;
  Prox prox;
};

// scratch: kScratch elements of the compute type for the running thread.
struct Kernels {
  const char* name;
  void (*group_score[kDtypes])(const ScoreTask&, void* scratch);
  void (*prox[kDtypes])(const ProxTask&, void* scratch);
  void (*rmda_step[kDtypes])(const RmdaTask&, void* scratch);
};

// A strip whose groups are shorter than this in a row keeps its sums per element of the row, else per group.
constexpr int64_t kLongRun = 64;
// Elements of the longest row of a strip that keeps sums per element.
constexpr int64_t kMaxRow = 4096;
constexpr int64_t kScratch = kMaxRow + kLongRun;

// Null where that instruction set was not compiled in.
extern const Kernels* const kernels_default;
extern const Kernels* const kernels_avx2;
extern const Kernels* const kernels_avx512;

}  // namespace sparse_accel
