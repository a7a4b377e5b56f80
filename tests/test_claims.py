"""The ledger: fixed verdicts from counts and records, and from nothing else."""

from __future__ import annotations

import copy
import csv
import functools
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from propulsion.harness import claims, evidence, references
from propulsion.harness.cell import run_cell
from propulsion.harness.claims import FAILS, HOLDS, NOT_AVAILABLE, NOT_RUN, ONLY_AS_COUNTED, UNDECIDED
from propulsion.harness.errors import UserError
from propulsion.harness.recipes import METHODS
from propulsion.harness.record import without_paths
from propulsion.harness.tables import load_records
from scripts import claims as script
from tests.conftest import ROOT, compose_settings

REFERENCE = ROOT / "results" / "reference"
Record = dict[str, Any]


@functools.cache
def by_the_recipe(method: str, task: str) -> dict[str, Any]:
    """The config that Hydra composes for a cell of the paper profile."""
    settings = compose_settings("experiment=paper", "backbone=roberta_base", f"method={method}", f"task={task}")
    return without_paths(settings.config)


def made_up(
    method: str = "propulsion_paper",
    seed: int = 0,
    accuracy: tuple[float, ...] = (0.8, 0.9, 0.85),
    task: str = "rte",
    steps: int = 100,
    **changes: Any,
) -> Record:
    """A record as the paper profile would leave it; `changes` are dotted paths with `__` for the dot."""
    config = copy.deepcopy(by_the_recipe(method, task)) | {"seed": seed}
    history = [
        {"step": steps * (i + 1), "loss": 1.0, "scores": {"accuracy": a, "f1": a - 0.1}} for i, a in enumerate(accuracy)
    ]
    record: Record = {
        "status": "success",
        "run": {
            **{"task": task, "backbone": "roberta_base", "method": method, "seed": seed, "profile": "paper"},
            "config": config,
            "start": None,
            "data": {"source": "hub", "official": True, "fingerprint": "f"},
            "weights": {"id": "FacebookAI/roberta-base"},
        },
        "eval": {"primary": "accuracy", "history": history},
        "cost": {"peak_memory_bytes": 10**10},
        "env": {"device": "NVIDIA H200", "precision": "bf16", "commit": "0" * 40},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = record
        for parent in parents:
            node = node[parent]
        node[last] = value
    return record


def row(value: str, **changes: str) -> dict[str, str]:
    cell = {"method": "propulsion_paper", "backbone": "roberta_base", "task": "rte", "metric": "accuracy"}
    other = {
        "rule": "best row",
        "paper_row": "Propulsion(All)",
        "source": "s",
        "standing": "code",
        "note": "",
    }
    return {**cell, **other, "value": value, **changes}


def claim(identity: str) -> dict[str, str]:
    (found,) = (c for c in references.read_claims(REFERENCE / "claims.csv") if c["id"] == identity)
    return found


# The committed reference data


def test_every_claim_of_the_paper_stands_in_the_ledger_and_counts_are_decided() -> None:
    entries = {e.id: e for e in claims.ledger(references.read_claims(REFERENCE / "claims.csv"), [], [])}
    verdicts = {identity: entry.verdict for identity, entry in entries.items()}
    counts = {"full-count": HOLDS, "propulsion-count": HOLDS}
    counts |= dict.fromkeys(("reduction", "lora-10x", "adalora-12x", "adalora-37x"), ONLY_AS_COUNTED)
    measured = (
        "glue-adalora",
        "glue-propetl",
        "glue-ia3",
        "memory",
        "sst2-propulsion",
        "sst2-lora",
        "sst2-adalora",
    )
    assert verdicts == {**counts, **dict.fromkeys([*measured, "kernel"], NOT_RUN)}
    assert entries["full-count"].value == 355_361_794
    assert entries["propulsion-count"].value == 86_018
    for number in ("4,131x", "1,577x as the paper on roberta_large", "1,449x as the paper on roberta_base"):
        assert number in entries["reduction"].ours
    assert entries["lora-10x"].ours == "10.3x as the paper counts; 3.4x no heads, 1.3x both heads"
    assert entries["adalora-12x"].value == pytest.approx(12.03, abs=5e-3)
    assert entries["adalora-37x"].value == pytest.approx(37.4, abs=5e-2)
    assert {e.standing for e in entries.values()} == {"first-hand", "second-hand"}


def test_no_cell_of_the_papers_own_table_is_made_up() -> None:
    rows = references.read_scores(REFERENCE / "glue.csv")
    known = [r for r in rows if r["value"]]
    assert {r["standing"] for r in known} == {"code"}
    empty = [r for r in rows if not r["value"]]
    assert {r["source"] for r in empty} == {"not available"}
    cells = {(r["method"], r["backbone"], r["task"], r["metric"]) for r in empty}
    assert len(cells) == len(empty) == 6 * 2 * 11
    entries = claims.ledger([], rows, [])
    assert {e.verdict for e, r in zip(entries, rows, strict=True) if not r["value"]} == {NOT_AVAILABLE}
    assert {e.verdict for e, r in zip(entries, rows, strict=True) if r["value"]} == {NOT_RUN}
    assert len({e.id for e in entries if e.paper}) == len(known)


def test_the_notebooks_scores_are_those_known() -> None:
    rows = references.read_scores(REFERENCE / "glue.csv")
    found = {(r["method"], r["task"], r["metric"], r["rule"]): r["value"] for r in rows if r["value"]}
    assert found["propulsion_paper", "cola", "matthews_correlation", "best row"] == "59.8"
    assert found["propulsion_paper", "rte", "accuracy", "best row"] == "75.5"
    assert found["propulsion_paper", "rte", "accuracy", "last row"] == "72.2"
    assert found["propulsion_package", "sst2", "accuracy", "best row"] == "92.9"
    assert found["propulsion_attn", "qqp", "accuracy", "best row"] == "85.7"
    assert found["full", "mnli", "accuracy", "best row"] == "84.2"


# One edit by a reader who has the paper


def test_one_edit_of_the_csv_gives_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(REFERENCE, tmp_path / "reference")
    table = tmp_path / "reference" / "glue.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    (line,) = (i for i, t in enumerate(lines) if t.startswith("propulsion_paper,roberta_large,rte,accuracy,,"))
    lines[line] = lines[line].replace("accuracy,,", "accuracy,80.1,")
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = references.read_scores(table)
    (mine,) = (r for r in rows if r["standing"] == "user-supplied")
    assert (mine["backbone"], mine["task"], mine["value"]) == ("roberta_large", "rte", "80.1")
    (tmp_path / "none" / "runs").mkdir(parents=True)
    words = [
        f"reference={tmp_path / 'reference'}",
        f"results_dir={tmp_path / 'none'}",
        f"out={tmp_path / 'out'}",
    ]
    assert script.main(words) == 0
    text = (tmp_path / "out" / "claims.md").read_text(encoding="utf-8")
    assert "user-supplied | 80.1" in text
    assert "131 score cells" in text
    with (tmp_path / "out" / "claims.csv").open(newline="", encoding="utf-8") as stream:
        ledger = {r["id"]: r for r in csv.DictReader(stream)}
    assert ledger["rte/roberta_large/propulsion_paper/accuracy/best"]["verdict"] == NOT_RUN
    assert "holds only as counted 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("accuracy,,best", "accuracy,0.949,best", "type points of 100, as in 94.9"),
        ("accuracy,,best", "accuracy,94;9,best", "value '94;9': type a number with a point, or nothing"),
        ("accuracy,,best row", "accuracy,94.9,best", "unknown rule 'best': did you mean best row"),
        (",rte,", ",rtee,", "unknown task 'rtee': did you mean rte"),
        ("method,backbone", "methods,backbone", "no column 'method'"),
        ("not available,,", "not available,", "cells are needed"),
    ],
)
def test_a_slip_in_the_csv_is_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (REFERENCE / "glue.csv").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "glue.csv"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=message) as raised:
        references.read_scores(path)
    assert "\n" not in str(raised.value)


