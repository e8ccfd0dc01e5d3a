"""RigL: training that is sparse from the first step to the last (Evci, Gale, Menick, Castro & Elsen, ICML 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel._modes import outside_inference_mode
from sparse_accel.sharding import aligned, is_sharded, local_part, reshard, sharded_as
from sparse_accel.wrappers import bare_model

from .exchange.choice import count_of, largest_of
from .exchange.start import layer_densities, random_masks
from .masks import MaskedOptimizer, Masks, pack, placed_mask, unpack

__all__ = ["RigL", "layer_densities"]

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

    Sharded parameters (DTensors: FSDP2, HSDP, tensor parallelism) have masks sharded as they are, and the choice is
    that of one process with whole weights: bins of counts are summed over the processes, no weight or gradient is
    gathered. Shard the model first. ``state_dict()`` then has the masks as DTensors; give this object itself to
    ``torch.distributed.checkpoint``, beside model and optimizer (``{"rigl": rigl, ...}``), since its ``get_state_dict``
    leaves out what an optimizer's state has besides its own.

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
        ValueError: a number is out of its range, no weight is left to make sparse, or the parameters are flat
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
            sharded = any(map(is_sharded, model.parameters()))
            seed = _of_first(seed, process_group) if sharded else seed
            masks = Masks(bare_model(model, sharded=True), random_masks(model, sparsity, distribution, exclude, seed))
        self.masks, self.step_count, self.exchanged = masks, 0, 0
        self.options: dict[str, Any] = dict(
            zip(_OPTIONS, (sparsity, total_steps, every, fraction, end, distribution), strict=True)
        )
        self._group = process_group
        self._loaded: Mapping[str, Any] | None = None  # on its way through load_state_dict() of the optimizer
        self._dense: dict[Tensor, Tensor] = {}  # gradients of removed weights too, in the steps that exchange
        self._held: dict[Tensor, Tensor] = {}  # those of sharded parameters, as they were then
        self._broadcast()
        super().__init__(masks, optimizer)
        masks.apply_()
        reshard(masks._parameters.values())
        for parameter in filter(is_sharded, self._removed):
            if parameter.requires_grad:  # FSDP2 makes gradients where no hook of autograd sees them, and calls these
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._after_accumulation))
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
        return {name: count_of(local_part(mask), mask) / max(mask.numel(), 1) for name, mask in self.masks.items()}

    def _last(self) -> int:
        return int(self.options["end"] * self.options["total_steps"])

    def _is_due(self, step: int) -> bool:
        return step % self.options["every"] == 0 and step < self._last()

    def _of_gradient(self, parameter: nn.Parameter) -> Any:
        if is_sharded(parameter):
            return lambda grad: grad  # see _after_accumulation
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
    def _after_accumulation(self, parameter: Tensor) -> None:
        """Note the whole gradient of a sharded parameter, and clear what is of removed weights; those were cleared
        before too, so that they have the part of this backward pass alone."""
        if not self._handles or parameter.grad is None:
            return
        grad = aligned("the gradient", parameter.grad, parameter)
        if grad is not parameter.grad:
            parameter.grad = grad
        here, known = local_part(grad), self._held.get(parameter)
        removed = self._on(parameter, here)  # type: ignore[arg-type]
        if self._is_due(self.step_count + 1):
            dense = here.detach().clone()
            if known is grad and parameter in self._dense:
                dense += self._dense[parameter].masked_fill(~removed, 0)
            self._dense[parameter], self._held[parameter] = dense, grad
        here.masked_fill_(removed, 0)

    @torch.no_grad()
    def _after_step(self) -> None:
        self._clear()
        self.step_count += 1
        if self._is_due(self.step_count):
            self._exchange()
        self._dense.clear()
        self._held.clear()

    def _exchange(self) -> None:
        names = {parameter: name for name, parameter in self.masks._parameters.items()}
        together = _processes(self._group) > 1
        chosen = [p for p in self._removed if p.requires_grad and (together or is_sharded(p) or p in self._dense)]
        scores = []
        for p in chosen:
            here = local_part(p.detach())
            scores.append(self._dense.get(p, here.new_zeros(())).to(_wide(p)).expand_as(here).clone())
            if together and not is_sharded(p):  # every process, also those that did not use the weight
                torch.distributed.all_reduce(scores[-1], group=self._group)
        wrong = [count_of(~score.isfinite(), p) for p, score in zip(chosen, scores, strict=True)]
        if not scores or any(wrong):
            return
        share = self.options["fraction"] / 2 * (1 + math.cos(math.pi * self.step_count / self._last()))
        for parameter, score in zip(chosen, scores, strict=True):
            score.abs_()
            if not count_of(score != 0, parameter):  # no loss reaches it: nothing says what should come
                continue
            here = local_part(parameter.detach())
            removed = self._on(parameter, here)
            there = parameter.numel() - count_of(removed, parameter)
            count = min(int(share * there), parameter.numel() - there)
            stays = largest_of(here.abs().to(score), ~removed, there - count, parameter)
            comes = largest_of(score, ~stays, count, parameter)
            self.exchanged += count_of(comes & removed, parameter)
            self._set(names[parameter], parameter, stays | comes)
        self._clear()

    def _set(self, name: str, parameter: Tensor, mask: Tensor) -> None:
        """Take over a mask of this process's part."""
        self.masks._masks[name] = sharded_as(mask.to(self.masks[name].device), parameter)
        self._removed[parameter] = ~mask.to(parameter.device)  # type: ignore[index]

    def _broadcast(self) -> None:
        if _processes(self._group) < 2:
            return
        first = torch.distributed.get_global_rank(self._group, 0) if self._group is not None else 0
        for name, parameter in self.masks._parameters.items():
            if is_sharded(parameter):  # of one seed
                continue
            mask = self.masks[name].to(parameter.device, torch.uint8)
            torch.distributed.broadcast(mask, first, group=self._group)
            self.masks._masks[name] = mask.bool()

    def state_dict(self) -> dict[str, Any]:
        """Masks (bits; of sharded parameters DTensors), clock and options, as tensors and plain values, as in the
        optimizer's ``state_dict()``."""
        return {
            "step_count": self.step_count,
            "exchanged": self.exchanged,
            "options": dict(self.options),
            "masks": {name: mask.clone() if is_sharded(mask) else pack(mask) for name, mask in self.masks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; of the optimizer's state comes with ``load_state_dict()`` there.

        Raises:
            ValueError: the masks are not of this model's parameters, or the options are others. Nothing has changed.
        """
        masks = self._checked(state)
        for name, mask in masks.items():
            self._set(name, self.masks._parameters[name], local_part(mask))
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
        found = {}
        for name, held in state["masks"].items():
            whole = held if held.dtype == torch.bool else unpack(held.cpu(), list(self.masks[name].shape))
            if whole.shape != self.masks[name].shape:
                raise ValueError(f"masks: {name}: expected shape {tuple(self.masks[name].shape)}, got {whole.shape}")
            found[name] = placed_mask(whole, self.masks._parameters[name])
        return found

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


def _of_first(seed: int, group: Any) -> int:
    """The seed that the first of the processes has."""
    if _processes(group) < 2:
        return seed
    found = [seed]
    first = torch.distributed.get_global_rank(group, 0) if group is not None else 0
    torch.distributed.broadcast_object_list(found, first, group=group)
    return found[0]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _processes(group: Any) -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size(group) if ready else 1
