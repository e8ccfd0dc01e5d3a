"""What the proximal optimizers share: groups of plain values, checks, dtypes and strides, checkpoints, the swap."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from sparse_accel.groups.coupled import ENTRY
from sparse_accel.penalties import penalty_from_plain
from sparse_accel.sharding import aligned, is_sharded, local_part, sharded_as

from ._batch import Batch, Kept, check_lr, check_numbers, check_target, grouping_of, read_parameter, state_dtype
from .common.coupled import check_coupling, couple
from .common.critical import critical_strengths, warn_of_missed_targets
from .common.matrices import Couplings
from .common.plan import Plans
from .common.projection import step_batches, take_penalty
from .common.swap import ITERATE, MODE, SwapsIterates
from .common.target import CLOCK, follow_targets, target_key
from .common.value import value_of

# Refuses the capture of a step in a CUDA graph without capturable=True; torch renamed it.
_health_check = (
    getattr(Optimizer, "_accelerator_graph_capture_health_check", None) or Optimizer._cuda_graph_capture_health_check
)


class ProximalOptimizer(SwapsIterates):
    """Base of RMDA and ProxSGD. Subclasses name their group entries and state, and write ``_update``."""

    _group_defaults: ClassVar[dict[str, Any]] = {  # of groups saved before the entry existed
        "penalty": None,
        "transposed": False,
        "conv_groups": 1,
        "stacked": False,
        "maximize": False,
        "foreach": None,
        "fused": None,
        "capturable": False,
        "differentiable": False,
        MODE: True,
        CLOCK: 0,
        ENTRY: None,
    }
    _groups_follow: ClassVar[bool] = False  # whether groups become zero, or not, with the penalty's strength at once
    _scalar_state: ClassVar[dict[str, torch.dtype]] = {"step": torch.float32}  # [] tensors
    _tensor_state: ClassVar[tuple[str, ...]] = ()  # of the parameter's shape
    _spans_processes: ClassVar[bool] = False  # whether a group may lie across processes
    _op: ClassVar[str] = ""  # of the native ops, the one that takes the step; state in the order of its arguments
    _update: Callable[[dict[str, Any], Batch], None]  # of a group: updates batch.work and the state of batch.params

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        penalty = penalty_from_plain(defaults["penalty"])
        defaults = {**self._group_defaults, **defaults, "penalty": penalty.to_plain() if penalty else None}
        self._versions = {}
        self._plans, self._couplings = Plans(), Couplings()
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_versions", {})
        self._plans, self._couplings = Plans(), Couplings()
        for name, default in self._group_defaults.items():
            self.defaults.setdefault(name, default)
            for group in self.param_groups:
                group.setdefault(name, default)
        for param, values in self.state.items():
            for key, value in values.items() if isinstance(values, dict) else ():
                if isinstance(value, Kept):
                    values[key] = self._placed(param, key, value.tensor)
                elif key in self._scalar_state and not isinstance(value, Tensor):
                    values[key] = self._placed(param, key, torch.tensor(value, device="cpu"))

    @_disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; it may name its own ``penalty`` (or None). The dictionary itself is not kept.

        Raises:
            ValueError: an option is out of its range, or a parameter is already in another group.
        """
        super().add_param_group(dict(param_group) if isinstance(param_group, dict) else param_group)
        group = self.param_groups[-1]
        try:
            penalty = penalty_from_plain(group["penalty"])
            group["penalty"] = penalty.to_plain() if penalty else None  # a copy: groups share nothing
            self._check_group(group)
            group[MODE] = self.param_groups[0][MODE]  # of the optimizer as a whole
        except Exception:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError if an option of a group is out of its range."""
        check_lr(group["lr"])
        grouping_of(group, "element").check()
        check_target(group)
        check_coupling(group)
        take_penalty(self, group)
        if group["fused"] and group["foreach"]:
            raise ValueError("fused and foreach cannot both be True")
        if group["differentiable"] and (group["fused"] or group["foreach"]):
            raise ValueError(f"{'fused' if group['fused'] else 'foreach'} does not support differentiable=True")
        if group["fused"] and any(not param.is_floating_point() for param in group["params"]):
            raise ValueError("fused=True: expected floating-point parameters only")

    @staticmethod
    def _is_fused(group: dict[str, Any]) -> bool:
        """Whether the group takes the native ops: the default, unless another implementation is asked for. False for
        ``foreach`` or ``fused`` means the loop, as in torch."""
        fused: bool | None = group["fused"]
        return bool(fused) or (fused is None and group["foreach"] is None and not group["differentiable"])

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler hands grad_scale and found_inf to step() (no host synchronization)."""
        sharded = any(is_sharded(param) for group in self.param_groups for param in group["params"])
        return not sharded and all(self._is_fused(group) for group in self.param_groups)

    # ------------------------------------------------------------------ the step

    @_disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step. Gradients are checked in all groups before anything changes. As in torch, a parameter frozen by
        ``requires_grad_(False)`` still takes the gradient that it holds, until ``zero_grad()`` drops it.

        Args:
            closure: reevaluates the model with gradients enabled and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a gradient is sparse; a complex parameter is under a penalty; called inside
                :meth:`proximal_parameters` or in eval mode.
        """
        self._refuse_eval("step()")
        _health_check(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            plans = [self._plans.find(self, number) for number in range(len(self.param_groups))]
            pairs = list(zip(self.param_groups, plans, strict=True))
            gathered = [self._gather(group, need_grad=True) if plan is None else None for group, plan in pairs]
            for (group, plan), batches in zip(pairs, gathered, strict=True):
                self._begin(group)
                if plan is None:
                    step_batches(self, group, batches or [])
                elif not plan.take_step(self, group):
                    step_batches(self, group, plan.batches())
            for number, batches in enumerate(gathered):
                if batches is not None:
                    self._plans.keep(self, number, batches)
        if any(target_key(group) is not None for group in self.param_groups):
            self._follow_targets()
        return loss

    def _follow_targets(self) -> None:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return  # the graph has the strength as it is, and may not wait for the device
        with torch.no_grad():
            follow_targets(self.param_groups, functools.partial(critical_strengths, self), self._groups_follow)

    def _judge_end(self) -> None:
        warn_of_missed_targets(self)

    def _before_prox(self, group: dict[str, Any], batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """What the proximal operator is taken of, in the strides of ``batch.work`` (in a metric: times the metric),
        and by how much it multiplies the strength, ``[]``, of each tensor."""
        raise NotImplementedError(f"{type(self).__name__} does not tell critical strengths")

    def _prox_metric(self, group: dict[str, Any], batch: Batch) -> tuple[list[Tensor] | None, list[Tensor]]:
        """The last step's metric (None: 1), and what the penalty is multiplied by, ``[]`` float64, of each tensor."""
        raise NotImplementedError

    def _begin(self, group: dict[str, Any]) -> None:
        """Called for each group at the start of its part of the step."""

    def _gather(self, group: dict[str, Any], need_grad: bool) -> list[Batch]:
        """The group's parameters with a gradient (or with state, and not frozen) by device and dtype, all checked."""
        check_numbers(type(self).__name__, group)
        penalty = take_penalty(self, group)
        grouping = grouping_of(group, penalty.by) if penalty and group[ENTRY] is None else None
        batches: dict[tuple[Any, ...], Batch] = {}
        for param in dict.fromkeys(group["params"]):
            state = self.state.get(param, {})
            if param.grad is None if need_grad else "step" not in state or not param.requires_grad:
                continue
            one = read_parameter(type(self).__name__, param, param.grad if need_grad else None, grouping)
            if one.processes and (group["differentiable"] or not self._spans_processes):
                raise RuntimeError(
                    f"{type(self).__name__} needs each group on one process, and the groups by "
                    f"{grouping and grouping.by!r} of the parameter of shape {tuple(param.shape)} lie across several: "
                    "choose another by, or another of the optimizers"
                )
            shape = one.work.shape if param.is_complex() else param.shape
            for name in self._tensor_state:
                if name in state and state[name].shape != shape:
                    raise RuntimeError(
                        f"state {name!r} has shape {tuple(state[name].shape)}, its parameter {tuple(param.shape)}: "
                        "prune with compact(..., optimizer=optimizer), or make a new optimizer"
                    )
            batch = batches.setdefault((param.device, one.work.dtype, one.processes), Batch(processes=one.processes))
            scale = state.get("penalty_scale", 1.0)
            batch.add(param, one, penalty.strength * scale if penalty is not None and one.penalized else 0.0)
        return list(batches.values()) if group[ENTRY] is None else couple(self, group, batches.values(), need_grad)

    @staticmethod
    def _prox_name(group: dict[str, Any]) -> str:
        penalty = penalty_from_plain(group["penalty"])
        return penalty.prox_name if penalty and not penalty.stages else "soft"

    def _op_numbers(self, group: dict[str, Any]) -> tuple[Any, ...] | None:
        """What ``_op`` takes behind lr; None where the group's step is more than the op."""
        return None

    @staticmethod
    def _share(group: dict[str, Any]) -> float:
        """The share of the new point in a step."""
        return 1.0

    # ------------------------------------------------------------------ state

    def _make_state(self, batch: Batch) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not take coupled groups")  # makes what is missing

    def _scalar_device(self, param: Tensor) -> torch.device:
        """Where [] state lives: with the parameter, so that no step synchronizes (MPS has no float64)."""
        return torch.device("cpu") if param.device.type == "mps" else param.device

    def _new_scalars(self, param: Tensor) -> dict[str, Tensor]:
        device = self._scalar_device(param)
        return {key: torch.zeros((), dtype=dtype, device=device) for key, dtype in self._scalar_state.items()}

    def _like(self, work: Tensor, value: Tensor) -> Tensor:
        """A state tensor with the dtype of the state and the strides of ``work`` (itself if it has them)."""
        dtype = state_dtype(work, self._low)
        if value.dtype == dtype and value.stride() == work.stride() and value.device == work.device:
            return value
        return torch.empty_like(work, dtype=dtype, requires_grad=False).copy_(value)

    def _tensor_lists(self, batch: Batch) -> list[list[Tensor]]:
        """The batch's state, one list per name in ``_tensor_state`` and then per name in ``_scalar_state``."""
        if batch.lists is not None:
            return batch.lists
        lists: list[list[Tensor]] = [[] for _ in (*self._tensor_state, *self._scalar_state)]
        device = self._scalar_device(batch.params[0])
        for param, work in zip(batch.params, batch.work, strict=True):
            state = self.state[param]
            for name, values in zip(self._tensor_state, lists, strict=False):
                held = local_part(state[name])
                tensor = self._like(work, held)  # strides or dtype of a model may change
                if tensor is not held:
                    state[name] = sharded_as(tensor, param)
                values.append(tensor)
            for name, values in zip(self._scalar_state, lists[len(self._tensor_state) :], strict=True):
                if state[name].device != device:  # the model was moved
                    state[name] = state[name].to(device)
                values.append(state[name])
        return lists

    def _placed(self, param: Tensor, key: str, value: Tensor) -> Tensor:
        """A loaded state tensor on the device and of the dtype that the state of ``param`` has; a copy."""
        if key in self._scalar_state:
            return torch.empty((), dtype=self._scalar_state[key], device=self._scalar_device(param)).copy_(value)
        value = aligned(f"state {key!r}", value, param)
        dtype = state_dtype(param, self._low) if value.is_floating_point() and key != ITERATE else value.dtype
        return value.detach().to(device=param.device, dtype=dtype, copy=True)

    @_disable_dynamo
    def state_dict(self) -> StateDict:
        """The state as tensors and plain values, for ``torch.save`` and ``torch.load(..., weights_only=True)``."""
        for group in self.param_groups:
            take_penalty(self, group)  # may have been assigned since the last step
        return super().state_dict()

    @_disable_dynamo
    @torch.inference_mode(False)
    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a :meth:`state_dict`, copying it. Unlike torch's, float32 state of half-precision parameters stays
        float32: a resumed run gives the same bits as one that never stopped.

        The mode comes along: after a state that was saved in eval mode the optimizer is in eval mode, and
        :meth:`train` gives the parameters their training weights, whatever they hold until then.

        Raises:
            ValueError: the groups or their sizes do not match.
            RuntimeError: called inside :meth:`proximal_parameters`; state and parameters are not both sharded; or the
                state was saved in eval mode and lost the training weights. The optimizer stays as it was.
        """
        self._refuse_swapped("load_state_dict()")

        def keep(_: Optimizer, loaded: StateDict) -> StateDict:
            state = {
                param: {k: Kept(v) if isinstance(v, Tensor) else v for k, v in values.items()}
                if isinstance(values, dict)
                else values
                for param, values in loaded["state"].items()
            }
            return {**loaded, "state": state}

        handle = self.register_load_state_dict_pre_hook(keep)  # after the user's own pre-hooks
        before = {"state": self.state, "param_groups": self.param_groups}
        iterates = {param: state[ITERATE] for param, state in self.state.items() if ITERATE in state}
        try:
            super().load_state_dict(state_dict)
            self._check_loaded_mode()
        except Exception:
            self.__dict__.update(before)
            raise
        finally:
            handle.remove()
        self._after_load(iterates, self._versions)

    def penalty_value(self) -> float:
        """The regularizer at the parameters as they are, over all groups (synchronizes with the device)."""
        return sum(value_of(self, group) for group in self.param_groups)
