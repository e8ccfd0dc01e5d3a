"""Structured post-training pruning of whole networks: ISpaSP."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from sparse_accel._heap import kept_heap
from sparse_accel._modes import outside_inference_mode
from sparse_accel.calibration.data import check_bytes
from sparse_accel.calibration.padding import DEFAULT, Keys, Padding
from sparse_accel.calibration.replay.store import ACTIVATION_MEMORY
from sparse_accel.channels.graph import UnsupportedModelError
from sparse_accel.channels.runs import Examples, Method
from sparse_accel.mapped import copies_in
from sparse_accel.progress import Show, check_progress
from sparse_accel.prune.refinement.options import RefineOptions
from sparse_accel.prune.structured.choose import METHODS
from sparse_accel.prune.structured.layer import Settings
from sparse_accel.prune.structured.network.run import prune_network
from sparse_accel.prune.structured.report import StructuredResult
from sparse_accel.prune.structured.request import (
    REFITS,
    Request,
    as_patterns,
    check_budget,
    check_least,
    check_multiple,
    check_one_of,
    check_share,
    check_tolerance,
)
from sparse_accel.wrappers import bare_model


class ISpaSP:
    """Removes whole units (channels, neurons, attention heads) of a trained model, with calibration inputs alone.

    The widths of the model are pruned front to back. For each one the inputs of the layers that read it, its
    *consumers*, are recomputed on the pruned front, their first and second moments taken in one pass, the units chosen,
    and the consumers refit by least squares, so that what is left makes up for what goes. The units are removed
    physically at the end.

    Methods (``method``):

    - ``"gram_obs"``: backward elimination by the exact rise of the least-squares error (the default);
    - ``"ispasp"``: sparse signal recovery on the sums of activations, as in the paper;
    - ``"gram_cosamp"``: the same loop with energies and least squares;
    - ``"energy"``: the energy of each unit's contribution; ``"magnitude"``: norm of the producers' weights;
      ``"random"``.

    Refits (``refit``), least squares on the units kept with a ridge towards the old weights and a new bias:

    - ``"local"``: towards what the dense consumer makes of the pruned model's units;
    - ``"dense"``: towards the dense model's results, which undoes errors of the layers before;
    - ``"skip"``: towards the dense model's *sum* after the residual addition, the pruned shortcut given
      (``"dense"`` where there is no addition);
    - ``"auto"``: ``"skip"`` for convolutions in residual networks and ``"dense"`` for other convolutions and for
      linear layers before a ReLU, with targets that leave the result free where the ReLU after it gives zero
      (``relu_iterations`` passes) and the classifier refit at the end; ``"local"`` for the other linear layers, such as
      those of Transformers;
    - ``"bias"``: only the bias makes up for the mean of what was removed; ``None``: nothing changes but the removal.

    Args:
        model: any model that :func:`sparse_accel.compact` can follow. It does not change, whatever happens.
        example_inputs: a tensor, a tuple of positional inputs, a dict of keyword inputs, a list of such tuples and
            dicts or :class:`sparse_accel.Examples`, on the model's device.
        methods, unvisited: as for :func:`sparse_accel.compact`: what else users call, and what becomes of widths that
            layers may read which no example reaches.
        keep: share of each width's units to keep, rounded down, at least one. Of experts that are stacked in
            parameters every expert keeps so many neurons of its own, rounded down to rows of whole 16 bytes.
        method, refit: see above.
        scope: ``"inner"`` for widths inside blocks, ``"all"`` for those on the residual stream too. Channels that are
            gated by themselves (squeeze-and-excitation) are inside: their gate only multiplies.
        budget: share to keep of one cost of the model, ``dict(flops=0.5)``, ``dict(params=0.5)``, of all units
            together, ``dict(units=0.5)``, or milliseconds on the example, ``dict(latency_ms=2.0)``; it is spread over
            the widths by marginal error. Replaces ``keep``.
        keep_per_layer: patterns of widths (of blocks: ``"layer3.*"``), each with a share (float) or a number (int) of
            units to keep.
        round_to: sizes of layers that shares and ``budget`` lead to are rounded up to a multiple of it (of stacked
            experts: of it and of 16 bytes), by keeping the best of what would go, but never above the dense size.
        uniform: widths of one kind and size keep equally many units, also under a ``budget``. In a model with
            ``save_pretrained`` widths that no configuration describes then (GPT-2's heads) stay whole, with a note, so
            that ``from_pretrained`` builds what was saved.
        only: patterns of the widths to prune.
        skip: patterns of widths to leave alone. Patterns (``fnmatch``) match the width's name, its kind (``"heads"``)
            or the name of a layer that produces it (``"*.intermediate.dense"``).
        refit_head: refit the linear layer whose result is the model's output. None: if ``refit="auto"`` and a
            convolution was pruned.
        iterations: of ``"ispasp"``.
        relu_iterations: passes of the ReLU-aware refit; None: 3 if ``refit="auto"``, else 0.
        ridge: relative to the mean of the Gram matrix's diagonal.
        fresh_batches: take another pass over the calibration data for each iteration of ``"ispasp"``: pass a function
            that returns other data on every call.
        fine_tune: called as ``fine_tune(model, name)`` after each width with the model as small as it is by then;
            may train it in place, its shapes must stay.
        new_bias: whether a consumer without bias and BatchNorm may get a bias. None: not in a model with
            ``save_pretrained``, which ``from_pretrained`` rebuilds from a configuration without it. With True the
            configuration's flags (``attention_bias``, ``mlp_bias``) are switched on, and the layers beside get
            biases of zero; where there is no flag, a note says that only :func:`sparse_accel.save` keeps the bias.
        mask: name of an input ``[batch, length]`` that is zero for padding: linear layers leave those positions out of
            their statistics; or several, or by pattern of modules: see ``padding`` of
            :class:`~sparse_accel.prune.CurvatureIHT`. None takes all positions.
        batch_first: whether layers' inputs are ``[batch, length, ...]`` or ``[length, batch, ...]``; None: as found.
        max_memory: bytes that the statistics may take; more is refused before the run.
        cache_memory: bytes of activations that may be kept for the ReLU-aware refit instead of running the model again.
        tolerance: largest accepted difference, on the example, between the pruned model of full size and the smaller
            one, as for :func:`sparse_accel.compact`: by default also whatever is rounding alone, judged in float64.
        activation_memory: as for :class:`~sparse_accel.prune.CurvatureIHT`, of the dense and the pruned model together.
        measure: count MACs and take times on the example for the report; False leaves both out, and is quicker.
        resume_dir: folder for the finished widths. A run with the same settings, model and data goes on where the last
            one stopped, to the same bits on CPUs. Not with ``fine_tune``.
        offload_dir: folder in which copies of the model live, in memory-mapped files without names, for models that fit
            in memory once or not at all (:func:`sparse_accel.map_weights`); None: in memory.
        refine: fit the smaller model to the dense one by gradients, without labels: ``"auto"``, or a dict of settings,
            such as ``steps``, of :func:`sparse_accel.prune.refine`. None: the least squares above alone.
        seed: of ``"random"``.
        progress: True, False or a function, see :mod:`sparse_accel.progress`: a step is a width, its error the one
            after the refit.

    Raises:
        ValueError: an argument is not one of those allowed, or a pattern matches nothing.

    Source: Wolfe and Kyrillidis, "i-SpaSP", L4DC 2022 (arXiv 2112.04905), for ``"ispasp"`` and the front-to-back
    scheme.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = ISpaSP(net, torch.zeros(1, 4), keep=0.5).run(torch.randn(64, 4))
        >>> result.model
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=2, bias=True)
        )
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        keep: float = 0.5,
        *,
        methods: Sequence[Method] | None = None,
        unvisited: str | None = None,
        method: str = "gram_obs",
        refit: str | None = "auto",
        scope: str = "inner",
        budget: Mapping[str, float] | None = None,
        keep_per_layer: Mapping[str, float | int] | None = None,
        round_to: int = 1,
        uniform: bool = False,
        only: Sequence[str] | None = None,
        skip: Sequence[str] = (),
        refit_head: bool | None = None,
        iterations: int = 20,
        relu_iterations: int | None = None,
        ridge: float = 1e-3,
        fresh_batches: bool = False,
        fine_tune: Callable[[nn.Module, str], None] | None = None,
        new_bias: bool | None = None,
        mask: Keys = DEFAULT,
        batch_first: bool | None = None,
        max_memory: int | None = None,
        cache_memory: int = 1 << 30,
        activation_memory: int = ACTIVATION_MEMORY,
        tolerance: float | None = None,
        measure: bool = True,
        resume_dir: str | os.PathLike[str] | None = None,
        offload_dir: str | os.PathLike[str] | None = None,
        refine: Any = None,
        seed: int = 0,
        progress: Show = None,
    ) -> None:
        check_one_of("method", method, METHODS)
        check_one_of("refit", refit, REFITS)
        check_one_of("scope", scope, ("inner", "all"))
        check_share("keep", keep)
        check_multiple("round_to", round_to)
        check_budget(budget)
        check_least("iterations", iterations, 1)
        check_least("relu_iterations", relu_iterations, 0)
        self.model = bare_model(model, UnsupportedModelError)
        self.example_inputs = Examples.of(example_inputs, methods, unvisited).check(self.model)
        self.budget = None if budget is None else dict(budget)
        patterns, skipped = as_patterns("only", only), as_patterns("skip", skip) or []
        self.request = Request(
            float(keep), dict(keep_per_layer or {}), scope, patterns, skipped, method, round_to, uniform
        )
        self.refit_head = refit_head
        self.fine_tune = fine_tune
        check_bytes("activation_memory", activation_memory)
        check_tolerance("tolerance", tolerance)
        self.max_memory, self.activation_memory, self.tolerance = max_memory, activation_memory, tolerance
        self.offload_dir, self.resume_dir, self.measure = offload_dir, resume_dir, measure
        if resume_dir is not None and fine_tune is not None:
            raise ValueError("resume_dir: expected None with fine_tune, whose changes are not recorded")
        self.mask, self.batch_first = mask, batch_first
        check_progress(progress)
        self.progress = progress
        self.refine = RefineOptions.of(refine)
        Padding(mask, batch_first, "mask")  # refuses what is none
        self.settings = Settings(
            method=method,
            refit=refit,
            iterations=iterations,
            relu_iterations=(3 if refit == "auto" else 0) if relu_iterations is None else relu_iterations,
            ridge=ridge,
            new_bias=new_bias,
            fresh_batches=fresh_batches,
            cache_bytes=cache_memory,
            seed=seed,
        )

    @outside_inference_mode
    def run(self, calibration: Any, *, batch_size: int | None = None) -> StructuredResult:
        """Prune.

        Args:
            calibration: inputs like those the model will see: a tensor, an iterable of model inputs, or a function
                that returns one. Every call of every batch counts; the batches' order does not, to the same bits.
                Of tuples as many leading elements are used as the model takes;
                ``Calibration(loader, select=lambda item: item[1])`` picks others.
            batch_size: that a tensor is split into; None: as :class:`Calibration` chooses.

        Raises:
            UnsupportedModelError: the model cannot be followed; the message names the module.
            PruneError: a width cannot be pruned as asked; the message names it.
            OutputMismatchError: the smaller model differs from the pruned one of full size by more than ``tolerance``.
                Its ``result`` is what would have been returned; so is that of an UnsupportedModelError at the end.
            ValueError: the data or ``max_memory`` do not fit.
            CheckpointError: ``resume_dir`` holds another run, or a damaged one.
        """
        with copies_in(self.offload_dir), kept_heap():
            return prune_network(self, calibration, batch_size)
