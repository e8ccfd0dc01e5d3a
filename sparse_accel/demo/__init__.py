"""The demo: train a small conv net densely and with RMDA, remove what became zero, compare.

:func:`run` is what ``sparse-accel demo`` and ``make demo`` call. It trains on scikit-learn's bundled digits, so it
needs no download and no GPU, and takes well under two minutes on one core.

Imports: everything below the command line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparse_accel.diagnostics.sparsity import sparsity
from sparse_accel.groups import param_groups
from sparse_accel.optim import RMDA
from sparse_accel.optim.lr_scheduler import MultiStageLR
from sparse_accel.penalties import GroupLasso
from sparse_accel.progress import Show
from sparse_accel.removal.checkpoint import load, save
from sparse_accel.removal.compact import compact

from .digits import DigitsNet, load_digits
from .progress import Advance, progress_bar
from .summary import DemoReport, Targets, measure, plot, table
from .training import Epoch, Images, fit, outputs, refresh_batch_norm, stage_ends

__all__ = ["DemoResult", "run"]

EPOCHS = 30
BATCH_SIZE = 64
STAGES = 4
DENSE_LR, DENSE_MOMENTUM = 0.05, 0.9
RMDA_LR, RMDA_MOMENTUM, STRENGTH, GAMMA = 1.0, 0.1, 6e-3, 0.1
TARGETS = Targets(accuracy_loss=0.015, removed_groups=0.5, max_abs_diff=1e-5)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        figures: everything that is written to ``demo.json``.
        missed: one sentence for each target that was missed.
        files: what was written, by kind: ``"figures"``, ``"plot"``, ``"page"``, ``"checkpoint"``.
    """

    figures: dict[str, Any]
    missed: tuple[str, ...]
    files: dict[str, Path]

    @property
    def status(self) -> int:
        """Exit status: 0, or 1 where a target was missed."""
        return 1 if self.missed else 0


def run(out_dir: Path | str = "out/demo", *, epochs: int = EPOCHS, seed: int = 0, progress: Show = True) -> DemoResult:
    """Run the demo, print its table, and write a plot, a page, the figures and the compact model's checkpoint.

    Args:
        out_dir: created if need be.
        epochs: of each of the two trainings; RMDA's four stages share them.
        seed: of initial weights and shuffling.
        progress: True, False or a function, see :mod:`sparse_accel.progress`: a step is an epoch.

    Returns:
        The figures; ``.status`` is 1 where the compact model missed a target.

    Raises:
        ImportError: scikit-learn or matplotlib is missing (``pip install 'sparse-accel[demo]'``).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small gain nothing from more, and results depend on their number
    try:
        return _run(Path(out_dir), epochs, seed, progress)
    finally:
        torch.set_num_threads(threads)


def _run(out_dir: Path, epochs: int, seed: int, progress: Show) -> DemoResult:
    images = load_digits()
    with progress_bar(2 * epochs, progress) as advance:
        dense, dense_history = train_dense(images, epochs, seed, advance)
        sparse, optimizer, sparse_history = train_sparse(images, epochs, seed, advance)

    small = compact(sparse, images.test_x, optimizer=optimizer)
    checkpoint = save(small, out_dir / "checkpoint")
    restored = load(checkpoint, DigitsNet())
    restored_equal = torch.equal(outputs(restored, images.test_x), outputs(small.model, images.test_x))

    measured = measure({"dense, SGD": dense, "RMDA": sparse, "RMDA, compact": small.model}, images)
    missed = TARGETS.missed(measured["dense, SGD"], measured["RMDA, compact"], small.max_abs_diff, restored_equal)
    figures = {
        "data": "scikit-learn digits, 1347 training and 450 test images",
        "seed": seed,
        "epochs": epochs,
        "settings": {
            "dense": {"optimizer": "SGD", "lr": DENSE_LR, "momentum": DENSE_MOMENTUM},
            "sparse": {"optimizer": "RMDA", "lr": RMDA_LR, "momentum": RMDA_MOMENTUM, "strength": STRENGTH},
        },
        "models": {label: asdict(model) for label, model in measured.items()},
        "max_abs_diff": small.max_abs_diff,
        "checkpoint_equal": restored_equal,
        "targets": {**asdict(TARGETS), "missed": missed},
        "compact": small.report.to_plain(),
        "sparsity": sparsity(sparse).to_plain(),
        "history": {
            "dense, SGD": [epoch._asdict() for epoch in dense_history],
            "RMDA": [epoch._asdict() for epoch in sparse_history],
        },
    }
    histories = {"dense, SGD": dense_history, "RMDA + group lasso": sparse_history}
    title = "scikit-learn digits: dense training against RMDA with group lasso"
    difference = {"RMDA, compact": small.max_abs_diff}
    report = DemoReport(title, measured, difference, histories, small.report, stage_ends(epochs, STAGES), missed)
    files = {
        "plot": plot(
            out_dir / "demo.png",
            histories,
            small.report,
            milestones=stage_ends(epochs, STAGES),
            title=title,
        ),
        "page": report.html(out_dir / "demo.html"),
        "figures": out_dir / "demo.json",
        "checkpoint": checkpoint,
    }
    files["figures"].write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    lines = [table(measured, difference), ""]
    lines += [f"{kind + ':':<12}{path}" for kind, path in files.items()]
    lines += [f"TARGET MISSED: {sentence}" for sentence in missed]
    sys.stdout.write("\n".join(lines) + "\n")
    return DemoResult(figures, missed, files)


def train_dense(images: Images, epochs: int, seed: int, advance: Advance) -> tuple[DigitsNet, list[Epoch]]:
    """The control: SGD with momentum and a cosine schedule."""
    model, generator = _start(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=DENSE_LR, momentum=DENSE_MOMENTUM)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    history = fit(
        model,
        optimizer,
        images,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        generator=generator,
        scheduler=scheduler,
        on_epoch=partial(advance, "dense, SGD"),
    )
    return model, history


def train_sparse(images: Images, epochs: int, seed: int, advance: Advance) -> tuple[DigitsNet, RMDA, list[Epoch]]:
    """RMDA with group lasso on the input channels, in stages; ends at the proximal iterate."""
    model, generator = _start(seed)
    optimizer = RMDA(param_groups(model, GroupLasso(STRENGTH, by="input")), lr=RMDA_LR, momentum=RMDA_MOMENTUM)
    scheduler = MultiStageLR(optimizer, stage_ends(epochs, STAGES), gamma=GAMMA, momentum="divide")
    history = fit(
        model,
        optimizer,
        images,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        generator=generator,
        scheduler=scheduler,
        on_epoch=partial(advance, "RMDA + group lasso"),
    )
    optimizer.finalize_()
    refresh_batch_norm(model, images.train_x)
    return model, optimizer, history


def _start(seed: int) -> tuple[DigitsNet, torch.Generator]:
    """A fresh network and the generator that shuffles; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitsNet(), torch.Generator().manual_seed(seed)
