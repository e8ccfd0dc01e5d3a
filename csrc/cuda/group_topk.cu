// Exact top-k by radix selection. Scores are read as unsigned integers whose order is that of the numbers;
// one pass per byte, the highest first, finds the k-th largest key and how many of its ties are in.
// Counts are integers, so atomics keep the result independent of the order of blocks. Which ties are in
// depends on their index alone: blocks own fixed stretches, and prefix counts number the ties. Scores whose keys fit
// into one block's shared memory take one launch, and are read once.
#include "group_topk.h"

#include "reduce.cuh"

namespace sparse_accel::cuda {
namespace {

constexpr int kDigits = 256;
constexpr std::int64_t kScoresPerBlock = 16 * kThreads;
static_assert(kThreads == kDigits, "a thread per digit");

template <class Bits>
struct Selection {
  Bits prefix;         // the digits found so far of the k-th largest key
  Bits found;          // which bits those are
  unsigned remaining;  // how many of the keys that begin with prefix are in
  unsigned histogram[kDigits];
};

template <class Bits>
struct TopkOptions {
  Selection<Bits>* selection;
  unsigned* ties;  // [blocks] of all segments
  int* has_nan;
  Bits infinity;  // the bits of +inf: larger magnitudes are NaN
  int shift;      // of the pass
  int total;      // in one launch: scores of all segments,
  unsigned k;     // and how many are in
};

template <class Bits>
struct TopkEntry {
  const Bits* scores;
  bool* mask;
  std::int64_t count;
  int first;  // place of the segment's first block in `ties`; in one launch, of its first score among all
};

template <class Bits>
constexpr Bits kSign = Bits(Bits(1) << (8 * sizeof(Bits) - 1));

// Unsigned order of keys = order of numbers; both zeros have one key.
template <class Bits>
__device__ __forceinline__ Bits key_of(Bits bits) {
  if (Bits(bits & ~kSign<Bits>) == 0) return kSign<Bits>;
  return bits & kSign<Bits> ? Bits(~bits) : Bits(bits | kSign<Bits>);
}

template <class Bits>
using TopkTable = Table<TopkEntry<Bits>, TopkOptions<Bits>>;

// What a block works on: scores [begin, end) of one entry.
template <class Bits>
struct Stretch {
  const TopkEntry<Bits>& entry;
  int tie;
  std::int64_t begin, end;

  __device__ explicit Stretch(const TopkTable<Bits>& table) : Stretch(table, find_entry(table)) {}

