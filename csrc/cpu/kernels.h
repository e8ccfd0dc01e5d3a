#pragma once
// The kernels of group_score, prox_, rmda_step_ and prox_sgd_step_, of each instruction set: plain data in, plain data
// out.
#include <cstdint>

#include "../math.h"

namespace sparse_accel {

constexpr int kDtypes = 4;  // float, double, bfloat16, half: see dtype_index

// Neighbouring groups of one segment, over some or all of its rows: group g is [rows, inner] at
// elements r * row_stride + g * inner.
struct Strip {
  int64_t rows;
  int64_t row_stride;
  int64_t groups;
  int64_t inner;
};

// Runs shorter than this are summed per element of the row and folded into groups at the end (whole vectors, whatever
// the run), longer ones at once per group.
constexpr int64_t kLongRun = 64;
// Elements of the longest row of a strip, unless one group is longer: its sums stay in the innermost cache.
constexpr int64_t kMaxRow = 10240;
// Elements that a kernel takes through all its passes at a time where groups are contiguous.
constexpr int64_t kBlock = 2048;

// Number of sums that a strip keeps.
SPARSE_ACCEL_HOST_DEVICE int64_t sums_width(const Strip& s) {
  return s.inner < kLongRun ? s.groups * s.inner : s.groups;
}
// From the sums of one part to those of the next: whole cache lines.
SPARSE_ACCEL_HOST_DEVICE int64_t sums_stride(const Strip& s) { return (sums_width(s) + 15) / 16 * 16; }
constexpr int64_t kScratch = kMaxRow + kLongRun;  // the most of them

struct ScoreTask {
  Strip strip;
  const void* x;
  Score kind;
};

struct ProxTask {
  Strip strip;
  void* x;
  double tau;
  double size;  // elements of a whole group
  Prox prox;
};

struct RmdaTask {
  Strip strip;
  void* param;
  const void* grad;
  void* point;
  const void* anchor;
  double lr;  // over the gradient scale, negative to maximize
  double decay;
  double tau;
  double momentum;
  double size;
  Prox prox;
};

struct SgdTask {
  Strip strip;
  void* param;
  const void* grad;
  void* buffer;
  double lr;
  double keep;         // of the momentum: 1 - rho
  double grad_factor;  // rho over the gradient scale, negative to maximize
  double tau;
  double size;
  Prox prox;
};

// A kernel either takes a strip as a whole, with kScratch elements of the compute type to work on, or in three parts:
// sums of some of its rows; joining the sums of all; applying the result to some of its rows. Sums, scores and factors
// are in the compute type.
struct Kernels {
  void (*score[kDtypes])(const ScoreTask&, void* scores, void* scratch);
  void (*score_sums[kDtypes])(const ScoreTask&, void* sums);
  void (*score_join[kDtypes])(const ScoreTask&, void* sums, int64_t parts, void* scores);
  double (*prox[kDtypes])(const ProxTask&, void* scratch);  // returns the penalty of the strip
  void (*prox_sums[kDtypes])(const ProxTask&, void* sums);
  double (*prox_join[kDtypes])(const ProxTask&, void* sums, int64_t parts);  // sums[0] becomes the factors
  void (*prox_apply[kDtypes])(const ProxTask&, const void* factors);
  void (*rmda[kDtypes])(const RmdaTask&, void* scratch);
  void (*rmda_sums[kDtypes])(const RmdaTask&, void* sums);
  void (*rmda_join[kDtypes])(const RmdaTask&, void* sums, int64_t parts);
  void (*rmda_apply[kDtypes])(const RmdaTask&, const void* factors);
  void (*sgd[kDtypes])(const SgdTask&, void* scratch);
  void (*sgd_sums[kDtypes])(const SgdTask&, void* sums);
  void (*sgd_join[kDtypes])(const SgdTask&, void* sums, int64_t parts);
  void (*sgd_apply[kDtypes])(const SgdTask&, const void* factors);
};

}  // namespace sparse_accel
