// Exact top-k of rows by radix selection. Scores are read as unsigned integers whose order is that of the numbers; a
// pass for every 11 bits, the highest first, finds the k-th largest key of each row and how many of its ties are in;
// one more pass writes mask and zeros. A row that one block can count is taken through all its passes by that block,
// out of shared memory where its keys fit: they are read once then. Its zeros come last, by the mask, once NaN is known
// of. Counts are integers, so atomics keep the result independent of the order of blocks; which ties are in depends on
// their index.
#include "topk_threshold.h"

#include "reduce.cuh"
#include "topk_source.cuh"

namespace sparse_accel::cuda {
namespace {

constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kDigitsPerThread = kDigits / kThreads;
constexpr std::int64_t kStretch = 64 * kThreads;  // elements of a row that a block works on
constexpr std::size_t kKeptBytes = 64 << 10;      // keys of a row in shared memory; sm_80 has twice that for a block

// What is known of the k-th largest key of a row.
template <class Key>
struct Selection {
  Key prefix;          // its digits so far
  unsigned remaining;  // how many of the keys that begin with prefix are in
  unsigned all;        // whether that is all of them
};

// The row and stretch of a block.
struct Stretch {
  std::int64_t row, begin, end;

  __device__ Stretch(std::int64_t n, int per_row) {
    row = blockIdx.x / per_row;
    begin = row * n + (blockIdx.x % per_row) * kStretch;
    end = (row + 1) * n < begin + kStretch ? (row + 1) * n : begin + kStretch;
  }
};

// The bits from `high` on.
template <class Key>
__device__ __forceinline__ Key bits_from(int high) {
  return high >= 8 * int(sizeof(Key)) ? Key(0) : Key(~std::uint64_t(0) << high);
}

// Counts the digit [low, high) of the keys that begin with the prefix into `histogram`, which is shared. Keeps the keys
// where there is room for them.
template <class Reader, class Key>
__device__ __forceinline__ bool count_digit(const Reader& reader, const Stretch& stretch, Key prefix, int low, int high,
                                            unsigned* histogram, Key* keys = nullptr) {
  const Key found = bits_from<Key>(high);
  bool nan = false;
#pragma unroll 4
  for (std::int64_t i = stretch.begin + threadIdx.x; i < stretch.end; i += kThreads) {
    const Keyed<Key> score = reader(i);
    nan |= score.nan;
    if (keys) keys[i - stretch.begin] = score.key;
    if (Key(score.key & found) == prefix) atomicAdd(&histogram[unsigned(score.key >> low) % kDigits], 1u);
  }
  return nan;
}

// The largest digit whose keys, with all of larger digits, are at least `remaining`; on one thread, which calls
// chosen(digit, keys of larger digits, keys of this one). A thread looks at neighbouring digits, the highest first.
template <class Chosen>
__device__ __forceinline__ void pick_digit(const unsigned* histogram, unsigned remaining, Chosen chosen) {
  const int top = kDigits - 1 - int(threadIdx.x) * kDigitsPerThread;
  unsigned own = 0, total;
  for (int d = 0; d < kDigitsPerThread; ++d) own += histogram[top - d];
  unsigned larger = block_prefix(own, total);
  if (larger >= remaining || larger + own < remaining) return;
  int digit = top;
  while (larger + histogram[digit] < remaining) larger += histogram[digit--];
  chosen(unsigned(digit), larger, histogram[digit]);
}

// The keys of a row that are in shared memory, by the place in the row's memory that they have come from.
template <class Key_>
struct KeptKeys {
  using Key = Key_;
  const Key* keys;  // of stretch.begin
  std::int64_t begin;
  __device__ __forceinline__ Keyed<Key> operator()(std::int64_t i) const { return {keys[i - begin], false}; }
};

// The mask of a stretch whose row's selection is known; before: how many ties there are in earlier stretches.
template <class Source, class Key, class Write>
__device__ __forceinline__ void choose(const Source& source, const Stretch& stretch, const Selection<Key>& selection,
                                       unsigned before, Write write) {
  if (selection.all) {  // the whole block
#pragma unroll 4
    for (std::int64_t i = stretch.begin + threadIdx.x; i < stretch.end; i += kThreads) {
      write(i, source(i).key >= selection.prefix);
    }
    return;
  }
  for (std::int64_t begin = stretch.begin; begin < stretch.end; begin += kThreads) {
    const std::int64_t i = begin + threadIdx.x;
    const Key key = i < stretch.end ? source(i).key : Key(0);
    const bool tie = i < stretch.end && key == selection.prefix;
    unsigned total;
    const unsigned rank = block_prefix(unsigned(tie), total);
    if (i < stretch.end) write(i, key > selection.prefix || (tie && before + rank < selection.remaining));
    before += total;
  }
}

// A block per row, all digits, and the mask. With kKeep shared memory has room for the row's keys.
template <bool kKeep, class Reader>
__global__ void __launch_bounds__(kThreads)
    topk_row_kernel(Reader reader, bool* mask, std::int64_t n, unsigned k, int* has_nan) {
  using Key = typename Reader::Key;
  DYNAMIC_SHARED(Key, keys);
  SHARED(unsigned, histogram, [kDigits]);
  SHARED(unsigned, found, [3]);  // digit, remaining, all
  const Stretch stretch(n, 1);
  const KeptKeys<Key> kept{keys, stretch.begin};
  int prefix_bits = 0;
  Key prefix = 0;
  unsigned remaining = k;
  bool nan = false;
  for (int high = 8 * int(sizeof(Key)), low; high > 0; high = low) {
    low = high > kDigitBits ? high - kDigitBits : 0;
    for (int d = threadIdx.x; d < kDigits; d += kThreads) histogram[d] = 0;
    __syncthreads();
    // the lowest digit may have fewer bits: what is above them is found already
    if (kKeep && prefix_bits > 0) {
      count_digit(kept, stretch, prefix, low, high, histogram);
    } else {
      nan |= count_digit(reader, stretch, prefix, low, high, histogram, kKeep ? keys : nullptr);
    }
    __syncthreads();
    pick_digit(histogram, remaining, [&](unsigned digit, unsigned larger, unsigned count) {
      found[0] = digit;
      found[1] = remaining - larger;
      found[2] = count == remaining - larger;
    });
    __syncthreads();
    prefix = Key(prefix | Key(Key(found[0]) << low));
    remaining = found[1];
    prefix_bits = 8 * int(sizeof(Key)) - low;
  }
  if (nan) atomicOr(has_nan, 1);
  const Selection<Key> selection{prefix, remaining, found[2]};
  const auto write = [mask](std::int64_t i, bool keep) { mask[i] = keep; };
  if (kKeep) {
    choose(kept, stretch, selection, 0, write);
  } else {
    choose(reader, stretch, selection, 0, write);
  }
}

template <class Key>
__global__ void __launch_bounds__(kThreads)
    topk_begin_kernel(Selection<Key>* selections, unsigned* histograms, std::int64_t rows, unsigned k) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < rows) selections[i] = {0, k, 0};
  if (i < rows * kDigits) histograms[i] = 0;
}

