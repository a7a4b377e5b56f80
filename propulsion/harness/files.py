"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_ROOM = 1 << 16  # bytes: a record and its like


def try_writing(folder: Path) -> None:
    """Write into a folder, or the nearest one above it that exists; nothing is left behind.

    Raises:
        OSError: it does not take a file of the size of a record.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_ROOM))  # a full disk still makes empty files
        file.flush()


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, as `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write by temporary file, fsync and rename: a reader sees the old file or the new one, whole.

    Raises:
        OSError: the folder cannot be made or written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
