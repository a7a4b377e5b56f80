"""Encoded rows on disk, named by what they were made from: another text, tokenizer or length makes another file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import tokenizers
import transformers
from datasets import Dataset
from pyarrow import feather

from propulsion.harness.files import write_bytes
from propulsion.harness.settings import TaskSpec

FOLDER = "PROPULSION_CACHE"  # in the environment: another folder, or an empty name for no cache
FORMAT = 2  # raised when encode.py makes something else of the same rows
DIGEST = 32  # bytes of a SHA-256, at the start of a file
LEAST_ROWS = 200  # fewer are encoded faster than their file is found


def folder() -> Path | None:
    """Where the files lie: `$PROPULSION_CACHE`, or `propulsion` in the user's cache folder; None: nowhere."""
    chosen = os.environ.get(FOLDER)
    if chosen is not None:
        return Path(chosen) if chosen else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "propulsion")
    except RuntimeError:  # a user without a home, as in a container
        return None


def file_for(rows: Dataset, tokenizer: Any, task: TaskSpec, max_length: int) -> Path | None:
    """The file of these rows, which need not exist; None where nothing is cached."""
    place = folder()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if place is None or backend is None or len(rows) < LEAST_ROWS:
        return None
    versions = [FORMAT, transformers.__version__, tokenizers.__version__]
    sides = [tokenizer.padding_side, tokenizer.truncation_side, list(tokenizer.model_input_names)]
    rules = json.loads(backend.to_str()) | {"truncation": None, "padding": None}  # those are of its last call
    how = json.dumps([versions, sides, list(task.text), task.cut, task.spans, max_length, rules])
    digest = hashlib.sha256(how.encode())
    for name in sorted(rows.column_names):
        digest.update(json.dumps([name, list(rows[name])], ensure_ascii=False, default=str).encode())
    return place / "tokens" / f"{digest.hexdigest()[:32]}.arrow"


def read(file: Path | None) -> Dataset | None:
    """The rows of a file, or None where it is not there or its content is not what was written."""
    if file is None:
        return None
    try:
        content = file.read_bytes()
        digest, rows = content[:DIGEST], content[DIGEST:]
        if hashlib.sha256(rows).digest() != digest:
            return None
        return Dataset(feather.read_table(pa.BufferReader(rows), memory_map=False))
    except (OSError, pa.ArrowInvalid):
        return None


def write(file: Path | None, rows: Dataset) -> None:
    """Keep rows behind their digest; a folder that cannot be written only costs time."""
    if file is None:
        return
    stream = io.BytesIO()
    feather.write_feather(rows.data.table.combine_chunks(), stream, compression="uncompressed")
    content = stream.getvalue()
    with contextlib.suppress(OSError):
        write_bytes(file, hashlib.sha256(content).digest() + content)
