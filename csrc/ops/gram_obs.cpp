#include "gram_obs.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../cpu/gram_obs/gram_obs_panel.h"
#include "common.h"
#include "gram_obs_batched.h"

namespace sparse_accel {
namespace {

constexpr const char* kGramObs = "gram_obs";
constexpr int64_t kPanel = 64;  // rows kept apart: a product with the whole matrix is then worth its passes over memory

void check_gram_obs(const at::Tensor& inverse, const at::Tensor& weight, int64_t block, int64_t steps,
                    const std::optional<at::Tensor>& sets) {
  TORCH_CHECK_TYPE(inverse.scalar_type() == at::kDouble, kGramObs, ": inverse: expected float64, got ",
                   inverse.scalar_type());
  TORCH_CHECK_TYPE(weight.scalar_type() == at::kDouble, kGramObs, ": weight: expected float64, got ",
                   weight.scalar_type());
  TORCH_CHECK_VALUE(inverse.dim() == 3 && inverse.size(1) == inverse.size(2), kGramObs,
                    ": inverse: expected [problems, n, n], got ", inverse.sizes());
  const int64_t problems = inverse.size(0), n = inverse.size(1);
  TORCH_CHECK_VALUE(weight.dim() == 3 && weight.size(0) == problems && weight.size(2) == n, kGramObs,
                    ": weight: expected [problems, d, n] with ", problems, " problems and n = ", n, ", got ",
                    weight.sizes());
  TORCH_CHECK_VALUE(weight.device() == inverse.device(), kGramObs, ": weight: expected device ", inverse.device(),
                    ", got ", weight.device());
  TORCH_CHECK_VALUE(block >= 1 && n % block == 0, kGramObs, ": block: expected a divisor of ", n,
                    ", the number of columns, got ", block);
  const int64_t units = n / block;
  TORCH_CHECK_VALUE(0 <= steps && steps <= units, kGramObs, ": steps: expected 0 to ", units,
                    ", the number of units, got ", steps);
  if (!sets.has_value() || units == 0) return;
  TORCH_CHECK_VALUE(sets->dim() == 1 && sets->size(0) == units && sets->scalar_type() == at::kLong &&
                        sets->device() == inverse.device(),
                    kGramObs, ": sets: expected [", units, "] int64 on ", inverse.device(), ", got ", sets->sizes(),
                    " ", sets->scalar_type(), " on ", sets->device());
  const at::Tensor numbers = sets->cpu().contiguous();
  const int64_t* const set_of = numbers.const_data_ptr<int64_t>();
  std::vector<int64_t> sizes;
  for (int64_t u = 0; u < units; ++u) {
    TORCH_CHECK_VALUE(0 <= set_of[u] && set_of[u] < units, kGramObs, ": sets: expected numbers in [0, ", units,
                      "), got ", set_of[u]);
    if (set_of[u] >= int64_t(sizes.size())) sizes.resize(set_of[u] + 1);
    ++sizes[set_of[u]];
  }
  TORCH_CHECK_VALUE(std::equal(sizes.begin() + 1, sizes.end(), sizes.begin()), kGramObs,
                    ": sets: expected sets of equal size, numbered from 0, got sizes ", at::IntArrayRef(sizes));
}

// Square matrices in the panel's order of columns, [block, units, block, units]: chunks of units, padded.
struct Order {
  int64_t block, units, width, padded;

  Order(int64_t block, int64_t units) : block(block), units(units) {
    const int64_t chunks = std::max<int64_t>(1, (units + kGramWidth - 1) / kGramWidth);
    const int64_t each = (units + chunks - 1) / chunks;
    width = std::max<int64_t>(1, (each + kGramLanes - 1) / kGramLanes) * kGramLanes;
    padded = chunks * width;
  }
  int64_t columns() const { return block * padded; }

  // From [block, units, block, units] with any strides.
  at::Tensor pad(const at::Tensor& matrix) const {
    at::Tensor out = at::zeros({block, padded, block, padded}, matrix.options());
    out.narrow(1, 0, units).narrow(3, 0, units).copy_(matrix);
    return out;
  }
};

class Elimination {
 public:
  Elimination(const at::Tensor& inverse, const at::Tensor& weight, int64_t block)
      : order_(block, inverse.size(0) / block) {
    const int64_t k = block, units = order_.units;
    const at::Tensor w = weight.view({-1, units, k}).transpose(1, 2).reshape({-1, k * units});
    inverse_ = order_.pad(inverse.view({units, k, units, k}).permute({1, 0, 3, 2}));
    moment_ = order_.pad(at::mm(w.t(), w).view({k, units, k, units}));
    units_.assign(order_.padded, -1);
    for (int64_t u = 0; u < units; ++u) units_[u] = u;
  }

  // Removes `steps` units; returns how many there were before a score was not finite.
  int64_t run(int64_t steps, cpu::GramRounds& rounds, int64_t* order, double* damages) {
    int64_t done = 0;
    while (done < steps) {
      const int64_t removed = panel(steps - done, rounds, order + done, damages + done);
      if (removed == 0) break;
      done += removed;
    }
    return done;
  }

