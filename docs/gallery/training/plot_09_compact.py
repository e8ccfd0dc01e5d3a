"""
Cut the zeros out, and what that saves
======================================

``sa.compact`` takes channels out that cannot reach an output. The outputs stay the same;
parameters, multiplications and time go down. Here the zeros are put in by hand, to see time
against width.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import sparse_accel as sa

torch.manual_seed(0)
example = torch.randn(128, 256)


def model_with_zeros(share):
    """Three layers; of the two hidden ones this share of the neurons is read by nobody."""
    model = nn.Sequential(
        nn.Linear(256, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 10)
    )
    with torch.no_grad():
        for reader in (model[2], model[4]):
            unread = torch.randperm(768)[: int(768 * share)]
            reader.weight[:, unread] = 0
    return model


# %%
# One result: an ordinary ``nn.Module`` with smaller layers, a report, and the largest difference
# of the outputs, which is rounding.
result = sa.compact(model_with_zeros(0.75), example)
print(result.report)
print(result.model)

# %%
# Half of the neurons is a quarter of the multiplications in a layer between two such widths. Zeros
# that stay in a dense tensor save nothing.
shares = [0.0, 0.25, 0.5, 0.75, 0.9]
reports = [sa.compact(model_with_zeros(share), example).report for share in shares]
figure, axis = plt.subplots(figsize=(7.5, 3.6))
removed = [100 * share for share in shares]
axis.plot(removed, [100 * r.params[1] / r.params[0] for r in reports], "o-", label="parameters")
axis.plot(removed, [100 * r.macs[1] / r.macs[0] for r in reports], "s--", label="multiplications")
axis.plot(
    removed,
    [100 * r.latency_ms[1] / r.latency_ms[0] for r in reports],
    "^-",
    label="time on this machine, one thread",
)
axis.set(
    xlabel="hidden neurons that are zero, %", ylabel="after compact, % of dense", ylim=(0, 110)
)
axis.legend()
plt.show()
