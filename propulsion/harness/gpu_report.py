"""Steps of large models measured on a device: each measurement one file, written when done, skipped when there."""

from __future__ import annotations

import gc
import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from baselines import apply_method
from propulsion.fast import NotFusedError, fast_path, find_path
from propulsion.harness import files, memory, record
from propulsion.harness.backbones import load_model
from propulsion.harness.devices import device_name
from propulsion.harness.errors import UserError
from propulsion.harness.settings import BackboneSpec, MethodSpec, Settings
from propulsion.harness.speedtest.entrants import by_groups, compiled
from propulsion.harness.speedtest.measure import Case, Runner, matrix_peak

WARM_UP = 3
PEAK_NAME, SPEED_NAME = "peak.json", "speed"
# How a step is computed -> what the table calls it. The peers are measured in ordinary modules alone.
WAYS = {
    "plain": "",
    "compiled": ", compiled",
    "fused": ", fused layers",
    "fused-groups": ", fused layers, attention by groups",
    "lean": ", lean fused layers",
}
CHANGES = {"compiled": compiled, "fused-groups": by_groups}
# Dense bf16 matrix products per second by the makers' data sheets (sparsity left out); others have no such line.
PUBLISHED = {"H200": 989.5e12, "H100 80GB HBM3": 989.5e12, "A100": 312e12, "L40S": 362e12}


@dataclass(frozen=True)
class Grid:
    """What is measured: cells (composed settings with random weights), rows of a batch, row lengths, steps."""

    cells: tuple[Settings, ...]
    batch: int
    lengths: tuple[int, ...]
    rounds: int
    matrix: int  # side of the square matrices that the peak is measured with


@dataclass(frozen=True)
class Step:
    """One measurement: a method on a backbone at a length, computed in one of `WAYS`."""

    backbone: BackboneSpec
    method: MethodSpec
    settings: Settings
    length: int
    way: str = "plain"

    @property
    def name(self) -> str:
        """Of its file."""
        way = "" if self.way == "plain" else f"-{self.way}"
        return f"{self.backbone.name}-{self.method.name}{way}-{self.length}"


def steps(grid: Grid) -> Iterator[Step]:
    """All measurements in order; Propulsion in every way, refused where a family or a device does not have it."""
    for settings in grid.cells:
        for length in grid.lengths:
            for way in WAYS if settings.method.name == "propulsion" else ("plain",):
                yield Step(settings.backbone, settings.method, settings, length, way)


def place(out: str, device: str) -> Path:
    """The folder of one device's measurements: `<out>/nvidia-h200`."""
    name = device_name() if device == "cuda" else f"cpu-{device_name().removeprefix('CPU ')}"
    return Path(out, re.sub("[^a-z0-9]+", "-", name.lower()).strip("-"))


def measure_all(grid: Grid, folder: Path, device: str) -> Iterator[tuple[str, bool]]:
    """Measure what is not there yet; yields each name and whether it was measured now."""
    path = folder / PEAK_NAME
    if not path.is_file():
        _write(path, {"device": device_name(), "bf16_flops": matrix_peak(grid.matrix, device), "side": grid.matrix})
        yield "peak of matrix products", True
    for step in steps(grid):
        path = folder / SPEED_NAME / f"{step.name}.json"
        new = not path.is_file()
        if new:
            _write(path, measure(step, grid, device))
            _free(device)
        yield step.name, new


def measure(step: Step, grid: Grid, device: str) -> dict[str, Any]:
    """Time, throughput, operations and memory of a training step; why not, where there is none."""
    facts: dict[str, Any] = {
        "backbone": step.backbone.name,
        "method": step.method.name,
        "way": step.way,
        "length": step.length,
        "batch": grid.batch,
        "weights": f"random, {step.backbone.dtype}",
        "precision": "bf16",
        "env": record.environment("bf16"),
        "created_at": record.now(),
    }
    try:
        found = memory.guarded(lambda: _measure(step, grid, device))
    except (UserError, NotFusedError) as error:
        return {**facts, "status": "refused", "reason": str(error)}
    except memory.TooLarge as error:
        return {**facts, "status": "out of memory", "reason": error.reason}
    except Exception as error:  # whatever a compiler raises, as for want of one on this machine
        if step.way != "compiled":
            raise
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        return {**facts, "status": "refused", "reason": reason}
    return {**facts, "status": "success", **found}


