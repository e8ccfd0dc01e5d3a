// Q and N = W' W are held whole: with Q_cc = L L', V = L^-1 Q_c:, S = L^-1 N_cc L^-T and A = L^-1 N_c: - S V / 2,
// removing unit c leaves Q - V' V and N - A' V - V' A, at the cost tr S.
#include "gram_obs_batched.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "operators.h"

namespace sparse_accel {
namespace {

at::Tensor solve_lower(const at::Tensor& lower, const at::Tensor& right) {
  return at::linalg_solve_triangular(lower, right, /*upper=*/false);
}

}  // namespace

void gram_obs_batched(const at::Tensor& inverse, const at::Tensor& weight, int64_t block,
                      const std::optional<at::Tensor>& sets, const at::Tensor& order, const at::Tensor& damages) {
  const int64_t problems = inverse.size(0), n = inverse.size(1), k = block, units = n / k, steps = order.size(1);
  const at::Tensor q = inverse.clone(at::MemoryFormat::Contiguous), m = at::matmul(weight.mT(), weight);
  const at::Tensor every = at::arange(units, order.options()), columns = at::arange(k, order.options());
  const at::Tensor eye = at::eye(k, q.options());
  const at::Tensor left = at::ones({problems, units}, q.options().dtype(at::kBool));
  const at::Tensor set_of = (sets.has_value() ? *sets : at::zeros_like(every)).expand({problems, units});
  const at::Tensor gone =
      at::zeros({problems, sets.has_value() ? sets->max().item<int64_t>() + 1 : 1}, order.options());
  const double infinity = std::numeric_limits<double>::infinity();
  const auto own = [&](const at::Tensor& matrix) {  // [problems, units, k, k]
    return matrix.view({problems, units, k, units, k}).diagonal(0, 1, 3).permute({0, 3, 1, 2});
  };
  const auto of_unit = [&](const at::Tensor& blocks, const at::Tensor& unit) {  // [problems, k, k]
    return blocks.gather(1, unit.view({-1, 1, 1, 1}).expand({-1, 1, k, k})).squeeze(1);
  };
  for (int64_t step = 0; step < steps; ++step) {
    const at::Tensor blocks = at::where(left.view({problems, units, 1, 1}), own(q), eye);
    const auto factors = at::linalg_cholesky_ex(blocks);
    const at::Tensor &root = std::get<0>(factors), &info = std::get<1>(factors);
    const at::Tensor damage = solve_lower(root, solve_lower(root, own(m)).mT());  // S of every unit
    const at::Tensor cost = damage.diagonal(0, 2, 3).sum(-1).clamp_min(0);
    const at::Tensor free = left.logical_and(gone.gather(1, set_of).eq(gone.amin({1}, true)));
    const at::Tensor score = at::where(free.logical_and(info.eq(0)).logical_and(cost.isfinite()), cost, infinity);
    const at::Tensor least = score.amin({1}, true);
    const at::Tensor unit = at::where(score.eq(least).logical_and(free), every, units - 1).amin({1});  // [problems]
    order.select(1, step).copy_(unit);
    damages.select(1, step).copy_(least.squeeze(1));
    const at::Tensor rows = (unit.view({-1, 1}) * k + columns).unsqueeze(2).expand({-1, -1, n});
    const at::Tensor pivot = of_unit(root, unit), half = of_unit(damage, unit) / 2;
    const at::Tensor v = solve_lower(pivot, q.gather(1, rows));
    const at::Tensor a = at::baddbmm(solve_lower(pivot, m.gather(1, rows)), half, v, 1, -1);
    q.baddbmm_(v.mT(), v, 1, -1);
    m.baddbmm_(a.mT(), v, 1, -1);
    m.baddbmm_(v.mT(), a, 1, -1);
    left.scatter_(1, unit.view({-1, 1}), false);
    gone.scatter_add_(1, set_of.gather(1, unit.view({-1, 1})), at::ones({problems, 1}, order.options()));
  }
}

}  // namespace sparse_accel
