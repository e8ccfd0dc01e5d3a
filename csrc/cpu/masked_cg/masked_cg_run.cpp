#include "masked_cg_run.h"

#include <algorithm>
#include <atomic>

#include "../../torch_runtime.h"
#include "../isa/kernel_set.h"

namespace sparse_accel::cpu {
namespace {

constexpr int64_t kGrainOfRows = 16384;  // elements that are worth a thread

template <class Kernel>
int64_t for_rows(Kernel kernel, const CgRows& rows, int64_t number) {
  std::atomic<int64_t> open{0};
  parallel_for(0, number, std::max<int64_t>(1, kGrainOfRows / std::max<int64_t>(1, rows.columns)),
               [&](int64_t first, int64_t last) { open += kernel(rows, first, last); });
  return open;
}

}  // namespace

int64_t cg_begin(int dtype, const CgRows& rows, int64_t number) {
  return for_rows(kernel_set().masked_cg.begin[dtype], rows, number);
}
int64_t cg_step(int dtype, const CgRows& rows, int64_t number) {
  return for_rows(kernel_set().masked_cg.step[dtype], rows, number);
}

}  // namespace sparse_accel::cpu
