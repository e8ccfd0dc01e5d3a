#pragma once
// The kernels of block backward elimination, of each instruction set.
#include <cstdint>

namespace sparse_accel {

// The state of an elimination: Q, the inverse, and N = W' W, both [block * units, block * units] with row
// t * units + u for column t of unit u, so that neighbouring units are neighbouring lanes. Units are padded to whole
// chunks of `width`. Only their lower triangles are read. Downdates are kept apart in a panel: the matrices are
// Q - V' V and N - A' V - V' A, their diagonal blocks and the scores are up to date. With few outputs there is W in N's
// place, from which rows of N are made.
struct GramPanel {
  int64_t block;
  int64_t units;
  int64_t width;     // a multiple of 8, at most 32
  int64_t capacity;  // rows of V and A
  int64_t rows;      // in use
  const double* inverse;
  const double* moment;  // null: weight is there
  const double* weight;  // [block * units / kGramLanes, outputs, kGramLanes]
  int64_t outputs;
  double* v;            // [block * units / width, capacity, width]
  double* a;            // the same
  double* own_inverse;  // [block, block, units]
  double* own_moment;   // [block, block, units]
  double* scores;       // [units]; NaN where the block of Q is not positive definite
};

// A unit to remove: with Q_cc = L L', what its rows of Q and N are multiplied with, and its column of the panel.
struct GramPivot {
  int64_t unit;
  const double* root;    // [block, block] L^-1, lower triangular
  const double* damage;  // [block, block] L^-1 N_cc L^-T, of which the trace is the score
  const double* v;       // [rows, block]
  const double* a;       // [rows, block]
  const double* weight;  // [outputs, block]
};

// Work for chunks [begin, end) of units; scratch holds gram_obs_scratch numbers.
struct GramObsKernels {
  void (*score)(const GramPanel&, int64_t begin, int64_t end, double* scratch);
  // Writes the next `block` rows of V and A, and brings diagonal blocks and scores up to date.
  void (*remove)(const GramPanel&, const GramPivot&, int64_t begin, int64_t end, double* scratch);
};

constexpr int64_t kGramLanes = 8;   // units are padded to multiples of it
constexpr int64_t kGramWidth = 32;  // units of a chunk, at most
inline int64_t gram_obs_scratch(int64_t block) { return 2 * block * kGramWidth + 2 * block * block * kGramLanes; }

}  // namespace sparse_accel
