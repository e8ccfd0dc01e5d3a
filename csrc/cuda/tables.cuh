#pragma once
// Many tensors in one launch: their pointers and sizes travel as a table in the kernel's parameters.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "launch.cuh"

namespace sparse_accel::cuda {

constexpr int kThreads = 256;  // of every block of every kernel here
constexpr int kBlocks = 4;     // on a multiprocessor: up to 64 registers, where the compiler would rather spill some
constexpr std::size_t kStagingBytes = 40 << 10;  // 48 KB of shared memory are there without asking

// Entry i owns the blocks [first_block[i], first_block[i + 1]). Kernel parameters end at 4 KB.
template <class Entry, class Options>
struct Table {
  static constexpr int kCapacity = int((4096 - 32 - sizeof(Options)) / (sizeof(Entry) + sizeof(int)));
  Options options;
  int count;
  int first_block[kCapacity + 1];
  Entry entries[kCapacity];
};

// The entry that a block works for, by default the calling one. Every thread of the block finds the same.
template <class Entry, class Options>
__device__ __forceinline__ int find_entry(const Table<Entry, Options>& table, int block = int(blockIdx.x)) {
  int low = 0;
  for (int high = table.count; high - low > 1;) {
    const int middle = (low + high) / 2;
    if (block < table.first_block[middle]) {
      high = middle;
    } else {
      low = middle;
    }
  }
  return low;
}

// What the calling block works on: an entry, one of its copies (segments of the same layout that follow each other in
// memory, and share an entry), and which of the copy's blocks it is.
struct Spot {
  int entry, copy, block;
};

// copies(entry): how many the entry has, its blocks shared evenly.
template <class Entry, class Options, class Copies>
__device__ __forceinline__ Spot find_spot(const Table<Entry, Options>& table, const Copies& copies,
                                          int index = int(blockIdx.x)) {
  const int entry = find_entry(table, index), first = table.first_block[entry], block = index - first;
  const int count = copies(table.entries[entry]);
  if (count == 1) return Spot{entry, 0, block};
  const int each = (table.first_block[entry + 1] - first) / count, copy = block / each;
  return Spot{entry, copy, block - copy * each};
}

// One entry and the number of blocks it wants.
template <class Entry>
struct Work {
  Entry entry;
  std::int64_t blocks;
};

// Launches of an op that may overlap, of kernels that have an Overlap: the first waits for all that came before the op.
struct Overlapping {
  bool begun = false;
};

// Launches the kernel over all work, as many tables as it takes. cluster: how many blocks make one (every work's blocks
// are a multiple); 0: an ordinary launch. overlapping: the launches that these may overlap; null: they wait for all.
template <class Entry, class Options>
void launch_tables(void (*kernel)(Table<Entry, Options>), const std::vector<Work<Entry>>& work, const Options& options,
                   std::size_t shared, cudaStream_t stream, unsigned cluster = 0, Overlapping* overlapping = nullptr) {
  constexpr std::int64_t kMaxBlocks = 0x7fffffff;
  static_assert(sizeof(Table<Entry, Options>) <= 4096, "kernel parameters end at 4 KB");
  Table<Entry, Options> table{};
  table.options = options;
  const auto flush = [&] {
    const auto blocks = unsigned(table.first_block[table.count]);
    const bool overlap = overlapping && overlapping->begun;
    if (!table.count) return;
    if (cluster || overlap) {
      launch_cluster(kernel, blocks, kThreads, cluster, shared, stream, overlap, table);
    } else {
      launch_kernel(kernel, blocks, kThreads, shared, stream, table);
    }
    if (overlapping) overlapping->begun = true;
    table.count = 0;
  };
  for (const Work<Entry>& item : work) {
    if (item.blocks == 0) continue;
    if (table.count == table.kCapacity || table.first_block[table.count] + item.blocks > kMaxBlocks) flush();
    table.entries[table.count] = item.entry;
    table.first_block[table.count + 1] = table.first_block[table.count] + int(item.blocks);
    ++table.count;
  }
  flush();
}

}  // namespace sparse_accel::cuda
