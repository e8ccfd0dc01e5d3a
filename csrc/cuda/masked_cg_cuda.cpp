// Between tensors and launchers: masked_cg.
#include "guard.h"
#include "masked_cg.h"
#include "masked_cg_ops_cuda.h"

namespace sparse_accel::cuda {

void cg(const Tensor& like, const CgRows& rows, int64_t number, bool begin) {
  Launch launch(like);
  launch.check((begin ? cg_begin : cg_step)(dtype_of(like), rows, number, launch.stream()));
}

}  // namespace sparse_accel::cuda
