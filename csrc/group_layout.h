#pragma once
// The one view every kernel speaks: a dense block of memory read as [outer, groups, inner];
// group g owns x[:, g, :]. Plain data, shared by host and device.
#include <cstdint>

namespace sparse_accel {

struct GroupLayout {
  int64_t outer;
  int64_t groups;
  int64_t inner;
};

}  // namespace sparse_accel
