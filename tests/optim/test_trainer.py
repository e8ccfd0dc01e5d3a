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
