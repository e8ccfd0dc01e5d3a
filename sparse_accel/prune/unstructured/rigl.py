"""RigL: training that is sparse from the first step to the last (Evci, Gale, Menick, Castro & Elsen, ICML 2020)."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel._modes import outside_inference_mode
from sparse_accel.groups.models import named_groupings
from sparse_accel.ops import topk_threshold_
from sparse_accel.sharding import is_sharded
from sparse_accel.wrappers import bare_model

from .masks import MaskedOptimizer, Masks, pack, unpack

__all__ = ["RigL"]

KEY = "sparse_accel.rigl"  # in the state_dict() of the optimizer
_OPTIONS = ("sparsity", "total_steps", "every", "fraction", "end", "distribution")


class RigL(MaskedOptimizer):
    r"""Keeps a network sparse while any optimizer trains it, and moves the zeros: the smallest weights make room for
    those with the largest gradients.

    Each layer keeps its number of weights. After every ``every``-th step until ``end * total_steps``, of the weights of
    a layer that are there the share

    .. math::
        f(t) = \frac{\text{fraction}}{2}\left(1 + \cos\frac{\pi\,t}{\text{end}\cdot T}\right)

    (T is ``total_steps``) with the least magnitude goes, and as many of those that are not there, with the largest
    gradient of the whole loss, come: at zero, with the optimizer's state at zero. What has just gone may come again,
    and is then as it was. That is Algorithm 1 of Evci et al., "Rigging the lottery: making all tickets winners", with
    one difference: the optimizer takes its step before the exchange too, so that schedules count on.

    The optimizer is used as before, or whatever holds it (accelerate's, ``Trainer``, Lightning): its ``step()`` does
    all. Its ``state_dict()`` has the masks and the clock besides, under ``"sparse_accel.rigl"``, and
    ``load_state_dict()`` brings them back, so that a resumed run has the bits of one that was not stopped.

    Gradients that accumulate over several backward passes count together, and gradient clipping sees those of the
    weights that are there. Under ``torch.distributed`` (DDP) the gradients that choose are averaged over the processes,
    and the first masks are those of rank 0: all ranks make the same choice. Where one is not finite (the overflow of a
    GradScaler) the exchange is left out. The host waits for the device at exchanges alone.

    Args:
        model: trained by the optimizer; a wrapper counts as the module inside. Its weights that are removed are set to
            zero at once.
        optimizer: any of torch, with state by parameter, or of this package, or a wrapper around one. State that has
            not the parameter's shape (the factors of Adafactor) is left as it is.
        sparsity: share in [0, 1) of the weights that is zero, of all layers together.
        total_steps: optimizer steps of the whole training, >= 1.
        every: steps between exchanges, >= 1.
        fraction: of a layer's weights that is exchanged at first, in [0, 1].
        end: share of the training after which the masks stay, in [0, 1].
        distribution: ``"erk"`` (Erdos-Renyi-Kernel: a layer's density goes with the sum of its dimensions over their
            product, so that small layers keep more) or ``"uniform"`` (the same in every layer).
        exclude: patterns of parameter names (shell wildcards) that stay dense, and do not count.
        masks: where to start, and with which number of weights in each layer, instead of at random (``sparsity``,
            ``distribution`` and ``exclude`` are then not looked at).
        seed: of the first masks.
        process_group: of processes that train together; None: all, where ``torch.distributed`` is initialized.

    Raises:
        ValueError: a number is out of its range, no weight is left to make sparse, or the parameters are flat, sharded
            or not the optimizer's.

    Attributes:
        masks: :class:`sparse_accel.prune.Masks`, as they are now.
        step_count: optimizer steps until now.
        exchanged: weights that came so far.

    Example:
        >>> import sparse_accel as sa
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> opt = torch.optim.AdamW(net.parameters(), lr=1e-2)
        >>> rigl = sa.RigL(net, opt, sparsity=0.9, total_steps=100, every=10)
        >>> for _ in range(20):
        ...     net(torch.ones(4, 8)).square().mean().backward()
        ...     opt.step()
        ...     opt.zero_grad()
        >>> rigl
        RigL(sparsity 0.9000, step 20 of 100)
    """

    @outside_inference_mode
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: float = 0.9,
        *,
        total_steps: int,
        every: int = 100,
        fraction: float = 0.3,
        end: float = 0.75,
        distribution: str = "erk",
        exclude: Sequence[str] = (),
        masks: Masks | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        for name, count in (("total_steps", total_steps), ("every", every)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}: expected a number of steps >= 1, got {count!r}")
        for name, share, below in (("sparsity", sparsity, True), ("fraction", fraction, False), ("end", end, False)):
            number = isinstance(share, (int, float)) and not isinstance(share, bool)
            if not number or not 0 <= share <= 1 or (below and share == 1):
                raise ValueError(f"{name}: expected a number in [0, 1{')' if below else ']'}, got {share!r}")
        if masks is None:
            masks = Masks(bare_model(model), _start(model, sparsity, distribution, exclude, seed))
        if any(map(is_sharded, masks._parameters.values())):
            raise ValueError(
                "model: expected parameters that are not sharded, got DTensors (Masks take them, as they are)"
            )
        self.masks, self.step_count, self.exchanged = masks, 0, 0
        self.options: dict[str, Any] = dict(
            zip(_OPTIONS, (sparsity, total_steps, every, fraction, end, distribution), strict=True)
        )
        self._group = process_group
        self._loaded: Mapping[str, Any] | None = None  # on its way through load_state_dict() of the optimizer
        self._dense: dict[Tensor, Tensor] = {}  # gradients of removed weights too, in the steps that exchange
        self._broadcast()
        super().__init__(masks, optimizer)
        masks.apply_()
        self._handles.append(self._inside.register_state_dict_post_hook(self._add_state))
        self._handles.append(self._inside.register_load_state_dict_pre_hook(self._take_state))

    def __repr__(self) -> str:
        return f"RigL(sparsity {self.sparsity:.4f}, step {self.step_count} of {self.options['total_steps']})"

    @property
    def sparsity(self) -> float:
        """Share of the weights under masks that is removed."""
        return self.masks.sparsity

    @property
    def densities(self) -> dict[str, float]:
        """Share of the weights that is there, by parameter name."""
        return {name: float(mask.sum()) / max(mask.numel(), 1) for name, mask in self.masks.items()}

    def _last(self) -> int:
        return int(self.options["end"] * self.options["total_steps"])

    def _is_due(self, step: int) -> bool:
        return step % self.options["every"] == 0 and step < self._last()

    def _of_gradient(self, parameter: nn.Parameter) -> Any:
        masked = super()._of_gradient(parameter)

        def hook(grad: Tensor) -> Tensor:
            if self._handles and self._is_due(self.step_count + 1):
                with torch.no_grad():
                    before = None if parameter.grad is None else self._dense.get(parameter)
                    self._dense[parameter] = grad.detach().clone() if before is None else before + grad
            removed: Tensor = masked(grad)
            return removed

        return hook

    @torch.no_grad()
    def _after_step(self) -> None:
        self._clear()
        self.step_count += 1
        if self._is_due(self.step_count):
            self._exchange()
        self._dense.clear()

    def _exchange(self) -> None:
        names = {parameter: name for name, parameter in self.masks._parameters.items()}
        together = _processes(self._group) > 1
        chosen = [p for p in self._removed if p.requires_grad and (together or p in self._dense)]
        scores = [self._dense.get(p, p.new_zeros(())).to(_wide(p)).expand_as(p).clone() for p in chosen]
        for score in scores if together else ():  # every process, also those that did not use the weight
            torch.distributed.all_reduce(score, group=self._group)
        if not scores or not all(bool(score.isfinite().all()) for score in scores):
            return
        share = self.options["fraction"] / 2 * (1 + math.cos(math.pi * self.step_count / self._last()))
        for parameter, score in zip(chosen, scores, strict=True):
            score.abs_()
            if not score.any():  # no loss reaches it: nothing says what should come
                continue
            removed = self._on(parameter, parameter)
            there = removed.numel() - int(removed.sum())
            count = min(int(share * there), removed.numel() - there)
            stays = _largest(parameter.detach().abs().to(score), ~removed, there - count)
            comes = _largest(score, ~stays, count)
            self.exchanged += int((comes & removed).sum())
            self._set(names[parameter], parameter, stays | comes)
        self._clear()

    def _set(self, name: str, parameter: Tensor, mask: Tensor) -> None:
        self.masks._masks[name] = mask.to(self.masks[name].device)
        self._removed[parameter] = ~mask.to(parameter.device)  # type: ignore[index]

    def _broadcast(self) -> None:
        if _processes(self._group) < 2:
            return
        first = torch.distributed.get_global_rank(self._group, 0) if self._group is not None else 0
        for name, parameter in self.masks._parameters.items():
            mask = self.masks[name].to(parameter.device, torch.uint8)
            torch.distributed.broadcast(mask, first, group=self._group)
            self.masks._masks[name] = mask.bool()

    def state_dict(self) -> dict[str, Any]:
        """Masks (bits), clock and options, as tensors and plain values, as in the optimizer's ``state_dict()``."""
        return {
            "step_count": self.step_count,
            "exchanged": self.exchanged,
            "options": dict(self.options),
            "masks": {name: pack(mask) for name, mask in self.masks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; of the optimizer's state comes with ``load_state_dict()`` there.

        Raises:
            ValueError: the masks are not of this model's parameters, or the options are others. Nothing has changed.
        """
        masks = self._checked(state)
        for name, mask in masks.items():
            self._set(name, self.masks._parameters[name], mask)
        self.step_count, self.exchanged = int(state["step_count"]), int(state["exchanged"])
        self._dense.clear()
        self._clear()

    def _checked(self, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """The masks of a state that fits."""
        if dict(state["options"]) != self.options:
            raise ValueError(f"options: expected those of the saved run, {dict(state['options'])}, got {self.options}")
        if set(state["masks"]) != set(self.masks):
            differ = sorted(set(state["masks"]) ^ set(self.masks))
            raise ValueError(f"masks: expected those of the saved run: {', '.join(differ)} are in one of the two alone")
        return {name: unpack(bits.cpu(), list(self.masks[name].shape)) for name, bits in state["masks"].items()}

    def _after_load(self) -> None:
        if self._loaded is not None:
            self.load_state_dict(self._loaded)
        self._loaded = None
        self._clear()

    def _add_state(self, _: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, KEY: self.state_dict()}

    def _take_state(self, _: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        self._loaded = state.get(KEY)
        if self._loaded is not None:
            self._checked(self._loaded)
        return {key: value for key, value in state.items() if key != KEY}


def _start(
    model: nn.Module, sparsity: float, distribution: str, exclude: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """Random masks with the number of weights that each layer keeps."""
    if distribution not in ("erk", "uniform"):
        raise ValueError(f"distribution: expected 'erk' or 'uniform', got {distribution!r}")
    shapes = {
        name: parameter.shape
        for name, parameter, grouping in named_groupings(model, "element")
        if grouping is not None
        and parameter.numel()
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not shapes:
        raise ValueError("model: expected weights of Linear or convolution layers that are not excluded, it has none")
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, density in layer_densities(shapes, 1 - sparsity, distribution).items():
        count = shapes[name].numel()
        order = torch.randperm(count, generator=generator, device="cpu")
        mask = torch.zeros(count, dtype=torch.bool, device="cpu")
        mask[order[: round(density * count)]] = True
        masks[name] = mask.view(shapes[name])
    return masks


def layer_densities(shapes: Mapping[str, Sequence[int]], density: float, distribution: str) -> dict[str, float]:
    """The share of its weights that each layer keeps, so that all together keep ``density``.

    ``"erk"``: in proportion to the sum of the dimensions over their product; a layer that would keep more than all is
    dense, and the others keep less.

    Args:
        shapes: of the weights, by name.
        density: in (0, 1].
        distribution: ``"erk"`` or ``"uniform"``.

    Example:
        >>> found = layer_densities({"a": (100, 100), "b": (10, 10)}, 0.1, "erk")
        >>> {name: round(share, 4) for name, share in found.items()}
        {'a': 0.0918, 'b': 0.9182}
    """
    if distribution == "uniform":
        return dict.fromkeys(shapes, density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        open_ones = {name: raw[name] for name in shapes if name not in dense}
        total = sum(raw[name] * sizes[name] for name in open_ones)
        scale = rest / total if total else 0.0
        over = {name for name, value in open_ones.items() if value * scale > 1}
        if not over:
            return {name: 1.0 if name in dense else raw[name] * scale for name in shapes}
        dense |= over


def _largest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """A mask of the ``count`` largest of the values where ``among`` is true; ties go to the lowest index."""
    scores = torch.where(among, values, -1.0).contiguous()
    return topk_threshold_(torch.ones_like(scores), scores, count) & among


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _processes(group: Any) -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size(group) if ready else 1