def test_a_missing_reference_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([f"reference={tmp_path}", f"out={tmp_path / 'out'}"]) == 2
    assert "claims.csv cannot be read" in capsys.readouterr().err
    assert script.main(["result_dir=x"]) == 2
    assert "did you mean results_dir" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# What counts as evidence


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run__profile": "mini"}, "profile mini"),
        ({"status": "failed"}, "failed"),
        ({"status": "diverged"}, "diverged"),
        ({"run__data__official": False}, "not the published evaluation rows"),
        ({"run__weights__id": "random"}, "random weights"),
        ({"run__config__training__max_train_rows": 100}, "training cut short"),
        ({"run__config__training__max_steps": 100}, "training cut short"),
        ({"run__config__training__epochs": 1.0}, "not by the recipe: training.epochs"),
        ({"run__config__training__accumulation": 2}, "not by the recipe: training.accumulation"),
        ({"run__config__method__degree": 5}, "not by the recipe: method.degree"),
        ({"run__config__backbone__pooling": "mean"}, "not by the recipe: backbone.pooling"),
        ({"run__config__recipe__version": 9}, "not by the recipe: recipe.version"),
        ({"run__config__recipe": None}, "no recipe"),
        ({"run__start": {"sha256": "f" * 64}}, "started from another run"),
        ({"run__config__training__start_from": "last.safetensors"}, "started from another run"),
        ({"run__config__training__eval_steps": 10}, evidence.EVALUATED_OTHERWISE),
    ],
)
def test_what_is_no_evidence_decides_nothing(changes: dict[str, Any], reason: str) -> None:
    assert evidence.unusable(made_up()) is None
    records = [made_up(seed=seed, **changes) for seed in range(3)]
    assert evidence.unusable(records[0]) == reason
    (entry,) = claims.ledger([], [row("90.0")], records)
    assert (entry.verdict, entry.n, entry.ours) == (NOT_RUN, 0, "")


