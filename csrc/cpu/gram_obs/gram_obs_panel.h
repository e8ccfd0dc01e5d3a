#pragma once
// Removals of one panel on the CPU: choosing units, threads.
#include <cstdint>
#include <vector>

#include "gram_obs_kernels.h"

namespace sparse_accel::cpu {

// Which units may still go: the set of each (empty: one set), and how many of each set are gone. Rounds: a set is not
// taken from again before all others were.
struct GramRounds {
  std::vector<int64_t> set_of;  // [units of the problem]
  std::vector<int64_t> gone;    // [sets]
};

// Removes up to `most` units until the panel is full, always the one of the least score, ties to the lowest. `units`:
// the problem's number of each unit of the panel, ascending, -1 for those that are gone or padding. Returns how many
// were removed; stops at a score that is not finite.
int64_t gram_obs_panel(GramPanel& panel, std::vector<int64_t>& units, GramRounds& rounds, int64_t most, int64_t* order,
                       double* damages);

}  // namespace sparse_accel::cpu