def _measure(step: Step, grid: Grid, device: str) -> dict[str, Any]:
    if device == "cpu" and step.way in ("compiled", "fused-groups"):
        raise UserError("measured on CUDA alone")
    torch.manual_seed(0)
    with torch.device(device):
        model, _ = load_model(step.backbone, step.settings.task, pad_token_id=1)
    tuned: Any = apply_method(model, step.method, step.backbone)
    if step.way in ("fused", "fused-groups", "lean"):
        fast_path(tuned, lean=step.way == "lean")
    if step.way in CHANGES:
        CHANGES[step.way](tuned)
    case = Case(step.backbone.name, (step.length,) * grid.batch, step.name, device, "bf16")
    runner = Runner(tuned, case.batch(step.backbone.architecture["vocab_size"], 1), case)
    for _ in range(WARM_UP):
        runner.step()
    peak = runner.peak_bytes()
    seconds = [runner.step() for _ in range(grid.rounds)]
    median, quartiles = statistics.median(seconds), statistics.quantiles(seconds, n=4)
    path = find_path(tuned)
    tokens = step.length * grid.batch
    return {
        "trained": runner.trained,
        "parameters": sum(p.numel() for p in tuned.parameters()),
        "rounds": grid.rounds,
        "seconds": median,
        "seconds_low": quartiles[0],
        "seconds_high": quartiles[2],
        "tokens_per_second": tokens / median,
        "flops": runner.flops(),
        "peak_bytes": peak,
        "attention": None if path is None else path.attention,
    }


def table(folder: Path) -> str:
    """The measurements as Markdown, those of one backbone and length together."""
    peak = json.loads((folder / PEAK_NAME).read_text(encoding="utf-8"))
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / SPEED_NAME).glob("*.json"))]
    published = next((value for name, value in PUBLISHED.items() if name in peak["device"]), None)
    known = f"; its data sheet says {published / 1e12:,.0f}" if published else ""
    lines = [
        f"# Training steps on {peak['device']}",
        "",
        "Forward, backward and AdamW under bf16 autocast, random weights, no padding; medians. Share of the peak: "
        "operations counted in the step's matrix products and attention, by those of a product of bf16 matrices of "
        f"side {peak['side']:,} on the same device, {peak['bf16_flops'] / 1e12:,.1f} TFLOP/s{known}.",
        "",
        "| backbone | length × rows | method | trained | ms | quartiles | tokens/s | share of the peak | memory GB |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    ways = list(WAYS)
    for fact in sorted(facts, key=lambda f: (f["backbone"], f["length"], f["method"], ways.index(_way(f)))):
        name = fact["method"] + WAYS[_way(fact)]
        start = f"| {fact['backbone']} | {fact['length']} × {fact['batch']} | {name} |"
        if fact["status"] != "success":
            lines.append(f"{start} {fact['status']}: {fact['reason']} | | | | | |")
            continue
        spread = f"{1e3 * fact['seconds_low']:,.1f} to {1e3 * fact['seconds_high']:,.1f}"
        share = fact["flops"] / fact["seconds"] / peak["bf16_flops"]
        size = "" if fact["peak_bytes"] is None else f"{fact['peak_bytes'] / 1e9:,.2f}"
        lines.append(
            f"{start} {fact['trained']:,} | {1e3 * fact['seconds']:,.1f} | {spread} | "
            f"{fact['tokens_per_second']:,.0f} | {share:.1%} | {size} |"
        )
    versions = sorted({f"torch {f['env']['torch']}, commit {(f['env']['commit'] or 'unknown')[:10]}" for f in facts})
    return "\n".join([*lines, "", f"Measured with {'; '.join(versions)}."]) + "\n"


def _way(fact: dict[str, Any]) -> str:
    """Of `WAYS`; older measurements have two alone."""
    return str(fact.get("way") or ("fused" if fact["fused"] else "plain"))


def _write(path: Path, facts: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(facts, indent=1) + "\n")


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
