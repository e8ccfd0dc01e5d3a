"""Curvature IHT on whole models: second-order sparsification front to back, on streamed Hessians."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sparse_accel._modes import outside_inference_mode
from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import Calibration, check_bytes, require_memory
from sparse_accel.calibration.moments import Gram
from sparse_accel.calibration.observations import Observations
from sparse_accel.calibration.padding import DEFAULT, Keys, Padding
from sparse_accel.calibration.ranks import broadcast_, together
from sparse_accel.calibration.replay.engine import whole_notes
from sparse_accel.calibration.replay.front import Front
from sparse_accel.calibration.replay.store import ACTIVATION_MEMORY, Store
from sparse_accel.calibration.slice_moments import SliceGram
from sparse_accel.calibration.survey import find_blocks
from sparse_accel.mapped import copies_in
from sparse_accel.progress import Show, check_progress, meter
from sparse_accel.prune.refinement.masters import Masters
from sparse_accel.prune.refinement.options import RefineOptions
from sparse_accel.prune.unstructured.allocate import allocate
from sparse_accel.prune.unstructured.layers import Step
from sparse_accel.prune.unstructured.masks import Masks
from sparse_accel.prune.unstructured.progress import Progress, notes_of, record_of, reports_of
from sparse_accel.prune.unstructured.refine import Refinement
from sparse_accel.prune.unstructured.report import CurvatureIHTReport, LayerReport
from sparse_accel.prune.unstructured.result import CurvatureIHTResult
from sparse_accel.prune.unstructured.selection import Targets, select_layers, shares_of, warn_of_left
from sparse_accel.prune.unstructured.solve import (
    CHUNK_BYTES,
    SolverOptions,
    hessian_of,
    report_of,
    solve_layer,
    work_bytes,
)
from sparse_accel.prune.unstructured.steps import find_steps, leave, modules_of, split
from sparse_accel.wrappers import bare_model, copy_model

UNREACHED = "none of the batches to learn from reaches it"

logger = logging.getLogger("sparse_accel")


class CurvatureIHT:
    """Prunes the weights of a model one layer after the other, each against the second moments of its inputs.

    For every layer (layers that read the same inputs together) the inputs are recomputed from the already pruned
    front, their products ``H = X Xᵀ`` summed over the calibration data, and ``tr((W − Ŵ) H (W − Ŵ)ᵀ)`` is minimized
    over sparse W by :func:`sparse_accel.prune.layerwise_solve`. Weights that several modules share are solved once,
    with the inputs of all of them.

    Args:
        model: its Linear, Conv1d, Conv2d, Conv3d and Hugging Face Conv1D layers can be pruned, and parameters that are
            stacks of matrices (the experts of a mixture), each matrix against the inputs that are routed to it. What
            cannot be pruned is listed in ``report.left`` with its share of the weights; where that is more than a tenth
            (besides embedding tables and what the caller leaves), a warning says so. The model is not changed.
        sparsity: of every layer: a share of zero weights, ``"n:m"`` or :class:`~sparse_accel.prune.BlockSparsity`,
            :class:`~sparse_accel.prune.Rows` or :class:`~sparse_accel.prune.GroupSparsity`.
        targets: what to prune: None for every supported layer, a pattern, several, or a mapping from patterns to
            sparsities (None leaves a layer dense; the last match counts). A pattern is the name of a module, of one
            of its parents or any run of parts of it, with shell wildcards: ``"layer.0"``, ``"*.attention"``.
        skip: patterns of layers that stay dense.
        allocation: ``"uniform"``, or ``"global"``: the shares of the layers follow their marginal errors, and the
            total is exactly the one asked for. Global shares need plain numbers as sparsities.
        method: of the layer solver: ``"iht"``, or a baseline (``"magnitude"``, ``"sparsegpt"``, ``"obs"``, ``"admm"``).
        iterations: of the layer solver.
        refine: a number of further outer rounds on the whole model, see :mod:`sparse_accel.prune.unstructured.refine`:
            the kept weights take Gauss-Newton steps on the error of the model's outputs, with gradients and curvature
            of recomputed inputs. The round with the least error on held-out batches counts; the supports stay. Or
            ``"auto"`` or a dict of settings of :func:`sparse_accel.prune.refine`: all parameters are fitted to the
            dense model's blocks and outputs by gradients, without labels; the supports stay.
        seed: of the solver.
        padding: key of the batches (mappings) whose tensor ``[batch, length]`` holds 0 for padded positions: their
            inputs do not count. Which layers have those positions is found (of several sequences, and where batch and
            length are equal, by a run on a shortened batch); ``"decoder_" + key`` counts too. Several keys; or a
            mapping from patterns of module names to keys (None: all positions), the last match counting:
            ``{"encoder": "mask", "decoder": "target_mask"}``. What could be read in two ways is an error.
        batch_first: whether layers' inputs are ``[batch, length, ...]`` or ``[length, batch, ...]``; None: as found.
        max_memory: bytes that the run may take beyond the model and the data, or None.
        activation_memory: bytes of outputs of finished blocks that are kept in host memory, so that the blocks need not
            run again; beyond it they are in files of a temporary folder (``tempfile``), removed at the end. 0 keeps
            none: every pass runs the model from its inputs.
        offload_dir: folder in which copies of the model, and so the result, live, in memory-mapped files without names;
            None: in memory.
        resume_dir: folder for the finished layers. A run with the same settings and data goes on where the last one
            stopped, to the same bits on CPUs.
        dtype: in which the Hessians are summed, float64 or float32.
        progress: True, False or a function, see :mod:`sparse_accel.progress`: a step is the layers that read the same
            inputs, with their largest error; then the rounds of ``refine``, with the held-out error.
        **solver: further arguments of :func:`sparse_accel.prune.layerwise_solve`, such as ``damping``.

    Under ``torch.distributed`` every rank brings its share of the data; Hessians are summed over the ranks, and all
    ranks get the same weights.

    Source: Wu et al., I-OBS, NeurIPS 2024 (arXiv 2408.17163).

    Raises:
        TypeError, ValueError: an argument is out of its range; the message names it.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> result = CurvatureIHT(net, sparsity=0.5).run(torch.randn(64, 8))
        >>> [round(layer.sparsity, 3) for layer in result.report.layers]
        [0.5, 0.5]
        >>> int((result.model[0].weight == 0).sum()), int((net[0].weight == 0).sum())
        (64, 0)
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: Any = 0.5,
        *,
        targets: Targets = None,
        skip: Sequence[str] = ("lm_head", "classifier"),
        allocation: str = "uniform",
        method: str = "iht",
        iterations: int = 20,
        refine: Any = 0,
        seed: int = 0,
        padding: Keys = DEFAULT,
        batch_first: bool | None = None,
        max_memory: int | None = None,
        activation_memory: int = ACTIVATION_MEMORY,
        offload_dir: str | os.PathLike[str] | None = None,
        resume_dir: str | os.PathLike[str] | None = None,
        dtype: torch.dtype = torch.float64,
        progress: Show = None,
        **solver: Any,
    ) -> None:
        model = bare_model(model)
        if allocation not in ("uniform", "global"):
            raise ValueError(f"allocation: expected 'uniform' or 'global', got {allocation!r}")
        if isinstance(refine, bool) or (isinstance(refine, int) and refine < 0):
            raise ValueError(f"refine: expected a number of rounds, got {refine!r}")
        if max_memory is not None:
            check_bytes("max_memory", max_memory)
        check_bytes("activation_memory", activation_memory)
        self.model = model
        self.sparsity = sparsity
        self.targets, self.skip = targets, skip
        self.allocation = allocation
        self.refine = refine if isinstance(refine, int) else RefineOptions.of(refine) or 0
        self.padding, self.batch_first = padding, batch_first
        self.max_memory, self.activation_memory = max_memory, activation_memory
        self.offload_dir, self.resume_dir = offload_dir, resume_dir
        check_progress(progress)
        self.progress = progress
        Padding(padding, batch_first)  # refuses what is none
        self.options = SolverOptions(method, iterations, seed, dtype, dict(solver))
        select_layers(self.model, targets, skip, sparsity)  # say now what is wrong with them

    @outside_inference_mode
    def run(self, calibration: Any, *, held_out: Any = None) -> CurvatureIHTResult:
        """Prune a copy of the model.

        Args:
            calibration: any iterable of model inputs (tensors, tuples, mappings), a tensor, or a
                :class:`~sparse_accel.calibration.data.Calibration`. Every call of every batch counts; the batches'
                order does not, to the same bits (see :class:`~sparse_accel.calibration.batches.Batches`).
            held_out: the same, to compare the rounds of ``refine`` on; by default every eighth batch of
                ``calibration`` is set aside for that (if there is but one, it serves for both).

        Raises:
            ValueError: the data, a layer or a sparsity does not fit, or the run would take more than ``max_memory``.
            RuntimeError: the solver fails.
            CheckpointError: ``resume_dir`` holds another run.
        """
        with copies_in(self.offload_dir):
            run = _Run(self, Calibration(calibration), None if held_out is None else Calibration(held_out))
            with run.store:
                return run.result()


