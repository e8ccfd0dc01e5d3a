"""module.py MODULE: the built module is the one that is imported, has CUDA, and an op of it runs on the device."""

import sys

import torch

import sparse_accel as sa
from sparse_accel import _C, ops

print(sa.build_info())
assert _C.__file__ == sys.argv[1], f"{_C.__file__} was imported, not {sys.argv[1]}: is an editable installation active?"
assert _C.has_cuda, "the module was built without CUDA"
assert torch.cuda.is_available(), "torch sees no CUDA device"
weight = torch.arange(12.0).view(3, 4)
layout = sa.group_layout(weight, "input")
(found,) = ops.group_score([weight.cuda()], [layout])
(expected,) = ops.group_score([weight], [layout])
torch.testing.assert_close(found.cpu(), expected)
print("module runs on", torch.cuda.get_device_name())
