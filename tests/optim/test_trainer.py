"""Inside transformers' Trainer, which wraps optimizers by accelerate and steps schedulers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.out = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.out(self.norm(self.embed(tokens).mean(1)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trained(folder: Path, model: Net, **options: Any) -> Any:
    rows = [{"tokens": torch.arange(i, i + 4) % 11, "labels": torch.tensor(i % 3)} for i in range(16)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=4,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        weight_decay=0.0,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, **options)
    trainer.train()
    return trainer


def test_stages_end_inside_trainer(tmp_path: Path) -> None:
    model = Net()
    opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(1e-3)), lr=0.1, momentum=0.1)
    trained(tmp_path, model, optimizers=(opt, sa.lr_scheduler.MultiStageLR(opt, [2])))
    assert {group["momentum"] for group in opt.param_groups} == {1.0}
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([0.01] * len(opt.param_groups))
    assert {int(state["step"]) for state in opt.state.values()} == {2}


def test_groups_given_by_class_and_arguments(tmp_path: Path) -> None:
    model = Net()
    groups = sa.param_groups(model, sa.GroupLasso(100.0, by="input"))
    options = {"params": groups, "lr": 0.1, "momentum": 1.0}
    trainer = trained(tmp_path, model, optimizer_cls_and_kwargs=(sa.RMDA, options))
    inner = trainer.optimizer.optimizer if hasattr(trainer.optimizer, "optimizer") else trainer.optimizer
    assert isinstance(inner, sa.RMDA)
    assert model.out.weight.eq(0).all()
    assert model.embed.weight.ne(0).all()
    assert sa.sparsity(model, by="input").group_sparsity == 1.0


class Watch(transformers.TrainerCallback):
    """Zero rows of the output layer at each evaluation, and training weights at each start of a step."""

    def __init__(self) -> None:
        self.zeros: list[int] = []
        self.training: list[Tensor] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.zeros.append(int(kwargs["model"].out.weight.eq(0).all(0).sum()))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.training.append(kwargs["model"].out.weight.detach().clone())


def evaluated(folder: Path, model: Net, watch: Watch, resume: str | None = None, milestone: int = 4) -> Any:
    rows = [{"tokens": torch.arange(i, i + 4) % 11, "labels": torch.tensor(i % 3)} for i in range(16)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        weight_decay=0.0,
    )
    opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(0.25, by="input")), lr=0.3, momentum=0.2)
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        optimizers=(opt, sa.lr_scheduler.MultiStageLR(opt, [milestone], momentum="constant")),
        callbacks=[watch],
    )
    trainer.train(resume_from_checkpoint=resume)
    return opt


def test_evaluation_and_the_best_checkpoint_have_exact_zeros(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, plain = Net(), Net()
    watch, unwatched = Watch(), Watch()
    opt = evaluated(tmp_path / "a", model, watch, milestone=9)
    assert len(watch.zeros) == 3
    assert all(count > 0 for count in watch.zeros)
    assert not any(weight.eq(0).all(0).any() for weight in watch.training)  # they are trained on meanwhile
    stored = load_file(tmp_path / "a" / "checkpoint-4" / "model.safetensors")
    assert stored["out.weight"].eq(0).all(0).sum() == watch.zeros[1]
    assert sa.sparsity(model, by="input").zero_groups > 0  # the best was loaded
    assert not opt.param_groups[0]["train_mode"]

    # Evaluation does not disturb: the weights of training are those of a run that only trains.
    trainer_free = sa.RMDA(sa.param_groups(plain, sa.GroupLasso(0.25, by="input")), lr=0.3, momentum=0.2)
    trained(
        tmp_path / "b",
        plain,
        optimizers=(trainer_free, sa.lr_scheduler.MultiStageLR(trainer_free, [9], momentum="constant")),
        callbacks=[unwatched],
    )
    for one, two in zip(watch.training, unwatched.training, strict=False):
        assert torch.equal(one, two)


def test_resumed_from_a_checkpoint_of_eval_mode_to_the_same_bits(tmp_path: Path) -> None:
    whole, rest = Watch(), Watch()
    first, second = Net(), Net()
    one = evaluated(tmp_path / "a", first, whole)
    two = evaluated(tmp_path / "b", second, rest, resume=str(tmp_path / "a" / "checkpoint-2"))
    assert rest.zeros == whole.zeros[1:]
    for a, b in zip(whole.training[2:], rest.training, strict=True):
        assert torch.equal(a, b)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(one.state[p][key], two.state[q][key]) for key in one.state[p])
