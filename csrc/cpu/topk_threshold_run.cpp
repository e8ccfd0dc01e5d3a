#include "topk_threshold_run.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace sparse_accel::cpu {
namespace {

constexpr int64_t kGrain = 16384;         // elements that are worth a thread
constexpr int64_t kInCache = 32768;       // rows up to here are read into a buffer, and searched there
constexpr int64_t kInCacheMany = 131072;  // and up to here where there is one for every thread
constexpr int64_t kChunk = 16384;         // elements that share a count of ties

const TopkKernels& topk_kernels() {
  static const TopkKernels& chosen = []() -> const TopkKernels& {
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512" && topk_kernels_avx512) return *topk_kernels_avx512;
    if ((capability == "AVX512" || capability == "AVX2") && topk_kernels_avx2) return *topk_kernels_avx2;
    return *topk_kernels_default;
  }();
  return chosen;
}

// Memory whose pages are touched only where it is used.
class Buffer {
 public:
  Buffer(int64_t elements, int64_t size)
      : memory_(static_cast<char*>(std::malloc(static_cast<size_t>(elements * size))), &std::free), size_(size) {
    TORCH_CHECK(memory_, "topk_threshold_: no memory for ", elements * size, " bytes");
  }
  char* at(int64_t element) const { return memory_.get() + element * size_; }

 private:
  std::unique_ptr<char, decltype(&std::free)> memory_;
  int64_t size_;
};

// The kernels of one task, and the source they read.
class Run {
 public:
  explicit Run(const TopkTask& task)
      : task_(task),
        kind_(static_cast<int>(task.kind)),
        size_(task.dtype == 1 ? 8 : 4),
        scale_(task.kind == TopkKind::scaled ? repeat_scale(task, size_) : std::vector<char>()),
        source_{task.data, scale_.data(), static_cast<int64_t>(scale_.size()) / size_ - kTopkWord} {}

  Run(const Run&) = delete;

  int64_t number_size() const { return size_; }  // of the compute type
  const TopkSource& source() const { return source_; }

  bool has_nan(int64_t begin, int64_t count) const {
    return kernels_.has_nan[kind_][task_.dtype](source_, begin, count);
  }
  bool read(int64_t begin, int64_t count, void* out) const {
    return kernels_.read[kind_][task_.dtype](source_, begin, count, out);
  }
  bool sample(int64_t size, int64_t number, void* out) const {
    return kernels_.sample[kind_][task_.dtype](source_, size, number, out);
  }
  TopkCounts classify(int64_t begin, int64_t count, double low, double high, void* inside) const {
    TopkCounts counts{};
    kernels_.classify[kind_][task_.dtype](source_, begin, count, low, high, inside, &counts);
    return counts;
  }
  TopkRank select(const void* numbers, int64_t n, int64_t k, void* scratch) const {
    return kernels_.select[size_ == 8](numbers, n, k, scratch);
  }
  int64_t count_equal(const void* numbers, int64_t n, double value) const {
    return kernels_.count_equal[size_ == 8](numbers, n, value);
  }

  void write(int64_t begin, int64_t count, double threshold, int64_t ties) const {
    kernels_.keep[kind_][task_.dtype](source_, begin, count, threshold, ties, target(begin));
  }
  void write_blocks(int64_t begin, int64_t count, int n, int m) const {
    if (n >= m) {
      fill(begin, count, true);
    } else {
      kernels_.keep_blocks[kind_][task_.dtype](source_, begin, count, n, m, target(begin));
    }
  }
  void fill(int64_t begin, int64_t count, bool value) const {
    std::memset(task_.mask + begin, value, static_cast<size_t>(count));
    if (!value) std::memset(element(begin), 0, static_cast<size_t>(count * task_.x_bytes));
  }

 private:
  // Periods of at least a word, and a word more: a word of scores never wraps around.
  static std::vector<char> repeat_scale(const TopkTask& task, int64_t size) {
    const int64_t bytes = task.columns * size;
    const int64_t period = (kTopkWord + task.columns - 1) / task.columns * task.columns;
    std::vector<char> out(static_cast<size_t>((period + kTopkWord) * size));
    const int64_t total = static_cast<int64_t>(out.size());
    for (int64_t at = 0; at < total; at += bytes) {
      std::memcpy(out.data() + at, task.scale, static_cast<size_t>(std::min(bytes, total - at)));
    }
    return out;
  }

  char* element(int64_t index) const { return static_cast<char*>(task_.x) + index * task_.x_bytes; }

  TopkTarget target(int64_t begin) const { return {element(begin), task_.x_bytes, task_.mask + begin}; }

