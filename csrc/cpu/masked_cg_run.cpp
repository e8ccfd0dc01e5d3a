#include "masked_cg_run.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "choose_kernels.h"

namespace sparse_accel::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements that are worth a thread

const CgKernels& cg_kernels() {
  static const CgKernels& chosen = choose_kernels(cg_kernels_default, cg_kernels_avx2, cg_kernels_avx512);
  return chosen;
}

template <class Kernel>
int64_t run(Kernel kernel, const CgRows& rows, int64_t number) {
  std::atomic<int64_t> open{0};
  at::parallel_for(0, number, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, rows.columns)),
                   [&](int64_t first, int64_t last) { open += kernel(rows, first, last); });
  return open;
}

}  // namespace

int64_t cg_begin(int dtype, const CgRows& rows, int64_t number) { return run(cg_kernels().begin[dtype], rows, number); }
int64_t cg_step(int dtype, const CgRows& rows, int64_t number) { return run(cg_kernels().step[dtype], rows, number); }

}  // namespace sparse_accel::cpu
