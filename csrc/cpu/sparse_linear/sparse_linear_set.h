// The kernels of sparse_linear, compiled once per instruction set (no include guard on purpose).
// clang-format off
#include "../isa/target.h"
#include "../isa/kernel_set.h"
#ifdef CPU_CAPABILITY
#include "sparse_linear_lanes.h"
#include "sparse_linear_cpu.h"
// clang-format on

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

static const SparseKernels sparse_table = sparse_kernels_of<Lanes>();

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
#endif

namespace sparse_accel {
SPARSE_ACCEL_EXPORT(SparseKernels, sparse_kernels, sparse_table)
}
