"""Digests of files, read again only when the file changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from propulsion.harness.errors import UserError

_SETTLED_SECONDS = 2.0  # a file may change again within the tick of its own time
_known: dict[tuple[object, ...], str] = {}


def file_digest(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal.

    Remembered for the file as it stands: device, inode, size and the times of its content and of its entry, in
    nanoseconds. A file that was just written is not remembered.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        facts = os.fstat(stream.fileno())
        identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        if identity not in _known:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if abs(time.time() - max(facts.st_mtime, facts.st_ctime)) < _SETTLED_SECONDS:
                return digest
            _known[identity] = digest
        return _known[identity]


def shards_digest(index: Path) -> str:
    """One digest of the shards that an index (`model.safetensors.index.json`) names.

    The sha256 of what `sha256sum` prints of them, in the order of their names: digest, two spaces, name, newline.

    Raises:
        OSError: the index or a shard cannot be read.
        ValueError: the index is none.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("it has no weight_map") from error
    lines = [f"{file_digest(index.parent / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def start_digest(path: str) -> str:
    """Digest of a file to start from.

    Raises:
        UserError: there is no such file.
    """
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(
            f"training.start_from={path} cannot be read ({error.strerror}); give the last.safetensors of a run "
            "with training.keep_weights=last"
        ) from error
