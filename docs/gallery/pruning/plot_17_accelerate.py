"""
When do zeros pay?
==================

Zeros in a dense tensor cost as much as any other number. ``sa.accelerate`` stores the kept
weights alone, times every layer on this machine, and leaves dense what would not gain.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import sparse_accel as sa

torch.manual_seed(0)
example = torch.randn(16, 1024)


def thinned(share):
    """Two layers of 1024 × 1024 with this share of zeros, the smallest weights."""
    model = nn.Sequential(
        *(layer for _ in range(2) for layer in (nn.Linear(1024, 1024), nn.ReLU()))
    )
    with torch.no_grad():
        for layer in model[::2]:
            keep = layer.weight.numel() - int(share * layer.weight.numel())
            layer.weight.mul_(sa.topk_threshold_(layer.weight.clone(), None, keep) != 0)
    return model.eval()


# %%
# The report says for each layer what was chosen, the times and the bytes, and what stayed dense
# and why.
model = thinned(0.7)
fast = sa.accelerate(model, example)
print(fast.report)
assert torch.allclose(fast.model(example), model(example), atol=1e-4)


# %%
# The gain against the share of zeros, with a batch of 16 on one thread. Memory is exact; time is
# that of the machine that built this page.
def size(network):
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


shares, gains, sizes = [0.3, 0.5, 0.7, 0.9], [], []
for share in shares:
    model = thinned(share)
    sparse = sa.accelerate(model, example, min_gain=1.0, budget_s=0.1).model
    dense_ms, sparse_ms = sa.report.latencies_ms([model, sparse], example)
    gains.append(dense_ms / sparse_ms)
    sizes.append(100 * size(sparse) / size(model))
figure, axes = plt.subplots(1, 2)
percents = [100 * share for share in shares]
axes[0].plot(percents, gains, "o-")
axes[0].axhline(1, color="gray", linewidth=0.8, linestyle="--")
axes[0].set(xlabel="zeros, %", ylabel="times as fast as dense", ylim=(0, None))
axes[1].plot(percents, sizes, "o-", color="tab:orange")
axes[1].set(xlabel="zeros, %", ylabel="bytes, % of dense", ylim=(0, 105))
plt.show()
