"""Rows to token ids: one pass per split, dynamic padding later, per batch."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from transformers import PreTrainedTokenizerBase

from propulsion.harness import token_cache
from propulsion.harness.metrics import Questions
from propulsion.harness.settings import TaskSpec
from propulsion.harness.sources import group_numbers

disable_progress_bars()  # the cell has a bar of its own

BATCH = 1000
HALVES_SEED = 20240910  # fixed for good: the same half selects in every run, method and version


@dataclass(frozen=True)
class EvaluationRows:
    """Encoded rows to score, shortest first so that batches pad little.

    `part` (n,) is the index into `suffixes` of the scored split; `selects` (n,) marks the half of each
    part on which `heldout` selects a checkpoint, the rest being the half on which it is reported: half of the
    rows, or of the groups where rows are scored together. `place` (n,) is where each row was before it was sorted.
    `questions` says what belongs together, in the order of the rows; None where every row stands alone.
    """

    rows: Dataset
    suffixes: tuple[str, ...]
    part: np.ndarray
    selects: np.ndarray
    place: np.ndarray
    questions: Questions | None = None


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskSpec, max_length: int) -> Dataset:
    """Token ids, mask, label and length of every row, in order.

    What is too long loses the end of `task.cut`, or of the longer text where the task names none. Rows that the
    same tokenizer encoded before are read from the cache.
    """
    file = token_cache.file_for(rows, tokenizer, task, max_length)
    known = token_cache.read(file)
    if known is None:
        known = _encode(rows, tokenizer, task, max_length)
        token_cache.write(file, known)
    return known


def _encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskSpec, max_length: int) -> Dataset:
    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        columns = _tokens([batch[column] for column in task.text], tokenizer, task, max_length)
        columns["labels"] = batch["label"]
        columns["length"] = [len(ids) for ids in columns["input_ids"]]
        return columns

    return rows.map(
        tokenize,
        batched=True,
        remove_columns=rows.column_names,
        keep_in_memory=True,
        load_from_cache_file=False,
        new_fingerprint=uuid.uuid4().hex,  # datasets would pickle the whole tokenizer to make one
    )


def _tokens(
    texts: list[list[str]], tokenizer: PreTrainedTokenizerBase, task: TaskSpec, max_length: int
) -> dict[str, Any]:
    """The tokenizer's columns for a batch of one or two texts a row."""

    def encoded(rows: list[list[str]], truncation: str) -> dict[str, Any]:
        return dict(tokenizer(*rows, truncation=truncation, max_length=max_length).items())

    if len(texts) == 1 or not task.cut:
        return encoded(texts, "longest_first")
    cut = task.text.index(task.cut)
    others = tokenizer(texts[1 - cut], add_special_tokens=False)["input_ids"]
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    # A question that leaves no room for a word of the passage is cut as well; the library would refuse it.
    odd = [number for number, ids in enumerate(others) if len(ids) >= room]
    usual = [number for number, ids in enumerate(others) if len(ids) < room]
    columns: dict[str, list[Any]] = {}
    for numbers, truncation in ((usual, f"only_{('first', 'second')[cut]}"), (odd, "longest_first")):
        if numbers:
            some = encoded([[text[number] for number in numbers] for text in texts], truncation)
            for name, values in some.items():
                column = columns.setdefault(name, [None] * len(others))
                for number, value in zip(numbers, values, strict=True):
                    column[number] = value
    return columns


def span_tokens(rows: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskSpec, max_length: int) -> np.ndarray:
    """Where the marked spans are in `encode`'s token ids: (n, task.spans, 2), first token and the one after the last.

    Both are -1 for a span of which truncation took a character or more.
    """
    found = np.full((len(rows), task.spans, 2), -1)
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        texts = [batch[column] for column in task.text]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
        for row, (spans, offsets) in enumerate(zip(batch["spans"], encoded["offset_mapping"], strict=True)):
            sequences = encoded.sequence_ids(row)
            for number, (text, first, last) in enumerate(spans):
                inside = [t for t, (a, b) in enumerate(offsets) if sequences[t] == text and a < last and b > first]
                if inside and offsets[inside[-1]][1] >= last:
                    found[start + row, number] = inside[0], inside[-1] + 1
    return found


def evaluation_rows(parts: dict[str, Dataset], sources: dict[str, Dataset] | None = None) -> EvaluationRows:
    """Join the encoded scored splits (metric suffix -> rows) and draw the fixed halves of each.

    Args:
        sources: the same splits before they were encoded, where rows are scored together.
    """
    part = np.concatenate([np.full(len(rows), index) for index, rows in enumerate(parts.values())])
    before = parts if sources is None else sources
    selects = np.concatenate([_half(group_numbers(rows)) for rows in before.values()])
    joined = concatenate_datasets(list(parts.values()))
    order = np.argsort(np.asarray(joined[:]["length"]), kind="stable")
    questions = read_questions(list(before.values())) if sources else None
    return EvaluationRows(
        joined.select(order), tuple(parts), part[order], selects[order], order, questions and questions.take(order)
    )


def read_questions(parts: list[Dataset]) -> Questions | None:
    """The groups, candidates and answers of the rows of all parts, in order; None where rows stand alone."""
    if "group" not in parts[0].column_names:
        return None
    groups: list[np.ndarray] = []
    for rows in parts:
        groups.append(group_numbers(rows) + (groups[-1].max() + 1 if groups else 0))
    if "candidate" not in parts[0].column_names:
        return Questions(np.concatenate(groups))
    candidates = [text for rows in parts for text in rows[:]["candidate"]]
    return Questions(np.concatenate(groups), candidates, [texts for rows in parts for texts in rows[:]["answers"]])


def _half(numbers: np.ndarray) -> np.ndarray:
    """Half of the groups (n,), drawn for good."""
    groups = int(numbers.max(initial=-1)) + 1
    return np.isin(numbers, np.random.RandomState(HALVES_SEED).permutation(groups)[: groups // 2])
