// Block backward elimination on the CPU: the traversal. Included once per instruction set: no include guard on purpose.
// Every number is computed in a fixed order from its own column, so that results do not depend on the threads.
#include <algorithm>

#include "../isa/unroll.h"

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

using GramVec = Vec<double>;
constexpr int64_t kGramStep = kLanes<double>;
static_assert(kGramLanes % kGramStep == 0, "whole vectors");

// One row of Q and of N, less what the panel holds: W vectors of one column block.
template <int W>
static void gram_row(const double* q, const double* m, const double* v, const double* a, int64_t rows, int64_t width,
                     const double* pivot_v, const double* pivot_a, int64_t stride, double* q_out, double* m_out) {
  GramVec q_sum[W], m_sum[W];
  for (int w = 0; w < W; ++w) {
    q_sum[w] = GramVec::loadu(q + w * kGramStep);
    m_sum[w] = GramVec::loadu(m + w * kGramStep);
  }
  for (int64_t p = 0; p < rows; ++p) {
    const GramVec pv(-pivot_v[p * stride]), pa(-pivot_a[p * stride]);
    for (int w = 0; w < W; ++w) {
      const GramVec x = GramVec::loadu(v + p * width + w * kGramStep);
      const GramVec z = GramVec::loadu(a + p * width + w * kGramStep);
      q_sum[w] = at::vec::fmadd(pv, x, q_sum[w]);
      m_sum[w] = at::vec::fmadd(pa, x, m_sum[w]);
      m_sum[w] = at::vec::fmadd(pv, z, m_sum[w]);
    }
  }
  for (int w = 0; w < W; ++w) {
    q_sum[w].store(q_out + w * kGramStep);
    m_sum[w].store(m_out + w * kGramStep);
  }
}

// R rows of N from W in kGramLanes columns, out [R, width]; weight [outputs, kGramLanes].
template <int R>
static void gram_product(const double* weight, int64_t outputs, int64_t width, const double* pivot, int64_t stride,
                         double* out) {
  constexpr int W = kGramLanes / kGramStep;
  GramVec sum[R][W];
  SPARSE_ACCEL_UNROLL
  for (int r = 0; r < R; ++r) {
    SPARSE_ACCEL_UNROLL
    for (int w = 0; w < W; ++w) sum[r][w] = GramVec(0.0);
  }
  for (int64_t p = 0; p < outputs; ++p) {
    GramVec x[W];
    SPARSE_ACCEL_UNROLL
    for (int w = 0; w < W; ++w) x[w] = GramVec::loadu(weight + p * kGramLanes + w * kGramStep);
    SPARSE_ACCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      const GramVec factor(pivot[p * stride + r]);
      SPARSE_ACCEL_UNROLL
      for (int w = 0; w < W; ++w) sum[r][w] = at::vec::fmadd(factor, x[w], sum[r][w]);
    }
  }
  SPARSE_ACCEL_UNROLL
  for (int r = 0; r < R; ++r) {
    SPARSE_ACCEL_UNROLL
    for (int w = 0; w < W; ++w) sum[r][w].store(out + r * width + w * kGramStep);
  }
}

// The pivot's rows of N = W' W in one column block, [block, width]. Five rows at a time keep ten sums in registers.
static void gram_products(const GramPanel& panel, const GramPivot& pivot, int64_t block, double* out) {
  const int64_t k = panel.block, width = panel.width;
  const double* weight = panel.weight + block * panel.outputs * width;
  for (int64_t i = 0; i < width; i += kGramLanes, weight += panel.outputs * kGramLanes) {
    for (int64_t r = 0; r < k;) {
      const auto run = [&](auto product, int64_t rows) {
        product(weight, panel.outputs, width, pivot.weight + r, k, out + r * width + i);
        r += rows;
      };
      switch (k - r) {
        case 1:
          run(gram_product<1>, 1);
          break;
        case 2:
          run(gram_product<2>, 2);
          break;
        case 3:
          run(gram_product<3>, 3);
          break;
        case 4:
          run(gram_product<4>, 4);
          break;
        default:
          run(gram_product<5>, 5);
      }
    }
  }
}

