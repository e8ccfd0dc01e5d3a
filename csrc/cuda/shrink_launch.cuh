#pragma once
// Host side of shrink.cuh: sorts segments by how they are covered and launches the kernels.
#include <vector>

#include "cluster.cuh"
#include "runtime.h"
#include "shrink.cuh"

namespace sparse_accel::cuda {

// One segment: an entry whose target is still empty, and what decides about its cover.
template <class Body>
struct ShrinkItem {
  typename Body::Entry entry;
  GroupLayout layout;
  bool aligned;  // all of the entry's arrays
  int tensor;
  std::int64_t copies;  // of the segment, one after another
};

struct SumOptions {};
template <class Number>
struct SumEntry {
  const Number* numbers;
  std::int64_t count;
  Number* sum;
};

// One block adds one tensor's numbers.
template <class Number>
__global__ void __launch_bounds__(kThreads)
    sum_values_kernel(const __grid_constant__ Table<SumEntry<Number>, SumOptions> table) {
  const SumEntry<Number>& entry = table.entries[find_entry(table)];
  Number sum = 0;
  for (std::int64_t i = threadIdx.x; i < entry.count; i += kThreads) sum += entry.numbers[i];
  sum = block_reduce(sum, Add());
  if (threadIdx.x == 0) *entry.sum = sum;
}

template <class Body>
class Shrink {
 public:
  using T = typename Body::Element;
  using A = Compute<T>;
  using Entry = typename Body::Entry;
  using Options = typename Body::Options;

  Shrink(const Options& options, const Allocate& allocate, cudaStream_t stream)
      : options_(options), allocate_(allocate), stream_(stream) {}

  // Items of one tensor follow each other. values: [tensors] on the device, zeroed; null if not wanted.
  void run(const std::vector<ShrinkItem<Body>>& items, double* values) {
    for (const ShrinkItem<Body>& item : items) {
      if (item.copies * item.layout.outer * item.layout.groups * item.layout.inner > 0) add(item);
    }
    if (values) place_values(values);
    for (const Planned& planned : planned_) {
      const Work<Entry> work{planned.entry, planned.blocks};
      (planned.kind == Kind::elements ? elements_
       : planned.kind == Kind::fused  ? fused_[planned.long_rows].work
       : planned.kind == Kind::strips ? strips_[strips_of(planned.strips)].work
                                      : split_)
          .push_back(work);
    }
    Overlapping step;  // short blocks last, which fill what others leave
    for (const Shared& strips : strips_) {
      launch_tables(shrink_strips_kernel<Body>, strips.work, options_, strips.shared, stream_, strips.blocks, &step);
    }
    for (const Shared& fused : fused_) {
      launch_tables(shrink_fused_kernel<Body>, fused.work, options_, fused.shared, stream_, 0, &step);
    }
    launch_tables(shrink_elements_kernel<Body>, elements_, options_, 0, stream_, 0, &step);
    launch_split();
    launch_tables(sum_values_kernel<double>, sums_, SumOptions{}, 0, stream_);
  }

 private:
  enum class Kind { elements, fused, strips, split };
  struct Planned {
    Entry entry;
    Kind kind;
    int tensor;
    std::int64_t blocks, value_blocks;
    StripPlan strips{};
    bool long_rows = false;
  };
  // What goes into one launch.
  struct Shared {
    std::vector<Work<Entry>> work;
    std::size_t shared = 0;
    unsigned blocks = 1;  // of a cluster
  };

  // By the size of clusters, the largest first, and those before that need more shared memory than the others: each in
  // a launch of its own, so that none holds the others up.
  std::size_t strips_of(const StripPlan& plan) {
    std::size_t kind = 1;
    for (unsigned blocks = 8; blocks > plan.blocks; blocks /= 2) ++kind;
    Shared& strips = strips_[plan.shared > kStripStaging ? 0 : kind];
    strips.blocks = plan.blocks;
    if (strips.shared < plan.shared) strips.shared = plan.shared;
    return std::size_t(&strips - strips_);
  }