  const TopkKernels& kernels_ = topk_kernels();
  const TopkTask task_;
  int kind_;
  int64_t size_;
  std::vector<char> scale_;
  TopkSource source_;
};

void refuse_nan(bool has_nan) {
  TORCH_CHECK_VALUE(!has_nan, "topk_threshold_: scores: expected numbers that can be ordered, got NaN");
}

void look_for_nan(const Run& run, int64_t count) {
  std::atomic<bool> found{false};
  at::parallel_for(0, (count + kChunk - 1) / kChunk, 1, [&](int64_t lo, int64_t hi) {
    if (run.has_nan(lo * kChunk, std::min(hi * kChunk, count) - lo * kChunk)) found = true;
  });
  refuse_nan(found);
}

// Rows that fit into the cache: each is read once into a buffer. All thresholds are known before anything is written.
void run_rows(const Run& run, int64_t rows, int64_t n, int64_t k) {
  std::vector<TopkRank> ranks(static_cast<size_t>(rows));
  std::atomic<bool> found{false};
  const int64_t grain = std::max<int64_t>(1, kGrain / n);
  at::parallel_for(0, rows, grain, [&](int64_t lo, int64_t hi) {
    const int64_t room = n + kTopkWord;
    const Buffer buffer(room + topk_scratch(n), run.number_size());
    for (int64_t r = lo; r < hi; ++r) {
      if (run.read(r * n, n, buffer.at(0))) {
        found = true;
        return;
      }
      ranks[static_cast<size_t>(r)] = run.select(buffer.at(0), n, k, buffer.at(room));
    }
  });
  refuse_nan(found);
  at::parallel_for(0, rows, grain, [&](int64_t lo, int64_t hi) {
    for (int64_t r = lo; r < hi; ++r) {
      const TopkRank& rank = ranks[static_cast<size_t>(r)];
      run.write(r * n, n, rank.value, rank.wanted == rank.equal ? kAllTies : rank.wanted);
    }
  });
}

// What a pass over a chunk found, and where the numbers in the bracket lie.
struct Chunk {
  TopkCounts counts;
  int64_t inside;  // their place in the buffer
  int64_t ties;    // that are in
};

// The pass over all chunks: counts about the bracket, numbers in it to `buffer`. A thread's lie together.
TopkCounts classify_all(const Run& run, int64_t n, double low, double high, const Buffer& buffer,
                        std::vector<Chunk>& chunks) {
  at::parallel_for(0, static_cast<int64_t>(chunks.size()), 1, [&](int64_t lo, int64_t hi) {
    int64_t place = lo * (kChunk + kTopkWord);
    for (int64_t c = lo; c < hi; ++c) {
      Chunk& chunk = chunks[static_cast<size_t>(c)];
      const int64_t count = std::min(kChunk, n - c * kChunk);
      chunk.counts = run.classify(c * kChunk, count, low, high, buffer.at(place));
      chunk.inside = place;
      place += chunk.counts.inside;
    }
  });
  TopkCounts total{};
  for (const Chunk& chunk : chunks) {
    total.above += chunk.counts.above;
    total.inside += chunk.counts.inside;
    total.has_nan |= chunk.counts.has_nan;
  }
  return total;
}

// A row that does not fit: a sample brackets the threshold, one pass over memory finds it, another one writes.
class LongRow {
  // An end of the bracket. Where many numbers equal it, which would all be copied, the bracket ends at the next number,
  // and the end is looked at on its own if need be.
  struct End {
    double value, inward;
    bool seen;
  };
  static constexpr int64_t kHeavy = 32;  // 1 of so many in the sample is many

 public:
  LongRow(const TopkTask& task, int64_t n)
      : run_(task), n_(n), chunks_(static_cast<size_t>((n + kChunk - 1) / kChunk)) {}

  void find(int64_t k) {
    find_rank(k);
    share_ties();
  }

  void write() const {
    at::parallel_for(0, static_cast<int64_t>(chunks_.size()), 1, [&](int64_t lo, int64_t hi) {
      for (int64_t c = lo; c < hi; ++c) {
        run_.write(c * kChunk, std::min(kChunk, n_ - c * kChunk), rank_.value, chunks_[static_cast<size_t>(c)].ties);
      }
    });
  }

 private:
  void bracket(int64_t k) {
    const int64_t size = topk_sample_size(n_), room = size + kTopkWord;
    const Buffer buffer(room + topk_scratch(size), run_.number_size());
    refuse_nan(run_.sample(n_, size, buffer.at(0)));
    const TopkRanks ranks = topk_bracket(n_, k, size, 4);
    const auto end = [&](int64_t rank, bool inward_is_up) {
      const double value = run_.select(buffer.at(0), size, rank, buffer.at(room)).value;
      const bool is_heavy = run_.count_equal(buffer.at(0), size, value) > size / kHeavy;
      return End{value, is_heavy ? next(value, inward_is_up) : value, !is_heavy};
    };
    if (ranks.high >= 1) high_ = end(ranks.high, false);
    if (ranks.low <= size) low_ = end(ranks.low, true);
    if (low_.value == high_.value) low_ = high_ = End{low_.value, low_.value, true};
  }

  // The next number in the compute type.
  double next(double value, bool up) const {
    const double far = up ? __builtin_inf() : -__builtin_inf();
    return run_.number_size() == 8 ? std::nextafter(value, far)
                                   : double(std::nextafter(static_cast<float>(value), static_cast<float>(far)));
  }

