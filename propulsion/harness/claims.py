"""The claims ledger: each claim of the paper, its source, our measurement, and a verdict by a fixed rule.

Parameter counts decide count claims at once. Everything else is decided by records of the paper profile
alone (`evidence.unusable`), never by eye.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from propulsion.harness import configs, params
from propulsion.harness.evidence import (
    EVALUATED_OTHERWISE,
    Record,
    below_at,
    by_seed,
    conditions,
    evaluated_by,
    first_step,
    incomparable,
    row_score,
    runs_of,
    unusable,
)
from propulsion.harness.ntk import verdict
from propulsion.harness.statistics import tost
from propulsion.harness.tables.model import TASK_NAMES

HOLDS, FAILS, ONLY_AS_COUNTED = "holds", "does not hold", "holds only as counted"
AS_AT_RANDOM = "close, as at random"
UNDECIDED, NOT_RUN, NOT_AVAILABLE = "undecided", "not run", "not available"
VERDICTS = {
    HOLDS: "counts: by every way of counting; kernels: close, and closer than either control, in every task and seed; "
    "the rest: equivalent to the paper's number within the margin",
    FAILS: "counts: by no way of counting; kernels: close on no task; the rest: the 90 % interval lies outside the "
    "margin",
    AS_AT_RANDOM: "kernels: close in every task and seed, but on each task not always closer than random directions, "
    "or random weights, of the same number",
    ONLY_AS_COUNTED: "by the paper's way of counting, but not by every way that treats both sides alike",
    UNDECIDED: "the 90 % interval lies across the edge of the margin: more seeds are needed; kernels: the tasks "
    "disagree",
    NOT_RUN: "fewer runs of the cell than the test needs",
    NOT_AVAILABLE: "no source for the number",
}
SEEDS = 3  # fewer decide nothing
POINTS = 1.0  # margin of a score, in points of 100
RATIO = 0.1  # margin of a ratio of memory, as a share of the paper's
COUNT = 0.05  # how far off a ratio of counts may be, since the paper rounds
ACCURACY_TASKS = ("sst2", "mrpc", "qqp", "mnli", "qnli", "rte")
EVERY = 10  # steps between the evaluations of a run that is to decide a claim of speed

Row = dict[str, str]  # of a reference file


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    id: str
    kind: str
    statement: str
    place: str
    source: str
    standing: str
    paper: str  # the paper's number, as it stands there
    verdict: str
    ours: str = ""
    value: float | None = None  # the number behind `ours`, unrounded
    n: int | None = None
    spread: str = ""
    conditions: str = ""

    @property
    def is_score(self) -> bool:
        """A cell of a score table, and no claim of its own."""
        return "/" in self.id


class Counts:
    """Parameter counts by (backbone, method), made when they are first asked for."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], params.Count] = {}

    def row(self, backbone: str, method: str) -> params.Count:
        """With the method's own head policy."""
        if (backbone, method) not in self._rows:
            spec = params.load_method(method)
            counted = params.count_cell(params.load_backbone(backbone), spec, spec.head)
            self._rows[backbone, method] = counted
        return self._rows[backbone, method]


def judge_count(claim: Row, counts: Counts) -> Entry:
    """A count, or a ratio of counts in every way of counting, against the paper's number."""
    entry = replace(_entry(claim), conditions=claim["how"])
    subject = counts.row(claim["backbone"], claim["subject"])
    assert subject.counts is not None
    if not claim["against"]:
        value = subject.counts.trainable
        verdict = HOLDS if _agrees(value, claim["reference"]) else FAILS
        ours = f"{value:,} ({claim['subject']} on {claim['backbone']})"
        return replace(entry, verdict=verdict, ours=ours, value=float(value))
    other = counts.row(claim["against_backbone"], claim["against"])
    assert other.counts is not None
    paper_way = other.counts.trainable / subject.counts.adapter
    alike = _like_for_like(claim, counts)
    meets = [_meets(claim, ratio) for ratio in alike.values()]
    verdict = FAILS
    if _meets(claim, paper_way):
        verdict = HOLDS if all(meets) else ONLY_AS_COUNTED
    sides = (
        f", {claim['against_backbone']} over {claim['backbone']}"
        if claim["against_backbone"] != claim["backbone"]
        else ""
    )
    listed = ", ".join(f"{params.times(ratio)} {way}" for way, ratio in alike.items())
    ours = f"{params.times(paper_way)} as the paper counts{sides}; {listed}"
    return replace(entry, verdict=verdict, ours=ours, value=paper_way)


