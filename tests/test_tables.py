"""Tables from records: the numbers by hand, the same in every format, and nothing mixed, hidden or obeyed."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from propulsion.harness import record as records_on_disk
from propulsion.harness import sheets
from propulsion.harness.errors import UserError
from propulsion.harness.figures.data import costs
from propulsion.harness.report import write_report
from propulsion.harness.tables import (
    RULES,
    build,
    load_records,
    print_table,
    read,
    reading,
    tables_of,
    to_csv,
    to_latex,
    to_markdown,
    to_text,
    write_tables,
)
from propulsion.harness.tables.escape import LONGEST
from scripts.tables import main

ROOT = Path(__file__).resolve().parents[1]
METRIC = {"cola": "matthews_correlation", "stsb": "spearman"}
LABELS = {"mnli": ["entailment", "neutral", "contradiction"], "stsb": []}
PARTS = {"mnli": {"": "dev", "_mm": "dev_mm"}}
HEADS = {"mnli": 1155, "stsb": 385}


def make(
    task: str = "rte",
    method: str = "lora",
    seed: int = 0,
    last: float | None = 0.5,
    best: float | None = None,
    *,
    status: str = "success",
    backbone: str = "minilm",
    **config: Any,
) -> dict[str, Any]:
    """A record as `propulsion.harness.cell` writes it. `config`: values of the training group."""
    primary = METRIC.get(task, "accuracy")
    names = [f"{primary}{suffix}" for suffix in PARTS.get(task, {"": "dev"})]
    scores = None if last is None else dict.fromkeys(names, last)
    better = scores if best is None else dict.fromkeys(names, best)
    ok = status == "success"
    head = HEADS.get(task, 770)
    training = {
        "epochs": 3,
        "max_steps": 100,
        "batch_size": 16,
        "accumulation": 1,
        "learning_rate": 0.001,
        "head_learning_rate": None,
        "max_length": 96,
        "schedule": "linear",
        "warmup_ratio": 0.06,
        "warmup_steps": None,
        "weight_decay": 0.0,
        "best_by": "primary",
        "checkpoint_seconds": 120,
        "keep_checkpoints": False,
    }
    record = {
        "schema": 1,
        "status": status,
        "error": None if ok else {"type": "RuntimeError", "message": "boom", "where": "x.py:1 in y"},
        "run": {
            "task": task,
            "task_version": 1,
            "suite": "glue",
            "backbone": backbone,
            "method": method,
            "seed": seed,
            "profile": "mini",
            "config": {
                "seed": seed,
                "results_dir": "results/mini",
                "profile": "mini",
                "task": {
                    "name": task,
                    "version": 1,
                    "labels": LABELS.get(task, ["no", "yes"]),
                    "metrics": [primary],
                    "primary": primary,
                    "parts": PARTS.get(task, {"": "dev"}),
                },
                "backbone": {
                    "name": backbone,
                    "id": "some/id",
                    "weights": "pretrained",
                    "note": "Tuned on pairs.",
                },
                "method": {"name": method, "head": "trained", "degree": None},
                "data": {"source": "generated", "seed": 0, "holdout_rows": 0, "dir": None},
                "training": training | config,
                "tracking": {"name": "off"},
            },
            "config_hash": "00",
            "created_at": "2026-01-01T00:00:00+00:00",
            "data": {
                "source": "generated",
                "fingerprint": f"f-{task}",
                "train_rows": 1600,
                "eval_rows": 400,
                "official": False,
            },
            "weights": {"id": "some/id", "revision": "abc", "sha256": "f" * 64} if ok else None,
            "start": None,
        },
        "params": {
            "adapter": 36864 if ok else None,
            "head": head if ok else None,
            "trainable": 36864 + head if ok else None,
            "total": 22_700_000 if ok else None,
        },
        "eval": {
            "primary": primary,
            "best": better if ok else None,
            "last": scores if ok else None,
            "heldout": None,
            "best_step": 50 if ok else None,
            "history": [],
        },
        "cost": {
            "train_seconds": 20.0 if ok else None,
            "eval_seconds": 1.0,
            "steps": 100 if ok else None,
            "samples_per_second": 80.0,
            "tokens_per_second": 2000.0,
            "padding_fraction": 0.1,
            "peak_memory_bytes": 1_234_000_000 if ok else None,
            "adapter_bytes": 150_000,
        },
        "env": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "peft": "0.21.2",
            "datasets": "5.2.0",
            "commit": "0123456789abcdef",
            "dirty": False,
            "device": "CPU of a kind",
            "device_count": 1,
            "precision": "fp32" if ok else None,
        },
    }
    name = repr((task, method, seed, backbone, sorted(config.items())))
    return record | {"key": hashlib.sha256(name.encode()).hexdigest()[:16]}


def save(results_dir: Path, records: list[dict[str, Any]]) -> Path:
    """Write records where the runner would."""
    for record in records:
        run = record["run"]
        path = results_dir / "runs" / run["task"] / run["backbone"] / run["method"] / f"{record['key']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record), encoding="utf-8")
    return results_dir


def cells(table: Any, method: str) -> dict[str, str]:
    """Header -> text of a method's row in the Markdown of one table."""
    lines = [line for line in to_markdown([table]).splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    row = next(row for row in split if row[0] == method)
    return dict(zip(split[0], row, strict=True))


def rows(tables: list[Any]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(tables))))


