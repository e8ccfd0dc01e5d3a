"""Pruning is linear in depth: a block runs as often in deep models as in shallow ones, to the bits of whole runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import structured_models as nets
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_accel.prune import CurvatureIHT, ISpaSP

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TOKENS = torch.randint(0, 50, (6, 8), generator=torch.Generator().manual_seed(1))
TEXT = [{"input_ids": ids} for ids in TOKENS.split(2)]
EXAMPLE = {"input_ids": TOKENS[:1]}


def llama(depth: int) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=depth, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gpt2(depth: int) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=depth, n_head=4, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def bert(depth: int) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=depth, num_attention_heads=4, vocab_size=50,
        max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertModel(config).eval()


class Deep(nn.Module):
    """Residual blocks in a Sequential."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(*(nets.BasicBlock(6, 6) for _ in range(depth)))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


def conv(depth: int) -> nn.Module:
    torch.manual_seed(0)
    return nets.settle(Deep(depth), nets.images())


PICTURES = list(nets.images(9).split(3))
KINDS: dict[str, tuple[Callable[[int], nn.Module], Any, Any, str]] = {
    "llama": (llama, EXAMPLE, TEXT, "model.layers"),
    "gpt2": (gpt2, EXAMPLE, TEXT, "transformer.h"),
    "bert": (bert, EXAMPLE, TEXT, "encoder.layer"),
    "conv": (conv, PICTURES[0][:1], PICTURES, "blocks"),
}


def first_tensor(args: Any, kwargs: Any) -> Tensor:
    return next(item for item in (*args, *kwargs.values()) if isinstance(item, Tensor))


def count_blocks(model: nn.Module, name: str, batch: int) -> list[int]:
    """Counts calls of the blocks in the model and in its copies, whole or not; those of single samples (the example)
    are none of a pass over the data."""
    counts = [0]

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        counts[0] += first_tensor(args, kwargs).shape[0] == batch

    for block in model.get_submodule(name).children():
        block.register_forward_pre_hook(hook, with_kwargs=True)
    return counts


def run(model: nn.Module, kind: str, what: str, **options: Any) -> Any:
    _, example, data, _ = KINDS[kind]
    if what == "ISpaSP":
        return ISpaSP(model, example, **options).run(data)
    return CurvatureIHT(model, 0.5, **options).run(data)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


# Of each block: one pass that looks, one for every width or step in it, and one for its output in its last form (of
# both models where the refit looks at both).
EACH = [
    ("llama", "ISpaSP", {}, 4),
    ("llama", "ISpaSP", {"method": "ispasp"}, 6),
    ("llama", "ISpaSP", {"refit": "skip"}, 7),
    ("llama", "CurvatureIHT", {}, 6),
    ("gpt2", "CurvatureIHT", {"allocation": "global"}, 11),
    ("bert", "ISpaSP", {"method": "magnitude", "refit": None}, 1),
    ("conv", "ISpaSP", {"relu_iterations": 0}, 5),
    ("conv", "CurvatureIHT", {}, 4),
]


@pytest.mark.parametrize("kind, what, options, each", EACH)
def test_a_block_runs_as_often_whatever_the_depth(kind, what, options, each):
    build, _, data, name = KINDS[kind]
    batch = len(first_tensor((), data[0]) if isinstance(data[0], dict) else data[0])
    passes = {}
    for depth in (1, 2, 4):
        model = build(depth)
        counts = count_blocks(model, name, batch)
        run(model, kind, what, **options)
        passes[depth] = counts[0] / len(data)
    assert (passes[2] - passes[1], passes[4] - passes[2]) == (each, 2 * each)


def test_a_deep_llama_costs_what_it_is_to():
    """Beside the pass that looks, 16 blocks take 3 forward passes each of ISpaSP and 5 of CurvatureIHT, less the last
    block's output."""
    for what, each in (("ISpaSP", 3), ("CurvatureIHT", 5)):
        model = llama(16)
        counts = count_blocks(model, "model.layers", 2)
        run(model, "llama", what)
        assert counts[0] / len(TEXT) == 16 + each * 16 - 1


def test_what_is_finished_of_a_block_is_not_run_again_for_the_rest_of_it():
    """Attention and MLP of every block run once to look, once for each width or step in them, and once more."""
    for what, attention, mlp in (("ISpaSP", 3, 3), ("CurvatureIHT", 4, 4)):
        model = llama(4)
        counts = {"q_proj": 0, "up_proj": 0}

        def hook_of(name: str, counts: dict[str, int] = counts) -> Any:
            def hook(module: nn.Module, args: Any) -> None:
                counts[name] += len(args[0]) == 2

            return hook

        for block in model.model.layers:
            block.self_attn.q_proj.register_forward_pre_hook(hook_of("q_proj"))
            block.mlp.up_proj.register_forward_pre_hook(hook_of("up_proj"))
        run(model, "llama", what)
        assert counts["q_proj"] / len(TEXT) == 4 * attention
        # the last block's output is not taken, and an MLP's first step shows the input of its first layer alone
        assert counts["up_proj"] / len(TEXT) == 4 * mlp - 1 - (4 if what == "CurvatureIHT" else 0)


