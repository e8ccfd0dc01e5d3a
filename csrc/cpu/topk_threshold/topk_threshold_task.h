#pragma once
// A call of topk_threshold_ on the CPU, bound to the kernels that work on it.

#include <cstdlib>
#include <memory>
#include <vector>

#include "../../check.h"
#include "../isa/kernel_set.h"
#include "topk_threshold_run.h"

namespace sparse_accel::cpu {

// Memory whose pages are touched only where it is used, and which begins a line of the caches.
class Buffer {
 public:
  Buffer(int64_t elements, int64_t size)
      : memory_(static_cast<char*>(std::malloc(static_cast<size_t>(elements * size + kLine))), &std::free),
        size_(size) {
    CHECK_RUN(memory_, "topk_threshold_: no memory for ", elements * size, " bytes");
    data_ = memory_.get() + (kLine - reinterpret_cast<uintptr_t>(memory_.get()) % kLine) % kLine;
  }
  char* at(int64_t element) const { return data_ + element * size_; }

 private:
  static constexpr uintptr_t kLine = 64;
  std::unique_ptr<char, decltype(&std::free)> memory_;
  char* data_;
  int64_t size_;
};

// A bit of each element, 64 to a word.
class Bits : Buffer {
 public:
  explicit Bits(int64_t words) : Buffer(words, sizeof(uint64_t)) {}
  uint64_t* at(int64_t word) const { return reinterpret_cast<uint64_t*>(Buffer::at(word)); }
};

class Run {
 public:
  explicit Run(const TopkTask& task);
  Run(const Run&) = delete;

  int64_t number_size() const { return size_; }  // of the compute type

  bool has_nan(int64_t begin, int64_t count) const {
    return kernels_.has_nan[scaled_][task_.dtype](source_, begin, count);
  }
  bool sample(int64_t size, int64_t number, void* out) const {
    return kernels_.sample[scaled_][task_.dtype](source_, size, number, out);
  }
  TopkCounts classify(int64_t begin, int64_t count, const TopkBracket& bracket, void* inside, uint64_t* bits,
                      uint64_t* bits_inside) const {
    return kernels_.classify[scaled_][task_.dtype](source_, begin, count, bracket, inside, bits, bits_inside);
  }
  bool choose_rows(int64_t begin, int64_t rows, int64_t n, int64_t k, void* scratch, uint64_t* bits) const {
    return kernels_.choose_rows[scaled_][task_.dtype](source_, begin, rows, n, k, scratch, bits);
  }
  bool choose_blocks(int64_t begin, int64_t rows, int64_t columns, int n, int m, uint64_t* bits) const {
    return kernels_.choose_blocks[scaled_][task_.dtype](source_, begin, rows, columns, n, m, bits);
  }
  bool choose_groups(const TopkStripe& stripe, int64_t k, void* scratch, uint64_t* bits) const {
    return kernels_.choose_groups[scaled_][task_.dtype](source_, stripe, k, scratch, bits);
  }
  TopkBracket bracket(const void* sample, int64_t size, int64_t n, int64_t k, void* scratch) const {
    return kernels_.bracket[size_ == 8](sample, size, n, k, 4, scratch);
  }
  TopkRank select(const void* numbers, int64_t n, int64_t k, void* scratch) const {
    return kernels_.select[size_ == 8](numbers, n, k, scratch);
  }
  int64_t count_equal(const void* numbers, int64_t n, double value) const {
    return kernels_.count_equal[size_ == 8](numbers, n, value);
  }
  void settle(uint64_t* bits, const uint64_t* bits_inside, int64_t words, const void* numbers, double threshold,
              int64_t ties) const {
    kernels_.settle[size_ == 8](bits, bits_inside, words, numbers, threshold, ties);
  }

  // What the bits of [begin, begin + count) say.
  void apply(const uint64_t* bits, int64_t begin, int64_t count) const {
    kernels_.apply(bits, count,
                   {element(begin), task_.x_bytes, task_.mask + begin, task_.passes_cache && begin % kTopkWord == 0});
  }
  void fill(int64_t begin, int64_t count, bool value) const;

 private:
  char* element(int64_t index) const { return static_cast<char*>(task_.x) + index * task_.x_bytes; }

  const TopkKernels& kernels_ = topk_kernels();
  const TopkTask task_;
  int scaled_;
  int64_t size_;
  std::vector<char> scale_;
  TopkSource source_;
};

// Raises ValueError if there is NaN.
void refuse_nan(bool has_nan);

}  // namespace sparse_accel::cpu