def test_numbers_by_hand() -> None:
    records = [
        make("rte", "lora", seed, last, best)
        for seed, last, best in [(0, 0.60, 0.62), (1, 0.70, 0.70), (2, 0.80, 0.84)]
    ] + [make("cola", "lora", seed, last) for seed, last in [(0, 0.10), (1, 0.20), (2, -0.06)]]
    last = build(records, "glue", "last")
    # rte: mean .7, sd .1. cola: mean .08, sd sqrt((.02² + .12² + .14²) / 2) = .13115.
    # average by seed: .35, .45, .37 -> .39, sd sqrt((.04² + .06² + .02²) / 2) = .05292.
    row = cells(last, "lora")
    assert row["RTE Acc"] == "70.0 ± 10.0"
    assert row["CoLA MCC"] == "8.0 ± 13.1"
    assert row["average of 2"] == "39.0 ± 5.3"
    assert row["adapter"] == "36,864"
    assert row["head"] == "770"
    assert row["trainable"] == "37,634"
    assert row["train s"] == "20.0"
    assert row["ms/step"] == "200.0"
    assert row["memory GB"] == "1.23"
    assert cells(build(records, "glue", "best"), "lora")["RTE Acc"] == "72.0 ± 11.1"
    assert cells(build(records, "glue", "best-last"), "lora")["RTE Acc"] == "+2.0 ± 2.0"
    assert cells(build(records, "glue", "heldout"), "lora")["RTE Acc"] == "no score"
    assert "3 runs in every cell" in to_markdown([last])


def test_one_seed_has_no_spread_and_says_so() -> None:
    table = build([make(last=0.829)], "glue")
    assert cells(table, "lora")["RTE Acc"] == "82.9"
    assert "one run per cell, so no spread" in to_markdown([table])
    assert "±" not in to_markdown([table])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_mean_sd_min_max_are_those_of_the_scores(scores: list[float]) -> None:
    table = build([make(seed=seed, last=score) for seed, score in enumerate(scores)], "glue")
    (row,) = rows([table])
    assert float(row["mean"]) == pytest.approx(statistics.fmean(scores))
    assert (float(row["min"]), float(row["max"])) == (min(scores), max(scores))
    assert row["n"] == str(len(scores))
    if len(scores) > 1:
        assert float(row["sd"]) == pytest.approx(statistics.stdev(scores))
    else:
        assert row["sd"] == ""
    assert "-0.0" not in cells(table, "lora")["RTE Acc"].split()


def test_rows_and_columns_are_in_order() -> None:
    methods = ["zeta", "propulsion_attn", "ia3", "propulsion", "adalora", "head", "lora", "full", "bitfit"]
    records = [make(task, method) for task in ("wnli", "rte", "cola", "mine") for method in methods]
    table = build(records, "glue")
    assert [row.method for row in table.rows] == [
        "full", "head", "bitfit", "lora", "ia3", "propulsion", "propulsion_attn", "adalora", "zeta",
    ]  # fmt: skip
    assert [column.task for column in table.columns] == ["cola", "rte", "wnli", "mine"]
    assert "not run at all: SST-2, MRPC, STS-B, QQP, MNLI, QNLI" in to_markdown([table])


def test_what_was_not_run_or_failed_is_shown_and_counted() -> None:
    records = [make("rte", "lora", seed, 0.5 + seed / 10) for seed in range(2)]
    records += [
        make("rte", "lora", 2, None, status="failed"),
        make("rte", "full", 0, None, status="failed"),
        make("rte", "full", 1, None, status="diverged"),
        make("cola", "lora", 0, 0.3),
        make("rte", "ia3", 0, 0.6),
    ]
    table = build(records, "glue")
    assert cells(table, "lora")["RTE Acc"] == "55.0 ± 7.1, failed 1/3"
    assert cells(table, "full")["RTE Acc"] == "failed 1/2, diverged 1/2"
    assert cells(table, "full")["CoLA MCC"] == "not run"
    assert cells(table, "ia3")["RTE Acc"] == "60.0 (n=1)"
    assert cells(table, "full")["adapter"] == "—"
    assert {cells(table, method)["average of 2"] for method in ("lora", "full", "ia3")} == {"—"}
    assert cells(table, "ia3")["train s"] == "20.0†"
    by_cell = {(row["method"], row["task"]): row for row in rows([table])}
    assert by_cell["full", "rte"]["status"] == "failed 1/2, diverged 1/2"
    assert by_cell["full", "cola"]["status"] == "not run"
    assert by_cell["full", "cola"]["mean"] == ""
    assert [by_cell["lora", "rte"][name] for name in ("n", "runs", "failed")] == ["2", "3", "1"]
    assert dict(table.conditions)["Runs"] == "4 succeeded, 2 failed, 1 diverged"


def test_a_run_without_this_score_is_counted_and_shown() -> None:
    records = [make(seed=0, last=0.5), make(seed=1, last=None), make("cola", seed=0, last=0.2)]
    assert cells(build(records, "glue"), "lora")["RTE Acc"] == "50.0 (n=1/2)"
    assert rows([build(records, "glue", "heldout")])[0]["mean"] == ""


def test_a_diverged_run_gives_no_score_even_when_it_holds_one() -> None:
    record = make(last=0.9)
    record["status"] = "diverged"
    assert cells(build([record], "glue"), "lora")["RTE Acc"] == "diverged 1/1"


