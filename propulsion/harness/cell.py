"""One cell of the benchmark, in six steps: config, task, backbone, method, training, record."""

from __future__ import annotations

import gc
import itertools
import logging
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback

from baselines import Counts, NeedsWeightsError, apply_method, count, in_head
from baselines.hooks import start_from_data, starts_from_data
from propulsion.harness import (
    devices,
    finished,
    leases,
    memory,
    packing,
    quantization,
    ranks,
    record,
    sharding,
    speed,
)
from propulsion.harness.assembly import build_model, row_length, rows_of, seed_batches
from propulsion.harness.backbones import Weights, attention_of, build_empty, find_weights
from propulsion.harness.digests import start_digest
from propulsion.harness.encode import encode, evaluation_rows, span_tokens
from propulsion.harness.errors import CellStopped, RunningElsewhere, UserError
from propulsion.harness.evaluation import summarize
from propulsion.harness.keeping import best_weights, keep_weights
from propulsion.harness.leases import Lease
from propulsion.harness.neighbours import Neighbours
from propulsion.harness.settings import Settings, TrainingSpec, total_steps
from propulsion.harness.sources import Source, TaskData, open_source
from propulsion.harness.stops import Stop
from propulsion.harness.tracking import Tracker
from propulsion.harness.training import Outcome, train
from propulsion.harness.watch import Holder
from propulsion.harness.weights import load_start

log = logging.getLogger(__name__)

COST_FACTS = (
    *("padding_fraction", "peak_memory_bytes", "adapter_bytes", "fast_path", "cached_features"),
    *("micro_batch", "oom_retries", "packed_with", "sharded_parameters"),
)


def run_cell(settings: Settings) -> tuple[dict[str, Any], bool]:
    """Run one cell, or find it done. Returns its record and whether it ran now.

    A crash becomes a record with status `failed`; a finished cell is skipped before any model is loaded. The cell is
    leased while it runs, so that no other process runs it as well.

    Raises:
        UserError: bad input; nothing was written. Or the record could not be written.
        RunningElsewhere: another process has the cell, or took it over while this one slept.
        KeyboardInterrupt, Preempted: asked to stop; a checkpoint was saved.
    """
    sharding.check(settings)  # before the processes of a run meet: all of them refuse alike
    devices.check_launch(devices.resolve_precision(settings.training.precision, settings.backbone.dtype))
    source = open_source(settings.task, settings.data)
    fingerprint = source.fingerprint()
    key = record.cell_key(settings.config, fingerprint)
    if (done := ranks.agreed(lambda: finished.finished(settings, key))) is not None:
        if ranks.rank() == 0:
            finished.tidy(settings, key)
        return done, False
    ranks.agreed(lambda: record.check_writable(settings.results_dir))
    _refuse_early(settings)
    lease = Lease(Path(settings.results_dir, leases.FOLDER), key, {"cell": settings.cell, "fingerprint": fingerprint})
    ranks.agreed(lambda: _take(lease, settings))
    try:
        done = ranks.agreed(lambda: finished.finished(settings, key, holding=True))
        if done is not None:  # by another process, between the two looks
            return done, False
        return _run_and_record(settings, key, source, fingerprint, lease), True
    finally:
        if ranks.rank() == 0:
            lease.release()


def _take(lease: Lease, settings: Settings) -> None:
    try:
        lease.acquire()
    except OSError as error:
        raise UserError(
            f"nothing can be written to {settings.results_dir} ({error.strerror}); make room, or set results_dir"
        ) from error


def _run_and_record(settings: Settings, key: str, source: Source, fingerprint: str, lease: Lease) -> dict[str, Any]:
    """Run the cell and write what it came to."""
    data = rows_of(source, settings)
    if source.fingerprint() != fingerprint:
        raise UserError(f"{settings.cell}: the data changed while it was read; type the same command again")
    entry = _blank(settings, key, source, data)
    checkpoints = Path(settings.results_dir, "checkpoints", key)
    tracker, late = Tracker(), None
    with Neighbours() as neighbours:
        try:
            late = _run_smaller(
                settings, data, entry, checkpoints, [tracker, neighbours, Holder(lease if ranks.rank() == 0 else None)]
            )
        except (UserError, RunningElsewhere, KeyboardInterrupt, SystemExit):
            tracker.abandon()
            raise
        except Exception as error:
            entry |= {"status": record.FAILED, "error": record.error_entry(error)}
        finally:
            _free_memory()
    entry["env"]["parallel_cells"] = max(entry["env"]["parallel_cells"], neighbours.most)
    entry = record.sealed(record.finite(entry))
    if ranks.rank() == 0:
        lease.check()
        _write(settings, record.record_path(settings, key), entry)
        if entry["status"] != record.FAILED and not settings.training.keep_checkpoints:
            shutil.rmtree(checkpoints, ignore_errors=True)
    tracker.finish(entry)
    if ranks.size() > 1 and entry["status"] == record.FAILED:
        known, reason = entry["error"], " ".join(entry["error"]["message"].split())[:200]
        place = f"process {ranks.rank()} of {ranks.size()}"  # each for itself: the first has no word of another's
        print(f"{settings.cell}: {place} failed ({known['type']}: {reason}; {known['where']})", file=sys.stderr)
        raise CellStopped(1)  # the other processes may wait in a step that this one never reaches
    if late is not None:
        late.leave(entry)
    return entry


