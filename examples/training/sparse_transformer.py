"""A small Transformer language model whose neurons and heads vanish while it trains, beside magnitude pruning.

    python examples/training/sparse_transformer.py [--text FILE] [--steps 1500] [--shares .2 .4 .6] [--out DIR]

Characters of a text (by default one that a small grammar makes up) are predicted by a decoder with gated MLPs. Neurons
and heads are coupled groups (``sa.coupled_groups``): all weights that go with one are shrunk together. At equal steps:

- AdamW, dense;
- RAMDA and ProxAdamW with ``GroupLasso(target=share)`` on neurons and on heads, for each share. RAMDA meets its target
  after a twentieth of the steps; what is zero is removed then, and the penalty goes with it: it has chosen, and would
  only shrink the rest. A new stage begins at the dual averages as they are without the threshold, since queries and
  keys that it has brought near zero take long to come back. ProxAdamW keeps its penalty to the end;
- AdamW and magnitude pruning: after 60 % of the steps the neurons and heads with the smallest groups (norm by root of
  the size, over the mean of their width) are removed, the rest trains on.

The table has perplexity on held-out text, the shares of neurons and heads that went, and tokens per second before and
after; a PNG shows perplexity against the share, and zeros against steps.
Killed and started again, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.demo.training import latencies_ms
from sparse_accel.progress import meter
from sparse_accel.prune import remove_units
from sparse_accel.report import format_table

CONTEXT, BATCH, HEAD = 64, 16, 8
REMOVED_AT = {"ramda": 0.05, "proxadamw": 1.0, "magnitude": 0.6}  # of the steps
NAMES = {"adamw": "AdamW, dense", "ramda": "RAMDA", "proxadamw": "ProxAdamW", "magnitude": "AdamW, magnitude pruning"}
COLORS = {"ramda": "#e8590c", "proxadamw": "#1971c2", "magnitude": "#868e96"}
WORDS = (  # nouns, verbs, adjectives, places
    "river,stone,bird,house,teacher,window,garden,letter,engine,child,story,market,winter,doctor,road",
    "sees,follows,carries,remembers,finds,leaves,opens,paints,answers,watches,builds,moves",
    "old,small,quiet,green,broken,distant,clever,heavy,bright,hidden,narrow",
    "near the,behind the,under the,after the,without a,beside every",
)


class Layer(nn.Module):
    """Causal attention and a gated MLP, each behind a norm."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, heads * HEAD, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * HEAD, dim, bias=False)
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, dim]`` to the same."""
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Characters ``[B, T]`` to logits ``[B, T, characters]``."""

    def __init__(self, characters: int, dim: int, layers: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(characters, dim), nn.Embedding(CONTEXT, dim)
        self.layers = nn.Sequential(*(Layer(dim, dim // HEAD, 4 * dim) for _ in range(layers)))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next character at every place."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.layers(self.token(tokens) + self.place(places))))


def made_up(sentences: int = 6000, seed: int = 0) -> str:
    """English-like sentences of a small grammar."""
    rng = random.Random(seed)
    nouns, verbs, kinds, where = (words.split(",") for words in WORDS)
    lines = []
    for _ in range(sentences):
        subject = f"{rng.choice(['the', 'a', 'every', 'no'])} {rng.choice(kinds)} {rng.choice(nouns)}"
        rest = f"{rng.choice(verbs)} {rng.choice(['the', 'one', 'its'])} {rng.choice(nouns)}"
        tail = f" {rng.choice(where)} {rng.choice(nouns)}" if rng.random() < 0.5 else ""
        count = rng.randint(2, 40)
        lines.append(f"{subject} {rest}{tail}, {count} and {count + 1} times.")
    return "\n".join(lines)


def encode(text: str) -> tuple[Tensor, Tensor, int]:
    """Training and held-out characters (the last tenth) as numbers, and how many kinds there are; rare ones are one."""
    counts: dict[str, int] = {}
    for character in text:
        counts[character] = counts.get(character, 0) + 1
    kinds = sorted(character for character, count in counts.items() if count >= 10)
    number = {character: index + 1 for index, character in enumerate(kinds)}
    tokens = torch.tensor([number.get(character, 0) for character in text])
    cut = len(tokens) * 9 // 10
    if len(tokens) - cut <= CONTEXT:
        raise ValueError(f"expected more than {10 * CONTEXT} characters of text, got {len(tokens)}")
    return tokens[:cut], tokens[cut:], len(kinds) + 1


def loss_of(model: nn.Module, tokens: Tensor, starts: Tensor) -> Tensor:
    """Mean cross entropy of the windows that begin there."""
    windows = tokens[starts[:, None] + torch.arange(CONTEXT + 1)]
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Tensor, most: int = 512) -> float:
    """Of held-out text, by windows side by side; a model that is not finite has an infinite one."""
    starts = torch.arange(0, len(tokens) - CONTEXT - 1, CONTEXT)[:most]
    losses = [float(loss_of(model, tokens, part)) * len(part) for part in starts.split(64)]
    mean = sum(losses) / len(starts)
    return math.exp(mean) if mean < 50 else math.inf


def make_optimizer(name: str, model: nn.Module, share: float, args: argparse.Namespace) -> tuple[Any, Any]:
    """An optimizer and its schedule by steps; neurons and heads have a target each."""
    if name in ("adamw", "magnitude"):
        opt: Any = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    else:
        example = torch.zeros(1, CONTEXT, dtype=torch.long)
        ramp = max(1, int(args.steps * min(REMOVED_AT[name], 1 / 3)))
        groups: list[dict[str, Any]] = []
        for kind, target in (("*gate", share), ("*[!e]", share + 1e-4)):  # a target of its own each: another number
            found = sa.coupled_groups(model, example, only=[f"layers.{kind}"])
            groups.append(sa.param_groups(model, sa.GroupLasso(target=target, ramp=ramp), coupled=found)[0])
        taken = {id(parameter) for group in groups for _, parameter in group["params"]}
        rest = [(key, parameter) for key, parameter in model.named_parameters() if id(parameter) not in taken]
        groups.append({"params": rest, "penalty": None})
        if name == "ramda":
            opt = sa.RAMDA(groups, lr=args.ramda_lr, momentum=args.momentum)
            # The removal restarts too. Another restart before most is learned costs more than it gains.
            ends = [max(1, int(args.steps * part)) for part in (0.85, 0.95)]
            return opt, sa.lr_scheduler.MultiStageLR(opt, sorted(set(ends)), gamma=0.25, momentum="ramp")
        opt = sa.ProxAdamW(groups, lr=args.lr, weight_decay=0.01)
    warm = max(1, args.steps // 20)

    def factor(step: int) -> float:
        return min((step + 1) / warm, 0.05 + 0.475 * (1 + math.cos(math.pi * min(1.0, step / args.steps))))

    return opt, torch.optim.lr_scheduler.LambdaLR(opt, factor)


def smallest(model: nn.Module, groups: sa.CoupledGroups, share: float) -> dict[str, Tensor]:
    """The units to keep of each width when this share of those of its kind go, by their groups' norms."""
    named, norms = dict(model.named_parameters()), {}
    for width in groups:
        squares = torch.zeros(width.units)
        for member in width.members:
            own = member.entries(named[str(member.parameter)].detach())[0].flatten(1).square().sum(1)
            own = own if member.at is None else own[list(member.at)]
            squares += own.reshape(width.units, member.each).sum(1)
        norms[width.name] = (squares / squares.mean()).sqrt()
    kept = {}
    for kind in {width.kind for width in groups}:
        names = [width.name for width in groups if width.kind == kind]
        order = torch.cat([norms[name] for name in names]).sort().values
        bound = order[min(len(order) - 1, int(share * len(order)))]
        for name in names:
            kept[name] = torch.nonzero(norms[name] >= torch.minimum(bound, norms[name].amax())).flatten()
    return kept


def without_units(
    model: nn.Module, groups: sa.CoupledGroups, opt: Any, example: Tensor, share: float
) -> tuple[nn.Module, Any, dict[str, Tensor]]:
    """The model and the optimizer without the units that are zero in the proximal iterate, or without the smallest
    where there is no penalty; and those that are kept."""
    if not hasattr(opt, "proximal_parameters"):
        kept = smallest(model, groups, share)
        return *cut(model, opt, example, kept), kept
    with opt.proximal_parameters():
        named = dict(model.named_parameters())
        kept = {width.name: torch.nonzero(~width.zero_units(named)).flatten() for width in groups}
    for group in opt.param_groups:
        group["penalty"] = None
    opt.finalize_()  # the proximal iterate without a penalty: what is left is not shrunk
    model, opt = cut(model, opt, example, kept)
    if hasattr(opt, "restart"):
        opt.restart()  # a new stage, from the weights that are left
    return model, opt, kept


def train(
    name: str, share: float, data: tuple[Tensor, Tensor, int], args: argparse.Namespace, done: Any
) -> dict[str, Any]:
    """One run, from its checkpoint if there is one; its row of the table."""
    training, held_out, characters = data
    row_file = args.out / f"{name}-{share:g}.json"
    if row_file.exists():
        done.advance(f"{NAMES[name]} {share:g}: done before", by=args.steps)
        return json.loads(row_file.read_text())
    torch.manual_seed(args.seed)
    model: nn.Module = Decoder(characters, args.dim, args.layers)
    example = torch.zeros(1, CONTEXT, dtype=torch.long)
    groups, dense = sa.coupled_groups(model, example), sum(p.numel() for p in model.parameters())
    opt, schedule = make_optimizer(name, model, share, args)
    generator, history, start = torch.Generator().manual_seed(args.seed), [], 0
    saved = args.out / f"{name}-{share:g}.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        if state["kept"] is not None:
            model, opt = cut(model, opt, example, state["kept"])
            schedule.optimizer = opt
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        history, start = state["history"], state["step"]
        done.advance(f"{NAMES[name]} {share:g}: resumed", by=start)
    kept = state["kept"] if start else None
    every = max(1, args.steps // 20)
    for step in range(start, args.steps):
        # From 20 steps on the strength is right after every tenth, whatever their number is.
        if name in REMOVED_AT and kept is None and step >= REMOVED_AT[name] * args.steps and step % 10 == 0:
            model, opt, kept = without_units(model, groups, opt, example, share)
            schedule.optimizer = opt
        opt.zero_grad()
        loss = loss_of(model, training, torch.randint(len(training) - CONTEXT - 1, (BATCH,), generator=generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        schedule.step()
        if (step + 1) % every == 0 or step + 1 == args.steps:
            lend = getattr(opt, "proximal_parameters", contextlib.nullcontext)
            with lend():
                if kept is None:
                    zero = sa.sparsity(model, groups).group_sparsity
                else:
                    zero = 1 - sum(map(len, kept.values())) / groups.units
                history.append([step + 1, perplexity(model, held_out, 128), zero])
            state = {"model": model.state_dict(), "opt": opt.state_dict(), "schedule": schedule.state_dict()}
            state |= {"generator": generator.get_state(), "history": history, "step": step + 1, "kept": kept}
            torch.save(state, saved.with_suffix(".part"))
            saved.with_suffix(".part").replace(saved)
        done.advance(f"{NAMES[name]} {share:g}: perplexity {history[-1][1] if history else math.nan:.3f}")
    if hasattr(opt, "finalize_"):
        opt.finalize_()
    if name in REMOVED_AT and kept is None:
        model, opt, kept = without_units(model, groups, opt, example, share)
    units = {width.name: (width.kind, width.units) for width in groups}
    left = {width.name: width.units for width in sa.coupled_groups(model, example)}
    gone = {
        kind: 1 - sum(left.get(key, 1) for key, (own, _) in units.items() if own == kind)
        / sum(count for own, count in units.values() if own == kind)
        for kind in ("channels", "heads")
    }  # fmt: skip
    first = Decoder(characters, args.dim, args.layers)
    before, after = latencies_ms([first, model], held_out[: 16 * CONTEXT].reshape(16, CONTEXT), rounds=40)
    row = {
        "name": name, "share": share, "perplexity": perplexity(model, held_out), "neurons": gone["channels"],
        "heads": gone["heads"], "parameters": sum(p.numel() for p in model.parameters()) / dense,
        "before": 16e3 * CONTEXT / before, "after": 16e3 * CONTEXT / after, "history": history,
    }  # fmt: skip
    row_file.write_text(json.dumps(row) + "\n")
    saved.unlink(missing_ok=True)
    return row


def cut(model: nn.Module, opt: Any, example: Tensor, kept: dict[str, Tensor]) -> tuple[nn.Module, Any]:
    """The smaller model with its optimizer."""
    result = remove_units(model, example, kept, optimizer=opt)
    return result.model, result.optimizer


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Perplexity against the share of units that went, and zero units against steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for name, color in COLORS.items():
        own = sorted((row for row in rows if row["name"] == name), key=lambda row: row["share"])
        shares = [50 * (row["neurons"] + row["heads"]) for row in own]
        left.plot(shares, [row["perplexity"] for row in own], "o-", color=color, label=NAMES[name])
        for row in own:
            steps, _, zeros = zip(*row["history"], strict=True)
            right.plot(steps, [100 * zero for zero in zeros], color=color, label=f"{NAMES[name]}, {row['share']:g}")
    left.axhline(rows[0]["perplexity"], color="black", linestyle=":", label=NAMES["adamw"])
    left.set(xlabel="neurons and heads removed, % (mean of both)", ylabel="perplexity, held out")
    right.set(xlabel="steps", ylabel="zero units, %")
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    """Train all, remove, compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="UTF-8 text (made up without it)")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.4, 0.6], help="of neurons and of heads")
    parser.add_argument("--methods", nargs="+", choices=[*COLORS], default=[*COLORS])
    parser.add_argument("--dim", type=int, default=64, help=f"a multiple of {HEAD}")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.03, help="of AdamW and ProxAdamW")
    parser.add_argument("--ramda-lr", type=float, default=0.06)
    parser.add_argument("--momentum", type=float, default=0.3, help="of RAMDA: the share of the new point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/sparse_transformer"))
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args()
    settings = {
        key: str(value)
        for key, value in sorted(vars(args).items())
        if key not in ("out", "no_progress", "methods", "shares")
    }
    try:
        data = encode(args.text.read_text(encoding="utf-8") if args.text else made_up())
        if args.dim % HEAD or any(not 0 < share < 1 for share in args.shares):
            raise ValueError(f"expected --dim a multiple of {HEAD} and --shares between 0 and 1")
        args.out.mkdir(parents=True, exist_ok=True)
        kept = args.out / "settings.json"
        if kept.exists() and json.loads(kept.read_text()) != settings:
            raise ValueError(f"{args.out} holds runs of other settings: give another --out")
        kept.write_text(json.dumps(settings) + "\n")
    except (OSError, ValueError) as error:
        print(f"sparse_transformer.py: {error}", file=sys.stderr)
        return 2
    torch.set_flush_denormal(True)
    runs = [("adamw", 0.0), *((name, share) for name in args.methods for share in args.shares)]
    with meter(not args.no_progress, "training", len(runs) * args.steps) as done:
        rows = [train(name, share, data, args, done) for name, share in runs]
    dense = rows[0]["perplexity"]
    lines = [
        [NAMES[row["name"]], f"{row['perplexity']:.3f}", f"{100 * (row['perplexity'] / dense - 1):+.1f} %",
         f"{100 * row['neurons']:.1f} %", f"{100 * row['heads']:.1f} %", f"{100 * row['parameters']:.0f} %",
         f"{row['before']:,.0f}", f"{row['after']:,.0f}"]
        for row in rows
    ]  # fmt: skip
    heads = ["", "perplexity", "to dense", "neurons gone", "heads gone", "parameters", "tokens/s before", "after"]
    table = format_table(heads, lines)
    (args.out / "table.txt").write_text(table + "\n")
    picture = args.out / "sparse_transformer.png"
    plot(picture, rows)
    print(f"{table}\nwritten: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
