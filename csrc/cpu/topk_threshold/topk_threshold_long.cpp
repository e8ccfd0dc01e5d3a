#include "topk_threshold_long.h"

#include <algorithm>
#include <cstring>

#include "../../torch_runtime.h"

namespace sparse_accel::cpu {
namespace {

constexpr int64_t kChunk = 16384;  // elements that share a count of ties
constexpr int64_t kChunkWords = kChunk / kTopkWord;

}  // namespace

LongRow::LongRow(const TopkTask& task, int64_t n)
    : run_(task),
      n_(n),
      chunks_(static_cast<size_t>((n + kChunk - 1) / kChunk)),
      bits_(topk_words(n)),
      bits_inside_(topk_words(n)),
      inside_(static_cast<int64_t>(chunks_.size()) * (kChunk + kTopkWord), run_.number_size()) {}

int64_t LongRow::count(int64_t chunk) const { return std::min(kChunk, n_ - chunk * kChunk); }

void LongRow::find(int64_t k) {
  find_rank(k);
  share_ties();
}

void LongRow::write() const {
  parallel_for(0, static_cast<int64_t>(chunks_.size()), 1, [&](int64_t lo, int64_t hi) {
    for (int64_t c = lo; c < hi; ++c) {
      const Chunk& chunk = chunks_[static_cast<size_t>(c)];
      uint64_t* const bits = bits_.at(c * kChunkWords);
      const void* const numbers = all_equal_ ? nullptr : inside_.at(chunk.inside);
      run_.settle(bits, bits_inside_.at(c * kChunkWords), topk_words(count(c)), numbers, rank_.value, chunk.ties);
      run_.apply(bits, c * kChunk, count(c));
    }
  });
}

TopkBracket LongRow::bracket(int64_t k) const {
  const int64_t size = topk_sample_size(n_), room = size + kTopkWord;
  const Buffer buffer(room + topk_scratch(size), run_.number_size());
  refuse_nan(run_.sample(n_, size, buffer.at(0)));
  return run_.bracket(buffer.at(0), size, n_, k, buffer.at(room));
}

// The pass over all chunks. What is inside lies together for each thread.
TopkCounts LongRow::classify(const TopkBracket& bracket) {
  parallel_for(0, static_cast<int64_t>(chunks_.size()), 1, [&](int64_t lo, int64_t hi) {
    int64_t place = lo * (kChunk + kTopkWord);
    for (int64_t c = lo; c < hi; ++c) {
      const int64_t word = c * kChunkWords;
      Chunk& chunk = chunks_[static_cast<size_t>(c)];
      chunk.counts =
          run_.classify(c * kChunk, count(c), bracket, inside_.at(place), bits_.at(word), bits_inside_.at(word));
      chunk.inside = place;
      place += chunk.counts.inside;
    }
  });
  TopkCounts total{};
  for (const Chunk& chunk : chunks_) {
    total.above += chunk.counts.above;
    total.inside += chunk.counts.inside;
    total.has_nan |= chunk.counts.has_nan;
  }
  return total;
}

void LongRow::find_rank(int64_t k) {
  TopkBracket around = bracket(k);
  TopkCounts total;
  do {
    total = classify(around);
    refuse_nan(total.has_nan);
  } while (around.missed(total, k));
  all_equal_ = around.low == around.high;
  if (all_equal_) {
    rank_ = {around.high, k - total.above, total.inside};
    for (Chunk& chunk : chunks_) chunk.ties = chunk.counts.inside;
    return;
  }
  const int64_t room = total.inside + kTopkWord;
  const Buffer numbers(room + topk_scratch(total.inside), run_.number_size());
  int64_t place = 0;
  for (const Chunk& chunk : chunks_) {
    const auto bytes = static_cast<size_t>(chunk.counts.inside * run_.number_size());
    std::memcpy(numbers.at(place), inside_.at(chunk.inside), bytes);
    place += chunk.counts.inside;
  }
  rank_ = run_.select(numbers.at(0), total.inside, k - total.above, numbers.at(room));
  for (Chunk& chunk : chunks_) {
    if (rank_.wanted == rank_.equal) break;
    chunk.ties = run_.count_equal(inside_.at(chunk.inside), chunk.counts.inside, rank_.value);
  }
}

// From how many ties a chunk has to how many of them are in: the first ones.
void LongRow::share_ties() {
  int64_t left = rank_.wanted;
  for (Chunk& chunk : chunks_) {
    if (rank_.wanted == rank_.equal) {
      chunk.ties = kAllTies;
      continue;
    }
    const int64_t own = std::min(left, chunk.ties);
    chunk.ties = own == chunk.ties ? kAllTies : own;
    left -= own;
  }
}

}  // namespace sparse_accel::cpu
