"""Layers that hold only the kept weights of a linear map, in place of dense ones."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.channels.graph import is_conv1d_linear
from sparse_accel.ops.bitmask import VALUE_DTYPES, Bitmask
from sparse_accel.ops.csr_linear import csr_linear
from sparse_accel.ops.sparse_linear import linear_of_parts

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FROM_SHELL = frozenset(
    ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
     "groups", "padding_mode", "nf", "nx")
)  # fmt: skip


def matrix_of(module: nn.Module) -> Tensor | None:
    """The weight of an ``nn.Linear``, a 1 × 1 convolution or Hugging Face's ``Conv1D`` as ``[outputs, inputs]``, a
    view; None for other modules.

    Example:
        >>> matrix_of(nn.Conv2d(3, 5, 1)).shape, matrix_of(nn.Conv2d(3, 5, 3))
        (torch.Size([5, 3]), None)
    """
    if type(module) is nn.Linear:
        return module.weight.detach()
    if type(module) in _CONVOLUTIONS:
        assert isinstance(module, nn.modules.conv._ConvNd)
        padded = module.padding != "valid" and any(size not in (0, "0") for size in module.padding)
        plain = module.groups == 1 and not padded and all(size == 1 for size in module.kernel_size)
        return module.weight.detach().flatten(1) if plain else None
    if is_conv1d_linear(module):
        return module.weight.detach().t()  # type: ignore[operator]
    return None


class SparseLayer(nn.Module):
    """A linear map of which only the kept weights are stored. Made by :func:`sparse_accel.accelerate`.

    It has the attributes of the layer that it replaces. Its ``weight`` is the dense one, unpacked at every look; what
    is trained is ``values``.

    Attributes:
        form: how the weights are stored, ``"bitmask"`` or ``"csr"``.
        rows: outputs.
        columns: inputs.
        bias: as before, or None.
    """

    form = ""
    bias: nn.Parameter | None
    values: Tensor

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        matrix = matrix_of(dense)
        assert matrix is not None
        self.rows, self.columns = matrix.shape
        shell = copy.copy(dense)  # the dense layer without its tensors
        shell._parameters = {"weight": None, "bias": None}
        self.__dict__["_shell"] = [shell]  # in a list: no submodule
        self.training = dense.training
        bias = dense.bias
        self.register_parameter("bias", bias)  # type: ignore[arg-type]

    @property
    def kind(self) -> str:
        """The class of the layer that this one replaces."""
        return type(self._shell[0]).__name__

    def __getattr__(self, name: str) -> Any:
        if name in _FROM_SHELL and "_shell" in self.__dict__:
            return getattr(self._shell[0], name)
        return super().__getattr__(name)

    @property
    def weight(self) -> Tensor:
        """The dense weight in its shape."""
        return self._as_weight(self.unpack())

    def unpack(self) -> Tensor:
        """The dense weight ``[rows, columns]``."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """``x @ W.T + bias``"""
        raise NotImplementedError

    def densify(self) -> nn.Module:
        """The dense layer again, with the values of now."""
        dense: nn.Module = copy.deepcopy(self._shell[0])
        weight = self.weight.detach()
        dtype = weight.dtype if self.bias is None else self.bias.dtype
        dense.weight = nn.Parameter(weight.to(dtype, copy=True), requires_grad=self.trainable)
        dense.register_parameter("bias", self.bias)
        return dense.train(self.training)

    @property
    def trainable(self) -> bool:
        """Whether the values are trained."""
        return bool(self.values.requires_grad)

    def _as_weight(self, matrix: Tensor) -> Tensor:
        shell = self._shell[0]
        if isinstance(shell, nn.modules.conv._ConvNd):
            return matrix.reshape(*matrix.shape, *shell.kernel_size)
        return matrix.t().contiguous() if is_conv1d_shell(shell) else matrix

    def forward(self, x: Tensor) -> Tensor:
        """As the dense layer."""
        shell = self._shell[0]
        wanted = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            wanted = torch.get_autocast_dtype(x.device.type)
            x = x.to(self._compute_dtype(wanted))
        if not isinstance(shell, nn.modules.conv._ConvNd):
            return self.product(x).to(wanted)
        dims = len(shell.kernel_size)
        if x.dim() not in (dims + 1, dims + 2) or x.shape[-dims - 1] != self.columns:
            raise ValueError(
                f"x: expected {self.columns} channels before {dims} dimensions of space, got shape {list(x.shape)}"
            )
        contiguous = x.is_contiguous()
        for dim, step in enumerate(shell.stride):
            if step > 1:
                x = x.movedim(dim - dims, 0)[::step].movedim(0, dim - dims)
        y = self.product(x.movedim(-dims - 1, -1)).movedim(-1, -dims - 1).to(wanted)
        return y.contiguous() if contiguous else y

    def _compute_dtype(self, wanted: torch.dtype) -> torch.dtype:
        dtype: torch.dtype = self.values.dtype
        return dtype if dtype.is_floating_point else wanted

    def extra_repr(self) -> str:
        """Form, sizes, what is kept."""
        bias = self.bias is not None
        return f"{self.kind}, {self.rows} x {self.columns}, form={self.form}, bias={bias}, dtype={self.values.dtype}"


def is_conv1d_shell(shell: nn.Module) -> bool:
    """Whether a layer without its weight is Hugging Face's ``Conv1D``."""
    return type(shell).__name__ == "Conv1D" and not isinstance(shell, nn.modules.conv._ConvNd)


