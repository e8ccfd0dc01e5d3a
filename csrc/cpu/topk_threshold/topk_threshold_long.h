#pragma once
// A row that does not fit into the cache: a sample brackets the threshold, one pass over memory finds it.
#include <vector>

#include "topk_threshold_task.h"

namespace sparse_accel::cpu {

class LongRow {
 public:
  LongRow(const TopkTask& task, int64_t n);

  // Finds what the k largest are; 1 <= k < n. Raises ValueError on NaN.
  void find(int64_t k);
  // Keeps them.
  void write() const;

 private:
  // What the pass over a chunk found, and where the numbers in the bracket lie.
  struct Chunk {
    TopkCounts counts;
    int64_t inside;  // their place in `inside_`
    int64_t ties;    // that are in
  };

  TopkBracket bracket(int64_t k) const;
  TopkCounts classify(const TopkBracket& bracket);
  void find_rank(int64_t k);
  void share_ties();
  int64_t count(int64_t chunk) const;

  const Run run_;
  int64_t n_;
  std::vector<Chunk> chunks_;
  Bits bits_, bits_inside_;
  Buffer inside_;
  bool all_equal_ = false;  // the numbers inside, of which there is no copy then
  TopkRank rank_{};
};

}  // namespace sparse_accel::cpu
