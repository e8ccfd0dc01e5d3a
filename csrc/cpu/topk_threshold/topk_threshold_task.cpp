#include "topk_threshold_task.h"

#include <algorithm>
#include <cstring>

namespace sparse_accel::cpu {
namespace {

// Periods of at least a word, and a word more: a word of scores never wraps around.
std::vector<char> repeat_scale(const TopkTask& task, int64_t size) {
  const int64_t bytes = task.columns * size;
  const int64_t period = (kTopkWord + task.columns - 1) / task.columns * task.columns;
  std::vector<char> out(static_cast<size_t>((period + kTopkWord) * size));
  const auto total = static_cast<int64_t>(out.size());
  for (int64_t at = 0; at < total; at += bytes) {
    std::memcpy(out.data() + at, task.scale, static_cast<size_t>(std::min(bytes, total - at)));
  }
  return out;
}

}  // namespace

Run::Run(const TopkTask& task)
    : task_(task),
      scaled_(task.scale != nullptr),
      size_(task.dtype == 1 ? 8 : 4),
      scale_(task.scale ? repeat_scale(task, size_) : std::vector<char>()),
      source_{task.data, task.magnitude, scale_.data(), static_cast<int64_t>(scale_.size()) / size_ - kTopkWord} {}

void Run::fill(int64_t begin, int64_t count, bool value) const {
  std::memset(task_.mask + begin, value, static_cast<size_t>(count));
  if (!value) std::memset(element(begin), 0, static_cast<size_t>(count * task_.x_bytes));
}

void refuse_nan(bool has_nan) {
  CHECK_VALUE(!has_nan, "topk_threshold_: scores: expected numbers that can be ordered, got NaN");
}

}  // namespace sparse_accel::cpu