// Many blocks per row, one digit.
template <class Reader>
__global__ void __launch_bounds__(kThreads)
    topk_count_kernel(Reader reader, std::int64_t n, int per_row, int low, int high,
                      const Selection<typename Reader::Key>* selections, unsigned* histograms, int* has_nan) {
  SHARED(unsigned, histogram, [kDigits]);
  const Stretch stretch(n, per_row);
  for (int d = threadIdx.x; d < kDigits; d += kThreads) histogram[d] = 0;
  __syncthreads();
  if (count_digit(reader, stretch, selections[stretch.row].prefix, low, high, histogram)) atomicOr(has_nan, 1);
  __syncthreads();
  for (int d = threadIdx.x; d < kDigits; d += kThreads) {
    if (histogram[d] > 0) atomicAdd(&histograms[stretch.row * kDigits + d], histogram[d]);
  }
}

// A block per row fixes the digit.
template <class Key>
__global__ void __launch_bounds__(kThreads)
    topk_pick_kernel(Selection<Key>* selections, unsigned* histograms, int low) {
  Selection<Key>& selection = selections[blockIdx.x];
  unsigned* const histogram = histograms + std::int64_t(blockIdx.x) * kDigits;
  const unsigned remaining = selection.remaining;
  pick_digit(histogram, remaining,
             [&](unsigned digit, unsigned larger, unsigned count) {  // its barriers: all have read
               selection.prefix = Key(selection.prefix | Key(Key(digit) << low));
               selection.remaining = remaining - larger;
               selection.all = count == remaining - larger;
             });
  __syncthreads();  // the counts have been read
  for (int d = threadIdx.x; d < kDigits; d += kThreads) histogram[d] = 0;
}

// How many keys of every stretch equal the k-th largest; where all are in nobody asks.
template <class Reader>
__global__ void __launch_bounds__(kThreads)
    topk_ties_kernel(Reader reader, std::int64_t n, int per_row, const Selection<typename Reader::Key>* selections,
                     unsigned* ties) {
  const Stretch stretch(n, per_row);
  if (selections[stretch.row].all) return;  // the whole block
  const auto threshold = selections[stretch.row].prefix;
  unsigned own = 0;
  for (std::int64_t i = stretch.begin + threadIdx.x; i < stretch.end; i += kThreads) own += reader(i).key == threshold;
  own = block_reduce(own, Add());
  if (threadIdx.x == 0) ties[blockIdx.x] = own;
}

