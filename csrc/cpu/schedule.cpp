#include "schedule.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>

#ifndef _OPENMP
#error "build with -fopenmp: without it at::parallel_for silently runs serially"
#endif

namespace sparse_accel::cpu {
namespace {

constexpr int64_t kSerial = 16384;  // elements in all below which threads cost more than they give
constexpr int64_t kPiece = 65536;   // elements of a piece of contiguous groups, and of the smallest part
constexpr int64_t kSplit = 131072;  // elements from which a strided strip is worked on in parts
constexpr int64_t kParts = 16;      // at most: each has a copy of the sums

// A strip in parts: sums [parts, width] and how many parts have yet to be summed.
struct Split {
  Piece piece;
  int64_t parts;
  int64_t rows;  // of each part but the last
  std::unique_ptr<char[]> sums;
  std::atomic<int64_t> missing;
  std::atomic<bool> joined;
};

struct Item {
  enum Kind { kWhole, kSums, kApply } kind;
  int64_t index;  // of the piece or of the split
  int64_t part;
};

struct Queue {
  std::vector<Piece> pieces;
  std::vector<std::unique_ptr<Split>> splits;
  std::vector<Item> items;
  int64_t elements = 0;
};

int64_t strip_groups(const GroupLayout& layout) {
  const int64_t row = layout.outer == 1 ? kPiece : kMaxRow;
  return std::max<int64_t>(1, row / std::max<int64_t>(1, layout.inner));
}

int64_t elements_of(const Strip& strip) { return strip.rows * strip.groups * strip.inner; }

std::unique_ptr<Split> split(const Piece& piece, int64_t sum_size) {
  auto out = std::make_unique<Split>();
  const int64_t row = piece.strip.groups * piece.strip.inner;
  const int64_t rows = std::max((kPiece + row - 1) / row, (piece.strip.rows + kParts - 1) / kParts);
  out->piece = piece;
  out->rows = rows;
  out->parts = (piece.strip.rows + rows - 1) / rows;
  out->sums.reset(new char[out->parts * sums_width(piece.strip) * sum_size]);
  out->missing = out->parts;
  out->joined = false;
  return out;
}

Queue fill(const std::vector<Segment>& segments, const Work& work) {
  Queue queue;
  for (const Segment& s : segments) {
    const auto [outer, groups, inner] = s.layout;
    const int64_t step = strip_groups(s.layout);
    for (int64_t g = 0; g < groups; g += step) {
      const Piece piece{s.tensor, s.element + g * inner, s.group + g, static_cast<double>(outer * inner),
                        Strip{outer, groups * inner, std::min(step, groups - g), inner}};
      queue.elements += elements_of(piece.strip);
      if (outer > 1 && elements_of(piece.strip) >= kSplit) {
        queue.splits.push_back(split(piece, work.sum_size));
      } else {
        queue.pieces.push_back(piece);
      }
    }
  }
  // Splits first: the small pieces at the end keep all threads busy to the last.
  for (size_t i = 0; i < queue.splits.size(); ++i) {
    const int64_t index = static_cast<int64_t>(i), parts = queue.splits[i]->parts;
    for (int64_t p = 0; p < parts; ++p) queue.items.push_back({Item::kSums, index, p});
    if (!work.apply) continue;
    for (int64_t p = parts - 1; p >= 0; --p) queue.items.push_back({Item::kApply, index, p});  // the last is in cache
  }
  for (size_t i = 0; i < queue.pieces.size(); ++i) {
    queue.items.push_back({Item::kWhole, static_cast<int64_t>(i), 0});
  }
  return queue;
}

Piece part_of(const Split& split, int64_t part) {
  Piece out = split.piece;
  const int64_t first = part * split.rows;
  out.element += first * out.strip.row_stride;
  out.strip.rows = std::min(split.rows, split.piece.strip.rows - first);
  return out;
}

void wait_for(const std::atomic<bool>& flag) {
  for (int spins = 0; !flag.load(std::memory_order_acquire); ++spins) {
    if (spins > 1000) std::this_thread::yield();
  }
}

void process(const Item& item, Queue& queue, const Work& work, void* scratch) {
  if (item.kind == Item::kWhole) return work.whole(queue.pieces[item.index], scratch);
  Split& split = *queue.splits[item.index];
  char* sums = split.sums.get();
  if (item.kind == Item::kApply) {
    wait_for(split.joined);
    return work.apply(part_of(split, item.part), sums);
  }
  work.sums(part_of(split, item.part), sums + item.part * sums_width(split.piece.strip) * work.sum_size);
  if (split.missing.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    work.join(split.piece, sums, split.parts);
    split.joined.store(true, std::memory_order_release);
  }
}

}  // namespace

void run(const std::vector<Segment>& segments, const Work& work) {
  Queue queue = fill(segments, work);
  std::atomic<size_t> next{0};
  const auto take = [&](int64_t, int64_t) {
    alignas(64) double scratch[kScratch];  // as many of either compute type
    for (size_t i = next++; i < queue.items.size(); i = next++) process(queue.items[i], queue, work, scratch);
  };
  const int64_t threads = queue.elements < kSerial ? 1 : at::get_num_threads();
  if (threads == 1) {
    take(0, 1);
  } else {
    at::parallel_for(0, threads, 1, take);
  }
}

}  // namespace sparse_accel::cpu
