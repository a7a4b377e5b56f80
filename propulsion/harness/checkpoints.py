"""Checkpoints that are whole: sealed once every file is on the disk, checked before they are read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError

from propulsion.harness.files import write_text

SEAL = "whole.json"  # the sizes of all other files; written last


def seal(folder: Path) -> None:
    """Flush every file of a checkpoint to the disk, then write their sizes beside them.

    Raises:
        OSError: the disk does not take it.
    """
    for path in _files(folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    write_text(folder / SEAL, json.dumps(_sizes(folder)))


def keep_newest(checkpoints: Path, newest: Path) -> None:
    """Remove all checkpoints but the newest. By name, not by time: a clock may have jumped."""
    for folder in checkpoints.glob("checkpoint-*"):
        if folder.name != newest.name:
            (folder / SEAL).unlink(missing_ok=True)  # first: half a checkpoint must not look whole
            shutil.rmtree(folder, ignore_errors=True)


def last_whole(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written to its end; those that were not are removed."""
    whole: list[tuple[int, Path]] = []
    for folder in checkpoints.glob("checkpoint-*"):
        if is_whole(folder):
            whole.append((int(folder.name.rpartition("-")[2]), folder))
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return str(max(whole)[1]) if whole else None


def cannot_write(error: Exception) -> bool:
    """Whether writing a checkpoint failed for want of space, rights or a disk, in any of the writers' words."""
    if isinstance(error, OSError | SafetensorError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("inline_container", "StreamWriter"))


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is there, written to its end."""
    try:
        sizes = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(sizes == _sizes(folder))


def _sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL and path.name[0] != "."]
