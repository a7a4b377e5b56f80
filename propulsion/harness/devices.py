"""The device a cell runs on: its name, its precision and its peak memory."""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from propulsion.harness import turns
from propulsion.harness.errors import UserError
from propulsion.harness.launched import launch

PEAK_RESET = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def device_name() -> str:
    """`NVIDIA H200`, or the processor's model name on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    name = match.group(1).strip() if match else platform.processor() or platform.machine()
    return f"CPU {name}, {turns.threads()} threads"


class PeakMemory:
    """The peak since it was made: of the CUDA allocator, or of the process's resident memory on Linux."""

    def __init__(self) -> None:
        self._started = False
        if turns.current() is not None:
            return  # the peak of a pack is that of all its cells
        if torch.cuda.is_available():
            self._started = True
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return
        with contextlib.suppress(OSError):  # not Linux, or not allowed
            PEAK_RESET.write_text("5")
            self._started = True

    def read(self) -> int | None:
        """Bytes, or None where the peak could not be started anew and would be that of other cells."""
        if not self._started:
            return None
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        match = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
        return int(match.group(1)) * 1024 if match else None


def resolve_precision(precision: str, dtype: str) -> str:
    """`auto`: bf16 autocast on CUDA that has it (else fp16), that of half-precision weights on a CPU; else fp32.

    Raises:
        UserError: fp16 on a CPU, which has no gradient scaling there.
    """
    if precision == "auto" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "auto":
        precision = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "fp32")
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("fp16 needs a CUDA GPU: set training.precision=bf16, and backbone.dtype=bfloat16 or float32")
    return precision


def check_launch(precision: str) -> None:
    """Refuse an accelerate config that contradicts what the cell runs with.

    Raises:
        UserError: its mixed_precision is another, or it asks for CPUs on a machine with a GPU.
    """
    told = launch()
    if told.precision not in ("", precision):
        raise UserError(
            f"accelerate's configuration says mixed_precision {told.precision}, training.precision comes to "
            f"{precision}: set training.precision={told.precision}, or mixed_precision: no"
        )
    if told.on_cpu and torch.cuda.is_available():
        raise UserError("accelerate's configuration says use_cpu and there is a GPU: hide it (CUDA_VISIBLE_DEVICES=)")


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """CUDA's float32 matrix products in TF32 (10 bits of mantissa) or in full, whatever they were before."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32" if on else "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before
