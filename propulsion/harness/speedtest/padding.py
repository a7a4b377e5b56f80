"""The share of padding in the training batches of each GLUE task: its own rows, tokenizer and order of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from propulsion.harness import files
from propulsion.harness.backbones import load_tokenizer
from propulsion.harness.encode import encode
from propulsion.harness.params import load_backbone, load_task
from propulsion.harness.settings import DataSpec
from propulsion.harness.sources import open_source, subset
from propulsion.harness.speedtest.measure import BUCKET

TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")  # WNLI has too few rows to group
BATCH = 16
MAX_ROWS = 10_000
MAX_LENGTH = 128


@dataclass(frozen=True)
class Padding:
    """Shares of the computed places that hold no token; on the fused path there are no others."""

    task: str
    rows: int
    mean_length: float
    shuffled: float
    grouped: float
    bucketed: float


def share(lengths: Sequence[int], order: Sequence[int], batch_size: int, multiple: int = 1) -> float:
    """Padding of batches in that order, each padded to its longest row, rounded up to a multiple."""
    real = places = 0
    for start in range(0, len(order), batch_size):
        batch = [lengths[row] for row in order[start : start + batch_size]]
        real += sum(batch)
        places += len(batch) * -(-max(batch) // multiple) * multiple
    return 1 - real / places


def measure(source: DataSpec, backbone: str = "minilm") -> Iterator[Padding]:
    """One epoch of every task, at most `MAX_ROWS` rows, grouped by length as training groups them.

    Raises:
        UserError: rows or tokenizer that cannot be had.
    """
    tokenizer = load_tokenizer(load_backbone(backbone))
    for name in TASKS:
        task = load_task(name)
        rows = subset(open_source(task, source).load().train, MAX_ROWS, 0)
        lengths = list(encode(rows, tokenizer, task, MAX_LENGTH)["length"])
        shuffled = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
        grouped = get_length_grouped_indices(lengths, BATCH, generator=torch.Generator().manual_seed(0))
        shares = share(lengths, shuffled, BATCH), share(lengths, grouped, BATCH), share(lengths, grouped, BATCH, BUCKET)
        yield Padding(name, len(lengths), sum(lengths) / len(lengths), *shares)


def table(found: Sequence[Padding], source: str) -> str:
    """The shares as Markdown."""
    lines = [
        "# Padding in training batches",
        "",
        f"{source.capitalize()} rows, at most {MAX_ROWS:,} of a task's training rows, MiniLM's tokenizer, cut at "
        f"{MAX_LENGTH} tokens, batches of {BATCH}. Share of the computed places that hold no token: rows in random "
        f"order, grouped by length as training does it, and grouped with lengths rounded up to {BUCKET}, as compiled "
        "modules would want them. The fused path computes no padding.",
        "",
        "| task | rows | mean length | random order | grouped | grouped, multiples of 8 | fused path |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for each in found:
        shares = " | ".join(f"{value:.1%}" for value in (each.shuffled, each.grouped, each.bucketed))
        lines.append(f"| {each.task} | {each.rows:,} | {each.mean_length:.1f} | {shares} | 0 |")
    return "\n".join(lines) + "\n"


def run(data_dir: str | None, out: Path, env: dict[str, Any]) -> None:
    """Measure, print, and write `padding.json` and `padding.md`."""
    source = DataSpec(source="local" if data_dir else "generated", dir=data_dir)
    found = list(measure(source))
    text = table(found, source.source)
    files.write_text(out / "padding.md", text)
    facts = {"env": env, "source": source.source, "tasks": [asdict(each) for each in found]}
    files.write_text(out / "padding.json", json.dumps(facts, indent=1) + "\n")
    print(text, end="")