@pytest.mark.parametrize("method", [*METHODS, "propulsion_package"])
def test_a_run_by_the_recipe_counts_whatever_the_method(method: str) -> None:
    record = made_up(method)
    assert evidence.unusable(record) is None
    record["run"]["config"]["training"] |= {"checkpoint_seconds": 5.0, "keep_weights": True}  # decide no score
    del record["run"]["config"]["training"]["dropout"]  # from before the key, and at its default
    assert evidence.unusable(record) is None
    record["run"]["config"]["training"]["learning_rate"] *= 2
    assert evidence.unusable(record) == "not by the recipe: training.learning_rate"


def test_a_run_without_a_recipe_in_the_repository_decides_nothing() -> None:
    record = made_up()
    record["run"]["method"] = "head"  # has none on this backbone
    assert evidence.unusable(record) == "no recipe"


def test_started_runs_are_no_seeds_of_fresh_ones() -> None:
    started = [made_up(seed=seed, run__start={"sha256": "f" * 64}) for seed in (1, 2)]
    fresh = [made_up(seed=seed) for seed in (0, 5, 6)]
    own, others = evidence.runs_of(started + fresh, "propulsion_paper", "roberta_base", "rte")
    assert ([record["run"]["seed"] for record in own], others) == ([0, 5, 6], 2)


@pytest.mark.parametrize(
    ("value", "seeds", "verdict"),
    [
        ("90.0", 3, HOLDS),
        ("95.0", 3, FAILS),
        ("91.0", 3, UNDECIDED),
        ("90.0", 2, NOT_RUN),
        ("", 3, NOT_AVAILABLE),
    ],
)
def test_a_score_is_judged_by_the_interval(value: str, seeds: int, verdict: str) -> None:
    records = [made_up(seed=s, accuracy=(0.5, 0.9 + 0.002 * (s - 1), 0.7)) for s in range(seeds)]
    (entry,) = claims.ledger([], [row(value)], records)
    assert entry.verdict == verdict
    assert entry.n == seeds
    assert entry.value == pytest.approx(90.0 if seeds == 3 else 89.9)