def _write(settings: Settings, path: Path, entry: dict[str, Any]) -> None:
    """Write the record, unless it tells less than the one that is there: of a cell run again for its weights.

    Raises:
        UserError: the disk does not take it. The checkpoint stays, so that little is lost.
    """
    worth = (record.FAILED, record.DIVERGED, record.SUCCESS)
    known = record.read_record(path)
    if known is not None and worth.index(known["status"]) > worth.index(entry["status"]):
        said = f"{settings.cell}: {entry['status']} when it was run again; the record of its {known['status']} stays"
        print(said, file=sys.stderr)
        return
    try:
        record.write_record(path, entry)
    except OSError as error:
        raise UserError(
            f"the record {path} cannot be written ({error.strerror}); make room and type the same command again: "
            "the cell goes on from its last checkpoint"
        ) from error


def _refuse_early(settings: Settings) -> None:
    """What cannot work is refused on an empty model, before weights are read or anything is written."""
    find_weights(settings.backbone)
    quantization.check_installed(settings.backbone)
    try:
        tuned = apply_method(build_empty(settings.backbone, settings.task), settings.method, settings.backbone)
        row_length(settings, tuned)
    except UserError as error:
        if not isinstance(error, NeedsWeightsError):  # refused when the weights are there
            raise
    except Exception:  # the run itself ends in it as well, with a record that says so
        return


def _blank(settings: Settings, key: str, source: Source, data: TaskData) -> dict[str, Any]:
    """The record with all that is known before training."""
    empty_cost = ("train_seconds", "eval_seconds", "steps", "samples_per_second", "tokens_per_second")
    return {
        "schema": record.SCHEMA,
        "key": key,
        "status": record.SUCCESS,
        "error": None,
        "run": {
            "harness": record.harness_version(settings.config),
            "task": settings.task.name,
            "task_version": settings.task.version,
            "suite": settings.task.suite,
            "backbone": settings.backbone.name,
            "method": settings.method.name,
            "seed": settings.seed,
            "profile": settings.profile,
            "config": record.without_paths(settings.config),
            "config_hash": record.cell_key(settings.config, ""),
            "created_at": record.now(),
            "data": {
                "source": data.source,
                "fingerprint": source.fingerprint(),
                "train_rows": len(data.train),
                "eval_rows": sum(len(rows) for rows in data.parts.values()),
                "official": data.official,
            },
            "weights": None,
            "start": None,  # digest of the run's starting point, where it is not the backbone alone
            "scales": None,  # smallest and largest z^k at an evaluation, and the first step at which one was extreme
            "kept": None,  # rule -> step, sha256 and bytes of the trained tensors in weights/<key>/<rule>.safetensors
        },
        "params": {"adapter": None, "head": None, "trainable": None, "total": None},
        "eval": {"primary": settings.task.primary, **summarize([], settings.task.primary), "history": []},
        "cost": dict.fromkeys((*empty_cost, *COST_FACTS)),
        "env": record.environment(None),
    }