def _like_for_like(claim: Row, counts: Counts) -> dict[str, float]:
    """The ratios that treat both sides alike: one backbone at a time, heads on both sides or on neither.

    Where the paper crosses two backbones, its own way of counting on one backbone is among them.
    """
    crosses = claim["against_backbone"] != claim["backbone"]
    alike: dict[str, float] = {}
    for backbone in dict.fromkeys((claim["against_backbone"], claim["backbone"])):
        pair = (counts.row(backbone, claim[side]) for side in ("subject", "against"))
        for way, ratio in params.ratios(*pair).items():
            if ratio is not None and (crosses or way != "as the paper"):
                alike[f"{way} on {backbone}" if crosses else way] = ratio
    return alike


def _meets(claim: Row, ratio: float) -> bool:
    reference = float(claim["reference"])
    return ratio >= reference if claim["relation"] == "at least" else abs(ratio / reference - 1) <= COUNT


def _agrees(value: float, stated: str) -> bool:
    """Within one unit of the last digit that the paper gives (`355.3e6`: 0.1e6), rounded or cut off."""
    mantissa, _, exponent = stated.lower().partition("e")
    digits = len(mantissa.partition(".")[2])
    return abs(value - float(stated)) < 10.0 ** (int(exponent or 0) - digits)


def judge_score(reference: Row, records: list[Record], margin: float = POINTS) -> Entry:
    """One reference score against the runs of its cell."""
    method, backbone, task = (reference[key] for key in ("method", "backbone", "task"))
    metric, rule, value = (reference[key] for key in ("metric", "rule", "value"))
    own, others = runs_of(records, method, backbone, task)
    scores = [score for record in own if (score := row_score(record, metric, rule)) is not None]
    left_out = f"{others} runs with other settings left out" if others else ""
    entry = Entry(
        id=f"{task}/{backbone}/{method}/{metric}/{rule.split()[0]}",
        kind="score",
        statement=f"{TASK_NAMES[task]} {metric}, {rule}: {reference['paper_row']}, {backbone}",
        place="public notebook" if reference["standing"] == "code" else "GLUE table",
        source=reference["source"],
        standing=reference["standing"],
        paper=f"{float(value):.1f}" if value else "",
        verdict=NOT_AVAILABLE,
        conditions=_line(reference["note"], _absent(method), conditions(own), left_out),
    )
    return _tested(entry, scores, float(value) if value else None, margin, "points")


def judge_gain(claim: Row, records: list[Record]) -> Entry:
    """Mean gain in accuracy of one method over another, per seed over all tasks scored by accuracy."""
    gains: dict[int, list[float]] = defaultdict(list)
    for task in ACCURACY_TASKS:
        for seed, ours, theirs in _pairs(claim, records, task):
            scores = [row_score(record, "accuracy", "best row") for record in (ours, theirs)]
            if scores[0] is not None and scores[1] is not None:
                gains[seed].append(scores[0] - scores[1])
    means = [sum(found) / len(found) for found in gains.values() if len(found) == len(ACCURACY_TASKS)]
    entry = replace(_entry(claim), conditions=_how(claim))
    return _tested(entry, means, float(claim["reference"]), POINTS, "points")