def test_the_rule_of_the_reference_picks_the_row() -> None:
    records = [made_up(seed=s) for s in range(3)]
    found = {
        (rule, metric): claims.judge_score(row("50", rule=rule, metric=metric), records).value
        for rule in references.RULES
        for metric in ("accuracy", "f1")
    }
    # the best row is the one with the highest primary metric, whatever the metric that is compared
    assert found == pytest.approx(
        {
            **{("best row", "accuracy"): 90.0, ("best row", "f1"): 80.0},
            **{("last row", "accuracy"): 85.0, ("last row", "f1"): 75.0},
        }
    )


def test_other_settings_are_no_seeds_and_the_choice_does_not_look_at_scores() -> None:
    usual = [made_up(seed=s, accuracy=(0.9,)) for s in range(3)]
    better = [made_up(seed=s, accuracy=(0.95,), run__config__training__learning_rate=1.0) for s in (7, 8)]
    (entry,) = claims.ledger([], [row("95.0")], better + usual, refuse=lambda _: None)
    assert (entry.verdict, entry.n, entry.value) == (FAILS, 3, pytest.approx(90.0))
    assert "2 runs with other settings left out" in entry.conditions
    assert "recipe 1, learning rate 0.0002, batch 32" in entry.conditions


# The other kinds


def test_a_gain_needs_all_six_tasks_by_the_same_seeds() -> None:
    def records(gain: float, tasks: tuple[str, ...]) -> list[Record]:
        return [
            made_up(method, seed, (accuracy,), task)
            for method, accuracy in (("propulsion_paper", 0.8 + gain), ("ia3", 0.8))
            for seed in range(3)
            for task in tasks
        ]

    def verdict(gain: float, tasks: tuple[str, ...] = claims.ACCURACY_TASKS) -> str:
        return claims.judge_gain(claim("glue-ia3"), records(gain, tasks)).verdict

    assert verdict(0.0331) == HOLDS
    assert verdict(0.0) == FAILS
    assert verdict(0.0331, claims.ACCURACY_TASKS[:5]) == NOT_RUN


@pytest.mark.parametrize(
    ("ratio", "changes", "verdict", "reason"),
    [
        (1.51, {}, HOLDS, ""),
        (1.0, {}, FAILS, ""),
        (1.51, {"env__device": "CPU x"}, NOT_RUN, "not comparable: not measured on a GPU (3 pairs)"),
        (1.51, {"env__precision": "fp32"}, NOT_RUN, "not comparable: precision differs (3 pairs)"),
        (
            *(1.51, {"env__device": "NVIDIA L4", "run__config__training__batch_size": 16}, NOT_RUN),
            "not comparable: device and batch size differ (3 pairs)",
        ),
        (1.51, {"env__device_count": 2}, NOT_RUN, "not comparable: number of devices differs (3 pairs)"),
        (
            *(1.51, {"cost__oom_retries": 1, "cost__micro_batch": 16}, NOT_RUN),
            "not comparable: micro-batch differs (3 pairs)",
        ),
        (
            *(1.51, {"run__config__training__gradient_checkpointing": True}, NOT_RUN),
            "not comparable: gradient checkpointing differs (3 pairs)",
        ),
        (1.51, {"cost__sharded_parameters": 10}, NOT_RUN, "not comparable: sharding differs (3 pairs)"),
        (1.51, {"cost__fast_path": "lean"}, NOT_RUN, "not comparable: kind of layers differs (3 pairs)"),
        (1.51, {"cost__cached_features": True}, NOT_RUN, "not comparable: feature cache differs (3 pairs)"),
        (1.51, {"cost__packed_with": 4}, NOT_RUN, "not comparable: packing differs (3 pairs)"),
        (1.51, {"cost__fast_path": "plain: a variant of LoRA"}, HOLDS, ""),
        (1.51, {"env__attention": "eager"}, HOLDS, ""),  # the others are from before it was recorded
        (1.51, {"env__parallel_cells": 4}, HOLDS, ""),  # a GPU's peak is that of the process alone
    ],
)
def test_memory_is_compared_on_one_gpu_precision_and_batch(
    ratio: float, changes: dict[str, Any], verdict: str, reason: str
) -> None:
    ours = [made_up("propulsion", s) for s in range(3)]
    theirs = [made_up("lora", s, cost__peak_memory_bytes=int(ratio * 10**10), **changes) for s in range(3)]
    entry = claims.judge_memory(claim("memory"), ours + theirs)
    assert entry.verdict == verdict
    assert reason in entry.conditions
    assert ("not comparable" in entry.conditions) == bool(reason)


