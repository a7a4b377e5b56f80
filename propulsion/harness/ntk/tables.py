"""Kernel records as tables: for each task, every method and its controls, mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any

from propulsion.harness import sheets
from propulsion.harness.metrics import short_name
from propulsion.harness.tables import escape
from propulsion.harness.tables.model import NONE, TASK_NAMES

Record = dict[str, Any]
TITLE = "Tangent kernels against full fine-tuning's"
EXPLAINED = (
    "The kernel of a method is that of its trained parameters at the start, summed over the logits, on the rows below "
    "(dropout off, no padding). Backbone: what is trained in or on the backbone alone, against all of the backbone's "
    "own weights. With head: all that is trained, against all that full fine-tuning trains; the head is in both.",
    "alignment: centred kernel alignment, 1 for kernels that are equal up to scale. error: relative Frobenius error "
    "after the best scale, 0 for equal. Controls, of the method's own number of parameters: as many random directions "
    "in the space of all weights (drawn exactly), and as many single weights drawn at random.",
    "rank: effective rank, the exponential of the spectrum's entropy. regression: kernel regression from the training "
    "rows, ridge chosen on them alone, scored on the others × 100; trained: the method trained on the same rows; "
    "agree: share of rows on which both say the same (one output: Pearson's r); moved: alignment of the kernel after "
    "training with that before. Mean ± standard deviation over seeds.",
)
HEADER = (
    *("method", "adapter", "alignment", "directions", "weights", "error", "directions", "weights"),
    *("with head", "error", "rank", "regression", "trained", "agree", "moved"),
)


def sheet(records: Sequence[Record]) -> sheets.Sheet:
    """The table of one backbone and task; records of its seeds."""
    first = records[0]
    labels = list(dict.fromkeys(label for record in records for label in record["subjects"]))
    primary = first["primary"]
    rows = tuple(
        _row(label, [r["subjects"][label] for r in records if label in r["subjects"]], primary) for label in labels
    )
    name = TASK_NAMES.get(first["run"]["task"], first["run"]["task"])
    header = tuple(f"{h}, {short_name(primary)}" if h == "regression" else h for h in HEADER)
    return sheets.Sheet(f"{name}, {first['run']['backbone']}", header, rows, legend=conditions(records))


def _row(label: str, subjects: Sequence[Record], primary: str) -> tuple[str, ...]:
    def cell(*path: str, points: bool = False, digits: int = 3) -> str:
        return mean_sd([value for s in subjects if (value := at(s, path)) is not None], points, digits)

    return (
        label,
        f"{subjects[0]['counts']['adapter']:,}",
        cell("adapter", "alignment"),
        cell("controls", "directions", "adapter", "alignment"),
        cell("controls", "subset", "adapter", "alignment"),
        cell("adapter", "error"),
        cell("controls", "directions", "adapter", "error"),
        cell("controls", "subset", "adapter", "error"),
        cell("whole", "alignment"),
        cell("whole", "error"),
        cell("whole", "effective_rank", digits=1),
        cell("regression", "scores", primary, points=True),
        cell("trained", "scores", primary, points=True),
        cell("trained", "agreement", digits=2),
        cell("trained", "kernel", "alignment_to_start"),
    )


def at(entry: Any, path: Sequence[str]) -> float | None:
    """The number at a path; None where there is none."""
    for name in path:
        entry = entry.get(name) if isinstance(entry, dict) else None
    return float(entry) if isinstance(entry, (int, float)) else None


def mean_sd(values: Sequence[float], points: bool = False, digits: int = 3) -> str:
    """`0.971 ± 0.004`; in points of 100 with one digit."""
    if not values:
        return NONE
    scale, digits = (100, 1) if points else (1, digits)
    text = f"{scale * fmean(values):.{digits}f}"
    return f"{text} ± {scale * stdev(values):.{digits}f}" if len(values) > 1 else text


def conditions(records: Sequence[Record]) -> str:
    """What the kernels of a table are of, in a line. But for seed and machine, all records have it alike."""
    run, rows = records[0]["run"], records[0]["rows"]
    seeds = ", ".join(str(record["run"]["seed"]) for record in records)
    weights = run["weights"] or {}
    words = [
        f"{rows['train']} + {rows['eval']} rows of {run['data']['source']} data ({run['data']['fingerprint']})",
        f"at most {run['config']['training']['max_length']} tokens, seeds {seeds} (start of the head, controls)",
        f"weights {weights.get('id')}{' sha256 ' + weights['sha256'][:16] if weights.get('sha256') else ''}",
        " and ".join(dict.fromkeys(_machine(record["env"]) for record in records)),
        "commit "
        + ", ".join(sorted({str(r["env"]["commit"])[:9] + ("+" if r["env"]["dirty"] else "") for r in records})),
    ]
    return "; ".join(words)


def _machine(env: Record) -> str:
    return f"torch {env['torch']}, transformers {env['transformers']}, peft {env['peft']}, {env['device']}"


def to_markdown(sheets_: Sequence[sheets.Sheet], words: Sequence[str]) -> str:
    """All tables, after what they mean and what they say."""
    lines = [f"# {TITLE}", "", *(f"- {escape.markdown(line)}" for line in (*EXPLAINED, *words))]
    for one in sheets_:
        lines += ["", f"## {escape.markdown(one.title)}", "", escape.markdown(one.legend), "", *sheets.markdown(one)]
    return "\n".join(lines) + "\n"


def to_latex(sheets_: Sequence[sheets.Sheet], words: Sequence[str]) -> str:
    """A `table*` for each task."""
    lines = ["% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."]
    lines += [f"% {escape.latex(line)}" for line in (*EXPLAINED, *words)]
    for one in sheets_:
        lines += ["", *sheets.latex(one, "ntk-" + "".join(c for c in one.title.lower() if c.isalnum()))]
    return "\n".join(lines) + "\n"


def csv_rows(records: Sequence[Record]) -> list[dict[str, object]]:
    """Every measured number unrounded: one row for each record, subject and measure."""
    return [
        {"backbone": r["run"]["backbone"], "task": r["run"]["task"], "seed": r["run"]["seed"], "method": label,
         "adapter": subject["counts"]["adapter"], "measure": measure, "value": value}
        for r in records
        for label, subject in r["subjects"].items()
        for measure, value in _flat(subject, "")
    ]  # fmt: skip


def _flat(entry: Record, prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in entry.items():
        if isinstance(value, dict) and name != "counts":
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
