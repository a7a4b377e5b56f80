"""Checkpoints that are whole: sealed once every file is on the disk, checked before they are read.

Of the model they hold what is trained alone. The frozen rest is that of the cell's backbone and seed, as at every
start; a digest of samples of it tells a checkpoint that was made over other weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from propulsion.harness.files import write_bytes, write_text

SEAL = "whole.json"  # the sizes of all other files; written last
TRAINED = "trained.safetensors"
_KNOWN = "_frozen_digest"
_SAMPLES = 256  # numbers of each frozen tensor: weights that were trained otherwise differ nearly everywhere


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write the trained parameters.

    Raises:
        OSError: the disk does not take them.
    """
    trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    write_bytes(folder / TRAINED, save(trained, {"frozen": frozen_digest(model)}))


def load_trained(model: nn.Module, folder: Path) -> None:
    """Set the trained parameters to those of a checkpoint that `fits`."""
    with safe_open(folder / TRAINED, "pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(file.get_tensor(name))


def fits(model: nn.Module, folder: Path) -> bool:
    """Whether a checkpoint is of this model: the same trained tensors over the same frozen ones."""
    try:
        with safe_open(folder / TRAINED, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
            frozen = (file.metadata() or {}).get("frozen")
    except (OSError, SafetensorError):
        return False
    trained = {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    return shapes == trained and frozen == frozen_digest(model)


def frozen_digest(model: nn.Module) -> str:
    """Digest of names, shapes, types and evenly spread numbers of the frozen parameters."""
    known: str | None = getattr(model, _KNOWN, None)
    return known or _digest(model)


def remember_frozen(model: nn.Module) -> None:
    """Take the digest now, for good: of a model that is about to be cut among processes no one has all numbers."""
    setattr(model, _KNOWN, _digest(model))


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            flat = parameter.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // _SAMPLES)].cpu().contiguous()
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype};".encode())
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def to_resume(model: nn.Module, checkpoints: Path) -> str | None:
    """The newest whole checkpoint, where it is of this model; one that is not is removed, and that is said."""
    found = last_whole(checkpoints)
    if found is None or fits(model, Path(found)):
        return found
    print(f"{found} was made over other weights or by other code; training starts again", file=sys.stderr)
    shutil.rmtree(found, ignore_errors=True)
    return None


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
