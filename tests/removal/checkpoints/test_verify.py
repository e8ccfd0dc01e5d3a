"""The last check: rounding is told from error, and what was made is not lost."""

from __future__ import annotations

import pytest
import torch
from expert_models import mixtral, tokens
from norm_models import convnext, pictures
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.prune import ISpaSP, find_widths, remove_units
from sparse_accel.removal import verify
from sparse_accel.removal.verify import in_float64


class Telling(nn.Module):
    """Its output tells how wide it is, in steps of the output's precision or of a size that no precision explains."""

    def __init__(self, step: float | None) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.act(self.a(x)))
        step = 256 * torch.finfo(y.dtype).eps if self.step is None else self.step
        return torch.tanh(y) / 2 + step * self.a.out_features


def net(step: float | None) -> Telling:
    torch.manual_seed(0)
    return Telling(step).eval()


EXAMPLE = torch.linspace(-1, 1, 12).reshape(3, 4)


def test_rounding_is_accepted_and_told(caplog):
    result = remove_units(net(None), EXAMPLE, {"a": [0, 2, 5]})
    assert result.max_abs_diff > 5e-5  # five times what is allowed
    (note,) = [note for note in result.plan["notes"] if note.startswith("the outputs differ by rounding alone")]
    assert note in caplog.text


def test_errors_are_refused_and_keep_the_result():
    model = net(2**-10)
    with pytest.raises(sa.OutputMismatchError, match=r"got 0\.0029\d; it is no rounding: in float64") as caught:
        remove_units(model, EXAMPLE, {"a": [0, 2, 5]})
    result = caught.value.result
    assert result.model.a.out_features == 3
    assert result.max_abs_diff == caught.value.difference == pytest.approx(3 * 2**-10, rel=1e-3)


def test_a_tolerance_of_the_caller_is_taken_at_its_word():
    with pytest.raises(sa.OutputMismatchError) as caught:
        remove_units(net(None), EXAMPLE, {"a": [0, 2, 5]}, tolerance=1e-5)
    assert "float64" not in str(caught.value)
    assert remove_units(net(2**-10), EXAMPLE, {"a": [0, 2, 5]}, tolerance=1e-2).max_abs_diff < 1e-2


def test_compact_keeps_its_result_too():
    model = net(2**-10)
    with torch.no_grad():
        model.b.weight[:, 1] = 0
    with pytest.raises(sa.OutputMismatchError) as caught:
        sa.compact(model, EXAMPLE)
    assert caught.value.result.model.a.out_features == 5
    assert sa.compact(net(2**-10), EXAMPLE).max_abs_diff == 0.0  # nothing to remove


@pytest.mark.parametrize("tolerance", [None, 1e-5])
def test_ispasp_keeps_its_result(tolerance):
    data = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    with pytest.raises(sa.OutputMismatchError) as caught:
        ISpaSP(net(2**-10), EXAMPLE, tolerance=tolerance).run(data)
    result = caught.value.result
    assert result.model.a.out_features == 3
    assert [width.units for width in result.report.widths] == [(6, 3)]
    accepted = ISpaSP(net(2**-10), EXAMPLE, tolerance=1e-2).run(data)
    for one, other in zip(accepted.model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_ispasp_reports_rounding():
    data = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    notes = ISpaSP(net(None), EXAMPLE).run(data).report.notes
    assert any(note.startswith("the outputs differ by rounding alone") for note in notes)


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), "small"])
def test_a_tolerance_is_a_number(tolerance):
    with pytest.raises(ValueError, match="tolerance: expected a number of at least 0 or None, got"):
        ISpaSP(net(None), EXAMPLE, tolerance=tolerance)


def test_what_does_not_run_in_float64_is_no_rounding():
    class Fixed(Telling):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (x @ torch.zeros(4, 2))  # float32, whatever the model is

    torch.manual_seed(0)
    model = Fixed(None).eval()
    assert find_widths(model, EXAMPLE)
    with pytest.raises(sa.OutputMismatchError, match="output 0: expected a difference of at most") as caught:
        remove_units(model, EXAMPLE, {"a": [0, 2, 5]})
    assert caught.value.result is not None


