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

// One [outer, groups, inner] piece of one tensor. A layout with several blocks (grouped
// convolutions by input channel, channels_last 2-D kernels) is that many segments.
struct Segment {
  int64_t tensor;   // index in the list
  int64_t element;  // first element of the segment in the tensor's memory
  int64_t group;    // first group of the segment in the tensor's score vector
  GroupLayout layout;
};

}  // namespace sparse_accel
