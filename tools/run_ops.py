"""Run every op of an installed sparse_accel on small tensors and hold it against its plain twin.

    python tools/run_ops.py

Prints what is installed; an op that is wrong, or one that this file forgets, ends it.
"""

import importlib.util
import pathlib
import sys

import torch

import sparse_accel as sa
from sparse_accel import ops, reference
from sparse_accel.groups import Grouping, group_layout

RAN = set()


def close(name, found, expected, tolerance=1e-5):
    """Note that an op ran, and compare."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{name}: {text}")
    RAN.add(name)


def groups():
    """Scores, choice, proximal operator."""
    weights = [torch.randn(40, 30), torch.randn(12, 6, 3, 3)]
    layouts = [group_layout(weight, Grouping("input")) for weight in weights]
    scores = ops.group_score(weights, layouts)
    close("group_score", scores, reference.group_score(weights, layouts, "l2"))
    close("group_topk", ops.group_topk(scores, 9), reference.group_topk(scores, 9))
    shrunk, twin = [weight.clone() for weight in weights], [weight.clone() for weight in weights]
    ops.prox_(shrunk, layouts, [0.5, 0.5])
    reference.prox_(twin, layouts, [0.5, 0.5], prox="soft")
    close("prox_", shrunk, twin)


def steps():
    """One step of each optimizer."""
    for name, moments, numbers in (
        ("rmda_step_", 2, {"lr": 0.1, "momentum": 0.5}),
        ("prox_sgd_step_", 1, {"lr": 0.1, "rho": 0.5}),
        ("ramda_step_", 3, {"lr": 0.1, "momentum": 0.5, "eps": 1e-6}),
        ("prox_adamw_step_", 2, {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}),
    ):
        weight = torch.randn(20, 12)
        layout = [group_layout(weight, Grouping("output"))]
        clocks = [torch.tensor(0.0)], [torch.tensor(0.0, dtype=torch.float64)]
        of_clocks = clocks[:1] if name.startswith("prox_") else clocks
        results = []
        for module in (ops, reference):
            param, grad = [weight.clone()], [torch.ones(20, 12)]
            state = [[torch.zeros(20, 12)] for _ in range(moments)]
            own = [[clock.clone() for clock in clock_list] for clock_list in of_clocks]
            getattr(module, name)(param, grad, *state, *own, layout, prox="soft", strengths=[0.1], **numbers)
            results.append([*param, *(tensor for tensors in (*state, *own) for tensor in tensors)])
        close(name, *results)


def thresholds():
    """Every way to count."""
    x = torch.randn(24, 32)
    for k, options in ((100, {}), (7, {"by": "row"}), ((2, 4), {}), (5, {"by": "group"}), (9, {"by": "within"})):
        layout = group_layout(x, Grouping("input")) if options.get("by") in ("group", "within") else None
        kept = ops.topk_threshold_(x.clone(), None, k, layout=layout, **options)
        numbers = [k] if isinstance(k, int) else list(k)
        by = options.get("by", "tensor")
        twin = reference.topk_threshold_(x.clone(), None, numbers, by, list(layout or []), None)
        close("topk_threshold_", kept, twin)


def solvers():
    """Refits and eliminations."""
    root = torch.randn(64, 16, dtype=torch.float64)
    gram, weight = root.T @ root / 64, torch.randn(8, 16, dtype=torch.float64)
    mask = torch.rand(8, 16) > 0.5
    close("masked_cg", ops.masked_cg(weight, mask, gram, 16), reference.masked_cg(weight, mask, gram, 16, None))
    problem = (gram.inverse()[None], weight[None], 2, 5)
    close("gram_obs", list(ops.gram_obs(*problem)), list(reference.gram_obs(*problem, None)))


def models():
    """Generalized linear models."""
    rows, targets, point = torch.randn(9, 5).double(), (torch.rand(9) > 0.5).double(), torch.zeros(5).double()
    for mode in ("average", "joint"):
        call = (point, rows, None, None, targets, 2.0, "binomial", mode, 1.0)
        close("glm_prox", ops.glm_prox(point, rows, targets, 2.0, "binomial", mode)[0], reference.glm_prox(*call)[0])
    order, iterates = torch.arange(9), [(point.clone(), point.clone()) for _ in range(2)]
    ops.glm_epoch(*iterates[0], rows, targets, order, 1.0, 0.5, "binomial")
    reference.glm_epoch_(*iterates[1], rows, None, None, targets, order, 1.0, 0.5, "binomial", 1.0, None, 0)
    close("glm_epoch", list(iterates[0]), list(iterates[1]))


def sparse_weights():
    """Packing, unpacking, products, by kernels and dense."""
    weight = torch.randn(70, 300)
    weight[torch.rand(70, 300) < 0.6] = 0
    packed = ops.Bitmask.pack(weight)
    close("Bitmask", packed.unpack(), weight)
    for batch in (1, 16, 300):
        x = torch.randn(batch, 300)
        close("sparse_linear", ops.sparse_linear(x, packed), x @ weight.T, 1e-4)


def main():
    """All of them."""
    spec = importlib.util.find_spec("sparse_accel")
    here = pathlib.Path(__file__).resolve().parent.parent / "sparse_accel"
    if "--installed" in sys.argv and pathlib.Path(spec.origin).parent == here:
        sys.exit(f"sparse_accel was imported from {here}: run this from another folder")
    torch.manual_seed(0)
    for part in (groups, steps, thresholds, solvers, models, sparse_weights):
        part()
    forgotten = set(ops.__all__) - RAN - {"cpu_capability"}
    if forgotten:
        sys.exit(f"did not run {', '.join(sorted(forgotten))}")
    print(sa.build_info())


if __name__ == "__main__":
    main()
