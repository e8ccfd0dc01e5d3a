"""imported.py MODULE: the module with CUDA can be imported, all its symbols bound, where there is no GPU."""

import os
import sys

sys.setdlopenflags(os.RTLD_NOW)

import torch  # noqa: E402

import sparse_accel as sa  # noqa: E402
from sparse_accel import _C, ops  # noqa: E402

assert _C.__file__ == sys.argv[1], f"{_C.__file__} was imported, not {sys.argv[1]}"
assert _C.has_cuda
assert sa.build_info().with_cuda
weight = torch.arange(6.0).view(2, 3)
(score,) = ops.group_score([weight], [sa.group_layout(weight, "output")], "l1")
assert score.tolist() == [3.0, 12.0]
print(sa.build_info())
