"""kernels.py DEVICE SIZE: each kernel once on [SIZE, SIZE] float32, between cudaProfilerStart and cudaProfilerStop."""

import sys
from functools import partial

import torch

import sparse_accel as sa
from sparse_accel import ops

device, size = sys.argv[1], int(sys.argv[2])
w, grad, point, anchor = (torch.randn(size, size, device=device) for _ in range(4))
step, alpha = torch.ones((), device=device), torch.ones((), dtype=torch.float64, device=device)


def rmda(by):
    layouts, state = [sa.group_layout(w, by)], ([w], [grad], [point], [anchor], [step], [alpha])
    return partial(ops.rmda_step_, *state, layouts, prox="soft", strengths=[1e-6], lr=1e-3, momentum=0.1)


calls = []
for by in ("output", "input", "element"):
    layouts = [sa.group_layout(w, by)]
    if by != "element":
        calls.append(partial(ops.group_score, [w], layouts))
    calls.append(partial(ops.prox_, [w], layouts, [1e-7]))
    calls.append(rmda(by))
calls.append(partial(sa.topk_threshold_, w, grad, (2, 4)))
calls.append(partial(sa.topk_threshold_, w, grad, size // 2, by="row"))

for call in calls:  # first launches load modules
    call()
if device != "cpu":
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
for call in calls:
    call()
if device != "cpu":
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
print(len(calls), "calls")