def test_memory_is_not_compared_between_two_attentions() -> None:
    ours, theirs = (made_up(method, env__attention=kind) for method, kind in (("lora", "sdpa"), ("ia3", "eager")))
    assert evidence.incomparable(ours, theirs) == "attention differs"


def test_the_two_sides_of_the_memory_claim_can_be_compared_by_their_recipes() -> None:
    stated = claim("memory")
    ours, theirs = (by_the_recipe(stated[side], "rte")["training"] for side in ("subject", "against"))
    for key in ("precision", "batch_size", "max_length"):
        assert ours[key] == theirs[key]


@pytest.mark.parametrize(
    ("accuracy", "steps", "verdict"),
    [
        ((0.91, 0.92), 50, HOLDS),
        ((0.80, 0.91), 50, FAILS),
        ((0.80, 0.89), 100, FAILS),  # never reached
        ((0.91, 0.92), 100, UNDECIDED),  # reached somewhere before the first evaluation
    ],
)
def test_steps_to_accuracy(accuracy: tuple[float, ...], steps: int, verdict: str) -> None:
    records = [made_up(seed=s, task="sst2", accuracy=accuracy, steps=steps) for s in range(3)]
    assert claims.judge_speed(claim("sst2-propulsion"), records).verdict == verdict
    assert claims.judge_speed(claim("sst2-propulsion"), records[:2]).verdict == NOT_RUN


def test_the_target_is_the_claims_own() -> None:
    records = [made_up("lora", s, task="sst2", accuracy=(0.88, 0.91), steps=50) for s in range(3)]
    stated = claim("sst2-adalora") | {"subject": "lora"}
    assert (stated["target"], claim("sst2-lora")["target"]) == ("0.87", "0.90")
    assert claims.judge_speed(stated, records).value == 50
    assert claims.judge_speed(claim("sst2-lora"), records).value == 100


def test_speed_is_decided_by_runs_evaluated_every_few_steps_and_scores_are_not() -> None:
    usual = [made_up(seed=s, task="sst2", accuracy=(0.91, 0.92), steps=100) for s in range(3)]
    often = {"task": "sst2", "accuracy": (0.8, 0.8, 0.8, 0.91), "steps": 10, "run__config__training__eval_steps": 10}
    fine = [made_up(seed=s, **often) for s in range(3)]
    cell = row("92.0", task="sst2")

    def judged(records: list[Record]) -> tuple[claims.Entry, claims.Entry]:
        speed, score = claims.ledger([claim("sst2-propulsion")], [cell], records)
        return speed, score

    wanted = "to decide: 3 seeds by the recipe but for training.eval_steps=10"
    speed, score = judged(usual)
    assert (speed.verdict, score.verdict) == (UNDECIDED, HOLDS)
    assert f"no evaluation by step 50; {wanted}" in speed.conditions
    assert wanted in judged([])[0].conditions
    for records in (usual + fine, fine + usual):
        speed, score = judged(records)
        assert (speed.verdict, speed.value, speed.n) == (HOLDS, 40, 3)
        assert wanted not in speed.conditions
        assert (score.verdict, score.value) == (HOLDS, pytest.approx(92.0))
    assert judged(fine)[1].verdict == NOT_RUN
    assert judged(usual + fine[:2])[0].verdict == UNDECIDED


@pytest.mark.parametrize("target", ["", "x", "0", "90"])
def test_a_claim_of_speed_needs_a_target(target: str, tmp_path: Path) -> None:
    text = (REFERENCE / "claims.csv").read_text(encoding="utf-8")
    assert ",sst2,0.87," in text
    (tmp_path / "claims.csv").write_text(text.replace(",sst2,0.87,", f",sst2,{target},"), encoding="utf-8")
    with pytest.raises(UserError, match="line 14, target"):
        references.read_claims(tmp_path / "claims.csv")


