"""
How many measurements for k causes?
===================================

From m measurements of n = 40 unknowns, of which k are not zero: with enough of them the k are
found exactly, with too few never. The border is sharp, and where it lies depends on the method.
"""

import matplotlib.pyplot as plt
import torch

import sparse_accel as sa

N, RUNS = 40, 10
measurements, causes = range(6, 37, 5), range(1, 16, 3)


def share_found(m, k, method, **options):
    """The share of random problems that are solved; one batched call for all of them."""
    generator = torch.Generator().manual_seed(1000 * m + k)
    A = torch.randn(RUNS, m, N, generator=generator, dtype=torch.float64)
    truth = torch.zeros(RUNS, N, dtype=torch.float64)
    places = torch.rand(RUNS, N, generator=generator).topk(k).indices
    truth.scatter_(1, places, torch.randn(RUNS, k, generator=generator, dtype=torch.float64))
    problem = sa.sparse_recovery.LeastSquares(A, (A @ truth[..., None])[..., 0])
    found = sa.sparse_recovery.solve(problem, k=k, method=method, iterations=40, **options).theta
    return ((found - truth).norm(dim=1) < 1e-2 * truth.norm(dim=1)).double().mean().item()


# %%
# Hard thresholding (``niht``), thresholding with a refit (``htp``), and the iterated optimal brain
# surgeon.
methods = {
    "niht": ("normalized IHT", {}),
    "htp": ("HTP", {}),
    "iobs": (
        "I-OBS",
        {"damping": 1e-3},
    ),  # with fewer measurements than unknowns the curvature is singular
}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True)
for axis, (method, (name, options)) in zip(axes, methods.items(), strict=True):
    table = [
        [share_found(m, k, method, **options) if k <= m else 0.0 for m in measurements]
        for k in causes
    ]
    print(f"{name}: {sum(map(sum, table)) / len(table) / len(table[0]):.2f} of all problems")
    picture = axis.pcolormesh(
        list(measurements),
        list(causes),
        table,
        cmap="Blues",
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=0.3,
    )
    axis.set(title=name, xlabel="measurements m")
    axis.grid(False)
axes[0].set_ylabel("nonzeros k")
figure.colorbar(picture, ax=axes, label="recovered", shrink=0.9)
plt.show()
