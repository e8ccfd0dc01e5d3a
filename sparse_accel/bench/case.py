"""A case, the row that its measurement becomes, and the settings of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_WORKLOADS = ("resnet50", "vit_b_block", "thousand_small")
CUDA_WORKLOADS = ("resnet50", "vit_b", "thousand_small", "one_gigabyte")

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Case:
    """One op on one workload.

    Args:
        name: what is run, such as ``"l2 by input"``.
        workload: the size's name.
        run: one call of the op.
        bytes_moved: bytes that the op must read and write at least.
        twin: the same in plain PyTorch (:mod:`sparse_accel.reference`).
        peer: what a user of PyTorch would call instead.
        peer_name: the peer, in words.
        plain: what ``torch.compile`` is given: the peer, or the same without what it cannot take; None where compiling
            takes longer than it is worth.
        graph: the same call, ready to be captured in a CUDA graph; None where it cannot be, or is not on a GPU.
        peer_graph: the peer's.
        adamw: a step of AdamW(fused=True) on the same weights, where it is not the peer.
    """

    name: str
    workload: str
    run: Call
    bytes_moved: int
    twin: Call | None = None
    peer: Call | None = None
    peer_name: str = ""
    plain: Call | None = None
    graph: Call | None = None
    peer_graph: Call | None = None
    adamw: Call | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A measured case; times are medians in microseconds, ratios are this op's time over the other's.

    ``low`` and ``high`` are the quartiles of the rounds: half of them lie between. ``percent_of_copy`` is the speed
    beside a copy of as many bytes, ``percent_of_floor`` the time that the bytes take at the speed of a long copy, over
    the time that was taken. On a GPU ``microseconds`` are the device's, with the host out of the way; ``wall`` is the
    time on the host's clock until the device is done, ``graph`` that of replaying the call as a CUDA graph.
    """

    bench: str
    case: str
    workload: str
    device: str
    dtype: str
    microseconds: float
    low_microseconds: float
    high_microseconds: float
    bytes_moved: int
    gb_per_s: float
    percent_of_copy: float
    percent_of_floor: float
    copy_microseconds: float
    time_over_twin: float | None
    time_over_peer: float | None
    time_over_compiled: float | None
    time_over_adamw: float | None
    peer: str
    rounds: int
    wall_microseconds: float | None = None
    peer_wall_microseconds: float | None = None
    graph_microseconds: float | None = None
    peer_graph_microseconds: float | None = None

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run: device, dtype, workloads, and for how long."""

    device: str = "cpu"
    dtype: str = "float32"
    workloads: tuple[str, ...] = CPU_WORKLOADS
    seconds: float = 0.5
    min_rounds: int = 5
    compiled: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one of CUDA."""
        return torch.device(self.device).type == "cuda"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return DTYPES[self.dtype]


CaseMaker = Callable[[Settings], Iterator[Case]]
