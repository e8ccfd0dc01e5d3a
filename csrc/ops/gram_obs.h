#pragma once

#include <optional>

#include "common.h"

namespace sparse_accel {

// Removals of one panel of block backward elimination, on the CPU: until the panel is full, always the unit of the
// least score. See GramPanel for the matrices' order of columns, chunks of `width` units, and what they hold.
//   inverse, moment            [block, padded, block, padded] float64: Q and N as they were before this panel
//   v, a                       [block * padded / width, capacity, width] float64; the first rows are written
//   own_inverse, own_moment    [block, block, padded] float64: their diagonal blocks; brought up to date
//   units                      [padded] int64: the number of each unit, ascending, -1 for what is gone or padding
//   set_of, gone               [units] and [sets] int64 or neither: the set of each unit, how many of each are gone
//   order, damages             int64, float64, at least `most`: the units in order of removal, the cost of each
// Returns how many were removed, each of which wrote `block` rows of v and a; fewer where a score was not finite.
std::int64_t gram_obs_panel(const Tensor& inverse, const Tensor& moment, const Tensor& v, const Tensor& a,
                            const Tensor& own_inverse, const Tensor& own_moment, const Tensor& units,
                            const std::optional<Tensor>& set_of, const std::optional<Tensor>& gone, std::int64_t most,
                            const Tensor& order, const Tensor& damages);

// The width of a chunk, and the number of units with padding, for so many units.
std::pair<std::int64_t, std::int64_t> gram_obs_order(std::int64_t units);

}  // namespace sparse_accel
