#include "topk_threshold_run.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <numeric>

#include "../../torch_runtime.h"
#include "topk_threshold_long.h"
#include "topk_threshold_task.h"

namespace sparse_accel::cpu {
namespace {

constexpr int64_t kTopkGrain = 16384;     // elements that are worth a thread
constexpr int64_t kInCache = 32768;       // rows up to here are searched one at a time
constexpr int64_t kInCacheMany = 131072;  // and up to here where there is one for every thread

void look_for_nan(const Run& run, int64_t count) {
  std::atomic<bool> found{false};
  parallel_for(0, count, kTopkGrain, [&](int64_t lo, int64_t hi) {
    if (run.has_nan(lo, hi - lo)) found = true;
  });
  refuse_nan(found);
}

// All of x stays, or nothing.
void fill(const Run& run, int64_t count, bool value) {
  look_for_nan(run, count);
  parallel_for(0, count, kTopkGrain, [&](int64_t lo, int64_t hi) { run.fill(lo, hi - lo, value); });
}

// Applies the bits of rows, each of which begins a word.
void apply(const Run& run, const Bits& bits, int64_t rows, int64_t n) {
  const int64_t words = topk_words(n);
  if (rows == 1 || n % kTopkWord == 0) {  // one row
    parallel_for(0, rows * words, kTopkGrain / kTopkWord, [&](int64_t lo, int64_t hi) {
      run.apply(bits.at(lo), lo * kTopkWord, std::min(hi * kTopkWord, rows * n) - lo * kTopkWord);
    });
    return;
  }
  parallel_for(0, rows, std::max<int64_t>(1, kTopkGrain / n), [&](int64_t lo, int64_t hi) {
    for (int64_t r = lo; r < hi; ++r) run.apply(bits.at(r * words), r * n, n);
  });
}

// Row r of a task on its own.
TopkTask row_of(TopkTask task, int64_t r, int64_t n) {
  constexpr int64_t bytes[] = {4, 8, 2, 2};
  task.x = static_cast<char*>(task.x) + r * n * task.x_bytes;
  task.mask += r * n;
  task.data = static_cast<const char*>(task.data) + r * n * bytes[task.dtype];
  return task;
}

void run_long_rows(const TopkTask& task, int64_t rows, int64_t n, int64_t k) {
  std::deque<LongRow> all;
  for (int64_t r = 0; r < rows; ++r) all.emplace_back(row_of(task, r, n), n);
  for (LongRow& row : all) row.find(k);
  for (const LongRow& row : all) row.write();
}

}  // namespace

void topk_rows(const TopkTask& task, int64_t rows, int64_t n, int64_t k) {
  if (n > kInCacheMany || (n > kInCache && rows < num_threads())) {
    if (k > 0 && k < n) return run_long_rows(task, rows, n, k);
  }
  if (n <= kTopkMostBlock && k > 0 && k < n) {
    return topk_blocks(task, rows, n, static_cast<int>(k), static_cast<int>(n));
  }
  const Run run(task);
  if (k == 0 || k == n) return fill(run, rows * n, k != 0);
  const int64_t words = topk_words(n);
  const Bits bits(rows * words);
  std::atomic<bool> found{false};
  parallel_for(0, rows, std::max<int64_t>(1, kTopkGrain / n), [&](int64_t lo, int64_t hi) {
    const Buffer scratch(topk_row_scratch(n), run.number_size());
    if (run.choose_rows(lo * n, hi - lo, n, k, scratch.at(0), bits.at(lo * words))) found = true;
  });
  refuse_nan(found);
  apply(run, bits, rows, n);
}

void topk_blocks(const TopkTask& task, int64_t rows, int64_t columns, int n, int m) {
  if (columns % m == 0) columns *= rows, rows = 1;  // one row of blocks
  const Run run(task);
  const int64_t words = topk_words(columns);
  const Bits bits(rows * words);
  std::atomic<bool> found{false};
  const auto choose = [&](int64_t begin, int64_t number, int64_t count, int64_t word) {
    if (run.choose_blocks(begin, number, count, n, m, bits.at(word))) found = true;
  };
  if (rows == 1) {
    const int64_t part = kTopkWord * m;  // whole words of whole blocks
    parallel_for(0, (columns + part - 1) / part, std::max<int64_t>(1, kTopkGrain / part), [&](int64_t lo, int64_t hi) {
      choose(lo * part, 1, std::min(hi * part, columns) - lo * part, lo * m);
    });
  } else {
    parallel_for(0, rows, std::max<int64_t>(1, kTopkGrain / columns),
                 [&](int64_t lo, int64_t hi) { choose(lo * columns, hi - lo, columns, lo * words); });
  }
  refuse_nan(found);
  apply(run, bits, rows, columns);
}

void topk_within(const TopkTask& task, int64_t blocks, int64_t outer, int64_t groups, int64_t inner, int64_t k) {
  const Run run(task);
  const int64_t row = groups * inner, words = topk_words(row), n = outer * inner;
  if (k == 0 || k == n) return fill(run, blocks * outer * row, k != 0);
  const Bits bits(blocks * outer * words);
  const int64_t width = kTopkWord / std::gcd(kTopkWord, inner);  // groups of a stripe: whole words of columns
  const int64_t stripes = (groups + width - 1) / width;
  std::atomic<bool> found{false};
  parallel_for(0, blocks * stripes, 1, [&](int64_t lo, int64_t hi) {
    TopkStripe stripe{0, blocks * outer * row, outer, row, 0, width, inner, words};
    const Buffer scratch(topk_stripe_scratch(stripe), 1);
    for (int64_t i = lo; i < hi; ++i) {
      const int64_t block = i / stripes, group = i % stripes * width;
      stripe.column = group * inner;
      stripe.begin = block * outer * row + stripe.column;
      stripe.groups = std::min(width, groups - group);
      uint64_t* const own = bits.at(block * outer * words + stripe.column / kTopkWord);
      if (run.choose_groups(stripe, k, scratch.at(0), own)) found = true;
    }
  });
  refuse_nan(found);
  apply(run, bits, blocks * outer, row);
}

void topk_groups(void* x, int64_t x_bytes, bool* mask, const bool* keep, int64_t blocks, int64_t outer, int64_t groups,
                 int64_t inner) {
  const int64_t row = groups * inner;
  const auto zero_outside = topk_kernels().zero_outside;
  parallel_for(0, blocks * outer, std::max<int64_t>(1, kTopkGrain / row), [&](int64_t lo, int64_t hi) {
    for (int64_t r = lo; r < hi; ++r) {
      bool* const out = mask + r * row;
      if (r > lo && r % outer != 0) {
        std::memcpy(out, out - row, static_cast<size_t>(row));
      } else {
        const bool* const own = keep + r / outer * groups;
        for (int64_t g = 0; g < groups; ++g) std::memset(out + g * inner, own[g], static_cast<size_t>(inner));
      }
      zero_outside({static_cast<char*>(x) + r * row * x_bytes, x_bytes, out, false}, row);
    }
  });
}

}  // namespace sparse_accel::cpu
