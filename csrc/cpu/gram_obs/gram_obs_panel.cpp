#include "gram_obs_panel.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../../torch_runtime.h"
#include "../isa/kernel_set.h"

namespace sparse_accel::cpu {
namespace {

constexpr int64_t kPanelGrain = 1 << 15;  // multiplications below which a thread costs more than it gives

// The pivot's numbers, from its diagonal blocks and its column of the panel.
class Pivot {
 public:
  explicit Pivot(const GramPanel& panel)
      : root_(panel.block * panel.block),
        moment_(panel.block * panel.block),
        damage_(panel.block * panel.block),
        v_(panel.capacity * panel.block),
        a_(panel.capacity * panel.block),
        weight_(panel.outputs * panel.block) {}

  GramPivot at(const GramPanel& panel, int64_t unit) {
    factor(panel, unit);
    const int64_t k = panel.block, chunks = panel.units / panel.width;
    for (int64_t t = 0; t < k; ++t) {
      const int64_t block = (t * chunks + unit / panel.width) * panel.capacity * panel.width + unit % panel.width;
      for (int64_t p = 0; p < panel.rows; ++p) {
        v_[p * k + t] = panel.v[block + p * panel.width];
        a_[p * k + t] = panel.a[block + p * panel.width];
      }
      const int64_t own = (t * panel.units + unit) / kGramLanes * panel.outputs * kGramLanes + unit % kGramLanes;
      for (int64_t p = 0; p < panel.outputs; ++p) weight_[p * k + t] = panel.weight[own + p * kGramLanes];
    }
    return GramPivot{unit, root_.data(), damage_.data(), v_.data(), a_.data(), weight_.data()};
  }

 private:
  // L^-1 of Q_cc = L L' in root_, L^-1 N_cc L^-T in damage_.
  void factor(const GramPanel& panel, int64_t unit) {
    const int64_t k = panel.block;
    std::vector<double>& l = damage_;
    const auto own = [&](const double* matrix, int64_t i, int64_t j) {
      return matrix[(std::max(i, j) * k + std::min(i, j)) * panel.units + unit];
    };
    for (int64_t j = 0; j < k; ++j) {
      for (int64_t i = j; i < k; ++i) {
        double sum = own(panel.own_inverse, i, j);
        for (int64_t p = 0; p < j; ++p) sum -= l[i * k + p] * l[j * k + p];
        l[i * k + j] = i == j ? std::sqrt(sum) : sum / l[j * k + j];
      }
    }
    std::fill(root_.begin(), root_.end(), 0.0);
    for (int64_t j = 0; j < k; ++j) {
      for (int64_t i = j; i < k; ++i) {
        double sum = i == j ? 1.0 : 0.0;
        for (int64_t p = j; p < i; ++p) sum -= l[i * k + p] * root_[p * k + j];
        root_[i * k + j] = sum / l[i * k + i];
      }
    }
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        double sum = 0;
        for (int64_t p = 0; p <= i; ++p) sum += root_[i * k + p] * own(panel.own_moment, p, j);
        moment_[i * k + j] = sum;
      }
    }
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        double sum = 0;
        for (int64_t p = 0; p <= j; ++p) sum += moment_[i * k + p] * root_[j * k + p];
        damage_[i * k + j] = damage_[j * k + i] = sum;
      }
    }
  }

  std::vector<double> root_, moment_, damage_, v_, a_, weight_;
};

// The unit of the least score among those that may go; -1 if no score is finite.
int64_t least(const GramPanel& panel, const std::vector<int64_t>& units, const GramRounds& rounds) {
  const int64_t round = rounds.set_of.empty() ? 0 : *std::min_element(rounds.gone.begin(), rounds.gone.end());
  double best = std::numeric_limits<double>::infinity();
  int64_t chosen = -1;
  for (int64_t u = 0; u < panel.units; ++u) {
    if (units[u] < 0 || (!rounds.set_of.empty() && rounds.gone[rounds.set_of[units[u]]] != round)) continue;
    const double score = std::max(panel.scores[u], 0.0);  // a NaN stays
    if (score < best) {
      best = score;
      chosen = u;
    }
  }
  return chosen;
}

}  // namespace

int64_t gram_obs_panel(GramPanel& panel, std::vector<int64_t>& units, GramRounds& rounds, int64_t most, int64_t* order,
                       double* damages) {
  const GramObsKernels& kernels = kernel_set().gram_obs;
  const int64_t chunks = panel.units / panel.width, scratch = gram_obs_scratch(panel.block);
  const int64_t work = panel.block * panel.block * panel.width * (panel.block + panel.capacity + panel.outputs);
  const int64_t grain = std::max<int64_t>(1, kPanelGrain / std::max<int64_t>(1, work));
  std::vector<double> memory(scratch * num_threads());
  const auto over_chunks = [&](const auto& body) {
    parallel_for(0, chunks, grain,
                 [&](int64_t begin, int64_t end) { body(begin, end, memory.data() + thread_num() * scratch); });
  };
  over_chunks([&](int64_t begin, int64_t end, double* own) { kernels.score(panel, begin, end, own); });
  Pivot pivots(panel);
  int64_t count = 0;
  for (; count < most && panel.rows + panel.block <= panel.capacity; ++count) {
    const int64_t unit = least(panel, units, rounds);
    if (unit < 0) break;
    order[count] = units[unit];
    damages[count] = std::max(panel.scores[unit], 0.0);
    if (!rounds.set_of.empty()) ++rounds.gone[rounds.set_of[units[unit]]];
    units[unit] = -1;
    const GramPivot pivot = pivots.at(panel, unit);
    over_chunks([&](int64_t begin, int64_t end, double* own) { kernels.remove(panel, pivot, begin, end, own); });
    panel.rows += panel.block;
  }
  return count;
}

}  // namespace sparse_accel::cpu