// Some columns of a row of a symmetric matrix of which the lower triangle is up to date: where they are, or in out.
static const double* gram_symmetric(const double* matrix, int64_t n, int64_t row, int64_t column, int64_t width,
                                    double* out) {
  const double* const own = matrix + row * n + column;
  const int64_t left = std::clamp<int64_t>(row + 1 - column, 0, width);
  if (left == width) return own;
  std::copy(own, own + left, out);
  for (int64_t i = left; i < width; ++i) out[i] = matrix[(column + i) * n + row];
  return out;
}

// tr(Q_uu^-1 N_uu) of kGramStep units at once: Cholesky, its inverse, a quadratic form per row.
static void gram_score(const GramPanel& panel, int64_t unit, double* scratch) {
  const int64_t k = panel.block, units = panel.units;
  const auto cell = [k](double* matrix, int64_t row, int64_t column) {
    return matrix + (row * k + column) * kGramStep;
  };
  const auto own = [&](const double* matrix, int64_t row, int64_t column) {
    return GramVec::loadu(matrix + (row * k + column) * units + unit);
  };
  if (k == 1) {
    (own(panel.own_moment, 0, 0) / own(panel.own_inverse, 0, 0)).store(panel.scores + unit);
    return;
  }
  double* const factor = scratch;
  double* const root = scratch + k * k * kGramStep;
  for (int64_t column = 0; column < k; ++column) {
    for (int64_t row = column; row < k; ++row) {
      GramVec sum = own(panel.own_inverse, row, column);
      for (int64_t j = 0; j < column; ++j) {
        const GramVec left = GramVec::loadu(cell(factor, row, j)), right = GramVec::loadu(cell(factor, column, j));
        sum = at::vec::fmadd(left.neg(), right, sum);
      }
      if (row == column) {
        sum = GramVec(1.0) / sum.sqrt();  // the reciprocal of the diagonal is all that is needed
      } else {
        sum = sum * GramVec::loadu(cell(factor, column, column));
      }
      sum.store(cell(factor, row, column));
    }
  }
  GramVec score(0.0);
  for (int64_t row = 0; row < k; ++row) {
    const GramVec diagonal = GramVec::loadu(cell(factor, row, row));
    for (int64_t column = 0; column < row; ++column) {
      GramVec sum(0.0);
      for (int64_t j = column; j < row; ++j) {
        sum = at::vec::fmadd(GramVec::loadu(cell(factor, row, j)), GramVec::loadu(cell(root, j, column)), sum);
      }
      (sum * diagonal).neg().store(cell(root, row, column));
    }
    diagonal.store(cell(root, row, row));
    for (int64_t i = 0; i <= row; ++i) {
      GramVec sum(0.0);
      for (int64_t j = 0; j < i; ++j) {
        sum = at::vec::fmadd(own(panel.own_moment, i, j), GramVec::loadu(cell(root, row, j)), sum);
      }
      const GramVec x = GramVec::loadu(cell(root, row, i));
      sum = at::vec::fmadd(own(panel.own_moment, i, i), x, sum + sum);
      score = at::vec::fmadd(sum, x, score);
    }
  }
  score.store(panel.scores + unit);
}

static void gram_scores(const GramPanel& panel, int64_t begin, int64_t end, double* scratch) {
  for (int64_t unit = begin * panel.width; unit < end * panel.width; unit += kGramStep) {
    gram_score(panel, unit, scratch);
  }
}

// V = L^-1 Q_c: and A = L^-1 N_c: - S V / 2 of one column block, [block, width] each in q and m.
static void gram_solve(const GramPanel& panel, const GramPivot& pivot, double* q, double* m, double* v, double* a) {
  const int64_t k = panel.block, width = panel.width;
  for (int64_t i = 0; i < width; i += kGramStep) {
    for (int64_t row = 0; row < k; ++row) {
      GramVec left(0.0), right(0.0);
      for (int64_t j = 0; j <= row; ++j) {
        const GramVec factor(pivot.root[row * k + j]);
        left = at::vec::fmadd(factor, GramVec::loadu(q + j * width + i), left);
        right = at::vec::fmadd(factor, GramVec::loadu(m + j * width + i), right);
      }
      left.store(v + row * width + i);
      right.store(a + row * width + i);
    }
    for (int64_t row = 0; row < k; ++row) {
      GramVec sum = GramVec::loadu(a + row * width + i);
      for (int64_t j = 0; j < k; ++j) {
        sum = at::vec::fmadd(GramVec(-0.5 * pivot.damage[row * k + j]), GramVec::loadu(v + j * width + i), sum);
      }
      sum.store(a + row * width + i);
    }
  }
}

