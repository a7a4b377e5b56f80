"""The trained tensors of a run: kept on request, and loaded as the starting point of another run.

Published RTE, MRPC and STS-B numbers often start from a model tuned on MNLI without saying so. Here that is
one explicit option: `training.keep_weights=true` on the MNLI run, `training.start_from=<its file>` on the other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from propulsion.harness.errors import UserError


def weights_path(results_dir: str, key: str) -> Path:
    """Where a cell keeps its final trained tensors."""
    return Path(results_dir, "weights", key, "last.safetensors")


def save_trained(model: nn.Module, names: Sequence[str], path: Path) -> None:
    """Write the named parameters, by temporary file and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parameters = dict(model.named_parameters())
    temporary = path.with_suffix(".tmp")
    save_file({name: parameters[name].detach().cpu().contiguous() for name in names}, temporary)
    os.replace(temporary, path)


def load_start(model: nn.Module, names: Sequence[str], path: str) -> None:
    """Set the named parameters (a method's own, not the head's) from a run of the same method and backbone.

    Raises:
        UserError: the file is missing, no safetensors file, or lacks one of them in that shape.
    """
    stored = _read(path)
    parameters = dict(model.named_parameters())
    for name in names:
        if name not in stored or stored[name].shape != parameters[name].shape:
            raise UserError(
                f"training.start_from={path} holds no {name} of shape {tuple(parameters[name].shape)}; "
                "start from a run of the same method and backbone"
            )
        with torch.no_grad():
            parameters[name].copy_(stored[name])


def _read(path: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"training.start_from={path} cannot be read ({error}); give the last.safetensors of a run "
            "with training.keep_weights=true"
        ) from error


def start_digest(path: str) -> str:
    """Digest of a file to start from.

    Raises:
        UserError: there is no such file.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"training.start_from={path} cannot be read ({error.strerror}); give the last.safetensors of a run "
            "with training.keep_weights=true"
        ) from error
