"""Operations beside layers: what cannot be analysed stays, and the outputs are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compact_checks import compact_checked, widths
from compact_models import (
    Mlp,
    randomize,
    silent,
    unread,
)
from torch import Tensor, nn

from sparse_accel.removal.compact import compact


def test_linear_on_another_dimension_keeps_the_channels() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.channels, self.tokens, self.head = nn.Linear(4, 6), nn.Linear(5, 7), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.tokens(torch.relu(self.channels(x)).transpose(1, 2)).transpose(1, 2)
            return self.head(torch.relu(x).mean(1))

    model = randomize(Mixer())
    unread(model.head, (1,))
    result = compact_checked(model, torch.randn(2, 5, 4))
    assert widths(result.model)["channels"] == (4, 6)
    assert any("tokens" in note for note in result.plan["notes"])


def test_operations_without_a_rule_keep_their_channels() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b, self.c = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.b(self.norm(self.a(x))))
            return self.c(torch.fft.fft(x).real)

    model = randomize(Odd())
    unread(model.b, (0, 1))
    unread(model.c, (2,))
    result = compact_checked(model, torch.randn(3, 4))
    assert widths(result.model) == widths(model)
    notes = "\n".join(result.plan["notes"])
    assert "norm (LayerNorm)" in notes
    assert "fft" in notes


def test_outputs_of_the_model_stay() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.ReLU()))
    silent(model[0], (2,))
    assert widths(compact_checked(model, torch.randn(3, 4)).model)["0"] == (4, 6)


def test_parameters_used_outside_of_layers() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 2, 1)
            self.scale = nn.Parameter(torch.ones(6, 1, 1))
            self.position = nn.Parameter(torch.zeros(1, 6, 4, 4))
            self.matrix = nn.Parameter(torch.zeros(2, 5))
            self.last = nn.Parameter(torch.zeros(5, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(torch.relu(self.a(x)) * self.scale).mean((2, 3))
            return torch.relu(x @ self.matrix) @ self.last

    model = randomize(Scaled())
    unread(model.b, (1, 4))
    with torch.no_grad():
        model.last[2] = 0
    # Nothing uses position: with unvisited="keep" its six channels would be kept.
    small = compact_checked(model, torch.randn(2, 2, 6, 6), unvisited="ignore").model
    assert small.scale.shape == (4, 1, 1)
    assert small.matrix.shape == (2, 4)
    assert small.last.shape == (4, 3)
    assert small.position.shape == model.position.shape


def test_whole_parameter_that_meets_channels_keeps_them() -> None:
    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.position = nn.Parameter(torch.zeros(1, 5, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + self.position)

    model = randomize(Positioned())
    unread(model.b, (0,))
    assert widths(compact_checked(model, torch.randn(2, 5, 4)).model)["a"] == (4, 6)


def test_parametrized_weights_are_kept() -> None:
    model = randomize(Mlp())
    nn.utils.parametrizations.weight_norm(model.b)
    with torch.no_grad():
        model.c.weight[:, 2] = 0
        model.b.parametrizations.weight.original1[:, 1] = 0
    result = compact_checked(model, torch.randn(2, 6))
    assert widths(result.model) == widths(model)
    assert any("parametrization" in note for note in result.plan["notes"])


def test_data_dependent_python_runs() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            if x.sum() > 0:
                x = torch.relu(self.b(x))
            return self.c(x)

    model = randomize(Branch())
    unread(model.c, (1,))
    unread(model.b, (1,))
    assert widths(compact_checked(model, torch.ones(2, 4)).model)["a"] == (4, 6)  # the branch reads channel 1


def test_random_operations_leave_the_generator_alone() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.a(x), 0.5)

    model, example = randomize(Noisy()), torch.randn(2, 4)
    state = torch.get_rng_state()
    assert compact(model, example).max_abs_diff == 0  # every run is seeded alike
    assert torch.equal(torch.get_rng_state(), state)


def test_auxiliary_head_of_train_mode_keeps_its_channels() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 1), nn.Linear(5, 2)
            self.norm = nn.BatchNorm2d(6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            x = torch.relu(self.norm(self.a(x)))
            out = self.c(torch.relu(self.b(x)).mean((2, 3)))
            return (out, self.head(x.mean((2, 3)))) if self.training else out

    model = randomize(Auxiliary()).train()
    unread(model.b, (0, 1, 2))
    unread(model.head, (1, 2, 3))
    unread(model.c, (4,))
    result = compact_checked(model, torch.randn(4, 2, 6, 6))
    assert widths(result.model) == {"a": (2, 4), "b": (4, 4), "c": (4, 2), "head": (4, 2)}
    x = torch.randn(4, 2, 6, 6)
    for new, old in zip(result.model(x), model(x), strict=True):
        torch.testing.assert_close(new, old)


def test_unused_layers_are_left_alone() -> None:
    model = randomize(Mlp())
    model.unused = nn.Linear(3, 4)
    unread(model.b, (0,))
    assert widths(compact_checked(model, torch.randn(2, 6)).model)["unused"] == (3, 4)


def test_buffers_that_the_forward_pass_writes() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x = self.a(x)
            self.mean.mul_(0.9).add_(x.mean(0))
            return self.b(torch.relu(x - self.mean))

    model = randomize(Counting())
    unread(model.b, (1, 3))
    silent(model.a, (0,), bias=0.5)
    result = compact_checked(model, torch.randn(3, 4))
    assert widths(result.model)["a"] == (4, 6)  # the written buffer is kept whole
    assert float(result.model.calls) == 0


def test_values_read_by_python_make_no_constants() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * float(x.mean()))

    model = randomize(Scaled())
    silent(model.a, (0,), bias=0.5)
    unread(model.b, (3,))
    result = compact_checked(model, torch.randn(3, 4))
    assert widths(result.model)["a"] == (4, 5)
    assert any("path of the example" in note for note in result.plan["notes"])


def test_result_of_an_unseen_function_keeps_what_came_before() -> None:
    @torch.jit.script
    def hidden(x: Tensor) -> Tensor:
        return x.flip(1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(hidden(self.a(x)))))

    model = randomize(Net())
    unread(model.b, (0,))
    unread(model.c, (0,))
    result = compact_checked(model, torch.randn(3, 4))
    assert widths(result.model) == {"a": (4, 6), "b": (6, 4), "c": (4, 2)}
    assert any("unknown origin" in note for note in result.plan["notes"])


def test_custom_autograd_function() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(Double.apply(self.a(x)))

    model = randomize(Net())
    unread(model.b, (0,))
    compact_checked(model, torch.randn(3, 4))


def test_attention_block_keeps_its_model_dimension() -> None:
    model = randomize(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    unread(model.linear2, range(0, 16, 3))
    result = compact_checked(model, torch.randn(2, 5, 8))
    assert widths(result.model)["linear1"] == (8, 10)


def test_recurrent_layers_are_kept() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.rnn, self.b, self.c = nn.Linear(4, 6), nn.LSTM(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(self.rnn(self.a(x))[0])))

    model = randomize(Net())
    unread(model.b, (0,))
    unread(model.c, (1,))
    result = compact_checked(model, torch.randn(3, 2, 4))
    assert widths(result.model) == {"a": (4, 6), "b": (5, 3), "c": (3, 2)}


def test_precision_settings_come_back() -> None:
    settings = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)
    seen: list[str] = []

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(settings[0].fp32_precision)
            return self.a(x)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        expected = [setting.fp32_precision for setting in settings]
        compact(randomize(Looking()), torch.randn(2, 4))
        assert [setting.fp32_precision for setting in settings] == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen[:2] == ["ieee", "ieee"]  # both models that are compared


@pytest.mark.parametrize("batched", [True, False])
def test_patches_of_channels(batched: bool) -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 5, 1), nn.Linear(5 * 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.unfold(torch.relu(self.a(x)), 2, stride=2).transpose(-2, -1))

    model = randomize(Patches())
    unread(model.b, (1, 3), width=4)
    small = compact_checked(model, torch.randn(3, 2, 4, 4) if batched else torch.randn(2, 4, 4)).model
    assert widths(small) == ({"a": (2, 3), "b": (12, 3)} if batched else widths(model))
