"""What curvature IHT returns; saved without pickle, exported to torch's sparse formats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel._modes import outside_inference_mode
from sparse_accel.channels.graph import tensors_of
from sparse_accel.prune.unstructured.masks import Masks, pack, read_mask
from sparse_accel.prune.unstructured.report import CurvatureIHTReport
from sparse_accel.removal import checkpoint
from sparse_accel.removal.checkpoint import Contents, Source
from sparse_accel.removal.compact_checkpoint import persistent, same_kind
from sparse_accel.removal.files import CheckpointError, Field, checksum, dtype_name
from sparse_accel.removal.surgery import apply_plan
from sparse_accel.wrappers import bare_model

FORMAT = "sparse_accel.sparse_model"
_OLD_FILES = ["sparse_model.safetensors", "sparse_model.json"]


@dataclass
class CurvatureIHTResult:
    """What :meth:`CurvatureIHT.run` returns.

    Attributes:
        model: the pruned model, a copy.
        report: per layer sparsity, relative output error, time, damping; a table when printed.
        masks: of the pruned weights, for fine-tuning: see :meth:`Masks.apply_to`.
    """

    model: nn.Module
    report: CurvatureIHTReport
    masks: Masks

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """The same as :func:`sparse_accel.save`."""
        return checkpoint.save(self, directory)

    def export(self, form: str = "csr", along: str = "input") -> dict[str, Tensor]:
        """The pruned weights in one of torch's sparse formats; see :func:`export_sparse`."""
        stacks = {layer.name: layer.stacked for layer in self.report.layers if layer.stacked}
        stacked = {name: stacks.get(name) or stacks.get(name.removesuffix(".weight"), "") for name in self.masks}
        stacked = {name: layout for name, layout in stacked.items() if layout}
        return export_sparse(self.model, list(self.masks), form, along, stacked)


@outside_inference_mode
def load_sparse(directory: str | os.PathLike[str], model: nn.Module) -> CurvatureIHTResult:
    """Rebuild a pruned model from a fresh instance of the dense one, with its masks and report.

    Args:
        directory: written by :func:`sparse_accel.save`.
        model: an instance of the original class; its values do not matter, and it is not changed.

    Raises:
        CheckpointError: a file is missing, damaged or of another save, or is not the model's.

    Example:
        >>> from sparse_accel.prune import CurvatureIHT
        >>> result = CurvatureIHT(nn.Linear(8, 4), sparsity="2:4").run(torch.randn(64, 8))
        >>> _ = result.save("two_of_four")
        >>> torch.equal(load_sparse("two_of_four", nn.Linear(8, 4)).model.weight, result.model.weight)
        True
    """
    with torch.inference_mode(False):  # what is loaded can be trained
        source, _ = checkpoint.open_checkpoint(directory, FORMAT)
        return _read(source, bare_model(model, CheckpointError))


def _contents(result: CurvatureIHTResult) -> Contents:
    model = bare_model(result.model, CheckpointError)
    checkpoint.refuse_extra_state(model)
    in_state = model.state_dict(keep_vars=True)
    masks = {id(in_state[name]): mask for name, mask in result.masks.items()}
    stored: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for name, tensor in persistent(model).items():
        value, mask = tensor.detach().cpu().contiguous(), masks.get(id(tensor))
        described[name] = {"shape": list(value.shape), "masked": mask is not None, "dtype": dtype_name(value)}
        if mask is None:
            stored[name] = value
        else:
            mask = mask.cpu()
            if bool((value[~mask] != 0).any()):
                raise CheckpointError(f"{name}: holds weights that its mask removes: call masks.apply_() first")
            stored[f"{name}:kept"], stored[f"{name}:mask"] = value[mask], pack(mask)
            described[name]["mask_crc32"] = checksum(stored[f"{name}:mask"])
        described[name]["crc32"] = checksum(stored[name if mask is None else f"{name}:kept"])
    return Contents(model, stored, {"tensors": described, "report": result.report.to_plain()}, stale=_OLD_FILES)


def _read(source: Source, model: nn.Module) -> CurvatureIHTResult:
    plan, stored, hint = source.plan, source.stored, source.hint(model)
    dense = persistent(model)
    described = dict(plan["tensors"].items())
    if set(dense) != set(described):
        odd = sorted(set(dense) ^ set(described))[0]
        raise CheckpointError(f"{odd}: only one of the checkpoint and the model has this tensor {hint}")
    device = next((t.device for t in tensors_of(model).values() if t.device.type != "meta"), torch.device("cpu"))
    masks: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, entry in described.items():
        shape = entry["shape"].sizes()
        if list(dense[name].shape) != shape:
            raise CheckpointError(f"{name}: expected the shape {shape}, got {list(dense[name].shape)} {hint}")
        if not entry["masked"].flag():
            value = stored.take(name, entry, shape)
        else:
            if not isinstance(dense[name], nn.Parameter):
                raise entry["masked"].wrong("false: this tensor is not a parameter")
            bits = {"crc32": entry["mask_crc32"].value} if "mask_crc32" in entry else {}
            masks[name] = read_mask(stored, f"{name}:mask", shape, Field(bits, plan.path, (*entry.keys, "mask")))
            kept = stored.take(f"{name}:kept", entry, [int(masks[name].sum())])
            value = torch.zeros(shape, dtype=kept.dtype, device="cpu")
            value[masks[name]] = kept
        same_kind(value, dense[name], f"{stored.path}: {name}")
        tensors[name] = value.to(device)
    report = CurvatureIHTReport.from_field(plan["report"])
    new = checkpoint.fresh_copy(model, source)
    apply_plan(new, {"created": {}, "attributes": {}}, tensors)
    return CurvatureIHTResult(new, report, Masks(new, masks))