OPTIONS = [
    *((kind, "ISpaSP", {}) for kind in KINDS),
    *((kind, "CurvatureIHT", {}) for kind in KINDS),
    ("llama", "ISpaSP", {"method": "ispasp"}),
    ("conv", "ISpaSP", {"method": "ispasp", "refit": "skip"}),
    ("gpt2", "ISpaSP", {"method": "gram_cosamp", "refit": "dense"}),
    ("conv", "ISpaSP", {"method": "energy", "scope": "all"}),
    ("conv", "ISpaSP", {"method": "magnitude", "budget": {"flops": 0.6}}),
    ("llama", "ISpaSP", {"method": "magnitude", "refit": "skip"}),
    ("bert", "ISpaSP", {"refit": "bias"}),
    ("gpt2", "CurvatureIHT", {"allocation": "global", "refine": 1}),
]


@pytest.mark.parametrize("kind, what, options", OPTIONS)
def test_replayed_from_memory_and_from_disk_to_the_bits_of_whole_runs(
    kind, what, options, tmp_path, monkeypatch, caplog
):
    from sparse_accel.calibration.replay.store import Store

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = []
    original = Store._write
    monkeypatch.setattr(Store, "_write", lambda self, tensors: written.append(1) or original(self, tensors))
    model = KINDS[kind][0](3)
    whole = run(model, kind, what, activation_memory=0, **options)
    assert not written
    for memory in (1,) if options else (1 << 29, 1):
        with caplog.at_level("INFO", "sparse_accel"):
            came = run(model, kind, what, activation_memory=memory, **options)
        assert not any("not run on the outputs" in message for message in caplog.messages)
        assert not any(note.startswith("every pass runs") for note in came.report.notes)
        assert_same(whole.model, came.model)
        assert bool(written) == (memory == 1)
    assert not list(tmp_path.iterdir())


