"""Proximal problems that SPPAM solves in closed form or by the native ops, as plain data on tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from sparse_accel.ops.glm import glm_loss, glm_prox


@dataclasses.dataclass(frozen=True)
class Block:
    """One parameter on its way through an exact step, with the numbers of its group."""

    param: Tensor
    z: Tensor  # the extrapolated point, shape of param
    lr: float
    weight_decay: float

    @property
    def damping(self) -> float:
        """What weight decay makes of z, and of lr."""
        return 1 / (1 + self.lr * self.weight_decay)


@dataclasses.dataclass(frozen=True)
class GlmLoss:
    """The mean loss of a generalized linear model over rows."""

    features: Tensor  # [b, d], dense or sparse_csr
    targets: Tensor  # [b] or [b, outputs]
    family: str
    mode: str
    delta: float

    def solve(self, blocks: list[Block]) -> tuple[Tensor, list[Tensor], int]:
        """The loss at the parameters, their new values, and the number of inner iterations.

        Raises:
            ValueError: the parameters are not those of a linear layer, or the data do not fit them.
        """
        weight, bias = self._layer(blocks)
        outputs, columns = weight.param.shape
        if self.features.dim() != 2 or self.features.shape[1] != columns:
            raise ValueError(f"features: expected shape [b, {columns}], got {tuple(self.features.shape)}")
        targets = self.targets.unsqueeze(1) if self.targets.dim() == 1 else self.targets
        if targets.shape != (self.features.shape[0], outputs):
            expected = f"[{self.features.shape[0]}, {outputs}]"
            raise ValueError(f"targets: expected shape {expected}, got {tuple(self.targets.shape)}")
        rows, z = self.features.detach(), weight.z * weight.damping
        # x = scale * u turns another lr of the bias into another size of its column
        scale = 1.0
        if bias is not None:
            scale = float((bias.lr * bias.damping / (weight.lr * weight.damping)) ** 0.5)
            rows = with_column(rows, scale)
            z = torch.cat([z, (bias.z * bias.damping / scale).unsqueeze(1)], 1)
        lr, new, iterations = weight.lr * weight.damping, torch.empty_like(z), 0
        for k in range(outputs):
            found = glm_prox(z[k], rows, targets[:, k], lr, self.family, self.mode, delta=self.delta)
            new[k] = found[0]
            iterations = max(iterations, int(found[1]))
        predictors = self.features.detach() @ weight.param.detach().T
        if bias is not None:
            predictors = predictors + bias.param.detach()
        loss = glm_loss(self.family, predictors, targets.to(predictors), self.delta).mean(0).sum()
        values = [new[:, columns] * scale if block is bias else new[:, :columns] for block in blocks]
        return loss, values, iterations

    @staticmethod
    def _layer(blocks: list[Block]) -> tuple[Block, Block | None]:
        weights = [block for block in blocks if block.param.dim() == 2]
        biases = [block for block in blocks if block.param.dim() == 1]
        shapes = [tuple(block.param.shape) for block in blocks]
        fits = len(weights) == 1 and len(biases) <= 1 and len(blocks) == len(weights) + len(biases)
        if not fits or (biases and biases[0].param.shape[0] != weights[0].param.shape[0]):
            raise ValueError(f"step_glm: expected the weight [outputs, d] and bias [outputs] of one linear layer, got "
                             f"parameters of shapes {shapes}")  # fmt: skip
        return weights[0], biases[0] if biases else None


def with_column(rows: Tensor, value: float) -> Tensor:
    """Rows with one more column, of one value; dense or CSR as they came."""
    if rows.layout != torch.sparse_csr:
        return torch.cat([rows, rows.new_full((rows.shape[0], 1), value)], 1)
    crow, count = rows.crow_indices(), rows.shape[0]
    steps = torch.arange(count + 1, device=crow.device, dtype=crow.dtype)
    ends = (crow + steps)[1:].long() - 1  # where the new entries go: behind those of their row
    old = torch.ones(rows.values().numel() + count, dtype=torch.bool, device=crow.device)
    old[ends] = False
    values = rows.values().new_full((old.numel(),), value)
    columns = rows.col_indices().new_full((old.numel(),), rows.shape[1])
    values[old], columns[old] = rows.values(), rows.col_indices()
    return torch.sparse_csr_tensor(
        crow + steps, columns, values, (count, rows.shape[1] + 1), check_invariants=False, device=rows.device
    )


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """``1/2 x'Ax - b'x`` of all parameters, flattened in their order into one vector x."""

    matrix: Tensor  # A [p, p], symmetric
    vector: Tensor  # b [p]

    def solve(self, blocks: list[Block], cache: dict[str, Any]) -> tuple[Tensor, list[Tensor], int]:
        """As :meth:`GlmLoss.solve`; ``cache`` keeps the factor of I + lr A for the next step.

        Raises:
            ValueError: sizes do not fit, groups differ in lr, or I + lr A is not positive definite.
        """
        x, z = (torch.cat([t.detach().reshape(-1) for t in ts]) for ts in zip(*((b.param, b.z) for b in blocks),
                                                                             strict=True))  # fmt: skip
        size = x.numel()
        if self.matrix.shape != (size, size) or self.vector.shape != (size,):
            raise ValueError(f"step_quadratic: expected A [{size}, {size}] and b [{size}], got "
                             f"{tuple(self.matrix.shape)} and {tuple(self.vector.shape)}")  # fmt: skip
        numbers = {(block.lr, block.weight_decay) for block in blocks}
        if len(numbers) != 1:
            raise ValueError("step_quadratic: expected one lr and weight_decay for all groups")
        lr, decay = numbers.pop()
        key = (lr, decay, self.matrix._version)
        if cache.get("matrix") is not self.matrix or cache.get("key") != key:
            system = self.matrix.detach() * lr
            system.diagonal().add_(1 + lr * decay)
            factor, info = torch.linalg.cholesky_ex(system)
            if int(info) or not bool(factor.isfinite().all()):
                raise ValueError(
                    "step_quadratic: I + lr A is not positive definite: A has an eigenvalue <= -1 / lr, or NaN"
                )
            cache.update(matrix=self.matrix, key=key, factor=factor)
        new = torch.cholesky_solve((z + lr * self.vector.detach()).unsqueeze(1), cache["factor"]).squeeze(1)
        loss = x @ (self.matrix.detach() @ x) / 2 - self.vector.detach() @ x
        parts = new.split([block.param.numel() for block in blocks])
        return loss, [part.view(block.param.shape) for part, block in zip(parts, blocks, strict=True)], 0


def check_exact(group: dict[str, Any]) -> None:
    """Raise ValueError for a parameter group that exact steps cannot move."""
    if group["maximize"] or group["penalty"] is not None:
        raise ValueError("exact steps take no penalty and no maximize: use step(closure)")
    for param in group["params"]:
        if not param.is_floating_point():
            raise ValueError(f"exact steps: expected real parameters, got {param.dtype}")
        if not param.requires_grad:
            raise ValueError(
                "exact steps move every parameter: expected none frozen, got one of shape "
                f"{tuple(param.shape)} with requires_grad=False; use step(closure)"
            )
        if float(group["lr"]) == 0:
            raise ValueError("exact steps: expected lr > 0, got 0")