def test_inputs_in_float64():
    inputs = {"x": torch.zeros(2), "more": [(torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int64))]}
    wide = in_float64(sa.Examples(inputs))
    ((_, came),) = wide.runs
    assert came["x"].dtype == torch.float64
    assert [tensor.dtype for tensor in came["more"][0]] == [torch.float64, torch.int64]
    assert inputs["x"].dtype == torch.float32


@pytest.fixture
def no_difference_is_small(monkeypatch):
    monkeypatch.setitem(verify.TOLERANCES, torch.float32, -1.0)


def rounded(notes: list[str]) -> list[str]:
    return [note for note in notes if note.startswith("the outputs differ by rounding alone")]


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_experts_in_float64(implementation, no_difference_is_small):
    """Grouped products know no float64: the experts run one by one there, without the neurons that go."""
    model, (example, *_) = mixtral(), tokens()
    model.config._experts_implementation = implementation
    (width,) = [width for width in find_widths(model, example) if width.kind == "experts"]
    kept = torch.stack([torch.randperm(24, generator=torch.Generator().manual_seed(e))[:12] for e in range(4)])
    result = remove_units(model, example, {width.name: kept})
    assert len(rounded(result.plan["notes"])) == 1
    assert result.model.config._experts_implementation == model.config._experts_implementation == implementation


def test_norms_over_fewer_channels_in_float64(no_difference_is_small):
    model, x = convnext(blocks=2), pictures()
    assert len(rounded(remove_units(model, x[:4], {"1.expand": [0, 3, 4, 9, 10]}).plan["notes"])) == 1


@pytest.mark.parametrize("tolerance", [None, 0.0])
def test_compact_first_keeps_the_channels_that_the_epsilon_tells_then_looks_for_rounding(tolerance, monkeypatch):
    """A channel that nobody reads goes all the same; zeros in front of the norm stay with a note; then float64."""
    torch.manual_seed(0)
    model, x = convnext(blocks=1), pictures()
    gone = [1, 2, 5, 7, 8, 11, 15]
    with torch.no_grad():
        model[1].expand.weight[gone] = 0
        model[1].expand.bias[gone] = 0
    model = nn.Sequential(model, Telling(None)).eval()
    with torch.no_grad():
        model[1].b.weight[:, 1] = 0
    scaled = []
    original = verify.verify_outputs

    def watching(small: nn.Module, *args, **kwargs) -> float:
        scaled.append(small[0][1].norm.weight.numel())
        return original(small, *args, **kwargs)

    monkeypatch.setattr("sparse_accel.removal.compact.verify_outputs", watching)
    if tolerance is None:
        result = sa.compact(model, x[:4])
        assert len(rounded(result.plan["notes"])) == 1
    else:
        with pytest.raises(sa.OutputMismatchError) as caught:
            sa.compact(model, x[:4], tolerance=tolerance)
        result = caught.value.result
        assert result.max_abs_diff == caught.value.difference > 1e-5
        assert not rounded(result.plan["notes"])
    assert scaled == [9, 16]  # with a factor, and without
    assert result.model[1].a.out_features == 5
    assert result.model[0][1].norm.weight.numel() == 16
    (note,) = [note for note in result.plan["notes"] if "channels are zero, and stay" in note]
    assert "which is not exact enough beside the epsilon of the norm" in note


def test_a_mismatch_beside_experts_and_norms_keeps_the_result():
    model, x = nn.Sequential(convnext(blocks=1), Telling(2**-10)).eval(), pictures()
    with pytest.raises(sa.OutputMismatchError, match="it is no rounding: in float64") as caught:
        remove_units(model, x[:4], {"0.1.expand": [0, 3, 4], "1.a": [0, 2, 5]})
    result = caught.value.result
    assert (result.model[0][1].norm.weight.numel(), result.model[1].a.out_features) == (3, 3)