def test_files_go_when_a_run_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    from sparse_accel.prune.unstructured import pruner

    there = []
    model = llama(3)
    original = pruner.solve_layer
    calls = [0]

    def failing(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 10:
            there.extend(tmp_path.rglob("*.safetensors"))
            raise RuntimeError("no more")
        return original(*args)

    monkeypatch.setattr(pruner, "solve_layer", failing)
    with pytest.raises(RuntimeError, match="no more"):
        CurvatureIHT(model, 0.5, activation_memory=1).run(TEXT)
    assert there
    assert not list(tmp_path.iterdir())


def test_files_go_when_structured_pruning_fails(tmp_path, monkeypatch):
    from sparse_accel.prune.structured.network import run as network

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    there = []
    original = network.prune_width

    def failing(width: Any, *args: Any, **kwargs: Any) -> Any:
        if width.name.startswith("model.layers.2."):
            there.extend(tmp_path.rglob("*.safetensors"))
            raise RuntimeError("no more")
        return original(width, *args, **kwargs)

    monkeypatch.setattr(network, "prune_width", failing)
    with pytest.raises(ValueError, match="no more"):
        ISpaSP(llama(3), EXAMPLE, activation_memory=1).run(TEXT)
    assert there
    assert not list(tmp_path.iterdir())


class Mlp(nn.Module):
    """A residual block of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x)))


class Linked(nn.Module):
    """The head reads the first block's output beside the last one's."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Mlp() for _ in range(4)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.blocks[0](x)
        for number, block in enumerate(self.blocks):
            x = block(x) + first if number else x
        return self.head(x)


class Loose(nn.Module):
    """Blocks that are items of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = Mlp(), Mlp(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)))


class Rewriting(nn.Module):
    """Blocks that write into what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Writer() for _ in range(3)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Writer(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        x += self.down(self.act(self.up(x)))
        return x


class Remembering(nn.Module):
    """The last block reads what the first one has left in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Leaver() for _ in range(4)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x + self.blocks[0].left)


class Leaver(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        self.left = super().forward(x)
        return self.left


class Parted(nn.Module):
    """A block of two parts, the first of which returns more than tensors; the second is an ordinary one."""

    class First(Mlp):
        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(out=super().forward(x))

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = Parted.First(), Mlp(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).out))


VECTORS = torch.randn(24, 6, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "build, why",
    [
        (Linked, "what follows the blocks does not run on the last one's output (RuntimeError: "),
        (Loose, "it has no blocks (items of a ModuleList or Sequential that every batch calls exactly once and that "),
        (Rewriting, "Writer changes its inputs"),
        (Remembering, "it has no blocks (items of a ModuleList or Sequential that every batch calls exactly once and "),
    ],
)
@pytest.mark.parametrize("what", [ISpaSP, CurvatureIHT])
def test_models_that_cannot_be_replayed_run_whole_and_the_report_says_so(build, why, what):
    torch.manual_seed(0)
    model = build().eval()
    came, whole = (
        (ISpaSP(model, VECTORS[:2], activation_memory=memory) if what is ISpaSP else
         CurvatureIHT(model, 0.5, activation_memory=memory)).run(list(VECTORS.split(6)))
        for memory in (1 << 29, 0)
    )  # fmt: skip
    assert_same(whole.model, came.model)
    start = "every pass runs the model from its inputs: "
    notes = [note for note in came.report.notes if note.startswith(start)]
    assert [note[: len(start + why)] for note in notes] == [start + why]
    assert f"note: {notes[0]}" in str(came.report)
    assert not any(note.startswith(start) for note in whole.report.notes)  # as asked for


@pytest.mark.parametrize("what", [ISpaSP, CurvatureIHT])
def test_a_part_that_cannot_be_kept_is_run_again(what):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Parted(), Parted(), nn.Linear(6, 2)).eval()
    counts = {"first": 0, "second": 0}
    for name in counts:
        model[1].get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: counts.__setitem__(name, counts[name] + (len(args[0]) == 6))
        )
    came, whole = (
        (ISpaSP(model, VECTORS[:2], activation_memory=memory) if what is ISpaSP else
         CurvatureIHT(model, 0.5, activation_memory=memory)).run(list(VECTORS.split(6)))
        for memory in (1 << 29, 0)
    )  # fmt: skip
    assert_same(whole.model, came.model)
    assert not any(note.startswith("every pass") for note in came.report.notes)
    assert counts["second"] < counts["first"]


def test_fine_tuning_runs_whole_models():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), Mlp(), Mlp(), Mlp(), nn.Linear(6, 2)).eval()

    def tune(small: nn.Module, name: str) -> None:
        with torch.no_grad():
            small[0].weight.mul_(1.01)

    data = torch.randn(24, 5, generator=torch.Generator().manual_seed(3))
    came, whole = (
        ISpaSP(model, data[:2], fine_tune=tune, activation_memory=memory).run(data) for memory in (1 << 29, 0)
    )
    assert_same(whole.model, came.model)
    assert "every pass runs the model from its inputs: fine_tune changes all of it" in came.report.notes


def test_a_resumed_run_goes_on_behind_the_finished_blocks(tmp_path, monkeypatch, caplog):
    from sparse_accel.prune.unstructured import pruner

    model, batch = llama(4), 2
    whole = CurvatureIHT(model, 0.5).run(TEXT)
    original = pruner.solve_layer
    calls = [0]

    def failing(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] > 22:  # in the last block
            raise RuntimeError("killed")
        return original(*args)

    monkeypatch.setattr(pruner, "solve_layer", failing)
    with pytest.raises(RuntimeError, match="killed"):
        CurvatureIHT(model, 0.5, resume_dir=tmp_path).run(TEXT)
    monkeypatch.setattr(pruner, "solve_layer", original)
    counts = count_blocks(model, "model.layers", batch)
    with caplog.at_level("INFO", "sparse_accel"):
        came = CurvatureIHT(model, 0.5, resume_dir=tmp_path).run(TEXT)
    assert_same(whole.model, came.model)
    assert not any("not run on the outputs" in message for message in caplog.messages)
    assert counts[0] / len(TEXT) == 4 + 3 + 4  # a look, the front once, the steps of the last block


def test_hooks_of_a_finished_block_count_as_part_of_it():
    """What the caller's hooks do to a block's output is in what is kept; they do not run on it again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Mlp(), Mlp(), Mlp(), nn.Linear(6, 2)).eval()
    ran = [0]

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        ran[0] += len(output) == 6
        return output * 1.5

    model[1].register_forward_hook(hook)
    came, whole = (CurvatureIHT(model, 0.5, activation_memory=m).run(list(VECTORS.split(6))) for m in (1 << 29, 0))
    assert_same(whole.model, came.model)
    assert ran[0] < 4 * 20
    for module in came.model.modules():
        assert "_compiled_call_impl" not in module.__dict__
