#pragma once

#include "common.h"

namespace sparse_accel {

// The k largest scores over all vectors together, as boolean masks of the same shapes.
// Exactly k are true; ties go to the lowest index, vectors in the order given.
//   scores    N contiguous tensors, one dtype and device; NaN is refused
//   masks     bool, as scores; written
void group_topk(const Tensors& scores, const Tensors& masks, std::int64_t k);

}  // namespace sparse_accel
