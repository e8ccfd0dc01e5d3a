#pragma once
// How the CPU backend shares work among threads.
//
// Segments are cut into strips of whole groups. A strip that is small, or whose groups are contiguous, is one piece of
// work. A large strided strip is worked on in parts, as its groups run through all of its rows: each part sums some
// rows, whoever ends last joins the sums, then each part applies the result. Everything is in one queue that threads
// take from in order, so that a thread that must wait for a join waits only for work that is being done.
// How work is cut does not depend on the number of threads, and sums are joined in order: nor do results.
#include <cstdint>
#include <functional>
#include <vector>

#include "../group_layout.h"
#include "kernels.h"

namespace sparse_accel::cpu {

struct Piece {
  int64_t tensor;   // index in the list
  int64_t element;  // of the strip's first element in the tensor's memory
  int64_t group;    // of the strip's first group in the tensor's score vector
  double size;      // elements of a whole group
  Strip strip;
};

// What an op does with a piece. Sums are in the compute type, of which `sum_size` is the size in bytes; `scratch` holds
// kScratch of them. A part is a piece with fewer rows, whose `element` points at its first row.
struct Work {
  int64_t sum_size;
  std::function<void(const Piece&, void* scratch)> whole;
  std::function<void(const Piece& part, void* sums)> sums;
  std::function<void(const Piece&, void* sums, int64_t parts)> join;
  std::function<void(const Piece& part, const void* joined)> apply;  // null: the op ends with the join
};

void run(const std::vector<Segment>& segments, const Work& work);

}  // namespace sparse_accel::cpu
