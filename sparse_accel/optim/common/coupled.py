"""Steps of groups that lie over several tensors (:func:`sparse_accel.coupled_groups`).

The members of a width are brought together in one matrix, a row for each unit, and likewise their gradients and state.
To the optimizer that matrix is a parameter with a group in each row: the step, its penalty and the proximal iterate are
those of its own ops, with one threshold or one scalar root for all that belongs to a unit. Afterwards all goes back to
where it lives. Entries that belong to no unit take the step as one more such parameter, without penalty. Of sharded
parameters nothing is brought together: :mod:`.spread`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel.groups import GroupLayout
from sparse_accel.groups.coupled import ENTRY, check_coupled
from sparse_accel.optim._batch import Batch
from sparse_accel.penalties import GroupL0, GroupLasso, penalty_from_plain
from sparse_accel.sharding import is_flat, is_sharded

from .matrices import Couplings, Matrix, there
from .spread import join, takes_part

_STAYS = ("anchor",)  # state that a step only reads


def check_coupling(group: dict[str, Any]) -> None:
    """Raise ValueError where a parameter group is coupled and an option of it does not go with that."""
    if group[ENTRY] is None:
        return
    penalty = penalty_from_plain(group["penalty"])
    known = isinstance(penalty, (GroupLasso, GroupL0)) and penalty.by not in ("element", "kernel")
    if penalty is not None and (penalty.stages or not known):
        raise ValueError(f"coupled: expected GroupLasso (without l2) or GroupL0 (by is not looked at), got {penalty!r}")
    if group["differentiable"]:
        raise ValueError("coupled: expected differentiable=False")
    for param in group["params"]:
        if is_flat(param):
            raise ValueError(
                f"coupled: expected parameters of their own shape, got a flat one of shape {tuple(param.shape)} "
                "(FSDP1, DeepSpeed ZeRO-3): shard by torch.distributed.fsdp.fully_shard"
            )
        if not param.is_floating_point():
            raise ValueError(f"coupled: expected real parameters, got {param.dtype} of shape {tuple(param.shape)}")
    check_coupled(group[ENTRY], group["params"], group.get("param_names"))


def couple(optimizer: Any, group: dict[str, Any], batches: Iterable[Batch], steps: bool) -> list[Batch]:
    """The batches of a coupled parameter group, as :meth:`Coupled.copy` brings them together.

    Args:
        optimizer: of the group.
        group: of it.
        batches: its parameters that take part.
        steps: whether state is to be made, and written back.

    Raises:
        RuntimeError: of a width some parameters take part and others do not; or they lie on several devices.
    """
    batches = list(batches)
    if any(map(is_sharded, group["params"])):
        return join(optimizer, group, batches, steps)
    names = group.get("param_names") or [f"that of shape {tuple(param.shape)}" for param in group["params"]]
    if len({param.device for param in group["params"]}) > 1:
        raise RuntimeError("coupled: expected the parameters of a group on one device, got several: couple the widths "
                           "of each device apart (coupled_groups(..., only=...))")  # fmt: skip
    here = {id(param) for batch in batches for param in batch.params}
    found: list[Batch] = []
    for lot in optimizer._couplings.of(group):
        own = []
        for matrix in lot:
            numbers = [piece.number for piece in matrix.pieces]
            if takes_part(
                matrix.name, [(names[number], id(group["params"][number]) in here) for number in numbers], steps
            ):
                own.append(matrix)
        if own:
            found.append(Coupled(optimizer, group, batches, own, steps))
    return found


class Coupled(Batch):
    """Some matrices that are not made yet; arguments as for :func:`couple`."""

    def __init__(
        self, optimizer: Any, group: dict[str, Any], batches: list[Batch], matrices: list[Matrix], steps: bool
    ) -> None:
        numbers = dict.fromkeys(piece.number for matrix in matrices for piece in matrix.pieces)
        super().__init__(params=[group["params"][number] for number in numbers])
        self._optimizer, self._group, self._batches, self._steps = optimizer, group, batches, steps
        self._matrices = matrices
        self.fresh = steps and not any("step" in optimizer.state[param] for param in self.params)

    def copy(self) -> Batch:
        """The matrices, from parameters, gradients and state as they are now; where steps are taken, state is made."""
        optimizer, group = self._optimizer, self._group
        number_of = {id(param): number for number, param in enumerate(group["params"])}
        count = len(optimizer._tensor_state) + len(optimizer._scalar_state)
        blank: list[Tensor | None] = [None] * len(group["params"])
        work, grads, lists = list(blank), list(blank), [list(blank) for _ in range(count)]
        for batch in self._batches:
            if self._steps:
                optimizer._make_state(batch)
            columns = optimizer._tensor_lists(batch)
            for index, param in enumerate(batch.params):
                number = number_of[id(param)]
                work[number] = batch.work[index]
                grads[number] = batch.grads[index] if batch.grads else None
                for own, column in zip(lists, columns, strict=True):
                    own[number] = column[index]
        penalty = penalty_from_plain(group["penalty"])
        packed = Packed(self, work, lists)
        for matrix in self._matrices:
            packed.bring(matrix, grads, penalty)
        return packed


class Packed(Batch):
    """Matrices as the parameters of a batch.

    Attributes:
        matrices: what they are made of.
        factors: by what the strength is multiplied, of each; 0 without a penalty.
    """

    def __init__(self, coupled: Coupled, home: list[Tensor | None], lists: list[list[Tensor | None]]) -> None:
        super().__init__(params=coupled.params, fresh=coupled.fresh)
        self._coupled, self._home, self._states = coupled, home, lists
        self._count = len(coupled._optimizer._tensor_state)
        self.matrices: list[Matrix] = []
        self.factors: list[float] = []
        self.lists = [[] for _ in lists]

    def bring(self, matrix: Matrix, grads: list[Tensor | None], penalty: Any) -> None:
        """Add a matrix."""
        assert self.lists is not None
        homes = [there(self._home[piece.number]) for piece in matrix.pieces]
        dtype, device = homes[0].dtype, homes[0].device
        for home in self._coupled.params:  # one dtype, as multi-tensor ops want it
            dtype = torch.promote_types(dtype, home.dtype)
        self.work.append(matrix.take(self._home, dtype, device))
        if self._coupled._steps:
            self.grads.append(matrix.take(grads, dtype, device))
        first = matrix.pieces[0].number
        for index, (own, states) in enumerate(zip(self.lists, self._states, strict=True)):
            if index < self._count:
                kind = there(states[first]).dtype
                for tensor in states:
                    kind = kind if tensor is None else torch.promote_types(kind, tensor.dtype)
                own.append(matrix.take(states, kind, device))
            else:
                own.append(there(states[first]).clone())
        self.matrices.append(matrix)
        self.layouts.append(GroupLayout(1, matrix.units, matrix.columns))
        self.factors.append(_factor(matrix, penalty))
        self.strengths.append(0.0 if penalty is None else penalty.strength * self.factors[-1])
        self.sizes.append(0)

    def copy(self) -> Batch:
        """Itself: it is made for one use."""
        return self

    def cost(self, index: int, costs: Sequence[float] | None) -> float:
        """Multiplications by one element of a matrix, on average; costs: by one of each parameter."""
        matrix = self.matrices[index]
        if costs is None or not matrix.columns:
            return 1.0
        return sum(piece.columns * costs[piece.number] for piece in matrix.pieces) / matrix.columns

    def write_back(self) -> None:
        """Bring all back to where it lives: the weights, and after a step state and clocks."""
        assert self.lists is not None
        names = self._coupled._optimizer._tensor_state
        for index, matrix in enumerate(self.matrices):
            matrix.give(self._home, self.work[index])
            if not self._coupled._steps:
                continue
            for number, (own, states) in enumerate(zip(self.lists, self._states, strict=True)):
                if number < self._count:
                    if names[number] not in _STAYS:
                        matrix.give(states, own[index])
                else:
                    for piece in matrix.pieces:
                        there(states[piece.number]).copy_(own[index])
        for batch in self._coupled._batches:
            batch.write_back()


def _factor(matrix: Matrix, penalty: Any) -> float:
    """By what a penalty's strength is multiplied: after a removal groups count what they counted before."""
    if penalty is None or not matrix.penalized:
        return 0.0
    ratio = matrix.size / matrix.columns
    return ratio if penalty.prox_name == "hard" else ratio**0.5


@torch.no_grad()
def coupled_value(group: dict[str, Any], couplings: Couplings) -> float:
    """The penalty of a coupled parameter group (synchronizes with the device)."""
    penalty = penalty_from_plain(group["penalty"])
    total = 0.0
    params = [param.detach() for param in group["params"]]
    for matrix in itertools.chain(*couplings.of(group)) if penalty is not None else ():
        if matrix.penalized:
            whole = matrix.take(params, torch.float64, params[matrix.pieces[0].number].device)
            if penalty.prox_name == "hard":  # type: ignore[union-attr]
                total += matrix.size * int(whole.any(1).sum())
            else:
                total += matrix.size**0.5 * float(whole.square().sum(1).sqrt().sum())
    return 0.0 if penalty is None else penalty.strength * total