def test_average_needs_every_task_from_the_same_seeds() -> None:
    both = [make(task, "lora", seed, 0.5) for task in ("rte", "cola") for seed in (0, 1)]
    assert cells(build(both, "glue"), "lora")["average of 2"] == "50.0 ± 0.0"
    other = [make("rte", "lora", 0), make("cola", "lora", 1)]
    assert cells(build(other, "glue"), "lora")["average of 2"] == "—"
    diagnostic = [make("rte"), make("cola"), make("ax", last=0.0)]
    assert cells(build(diagnostic, "glue"), "lora")["average of 2"] == "50.0"
    assert "average" not in to_markdown([build([make("rte")], "glue")]).lower()


def test_both_dev_sets_of_mnli_stand_side_by_side_and_count_once() -> None:
    record = make("mnli", last=0.8)
    record["eval"]["last"]["accuracy_mm"] = 0.6
    row = cells(build([record, make("rte", last=0.5)], "glue"), "lora")
    assert (row["MNLI Acc"], row["MNLI-mm Acc"], row["average of 2"]) == ("80.0", "60.0", "65.0")


def test_other_metrics_stand_in_the_csv_and_are_named() -> None:
    record = make("mrpc", last=0.7)
    record["eval"]["last"] |= {"f1": 0.8}
    table = build([record], "glue")
    assert "MRPC F1" not in cells(table, "lora")
    assert "More metrics in the CSV: MRPC F1." in table.notes
    assert {row["score"]: float(row["mean"]) for row in rows([table])} == {"accuracy": 0.7, "f1": 0.8}


def test_parameter_counts_are_those_of_two_labels() -> None:
    records = [make("mnli"), make("rte"), make("stsb")]
    table = build(records, "glue")
    assert cells(table, "lora")["head"] == "770"
    assert any("of the tasks with two labels" in note for note in table.notes)
    assert cells(build([make("mnli"), make("stsb")], "glue"), "lora")["head"] == "385–1,155"
    assert {row["task"]: row["head"] for row in rows([table])} == {
        "mnli": "1155",
        "rte": "770",
        "stsb": "385",
    }


def test_other_settings_are_another_row_and_never_a_seed() -> None:
    records = [make("rte", "lora", seed, 0.5, learning_rate=rate) for seed in (0, 1) for rate in (0.001, 0.003)]
    records.append(make("cola", "lora", 0, 0.2, learning_rate=0.003))
    records.append(make("rte", "lora", 2, 0.5, learning_rate=0.001, checkpoint_seconds=5))
    table = build(records, "glue")
    assert [row.label for row in table.rows] == ["lora (learning_rate=0.001)", "lora (learning_rate=0.003)"]
    assert [len(row.records) for row in table.rows] == [3, 3]
    assert cells(table, "lora (learning_rate=0.001)")["CoLA MCC"] == "not run"
    per_task = [make("rte", learning_rate=0.001), make("cola", learning_rate=0.003)]
    assert [row.label for row in build(per_task, "glue").rows] == ["lora"]
    assert dict(build(per_task, "glue").conditions)["Learning rate"] == "cola: 0.003; rte: 0.001"


def started(task: str = "rte", seed: int = 0, last: float = 0.9, digest: str = "abcdef012345") -> dict[str, Any]:
    record = make(task, "lora", seed, last, start_from="last.safetensors")
    record["run"]["start"] = {"sha256": digest + "f" * 52}
    return record


def test_a_run_started_from_another_is_its_own_row_and_said() -> None:
    fresh = [make("rte", "lora", seed, 0.5) for seed in (0, 1)]
    table = build([*fresh, started(seed=0), started(seed=2), started(seed=3, digest="0" * 12)], "glue")
    assert {row.label: len(row.records) for row in table.rows} == {
        "lora (start=null)": 2,
        "lora (start=abcdef012345)": 2,
        "lora (start=000000000000)": 1,
    }
    assert cells(table, "lora (start=null)")["RTE Acc"].startswith("50.0 ")
    words = dict(table.conditions)["Start"]
    assert "the trained tensors of another run (abcdef012345) (2 of 5 runs)" in words
    assert "the backbone alone (2 of 5 runs)" in words
    assert "Start" not in dict(build(fresh, "glue").conditions)
    found = {(row["variant"], row["start_sha256"]) for row in rows([table])}
    assert ("start=abcdef012345", "abcdef012345" + "f" * 52) in found
    assert ("start=null", "") in found


def test_a_started_run_shares_no_average_with_fresh_ones_of_other_tasks() -> None:
    table = build([started("rte"), make("cola", "lora", 0, 0.2), make("rte", "full"), make("cola", "full")], "glue")
    assert {row.label for row in table.rows} == {"lora (start=null)", "lora (start=abcdef012345)", "full"}
    assert cells(table, "lora (start=abcdef012345)")["average of 2"] == "—"
    (alone,) = build([started("rte")], "glue").rows
    assert alone.variant == "start=abcdef012345"


def test_a_record_from_before_a_setting_is_a_seed_of_those_with_its_default() -> None:
    older, newer = make(seed=0), make(seed=1, dropout=None)
    assert [row.label for row in build([older, newer], "glue").rows] == ["lora"]
    other = make(seed=2, dropout=0.0)
    labels = {row.label for row in build([older, newer, other], "glue").rows}
    assert labels == {"lora (dropout=null)", "lora (dropout=0.0)"}


