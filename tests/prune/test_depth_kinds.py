"""Stacked experts and response norms behind finished blocks: linear in depth, to the bits of whole runs."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
from expert_models import Mixture, mixtral, tokens
from norm_models import Last, convnext, pictures
from test_depth import assert_same, count_blocks
from torch import Tensor, nn

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import Calibration
from sparse_accel.calibration.padding import Padding
from sparse_accel.calibration.replay.engine import Engine
from sparse_accel.calibration.replay.store import Store
from sparse_accel.calibration.slices import watch_slices
from sparse_accel.calibration.survey import survey
from sparse_accel.prune import CurvatureIHT, ISpaSP, find_widths
from sparse_accel.prune.structured.stage import watched

EXAMPLE = tokens()[0]
PICTURES = list(pictures(24).split(8))


def mixed(depth: int, implementation: str = "grouped_mm") -> nn.Module:
    """Attention, neurons of a shared expert and stacked experts in every block; a token goes to all experts."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, moe_intermediate_size=12, num_hidden_layers=depth,
        shared_expert_intermediate_size=20, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
        num_experts_per_tok=4, max_position_embeddings=32,
    )  # fmt: skip
    model = Qwen2MoeForCausalLM(config).eval()
    model.config._experts_implementation = implementation
    return model


def assert_replayed(run: Any, tmp_path: Any, monkeypatch: Any, caplog: Any, *, memory_too: bool = False) -> Any:
    """The bits of a run without replay, from disk (and from memory), without a model that had to run as a whole."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = []
    original = Store._write
    monkeypatch.setattr(Store, "_write", lambda self, tensors: written.append(1) or original(self, tensors))
    whole = run(0)
    assert not written
    for memory in (1 << 29, 1) if memory_too else (1,):
        with caplog.at_level("INFO", "sparse_accel"):
            came = run(memory)
        assert not any("not run on the outputs" in message for message in caplog.messages)
        assert not any(note.startswith("every pass runs") for note in came.report.notes)
        assert_same(whole.model, came.model)
        assert bool(written) == (memory == 1)
    assert not list(tmp_path.iterdir())
    return came


@pytest.mark.parametrize(
    "implementation, options",
    [
        ("grouped_mm", {}),
        ("grouped_mm", {"method": "ispasp", "only": ["*experts", "*self_attn"]}),
        ("batched_mm", {"refit": "dense"}),
        ("eager", {"round_to": 8}),
    ],
)
def test_neurons_experts_and_heads(implementation, options, tmp_path, monkeypatch, caplog):
    model = mixed(3, implementation)
    came = assert_replayed(
        lambda memory: ISpaSP(model, EXAMPLE, activation_memory=memory, **options).run(tokens()),
        tmp_path, monkeypatch, caplog, memory_too=not options,
    )  # fmt: skip
    assert {change.kind for change in came.report.widths} >= {"heads", "experts"}
    expected = 6 if "only" in options else 8 if "round_to" in options else 9  # the first one's heads all stay
    assert len(came.report.widths) == expected
    assert model.config._experts_implementation == implementation


def test_budgets_of_mixtures(tmp_path, monkeypatch, caplog):
    model = mixed(2)
    came = assert_replayed(
        lambda memory: ISpaSP(model, EXAMPLE, budget={"params": 0.7}, activation_memory=memory).run(tokens()),
        tmp_path, monkeypatch, caplog,
    )  # fmt: skip
    assert came.report.params[0] * 0.7 >= came.report.params[1]


def test_stacked_matrices_of_curvature_iht(tmp_path, monkeypatch, caplog):
    model = mixtral(num_hidden_layers=2, num_experts_per_tok=4)
    model.config._experts_implementation = "grouped_mm"
    assert_replayed(
        lambda memory: CurvatureIHT(model, 0.5, activation_memory=memory).run(tokens()),
        tmp_path, monkeypatch, caplog, memory_too=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"scope": "all"}, {"refit": "skip"}, {"budget": {"flops": 0.6}}, {"method": "ispasp", "refit": "dense"}],
)
def test_response_norms(options, tmp_path, monkeypatch, caplog):
    model = convnext(3)
    came = assert_replayed(
        lambda memory: ISpaSP(model, PICTURES[0][:2], activation_memory=memory, **options).run(PICTURES),
        tmp_path, monkeypatch, caplog, memory_too=not options,
    )  # fmt: skip
    assert any("divides by the mean over the" in note for note in came.report.notes)


class Expand(nn.Module):
    """A block with neurons of its own, whose output's channels the next block normalizes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.expand = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.expand(self.inner(x)))


