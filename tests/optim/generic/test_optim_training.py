"""Training with minibatches, as in the README: RMDA finds the inputs that do not matter, and keeps finding them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa


def zero_inputs(make: Any, seed: int) -> Tensor:
    """Which of 30 inputs, of which the first 5 matter, have no weights: [steps of the last epoch, 30]."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(512, 30, generator=generator)
    weights = torch.tensor([1.0, -1.0, 0.8, 1.2, -0.7] + 25 * [0.0])
    targets = torch.tanh(inputs @ weights)[:, None] + 0.3 * torch.randn(512, 1, generator=generator)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 1))
    opt = make(sa.param_groups(model, sa.GroupLasso(0.02, by="input")))
    sched = sa.lr_scheduler.MultiStageLR(opt, milestones=[10, 20], gamma=0.1)
    found = []
    for epoch in range(30):
        for batch in torch.randperm(512, generator=generator).split(16):
            opt.zero_grad()
            nn.functional.mse_loss(model(inputs[batch]), targets[batch]).backward()
            opt.step()
            if epoch == 29:
                with opt.proximal_parameters():
                    found.append(model[0].weight.detach().eq(0).all(0))
        sched.step()
    return torch.stack(found)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rmda_identifies_the_inputs_that_matter(seed: int) -> None:
    rmda = zero_inputs(lambda groups: sa.RMDA(groups, lr=0.1, momentum=0.1), seed)
    prox_sgd = zero_inputs(lambda groups: sa.ProxSGD(groups, lr=0.1), seed)
    assert not rmda[-1, :5].any()
    assert rmda[-1, 5:].sum() >= 21
    assert rmda[-1].sum() > prox_sgd[-1].sum()
    changes, theirs = ((z[1:] != z[:-1]).sum().item() for z in (rmda, prox_sgd))
    assert changes < theirs / 3  # a proximal step on a noisy gradient lets groups in and out


@pytest.mark.parametrize("make", [sa.RMDA, sa.ProxSGD])
def test_channels_last_training_equals_contiguous(make: Any) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(16, 3, 8, 8), torch.randint(0, 4, (16,))
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 4)
        )
        model = model.double().to(memory_format=memory_format)
        opt = make(sa.param_groups(model, sa.GroupLasso(0.02)), lr=0.2)
        for _ in range(8):
            opt.zero_grad()
            batch = images.double().to(memory_format=memory_format)
            nn.functional.cross_entropy(model(batch), labels).backward()
            opt.step()
        opt.finalize_()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12, check_stride=False)
        assert torch.equal(one == 0, two == 0)
    assert any(parameter.eq(0).any() for parameter in results[0])