def judge_memory(claim: Row, records: list[Record]) -> Entry:
    """Peak memory of one method over another's, per seed, both on one kind of GPU with one batch size."""
    found: dict[int, list[float]] = defaultdict(list)
    apart: Counter[str] = Counter()
    for task in TASK_NAMES:
        for seed, ours, theirs in _pairs(claim, records, task):
            if reason := incomparable(ours, theirs):
                apart[reason] += 1
                continue
            memory = [record["cost"]["peak_memory_bytes"] for record in (ours, theirs)]
            found[seed].append(memory[1] / memory[0])
    reference = float(claim["reference"])
    reasons = (f"not comparable: {reason} ({count} pairs)" for reason, count in sorted(apart.items()))
    entry = replace(_entry(claim), conditions=_line(_how(claim), *reasons))
    values = [sum(ratios) / len(ratios) for ratios in found.values()]
    return _tested(entry, values, reference, RATIO * reference, "of the ratio")


def judge_speed(claim: Row, records: list[Record]) -> Entry:
    """The first evaluation at or above the target accuracy; decided where all seeds agree.

    Runs with an evaluation by the limit come first where there are enough of them, whatever they score.
    """
    limit, target = float(claim["reference"]), float(claim["target"])
    cell = (claim["subject"], claim["backbone"], claim["task"])
    early = by_seed([record for record in records if evaluated_by(record, limit)], *cell)
    own = list((early if len(early) >= SEEDS else by_seed(records, *cell)).values())
    wanted = f"to decide: {SEEDS} seeds by the recipe but for training.eval_steps={EVERY}"
    entry = replace(_entry(claim), n=len(own), conditions=_line(_how(claim), conditions(own)))
    if len(own) < SEEDS:
        return replace(entry, verdict=NOT_RUN, conditions=_line(entry.conditions, wanted))
    steps = [first_step(record, "accuracy", target) for record in own]
    if all(step is not None and step <= limit for step in steps):
        verdict = HOLDS
    else:
        refuted = all(below_at(record, step, limit) for record, step in zip(own, steps, strict=True))
        verdict = FAILS if refuted else UNDECIDED
        if not refuted and not all(evaluated_by(record, limit) for record in own):
            reason = f"no evaluation by step {limit:g}"
            entry = replace(entry, conditions=_line(entry.conditions, reason, wanted))
    found = [step for step in steps if step is not None]
    ours = ", ".join("never" if step is None else f"step {step}" for step in steps)
    return replace(entry, verdict=verdict, ours=ours, value=sum(found) / len(found) if found else None)


def judge_kernel(claim: Row, kernels: Sequence[Record]) -> Entry:
    """Kernels of Propulsion (all layers) against full fine-tuning's, beside controls of the same count.

    On the claim's own backbone where it was measured, else on the one with most tasks: the entry says which.
    """
    entry = _entry(claim)
    measured = {name: verdict.found(kernels, name) for name in sorted({r["run"]["backbone"] for r in kernels})}
    measured = {name: found for name, found in measured.items() if found}
    if not measured:
        return replace(entry, conditions=_line(claim["how"], "to decide: make ntk on the real files, three seeds"))
    backbone = min(measured, key=lambda name: (name != claim["backbone"], -len(measured[name]), name))
    found = measured[backbone]
    seeds = min(len(each.ours) for each in found)
    other = "" if backbone == claim["backbone"] else "; not the paper's backbone"
    how = f"centred alignment with full fine-tuning's kernel at the start, head left out, {backbone}{other}"
    others = sum(each.others for each in found)
    left_out = f"{others} kernels of other conditions left out" if others else ""
    entry = replace(
        entry,
        ours=", ".join(each.words for each in found),
        value=sum(sum(each.ours) / len(each.ours) for each in found) / len(found),
        n=seeds,
        conditions=_line(
            f"{how}; close: {verdict.CLOSE:g} or more", "the paper gives heatmaps without numbers", left_out
        ),
    )
    if not verdict.whole(found):
        return replace(entry, conditions=_line(entry.conditions, f"{len(found)} tasks, {seeds} of {SEEDS} seeds"))
    return replace(entry, verdict=_kernel_verdict(found))


