"""The device a cell runs on: its name, its precision and its peak memory."""

from __future__ import annotations

import contextlib
import platform
import re
from pathlib import Path

import torch

from propulsion.harness import turns

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
        self._started = torch.cuda.is_available()
        if self._started:
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
    """`auto`: bf16 autocast on CUDA that has it (else fp16) and for bf16 weights anywhere; fp32 otherwise."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if dtype == "bfloat16" else "fp32"