class Project(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project = Last(12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.norm(x))


def test_a_block_whose_units_a_later_one_settles_is_not_finished(tmp_path, monkeypatch, caplog):
    """The units that go are made zero in the layer that makes them, in a block that nothing else changes by then."""
    torch.manual_seed(0)
    model = nn.Sequential(Expand(), Project(), Expand(), Project()).eval()
    data = list(torch.randn(24, 5, 5, 6, generator=torch.Generator().manual_seed(2)).split(8))
    came = assert_replayed(
        lambda memory: ISpaSP(model, data[0][:2], activation_memory=memory).run(data), tmp_path, monkeypatch, caplog
    )
    names = ["0.inner.0", "0.inner.2", "0.expand", "1.project", "2.inner.0", "2.inner.2", "2.expand"]
    assert [change.name for change in came.report.widths] == names
    (width,) = [width for width in find_widths(model, data[0][:2]) if width.name == "0.expand"]
    assert watched(width) == ["1.project", "0.expand", "1.norm"]


def blocks_run(model: nn.Module, blocks: str, example: Any, data: list[Any], batch: int, **options: Any) -> float:
    counts = count_blocks(model, blocks, batch)
    ISpaSP(model, example, **options).run(data)
    return counts[0] / len(data)


def test_a_block_of_a_mixture_runs_as_often_whatever_the_depth():
    """Once to look, once for each of three widths, and once for its output in its last form."""
    text = tokens(size=3)
    example = {"input_ids": EXAMPLE["input_ids"][:1]}
    one, two, four = (blocks_run(mixed(depth), "model.layers", example, text, 3) for depth in (1, 2, 4))
    assert (two - one, four - two) == (5, 10)


def test_a_block_with_a_response_norm_runs_as_often_whatever_the_depth():
    """Once to look; for the moments, for the ratio of the means, and in both models for the refit; and its output."""
    passes = []
    for depth in (1, 2, 4):
        model = convnext(depth)
        counts = [0]
        for block in list(model)[1 : depth + 1]:
            block.register_forward_pre_hook(
                lambda module, args, counts=counts: counts.__setitem__(0, counts[0] + (len(args[0]) == 8))
            )
        ISpaSP(model, PICTURES[0][:1]).run(PICTURES)
        passes.append(counts[0] / len(PICTURES))
    assert (passes[1] - passes[0], passes[2] - passes[1]) == (6, 12)


class Routed(nn.Module):
    """A residual block that sends half batches through its experts twice."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = Mixture("linear")
        self.experts.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.experts(x)
        return x + self.experts(x) if len(x) < 8 else x


class Linked(nn.Module):
    """It looks at the first block's output behind the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Routed() for _ in range(4)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.blocks[0](x)
        for block in list(self.blocks)[1:]:
            x = block(x)
        if bool(first.isnan().any()):
            raise ValueError("no numbers")
        return self.head(x)


def test_a_pass_that_turns_out_not_to_be_replayable_counts_nothing_twice():
    """The experts have been seen when the model fails: the pass that follows begins anew."""
    torch.manual_seed(0)
    model = Linked().eval()
    data = [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (9, 4, 12)]
    came, whole = (ISpaSP(model, data[1], activation_memory=memory).run(data) for memory in (1 << 29, 0))
    assert [change.kind for change in came.report.widths] == ["experts"] * 4
    assert_same(whole.model, came.model)
    assert [change.error for change in came.report.widths] == [change.error for change in whole.report.widths]
    (note,) = [note for note in came.report.notes if note.startswith("every pass runs the model from its inputs: ")]
    assert "does not run on the last one's output" in note


def test_experts_that_are_not_watched_run_as_always():
    """Their outputs may be kept: those of a kernel of their own, not of the experts one by one."""
    model = mixtral(num_hidden_layers=2)
    model.config._experts_implementation = "grouped_mm"
    owners = {name: module for name, module in model.named_modules() if name.endswith("experts")}
    first, second = owners
    seen = {name: [] for name in owners}
    for name, module in owners.items():
        original = module.forward

        def run(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            seen[name].append(model.config._experts_implementation)
            if len(seen[name]) == 2 and name == second:
                raise RuntimeError("no more")
            return original(*args, **kwargs)

        module.forward = run
    parameters = {"down": owners[second].down_proj}
    with torch.no_grad(), watch_slices(model, parameters, lambda call: None, lambda *fault: pytest.fail(str(fault))):
        model(**EXAMPLE)
        with pytest.raises(RuntimeError, match="no more"):
            model(**EXAMPLE)
        assert model.config._experts_implementation == "grouped_mm"
    assert seen == {first: ["grouped_mm"] * 2, second: ["eager"] * 2}
    assert model.config._experts_implementation == "grouped_mm"


def test_a_twin_takes_the_outputs_of_the_same_finished_blocks():
    model = convnext(3)
    work, before = convnext(3), convnext(3)
    data = Batches(Calibration(PICTURES), model, Padding(None, None, "mask"))
    steps = [[f"{block}.project"] for block in (1, 2, 3)]
    shown: list[Tensor] = []
    ran = [0]
    for net in (work, before):
        net[1].register_forward_pre_hook(lambda module, args: ran.__setitem__(0, ran[0] + 1))
    with Engine(model, work, data, survey(work, data).once(), 1 << 29) as engine:
        ran[0] = 0
        engine.plan(steps)
        engine.advance(steps[1:])
        other = engine.against(before)
        for front in (other.dense, engine.work):
            front.stream(data, {"x": front.model[3].project}, lambda name, x, y: shown.append(x), shown.clear)
    assert ran[0] == len(PICTURES)  # by the twin alone
    assert not engine.work.reason
    assert all(torch.equal(one, two) for one, two in zip(shown[:3], shown[3:], strict=True))
