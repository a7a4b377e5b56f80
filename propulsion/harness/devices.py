"""The device a cell runs on: its name, its precision and its peak memory."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

PEAK_RESET = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def device_name() -> str:
    """`NVIDIA H200`, or the processor's model name on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    name = match.group(1).strip() if match else platform.processor() or platform.machine()
    return f"CPU {name}, {torch.get_num_threads()} threads"


def reset_peak_memory() -> None:
    """Start a new peak: of the CUDA allocator, or of the process's resident memory on Linux."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        PEAK_RESET.write_text("5")
    except OSError:  # not Linux, or not allowed: peak_memory() then answers None
        pass


def peak_memory() -> int | None:
    """Bytes at the peak since the reset: allocated on the GPU, or resident in the whole process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        match = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
    except OSError:
        return None
    return int(match.group(1)) * 1024 if match else None


def resolve_precision(precision: str, dtype: str) -> str:
    """`auto`: bf16 autocast on CUDA that has it (else fp16) and for bf16 weights anywhere; fp32 otherwise."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if dtype == "bfloat16" else "fp32"
