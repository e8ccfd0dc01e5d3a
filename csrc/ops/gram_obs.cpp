#include "gram_obs.h"

#include <algorithm>
#include <vector>

#include "../cpu/gram_obs/gram_obs_panel.h"

namespace sparse_accel {

std::pair<std::int64_t, std::int64_t> gram_obs_order(std::int64_t units) {
  const std::int64_t chunks = std::max<std::int64_t>(1, (units + kGramWidth - 1) / kGramWidth);
  const std::int64_t each = (units + chunks - 1) / chunks;
  const std::int64_t width = std::max<std::int64_t>(1, (each + kGramLanes - 1) / kGramLanes) * kGramLanes;
  return {width, chunks * width};
}

std::int64_t gram_obs_panel(const Tensor& inverse, const Tensor& moment, const Tensor& v, const Tensor& a,
                            const Tensor& own_inverse, const Tensor& own_moment, const Tensor& units,
                            const std::optional<Tensor>& set_of, const std::optional<Tensor>& gone, std::int64_t most,
                            const Tensor& order, const Tensor& damages) {
  constexpr const char* kOp = "gram_obs";
  CHECK_VALUE(inverse.dim() == 4 && v.dim() == 3, kOp, ": inverse, v: expected 4 and 3 dimensions, got ", inverse.dim(),
              " and ", v.dim());
  CHECK_RUN(inverse.is_cpu(), kOp, ": inverse: expected a CPU tensor, got ", DeviceOf{inverse});
  const std::int64_t block = inverse.size(0), padded = inverse.size(1), capacity = v.size(1), width = v.size(2);
  CHECK_VALUE(width > 0 && width <= kGramWidth && width % kGramLanes == 0 && padded % width == 0, kOp,
              ": v: expected chunks that divide ", padded, " units, got ", width);
  check_array(kOp, "inverse", inverse, inverse, kDouble, {block, padded, block, padded});
  const bool by_weight = moment.dim() == 3;  // [columns / kGramLanes, outputs, kGramLanes]
  const std::int64_t outputs = by_weight ? moment.size(1) : 0;
  if (by_weight) {
    check_array(kOp, "moment", moment, inverse, kDouble, {block * padded / kGramLanes, outputs, kGramLanes});
  } else {
    check_array(kOp, "moment", moment, inverse, kDouble, inverse.sizes());
  }
  check_array(kOp, "v", v, inverse, kDouble, {block * padded / width, capacity, width});
  check_array(kOp, "a", a, inverse, kDouble, v.sizes());
  check_array(kOp, "own_inverse", own_inverse, inverse, kDouble, {block, block, padded});
  check_array(kOp, "own_moment", own_moment, inverse, kDouble, {block, block, padded});
  check_array(kOp, "units", units, inverse, kLong, {padded});
  check_array(kOp, "order", order, inverse, kLong, order.sizes());
  check_array(kOp, "damages", damages, inverse, kDouble, order.sizes());
  CHECK_VALUE(0 <= most && most <= order.numel() && set_of.has_value() == gone.has_value(), kOp,
              ": most: expected 0 to ", order.numel(), ", got ", most);
  std::int64_t* const numbers = units.mutable_data_ptr<std::int64_t>();
  std::vector<std::int64_t> unit(numbers, numbers + padded);
  cpu::GramRounds rounds;
  if (set_of) {
    check_array(kOp, "sets", *set_of, inverse, kLong, {set_of->numel()});
    check_array(kOp, "gone", *gone, inverse, kLong, {gone->numel()});
    const std::int64_t* const of = set_of->const_data_ptr<std::int64_t>();
    const std::int64_t* const of_set = gone->const_data_ptr<std::int64_t>();
    rounds.set_of.assign(of, of + set_of->numel());
    rounds.gone.assign(of_set, of_set + gone->numel());
    const auto within = [&](std::int64_t set) { return 0 <= set && set < gone->numel(); };
    const auto known = [&](std::int64_t u) { return u < set_of->numel(); };
    CHECK_VALUE(
        std::all_of(rounds.set_of.begin(), rounds.set_of.end(), within) && std::all_of(unit.begin(), unit.end(), known),
        kOp, ": sets: expected numbers in [0, ", gone->numel(), ") of all units");
  }
  std::vector<double> scores(static_cast<std::size_t>(padded));
  GramPanel panel{block,
                  padded,
                  width,
                  capacity,
                  0,
                  inverse.const_data_ptr<double>(),
                  by_weight ? nullptr : moment.const_data_ptr<double>(),
                  by_weight ? moment.const_data_ptr<double>() : nullptr,
                  outputs,
                  v.mutable_data_ptr<double>(),
                  a.mutable_data_ptr<double>(),
                  own_inverse.mutable_data_ptr<double>(),
                  own_moment.mutable_data_ptr<double>(),
                  scores.data()};
  const std::int64_t removed = cpu::gram_obs_panel(panel, unit, rounds, most, order.mutable_data_ptr<std::int64_t>(),
                                                   damages.mutable_data_ptr<double>());
  std::copy(unit.begin(), unit.end(), numbers);
  if (gone) std::copy(rounds.gone.begin(), rounds.gone.end(), gone->mutable_data_ptr<std::int64_t>());
  return removed;
}

}  // namespace sparse_accel