def _run_smaller(
    settings: Settings, data: TaskData, entry: dict[str, Any], checkpoints: Path, callbacks: list[TrainerCallback]
) -> Stop | None:
    """Run the cell; where its training does not fit into memory, again with half the micro-batch."""
    spec: TrainingSpec | None = settings.training
    for retries in itertools.count():
        assert spec is not None
        entry["cost"] |= {"micro_batch": spec.batch_size // ranks.size(), "oom_retries": retries}
        try:
            return _run(replace(settings, training=spec), data, entry, checkpoints, callbacks)
        except memory.TooLarge as error:
            spec = memory.smaller(spec)
            if spec is None:
                raise
            print(
                f"{settings.cell}: {error}; again with micro-batches of {spec.batch_size}, "
                f"evaluation with {spec.eval_batch_size}",
                file=sys.stderr,
            )
        _free_memory()
    raise AssertionError("count() has no end")


def _run(
    settings: Settings, data: TaskData, entry: dict[str, Any], checkpoints: Path, callbacks: list[TrainerCallback]
) -> Stop | None:
    """Backbone, method, training; fills the record as facts become known. Returns a stop to heed after it."""
    peak = devices.PeakMemory()
    spec = settings.training
    centred = spec.center_regression and settings.task.kind == "regression"
    tokenizer, tuned, parts, weights = build_model(
        settings, fmean(data.train["label"]) if centred else None, total_steps(spec, len(data.train))
    )
    _fill_model(entry, weights, count(tuned, parts))
    entry["cost"]["adapter_bytes"] = sum(p.numel() * p.element_size() for p in tuned.parameters() if p.requires_grad)
    if spec.start_from:
        load_start(
            tuned, [name for name in parts.adapter if not in_head(name, settings.backbone.head)], spec.start_from
        )
        entry["run"]["start"] = {"sha256": start_digest(spec.start_from)}
    entry["env"]["attention"] = attention_of(tuned)
    chosen = speed.set_up(tuned, spec)
    if spec.gradient_checkpointing:
        memory.checkpoint_activations(tuned)
    if sharding.wanted(spec):
        entry["cost"]["sharded_parameters"] = sharding.shard(tuned, settings.backbone.head)
    packing.join(tuned)
    length = row_length(settings, tuned)

    def encoded(rows: Any) -> Any:
        return encode(rows, tokenizer, settings.task, length)

    for tracker in callbacks:
        if isinstance(tracker, Tracker):
            tracker.start(settings, entry["key"])
    best = best_weights(settings, tuned, parts, checkpoints)
    evaluation = evaluation_rows({suffix: encoded(rows) for suffix, rows in data.parts.items()}, data.parts)
    if settings.task.spans:
        entry["run"]["data"]["lost_spans"] = _lost_spans(data, tokenizer, settings, length)
    watched, rows = [*callbacks, *best], encoded(data.train)
    if starts_from_data(tuned) and not spec.start_from:
        start_from_data(tuned, seed_batches(rows, tokenizer, settings))
    with devices.tf32(spec.tf32):
        outcome = memory.guarded(
            lambda: train(tuned, parts, tokenizer, rows, evaluation, settings, checkpoints, callbacks=watched)
        )
    entry["run"]["scales"] = outcome.scales
    _fill_outcome(entry, outcome, settings)
    entry["cost"] |= {"fast_path": speed.path_taken(tuned, chosen), "cached_features": chosen.features}
    entry["cost"] |= {"peak_memory_bytes": peak.read(), "packed_with": packing.packed_with(tuned)}
    for holder in callbacks:
        if isinstance(holder, Holder):
            holder.check()  # before the weights of whoever has the cell now are written over
    keep_weights(settings, tuned, parts, entry, *best)
    return outcome.late


def _lost_spans(data: TaskData, tokenizer: Any, settings: Settings, length: int) -> dict[str, int]:
    """How many marked spans truncation took from the training and the scored rows; said where there are any."""
    lost = {
        name: sum(int((span_tokens(rows, tokenizer, settings.task, length) < 0).any(axis=-1).sum()) for rows in splits)
        for name, splits in (("train", [data.train]), ("eval", data.parts.values()))
    }
    if any(lost.values()):
        log.warning("%s: truncation took %d train and %d scored spans", settings.cell, lost["train"], lost["eval"])
    return lost


def _fill_model(entry: dict[str, Any], weights: Weights, counts: Counts) -> None:
    entry["run"]["weights"] = asdict(weights)
    entry["params"] = asdict(counts)


def _fill_outcome(entry: dict[str, Any], outcome: Outcome, settings: Settings) -> None:
    meter, spec = outcome.meter, settings.training
    if outcome.diverged:
        entry |= {
            "status": record.DIVERGED,
            "error": {"type": "Diverged", "message": outcome.diverged, "where": "", "losses": outcome.losses},
        }
    scores = summarize(outcome.history, settings.task.primary, spec.best_by)
    entry["eval"] |= {**scores, "history": [evaluation.as_record() for evaluation in outcome.history]}
    samples = outcome.steps * spec.batch_size * spec.accumulation
    tokens = meter.tokens * entry["env"]["device_count"]  # counted on this process; the others have the same share
    entry["cost"] |= {
        "train_seconds": meter.train_seconds,
        "eval_seconds": meter.eval_seconds,
        "steps": outcome.steps,
        "samples_per_second": _rate(samples, meter.train_seconds),
        "tokens_per_second": _rate(tokens, meter.train_seconds),
        "padding_fraction": 1 - meter.tokens / meter.padded_tokens if meter.padded_tokens else None,
    }
    entry["env"]["precision"] = outcome.precision


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
