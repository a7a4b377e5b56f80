"""The kernels of one task, backbone and seed: every method's against full fine-tuning's, and the controls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from datasets import concatenate_datasets
from torch import nn

from baselines import Partition, apply_method, count, partition
from propulsion.harness import metrics, record
from propulsion.harness.assembly import build_model, rows_of
from propulsion.harness.backbones import build_empty
from propulsion.harness.encode import encode, read_questions
from propulsion.harness.errors import UserError
from propulsion.harness.keeping import kept_names
from propulsion.harness.kept import LAST, weights_path
from propulsion.harness.ntk import measures, regression
from propulsion.harness.ntk.jacobians import ROOM, Kernels, Row, kernels, logits, per_output
from propulsion.harness.settings import Settings, TaskSpec
from propulsion.harness.sources import open_source
from propulsion.harness.weights import load_trained

FULL = "full"  # the subject that all others are compared with
ADAPTER, HEAD, SUBSET = "adapter", "head", "subset"
SHARES = 64  # eigenvalues kept
PICTURE = 48  # rows of a heatmap
Record = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of the kernels: the first `train` to learn from, the rest to score."""

    inputs: list[Row]
    labels: np.ndarray
    train: int
    questions: metrics.Questions | None = None  # what belongs together among those to score


@dataclass(frozen=True)
class Subject:
    """One method's kernels at its start, `(rows * outputs, rows * outputs)`."""

    adapter: torch.Tensor
    head: torch.Tensor  # zero where the head is not trained
    counts: dict[str, int]

    @property
    def whole(self) -> torch.Tensor:
        """Of all that the method trains: kernels of separate parameters add up."""
        return self.adapter + self.head


def measure(cells: Mapping[str, Settings], trained: Mapping[str, Record], room: int = ROOM) -> Record:
    """The record of one task, backbone and seed.

    Args:
        cells: label -> settings, `full` among them; all of one task, data and seed.
        trained: label -> record of the cell's training with its weights kept, where there is one.
        room: bytes for a block of a Jacobian.

    Raises:
        UserError: `full` is missing, or the data cannot be had.
    """
    check_full(cells)
    first = cells[FULL]
    rows = read_rows(first)
    model, parts, weights = _model(first, rows)
    start = logits(model, rows.inputs)
    sizes = {label: _adapter_size(settings) for label, settings in cells.items() if label != FULL}
    names = {ADAPTER: parts.adapter, HEAD: parts.head}
    found = kernels(model, names, rows.inputs, _subsets(model, parts, sorted(set(sizes.values())), first.seed), room)
    full = Subject(found.grams[ADAPTER], found.grams[HEAD], asdict(count(model, parts)))
    del model
    subjects: dict[str, Record] = {}
    order = np.argsort(rows.labels[: min(PICTURE, len(rows.labels))], kind="stable")
    for label, settings in cells.items():
        own = full if label == FULL else _subject(settings, rows, full, room)
        subjects[label] = {
            "method": settings.method.name,
            "degree": settings.method.degree,
            "counts": own.counts,
            **_compared(own, full, found.outputs),
            "regression": _regression(own.whole, found.outputs, start, rows, first.task),
            "picture": _picture(own.whole, found.outputs, order),
        }
        if (size := sizes.get(label)) and label != FULL:
            subjects[label]["controls"] = _controls(found, full, own, size, first.seed)
        if label in trained:
            subjects[label]["trained"] = _after(settings, trained[label], rows, own, subjects[label], full, room)
    return _record(first, rows, weights, subjects, found.outputs)


def check_full(labels: Collection[str]) -> None:
    """Refuse methods without the one that all are compared with.

    Raises:
        UserError: `full` is not among them.
    """
    if FULL not in labels:
        raise UserError("kernels are compared with full fine-tuning's: leave `full` among the methods")


def read_rows(settings: Settings) -> Rows:
    """The cell's own training and evaluation rows, one by one, without padding."""
    data = rows_of(open_source(settings.task, settings.data), settings)
    first_part = next(iter(data.parts.values()))
    tokenizer, *_ = build_model(settings)
    length = min(settings.training.max_length, settings.backbone.max_length)
    both = concatenate_datasets([encode(part, tokenizer, settings.task, length) for part in (data.train, first_part)])
    inputs = [
        {name: torch.tensor([row[name]]) for name in both.column_names if name not in ("labels", "length")}
        for row in both
    ]
    labels = np.asarray(both["labels"], dtype=np.float64)
    return Rows(inputs, labels, len(data.train), read_questions([first_part]))