 private:
  int64_t panel(int64_t most, cpu::GramRounds& rounds, int64_t* order, double* damages) {
    const int64_t k = order_.block, width = order_.width;
    const int64_t capacity = std::min(std::max<int64_t>(1, kPanel / k), most) * k;
    const auto diagonal = [](const at::Tensor& matrix) { return matrix.diagonal(0, 1, 3).contiguous(); };
    at::Tensor own_inverse = diagonal(inverse_), own_moment = diagonal(moment_);  // [k, k, padded]
    at::Tensor v = at::empty({order_.columns() / width, capacity, width}, inverse_.options()), a = at::empty_like(v);
    std::vector<double> scores(order_.padded);
    GramPanel state{k,
                    order_.padded,
                    width,
                    capacity,
                    0,
                    inverse_.const_data_ptr<double>(),
                    moment_.const_data_ptr<double>(),
                    v.mutable_data_ptr<double>(),
                    a.mutable_data_ptr<double>(),
                    own_inverse.mutable_data_ptr<double>(),
                    own_moment.mutable_data_ptr<double>(),
                    scores.data()};
    const int64_t removed = cpu::gram_obs_panel(state, units_, rounds, most, order, damages);
    if (removed < most && removed > 0) flush(v, a, state.rows);
    return removed;
  }

  // Q -= V' V, N -= A' V + V' A, on the units that are left where enough are gone to pay for the copy.
  void flush(const at::Tensor& v, const at::Tensor& a, int64_t rows) {
    const auto matrix = [&](const at::Tensor& panel) {  // [rows, columns]
      return panel.narrow(1, 0, rows).transpose(0, 1).reshape({rows, order_.block, order_.padded});
    };
    at::Tensor x = matrix(v), y = matrix(a);
    std::vector<int64_t> left;
    for (int64_t u = 0; u < order_.padded; ++u) {
      if (units_[u] >= 0) left.push_back(u);
    }
    const Order smaller(order_.block, int64_t(left.size()));
    if (smaller.padded * 8 <= order_.padded * 7) {
      const at::Tensor index = at::tensor(left, at::kLong);
      const auto take = [&](const at::Tensor& square) {
        return smaller.pad(square.index_select(1, index).index_select(3, index));
      };
      inverse_ = take(inverse_);
      moment_ = take(moment_);
      const auto take_rows = [&](const at::Tensor& panel) {
        return at::constant_pad_nd(panel.index_select(2, index), {0, smaller.padded - smaller.units});
      };
      x = take_rows(x);
      y = take_rows(y);
      std::vector<int64_t> units(smaller.padded, -1);
      for (size_t i = 0; i < left.size(); ++i) units[i] = units_[left[i]];
      units_ = units;
      order_ = smaller;
    }
    const int64_t n = order_.columns();
    x = x.reshape({rows, n});
    y = y.reshape({rows, n});
    inverse_.view({n, n}).addmm_(x.t(), x, 1, -1);
    moment_.view({n, n}).addmm_(at::cat({y, x}).t(), at::cat({x, y}), 1, -1);
  }

  Order order_;
  at::Tensor inverse_, moment_;  // [block, padded, block, padded]
  std::vector<int64_t> units_;   // [padded]
};

void eliminate_on_cpu(const at::Tensor& inverse, const at::Tensor& weight, int64_t block, int64_t steps,
                      const std::optional<at::Tensor>& sets, const at::Tensor& order, const at::Tensor& damages) {
  cpu::GramRounds first;
  if (sets.has_value()) {
    const at::Tensor numbers = sets->contiguous();
    first.set_of.assign(numbers.const_data_ptr<int64_t>(), numbers.const_data_ptr<int64_t>() + numbers.numel());
    const auto last = std::max_element(first.set_of.begin(), first.set_of.end());
    first.gone.assign(last == first.set_of.end() ? 1 : *last + 1, 0);
  }
  for (int64_t p = 0; p < inverse.size(0); ++p) {
    cpu::GramRounds rounds = first;
    double* const cost = damages.mutable_data_ptr<double>() + p * steps;
    Elimination elimination(inverse[p].contiguous(), weight[p].contiguous(), block);
    const int64_t done = elimination.run(steps, rounds, order.mutable_data_ptr<int64_t>() + p * steps, cost);
    std::fill(cost + done, cost + steps, INFINITY);
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> gram_obs(const at::Tensor& inverse, const at::Tensor& weight, int64_t block,
                                            int64_t steps, const std::optional<at::Tensor>& sets) {
  check_gram_obs(inverse, weight, block, steps, sets);
  const int64_t problems = inverse.size(0);
  const at::Tensor order = at::zeros({problems, steps}, inverse.options().dtype(at::kLong));
  const at::Tensor damages = at::zeros({problems, steps}, inverse.options());
  if (problems == 0 || steps == 0) return {order, damages};
#ifdef SPARSE_ACCEL_WITH_CUDA
  const bool batched = on_cuda(inverse);
#else
  const bool batched = false;
#endif
  TORCH_CHECK(batched || inverse.is_cpu(), kGramObs, ": expected CPU or (in a CUDA build) CUDA tensors, got ",
              inverse.device());
  if (batched) {
    gram_obs_batched(inverse, weight, block, sets, order, damages);
  } else {
    eliminate_on_cpu(inverse, weight, block, steps, sets, order, damages);
  }
  TORCH_CHECK_VALUE(at::isfinite(damages).all().item<bool>(), kGramObs,
                    ": inverse: expected positive definite matrices, and finite weights");
  return {order, damages};
}

}  // namespace sparse_accel
