"""How it is measured: one process, a step of each entrant in turn, medians and ratios within a round."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from propulsion.fast import products, rows
from propulsion.harness.devices import PeakMemory

RATE = 1e-3
BUCKET = 8  # of lengths where modules are compiled for every shape
OURS = "ours, fast"  # the entrant that each of the others is also set against
PEAK_SIDE = 8192  # of the square matrices that a GPU's peak is measured with


@dataclass(frozen=True)
class Case:
    """One comparison: a shape, the lengths of a batch's rows, the device and precision; `timed`: or memory alone."""

    shape: str
    lengths: tuple[int, ...]
    title: str
    device: str = "cpu"
    precision: str = "fp32"
    timed: bool = True

    def batch(self, vocabulary: int, pad: int) -> dict[str, torch.Tensor]:
        """Random ids, padded on the right to the longest row, on a GPU to a multiple of `BUCKET`."""
        generator = torch.Generator().manual_seed(0)
        lengths = torch.tensor(self.lengths).view(-1, 1)
        mask = (torch.arange(self.padded_length) < lengths).long()
        ids = torch.randint(10, vocabulary, mask.shape, generator=generator).masked_fill(mask == 0, pad)
        labels = torch.arange(len(self.lengths)) % 2
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        moved = {name: value.to(self.device) for name, value in batch.items()}
        rows.tell(moved["attention_mask"], mask)
        return moved

    @property
    def padded_length(self) -> int:
        multiple = BUCKET if self.device == "cuda" else 1
        return -(-max(self.lengths) // multiple) * multiple


class Runner:
    """One entrant ready to step."""

    def __init__(self, model: nn.Module, batch: dict[str, torch.Tensor], case: Case) -> None:
        self.model, self.batch, self.case = model.to(case.device).train(), batch, case
        trained = [p for p in model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)

    def loss(self) -> torch.Tensor:
        """The forward pass."""
        with torch.autocast(self.case.device, torch.bfloat16, enabled=self.case.precision == "bf16"):
            return self.model(**self.batch).loss

    def step(self) -> float:
        """Seconds of forward, backward and AdamW."""
        _wait(self.case.device)
        started = time.perf_counter()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        _wait(self.case.device)
        return time.perf_counter() - started

    def flops(self) -> int:
        """Operations of a step's matrix products and attention, counted on the modules as they are written."""
        as_written = torch.compiler.set_stance("force_eager") if self.case.device == "cuda" else nullcontext()
        with as_written, FlopCounterMode(display=False) as counter:
            self.step()
        return int(counter.get_total_flops())

    def saved_bytes(self) -> int:
        """What the forward pass keeps for the backward pass, each storage once, parameters left out."""
        parameters = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, tuple[int, torch.Tensor]] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            tensor = tensor.detach()  # else an operation that keeps its own output would hold itself, and never go
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, or its address would be used again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        del loss
        return sum(size for pointer, (size, _) in kept.items() if pointer not in parameters)

    def peak_bytes(self) -> int | None:
        """Peak of a step: of the CUDA allocator, or what resident memory rose by on a CPU."""
        _give_back()
        before = PeakMemory().read()
        peak = PeakMemory()
        self.step()
        after = peak.read()
        if self.case.device == "cuda":
            return after
        return None if before is None or after is None else max(0, after - before)


def _give_back() -> None:
    """Freed memory to the system, or the next peak would hide in it."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_peak(side: int, device: str, tries: int = 10) -> float:
    """Operations per second of the best of some products of square bf16 matrices: 2 side^3 each."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(tries):
        _wait(device)
        started = time.perf_counter()
        for _ in range(4):
            a @ b
        _wait(device)
        seconds.append((time.perf_counter() - started) / 4)
    return 2 * side**3 / min(seconds)


@contextmanager
def torch_products() -> Iterator[None]:
    """The fast path with torch's own matrix products, as the peers have them."""
    original = products.onednn
    products.onednn = lambda: False  # type: ignore[assignment]
    try:
        yield
    finally:
        products.onednn = original


def compare(
    case: Case, entrants: dict[str, Callable[[Any], Any]], build: Callable[[str], Any], rounds: int
) -> dict[str, Any]:
    """Time and bytes of each entrant, and its ratio to the first one and spread, over interleaved rounds.

    Memory is measured first, one entrant at a time: times then come from models that are all there. On a GPU an entrant
    that raises, as for want of a compiler or of memory, is written down with the reason, and the others go on; a step's
    operations are counted too, for the share of the matrix peak.
    """
    first = next(iter(entrants))
    runners: dict[str, Runner] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, tune in entrants.items():
        try:
            runner, facts[name] = _enter(case, tune, build)
        except RuntimeError as error:
            if case.device == "cpu" or name == first:
                raise
            facts[name] = {"refused": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
            continue
        finally:
            gc.collect()
        if case.timed:
            runners[name] = runner
        del runner
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    own: dict[str, list[float]] = {name: [] for name in entrants if "fast" in name or "lean" in name}
    peak = matrix_peak(PEAK_SIDE, case.device) if case.device == "cuda" and case.timed else None
    for _ in range(rounds if case.timed else 0):
        for name, runner in runners.items():
            seconds[name].append(runner.step())
            if name in own and case.device == "cpu" and products.onednn():
                with torch_products():
                    own[name].append(runner.step())
    for name, fact in facts.items():
        if "refused" in fact:
            continue
        fact |= _summary(seconds[name], seconds[first]) if case.timed else {}
        if seconds.get(OURS):
            fact["ours_by_this"] = _summary(seconds[OURS], seconds[name])["ratio"]
        if peak is not None:
            fact["peak_share"] = fact["flops"] / fact["seconds"] / peak
        fact["saved_ratio"] = fact["saved_bytes"] / facts[first]["saved_bytes"]
        if own.get(name):
            fact["torch_products"] = _summary(own[name], seconds[first])
    tokens = sum(case.lengths)
    padded = len(case.lengths) * case.padded_length
    return {
        "title": case.title,
        "shape": case.shape,
        "device": case.device,
        "precision": case.precision,
        "batch": len(case.lengths),
        "tokens": tokens,
        "padded_tokens": padded,
        "rounds": rounds if case.timed else 0,
        **({} if peak is None else {"peak_flops": peak, "peak_side": PEAK_SIDE}),
        "entrants": facts,
    }


def _enter(
    case: Case, tune: Callable[[Any], Any], build: Callable[[str], Any]
) -> tuple[Runner, dict[str, int | float | None]]:
    """An entrant ready to step, and what it trains and holds."""
    model = build(case.shape)
    batch = case.batch(model.config.vocab_size, model.config.pad_token_id)
    runner = Runner(tune(model), batch, case)
    runner.step()  # sets up optimizer state and prepared weights, compiles
    facts: dict[str, int | float | None] = {
        "trained": runner.trained,
        "saved_bytes": runner.saved_bytes(),
        "peak_bytes": runner.peak_bytes(),
    }
    if case.device == "cuda":
        facts["flops"] = runner.flops()
    return runner, facts


def _summary(seconds: list[float], reference: list[float]) -> dict[str, float]:
    ratios = sorted(mine / theirs for mine, theirs in zip(seconds, reference, strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "seconds": statistics.median(seconds),
        "ratio": statistics.median(ratios),
        "ratio_low": quartiles[0],
        "ratio_high": quartiles[2],
    }