checkpoint.register(
    FORMAT,
    lambda result: isinstance(result, CurvatureIHTResult),
    _contents,
    lambda source, model: _read(source, model).model,
)


def export_sparse(
    model: nn.Module,
    names: list[str],
    form: str = "csr",
    along: str = "input",
    stacked: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Weights in one of torch's sparse formats.

    Args:
        model: whose parameters they are.
        names: of parameters, such as ``list(result.masks)``. Those of more than two dimensions are taken as matrices
            ``[first dimension, the rest]``.
        form: ``"csr"`` for ``torch.sparse_csr`` tensors, ``"semi_structured"`` for torch's 2:4 format, which exists
            for float16, bfloat16 and int8 weights on NVIDIA GPUs from compute capability 8.0 on.
        along: of the semi-structured columns of a convolution ``[out, in, kh, kw]``: ``"input"`` for ``kh × kw × in``
            (input channels as neighbours, as in channels_last memory and as ``"2:4"`` prunes them), ``"row"`` for
            ``in × kh × kw`` (``torch.nn.functional.unfold``'s order). CSR is always the latter.
        stacked: of the names, those of stacks of matrices (the experts of a mixture) with what their last two
            dimensions are, ``"output,input"`` or ``"input,output"``, as :attr:`LayerReport.stacked` has it. Each matrix
            comes on its own as ``[out, in]``, under ``name[0]``, ``name[1]`` and so on.

    Returns:
        The sparse tensors by parameter name. ``torch.nn.functional.linear`` takes them in place of the dense weights.

    Raises:
        ValueError: ``form``, ``along`` or a name is unknown; a weight cannot be semi-structured; or parameters are
            flat, sharded or hidden behind a hook: the message says why.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> net.weight.data[:, ::2] = 0
        >>> export_sparse(net, ["weight"])["weight"].layout
        torch.sparse_csr
    """
    if form not in ("csr", "semi_structured"):
        raise ValueError(f"form: expected 'csr' or 'semi_structured', got {form!r}")
    if along not in ("input", "row"):
        raise ValueError(f"along: expected 'input' or 'row', got {along!r}")
    stacked = {} if stacked is None else stacked
    for name, layout in stacked.items():
        if layout not in ("output,input", "input,output"):
            raise ValueError(f"stacked: {name}: expected 'output,input' or 'input,output', got {layout!r}")
    parameters = dict(bare_model(model).named_parameters(remove_duplicate=False))
    out = {}
    for name in names:
        if name not in parameters:
            raise ValueError(f"names: the model has no parameter {name!r}")
        matrices = {name: parameters[name].detach()}
        if name in stacked:
            stack = matrices.pop(name).flatten(0, -3)
            stack = stack if stacked[name] == "output,input" else stack.mT
            matrices = {f"{name}[{number}]": matrix for number, matrix in enumerate(stack)}
        for key, weight in matrices.items():
            if form == "csr":
                out[key] = weight.reshape(len(weight), -1).to_sparse_csr()
            else:
                out[key] = _semi_structured(key, weight, along)
    return out


def _two_of_four(name: str, weight: Tensor, along: str) -> Tensor:
    """The weight as a matrix in whose rows every four neighbours hold at most two nonzeros.

    Raises:
        ValueError: it is not such a weight.
    """
    run = weight[0].numel() if along == "row" else weight.shape[1]
    if along == "input":
        weight = weight.movedim(1, -1)
    rows = weight.reshape(len(weight), -1)
    if run % 4:
        what = "inputs" if weight.dim() == 2 else "input channels" if along == "input" else "weights of a row"
        raise ValueError(f"{name}: expected a multiple of 4 {what} for torch's semi-structured format, got {run}")
    if bool(((rows.reshape(len(rows), -1, 4) != 0).sum(2) > 2).any()):
        where = "neighbours in a row" if weight.dim() == 2 or along == "row" else "input channels at one tap"
        raise ValueError(
            f"{name}: expected at most 2 of 4 {where} to be nonzero; prune with sparsity='2:4'"
            + (", or export with the along that it was pruned with" if weight.dim() > 2 else "")
        )
    return rows


def _semi_structured(name: str, weight: Tensor, along: str) -> Tensor:
    if weight.device.type != "cuda":
        raise ValueError(f"{name}: torch's semi-structured format needs a CUDA tensor, got one on {weight.device}")
    if weight.dtype not in (torch.float16, torch.bfloat16, torch.int8):
        raise ValueError(f"{name}: torch's semi-structured format needs float16, bfloat16 or int8, got {weight.dtype}")
    rows = _two_of_four(name, weight, along)
    try:
        return torch.sparse.to_sparse_semi_structured(rows)
    except (RuntimeError, NotImplementedError) as error:
        size = " × ".join(map(str, rows.shape))
        raise ValueError(f"{name}: torch cannot make a {size} weight semi-structured: {error}") from error
