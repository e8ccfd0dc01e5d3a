#include "schedule.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <thread>

#include "../torch_runtime.h"

namespace sparse_accel::cpu {
namespace {

constexpr int64_t kSerial = 16384;   // elements in all below which threads cost more than they give
constexpr int64_t kPiece = 65536;    // elements of a piece of contiguous groups, and of the smallest part
constexpr int64_t kSplit = 131072;   // elements from which a strided strip is worked on in parts
constexpr int64_t kShortRow = 1024;  // of a long group, below which it is left whole
constexpr int64_t kParts = 16;       // at most: each has a copy of the sums
constexpr int64_t kPartRows = 128;  // of a part that is read once: joining the sums costs as much as reading a few rows

// A strip in parts: sums [parts, sums_stride] and how many parts have yet to be summed.
struct Split {
  Piece piece;
  int64_t parts;
  int64_t rows;  // of each part but the last
  std::unique_ptr<char, decltype(&std::free)> sums{nullptr, &std::free};
  std::atomic<int64_t> missing;
  std::atomic<bool> joined;
  std::vector<int64_t> summed_by;  // the thread of each part
  std::vector<std::atomic<bool>> sums_taken, apply_taken;
};

// A turn to sum a part, or to apply the result to one: whichever suits the thread that takes the turn.
struct Turn {
  Split* split;
  bool apply;
};

struct Queue {
  std::vector<std::unique_ptr<Split>> splits;
  std::vector<Turn> turns;  // taken in order
  std::vector<Piece> pieces;
  std::atomic<size_t> next_turn{0};
  std::atomic<size_t> next_piece{0};
  int64_t elements = 0;
};

// Groups of a strip: rows that are too long are cut evenly, as short stretches with large gaps are slow to read.
int64_t strip_groups(const GroupLayout& layout) {
  const int64_t row = layout.outer == 1 ? kPiece : kMaxRow;
  const int64_t most = std::max<int64_t>(1, row / layout.inner);
  const int64_t strips = (layout.groups + most - 1) / most;
  return (layout.groups + strips - 1) / strips;
}

// One group that is longer than a piece and contiguous is read as rows too, so that threads share it.
Strip as_rows(const Strip& strip) {
  const int64_t row = std::min(strip.inner & -strip.inner, kPiece);  // a power of two
  if (strip.rows > 1 || strip.groups > 1 || strip.inner < kSplit || row < kShortRow) return strip;
  return Strip{strip.inner / row, row, 1, row};
}

int64_t elements_of(const Strip& strip) { return strip.rows * strip.groups * strip.inner; }

std::unique_ptr<Split> split(const Piece& piece, const Work& work) {
  auto out = std::make_unique<Split>();
  const int64_t row = piece.strip.groups * piece.strip.inner;
  // Joins are cheap where there are few sums, and worth it where the parts are read again.
  const bool many = work.apply || sums_width(piece.strip) < kLongRun;
  const int64_t most = many ? kParts : std::clamp<int64_t>(piece.strip.rows / kPartRows, 4, kParts);
  const int64_t rows = std::max((kPiece + row - 1) / row, (piece.strip.rows + most - 1) / most);
  out->piece = piece;
  out->rows = rows;
  out->parts = (piece.strip.rows + rows - 1) / rows;
  // On cache lines: vectors across two of them cost twice.
  out->sums.reset(static_cast<char*>(std::aligned_alloc(64, out->parts * sums_stride(piece.strip) * work.sum_size)));
  CHECK_RUN(out->sums, "sparse_accel: no memory for the sums of a tensor");
  out->missing = out->parts;
  out->joined = false;
  out->summed_by.resize(out->parts);
  out->sums_taken = std::vector<std::atomic<bool>>(out->parts);
  out->apply_taken = std::vector<std::atomic<bool>>(out->parts);
  return out;
}

void fill(Queue& queue, const std::vector<Segment>& segments, const Work& work) {
  for (const Segment& s : segments) {
    const auto [outer, groups, inner] = s.layout;
    if (outer * groups * inner == 0) continue;
    const int64_t step = strip_groups(s.layout);
    for (int64_t g = 0; g < groups; g += step) {
      const Piece piece{s.tensor, s.element + g * inner, s.group + g, static_cast<double>(outer * inner),
                        as_rows(Strip{outer, groups * inner, std::min(step, groups - g), inner})};
      queue.elements += elements_of(piece.strip);
      if (piece.strip.rows > 1 && elements_of(piece.strip) >= kSplit) {
        queue.splits.push_back(split(piece, work));
      } else {
        queue.pieces.push_back(piece);
      }
    }
  }
  for (const auto& split : queue.splits) {
    queue.turns.insert(queue.turns.end(), split->parts, Turn{split.get(), false});
    if (work.apply) queue.turns.insert(queue.turns.end(), split->parts, Turn{split.get(), true});
  }
}

Piece part_of(const Split& split, int64_t part) {
  Piece out = split.piece;
  const int64_t first = part * split.rows;
  out.element += first * out.strip.row_stride;
  out.strip.rows = std::min(split.rows, split.piece.strip.rows - first);
  return out;
}

bool take_piece(Queue& queue, const Work& work, void* scratch) {
  const size_t i = queue.next_piece++;
  if (i >= queue.pieces.size()) return false;
  work.whole(queue.pieces[i], scratch);
  return true;
}

// Pieces fill the time that a thread would wait for a join.
void wait_for(const Split& split, Queue& queue, const Work& work, void* scratch) {
  for (int spins = 0; !split.joined.load(std::memory_order_acquire); ++spins) {
    if (!take_piece(queue, work, scratch) && spins > 1000) std::this_thread::yield();
  }
}

bool take(std::atomic<bool>& taken) {
  return !taken.load(std::memory_order_relaxed) && !taken.exchange(true, std::memory_order_relaxed);
}

// Neighbouring parts go to one thread, from the first of its share on: streams run through, and no core prefetches what
// another works on.
int64_t take_sums(Split& split, int64_t thread, int64_t threads) {
  const int64_t first = split.parts * thread / threads;
  for (int64_t i = 0; i < split.parts; ++i) {
    const int64_t part = (first + i) % split.parts;
    if (take(split.sums_taken[part])) return part;
  }
  return -1;  // not reached: there are as many turns as parts
}

// The last part that this thread has summed, which is in its cache, before those of others: another core's cache is
// far.
int64_t take_apply(Split& split, int64_t thread) {
  for (const bool own : {true, false}) {
    for (int64_t part = split.parts - 1; part >= 0; --part) {
      if ((split.summed_by[part] == thread) == own && take(split.apply_taken[part])) return part;
    }
  }
  return -1;  // not reached
}

struct Thread {
  int64_t number, threads;
  void* scratch;
};

void process(const Turn& turn, Queue& queue, const Work& work, const Thread& thread) {
  Split& split = *turn.split;
  char* sums = split.sums.get();
  if (turn.apply) {
    wait_for(split, queue, work, thread.scratch);
    return work.apply(part_of(split, take_apply(split, thread.number)), sums);
  }
  const int64_t part = take_sums(split, thread.number, thread.threads);
  work.sums(part_of(split, part), sums + part * sums_stride(split.piece.strip) * work.sum_size);
  split.summed_by[part] = thread.number;
  if (split.missing.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    work.join(split.piece, sums, split.parts);
    split.joined.store(true, std::memory_order_release);
  }
}

}  // namespace

void run(const std::vector<Segment>& segments, const Work& work) {
  Queue queue;
  fill(queue, segments, work);
  const int64_t threads = queue.elements < kSerial ? 1 : num_threads();
  const auto work_on = [&](int64_t number, int64_t) {
    alignas(64) double scratch[kScratch];  // as many of either compute type
    const Thread thread{number, threads, scratch};
    for (size_t i = queue.next_turn++; i < queue.turns.size(); i = queue.next_turn++) {
      process(queue.turns[i], queue, work, thread);
    }
    while (take_piece(queue, work, scratch)) {
    }
  };
  if (threads == 1) {
    work_on(0, 1);
  } else {
    parallel_for(0, threads, 1, work_on);
  }
}

}  // namespace sparse_accel::cpu
