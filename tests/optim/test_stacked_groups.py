"""Groups of stacks of matrices: each expert's inputs and outputs on their own, in penalties, optimizers and reports."""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
from torch import nn

import sparse_accel as sa
from sparse_accel.groups import Grouping, layout_of, stacked_layout
from sparse_accel.groups.models import STACKS
from sparse_accel.removal.remove import find_widths

E, OUT, IN = 3, 5, 4


class Experts(nn.Module):
    """Stacks as [E, out, in] or [E, in, out]; says which by ``is_transposed``, as those of transformers do."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        up, down = (E, OUT, IN), (E, IN, OUT)
        self.up_proj = nn.Parameter(torch.randn(down if transposed else up))
        self.down_proj = nn.Parameter(torch.randn(up if transposed else down))

    def forward(self, x):
        for e in range(E):
            up, down = (w[e].T if self.is_transposed else w[e] for w in (self.up_proj, self.down_proj))
            x = torch.relu(x @ up.T) @ down.T
        return x


def expected_groups(weight, by, transposed):
    """One list of elements for each group, in order, of a stack."""
    out_in = weight.mT if transposed else weight
    if by == "output":
        return [out_in[e, o] for e in range(len(weight)) for o in range(out_in.shape[1])]
    if by == "input":
        return [out_in[e, :, i] for e in range(len(weight)) for i in range(out_in.shape[2])]
    return [x.reshape(1) for x in weight.reshape(-1)]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("by", ["input", "output", "kernel"])
@pytest.mark.parametrize("memory", list(itertools.permutations(range(3))), ids=str)
def test_layouts(by, transposed, memory):
    weight = torch.randn([(E, OUT, IN)[d] for d in memory]).permute(*[memory.index(d) for d in range(3)])
    grouping = Grouping(by, transposed=transposed, stacked=True)
    layout, own = layout_of(weight, grouping)
    groups = expected_groups(weight, by, transposed)
    assert layout.num_groups == len(groups)
    flat = torch.empty(weight.numel())
    if own:
        flat = weight.as_strided((weight.numel(),), (1,))
    else:
        flat = weight.contiguous().flatten()
    view = flat.view(layout.blocks, layout.outer, layout.groups, layout.inner)
    found = view.permute(0, 2, 1, 3).reshape(layout.num_groups, -1)
    for mine, theirs in zip(found, groups, strict=True):
        assert torch.equal(mine.sort().values, theirs.sort().values)


def test_deeper_stacks_and_bad_ones():
    assert layout_of(torch.zeros(2, 3, 5, 4), Grouping("output", stacked=True))[0].num_groups == 30
    assert layout_of(torch.zeros(2, 3, 5, 4), Grouping("input", stacked=True))[0].num_groups == 24
    with pytest.raises(ValueError, match="conv_groups: expected 1 for a stack"):
        layout_of(torch.zeros(2, 5, 4), Grouping("input", conv_groups=2, stacked=True))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("by", ["input", "output"])
def test_penalty_and_optimizer_cut_each_matrix(by, transposed):
    torch.manual_seed(0)
    model, penalty = Experts(transposed), sa.GroupLasso(2.0, by=by)
    (group,) = sa.param_groups(model, penalty)
    assert group["stacked"] is True
    assert group["transposed"] is transposed
    matrices = nn.ModuleList(  # the same matrices as linear layers
        nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(E)) for w in (model.up_proj, model.down_proj)
    )
    for stack, weight in zip(matrices, (model.up_proj, model.down_proj), strict=True):
        for e, linear in enumerate(stack):
            linear.weight = nn.Parameter((weight[e].T if transposed else weight[e]).detach().clone())
    one = sa.RMDA(sa.param_groups(model, penalty, lr=0.1, momentum=0.2))
    many = sa.RMDA(sa.param_groups(matrices, penalty, lr=0.1, momentum=0.2))
    assert one.penalty_value() == pytest.approx(many.penalty_value(), rel=1e-6)
    for step in range(4):
        for stack, weight in zip(matrices, (model.up_proj, model.down_proj), strict=True):
            weight.grad = torch.sin(torch.arange(weight.numel()) + step).view_as(weight)
            for e, linear in enumerate(stack):
                linear.weight.grad = (weight.grad[e].T if transposed else weight.grad[e]).clone()
        one.step()
        many.step()
    one.finalize_()
    many.finalize_()
    for stack, weight in zip(matrices, (model.up_proj, model.down_proj), strict=True):
        for e, linear in enumerate(stack):
            torch.testing.assert_close(weight[e].T if transposed else weight[e], linear.weight, rtol=1e-5, atol=1e-6)
    report, parts = sa.sparsity(model, by), sa.sparsity(matrices, by)
    assert (report.groups, report.zero_groups) == (parts.groups, parts.zero_groups)
    assert 0 < report.zero_groups < report.groups
    again = sa.RMDA(sa.param_groups(copy.deepcopy(model), penalty, lr=0.1, momentum=0.2))
    again.load_state_dict(one.state_dict())
    assert again.param_groups[0]["stacked"] is True


def test_states_of_before_stacks_existed_load():
    model = nn.Linear(4, 3)
    optimizer = sa.RMDA(sa.param_groups(model, sa.GroupLasso(0.1), lr=0.1, momentum=0.2))
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["stacked"]
    optimizer.load_state_dict(saved)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(E, OUT, IN))
        self.place = nn.Parameter(torch.randn(1, 7, IN))
        self.kernel = nn.Parameter(torch.randn(6, 4, 3, 3))


def test_unknown_stacks_are_left_out_with_a_warning():
    model = nn.Sequential(Unknown(), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"0\.weight \(3, 5, 4\), 0\.place \(1, 7, 4\): which dimensions"):
        groups = sa.param_groups(model, sa.GroupLasso(0.1))
    regularized = [p for group in groups if group["penalty"] is not None for _, p in group["params"]]
    assert {id(p) for p in regularized} == {id(model[0].kernel), id(model[1].weight)}
    with pytest.warns(UserWarning, match="left out"):
        assert [layer.name for layer in sa.sparsity(model).layers] == ["0.kernel", "1.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = {"*.weight": "output,input", "1.weight": None, "*.place": None}
        names = [layer.name for layer in sa.sparsity(model, stacked=said).layers]
        assert names == ["0.weight", "0.kernel"]
        assert sa.sparsity(model, "output", stacked=said).layers[0].groups == E * OUT
        assert sa.sparsity(model, "input", stacked={**said, "0.weight": "input,output"}).layers[0].groups == E * OUT
        sa.param_groups(model, sa.L1(0.1))  # of elements: whatever they are
        sa.param_groups(model, None)
    with pytest.raises(ValueError, match=r"stacked: \*: expected 'output,input'"):
        sa.param_groups(model, sa.GroupLasso(0.1), stacked={"*": "E,out,in"})
    with pytest.raises(ValueError, match=r"stacked: 1\.weight: expected three or more dimensions"):
        sa.param_groups(model, sa.GroupLasso(0.1), stacked={"*.weight": "output,input"})


def test_what_modules_say():
    def module(shape, local="weight", **attributes):
        made = nn.Module()
        made.register_parameter(local, nn.Parameter(torch.zeros(shape)))
        for name, value in attributes.items():
            setattr(made, name, value)
        return stacked_layout(made, local)

    assert module((3, 5, 4), input_size=4, output_size=5) == STACKS[0]
    assert module((3, 5, 4), in_features=5, out_features=4) == STACKS[1]
    assert module((3, 4, 4), in_features=4, out_features=4) is None
    assert module((3, 5, 4)) is None
    assert module((3, 10, 4), "gate_up_proj", hidden_size=4) == STACKS[0]
    assert module((3, 4, 10), "gate_up_proj", hidden_dim=4) == STACKS[1]
    assert module((3, 4, 5), "down_proj", hidden_size=4) == STACKS[0]
    assert module((3, 5, 4), "down_proj", hidden_size=4) == STACKS[1]
    assert module((3, 4, 4), "down_proj", hidden_size=4) is None
    assert module((3, 6, 6), "up_proj", hidden_size=4) is None


@pytest.mark.parametrize("name", ["mixtral", "qwen3", "gpt_oss", "llama4"])
def test_transformers(name):
    from expert_models import TRANSFORMERS

    model = TRANSFORMERS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = sa.sparsity(model, "output")
    experts, inner = {"mixtral": (4, 24), "qwen3": (6, 12), "gpt_oss": (4, 12), "llama4": (4, 12)}[name]
    groups = {layer.name.rpartition(".")[2]: layer.groups for layer in report.layers}
    assert groups["gate_up_proj"] == experts * 2 * inner
    assert groups["down_proj"] == experts * 16
    groups = {layer.name.rpartition(".")[2]: layer.groups for layer in sa.sparsity(model, "input").layers}
    assert groups["gate_up_proj"] == experts * 16
    assert groups["down_proj"] == experts * inner


@pytest.mark.parametrize("transposed", [False, True])
def test_compact_around_stacks_is_right(transposed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, IN), Experts(transposed), nn.Linear(IN, 2))
    with torch.no_grad():
        model[2].weight[:, ::2] = 0  # hidden channels that nobody reads
        ups = model[3].up_proj.mT if transposed else model[3].up_proj
        downs = model[3].down_proj.mT if transposed else model[3].down_proj
        ups[:, 1] = 0  # a neuron of every expert
        downs[:, :, 1] = 0
    x = torch.randn(5, 6)
    optimizer = sa.RMDA(sa.param_groups(model, sa.GroupLasso(1e-3), lr=1e-3, momentum=0.1))
    model(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model[2].weight[:, ::2] = 0
    result = sa.compact(model, x, optimizer=optimizer)
    torch.testing.assert_close(result.model(x), model(x))
    assert result.model[0].out_features == 4
    result.model(x).sum().backward()
    result.optimizer.step()
    assert find_widths(model, x) is not None