def test_only_methods_that_are_not_here_are_called_absent() -> None:
    entries = claims.ledger([], references.read_scores(REFERENCE / "glue.csv"), [])
    absent = {e.id.split("/")[2] for e in entries if "no method" in e.conditions}
    assert absent == {"lora_notebook"}
    assert any("/propulsion_package/" in e.id for e in entries)


@pytest.mark.parametrize(
    ("value", "stated", "agrees"),
    [
        (355_361_794, "355.3e6", True),
        (86_018, "0.086e6", True),
        (355_500_000, "355.3e6", False),
        (87_100, "0.086e6", False),
    ],
)
def test_a_count_agrees_within_the_last_digit_given(value: int, stated: str, agrees: bool) -> None:
    entry = claims._agrees(value, stated)
    assert entry is agrees


# From recipe to ledger


@pytest.fixture(scope="module")
def paper_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cell for each method of the grid, three seeds of one of them, on a toy model."""
    folder = tmp_path_factory.mktemp("paper")
    for method in METHODS:
        for seed in range(3 if method == "propulsion_paper" else 1):
            words = ["experiment=tiny", "profile=paper", "backbone=roberta_base", "task=rte", f"seed={seed}"]
            words += [
                "backbone.architecture.num_hidden_layers=1",
                "data.train_rows=32",
                "training.evaluations=1",
            ]
            settings = compose_settings(*words, f"method={method}", f"results_dir={folder}")
            entry, ran = run_cell(settings)
            assert ran
            assert entry["status"] == "success", entry["error"]
    return folder


def test_a_made_up_number_does_not_hold_and_a_true_one_does(paper_runs: Path) -> None:
    records = load_records(paper_runs)
    assert {(r["run"]["method"], r["run"]["profile"]) for r in records} == {(m, "paper") for m in METHODS}
    for record in records:
        config = record["run"]["config"]
        assert config["recipe"]["version"] == 1
        assert set(config["recipe"]["sources"]) >= {"training.learning_rate", "training.epochs"}
    notebook = next(r for r in records if r["run"]["method"] == "propulsion_paper")["run"]["config"]
    assert notebook["training"]["best_by"] == "loss"
    assert (notebook["training"]["schedule"], notebook["method"]["degree"]) == ("cosine", 55)

    scores = [
        100 * max(p["scores"]["accuracy"] for p in r["eval"]["history"])
        for r in records
        if r["run"]["method"] == "propulsion_paper"
    ]
    true = sum(scores) / 3
    wrong = true - 40 if true > 60 else true + 40
    margin = 1 + 5 * (max(scores) - min(scores))
    assert margin < 20
    rows = [row(f"{true}"), row(f"{wrong}"), row("50", method="lora"), row("", method="ia3")]
    refused = claims.ledger([], rows, records)
    assert {e.verdict for e in refused} == {NOT_RUN, NOT_AVAILABLE}  # random weights prove nothing
    entries = claims.ledger([], rows, records, refuse=lambda _: None, margin=margin)
    assert [e.verdict for e in entries] == [HOLDS, FAILS, NOT_RUN, NOT_AVAILABLE]
    assert entries[0].n == 3
    assert "1 of 3 seeds" in entries[2].conditions
    assert entries[3].ours  # measured, with nothing to compare it with


def test_the_ledger_is_written_in_three_formats_without_a_network(
    paper_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    assert script.main([f"results_dir={paper_runs}", f"out={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert f"{len(METHODS) + 2} of {len(METHODS) + 2} records do not count" in out
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    for verdict in claims.VERDICTS:
        assert f"**{verdict}:**" in text
    assert "| holds only as counted |" in text
    latex = (tmp_path / "claims.tex").read_text(encoding="utf-8")
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 2
    with (tmp_path / "claims.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    known = len(references.read_claims(REFERENCE / "claims.csv")) + len(references.read_scores(REFERENCE / "glue.csv"))
    assert len(rows) == known
    again = tmp_path / "again"
    assert script.main([f"results_dir={paper_runs}", f"out={again}"]) == 0
    assert (again / "claims.md").read_bytes() == (tmp_path / "claims.md").read_bytes()


# Kernels


def kernel_record(
    task: str, seed: int, ours: float, directions: float, subset: float, rows: int = 40
) -> dict[str, Any]:
    controls = {"directions": directions, "subset": subset}
    facts = {
        "adapter": {"alignment": ours},
        "controls": {name: {"adapter": {"alignment": value}} for name, value in controls.items()},
    }
    run = {"task": task, "backbone": "minilm", "seed": seed, "data": {"source": "local"}, "weights": {"id": "x"}}
    counted = {"train": rows, "eval": 24, "outputs": 2}
    return {"run": {**run, "config": {"seed": seed}}, "rows": counted, "subjects": {"propulsion": facts}}


@pytest.mark.parametrize(
    ("alignments", "expected"),
    [
        ([(0.95, 0.90, 0.80)] * 4, HOLDS),
        ([(0.95, 0.99, 0.80)] * 4, claims.AS_AT_RANDOM),
        ([(0.95, 0.90, 0.96)] * 4, claims.AS_AT_RANDOM),
        ([(0.95, 0.99, 0.80)] * 3 + [(0.95, 0.90, 0.80)], claims.UNDECIDED),
        ([(0.95, 0.90, 0.80)] * 3 + [(0.85, 0.80, 0.80)], claims.UNDECIDED),
        ([(0.85, 0.80, 0.80)] * 4, FAILS),
        ([(0.95, 0.90, 0.80)] * 3, NOT_RUN),
    ],
)
def test_kernels_are_judged_beside_both_controls(alignments: list[tuple[float, float, float]], expected: str) -> None:
    tasks = ("sst2", "rte", "cola", "stsb")
    found = [
        kernel_record(task, seed, *values) for task, values in zip(tasks, alignments, strict=False) for seed in range(3)
    ]
    (claim,) = [row for row in references.read_claims(REFERENCE / "claims.csv") if row["kind"] == "kernel"]
    entry = claims.judge_kernel(claim, found)
    assert entry.verdict == expected
    assert entry.n == 3 and "not the paper's backbone" in entry.conditions
    assert f"SST-2 {alignments[0][0]:.3f} (random directions {alignments[0][1]:.3f}" in entry.ours
    assert claims.judge_kernel(claim, found[1:]).verdict == NOT_RUN  # two seeds of one task


def test_two_result_sets_are_not_three_seeds() -> None:
    """Seed 0 on two numbers of rows, as two result sets may have it, is neither two seeds nor one mean."""
    (claim,) = [row for row in references.read_claims(REFERENCE / "claims.csv") if row["kind"] == "kernel"]
    tasks = ("sst2", "rte", "cola", "stsb")
    two = [kernel_record(task, seed, 0.95, 0.90, 0.80) for task in tasks for seed in range(2)]
    other = [kernel_record(task, 0, 0.5, 0.90, 0.80, rows=100) for task in tasks]
    entry = claims.judge_kernel(claim, [*other, *two])
    assert (entry.verdict, entry.n, entry.value) == (NOT_RUN, 2, pytest.approx(0.95))
    assert "4 kernels of other conditions left out" in entry.conditions
    assert "left out;" not in claims.judge_kernel(claim, two).conditions


def test_the_committed_verdict_on_the_kernels_stays() -> None:
    from propulsion.harness.ntk import records as kernels

    (claim,) = [row for row in references.read_claims(REFERENCE / "claims.csv") if row["kind"] == "kernel"]
    entry = claims.judge_kernel(claim, kernels.read(ROOT / "results" / "ntk"))
    assert (entry.verdict, entry.n) == (claims.AS_AT_RANDOM, 3)
    assert "other conditions" not in entry.conditions


def test_without_kernels_the_claim_says_what_would_decide_it() -> None:
    (claim,) = [row for row in references.read_claims(REFERENCE / "claims.csv") if row["kind"] == "kernel"]
    entry = claims.judge_kernel(claim, [])
    assert entry.verdict == NOT_RUN and "make ntk" in entry.conditions


def test_a_folder_without_records_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([f"results_dir={tmp_path / 'papper'}"]) == 2
    assert "papper holds no records: name a folder with runs/ or kernels/" in capsys.readouterr().err
    assert not (tmp_path / "papper").exists()
