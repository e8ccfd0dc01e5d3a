"""Products with sparse weights against dense ones and torch's CSR; a tiny Llama's tokens.

``sparse_linear`` runs a few sizes, batches and shares of zeros, ``sparse_linear_all`` every one.
MB and GB/s are of the least bytes: kept values, one bit per weight, inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from sparse_accel import reference
from sparse_accel.bench.case import Case, Settings
from sparse_accel.ops import Bitmask, sparse_linear
from sparse_accel.ops.csr_linear import csr_linear

from .llama import llama_cases

SIZES = ((1024, 1024), (4096, 4096), (4096, 11008), (1536, 384))  # outputs, inputs
BATCHES = (1, 4, 16, 64)
ZEROS = (50, 60, 70, 80, 90, 95)  # percent
FEW = ((4096, 4096), (1536, 384)), (1, 16), (50, 70)
TINY = ((20, 30),), (2,), (50,)


def weight_of(size: tuple[int, int], zeros: int, dtype: torch.dtype, device: str) -> Tensor:
    """Normal weights, of which so many percent are zero."""
    generator = torch.Generator().manual_seed(zeros)
    weight = torch.randn(size, generator=generator, device="cpu")
    return (weight * (torch.rand(size, generator=generator, device="cpu") >= zeros / 100)).to(device, dtype)


def cases(settings: Settings) -> Iterator[Case]:
    """A few sizes, batches and shares of zeros; float64 is measured as float32."""
    tiny = tuple(settings.workloads) == ("tiny",)
    yield from _cases(settings, *(TINY if tiny else FEW))


def every_case(settings: Settings) -> Iterator[Case]:
    """All of them, and the Llama."""
    if tuple(settings.workloads) == ("tiny",):
        yield from cases(settings)
    else:
        yield from _cases(settings, SIZES, BATCHES, ZEROS)
        yield from llama_cases(settings, (50, 70))


def _cases(
    settings: Settings,
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    percents: Sequence[int],
) -> Iterator[Case]:
    dtype = torch.float32 if settings.dtype == "float64" else settings.torch_dtype
    for size in sizes:
        for zeros in percents:
            weight = weight_of(size, zeros, dtype, settings.device)
            packed, kept = Bitmask.pack(weight), int(torch.count_nonzero(weight))
            csr = weight.float().to_sparse_csr()  # of half types torch's CSR on the CPU has no products
            parts = (csr.crow_indices().int(), csr.col_indices().int(), csr.values(), None, size[0])
            for batch in batches:
                generator = torch.Generator().manual_seed(batch)
                x = torch.randn(batch, size[1], generator=generator, device="cpu").to(settings.device, dtype)
                name = f"{zeros} %, batch {batch}"
                width = x.element_size()
                floor = kept * width + weight.numel() // 8 + batch * sum(size) * width
                twin = partial(reference.sparse_linear, x, *packed[:4], None, size[0], "none")
                dense = partial(functional.linear, x, weight)
                small = weight.numel() < 1 << 12
                yield Case(
                    f"bitmask {name}",
                    "tiny" if small else f"{size[0]}x{size[1]}",
                    partial(sparse_linear, x, packed),
                    floor,
                    twin=twin if small else None,
                    peer=dense,
                    peer_name="dense",
                )
                if dtype == torch.float32:
                    yield Case(
                        f"CSR {name}",
                        "tiny" if small else f"{size[0]}x{size[1]}",
                        partial(csr_linear, x, *parts),
                        floor,
                        twin=twin if small else None,
                        peer=dense,
                        peer_name="dense",
                    )
