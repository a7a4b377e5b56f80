"""How many cells share a device: two sweeps at once on one machine do not know of each other otherwise."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import torch
from transformers import TrainerCallback

from propulsion.harness import ranks
from propulsion.harness.leases import start_of

_cells = 0  # of a pack, in this process: the last one removes its file


class Neighbours(TrainerCallback):
    """A file for each training process, in a folder of this machine; `most` were there at once on this device.

    It looks again with every log line. Where the folder cannot be written it counts this process alone.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.gettempdir(), f"propulsion-cells-{os.getuid()}")
        self.own = self.folder / f"{_device()}.{os.getpid()}.{start_of(os.getpid())}"
        self.most = 1

    def look(self) -> None:
        """Count the processes that train on this device now."""
        with contextlib.suppress(OSError):
            self.most = max(self.most, sum(_is_alive(path) for path in self.folder.glob(f"{_device()}.*")))

    def __enter__(self) -> Neighbours:
        global _cells
        _cells += 1
        if ranks.rank() == 0:
            with contextlib.suppress(OSError):
                self.folder.mkdir(mode=0o700, exist_ok=True)
                self.own.touch()
        self.look()
        return self

    def __exit__(self, *_: object) -> None:
        global _cells
        self.look()
        _cells -= 1
        with contextlib.suppress(OSError):
            if _cells == 0:
                self.own.unlink(missing_ok=True)

    def on_log(self, *args: object, **kwargs: object) -> None:
        self.look()


def _device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def _is_alive(path: Path) -> bool:
    """Whether the file's process lives; the file of one that was killed is removed."""
    _, pid, start = path.name.rsplit(".", 2)
    alive = start_of(int(pid)) == start
    if not alive:
        path.unlink(missing_ok=True)
    return alive
