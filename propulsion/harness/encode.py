"""Rows to token ids: one pass per split, dynamic padding later, per batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from transformers import PreTrainedTokenizerBase

from propulsion.harness.settings import TaskSpec

disable_progress_bars()  # the cell has a bar of its own

HALVES_SEED = 20240910  # fixed for good: the same half selects in every run, method and version


@dataclass(frozen=True)
class EvaluationRows:
    """Encoded rows to score, shortest first so that batches pad little.

    `part` (n,) is the index into `suffixes` of the scored split; `selects` (n,) marks the half of each
    part on which `heldout` selects a checkpoint, the rest being the half on which it is reported.
    """

    rows: Dataset
    suffixes: tuple[str, ...]
    part: np.ndarray
    selects: np.ndarray


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskSpec, max_length: int) -> Dataset:
    """Token ids, mask, label and length of every row, in order. Pairs lose tokens from the longer text."""

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = tokenizer(*(batch[column] for column in task.text), truncation=True, max_length=max_length)
        columns = dict(encoded.items())
        columns["labels"] = batch["label"]
        columns["length"] = [len(ids) for ids in columns["input_ids"]]
        return columns

    return rows.map(
        tokenize,
        batched=True,
        remove_columns=rows.column_names,
        keep_in_memory=True,
        load_from_cache_file=False,
    )


def evaluation_rows(parts: dict[str, Dataset]) -> EvaluationRows:
    """Join the encoded scored splits (metric suffix -> rows) and draw the fixed halves of each."""
    part = np.concatenate([np.full(len(rows), index) for index, rows in enumerate(parts.values())])
    selects = np.concatenate([_half(len(rows)) for rows in parts.values()])
    joined = concatenate_datasets(list(parts.values()))
    order = np.argsort(np.asarray(joined[:]["length"]), kind="stable")
    return EvaluationRows(joined.select(order), tuple(parts), part[order], selects[order])


def _half(rows: int) -> np.ndarray:
    chosen = np.zeros(rows, dtype=bool)
    chosen[np.random.RandomState(HALVES_SEED).permutation(rows)[: rows // 2]] = True
    return chosen
