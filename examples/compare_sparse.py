"""Weights to zero beside the field: how close a network stays to the dense one, and the seconds, as a table and a plot.

    python examples/compare_sparse.py [--data DIR] [--net bert|resnet20] [--sparsities 50 70 2:4] [--rows WORD ...]

Rows: the largest weights, SparseGPT, ADMM with conjugate gradients (ALPS) and ours, curvature IHT, all by the same
streamed Hessians, layer after layer on the pruned front, without labels; then ours with three rounds of refine.

Without --data, anywhere: a small Transformer that is trained on scikit-learn's digits (rows of pixels are its tokens)
first; measured are the cosine of its pooled hidden states to the dense ones and the accuracy. With --data: the
pretrained BERT sentence encoder and the texts of bert_sparse.py, which says what DIR (or DIR/text) holds; measured is
the cosine. With --net resnet20 the ResNet-20 on CIFAR-10 of resnet20_cifar.py, pruned on the first --images images of
data_batch_1: cosine of the logits, and accuracy. There are two more rows there: sparsities by layer, and these with a
refinement on the same images, mirrored by chance (--steps of Adam, no labels).

Seconds are the processor's, of pruning alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_accel.prune import CurvatureIHT
from sparse_accel.report import format_table

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("magnitude", {"method": "magnitude"}),
    ("SparseGPT", {"method": "sparsegpt"}),
    ("ADMM + CG (ALPS)", {"method": "admm"}),
    ("curvature IHT", {}),
    ("curvature IHT, refine", {"refine": 3}),
]
SPREAD = {"allocation": "global"}  # for networks whose layers differ


class Task(NamedTuple):
    """A trained network with its data.

    Attributes:
        net: in eval mode.
        calibration: batches to prune on.
        embed: what a network makes of the test set, ``[samples, width]``.
        skip: layers that stay dense.
        judge: percent of the test set that a network gets right; None without labels.
        more: further rows.
    """

    net: nn.Module
    calibration: Any
    embed: Callable[[nn.Module], Tensor]
    skip: list[str]
    judge: Callable[[nn.Module], float] | None
    more: tuple[tuple[str, dict[str, Any]], ...] = ()


class Layer(nn.Module):
    """Attention and an MLP, each with a norm before it and a shortcut around it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Reader(nn.Module):
    """Reads an image row by row."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        self.layers = nn.Sequential(*(Layer(width, 4) for _ in range(layers)))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, 10)

    def hidden(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(self.embed(x) + self.place)).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.hidden(x))


def digits(epochs: int, seed: int) -> Task:
    """A small Transformer trained on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.images))
    images = torch.tensor(data.images[order] / 8 - 1, dtype=torch.float32)
    labels = torch.tensor(data.target[order])
    count = 1200
    torch.manual_seed(seed)
    net = Reader()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for part in torch.randperm(count).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(images[part]), labels[part]).backward()
            optimizer.step()

    @torch.no_grad()
    def embed(model: nn.Module) -> Tensor:
        hidden: Tensor = model.hidden(images[count:])  # type: ignore[operator]
        return hidden

    @torch.no_grad()
    def judge(model: nn.Module) -> float:
        return 100 * float((model(images[count:]).argmax(1) == labels[count:]).float().mean())

    return Task(net.eval(), list(images[:count].split(120)), embed, ["classifier"], judge)


def bert(directory: Path, folder: Path | None, calibration: int, test: int) -> Task:
    """The pretrained sentence encoder of bert_sparse.py."""
    from transformers import AutoModel, AutoTokenizer

    example = load_example("bert_sparse")
    files = {key: directory / name for key, name in example.FILES.items()}
    if not files["test"].exists():
        files = {key: directory / "text" / name for key, name in example.FILES.items()}
    folder = folder or example.package_model()
    tokenizer, net = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    counts = {"calibration": calibration, "test": test}
    texts = {key: example.read_texts(path, counts[key], 8) for key, path in files.items()}
    data = {key: example.tokenize(tokenizer, own, 128, 16) for key, own in texts.items()}
    return Task(net, data["calibration"], lambda model: example.embed(model, data["test"]), ["pooler"], None)


def resnet20(directory: Path, images: int, steps: int) -> Task:
    """The pretrained network of resnet20_cifar.py."""
    own = load_example("compare_structured")
    given = own.resnet20(directory, images, images, "flip", steps)

    @torch.no_grad()
    def embed(model: nn.Module) -> Tensor:
        return torch.cat([model(part) for part in given.images.split(500)])

    def judge(model: nn.Module) -> float:
        return 100 * float((embed(model).argmax(1) == given.labels).float().mean())

    refine = {"steps": steps, "augment": given.augment}
    more = (("curvature IHT, by layer", SPREAD), ("the same, fitted without labels", {**SPREAD, "refine": refine}))
    return Task(given.net, given.calibration, embed, [], judge, more)


