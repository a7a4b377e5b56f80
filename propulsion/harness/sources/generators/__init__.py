"""The generators: rows written from a seed, one family of phenomena per kind of task.

Each family's module offers PHENOMENA, functions of (draw, label) that write a row's texts. Whether the label
holds must hang on the words together: within a phenomenon every word is as frequent under each label.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from propulsion.harness.errors import UserError
from propulsion.harness.settings import TaskSpec
from propulsion.harness.sources.generators import (
    acceptability,
    answer,
    coreference,
    duplicate,
    inference,
    paraphrase,
    sentiment,
    similarity,
)
from propulsion.harness.sources.generators.draw import Draw

# All possible rows are divided by their text: a share for each split to score or predict, the rest to train.
EVALUATION_SHARES = 4
TRAIN_SHARES = 4
TRIES = 20_000  # draws in vain for one row: the generator has no more

Texts = tuple[str, ...]


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
    )
}


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
