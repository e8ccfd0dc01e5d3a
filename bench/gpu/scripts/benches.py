"""benches.py FILE: the benches one after another; every row is written to FILE as soon as it is known, and a case that
fails leaves the others alone. Exits with 1 if one failed, or had no time."""

import argparse
import dataclasses
import gc
import json
import os
import time
import traceback
from pathlib import Path

from sparse_accel.bench import timer as bench_timer
from sparse_accel.bench.case import Settings
from sparse_accel.bench.command import BENCHES as MADE
from sparse_accel.bench.command import FORMAT, say
from sparse_accel.bench.facts import machine
from sparse_accel.bench.measure import floor_speed, measure
from sparse_accel.bench.table import format_line, format_row, headings

# In order of importance: what the time does not suffice for is the last.
BENCHES = [
    ("optim", "float32"), ("prox", "float32"), ("group_score", "float32"),
    ("optim", "bfloat16"), ("prox", "bfloat16"), ("group_score", "bfloat16"),
    ("topk", "float32"), ("group_topk", "float32"),
    ("gram_obs", "float32"), ("ispasp", "float32"), ("glm", "float32"),
    ("sparse_linear", "bfloat16"), ("sparse_linear", "float32"),
]  # fmt: skip
WORKLOADS = ("resnet50", "vit_b_block", "large", "many_small")  # few, for the minutes that there are
MODELS = ("resnet50", "vit_b", "large", "many_small")  # whole models for the optimizers' steps
MOST_IN_A_ROW = 3  # failures, before a bench is given up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rehearse", action="store_true", help="a few elements, two rounds, warm caches")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds for all")
    options = parser.parse_args()
    deadline = time.monotonic() + options.until
    seconds, rounds = 0.05, 7
    if options.rehearse:
        seconds, rounds = 1e-3, 2
        bench_timer.last_cache_bytes = lambda device: 1 << 16
    timer = bench_timer.Timer(options.device)
    floor = floor_speed(timer, Settings(options.device))
    content = {"format": FORMAT, "machine": {**machine(), "floor_gb_per_s": floor / 1e9}, "rows": [], "failures": []}

    def write() -> None:
        part = options.file.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(part, options.file)

    def failed(what: str, error: Exception) -> None:
        why, text = f"{type(error).__name__}: {error}"[:300], traceback.format_exc()[-3000:]
        content["failures"].append({"bench": what, "why": why, "text": text})
        say(f"FAILED {what}: {why}")

    for bench, dtype in BENCHES:
        workloads = ("tiny",) if options.rehearse else MODELS if bench == "optim" else WORKLOADS
        settings = Settings(options.device, dtype, workloads, seconds, rounds)
        say(f"\n{bench}, {dtype}\n{format_line(headings(settings))}")
        in_a_row = 0  # a broken device breaks everything that follows
        try:
            for case in MADE[bench].cases()(settings):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no time was left at {case.name}, {case.workload}")
                try:
                    without_twin = dataclasses.replace(case, twin=None)  # a loop over tensors: seconds on a GPU
                    row = measure(bench, without_twin, settings, timer, floor)
                except Exception as error:
                    failed(f"{bench}, {dtype}, {case.name}, {case.workload}", error)
                    in_a_row += 1
                    if in_a_row == MOST_IN_A_ROW:
                        break
                    continue
                in_a_row = 0
                content["rows"].append(row.to_plain())
                say(format_line(format_row(row)))
                write()
        except Exception as error:
            failed(f"{bench}, {dtype}", error)
        gc.collect()
        write()
    return bool(content["failures"])


if __name__ == "__main__":
    raise SystemExit(main())
