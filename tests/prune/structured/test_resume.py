"""A run that is stopped in any width goes on from its record, to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structured_models as nets
import torch
from expert_models import mixtral
from gated_models import senet
from norm_models import convnext, pictures
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.prune import ISpaSP
from sparse_accel.prune.structured.network import run as network


class StopError(Exception):
    """What ends a run."""


def no_biases() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 24, bias=False), nn.ReLU(), nn.Linear(24, 16, bias=False), nn.ReLU(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).eval()


VECTORS = torch.randn(48, 6, generator=torch.Generator().manual_seed(2))
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Any]]] = {
    "residual": (lambda: nets.resnet(8).eval(), nets.images()[:48], {}),
    "new biases": (no_biases, VECTORS, {}),
    "biases alone": (no_biases, VECTORS, {"refit": "bias"}),
    "budget": (no_biases, VECTORS, {"budget": {"params": 0.5}}),
    "gates": (lambda: senet().eval(), nets.images(24), {}),
    "i-SpaSP": (no_biases, VECTORS, {"method": "ispasp", "refit": None}),
    "response norms": (convnext, pictures(8), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_to_the_same_bits(case: str, tmp_path: Path, monkeypatch) -> None:
    make, data, options = CASES[case]
    whole = ISpaSP(make(), data[:2], **options).run(data)
    pruned: list[str] = []
    prune_width = network.prune_width

    def counted(width: Any, *args: Any, **more: Any) -> Any:
        if len(pruned) == stop[0]:
            raise StopError
        pruned.append(width.name)
        return prune_width(width, *args, **more)

    monkeypatch.setattr(network, "prune_width", counted)
    stop = [1]
    with pytest.raises(StopError):
        ISpaSP(make(), data[:2], resume_dir=tmp_path, **options).run(data)
    stop[0] = -1
    again = ISpaSP(make(), data[:2], resume_dir=tmp_path, **options).run(data)
    assert pruned == [change.name for change in whole.report.widths]  # none of them twice
    stop[0] = len(pruned)
    third = ISpaSP(make(), data[:2], resume_dir=tmp_path, **options).run(data)  # from the record alone
    for result in (again, third):
        assert result.kept == whole.kept
        state = result.model.state_dict()
        assert list(state) == list(whole.model.state_dict())
        assert all(torch.equal(state[name], tensor) for name, tensor in whole.model.state_dict().items())
        for mine, theirs in zip(result.report.widths, whole.report.widths, strict=True):
            assert (mine.units, mine.error, mine.target, mine.note) == (
                theirs.units,
                theirs.error,
                theirs.target,
                theirs.note,
            )


def test_stacked_experts_go_on(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model, ids = mixtral(), {"input_ids": torch.arange(48).reshape(6, 8) % 40}
    runs = [ISpaSP(model, ids, resume_dir=folder).run(ids) for folder in (None, tmp_path, tmp_path)]
    assert "experts" in {change.kind for change in runs[0].report.widths}
    for result in runs[1:]:
        assert result.kept == runs[0].kept
        for one, other in zip(result.model.parameters(), runs[0].model.parameters(), strict=True):
            assert torch.equal(one, other)


def test_records_of_other_runs_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    ISpaSP(no_biases(), VECTORS[:2], resume_dir=tmp_path).run(VECTORS)
    with pytest.raises(sa.CheckpointError, match=r"resume_dir: .* is of another run: request"):
        ISpaSP(no_biases(), VECTORS[:2], 0.25, resume_dir=tmp_path).run(VECTORS)
    with pytest.raises(sa.CheckpointError, match=r"is of another run: data"):
        ISpaSP(no_biases(), VECTORS[:2], resume_dir=tmp_path).run(VECTORS + 1)
    other = no_biases()
    with torch.no_grad():
        other[0].weight[0, 0] += 1
    with pytest.raises(sa.CheckpointError, match=r"is of another run: weights"):
        ISpaSP(other, VECTORS[:2], resume_dir=tmp_path).run(VECTORS)
    file = tmp_path / "width_0001.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(sa.CheckpointError, match=r"width_0001.safetensors"):
        ISpaSP(no_biases(), VECTORS[:2], resume_dir=tmp_path).run(VECTORS)
    with pytest.raises(ValueError, match="resume_dir: expected None with fine_tune"):
        ISpaSP(no_biases(), VECTORS[:2], resume_dir=tmp_path, fine_tune=lambda *_: None)