class BitmaskLayer(SparseLayer):
    """Kept values and one bit per weight: :class:`sparse_accel.ops.Bitmask`.

    Attributes:
        values, bits, offsets, scales: the parts of the weight; ``values`` is a parameter unless it is int8.
    """

    form = "bitmask"
    bits: Tensor
    offsets: Tensor
    scales: Tensor | None

    def __init__(self, dense: nn.Module, packed: Bitmask | None = None, *, int8: bool = False) -> None:
        super().__init__(dense)
        if packed is None:
            matrix = matrix_of(dense)
            assert matrix is not None
            packed = Bitmask.pack(matrix, int8=int8)
        trainable = isinstance(dense.weight, Tensor) and dense.weight.requires_grad
        if packed.values.is_floating_point():
            self.values = nn.Parameter(packed.values, requires_grad=trainable)
        else:
            self.register_buffer("values", packed.values)
        self.register_buffer("bits", packed.bits)
        self.register_buffer("offsets", packed.offsets)
        self.register_buffer("scales", packed.scales)

    @property
    def packed(self) -> Bitmask:
        """The weight."""
        return Bitmask(self.values, self.bits, self.offsets, self.scales, self.rows, self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.packed.nbytes

    def unpack(self) -> Tensor:
        """The dense weight ``[rows, columns]``."""
        return self.packed.unpack()

    def product(self, x: Tensor) -> Tensor:
        """``x @ W.T + bias``"""
        if x.shape[-1] != self.columns:
            raise ValueError(f"x: expected {self.columns} features, got shape {list(x.shape)}")
        bias: Tensor | None = self.bias
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        return linear_of_parts(x, self.values, self.bits, self.offsets, self.scales, bias, self.rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BitmaskLayer:
        """Offsets count in units of bytes: values of another dtype stand at other offsets."""
        old = self.values
        changed = fn(torch.empty(0, dtype=old.dtype, device=old.device)).dtype if old.is_floating_point() else old.dtype
        if changed != old.dtype:
            if changed not in VALUE_DTYPES:
                raise TypeError(
                    f"values: expected float32, bfloat16 or float16, got {changed}: call densify() first "
                    "(layers before this one have changed: .to() the old dtype brings them back)"
                )
            with torch.no_grad():
                packed = Bitmask.pack(self.unpack().to(changed), self.packed.mask)
            self.values = nn.Parameter(packed.values, requires_grad=old.requires_grad)
            self.offsets = packed.offsets
        super()._apply(fn, recurse)
        if self.scales is not None and self.scales.dtype != torch.float32:
            self.scales = self.scales.float()
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Refuse what is not in the format: kernels would read beyond its end."""
        errors = rest[-1]
        parts = {key: state_dict.get(prefix + key) for key in ("values", "bits", "offsets", "scales")}
        given = {
            key: own if parts[key] is None else parts[key] for key, own in self.packed._asdict().items() if key in parts
        }
        try:
            if given["values"].dtype != self.values.dtype:  # whose offsets are others
                raise ValueError(f"values: expected {self.values.dtype} as the layer has, got {given['values'].dtype}")
            Bitmask(**given, rows=self.rows, columns=self.columns).check()
        except ValueError as error:
            errors.append(f"{prefix.rstrip('.')}: {error}")
            return
        if parts["values"] is not None and parts["values"].shape != self.values.shape:
            with torch.no_grad():  # another number of kept weights
                fresh = torch.empty_like(parts["values"], device=self.values.device)
                trained = isinstance(self.values, nn.Parameter)
                self.values = nn.Parameter(fresh, requires_grad=self.values.requires_grad) if trained else fresh
        super()._load_from_state_dict(state_dict, prefix, *rest)


class CSRLayer(SparseLayer):
    """Torch's CSR format: kept values and a column of each.

    Attributes:
        values, crow, col: the parts of the weight; ``values`` is a parameter.
    """

    form = "csr"
    crow: Tensor
    col: Tensor

    def __init__(self, dense: nn.Module, parts: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
        super().__init__(dense)
        if parts is None:
            matrix = matrix_of(dense)
            assert matrix is not None
            with warnings.catch_warnings():  # that CSR is a beta
                warnings.simplefilter("ignore", UserWarning)
                csr = matrix.contiguous().to_sparse_csr()
            parts = csr.values(), csr.crow_indices().int(), csr.col_indices().int()
        trainable = isinstance(dense.weight, Tensor) and dense.weight.requires_grad
        self.values = nn.Parameter(parts[0], requires_grad=trainable)
        self.register_buffer("crow", parts[1])
        self.register_buffer("col", parts[2])

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return int(self.values.nbytes + self.crow.nbytes + self.col.nbytes)

    def unpack(self) -> Tensor:
        """The dense weight ``[rows, columns]``."""
        dense: Tensor = torch.ops.sparse_accel.csr_unpack(self.crow, self.col, self.values, self.rows, self.columns)
        return dense

    def product(self, x: Tensor) -> Tensor:
        """``x @ W.T + bias``"""
        if x.shape[-1] != self.columns:
            raise ValueError(f"x: expected {self.columns} features, got shape {list(x.shape)}")
        return csr_linear(x, self.crow, self.col, self.values, self.bias, self.rows)