def load_example(name: str) -> ModuleType:
    """Another script of this folder as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def sparsity(text: str) -> float | str:
    """``"50"`` is 0.5, ``"2:4"`` itself."""
    return text if ":" in text else float(text) / 100


def plot(figures: list[dict[str, Any]], sparsities: list[str], path: Path) -> None:
    """Distance from the dense network (one less the cosine), by method and sparsity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["method"] for row in figures))
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for number, name in enumerate(names):
        found = {row["sparsity"]: 1 - row["cosine"] for row in figures if row["method"] == name}
        places = [at + (number - (len(names) - 1) / 2) * 0.8 / len(names) for at in range(len(sparsities))]
        axes.bar(places, [max(found[text], 1e-6) for text in sparsities], 0.8 / len(names), label=name)
    axes.set_xticks(range(len(sparsities)), [text if ":" in text else f"{text} % zero" for text in sparsities])
    axes.set(yscale="log", ylabel="1 - cosine to the dense network (less is better)")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="texts of bert_sparse.py; without it, digits")
    parser.add_argument("--net", choices=["bert", "resnet20"], default="bert", help="with --data (bert)")
    parser.add_argument("--model", type=Path, help="folder of the encoder and its tokenizer (default: the package's)")
    parser.add_argument("--sparsities", nargs="+", default=["50", "70", "2:4"], help="percent, or n:m")
    parser.add_argument("--rows", nargs="+", metavar="WORD", help="only rows of the table that contain one of these")
    parser.add_argument("--calibration", type=int, default=128, help="texts")
    parser.add_argument("--test", type=int, default=256, help="texts")
    parser.add_argument("--images", type=int, default=1024, help="of the ResNet-20")
    parser.add_argument("--steps", type=int, default=200, help="of the ResNet-20's refinement")
    parser.add_argument("--epochs", type=int, default=12, help="of training on the digits")
    parser.add_argument("--seed", type=int, default=0, help="of the digits")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out-dir", type=Path, default=Path("out"), help="for compare_sparse.png and .json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.net == "resnet20" and args.data is None:
        raise SystemExit("--net resnet20: expected --data, the folder of resnet20_cifar.py")
    if args.data is None:
        task = digits(args.epochs, args.seed)
    elif args.net == "resnet20":
        task = resnet20(args.data, args.images, args.steps)
    else:
        task = bert(args.data, args.model, args.calibration, args.test)
    every = [*ROWS, *task.more]
    chosen = [(name, how) for name, how in every if not args.rows or any(word in name for word in args.rows)]
    if not chosen:
        raise SystemExit(f"--rows: expected words of {[name for name, _ in every]}, got {args.rows}")
    if any(":" in text for text in args.sparsities) and any("allocation" in how for _, how in chosen):
        raise SystemExit("--sparsities: the rows by layer take percents, not n:m")
    dense = task.embed(task.net)
    if task.judge is not None:
        print(f"dense: {task.judge(task.net):.2f} %", flush=True)
    figures: list[dict[str, Any]] = []
    for text in args.sparsities:
        for name, how in chosen:
            start = time.process_time()
            result = CurvatureIHT(task.net, sparsity(text), skip=task.skip, **how).run(task.calibration)
            seconds = time.process_time() - start
            cosine = float(torch.cosine_similarity(dense, task.embed(result.model)).mean())
            row: dict[str, Any] = {"method": name, "sparsity": text, "cosine": cosine, "processor_seconds": seconds}
            if task.judge is not None:
                row["accuracy"] = task.judge(result.model)
            figures.append(row)
            print(f"{text} {name}: cosine {cosine:.4f}, {seconds:.1f} s of processors", flush=True)
    found = {(row["method"], row["sparsity"]): row for row in figures}
    heads = [text if ":" in text else f"{text} %" for text in args.sparsities]
    titles = {"cosine": ("cosine to the dense network", ".4f"), "accuracy": ("test accuracy (%)", ".2f")}
    titles["processor_seconds"] = ("processor seconds", ".1f")
    for key, (title, form) in titles.items():
        if key in figures[0]:
            rows = [[name, *(f"{found[name, text][key]:{form}}" for text in args.sparsities)] for name, _ in chosen]
            print(format_table([title, *heads], rows))
    args.out_dir.mkdir(parents=True, exist_ok=True)
    plot(figures, args.sparsities, args.out_dir / "compare_sparse.png")
    path = args.out_dir / "compare_sparse.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{args.out_dir / 'compare_sparse.png'}, {path}")


if __name__ == "__main__":
    main()
