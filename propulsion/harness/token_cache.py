"""Encoded rows on disk, named by what they were made from: another text, tokenizer or length makes another file."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import tokenizers
import transformers
from datasets import Dataset
from pyarrow import feather

from propulsion.harness.settings import TaskSpec

FOLDER = "PROPULSION_CACHE"  # in the environment: another folder, or an empty name for no cache
FORMAT = 1  # raised when encode.py makes something else of the same rows
LEAST_ROWS = 200  # fewer are encoded faster than their file is found


def folder() -> Path | None:
    """Where the files lie: `$PROPULSION_CACHE`, or `propulsion` in the user's cache folder; None: nowhere."""
    chosen = os.environ.get(FOLDER)
    if chosen is not None:
        return Path(chosen) if chosen else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "propulsion")


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
    """The rows of a file, or None where it is not there or not whole."""
    if file is None:
        return None
    try:
        return Dataset(feather.read_table(file, memory_map=False))
    except (OSError, pa.ArrowInvalid):
        return None


def write(file: Path | None, rows: Dataset) -> None:
    """Keep rows, whole or not at all; a folder that cannot be written only costs time."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                feather.write_feather(rows.data.table.combine_chunks(), stream, compression="uncompressed")
            os.replace(temporary, file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError:
        return