 private:
  __device__ Stretch(const TopkTable<Bits>& table, int i) : entry(table.entries[i]) {
    const int block = int(blockIdx.x) - table.first_block[i];
    tie = entry.first + block;
    begin = block * kScoresPerBlock;
    end = begin + kScoresPerBlock < entry.count ? begin + kScoresPerBlock : entry.count;
  }
};

// One block.
template <class Bits>
__global__ void __launch_bounds__(kThreads) topk_begin_kernel(Selection<Bits>* selection, unsigned k, int* has_nan) {
  selection->histogram[threadIdx.x] = 0;
  if (threadIdx.x != 0) return;
  selection->prefix = 0;
  selection->found = 0;
  selection->remaining = k;
  *has_nan = 0;
}

// Counts the next digit of the keys that begin with the prefix.
template <class Bits>
__global__ void __launch_bounds__(kThreads) topk_count_kernel(const __grid_constant__ TopkTable<Bits> table) {
  SHARED(unsigned, histogram, [kDigits]);
  const TopkOptions<Bits>& options = table.options;
  const Stretch<Bits> stretch(table);
  const Bits prefix = options.selection->prefix, found = options.selection->found;
  bool nan = false;
  histogram[threadIdx.x] = 0;
  __syncthreads();
  for (std::int64_t i = stretch.begin + threadIdx.x; i < stretch.end; i += kThreads) {
    const Bits bits = stretch.entry.scores[i];
    const Bits key = key_of(bits);
    nan |= Bits(bits & ~kSign<Bits>) > options.infinity;
    if (Bits(key & found) == prefix) atomicAdd(&histogram[unsigned(key >> options.shift) % kDigits], 1u);
  }
  __syncthreads();
  if (histogram[threadIdx.x] > 0) atomicAdd(&options.selection->histogram[threadIdx.x], histogram[threadIdx.x]);
  if (nan) atomicOr(options.has_nan, 1);
}

// Fixes the digit: the largest one whose keys and all larger ones are at least `remaining`. One block; thread
// i looks at digit 255 - i.
template <class Bits>
__global__ void __launch_bounds__(kThreads) topk_pick_kernel(Selection<Bits>* selection, int shift) {
  const unsigned digit = kDigits - 1 - threadIdx.x;
  const unsigned count = selection->histogram[digit];
  const unsigned remaining = selection->remaining;
  unsigned total;
  const unsigned larger = block_prefix(count, total);       // its barriers: everyone has read `remaining`
  if (larger < remaining && remaining <= larger + count) {  // on one thread
    selection->prefix |= Bits(Bits(digit) << shift);
    selection->found |= Bits(Bits(kDigits - 1) << shift);
    selection->remaining = remaining - larger;
  }
  selection->histogram[digit] = 0;
}

// How many keys of every block equal the k-th largest.
template <class Bits>
__global__ void __launch_bounds__(kThreads) topk_ties_kernel(const __grid_constant__ TopkTable<Bits> table) {
  const Stretch<Bits> stretch(table);
  const Bits threshold = table.options.selection->prefix;
  unsigned ties = 0;
  for (std::int64_t i = stretch.begin + threadIdx.x; i < stretch.end; i += kThreads) {
    ties += key_of(stretch.entry.scores[i]) == threshold;
  }
  ties = block_reduce(ties, Add());
  if (threadIdx.x == 0) table.options.ties[stretch.tie] = ties;
}

// Replaces counts by how many come before. One block.
template <class Number>
__global__ void __launch_bounds__(kThreads) topk_scan_kernel(Number* counts, int size) {
  Number before = 0;
  for (int begin = 0; begin < size; begin += kThreads) {
    const int i = begin + int(threadIdx.x);
    const Number count = i < size ? counts[i] : 0;
    Number total;
    const Number rank = block_prefix(count, total);
    if (i < size) counts[i] = before + rank;
    before += total;
  }
}

template <class Bits>
__global__ void __launch_bounds__(kThreads) topk_mask_kernel(const __grid_constant__ TopkTable<Bits> table) {
  const Stretch<Bits> stretch(table);
  const Bits threshold = table.options.selection->prefix;
  const unsigned remaining = table.options.selection->remaining;
  unsigned before = table.options.ties[stretch.tie];
  for (std::int64_t begin = stretch.begin; begin < stretch.end; begin += kThreads) {
    const std::int64_t i = begin + threadIdx.x;
    const Bits key = i < stretch.end ? key_of(stretch.entry.scores[i]) : Bits(0);
    const bool tie = i < stretch.end && key == threshold;
    unsigned total;
    const unsigned rank = block_prefix(unsigned(tie), total);
    if (i < stretch.end) stretch.entry.mask[i] = key > threshold || (tie && before + rank < remaining);
    before += total;
  }
}

// All of it, by one block. Shared memory has room for the keys of all scores.
template <class Bits>
__global__ void __launch_bounds__(kThreads) topk_small_kernel(const __grid_constant__ TopkTable<Bits> table) {
  DYNAMIC_SHARED(Bits, keys);
  SHARED(unsigned, histogram, [kDigits]);
  SHARED(Selection<Bits>, selection, [1]);
  bool nan = false;
  for (int e = 0; e < table.count; ++e) {
    const TopkEntry<Bits>& entry = table.entries[e];
#pragma unroll 4
    for (int i = threadIdx.x; i < int(entry.count); i += kThreads) {
      const Bits bits = entry.scores[i];
      keys[entry.first + i] = key_of(bits);
      nan |= Bits(bits & ~kSign<Bits>) > table.options.infinity;
    }
  }
  const float has_nan = block_reduce(nan ? 1.f : 0.f, Max());
  if (threadIdx.x == 0) *table.options.has_nan = has_nan != 0.f;
  Bits prefix = 0, found = 0;
  unsigned remaining = table.options.k;
  for (int shift = 8 * int(sizeof(Bits)) - 8; shift >= 0; shift -= 8) {
    histogram[threadIdx.x] = 0;
    __syncthreads();  // and the keys are there
    for (int i = threadIdx.x; i < table.options.total; i += kThreads) {
      if (Bits(keys[i] & found) == prefix) atomicAdd(&histogram[unsigned(keys[i] >> shift) % kDigits], 1u);
    }
    __syncthreads();
    const unsigned digit = kDigits - 1 - threadIdx.x, count = histogram[digit];
    unsigned all;
    const unsigned larger = block_prefix(count, all);
    if (larger < remaining && remaining <= larger + count) {  // on one thread
      selection[0].prefix = Bits(prefix | Bits(Bits(digit) << shift));
      selection[0].remaining = remaining - larger;
    }
    __syncthreads();
    prefix = selection[0].prefix;
    remaining = selection[0].remaining;
    found = Bits(found | Bits(Bits(kDigits - 1) << shift));
  }
  unsigned before = 0;
  for (int e = 0; e < table.count; ++e) {
    const TopkEntry<Bits>& entry = table.entries[e];
    for (int begin = 0; begin < int(entry.count); begin += kThreads) {
      const int i = begin + int(threadIdx.x);
      const Bits key = i < int(entry.count) ? keys[entry.first + i] : Bits(0);
      const bool tie = i < int(entry.count) && key == prefix;
      unsigned ties;
      const unsigned rank = block_prefix(unsigned(tie), ties);
      if (i < int(entry.count)) entry.mask[i] = key > prefix || (tie && before + rank < remaining);
      before += ties;
    }
  }
}

constexpr std::size_t kSmallBytes = 40 << 10;  // of keys; 48 KB of shared memory are there without asking

template <class Bits>
bool launch_small(const std::vector<TopkSegment>& segments, std::int64_t k, Bits infinity, int* has_nan,
                  cudaStream_t stream) {
  TopkTable<Bits> table{};
  table.options = {nullptr, nullptr, has_nan, infinity, 0, 0, unsigned(k)};
  std::size_t total = 0;
  for (const TopkSegment& segment : segments) {
    total += std::size_t(segment.count);
    if (table.count == table.kCapacity || total * sizeof(Bits) > kSmallBytes) return false;
    table.entries[table.count++] = {static_cast<const Bits*>(segment.scores), segment.mask, segment.count,
                                    int(total) - int(segment.count)};
  }
  table.options.total = int(total);
  launch_kernel(topk_small_kernel<Bits>, 1, kThreads, total * sizeof(Bits), stream, table);
  return true;
}

template <class Bits>
void launch(const std::vector<TopkSegment>& segments, std::int64_t k, Bits infinity, int* has_nan,
            const Allocate& allocate, cudaStream_t stream) {
  if (launch_small(segments, k, infinity, has_nan, stream)) return;
  std::vector<Work<TopkEntry<Bits>>> work;
  int blocks = 0;
  for (const TopkSegment& segment : segments) {
    const std::int64_t own = ceil_div(segment.count, kScoresPerBlock);
    work.push_back({{static_cast<const Bits*>(segment.scores), segment.mask, segment.count, blocks}, own});
    blocks += int(own);
  }
  auto* const selection = static_cast<Selection<Bits>*>(allocate(sizeof(Selection<Bits>)));
  auto* const ties = static_cast<unsigned*>(allocate(sizeof(unsigned) * std::size_t(blocks)));
  TopkOptions<Bits> options{selection, ties, has_nan, infinity, 0, 0, 0};

  launch_kernel(topk_begin_kernel<Bits>, 1, kThreads, 0, stream, selection, unsigned(k), has_nan);
  for (options.shift = 8 * int(sizeof(Bits)) - 8; options.shift >= 0; options.shift -= 8) {
    launch_tables(topk_count_kernel<Bits>, work, options, 0, stream);
    launch_kernel(topk_pick_kernel<Bits>, 1, kThreads, 0, stream, selection, options.shift);
  }
  launch_tables(topk_ties_kernel<Bits>, work, options, 0, stream);
  launch_kernel(topk_scan_kernel<unsigned>, 1, kThreads, 0, stream, ties, blocks);
  launch_tables(topk_mask_kernel<Bits>, work, options, 0, stream);
}

}  // namespace

cudaError_t group_topk(DType dtype, const std::vector<TopkSegment>& segments, std::int64_t k, int* has_nan,
                       const Allocate& allocate, cudaStream_t stream) {
  switch (dtype) {
    case DType::f32:
      launch<std::uint32_t>(segments, k, 0x7f800000u, has_nan, allocate, stream);
      break;
    case DType::f64:
      launch<std::uint64_t>(segments, k, 0x7ff0000000000000ull, has_nan, allocate, stream);
      break;
    case DType::bf16:
      launch<std::uint16_t>(segments, k, 0x7f80, has_nan, allocate, stream);
      break;
    case DType::f16:
      launch<std::uint16_t>(segments, k, 0x7c00, has_nan, allocate, stream);
      break;
  }
  return cudaGetLastError();
}

}  // namespace sparse_accel::cuda
