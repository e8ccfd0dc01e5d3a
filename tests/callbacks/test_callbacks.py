"""The history of zeros in plain loops, and the callbacks inside the real Trainers of transformers and Lightning."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa


class Writer:
    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.out(self.hidden(x).relu())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows() -> list[dict[str, Tensor]]:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    return [{"x": x[i], "labels": torch.tensor(i % 3)} for i in range(16)]


def optimizer(model: nn.Module, strength: float = 0.15, **options: Any) -> sa.RMDA:
    return sa.RMDA(sa.param_groups(model, sa.GroupLasso(strength, by="input")), lr=0.3, momentum=0.2, **options)


def zeros(weights: Any) -> int:
    return sum(int(weights[name].eq(0).all(0).sum()) for name in ("hidden.weight", "out.weight"))


def test_a_plain_loop() -> None:
    model, writer = Net(), Writer()
    opt = optimizer(model)
    history = sa.callbacks.SparsityHistory(model, opt, writer=writer)
    batch = torch.utils.data.default_collate(rows())
    for step in range(6):
        opt.zero_grad()
        model(**batch)["loss"].backward()
        opt.step()
        before = copy.deepcopy(model.state_dict())
        row = history.record(loss=step / 2)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])
        with opt.proximal_parameters():
            assert row["zero_groups"] == zeros(model.state_dict())
    assert [row["step"] for row in history.rows] == list(range(6))
    assert row["loss"] == 2.5
    assert row["strength"] == 0.15
    assert row["groups"] == 14
    assert row["group_sparsity"] == row["zero_groups"] / 14 > 0
    assert writer.scalars[-3] == ("sparsity/group_sparsity", row["group_sparsity"], 5)
    assert len(writer.scalars) == 18
    other = sa.callbacks.SparsityHistory(model)
    other.load_state_dict(history.state_dict())
    assert other.rows == history.rows
    assert other.record()["zero_groups"] == 0  # without the optimizer: the training weights
    assert other.rows[-1]["strength"] is None
    assert len(history.rows) == 6


def test_other_optimizers_and_refusals() -> None:
    model = Net()
    adam = torch.optim.AdamW(model.parameters())
    assert sa.callbacks.SparsityHistory(model, adam, by="output").record()["groups"] == 11
    with pytest.raises(TypeError, match="optimizer: expected an optimizer or None, got str"):
        sa.callbacks.SparsityHistory(model, "adam")
    with pytest.raises(ValueError, match="by: expected"):
        sa.callbacks.SparsityHistory(model, by="rows").record()
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        sa.callbacks.Nothing  # noqa: B018


def test_other_libraries_are_imported_on_use_only() -> None:
    code = (
        "import sys, sparse_accel as sa\nsa.callbacks.SparsityHistory\n"
        "assert not {'transformers', 'lightning', 'pytorch_lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ---------------------------------------------------------------------- transformers


def hf_run(folder: Path, resume: str | None = None, **options: Any) -> tuple[Net, Any, Any]:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = Net()
    opt = optimizer(model, 0.3)
    callback = sa.callbacks.TrainerCallback()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        save_strategy="steps",
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        weight_decay=0.0,
        **options,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows(),
        eval_dataset=rows(),
        optimizers=(opt, torch.optim.lr_scheduler.ConstantLR(opt, factor=1.0)),
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, callback, trainer


def test_checkpoints_of_trainer_without_evaluation(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, callback, _ = hf_run(tmp_path / "a")
    for step in (4, 6):
        assert zeros(load_file(tmp_path / "a" / f"checkpoint-{step}" / "model.safetensors")) > 0
    assert zeros(model.state_dict()) > 0  # ready for save_model
    assert callback.history.rows == []  # nothing was evaluated
    again, _, _ = hf_run(tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-2"))
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_metrics_of_trainer_and_the_best_by_sparsity(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, callback, trainer = hf_run(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_group_sparsity",
        greater_is_better=True,
    )
    found = [row["group_sparsity"] for row in callback.history.rows]
    assert [row["step"] for row in callback.history.rows] == [2, 4, 6]
    assert max(found) > 0
    best = 2 * found.index(max(found)) + 2
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert zeros(load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")) == round(max(found) * 14)
    assert zeros(model.state_dict()) == round(max(found) * 14)  # the best, not the last
    logged = [row["eval_group_sparsity"] for row in trainer.state.log_history if "eval_group_sparsity" in row]
    assert set(logged) == set(found)


# ---------------------------------------------------------------------- Lightning


def lightning_run(folder: Path, epochs: int, resume: str | None = None, **options: Any) -> tuple[Any, Any, Any, Any]:
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.validated: list[int] = []
            self.trained: list[int] = []

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            self.trained.append(zeros(self.net.state_dict()))
            return self.net(**batch)["loss"]

        def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
            self.validated.append(zeros(self.net.state_dict()))
            self.log("val_loss", self.net(**batch)["loss"])

        def configure_optimizers(self) -> Any:
            return optimizer(self.net)

    module, callback = Module(), sa.callbacks.LightningCallback()
    best = pl.callbacks.ModelCheckpoint(folder, monitor="val_loss", filename="best", save_top_k=1)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[callback, best, *options.pop("callbacks", [])],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        **options,
    )
    loader = torch.utils.data.DataLoader(rows()[:8] * 2, batch_size=8)  # two equal batches: after a stop in the middle
    # of an epoch Lightning begins with the first
    trainer.fit(module, loader, loader, ckpt_path=resume)
    return module, callback, trainer, best


@pytest.mark.filterwarnings("ignore")
def test_lightning_validates_and_saves_the_proximal_iterate(tmp_path: Path) -> None:
    module, callback, trainer, best = lightning_run(tmp_path, 5)
    assert module.validated[-1] > 0
    assert not any(module.trained)
    assert [row["step"] for row in callback.history.rows] == [2, 4, 6, 8, 10]
    assert callback.history.rows[-1]["zero_groups"] == module.validated[-1]
    assert trainer.callback_metrics["group_sparsity"] == pytest.approx(module.validated[-1] / 14)
    stored = torch.load(best.best_model_path, weights_only=False)
    assert stored["optimizer_states"][0]["param_groups"][0]["train_mode"] is False
    found = zeros({name.removeprefix("net."): value for name, value in stored["state_dict"].items()})
    assert found == callback.history.rows[stored["global_step"] // 2 - 1]["zero_groups"]
    assert zeros(module.net.state_dict()) == module.validated[-1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", [1, 2])
def test_lightning_resumes_to_the_same_bits(tmp_path: Path, every: int) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    # Also from the middle of an epoch, where the training goes on undisturbed.
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "steps", every_n_train_steps=every, save_top_k=-1)
    whole, callback, _, _ = lightning_run(tmp_path / "a", 3, callbacks=[saver])
    plain, _, _, _ = lightning_run(tmp_path / "b", 3)
    for p, q in zip(whole.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    (path,) = (tmp_path / "steps").glob(f"*step={4 if every == 2 else 3}.ckpt")
    stored = torch.load(path, weights_only=False)
    assert stored["optimizer_states"][0]["param_groups"][0]["train_mode"] is False
    again, resumed, _, _ = lightning_run(tmp_path / "c", 3, resume=str(path))
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    if every == 1:  # not at the end of an epoch, whose last hooks the resumed run does not call
        assert resumed.history.rows == callback.history.rows
