"""The generators: rows written from a seed, one family of phenomena per kind of task.

Each family's module offers PHENOMENA, functions of (draw, label) that write a row's texts. Whether the label
holds must hang on the words together: within a phenomenon every word is as frequent under each label. Where the
official files hold records that are not rows, functions of (draw, 0 or 1) write such records, labels included.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from propulsion.harness.errors import UserError
from propulsion.harness.settings import TaskSpec
from propulsion.harness.sources.generators import (
    acceptability,
    answer,
    answers,
    causes,
    cloze,
    commitment,
    coreference,
    duplicate,
    inference,
    paraphrase,
    pronouns,
    roles,
    senses,
    sentiment,
    similarity,
    yesno,
)
from propulsion.harness.sources.generators.draw import Draw

# All possible rows are divided by their text: a share for each split to score or predict, the rest to train.
EVALUATION_SHARES = 4
TRAIN_SHARES = 4
TRIES = 20_000  # draws in vain for one row: the generator has no more

Texts = tuple[str, ...]
Record = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """The generator of one kind of task.

    Attributes:
        version: raised whenever a row changes; part of the data's fingerprint.
        texts: how many text columns a row has.
        labels: the label names that the phenomena know; empty in regression, where they give a score as well.
        phenomena: functions of (draw, label), each as frequent as the others.
    """

    name: str
    version: int
    texts: int
    labels: tuple[str, ...]
    phenomena: Sequence[Callable[..., Any]]

    def check(self, task: TaskSpec) -> None:
        """Raise UserError when the task's columns or labels are not those of the family."""
        start = f"task {task.name}: generator {self.name} writes"
        if len(task.text) != self.texts:
            raise UserError(f"{start} {self.texts} text columns, the task has {len(task.text)}; use another one")
        two_way = (self.labels[0], f"not_{self.labels[0]}") if len(self.labels) > 2 else self.labels
        if set(task.labels) not in (set(self.labels), set(two_way)):
            known = f"the labels {', '.join(self.labels)}" if self.labels else "scores"
            raise UserError(f"{start} {known}, the task has {', '.join(task.labels) or 'scores'}; use another one")

    def draw_row(self, draw: Draw, label: str | None) -> tuple[Texts, float | None]:
        """One row with this label; in regression with a score."""
        phenomenon = draw.pick(self.phenomena)
        if not self.labels:
            texts, score = phenomenon(draw)
            return texts, score
        if label not in self.labels:  # "not_entailment" of three-way inference
            label = draw.pick(self.labels[1:])
        return phenomenon(draw, label), None


FAMILIES = {
    family.name: family
    for family in (
        Family("acceptability", 1, 1, ("unacceptable", "acceptable"), acceptability.PHENOMENA),
        Family("sentiment", 1, 1, ("negative", "positive"), sentiment.PHENOMENA),
        Family("paraphrase", 1, 2, ("not_equivalent", "equivalent"), paraphrase.PHENOMENA),
        Family("duplicate", 1, 2, ("not_duplicate", "duplicate"), duplicate.PHENOMENA),
        Family("similarity", 1, 2, (), similarity.PHENOMENA),
        Family("inference", 1, 2, ("entailment", "neutral", "contradiction"), inference.PHENOMENA),
        Family("answer", 1, 2, ("entailment", "not_entailment"), answer.PHENOMENA),
        Family("coreference", 1, 2, ("entailment", "not_entailment"), coreference.PHENOMENA),
        Family("yesno", 1, 2, ("False", "True"), yesno.PHENOMENA),
        Family("commitment", 1, 2, ("entailment", "contradiction", "neutral"), commitment.PHENOMENA),
    )
}


@dataclass(frozen=True)
class RecordFamily:
    """The generator of a task with records in the schema of its official files.

    Attributes:
        version: raised whenever a record changes; part of the data's fingerprint.
        reshape: the function of reshape.py that its records are for; empty where records are rows.
        phenomena: functions of (draw, 0 or 1, in turn), which give one record or several that belong together.
    """

    name: str
    version: int
    reshape: str
    phenomena: Sequence[Callable[[Draw, int], list[Record]]]

    def check(self, task: TaskSpec) -> None:
        """Raise UserError when the task reads other records."""
        if task.reshape != self.reshape:
            raise UserError(
                f"task {task.name}: generator {self.name} writes records for reshape: {self.reshape or '(none)'}, "
                f"the task has {task.reshape or '(none)'}; use another one"
            )


RECORD_FAMILIES = {
    family.name: family
    for family in (
        RecordFamily("causes", 2, "copa", causes.PHENOMENA),
        RecordFamily("answers", 2, "multirc", answers.PHENOMENA),
        RecordFamily("cloze", 1, "record", cloze.PHENOMENA),
        RecordFamily("senses", 2, "wic", senses.PHENOMENA),
        RecordFamily("pronouns", 2, "wsc", pronouns.PHENOMENA),
        RecordFamily("roles", 1, "", roles.PHENOMENA),
    )
}


def write_records(family: RecordFamily, share: int, seed: int) -> Iterator[list[Record]]:
    """Different records without end, in the batches that belong together, numbered from 0 in `idx`.

    Args:
        share: as in `write_rows`. The passage decides it where there is one, else all texts together.

    Raises:
        UserError: the generator has no more.
    """
    draw = Draw(family.name, family.version, share, seed)
    seen: set[str] = set()
    count = tries = 0
    while True:
        found = draw.pick(family.phenomena)(draw, len(seen) % 2)
        text = "\n".join(sorted(json.dumps(record) for record in found))  # a pair and its mirror image are one
        tries += 1
        if text not in seen and _share(tuple(_texts(found))) == share:
            seen.add(text)
            yield [{"idx": count + number, **record} for number, record in enumerate(found)]
            count, tries = count + len(found), 0
        elif tries > TRIES:
            raise UserError(f"generator {family.name} has only about {len(seen)} records: ask for fewer rows")


def _texts(found: list[Record]) -> Iterator[str]:
    """What decides the share of records: two about one passage, or one premise, are never in two splits."""
    for record in found:
        passage = record.get("premise") or record.get("passage", record).get("text")
        yield from [passage] if passage else sorted(value for value in record.values() if isinstance(value, str))


def write_rows(family: Family, labels: Sequence[str], share: int, count: int, seed: int) -> list[tuple[Texts, float]]:
    """`count` different rows, as (texts, class id or score), with the labels in turn.

    Args:
        labels: the task's label names in the order of the class ids; none in regression.
        share: 0 for the training rows, 1 to `EVALUATION_SHARES` for the other splits. A row's share hangs on
            its texts alone, so that no row is in two splits, whatever the seed and the counts.

    Raises:
        UserError: the generator cannot write as many different rows.
    """
    draw = Draw(family.name, family.version, share, seed)
    rows: dict[Texts, float] = {}
    tries = 0
    while len(rows) < count:
        place = len(rows) % len(labels) if labels else 0
        texts, score = family.draw_row(draw, labels[place] if labels else None)
        tries += 1
        if texts not in rows and _share(texts) == share and (len(texts) == 1 or texts[0] != texts[1]):
            rows[texts] = place if score is None else score
            tries = 0
        elif tries > TRIES:
            raise UserError(f"generator {family.name} has only about {len(rows)} of {count} rows: ask for fewer")
    return list(rows.items())


def _share(texts: Texts) -> int:
    """The share of a row: the same for a pair and its mirror image."""
    place = zlib.crc32("\n".join(sorted(texts)).encode()) % (EVALUATION_SHARES + TRAIN_SHARES)
    return place + 1 if place < EVALUATION_SHARES else 0