// Replaces a row's counts by how many come before. A block per row.
template <class Key>
__global__ void __launch_bounds__(kThreads)
    topk_scan_kernel(const Selection<Key>* selections, unsigned* ties, int per_row) {
  if (selections[blockIdx.x].all) return;  // the whole block
  unsigned* const own = ties + std::int64_t(blockIdx.x) * per_row;
  unsigned before = 0;
  for (int begin = 0; begin < per_row; begin += kThreads) {
    const int i = begin + int(threadIdx.x);
    const unsigned count = i < per_row ? own[i] : 0;
    unsigned total;
    const unsigned rank = block_prefix(count, total);
    if (i < per_row) own[i] = before + rank;
    before += total;
  }
}

template <class Reader>
__global__ void __launch_bounds__(kThreads)
    topk_write_kernel(Reader reader, Kept target, std::int64_t n, int per_row,
                      const Selection<typename Reader::Key>* selections, const unsigned* ties, const int* has_nan) {
  if (*has_nan) return;  // all blocks
  const Stretch stretch(n, per_row);
  const auto selection = selections[stretch.row];
  choose(reader, stretch, selection, selection.all ? 0 : ties[blockIdx.x],
         [&](std::int64_t i, bool keep) { target.write(i, keep); });
}

template <class Reader>
__global__ void __launch_bounds__(kThreads) topk_look_kernel(Reader reader, std::int64_t count, int* has_nan) {
  const Stretch stretch(count, int(ceil_div(count, kStretch)));
  bool nan = false;
#pragma unroll 4
  for (std::int64_t i = stretch.begin + threadIdx.x; i < stretch.end; i += kThreads) nan |= reader(i).nan;
  if (nan) atomicOr(has_nan, 1);
}

template <class Reader>
void launch(const Reader& reader, const TopkTask& task, std::int64_t rows, std::int64_t k, int* has_nan,
            const Allocate& allocate, cudaStream_t stream) {
  using Key = typename Reader::Key;
  const std::int64_t n = task.count / rows;
  const int per_row = int(ceil_div(n, kStretch));
  const unsigned blocks = unsigned(rows * per_row);
  topk_clear(has_nan, stream);
  if (per_row == 1) {
    const std::size_t keys = sizeof(Key) * std::size_t(n);
    if (keys <= kKeptBytes && allow_shared(topk_row_kernel<true, Reader>, kKeptBytes)) {
      launch_kernel(topk_row_kernel<true, Reader>, blocks, kThreads, keys, stream, reader, task.mask, n, unsigned(k),
                    has_nan);
    } else {
      launch_kernel(topk_row_kernel<false, Reader>, blocks, kThreads, 0, stream, reader, task.mask, n, unsigned(k),
                    has_nan);
    }
    topk_zero(task, has_nan, stream);
    return;
  }
  auto* const selections = static_cast<Selection<Key>*>(allocate(sizeof(Selection<Key>) * std::size_t(rows)));
  auto* const ties = static_cast<unsigned*>(allocate(sizeof(unsigned) * blocks));
  auto* const histograms = static_cast<unsigned*>(allocate(sizeof(unsigned) * std::size_t(rows) * kDigits));
  launch_kernel(topk_begin_kernel<Key>, unsigned(ceil_div(rows * kDigits, kThreads)), kThreads, 0, stream, selections,
                histograms, rows, unsigned(k));
  for (int high = 8 * int(sizeof(Key)), low; high > 0; high = low) {
    low = high > kDigitBits ? high - kDigitBits : 0;
    launch_kernel(topk_count_kernel<Reader>, blocks, kThreads, 0, stream, reader, n, per_row, low, high, selections,
                  histograms, has_nan);
    launch_kernel(topk_pick_kernel<Key>, unsigned(rows), kThreads, 0, stream, selections, histograms, low);
  }
  launch_kernel(topk_ties_kernel<Reader>, blocks, kThreads, 0, stream, reader, n, per_row, selections, ties);
  launch_kernel(topk_scan_kernel<Key>, unsigned(rows), kThreads, 0, stream, selections, ties, per_row);
  launch_kernel(topk_write_kernel<Reader>, blocks, kThreads, 0, stream, reader, Kept(task), n, per_row, selections,
                ties, has_nan);
}

}  // namespace

cudaError_t topk_rows(const TopkTask& task, std::int64_t rows, std::int64_t k, int* has_nan, const Allocate& allocate,
                      cudaStream_t stream) {
  with_reader(task, [&](auto reader) { launch(reader, task, rows, k, has_nan, allocate, stream); });
  return cudaGetLastError();
}

cudaError_t topk_look(const TopkTask& task, int* has_nan, cudaStream_t stream) {
  topk_clear(has_nan, stream);
  with_reader(task, [&](auto reader) {
    using Reader = decltype(reader);
    launch_kernel(topk_look_kernel<Reader>, unsigned(ceil_div(task.count, kStretch)), kThreads, 0, stream, reader,
                  task.count, has_nan);
  });
  return cudaGetLastError();
}

}  // namespace sparse_accel::cuda
