"""What the kernels say about the paper's claim, by a fixed rule.

The claim: the kernel of Propulsion (all layers) approximates full fine-tuning's. The kernels compared are those of what
is trained in or on the backbone; the head, which both train, would only make any two kernels alike. Close means a
centred alignment of `CLOSE` or more. A method that brings this about by what it trains, and not by how much, is closer
than as many random directions of the weights' space, in every seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from propulsion.harness.ntk.records import by_task, seeds_of

CLOSE = 0.9
SEEDS = 3
CLAIMED = ("propulsion", ("sst2", "rte", "cola", "stsb"))  # the subject, and the tasks of the paper's heatmaps

Record = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """One task: the alignment of every seed, and of the controls of the same count."""

    task: str
    ours: tuple[float, ...]
    directions: tuple[float, ...]
    subset: tuple[float, ...]
    others: int = 0  # records under other conditions, which are no seeds of these

    @property
    def close(self) -> bool:
        """In every seed."""
        return min(self.ours) >= CLOSE

    def beats(self, control: tuple[float, ...]) -> bool:
        """Closer than the control in every seed."""
        return all(own > other for own, other in zip(self.ours, control, strict=True))

    @property
    def words(self) -> str:
        """`SST-2 0.95 (random directions 1.00, random weights 0.90)`."""
        from propulsion.harness.tables.model import TASK_NAMES

        controls = f"random directions {fmean(self.directions):.3f}, random weights {fmean(self.subset):.3f}"
        return f"{TASK_NAMES.get(self.task, self.task)} {fmean(self.ours):.3f} ({controls})"


def found(entries: Sequence[Record], backbone: str) -> list[Found]:
    """The claim's tasks that have kernels of the backbone on real rows with pretrained weights, one for each seed."""
    subject, tasks = CLAIMED
    results = []
    for (own, task), records in by_task(list(entries)).items():
        usable = [r for r in records if is_evidence(r) and "controls" in r["subjects"].get(subject, {})]
        if own == backbone and task in tasks and usable:
            seeds, others = seeds_of(usable, subject)
            subjects = [r["subjects"][subject] for r in seeds]
            controls = [s["controls"] for s in subjects]
            results.append(
                Found(
                    task,
                    tuple(s["adapter"]["alignment"] for s in subjects),
                    tuple(c["directions"]["adapter"]["alignment"] for c in controls),
                    tuple(c["subset"]["adapter"]["alignment"] for c in controls),
                    others,
                )
            )
    return sorted(results, key=lambda each: tasks.index(each.task))


def is_evidence(entry: Record) -> bool:
    """Whether a record is of real rows and pretrained weights."""
    run = entry["run"]
    return run["data"]["source"] != "generated" and (run["weights"] or {}).get("id") != "random"


def whole(results: Sequence[Found]) -> bool:
    """Whether there is enough to judge: every task of the claim, with seeds enough."""
    return len(results) == len(CLAIMED[1]) and min(len(each.ours) for each in results) >= SEEDS
