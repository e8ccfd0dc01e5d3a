"""One block of a model of billions of weights under a memory limit: seconds, peak and what was stated before.

    python -m bench.large_block [--hidden 4096] [--inner 14336] [--tokens 4096] [--limit-gb 12] [--threads 1]
                                [--what neurons layer] [--json FILE]

``neurons``: ``ISpaSP`` takes half of the neurons of a gated MLP (gate, up, down; random bfloat16 weights) away, with
statistics, elimination, refit, removal and the comparison of the outputs. ``layer``: ``layerwise_solve`` makes half of
the weights of the down projection zero. The defaults are the MLP of an 8B Llama.

Each runs in a process of its own, whose private memory is limited (``RLIMIT_DATA``, Linux): what goes beyond fails. The
peak is the largest resident memory that no file stands behind (``RssAnon``), looked at every 20 ms, interpreter and
torch included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_accel.prune import ISpaSP, layerwise_solve

MODES = ("neurons", "layer")


class Block(nn.Module):
    """The MLP of a Llama, with its norm and its shortcut."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden)
        self.gate, self.up = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def made(hidden: int, inner: int, tokens: int) -> tuple[Block, Tensor]:
    """A block in bfloat16, and inputs whose entries have uneven scales, ``[tokens / 256, 256, hidden]``."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    block = Block(hidden, inner).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    scale = torch.linspace(-1, 1, hidden).exp()
    return block, (torch.randn(max(1, tokens // 256), 256, hidden) * scale).bfloat16()


def resident() -> int:
    """Bytes of resident memory that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status has no RssAnon")


def peak(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``run`` says, with its seconds and the peak."""
    most, done = [resident()], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            most.append(max(most.pop(), resident()))

    watcher = threading.Thread(target=look)
    watcher.start()
    clocks = time.perf_counter(), time.process_time()
    try:
        said = run()
    finally:
        done.set()
        watcher.join()
    wall, processor = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    return said | {"seconds": wall, "processor_seconds": processor, "peak_gb": most[0] / 1e9}


def neurons(block: Block, inputs: Tensor) -> dict[str, Any]:
    """Half of the neurons go."""
    result = ISpaSP(block, inputs[:1, :16], keep=0.5, activation_memory=0).run(inputs, batch_size=1)
    (change,) = result.report.widths
    assert change.error is not None
    return {
        "kept": change.units[1],
        "error": change.error[1],
        "selection_seconds": change.seconds,
        "stated_gb": result.report.nbytes / 1e9,
        "dtype": str(result.model.down.weight.dtype),
    }


def layer(block: Block, inputs: Tensor) -> dict[str, Any]:
    """Half of the weights of the down projection go."""
    size = block.down.in_features
    hessian = torch.zeros(size, size)
    with torch.no_grad():
        for part in inputs:
            y = block.norm(part)
            columns = (F.silu(block.gate(y)) * block.up(y)).float()
            hessian.addmm_(columns.T, columns)
    sparse = layerwise_solve(block.down.weight, hessian, 0.5)
    info = sparse.info  # type: ignore[attr-defined]
    return {
        "kept": info.kept,
        "error": info.error,
        "selection_seconds": info.seconds,
        "stated_gb": None,
        "dtype": str(sparse.dtype),
    }


def _child(what: str, args: argparse.Namespace, answers: Any) -> None:
    torch.set_num_threads(args.threads)
    limit = int(args.limit_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        block, inputs = made(args.hidden, args.inner, args.tokens)
        run = neurons if what == "neurons" else layer
        answers.put(peak(lambda: run(block, inputs)))
    except (MemoryError, RuntimeError) as error:
        answers.put({"failed": f"{type(error).__name__}: {error}"[:300]})


def measured(what: str, args: argparse.Namespace) -> dict[str, Any]:
    """One of the modes in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=_child, args=(what, args, answers))
    child.start()
    while child.is_alive() and answers.empty():
        child.join(0.2)
    said: dict[str, Any] = {"failed": f"the process ended with {child.exitcode}"} if answers.empty() else answers.get()
    child.join()
    return {"what": what, "hidden": args.hidden, "inner": args.inner, "tokens": args.tokens} | said


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=14336)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--limit-gb", type=float, default=12.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--what", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    found = []
    for what in args.what:
        found.append(measured(what, args))
        print(json.dumps(found[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any("failed" in row for row in found))
