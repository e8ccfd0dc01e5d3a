"""What curvature IHT returns; saved without pickle, exported to torch's sparse formats."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.channels.graph import tensors_of
from sparse_accel.prune.unstructured.masks import Masks, pack, unpack
from sparse_accel.prune.unstructured.report import CurvatureIHTReport
from sparse_accel.removal.files import CheckpointError, read_json, read_tensors

FORMAT = "sparse_accel.sparse_model"
VERSION = 1
MODEL_FILE, PLAN_FILE = "sparse_model.safetensors", "sparse_model.json"


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
        """Write ``sparse_model.safetensors`` and ``sparse_model.json``, for :func:`load_sparse`.

        Of masked parameters only the kept weights and one bit for each weight are stored. Weights that are not zero
        where the mask removes them are refused: call ``masks.apply_()`` first.

        Raises:
            CheckpointError: the model has state besides tensors, or weights where its masks have none.

        Returns:
            The directory.
        """
        from safetensors.torch import save_file

        for name, module in self.model.named_modules():
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                raise CheckpointError(f"{name or 'model'} ({type(module).__name__}): extra state cannot be saved")
        in_state = self.model.state_dict(keep_vars=True)
        masks = {id(in_state[name]): mask for name, mask in self.masks.items()}
        stored: dict[str, Tensor] = {}
        described: dict[str, Any] = {}
        for name, tensor in tensors_of(self.model).items():
            if name not in in_state:
                continue
            value = tensor.detach().cpu().contiguous()
            mask = masks.get(id(tensor))
            described[name] = {"shape": list(value.shape), "masked": mask is not None}
            if mask is None:
                stored[name] = value
                continue
            mask = mask.cpu()
            if bool((value[~mask] != 0).any()):
                raise CheckpointError(f"{name}: holds weights that its mask removes: call masks.apply_() first")
            stored[f"{name}:kept"], stored[f"{name}:mask"] = value[mask], pack(mask)
        plan = {
            "format": FORMAT,
            "version": VERSION,
            "torch": torch.__version__,
            "class": f"{type(self.model).__module__}.{type(self.model).__qualname__}",
            "tensors": described,
            "report": self.report.to_plain(),
        }
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        save_file(stored, directory / (MODEL_FILE + ".tmp"), metadata={"format": "pt"})
        (directory / (PLAN_FILE + ".tmp")).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        for name in (MODEL_FILE, PLAN_FILE):
            os.replace(directory / (name + ".tmp"), directory / name)
        return directory

    def export(self, form: str = "csr", along: str = "input") -> dict[str, Tensor]:
        """The pruned weights in one of torch's sparse formats; see :func:`export_sparse`."""
        stacks = {layer.name: layer.stacked for layer in self.report.layers if layer.stacked}
        stacked = {name: stacks.get(name) or stacks.get(name.removesuffix(".weight"), "") for name in self.masks}
        stacked = {name: layout for name, layout in stacked.items() if layout}
        return export_sparse(self.model, list(self.masks), form, along, stacked)


def load_sparse(directory: str | os.PathLike[str], model: nn.Module) -> CurvatureIHTResult:
    """Rebuild a pruned model from a fresh instance of the dense one.

    Args:
        directory: written by :meth:`CurvatureIHTResult.save`.
        model: an instance of the original class; its values do not matter, and it is not changed.

    Raises:
        CheckpointError: a file is missing or damaged, or is not the model's.

    Example:
        >>> from sparse_accel.prune import CurvatureIHT
        >>> result = CurvatureIHT(nn.Linear(8, 4), sparsity="2:4").run(torch.randn(64, 8))
        >>> _ = result.save("two_of_four")
        >>> torch.equal(load_sparse("two_of_four", nn.Linear(8, 4)).model.weight, result.model.weight)
        True
    """
    directory = Path(directory)
    plan = read_json(directory / PLAN_FILE, FORMAT, VERSION)
    stored = read_tensors(directory / MODEL_FILE)
    hint = f"(the checkpoint is of {plan['class']}, the model a {type(model).__module__}.{type(model).__qualname__})"
    new = copy.deepcopy(model)
    in_state = new.state_dict(keep_vars=True)
    tensors = {name: tensor for name, tensor in tensors_of(new).items() if name in in_state}
    if set(tensors) != set(plan["tensors"]):
        odd = sorted(set(tensors) ^ set(plan["tensors"]))[0]
        raise CheckpointError(f"{odd}: only one of the checkpoint and the model has this tensor {hint}")
    masks = {}
    with torch.no_grad():
        for name, entry in plan["tensors"].items():
            if list(tensors[name].shape) != entry["shape"]:
                came = list(tensors[name].shape)
                raise CheckpointError(f"{name}: expected the shape {entry['shape']}, got {came} {hint}")
            try:
                if entry["masked"]:
                    masks[name] = unpack(stored[f"{name}:mask"], entry["shape"])
                    kept = stored[f"{name}:kept"]
                    value = torch.zeros(entry["shape"], dtype=kept.dtype)
                    value[masks[name]] = kept
                else:
                    value = stored[name]
            except (KeyError, ValueError, RuntimeError) as error:
                raise CheckpointError(f"{directory / MODEL_FILE}: {name}: {error}") from error
            tensors[name].data = value.to(tensors[name].device)
    return CurvatureIHTResult(new, CurvatureIHTReport.from_plain(plan["report"]), Masks(new, masks))


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
        ValueError: ``form``, ``along`` or a name is unknown; or a weight cannot be semi-structured: the message says
            why.

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
    parameters = dict(model.named_parameters(remove_duplicate=False))
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
