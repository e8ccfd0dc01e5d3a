"""smoke.py [DEVICE]: every op and optimizer once, on small and awkward shapes, against the CPU. For compute-sanitizer:
each tensor is an allocation of its own size where PYTORCH_NO_CUDA_MEMORY_CACHING is set."""

import sys

import torch

import sparse_accel as sa
from sparse_accel import ops

DEVICE = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
SHAPES = [(37, 53), (1, 300), (300, 1), (5, 4100), (16, 8, 3, 3), (70, 33)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}


def weights(dtype):
    """Normal tensors on the CPU; the last one starts past a 16-byte boundary on any device it is copied to."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def there(tensor):
    """On the device, one element past the start of its memory."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=DEVICE)
    return memory[1:].view(tensor.shape).copy_(tensor)


def same(found, expected, what, computed=None):
    """computed: the type that the numbers were computed in, if not their own."""
    near = TOLERANCE.get(computed or expected.dtype, 0)
    torch.testing.assert_close(found.cpu(), expected, rtol=near, atol=near, msg=lambda text: f"{what}\n{text}")


def check_ops(dtype):
    for by in ("input", "output", "kernel", "element"):
        tensors = [w for w in weights(dtype) if by != "kernel" or w.dim() == 4]
        layouts = [sa.group_layout(w, by) for w in tensors]
        for place in (there, lambda w: w.to(DEVICE)):
            for ours, plain in zip(
                ops.group_score([place(w) for w in tensors], layouts), ops.group_score(tensors, layouts), strict=True
            ):
                same(ours, plain, f"group_score {by}")
            moved, kept = [place(w) for w in tensors], [w.clone() for w in tensors]
            taus = [0.3] * len(tensors)
            values = ops.prox_(moved, layouts, taus, return_value=True)
            same(values, ops.prox_(kept, layouts, taus, return_value=True), f"prox_ value {by}", dtype)
            for ours, plain in zip(moved, kept, strict=True):
                same(ours, plain, f"prox_ {by}")


def check_topk():
    scores = [w.flatten() for w in weights(torch.float32)]
    for ours, plain in zip(
        ops.group_topk([s.to(DEVICE) for s in scores], 1000), ops.group_topk(scores, 1000), strict=True
    ):
        same(ours, plain, "group_topk")
    for weight in weights(torch.float32):
        for k, by in ((weight.numel() // 2, "tensor"), (weight[0].numel() // 3, "row"), ((2, 4), "row")):
            ours, plain = weight.to(DEVICE), weight.clone()
            masks = sa.topk_threshold_(ours, None, k, by=by), sa.topk_threshold_(plain, None, k, by=by)
            same(*masks, f"topk {by} mask")
            same(ours, plain, f"topk {by}")


def check_optimizers(dtype):
    for make in (
        lambda p: sa.RMDA(p, lr=0.1, momentum=0.3, penalty=sa.GroupLasso(0.02, by="input")),
        lambda p: sa.ProxSGD(p, lr=0.1, rho=0.3, penalty=sa.GroupLasso(0.02, by="output")),
    ):
        here = [w.requires_grad_() for w in weights(dtype)]
        far = [w.detach().to(DEVICE).requires_grad_() for w in here]
        both = make(here), make(far)
        for step in range(2):
            for one, two in zip(here, far, strict=True):
                one.grad = (one.detach() * (0.5 + step)).clone()
                two.grad = one.grad.to(DEVICE)
            for optimizer in both:
                optimizer.step()
        for one, two in zip(here, far, strict=True):
            same(two.detach(), one.detach(), make)


def check_steps():
    """glm and masked_cg."""
    generator = torch.Generator().manual_seed(1)
    features, z = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((9, 70), (70,)))
    targets = (torch.arange(9) % 2).double()
    ours, _ = sa.glm_prox(z.to(DEVICE), features.to(DEVICE), targets.to(DEVICE), 0.5, "binomial")
    same(ours, sa.glm_prox(z, features, targets, 0.5, "binomial")[0], "glm_prox")
    order = torch.tensor([3, 0, 8, 3])
    points = [[z.clone().to(device), z.clone().to(device)] for device in (DEVICE, torch.device("cpu"))]
    for (x, previous), device in zip(points, (DEVICE, "cpu"), strict=True):
        sa.glm_epoch(x, previous, *(t.to(device) for t in (features, targets, order)), 0.5, 0.3, "binomial")
    same(points[0][0], points[1][0], "glm_epoch")
    w, h = z.view(2, 35), features.mT @ features
    mask, h = w > 0, h[:35, :35] + torch.eye(35, dtype=torch.float64)
    ours = sa.masked_cg(w.to(DEVICE), mask.to(DEVICE), h.to(DEVICE), 5)
    torch.testing.assert_close(ours.cpu(), sa.masked_cg(w, mask, h, 5), rtol=1e-8, atol=1e-8)


for kind in TOLERANCE:
    check_ops(kind)
    check_optimizers(kind)
check_topk()
check_steps()
if DEVICE.type == "cuda":
    torch.cuda.synchronize()
print("all correct")