class _Run:
    """One run: a copy of the model, the order of its layers, and what is known so far."""

    def __init__(self, settings: CurvatureIHT, data: Calibration, held_out: Calibration | None) -> None:
        self.start = time.perf_counter()
        self.settings = settings
        self.dense = settings.model
        self.model = copy_model(settings.model)
        self.model.zero_grad(set_to_none=True)
        self.selection = select_layers(self.model, settings.targets, settings.skip, settings.sparsity)
        device = self.selection.layers[0].weight.device
        self.padding = Padding(settings.padding, settings.batch_first)
        batches = Batches(data, self.model, self.padding)
        modules = {name: module for layer in self.selection.layers for name, module in layer.modules.items()}
        seen = Observations(self.padding, modules, outputs=bool(settings.refine))
        self.steps, order = find_steps(self.model, batches, self.selection, seen)
        with together(device):
            self.padding.learn(self.model, seen)
            first = next(batches.batches())
        judge = None if held_out is None else Batches(held_out, self.model, self.padding)
        self.train, self.held_out = split(batches, judge, rounds=isinstance(settings.refine, int) and settings.refine)
        self.layers = [layer for step in self.steps for layer in step.layers]
        self.pruned = modules_of(self.layers)
        self.store = Store(settings.activation_memory)
        self.front = Front(self.model, find_blocks(self.model, self.pruned, order), self.store)
        self.memory = self._require_memory()
        self.progress = Progress(settings.resume_dir, record_of(settings, self.layers, first), device)
        self.reports: list[LayerReport] = []

    def _require_memory(self) -> int:
        """State what the run takes beyond the model and the data."""
        copied = sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers()))
        masks = sum(layer.weight.numel() for layer in self.layers)
        work = max(work_bytes(layer, self.settings.options.dtype) for layer in self.layers)
        kept = self.settings.activation_memory if self.front.units else 0
        refine = self.settings.refine
        rounds = Refinement.bytes_needed(self.layers) if refine else 0
        rounds = rounds if isinstance(refine, int) else Masters.bytes_needed(self.model)
        on_disk = copied if self.settings.offload_dir is not None else 0
        total = copied - on_disk + masks + max(work, rounds) + 2 * CHUNK_BYTES + kept
        what = (
            f"CurvatureIHT: a copy of the model {(copied - on_disk) / 1e6:.0f} MB ({on_disk / 1e6:.0f} MB on disk), "
            f"the largest Hessian and its solver {work / 1e6:.0f} MB (refinement {rounds / 1e6:.0f} MB), up to "
            f"{kept / 1e6:.0f} MB of activations, {masks / 1e6:.0f} MB of masks"
        )
        require_memory(total, self.settings.max_memory, what)
        return total

    def result(self) -> CurvatureIHTResult:
        """Do what is not done yet."""
        if self.settings.allocation == "global":
            self._allocate()
        with meter(self.settings.progress, "CurvatureIHT", len(self.steps)) as done:
            for number, step in enumerate(self.steps):
                count = len(self.reports)
                self._step(number, step)
                errors = [report.error for report in self.reports[count:]]
                done.advance(step.layers[0].name, max(errors, default=None))
        solved = [layer for layer in self.layers if layer.name not in self.selection.left]
        if not solved:
            raise ValueError("calibration: none of the batches to learn from reaches a layer to prune")
        if self.settings.refine:
            self.front.clear()
        refinement = Refinement(self.dense, self.model, solved, self.train, self.held_out)
        rounds, best, distilled, nonzero = refinement.by(self.settings.refine, self.progress, self.settings.progress)
        masks = Masks(self.model, nonzero)
        shares, weights = shares_of(self.model, self.selection.left)
        warn_of_left(self.selection.left, shares)
        report = CurvatureIHTReport(
            self.reports,
            self.settings.options.method,
            time.perf_counter() - self.start,
            self.memory,
            self.selection.left,
            rounds,
            best,
            shares,
            weights,
            whole_notes([self.front], len(self.steps)),
            distilled,
        )
        return CurvatureIHTResult(self.model, report, masks)

    def _allocate(self) -> None:
        """Give every layer its share of the total."""
        names = [layer.name for layer in self.layers]
        done = self.progress.get("allocation", {}, lambda notes: {n: notes["shares"][n].number(0, 1) for n in names})
        if done is None:
            shares = allocate(self.steps, self.front, self.train, self.settings.options)
            self.progress.put("allocation", {}, {"shares": shares})
            self.front.clear()
        else:
            shares = done[1]
        for layer in self.layers:
            layer.target = shares[layer.name]

    def _step(self, number: int, step: Step) -> None:
        """Solve the layers of one step, or take them from the record."""
        key = f"step_{number:04d}"
        done = self.progress.get(key, {layer.name: layer.matrix() for layer in step.layers}, reports_of)
        if done is not None:
            tensors, reports = done
            for layer in step.layers:
                if reports:
                    layer.write(tensors[layer.name].to(layer.weight.device))
                else:
                    leave(layer, UNREACHED, self.selection)
            self.reports += reports
        else:
            self._solve(key, step)
        rest = [layer for later in self.steps[number + 1 :] for layer in later.layers]
        self.front.advance(self.pruned - modules_of(rest), self.pruned)

    def _solve(self, key: str, step: Step) -> None:
        device = step.layers[0].weight.device
        gram = self._moments(step, self.front)
        if not gram.count:  # what was pruned before sends all samples elsewhere
            gram = self._moments(step, Front(self.dense, [], self.store))
            if gram.count:
                logger.warning("%s: reached in the dense model only: solved on its inputs there", step.layers[0].where)
        hessian, columns = gram.hessian, gram.count
        idle = gram.idle if isinstance(gram, SliceGram) else ()
        del gram
        reports, tensors = [], {}
        for layer in step.layers:
            if not columns:
                leave(layer, UNREACHED, self.selection)
                tensors[layer.name] = layer.matrix()  # as it is: a record has all layers of its step
                continue
            with together(device):
                solved = solve_layer(layer, hessian, layer.target, self.settings.options)
            matrix = broadcast_(solved.matrix.to(layer.weight.dtype).contiguous())
            layer.write(matrix)
            tensors[layer.name] = matrix
            reports.append(report_of(layer, solved, columns, idle))
            logger.info("%s: %.2f %% zero, error %.3g", layer.where, 100 * reports[-1].sparsity, solved.error)
        self.progress.put(key, tensors, notes_of(reports))
        self.reports += reports

    def _moments(self, step: Step, front: Front) -> Gram | SliceGram:
        """The moments of a step's inputs, over all ranks."""
        with together(step.layers[0].weight.device):
            gram = hessian_of(front, self.train, step, self.settings.options.dtype)
        gram.all_reduce_()
        return gram