// The diagonal blocks of a chunk, less the rows of V and A just written.
static void gram_own(const GramPanel& panel, int64_t chunk) {
  const int64_t k = panel.block, width = panel.width, chunks = panel.units / width;
  const auto rows = [&](const double* matrix, int64_t column) {
    return matrix + ((column * chunks + chunk) * panel.capacity + panel.rows) * width;
  };
  for (int64_t i = 0; i < k; ++i) {
    const double *const v_i = rows(panel.v, i), *const a_i = rows(panel.a, i);
    for (int64_t j = 0; j <= i; ++j) {
      const double *const v_j = rows(panel.v, j), *const a_j = rows(panel.a, j);
      double* const q = panel.own_inverse + (i * k + j) * panel.units + chunk * width;
      double* const m = panel.own_moment + (i * k + j) * panel.units + chunk * width;
      for (int64_t u = 0; u < width; u += kGramStep) {
        GramVec q_sum = GramVec::loadu(q + u), m_sum = GramVec::loadu(m + u);
        for (int64_t r = 0; r < k; ++r) {
          const GramVec x = GramVec::loadu(v_i + r * width + u).neg(), y = GramVec::loadu(v_j + r * width + u);
          q_sum = at::vec::fmadd(x, y, q_sum);
          m_sum = at::vec::fmadd(GramVec::loadu(a_i + r * width + u).neg(), y, m_sum);
          m_sum = at::vec::fmadd(x, GramVec::loadu(a_j + r * width + u), m_sum);
        }
        q_sum.store(q + u);
        m_sum.store(m + u);
      }
    }
  }
}

static void gram_remove(const GramPanel& panel, const GramPivot& pivot, int64_t begin, int64_t end, double* scratch) {
  const int64_t k = panel.block, width = panel.width, chunks = panel.units / width, n = k * panel.units;
  double *const q = scratch, *const m = scratch + k * kGramWidth, *const rest = m + k * kGramWidth;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    for (int64_t t = 0; t < k; ++t) {
      const int64_t block = t * chunks + chunk, column = block * width;
      double* const v = panel.v + block * panel.capacity * width;
      double* const a = panel.a + block * panel.capacity * width;
      if (panel.moment == nullptr) gram_products(panel, pivot, block, m);
      for (int64_t r = 0; r < k; ++r) {
        const int64_t row = r * panel.units + pivot.unit;
        double *const own_q = q + r * width, *const own_m = m + r * width;
        const double* const inverse = gram_symmetric(panel.inverse, n, row, column, width, own_q);
        const double* const moment =
            panel.moment == nullptr ? own_m : gram_symmetric(panel.moment, n, row, column, width, own_m);
        int64_t i = 0;
        for (; i + 4 * kGramStep <= width; i += 4 * kGramStep) {
          gram_row<4>(inverse + i, moment + i, v + i, a + i, panel.rows, width, pivot.v + r, pivot.a + r, k, own_q + i,
                      own_m + i);
        }
        for (; i < width; i += kGramStep) {
          gram_row<1>(inverse + i, moment + i, v + i, a + i, panel.rows, width, pivot.v + r, pivot.a + r, k, own_q + i,
                      own_m + i);
        }
      }
      gram_solve(panel, pivot, q, m, v + panel.rows * width, a + panel.rows * width);
    }
    gram_own(panel, chunk);
    gram_scores(panel, chunk, chunk + 1, rest);
  }
}

static const GramObsKernels gram_obs_table = {&gram_scores, &gram_remove};

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