  // Where to look after a bracket that missed: at an end that was left out, then at all beyond it.
  void look_above(double& low, double& high) {
    low = high_.seen ? high : high_.value;
    high = high_.seen ? __builtin_inf() : high_.value;
    high_.seen = true;
  }
  void look_below(double& low, double& high) {
    high = low_.seen ? low : low_.value;
    low = low_.seen ? -__builtin_inf() : low_.value;
    low_.seen = true;
  }

  void find_rank(int64_t k) {
    bracket(k);
    double low = low_.inward, high = high_.inward;
    if (low > high) low = high = low_.value, low_.seen = true;  // neighbours
    const auto number = static_cast<int64_t>(chunks_.size());
    const Buffer buffer(number * (kChunk + kTopkWord), run_.number_size());
    TopkCounts total;
    for (;;) {
      total = classify_all(run_, n_, low, high, buffer, chunks_);
      refuse_nan(total.has_nan);
      if (k <= total.above) {
        look_above(low, high);
      } else if (k > total.above + total.inside) {
        look_below(low, high);
      } else {
        break;
      }
    }
    if (low == high) {
      rank_ = {high, k - total.above, total.inside};
      for (Chunk& chunk : chunks_) chunk.ties = chunk.counts.inside;
      return;
    }
    const int64_t room = total.inside + kTopkWord;
    const Buffer numbers(room + topk_scratch(total.inside), run_.number_size());
    int64_t place = 0;
    for (const Chunk& chunk : chunks_) {
      const auto bytes = static_cast<size_t>(chunk.counts.inside * run_.number_size());
      std::memcpy(numbers.at(place), buffer.at(chunk.inside), bytes);
      place += chunk.counts.inside;
    }
    rank_ = run_.select(numbers.at(0), total.inside, k - total.above, numbers.at(room));
    for (Chunk& chunk : chunks_) {
      if (rank_.wanted == rank_.equal) break;
      chunk.ties = run_.count_equal(buffer.at(chunk.inside), chunk.counts.inside, rank_.value);
    }
  }

  // From how many ties a chunk has to how many of them are in: the first ones.
  void share_ties() {
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

  const Run run_;
  int64_t n_;
  std::vector<Chunk> chunks_;
  End low_{-__builtin_inf(), -__builtin_inf(), true}, high_{__builtin_inf(), __builtin_inf(), true};
  TopkRank rank_{};
};

// Row r of a task on its own.
TopkTask row_of(TopkTask task, int64_t r, int64_t n) {
  constexpr int64_t bytes[] = {4, 8, 2, 2};
  task.x = static_cast<char*>(task.x) + r * n * task.x_bytes;
  task.mask += r * n;
  task.data = static_cast<const char*>(task.data) + r * n * bytes[task.dtype];
  return task;
}

}  // namespace

void topk_rows(const TopkTask& task, int64_t rows, int64_t n, int64_t k) {
  if (k == 0 || k == n) {
    const Run run(task);
    look_for_nan(run, rows * n);
    at::parallel_for(0, rows * n, kGrain, [&](int64_t lo, int64_t hi) { run.fill(lo, hi - lo, k != 0); });
    return;
  }
  if (n <= kInCache || (n <= kInCacheMany && rows >= at::get_num_threads())) {
    run_rows(Run(task), rows, n, k);
    return;
  }
  std::deque<LongRow> all;
  for (int64_t r = 0; r < rows; ++r) all.emplace_back(row_of(task, r, n), n);
  for (LongRow& row : all) row.find(k);
  for (const LongRow& row : all) row.write();
}

void topk_blocks(const TopkTask& task, int64_t rows, int64_t columns, int n, int m) {
  const Run run(task);
  look_for_nan(run, rows * columns);
  if (columns % m == 0) {  // one row of blocks
    at::parallel_for(0, rows * columns / m, std::max<int64_t>(1, kGrain / m),
                     [&](int64_t lo, int64_t hi) { run.write_blocks(lo * m, (hi - lo) * m, n, m); });
    return;
  }
  const int64_t whole = columns / m * m;
  const int rest = static_cast<int>(columns - whole);
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / columns), [&](int64_t lo, int64_t hi) {
    for (int64_t r = lo; r < hi; ++r) {
      run.write_blocks(r * columns, whole, n, m);
      run.write_blocks(r * columns + whole, rest, std::min(n, rest), rest);
    }
  });
}

void topk_groups(void* x, int64_t x_bytes, bool* mask, const bool* keep, int64_t blocks, int64_t outer, int64_t groups,
                 int64_t inner) {
  const int64_t row = groups * inner;
  const auto zero_outside = topk_kernels().zero_outside;
  at::parallel_for(0, blocks * outer, std::max<int64_t>(1, kGrain / row), [&](int64_t lo, int64_t hi) {
    for (int64_t r = lo; r < hi; ++r) {
      bool* const out = mask + r * row;
      if (r > lo && r % outer != 0) {
        std::memcpy(out, out - row, static_cast<size_t>(row));
      } else {
        const bool* const own = keep + r / outer * groups;
        for (int64_t g = 0; g < groups; ++g) std::memset(out + g * inner, own[g], static_cast<size_t>(inner));
      }
      zero_outside({static_cast<char*>(x) + r * row * x_bytes, x_bytes, out}, row);
    }
  });
}

}  // namespace sparse_accel::cpu