def _model(settings: Settings, rows: Rows) -> tuple[nn.Module, Partition, Record]:
    """The tuned model as its training would start, in evaluation mode."""
    centred = settings.training.center_regression and settings.task.kind == "regression"
    mean = fmean(rows.labels[: rows.train]) if centred else None
    _, model, parts, weights = build_model(settings, mean)
    return model.eval(), parts, asdict(weights)


def _adapter_size(settings: Settings) -> int:
    spec = settings.method
    model = apply_method(build_empty(settings.backbone, settings.task), spec, settings.backbone)
    return count(model, partition(model, settings.backbone.head, spec.head != "frozen")).adapter


def _subsets(
    model: nn.Module, parts: Partition, sizes: Sequence[int], seed: int
) -> dict[str, tuple[str, torch.Tensor]]:
    """Random entries of the backbone's own parameters, as many as a method trains; smaller sets lie in larger ones."""
    parameters = dict(model.named_parameters())
    total = sum(parameters[name].numel() for name in parts.adapter)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return {f"{SUBSET} {size}": (ADAPTER, order[:size].sort().values) for size in sizes if 0 < size <= total}


def _subject(settings: Settings, rows: Rows, full: Subject, room: int) -> Subject:
    model, parts, _ = _model(settings, rows)
    counts = asdict(count(model, parts))
    if not parts.adapter:
        return Subject(torch.zeros_like(full.head), full.head, counts)
    found = kernels(model, {ADAPTER: parts.adapter}, rows.inputs, room=room)
    head = full.head if parts.head else torch.zeros_like(full.head)  # of the same head, at the same start
    return Subject(found.grams[ADAPTER], head, counts)


def _compared(own: Subject, full: Subject, outputs: int) -> Record:
    """The adapter's kernel against the backbone's, and all that is trained against all."""
    found: Record = {"whole": closeness(own.whole, full.whole, outputs)}
    if bool(own.adapter.any()):
        found["adapter"] = closeness(own.adapter, full.adapter, outputs)
    return found


def closeness(ours: torch.Tensor, theirs: torch.Tensor, outputs: int) -> Record:
    """Every measure of two Gram matrices: of the sum of the outputs' kernels, and of each output's own."""
    mine, other = (per_output(gram, outputs) for gram in (ours, theirs))
    own, whole = torch.stack(mine).sum(0), torch.stack(other).sum(0)
    shares = measures.spectrum(own)
    return {
        "alignment": measures.alignment(own, whole),
        "cosine": measures.cosine(own, whole),
        "error": measures.relative_error(own, whole),
        "scale": measures.best_scale(own, whole),
        "trace": float(own.trace()),
        "effective_rank": measures.effective_rank(shares),
        "spectrum": [float(f"{share:.4g}") for share in shares[:SHARES]],
        "outputs": [
            {"alignment": measures.alignment(a, b), "error": measures.relative_error(a, b)}
            for a, b in zip(mine, other, strict=True)
        ],
    }


def _controls(found: Kernels, full: Subject, own: Subject, size: int, seed: int) -> Record:
    """Kernels of as many random directions and single weights of the backbone, with the method's own head."""
    grams = {"directions": measures.random_directions(full.adapter, size, seed)}
    if f"{SUBSET} {size}" in found.grams:
        grams["subset"] = found.grams[f"{SUBSET} {size}"]
    controls = {}
    for name, gram in grams.items():
        gram = gram * (own.adapter.trace() / gram.trace())  # beside the head it weighs what the method's does
        sides = {
            "adapter": closeness(gram, full.adapter, found.outputs),
            "whole": closeness(gram + own.head, full.whole, found.outputs),
        }
        controls[name] = {side: {k: v for k, v in values.items() if k != "outputs"} for side, values in sides.items()}
    return controls


