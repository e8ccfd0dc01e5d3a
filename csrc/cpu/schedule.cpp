#include "schedule.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <string>

#ifndef _OPENMP
#error "build with -fopenmp: without it at::parallel_for silently runs serially"
#endif

namespace sparse_accel::cpu {
namespace {

constexpr int64_t kSerial = 16384;  // elements in all below which threads cost more than they give
constexpr int64_t kRowTarget = 1024;   // elements of a strip's row where groups are strided: wide enough to stream

// Groups per strip.
int64_t strip_groups(const GroupLayout& layout) {
  const int64_t per_row = layout.outer == 1 ? kMaxRow : kRowTarget;
  return std::max<int64_t>(1, per_row / std::max<int64_t>(1, layout.inner));
}

}  // namespace

std::vector<Piece> cut(const std::vector<Segment>& segments) {
  std::vector<Piece> pieces;
  pieces.reserve(segments.size() * 2);
  for (const Segment& s : segments) {
    const auto [outer, groups, inner] = s.layout;
    const int64_t step = strip_groups(s.layout);
    for (int64_t g = 0; g < groups; g += step) {
      pieces.push_back(Piece{s.tensor, s.element + g * inner, s.group + g, static_cast<double>(outer * inner),
                             Strip{outer, groups * inner, std::min(step, groups - g), inner}});
    }
  }
  return pieces;
}

void run(const std::vector<Piece>& pieces, const std::function<void(int64_t, void*)>& body) {
  const auto elements = [](const Strip& s) { return s.rows * s.groups * s.inner; };
  int64_t total = 0;
  for (const Piece& piece : pieces) total += elements(piece.strip);
  std::vector<int64_t> order(pieces.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  const int64_t threads = total < kSerial ? 1 : at::get_num_threads();
  if (threads > 1) {
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return elements(pieces[a].strip) > elements(pieces[b].strip);
    });
  }
  std::atomic<size_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    alignas(64) double scratch[kScratch];  // holds kScratch elements of either compute type
    for (size_t i = next++; i < order.size(); i = next++) body(order[i], scratch);
  };
  if (threads == 1) {
    work(0, 1);
  } else {
    at::parallel_for(0, threads, 1, work);
  }
}

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512" && kernels_avx512) return *kernels_avx512;
    if ((capability == "AVX512" || capability == "AVX2") && kernels_avx2) return *kernels_avx2;
    return *kernels_default;
  }();
  return chosen;
}

int dtype_index(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return 0;
    case at::kDouble: return 1;
    case at::kBFloat16: return 2;
    case at::kHalf: return 3;
    default: TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", dtype);
  }
}

}  // namespace sparse_accel::cpu