def test_the_same_cell_twice_is_refused() -> None:
    with pytest.raises(UserError, match="the same cell and seed twice"):
        build([make(), make() | {"key": "other"}], "glue")


def changed(path: str, value: Any, **options: Any) -> dict[str, Any]:
    record = make(**options)
    *parents, name = path.split(".")
    node = record
    for parent in parents:
        node = node[parent]
    node[name] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("run.profile", "paper", "profile mini"),
        ("run.task_version", 2, "task rte: task version 1"),
        ("run.data.source", "local", "data source generated"),
        ("run.data.fingerprint", "other", "data fingerprint f-rte"),
        ("run.data.train_rows", 100, "training rows 1600"),
        ("run.data.eval_rows", 100, "evaluation rows 400"),
        ("run.data.official", True, "official False"),
        ("run.config.data.seed", 7, "data.seed 0"),
        ("run.config.data.holdout_rows", 50, "data.holdout_rows 0"),
        ("eval.primary", "f1", "primary metric accuracy"),
        ("run.config.backbone.weights", "random", "backbone minilm: weights pretrained"),
        ("run.weights.sha256", "0" * 64, "backbone minilm: sha256 ffff"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(path: str, value: Any, words: str) -> None:
    records = [make(seed=0), changed(path, value, seed=1)]
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        build(records, "glue")
    message = str(refused.value)
    assert records[0]["key"] in message
    assert records[1]["key"] in message
    assert "results_dir" in message
    assert "\n" not in message


def test_weights_are_told_apart_by_digest_else_by_name_and_revision() -> None:
    package = changed("run.weights.id", "a package", seed=1)
    assert len(build([make(), package], "glue").rows) == 1
    records = [make(), package]
    for record in records:
        record["run"]["weights"]["sha256"] = None
    with pytest.raises(UserError, match=r"weights id some/id .* and a package"):
        build(records, "glue")


def test_other_tasks_may_have_other_data_and_early_failures_agree_with_all() -> None:
    early = make("rte", "full", 0, None, status="failed")
    table = build([make("rte"), changed("run.data.eval_rows", 7, task="cola"), early], "glue")
    assert "cola: generated, 1,600 training rows, 7 evaluation rows" in dict(table.conditions)["Data"]


def test_title_says_what_the_numbers_are() -> None:
    assert build([make()], "glue").title == (
        "GLUE, mini profile: generated data, not comparable with the paper or with any GLUE score"
    )
    local = changed("run.data.source", "local")
    small = "GLUE, mini profile: small backbone, cut rows, not comparable with the paper"
    assert build([local], "glue").title == small
    local["run"]["profile"] = "paper"
    assert build([local], "glue").title == "GLUE, paper profile"
    local["run"]["config"]["backbone"]["weights"] = "random"
    table = build([local], "glue")
    assert "RANDOM WEIGHTS" in table.title
    assert "RANDOM WEIGHTS" in dict(table.conditions)["Backbone"]


def test_conditions_stand_beside_the_numbers() -> None:
    records = [make("rte", "lora"), make("rte", "full", 1, learning_rate=0.0001)]
    records[1]["env"] |= {"dirty": True, "device_count": 2}
    found = dict(build(records, "glue").conditions)
    assert found["Seeds"] == "0, 1"
    assert "generated, 1,600 training rows, 400 evaluation rows (not the published dev split)" in found["Data"]
    assert found["Backbone"] == "minilm: some/id, revision abc, sha256 ffffffffffffffff. Tuned on pairs."
    assert found["Learning rate"] == "full: 0.0001; lora: 0.001"
    assert found["Batches"] == "full: 16 (2 × 8 per device); lora: 16"
    assert found["Training"] == "100 steps, at most 96 tokens"
    assert found["Schedule"] == "linear, warm-up 0.06 of the steps, weight decay 0.0"
    constant = make(schedule="constant")
    old, new = "constant, no warm-up, weight decay 0.0", "constant, warm-up 0.06 of the steps, weight decay 0.0"
    assert dict(build([constant], "glue").conditions)["Schedule"] == old
    constant["run"]["harness"] = 2  # from then on it is heeded
    assert dict(build([constant], "glue").conditions)["Schedule"] == new
    constant["run"]["harness"] = "2"
    assert reading.problem(constant) == "run.harness is of the wrong type"
    assert found["Device"] == "full: 2 × CPU of a kind, fp32; lora: CPU of a kind, fp32"
    assert found["Versions"] == "python 3.11.7, torch 2.13.0, transformers 5.23.0, peft 0.21.2, datasets 5.2.0"
    assert found["Code"] == "full: commit 0123456789ab with changes not committed; lora: commit 0123456789ab"


@pytest.mark.parametrize(
    ("accumulation", "devices", "text"),
    [
        (1, 1, "16"),
        (4, 1, "64 (16 × 4 accumulated)"),
        (1, 2, "16 (2 × 8 per device)"),
        (4, 2, "64 (2 × 8 per device × 4 accumulated)"),
        (1, 3, "16"),  # refused by the run: no share can be told
    ],
)
def test_the_devices_share_the_batch(accumulation: int, devices: int, text: str) -> None:
    record = make(accumulation=accumulation)
    record["env"]["device_count"] = devices
    assert dict(build([record], "glue").conditions)["Batches"] == text


def sped(method: str, fast_path: str | None, seed: int = 0, task: str = "rte", **cost: Any) -> dict[str, Any]:
    """A record with the fields that tell what made it faster."""
    record = make(task, method, seed)
    known = {"cached_features": False, "micro_batch": 16, "oom_retries": 0, "packed_with": 1}
    record["cost"] |= {"fast_path": fast_path, **known, **cost}
    return record


def test_what_made_training_faster_stands_beside_the_time() -> None:
    plain = sped("full", "plain: a matrix of the backbone is trained")
    records = [plain, sped("lora", "fused"), sped("ia3", "fused"), sped("head", None, cached_features=True)]
    records += [sped("bitfit", "fused", packed_with=8), make("rte", "propulsion")]  # the last from before there was any
    failed = sped("lora", None, 1, packed_with=None, oom_retries=1)
    table = build([*records, failed | {"status": "failed", "eval": make(last=None)["eval"]}], "glue")
    assert dict(table.conditions)["Speed"] == (
        "full, propulsion: plain modules; head: features computed once; "
        "bitfit: fused layers, packed with 7 others; lora, ia3: fused layers"
    )
    measured = {row.method: row.measured.partition("fp32")[2] for row in table.rows}
    assert measured["full"] == measured["lora"] == measured["propulsion"] == ""  # they compare, the line says how
    assert (measured["head"], measured["bitfit"]) == (", features computed once", ", packed with 7 others")
    assert any("compare only between rows that were measured alike" in note for note in table.notes)


def test_what_attention_went_through_on_a_gpu_sets_times_apart() -> None:
    records = [sped("lora", "fused; variable-length attention"), sped("ia3", "lean; attention by groups: the kernel x")]
    assert dict(build(records, "glue").conditions)["Speed"] == (
        "lora: fused layers with variable-length attention; ia3: lean fused layers with attention by groups"
    )


@pytest.mark.parametrize(
    "other",
    [
        sped("lora", "fused; attention by groups: the kernel x", 2),
        sped("lora", "fused, 3 passes plain: a sequence has no token", 2),
        sped("lora", "fused", 2, packed_with=8),
        sped("lora", "fused", 2, oom_retries=1, micro_batch=8),
        sped("lora", None, 2, cached_features=True),
        sped("lora", "plain: its norms are in float64", 2),
        sped("lora", "lean", 2),
    ],
)
def test_a_run_sped_up_otherwise_is_not_in_the_time_of_its_method(other: dict[str, Any]) -> None:
    other["cost"]["train_seconds"] = 900.0
    table = build([sped("lora", "fused", 0), sped("lora", "fused", 1), other], "glue")
    assert cells(table, "lora")["train s"] == "20.0‡"
    assert "(2 of 3 runs)" in dict(table.conditions)["Speed"]
    ((_, milliseconds, _),) = next(iter(costs(list(table.rows)).values()))
    assert milliseconds == pytest.approx(200.0)  # 20 s in 100 steps


def test_the_cost_in_the_csv_is_of_the_runs_that_were_measured_alike() -> None:
    other = sped("lora", "fused", 2, packed_with=8)
    other["env"]["parallel_cells"] = 3
    other["cost"] |= dict.fromkeys(("train_seconds", "samples_per_second", "tokens_per_second"), 1.0)
    other["cost"]["peak_memory_bytes"] = 9_000_000_000
    (line,) = rows([build([sped("lora", "fused", 0), sped("lora", "fused", 1), other], "glue")])
    names = ("train_seconds", "samples_per_second", "tokens_per_second", "peak_memory_bytes")
    assert [float(line[name]) for name in names] == [20.0, 80.0, 2000.0, 1_234_000_000]
    assert (line["n"], line["cost_runs"]) == ("3", "2")
    assert line["cost_measured"] == "CPU of a kind, fp32, fused layers"
    assert [line[name] for name in ("parallel_cells", "packed_with", "fast_path")] == ["", "1", "fused"]
    (line,) = rows([build([other], "glue")])
    assert [line[name] for name in ("parallel_cells", "packed_with", "cost_runs")] == ["3", "8", "1"]
    assert line["cost_measured"] == "CPU of a kind, fp32, 3 cells at once, packed with 7 others, fused layers"


def test_records_that_nothing_made_faster_have_no_line() -> None:
    for records in ([make()], [sped("lora", None)], [make(), make("rte", "full", 0, None, status="failed")]):
        assert "Speed" not in dict(build(records, "glue").conditions)


def test_settings_are_in_the_order_of_their_numbers() -> None:
    records = []
    for degree in (55, 5, 15, 0.5):
        record = make(method="propulsion")
        record["run"]["config"]["method"]["degree"] = degree
        records.append(record | {"key": f"{degree}"})
    found = [row.variant for row in build(records, "glue").rows]
    assert found == ["degree=0.5", "degree=5", "degree=15", "degree=55"]


def test_however_many_cells_shared_a_device_the_conditions_stay_short() -> None:
    records = [make(seed=seed) for seed in range(40)]
    for record in records:
        seed = record["run"]["seed"]
        record["env"] |= {"parallel_cells": 1 + seed % 9, "commit": f"{seed % 9}" * 40}
        record["cost"] |= {"fast_path": "fused", "packed_with": 1 + seed % 9}
    found = dict(build(records, "glue").conditions)
    assert found["Device"] == "CPU of a kind, fp32"
    assert found["Cells at once"].startswith("1 to 9 on one device; time and memory compare between runs with as many")
    assert found["Code"].endswith("; 6 others, see the CSV (25 of 40 runs)")
    assert found["Code"].startswith("commit 000000000000 (5 of 40 runs); commit 111111111111 (5 of 40 runs); ")
    assert all(len(text) < 200 for text in found.values())
    for record in records:
        record["env"]["parallel_cells"] = 2
    told = dict(build(records, "glue").conditions)["Cells at once"]
    assert told == "2 on one device; time and memory compare within this set alone"
    assert "Cells at once" not in dict(build([make()], "glue").conditions)


def test_parts_that_records_have_in_common_are_kept_once_and_unchanged(tmp_path: Path) -> None:
    records = [make(seed=seed) for seed in range(3)]
    records[2]["env"]["torch"] = "other"
    found = {r["run"]["seed"]: r for r in load_records(save(tmp_path, records))}
    assert [found[seed] for seed in range(3)] == records
    assert found[0]["env"] is found[1]["env"] is not found[2]["env"]
    assert found[0]["run"]["config"]["training"] is found[2]["run"]["config"]["training"]


def test_conditions_that_follow_no_single_axis() -> None:
    rates = {("rte", "lora"): 1, ("cola", "lora"): 1, ("rte", "full"): 2, ("cola", "full"): 3}
    records = [make(task, method, learning_rate=rate) for (task, method), rate in rates.items()]
    assert dict(build(records, "glue").conditions)["Learning rate"] == "full: 3 (cola), 2 (rte); lora: 1"
    one = [make(seed=seed) for seed in range(3)]
    one[2]["env"]["commit"] = "f" * 20
    code = dict(build(one, "glue").conditions)["Code"]
    assert code == "commit 0123456789ab (2 of 3 runs); commit ffffffffffff (1 of 3 runs)"


def some_records() -> list[dict[str, Any]]:
    records = [
        make(task, method, seed, (i + 3 * j + 7 * seed) / 40, backbone=backbone)
        for backbone in ("minilm", "roberta_base")
        for i, method in enumerate(["full", "lora", "propulsion_attn"])
        for j, task in enumerate(["rte", "cola", "mnli", "stsb"])
        for seed in range(3)
    ]
    records[5] = make("cola", "full", 2, None, status="failed")
    return [r for r in records if (r["run"]["method"], r["run"]["task"]) != ("lora", "stsb")]


def test_the_same_numbers_in_all_formats() -> None:
    tables = [build(some_records(), "glue", rule) for rule in RULES]
    markdown = [
        [cell.strip().replace(r"\*", "*") for cell in line.strip("|").split(" | ")]
        for line in to_markdown(tables).splitlines()
        if re.match(r"\| (full|lora|propulsion_attn)", line)
    ]
    latex = [
        [cell.strip() for cell in line.removesuffix("\\\\").split(" & ")]
        for line in to_latex(tables).splitlines()
        if re.match(r"(full|lora|propulsion\\_attn) &", line)
    ]
    plain = [
        [c.replace(r"$\pm$", "±").replace("---", "—").replace("--", "–").replace(r"$\dagger$", "†") for c in row]
        for row in latex
    ]
    assert [[c.replace(r"\_", "_") for c in row] for row in plain] == markdown
    assert len(markdown) == len(RULES) * 2 * 3
    from_csv = {(row["rule"], row["backbone"], row["method"], row["task"], row["score"]): row for row in rows(tables)}
    for table in tables:
        for row in table.rows:
            shown = cells_of(table, row.backbone, row.method)
            for column in (column for column in table.columns if column.shown):
                line = from_csv[table.rule, row.backbone, row.method, column.task, column.score]
                text = shown[column.label]
                if line["mean"]:
                    assert float(text.split()[0]) == pytest.approx(100 * float(line["mean"]), abs=0.0501)
                else:
                    assert text in ("no score", "not run", "failed 1/3")


def cells_of(table: Any, backbone: str, method: str) -> dict[str, str]:
    only = copy.copy(table)
    object.__setattr__(only, "rows", tuple(row for row in table.rows if row.backbone == backbone))
    return cells(only, method)


class Seen(HTMLParser):
    """Tags and text of rendered Markdown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>",
    "a|b\n|c|d|",
    "*bold* _em_ `code` ~~x~~ **_y_**",
    "[link](javascript:1) ![img](x)",
    '=HYPERLINK("x")',
    "@SUM(1)",
    r"\input{/etc/passwd} $x^2$ 50% #1 {a} ~ \\ & _",
    "\u202egnp.exe\u200b\x00\x1b[31m",
    "Unicode: 中文 é",
    "-1+1",
    "=cmd|' /C calc'!A0",
    "\t+cmd|'/C calc'!A0",
    "\"quoted\", 'single', `back`; \u201ccurly\u201d",
    "\u200fשלום \u2067abc\u2069 عربى",
    "\U0001f680 \U0001f469\u200d\U0001f469 emoji",
    "x" * 5000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(text: str) -> None:
    record = make(method="lora")
    record["run"]["method"] = record["run"]["backbone"] = record["run"]["task"] = text
    record["run"]["config"]["backbone"]["note"] = text
    record["env"]["device"] = text
    tables = [build([record], "glue", rule) for rule in RULES]
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    seen = Seen(reader.render(to_markdown(tables)))
    assert seen.tags <= {"h1", "h2", "ul", "li", "strong", "p", "table", "thead", "tbody", "tr", "th", "td"}
    visible = "".join(char if char.isprintable() else " " for char in text)
    start = " ".join(visible.split())[:30]
    assert start in " ".join(seen.text.replace("\ufffd", " ").split())
    assert len(to_markdown(tables)) < 40 * LONGEST
    values = [value for row in rows(tables) for value in row.values() if value and not is_number(value)]
    assert not [value for value in values if value[0] in "=+-@"]
    for output in (to_markdown(tables), to_latex(tables), to_csv(tables), to_text(tables[0])):
        assert all(char.isprintable() or char == "\n" for char in output)
    assert_latex_is_sound(to_latex(tables))


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def assert_latex_is_sound(text: str) -> None:
    """Compiles where pdflatex is there; else: commands, braces and column counts by hand."""
    assert text.isascii()
    body = "\n".join(re.split(r"(?<!\\)%", line)[0] for line in text.splitlines())
    commands = set(re.findall(r"\\([A-Za-z]+)", body))
    assert commands <= {
        "begin", "end", "centering", "caption", "label", "resizebox", "textwidth", "toprule", "midrule",
        "bottomrule", "multicolumn", "emph", "pm", "times", "dagger", "ddagger", "geq", "rho", "ldots", "textbackslash",
        "textasciicircum", "textasciitilde", "textasciigrave", "textless", "textgreater", "textbar",
    }  # fmt: skip
    bare = re.sub(r"\\\\|\\[{}$&#%_]", "", body)
    depth = 0
    for char in bare:
        depth += {"{": 1, "}": -1}.get(char, 0)
        assert depth >= 0
    assert depth == 0
    assert not set(bare) & set('#^_~<>|"`')
    assert bare.count("$") % 2 == 0
    tabulars = re.findall(r"\\begin\{tabular\}\{(l+r*)\}(.*?)\\end\{tabular\}", body, flags=re.DOTALL)
    assert tabulars
    for tabular in tabulars:
        lines = [line for line in tabular[1].splitlines() if " & " in line]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(tabular[0]) - 1}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(tmp_path: Path) -> None:
    record = make()
    record["run"]["method"] = " ".join(HOSTILE[:-1])
    records = [*some_records(), record]
    text = to_latex([build(records, "glue", rule) for rule in RULES])
    packages = "\\usepackage{booktabs}\\usepackage{graphicx}"
    document = f"\\documentclass{{article}}{packages}\\begin{{document}}\n{text}\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


def test_several_backbones_are_grouped() -> None:
    tables = [build(some_records(), "glue")]
    headings = re.findall(r"^### (.*)", to_markdown(tables), flags=re.MULTILINE)
    assert headings == ["minilm", "roberta_base", "Over the suite, last", "Compared, last"]
    assert to_latex(tables).count("\\multicolumn") == 2
    assert_latex_is_sound(to_latex(tables))


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    records = some_records()
    save(tmp_path / "a", records)
    save(tmp_path / "b", records[::-1])
    first = {path.name: path.read_bytes() for path in write_tables(tmp_path / "a")}
    assert sorted(first) == ["glue-compared.csv", "glue.csv", "glue.md", "glue.tex"]
    assert {path.name: path.read_bytes() for path in write_tables(tmp_path / "a")} == first
    assert {path.name: path.read_bytes() for path in write_tables(tmp_path / "b")} == first
    assert {path.name for path in (tmp_path / "a" / "tables").iterdir()} == set(first)


def test_every_rule_has_its_section(tmp_path: Path) -> None:
    text = write_tables(save(tmp_path, some_records()))[0].read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+):", text, flags=re.MULTILINE) == ["last", "heldout", "best", "best-last"]
    assert "## The same runs by each rule" in text


def test_suites_have_their_own_files(tmp_path: Path) -> None:
    other = make("boolq")
    other["run"]["suite"] = "superglue"
    endings = (".md", ".csv", ".tex", "-compared.csv")
    for number, (task, suites) in enumerate((("cola", ("glue", "superglue")), ("rte", ("superglue",)))):
        names = [path.name for path in write_tables(save(tmp_path / str(number), [make(task), other]))]
        assert names == [f"{suite}{ending}" for suite in suites for ending in endings]


def test_what_cannot_be_read_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, [make(last=0.5)])
    folder = tmp_path / "runs" / "rte" / "minilm" / "lora"
    whole = json.dumps(make(seed=1))
    (folder / "truncated.json").write_text(whole[: len(whole) // 2])
    (folder / "empty.json").write_text("")
    (folder / "list.json").write_text("[]")
    (folder / "later.json").write_text(json.dumps(make(seed=2) | {"schema": 2}))
    (folder / "copy.json").write_text(whole)
    (folder / "nan.json").write_text(json.dumps(make(seed=3, last=float("nan")) | {"key": "nan"}))
    (folder / "text.json").write_text(json.dumps(changed("cost.steps", "many", seed=4) | {"key": "text"}))
    (folder / "part.json").write_text(json.dumps({k: v for k, v in make(seed=5).items() if k != "env"}))
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00")
    (folder / ".hidden.json").write_text("{")
    bad = ["truncated", "empty", "list", "later", "copy", "nan", "text", "part", "binary"]
    reading = read(tmp_path)
    assert len(reading.records) == 1
    assert len(reading.left_out) == len(bad)
    assert len(load_records(tmp_path)) == 1
    markdown = write_tables(tmp_path)[0].read_text(encoding="utf-8")
    for name in bad:
        assert f"runs/rte/minilm/lora/{name}.json" in caplog.text
        assert f"Left out: runs/rte/minilm/lora/{name}.json" in markdown
    assert cells(tables_of(tmp_path)["glue"][0], "lora")["RTE Acc"] == "50.0"


def paths(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = (
        [found for key, value in node.items() for found in paths(value, (*path, key))] if isinstance(node, dict) else []
    )
    return [path, *inner] if path else inner


@pytest.mark.parametrize("value", [None, "x", -1, 0.5, True, [], ["x"], {}, {"x": 1}], ids=str)
def test_a_record_edited_by_hand_is_used_or_left_out_but_never_a_crash(value: Any, tmp_path: Path) -> None:
    for path in paths(make()):
        record = make()
        node = record
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = copy.deepcopy(value)
        folder = tmp_path / "runs" / "rte" / "minilm" / "lora"
        shutil.rmtree(tmp_path)
        folder.mkdir(parents=True)
        (folder / f"{make()['key']}.json").write_text(json.dumps(record))
        if path[-1] in (
            "profile",
            "version",
            "task_version",
            "fingerprint",
        ):  # else nothing is compared with it
            save(tmp_path, [make(method="full")])
        try:
            tables = tables_of(tmp_path)
            for suite in tables.values():
                assert to_markdown(suite)
                assert to_latex(suite)
                assert to_csv(suite)
                assert to_text(suite[0])
        except UserError as error:
            assert "\n" not in str(error), path


def test_no_records_and_unknown_names_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no records in .*make reproduce-glue"):
        write_tables(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(UserError, match="unknown checkpoint rule 'lst': did you mean last"):
        build([make()], "glue", "lst")
    with pytest.raises(UserError, match="unknown suite 'gleu': did you mean glue"):
        build([make()], "gleu")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    save(tmp_path, [make()])
    (tmp_path / "tables").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_tables(tmp_path)


def _write_a_record(folder: Path) -> None:
    records_on_disk.write_record(folder / "glue.csv", {"key": "glue"})


def _write_a_sheet(folder: Path) -> None:
    sheets.write(folder, "glue", {"csv": "text"})


def _write_a_table(folder: Path) -> None:
    save(folder.parent, [make()])
    write_tables(folder.parent)


@pytest.mark.parametrize("write", [_write_a_record, _write_a_sheet, _write_a_table])
@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_file_is_written_whole_or_not_at_all(
    write: Any, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    kept = {name: f"{name} as it was" for name in ("glue.csv", "glue.md", "glue.tex", "glue-compared.csv")}
    for name, text in kept.items():
        (folder / name).write_text(text)

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records_on_disk.os, broken, refuse)
    with pytest.raises((UserError, OSError), match="No space left on device"):
        write(folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == kept
    monkeypatch.undo()
    write(folder)
    assert (folder / "glue.csv").read_text() != kept["glue.csv"]
    assert {path.name for path in folder.iterdir()} == set(kept)


def test_print_shows_scores_size_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    table = build(some_records(), "glue")
    print_table(table)
    out = capsys.readouterr().out
    assert "not comparable with the paper" in out
    assert "RTE Acc" in out
    assert "37,634" in out
    assert out.count("propulsion_attn") >= 4


def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "no result set in results/" in capsys.readouterr().err
    assert main(["results_dir=results/mini"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no records in results/mini/runs")
    assert err.count("\n") == 1
    assert main(["result_dir=x"]) == 2
    assert "did you mean results_dir" in capsys.readouterr().err
    assert main(["results_dir="]) == 2
    assert not list(tmp_path.iterdir())
    save(Path("results/mini"), [make()])
    save(Path("results/other"), [make(last=0.25)])
    assert main(["results_dir=results/mini"]) == 0
    assert "50.0" in capsys.readouterr().out
    assert not Path("results/other/tables").exists()
    save(Path("results/bad"), [make(), make() | {"key": "twice"}])
    assert main([]) == 2
    assert Path("results/other/tables/glue.md").is_file()
    assert "twice" in capsys.readouterr().err


PICTURE = re.compile(r'src="data:image/svg[^"]*"')


def committed_sets() -> list[str]:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    names = [line.removeprefix("!/results/").strip("/") for line in lines if line.startswith("!/results/")]
    return [name for name in names if (ROOT / "results" / name / "runs").is_dir()]


@pytest.mark.parametrize("name", committed_sets())
def test_committed_tables_are_what_their_records_give(name: str, tmp_path: Path) -> None:
    for part in ("runs", "kernels"):  # all that is measured; the rest is made from it
        if (ROOT / "results" / name / part).is_dir():
            shutil.copytree(ROOT / "results" / name / part, tmp_path / name / part)
    _, paths = write_report(tmp_path / name)
    assert any(path.name == "index.html" for path in paths)
    for path in paths:
        committed = ROOT / "results" / path.relative_to(tmp_path)
        assert committed.is_file(), f"{committed} is missing: type make tables"
        if path.suffix in (".md", ".csv", ".tex"):  # pictures differ by a digit between versions of their library
            assert committed.read_bytes() == path.read_bytes(), f"{committed} is stale: type make tables"
        if path.name == "index.html":
            theirs, ours = (PICTURE.sub("", file.read_text(encoding="utf-8")) for file in (committed, path))
            assert theirs == ours, f"{committed} is stale: type make tables"