def _targets(rows: Rows, task: TaskSpec) -> torch.Tensor:
    """What kernel regression learns, `(train, outputs)`: 1 and -1 by class, or the label itself."""
    labels = torch.tensor(rows.labels[: rows.train])
    if task.kind == "regression":
        return labels[:, None]
    return 2.0 * torch.nn.functional.one_hot(labels.long(), len(task.labels)).double() - 1.0


def _regression(gram: torch.Tensor, outputs: int, start: torch.Tensor, rows: Rows, task: TaskSpec) -> Record:
    predicted, ridge = regression.predict(gram, outputs, start, _targets(rows, task))
    return {"ridge": ridge, "scores": _scores(predicted, rows, task), "predictions": predicted.tolist()}


def _scores(predicted: torch.Tensor, rows: Rows, task: TaskSpec) -> dict[str, float]:
    values, labels = predicted.numpy(), rows.labels[rows.train :]
    if task.kind == "regression":
        return metrics.compute(task.metrics, values.reshape(-1), labels)
    questions = rows.questions
    if questions is not None:
        questions = replace(questions, margins=values[:, 1] - values[:, 0])
    return metrics.compute(task.metrics, values.argmax(axis=-1), labels.astype(int), questions)


def _after(
    settings: Settings, entry: Record, rows: Rows, own: Subject, facts: Record, full: Subject, room: int
) -> Record:
    """What training on the same rows came to, beside what the kernel at the start said, and the kernel at its end."""
    model, parts, _ = _model(settings, rows)
    load_trained(model, weights_path(settings.results_dir, entry["key"], LAST), kept_names(settings, model, parts))
    predicted = logits(model, rows.inputs)[rows.train :]
    expected = torch.tensor(facts["regression"]["predictions"], dtype=torch.float64)
    found: Record = {
        "key": entry["key"],
        "steps": entry["cost"]["steps"],
        "scores": _scores(predicted, rows, settings.task),
        "agreement": agreement(predicted, expected),
    }
    groups = {name: names for name, names in ((ADAPTER, parts.adapter), (HEAD, parts.head)) if names}
    if own is not full:
        after = sum(kernels(model, groups, rows.inputs, room=room).grams.values(), torch.zeros_like(full.whole))
        outputs = predicted.shape[1]
        before = {"start": own.whole, "full": full.whole}
        found["kernel"] = {
            f"{measure_name}_to_{name}": value
            for name, gram in before.items()
            for measure_name, value in closeness(after, gram, outputs).items()
            if measure_name in ("alignment", "error")
        }
    return found


def agreement(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The share of rows with the same class; of one output, Pearson's correlation (0 where one is constant)."""
    if ours.shape[1] > 1:
        return float((ours.argmax(1) == theirs.argmax(1)).double().mean())
    both = torch.stack([ours.reshape(-1), theirs.reshape(-1)])
    return float(torch.nan_to_num(torch.corrcoef(both)[0, 1]))


def _picture(gram: torch.Tensor, outputs: int, order: np.ndarray) -> list[list[float]]:
    """The summed kernel of some rows, sorted by label, its mean diagonal 1: for a heatmap."""
    summed = torch.stack(per_output(gram, outputs)).sum(0)
    places = torch.tensor(order)
    shown = summed[places][:, places] / summed.diagonal().mean()
    return [[float(f"{value:.3g}") for value in line] for line in shown.tolist()]


def run_of(settings: Settings) -> Record:
    """The `run` part of a record as far as it is known before anything is measured."""
    return {
        "task": settings.task.name,
        "task_version": settings.task.version,
        "backbone": settings.backbone.name,
        "seed": settings.seed,
        "profile": settings.profile,
        "config": record.without_paths(settings.config),
        "data": {
            "source": settings.data.source,
            "fingerprint": open_source(settings.task, settings.data).fingerprint(),
        },
    }


def _record(settings: Settings, rows: Rows, weights: Record, subjects: Record, outputs: int) -> Record:
    return {
        "schema": 1,
        "run": {**run_of(settings), "created_at": record.now(), "weights": weights},
        "rows": {"train": rows.train, "eval": len(rows.labels) - rows.train, "outputs": outputs},
        "primary": settings.task.primary,
        "subjects": subjects,
        "env": record.environment("float32"),
    }
