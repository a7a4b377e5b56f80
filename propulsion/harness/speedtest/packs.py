"""Packs against the same cells one after another: `python -m scripts.bench pack` calls this.

A round is a step of every cell alone, then one step of all together, through the pack that a sweep uses; the two
change places from round to round.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from propulsion.fast import find_path, plain_path
from propulsion.harness import files, packing
from propulsion.harness.speedtest.entrants import ENTRANTS, backbone
from propulsion.harness.speedtest.measure import OURS, Case, Runner

WIDTHS = (2, 4, 8)
BATCHES = (4, 8, 16, 32)
STEPS = 2  # of every cell in a round


class PackRunner(Runner):
    """A cell that can also step in a pack."""

    def loss_step(self) -> None:
        """Forward, backward and AdamW, alone or with the pack that it sits in."""
        self.loss().backward()
        packing.finish(self.model)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seated(self) -> None:
        """The steps of a round, in a pack."""
        packing.join(self.model)
        for _ in range(STEPS):
            self.loss_step()
        path = find_path(self.model)
        assert path is not None
        path.exchange = None

    def alone(self) -> None:
        """The steps of a round, alone."""
        for _ in range(STEPS):
            self.loss_step()


def lengths_of(rows: Sequence[int], batch: int, seed: int) -> tuple[int, ...]:
    """Lengths for a batch, drawn from those of a real one."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(rows[int(i)] for i in torch.randint(len(rows), (batch,), generator=generator))


def compare_packs(case: Case, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Time per cell and step, alone and in packs, for every batch size and width; `case.lengths` are drawn from."""
    found = []
    for batch in BATCHES:
        runners = []
        for seed in range(max(WIDTHS)):
            rows = lengths_of(case.lengths, batch, 1000 * batch + seed)
            own = Case(case.shape, rows, case.title, case.device, case.precision)
            model = ENTRANTS[OURS](backbone(case.shape))
            runners.append(PackRunner(model, own.batch(model.config.vocab_size, model.config.pad_token_id), own))
        plain = [_plain(case, runner) for runner in runners[:2]]
        for width in WIDTHS:
            found.append({"batch": batch, "width": width, **_measure(runners[:width], plain, rounds, case.device)})
            progress(f"{case.title}, batch {batch}, packs of {width}: {found[-1]['ratio']:.2f}")
        del runners, plain
        gc.collect()
    return {"title": case.title, "device": case.device, "precision": case.precision, "rounds": rounds, "packs": found}


def _plain(case: Case, runner: PackRunner) -> PackRunner:
    model = ENTRANTS["plain formula"](backbone(case.shape))
    return PackRunner(plain_path(model), runner.batch, runner.case)


def _measure(runners: list[PackRunner], plain: list[PackRunner], rounds: int, device: str) -> dict[str, float]:
    """Medians over rounds: seconds of a cell's step alone, packed and by the plain formula, and ratios in a round."""

    def each(cells: list[PackRunner]) -> None:
        for cell in cells:
            cell.alone()

    ways: dict[str, Callable[[], None]] = {
        "alone": lambda: each(runners),
        "packed": lambda: packing.Pack(len(runners)).run([runner.seated for runner in runners]),
        "plain": lambda: each(plain),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        names = list(ways) if round_ % 2 else list(reversed(ways))
        for name in names:
            cells = len(plain) if name == "plain" else len(runners)
            took = _timed(ways[name], device) / (STEPS * cells)
            if round_:  # the first warms up
                seconds[name].append(took)
    ratios = [packed / alone for packed, alone in zip(seconds["packed"], seconds["alone"], strict=True)]
    to_plain = [packed / plain for packed, plain in zip(seconds["packed"], seconds["plain"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        **{name: statistics.median(taken) for name, taken in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratio_low": quartiles[0],
        "ratio_high": quartiles[2],
        "ratio_to_plain": statistics.median(to_plain),
    }


def _timed(action: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def run(cases: Sequence[Case], rounds: int, out: Path, env: dict[str, Any]) -> None:
    """Measure every case, print, and write `packs.json` and `packs.md` after each."""
    results: list[dict[str, Any]] = []
    for case in cases:
        results.append(compare_packs(case, rounds, lambda line: print(line, file=sys.stderr, flush=True)))
        commit = f"{(env['commit'] or 'unknown')[:10]}{' (changed since)' if env['dirty'] else ''}"
        lines = ["# Packs of cells over one frozen backbone", ""]
        lines += [f"{env['device']}; torch {env['torch']}; commit {commit}. Forward, backward and AdamW, dropout 0.1."]
        text = "\n".join(lines + [line for result in results for line in table(result)]) + "\n"
        files.write_text(out / "packs.md", text)
        files.write_text(out / "packs.json", json.dumps({"env": env, "cases": results}, indent=1) + "\n")
        print("\n".join(table(results[-1])), flush=True)


def table(result: dict[str, Any]) -> list[str]:
    """The result as Markdown."""
    lines = [
        "",
        f"## Packs: {result['title']}",
        "",
        f"{result['rounds']} rounds of {STEPS} steps, {result['device']}, {result['precision']}. Milliseconds are of "
        "one cell's step; time is packed by alone, the median over rounds with its quartiles.",
        "",
        "| rows of a cell | cells | alone ms | packed ms | time | quartiles | plain formula ms | packed by plain |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for fact in result["packs"]:
        spread = f"{fact['ratio_low']:.2f} to {fact['ratio_high']:.2f}"
        alone, packed, plain = (f"{1e3 * fact[name]:,.1f}" for name in ("alone", "packed", "plain"))
        lines.append(
            f"| {fact['batch']} | {fact['width']} | {alone} | {packed} | {fact['ratio']:.2f} | {spread} | {plain} | "
            f"{fact['ratio_to_plain']:.2f} |"
        )
    return lines