  void add(ShrinkItem<Body> item) {
    Planned planned{item.entry, Kind::split, item.tensor, 0, 0};
    Target<A>& target = planned.entry.target;
    const std::int64_t each = item.layout.outer * item.layout.groups * item.layout.inner;
    item.aligned = item.aligned && (item.copies == 1 || each % kWidth<T> == 0);
    target.copies = int(item.copies);
    const std::int64_t size = item.layout.outer * item.layout.inner;
    if (size == 1) {
      planned.kind = Kind::elements;
      target.cover = cover_elements(item.layout, item.aligned);
      planned.blocks = planned.value_blocks = blocks_of(target.cover, kWidth<T>);
    } else {
      target.cover = cover_groups(item.layout, kWidth<T>, item.aligned);
      const std::size_t staging = std::size_t(target.cover.teams()) * sizeof(A) * std::size_t(size);
      planned.strips = plan_strips(target.cover, kWidth<T>, sizeof(A), cluster_limits<shrink_strips_kernel<Body>>());
      if (target.cover.kind == CoverKind::runs && fits(staging)) {
        planned.kind = Kind::fused;
        planned.long_rows = staging > kStagingBytes;
        planned.blocks = planned.value_blocks = ceil_div(target.cover.layout.groups, target.cover.teams());
        Shared& fused = fused_[planned.long_rows];
        if (fused.shared < staging) fused.shared = staging;
      } else if (planned.strips.blocks) {
        planned.kind = Kind::strips;
        planned.blocks = planned.value_blocks = planned.strips.strips * planned.strips.blocks;
      } else {
        const GroupLayout partials = target.cover.partials();
        target.partials = allocate<A>(item.copies * partials.outer * partials.groups * partials.inner);
        target.factors = allocate<A>(item.copies * partials.groups);
        planned.blocks = blocks_of(target.cover, kWidth<T>);
        planned.value_blocks = blocks_of(cover_runs(partials, 1, false), 1);
      }
    }
    planned.blocks *= item.copies;
    planned.value_blocks *= item.copies;
    planned_.push_back(planned);
  }

  // Whether blocks may have so much shared memory: what there is without asking, or what two of them on a
  // multiprocessor have. Always asked for in whole: other threads may be about to launch.
  static bool fits(std::size_t staging) {
    constexpr std::size_t kLongStaging = 108 << 10;
    return staging <= kStagingBytes ||
           (staging <= kLongStaging && allow_shared(shrink_fused_kernel<Body>, kLongStaging));
  }

  // Gives every segment room for its blocks' numbers, a tensor's side by side.
  void place_values(double* values) {
    std::int64_t total = 0;
    for (const Planned& planned : planned_) total += planned.value_blocks;
    double* next = allocate<double>(total);
    for (Planned& planned : planned_) {
      planned.entry.target.values = next;
      if (sums_.empty() || sums_.back().entry.sum != values + planned.tensor) {
        sums_.push_back({{next, 0, values + planned.tensor}, 1});
      }
      sums_.back().entry.count += planned.value_blocks;
      next += planned.value_blocks;
    }
  }

  // In batches small enough for the third launch to find in the L2 cache what the first has touched.
  void launch_split() {
    constexpr std::int64_t kBatchElements = 4 << 20;
    for (std::size_t begin = 0, end; begin < split_.size(); begin = end) {
      std::int64_t elements = 0;
      std::vector<Work<Entry>> batch, factors;
      for (end = begin; end < split_.size(); ++end) {
        const Target<A>& target = split_[end].entry.target;
        elements += target.copies * target.cover.size();
        if (end > begin && elements > kBatchElements) break;
        batch.push_back(split_[end]);
        factors.push_back(
            {split_[end].entry, target.copies * blocks_of(cover_runs(target.cover.partials(), 1, false), 1)});
      }
      launch_tables(shrink_squares_kernel<Body>, batch, options_, 0, stream_);
      launch_tables(shrink_factors_kernel<Body>, factors, options_, 0, stream_);
      launch_tables(shrink_finish_kernel<Body>, batch, options_, 0, stream_);
    }
  }

  template <class N>
  N* allocate(std::int64_t count) {
    return static_cast<N*>(allocate_(sizeof(N) * std::size_t(count)));
  }

  const Options options_;
  const Allocate& allocate_;
  const cudaStream_t stream_;
  std::vector<Planned> planned_;
  std::vector<Work<Entry>> elements_, split_;
  Shared fused_[2], strips_[5];
  std::vector<Work<SumEntry<double>>> sums_;
};

}  // namespace sparse_accel::cuda
