#pragma once
// How the CPU backend shares work: segments are cut into strips of whole groups, and threads take strips from one
// queue, the largest first. A group lies in one strip and is summed in one order, so that results do not depend on
// the number of threads.
#include <cstdint>
#include <functional>
#include <vector>

#include "../ops/common.h"
#include "kernels.h"

namespace sparse_accel::cpu {

struct Piece {
  int64_t tensor;   // index in the list
  int64_t element;  // of the strip's first element in the tensor's memory
  int64_t group;    // of the strip's first group in the tensor's score vector
  double size;      // elements of a whole group
  Strip strip;
};

std::vector<Piece> cut(const std::vector<Segment>& segments);

// body(piece index, scratch) for every piece, on all threads. `elements` decides whether threads are worth it.
void run(const std::vector<Piece>& pieces, const std::function<void(int64_t, void*)>& body);

// The kernels for this machine (honours ATEN_CPU_CAPABILITY).
const Kernels& kernels();

// Index into a table of kernels.
int dtype_index(at::ScalarType dtype);

}  // namespace sparse_accel::cpu
