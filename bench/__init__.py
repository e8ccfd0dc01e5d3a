"""Benches of the kernels and optimizers: ``python -m bench`` runs all, ``python -m bench.bench_optim`` one."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run every bench; options as in ``python -m bench --help``.

    Args:
        argv: the command line without the program's name (default: ``sys.argv[1:]``).

    Returns:
        The exit status.
    """
    from . import (
        bench_glm,
        bench_gram_obs,
        bench_group_score,
        bench_group_topk,
        bench_ispasp,
        bench_optim,
        bench_prox,
        bench_sparse_linear,
        bench_topk,
        harness,
    )

    benches = {
        "group_score": bench_group_score.cases,
        "group_topk": bench_group_topk.cases,
        "prox": bench_prox.cases,
        "topk": bench_topk.cases,
        "optim": bench_optim.cases,
        "glm": bench_glm.cases,
        "gram_obs": bench_gram_obs.cases,
        "ispasp": bench_ispasp.cases,
        "sparse_linear": bench_sparse_linear.cases,
    }
    return harness.bench_main(benches, argv, "Run every bench of sparse_accel.")[0]