def _kernel_verdict(found: Sequence[verdict.Found]) -> str:
    if not any(each.close for each in found):
        return FAILS
    if not all(each.close for each in found):
        return UNDECIDED
    if all(each.beats(each.directions) and each.beats(each.subset) for each in found):
        return HOLDS
    chance = all(not each.beats(each.directions) or not each.beats(each.subset) for each in found)
    return AS_AT_RANDOM if chance else UNDECIDED


def _pairs(claim: Row, records: list[Record], task: str) -> Iterable[tuple[int, Record, Record]]:
    """Runs of the two methods of a claim with the same seed: (seed, subject's, against's)."""
    ours, theirs = (by_seed(records, claim[side], claim["backbone"], task) for side in ("subject", "against"))
    return [(seed, ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def _tested(entry: Entry, values: list[float], reference: float | None, margin: float, unit: str) -> Entry:
    """Fill in our numbers and the verdict of the equivalence test."""
    n = len(values)
    if n:
        mean = sum(values) / n
        entry = replace(entry, ours=f"{mean:.2f}", value=mean, n=n)
    if reference is None:
        return replace(entry, verdict=NOT_AVAILABLE)
    if n < SEEDS:
        return replace(entry, n=n, verdict=NOT_RUN, conditions=_line(entry.conditions, f"{n} of {SEEDS} seeds"))
    test = tost(values, reference, margin)
    interval = f"90 % interval {test.low:.2f} to {test.high:.2f}"
    spread = f"sd {test.sd:.2f}, {interval}, margin {margin:.2g} {unit}, p {test.p:.2g}"
    verdict = HOLDS if test.equivalent else FAILS if test.different else UNDECIDED
    return replace(entry, spread=spread, verdict=verdict)


def _how(claim: Row) -> str:
    return _line(claim["how"], _absent(claim["subject"]), _absent(claim["against"]))


def _absent(method: str) -> str:
    return "" if not method or method in configs.names("method") else f"no method {method} here"


def _line(*texts: str) -> str:
    return "; ".join(filter(None, texts))


def _entry(claim: Row) -> Entry:
    return Entry(
        id=claim["id"],
        kind=claim["kind"],
        statement=claim["statement"],
        place=claim["place"],
        source=claim["source"],
        standing=claim["standing"],
        paper=claim["number"],
        verdict=NOT_RUN,
    )


JUDGES: dict[str, Callable[[Row, list[Record]], Entry]] = {
    "score": judge_gain,
    "memory": judge_memory,
    "speed": judge_speed,
}


def ledger(
    claims: list[Row],
    scores: list[Row],
    records: Iterable[Record],
    refuse: Callable[[Record], str | None] = unusable,
    margin: float = POINTS,
    counts: Counts | None = None,
    kernels: Sequence[Record] = (),
) -> list[Entry]:
    """Every claim, then every reference score, judged. `refuse` says which records are no evidence.

    `kernels` are the records of `make ntk`.
    """
    reasons = [(record, refuse(record)) for record in records]
    evidence = [record for record, reason in reasons if reason is None]
    of_speed = [record for record, reason in reasons if reason in (None, EVALUATED_OTHERWISE)]
    counts = counts or Counts()
    entries = []
    for claim in claims:
        if claim["kind"] == "count":
            entries.append(judge_count(claim, counts))
        elif claim["kind"] == "kernel":
            entries.append(judge_kernel(claim, kernels))
        elif not claim["reference"]:
            entries.append(replace(_entry(claim), verdict=NOT_AVAILABLE, conditions=_how(claim)))
        else:
            entries.append(JUDGES[claim["kind"]](claim, of_speed if claim["kind"] == "speed" else evidence))
    return entries + [judge_score(row, evidence, margin) for row in scores]
