"""Rows from files: the official download (tab-separated without quoting, JSON lines), or one's own .csv, .parquet."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator
from io import BufferedReader
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from propulsion.harness.digests import file_digest
from propulsion.harness.errors import UserError
from propulsion.harness.settings import DataSpec, LocalSpec, TaskSpec
from propulsion.harness.sources import own
from propulsion.harness.sources.base import UNLABELLED, Source, make_rows
from propulsion.harness.sources.records import columns_of, flat, read_records, reshape

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

MOST_SHORT = 0.01  # more short lines than this and the file is broken, not just untidy
JSON_LINES = ".jsonl"
BOM = b"\xef\xbb\xbf"


class LocalSource(Source):
    """Files at `<data.dir>/<suite>/<folder>/<file>` or `<data.dir>/<folder>/<file>`.

    A task that is part of two suites has the files of its own suite or, without those, of the other.

    Raises:
        UserError: `data.dir` is not set, or a file to train on or to score is missing.
    """

    def __init__(self, task: TaskSpec, data: DataSpec) -> None:
        super().__init__(task, data)
        if not task.local.folder:
            raise UserError(f"task {task.name} has no local files: no local.folder in its YAML; use data=hub")
        if not data.dir:
            raise UserError("data=local needs the folder of the files: set data.dir=<folder>")
        self._root = Path(data.dir).expanduser()
        if not self._root.is_dir():
            raise UserError(f"data.dir={data.dir} is not a folder; set it to the one with {task.local.folder}/ in it")
        for spec in (task.local, *task.also.values()):
            _check(task, spec)
        self._spec, self._suite, self._used = self._layout()

    def fingerprint(self) -> str:
        """Digest of the bytes of the files to train on and to score."""
        digest = hashlib.sha256()
        for split, path in self._used.items():
            digest.update(f"{split}:{_digest(path)};".encode())
        return f"local:{digest.hexdigest()[:16]}"

    def load_split(self, split: str) -> Dataset:
        path = self._used.get(split) or self._find(split, self._spec, self._suite)
        labelled = split not in self.task.tests.values()
        if path.suffix in (own.CSV, own.PARQUET):
            records = own.records_of(path, self.task, self._spec, labelled)
            return make_rows(self.task, columns_of(self.task, records, flat(self.task, self._spec), labelled))
        if path.suffix != JSON_LINES:
            return make_rows(self.task, Table(path, self.task, self._spec, labelled).read())
        rows_of = reshape(self.task) if self.task.reshape else flat(self.task, self._spec)
        with _opened(path) as lines:
            return make_rows(self.task, columns_of(self.task, read_records(path, lines), rows_of, labelled))

    def _layout(self) -> tuple[LocalSpec, str, dict[str, Path]]:
        """The layout that has all files to train on and to score: its spec, its suite, the file of each split."""
        missing = []
        for suite, spec in {self.task.suite: self.task.local, **self.task.also}.items():
            try:
                splits = dict.fromkeys(("train", *self.task.parts.values()))
                return spec, suite, {split: self._find(split, spec, suite) for split in splits}
            except UserError as error:
                missing.append(error)
        raise missing[0]

    def _find(self, split: str, spec: LocalSpec, suite: str) -> Path:
        """The split's file: the first of its names that is there, in the suite's folder or without it."""
        name = self.task.name
        if split not in spec.files:
            raise UserError(f"task {name} has no file for '{split}': see local.files in its YAML")
        names = spec.files[split]
        names = [names] if isinstance(names, str) else names
        bases = [base for base in (self._root / suite / spec.folder, self._root / spec.folder) if base.is_dir()]
        if not bases:
            places = f"{self._root} or {self._root / suite}"
            raise UserError(f"{name}: no folder {spec.folder} in {places}; put its files there, or set data.dir")
        for base in bases:
            for file in names:
                if (base / file).is_file():
                    own.check_suffix(base / file)
                    return (base / file).resolve()
        places = " or ".join(str(base) for base in bases)
        raise UserError(f"{name}: no file {' or '.join(names)} in {places}; put the '{split}' rows there")


def _check(task: TaskSpec, spec: LocalSpec) -> None:
    odd = set(spec.labels.values()) - set(task.labels)
    if odd:
        raise UserError(f"task {task.name}: local.labels names {', '.join(sorted(odd))}, no label of the task")
    strange = spec.columns.keys() - {*task.text, "label"}
    if strange:
        raise UserError(
            f"task {task.name}: local.columns names {', '.join(sorted(strange))}, but the task's columns are "
            f"{', '.join([*task.text, 'label'])}"
        )
    if not spec.header and set(spec.columns) < {*task.text, "label"}:
        raise UserError(f"task {task.name}: files without a header need every column in local.columns")


class Table:
    """One file, read line by line; only the columns that the task needs are decoded.

    Args:
        spec: the file's layout.
        labelled: whether the file must have labels; of the others, only those that have the column do.
    """

    def __init__(self, path: Path, task: TaskSpec, spec: LocalSpec, labelled: bool) -> None:
        self.path, self.task, self.spec, self.labelled = path, task, spec, labelled
        self.header = spec.header or not labelled
        self.first = 2 if self.header else 1  # line number of the first row
        self.width = 0  # cells in every line; 0: as many as in the first
        self.at: dict[str, int] = {}  # our column -> position

    def read(self) -> dict[str, list[Any]]:
        """The task's columns, one entry per row; `idx` counts the lines after the header.

        Raises:
            UserError: an empty file, a missing column or a line that cannot be read, with its number.
        """
        with _opened(self.path) as file:
            lines = iter(file)
            self._place_columns(lines)
            numbers, rows = self._read_rows(lines)
        if not rows:
            raise UserError(f"{self.path}: the file has no rows; fetch it again")
        columns: dict[str, list[Any]] = dict(zip(self.at, map(list, zip(*rows, strict=True)), strict=True))
        words = columns.pop("label", None)
        columns["label"] = [UNLABELLED] * len(rows) if words is None else self._labels(words, numbers)
        columns["idx"] = [number - self.first for number in numbers]
        return columns

    def _place_columns(self, lines: Iterator[bytes]) -> None:
        spec, wanted = self.spec, (*self.task.text, "label")
        if not self.header:
            self.at = {column: int(spec.columns[column]) for column in wanted}
            return
        header = self._text(next(lines, b"").removeprefix(BOM).rstrip(b"\r\n"), 1).split("\t")
        if header == [""]:
            raise UserError(f"{self.path}: the file is empty; fetch it again")
        self.width = len(header)
        for column in wanted:
            names = spec.columns.get(column, column) if spec.header else column
            names = [names] if isinstance(names, str) else names
            found = [header.index(name) for name in names if name in header]
            if found:
                self.at[column] = found[0]
            elif column != "label" or self.labelled:
                named = " or ".join(repr(name) for name in names)
                raise self._wrong(1, f"no column {named} for '{column}' in the header {', '.join(header)}")

    def _read_rows(self, lines: Iterator[bytes]) -> tuple[list[int], list[tuple[str, ...]]]:
        """The line number and the wanted cells of every row."""
        pick = itemgetter(0, *self.at.values())  # one cell more, so that a single column gives a tuple too
        numbers: list[int] = []
        rows: list[tuple[str, ...]] = []
        short: list[int] = []
        blank: list[int] = []
        for number, line in enumerate(lines, self.first):
            if not line.strip() and self.width != 1:
                blank.append(number)  # at the end of the file no row at all
                continue
            if blank and not self.spec.skip_short_rows:
                raise self._wrong(blank[0], "a blank line between rows")
            short += blank
            blank.clear()
            cells = line.rstrip(b"\r\n").split(b"\t")
            self.width = self.width or max(len(cells), 1 + max(self.at.values()))
            if len(cells) != self.width:
                if len(cells) > self.width or not self.spec.skip_short_rows:
                    raise self._wrong(number, f"{len(cells)} columns where there should be {self.width}")
                short.append(number)
                continue
            try:
                rows.append(tuple([cell.decode() for cell in pick(cells)[1:]]))
            except UnicodeDecodeError:
                self._text(line, number)
            numbers.append(number)
        self._report(short, len(rows))
        return numbers, rows

    def _report(self, short: list[int], rows: int) -> None:
        if len(short) > max(MOST_SHORT * rows, 1):
            raise self._wrong(short[0], f"too few columns, here and in {len(short) - 1} other lines")
        if short:
            log.warning("%s: %d short lines left out, the first is line %d", self.path, len(short), short[0])

    def _labels(self, words: list[str], numbers: list[int]) -> list[Any]:
        if not self.task.labels:
            return [self._number(word, number) for word, number in zip(words, numbers, strict=True)]
        names = self.spec.labels or {name: name for name in self.task.labels}
        ids = {word: self.task.labels.index(name) for word, name in names.items()}
        try:
            return [ids[word] for word in words]
        except KeyError:
            row = next(i for i, word in enumerate(words) if word not in ids)
            raise self._wrong(numbers[row], f"label {words[row]!r} is none of {', '.join(ids)}") from None

    def _number(self, word: str, number: int) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self._wrong(number, f"label {word!r} is not a number")
        return value

    def _text(self, raw: bytes, number: int) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._wrong(number, f"byte {raw[error.start]:#04x} is not UTF-8") from None

    def _wrong(self, number: int, reason: str) -> UserError:
        return UserError(f"{self.path}, line {number}: {reason}; correct the line, or fetch the file again")


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend it, or set data.dir") from error


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend it, or set data.dir") from error
