"""The plan of a sweep: its cells as Hydra makes them, their state as the runner would find it, their cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from propulsion.harness import leases, planning, record, staleness
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import UserError
from propulsion.harness.leases import Lease
from propulsion.harness.settings import Settings
from propulsion.harness.sources import open_source
from scripts import plan as script
from scripts.reproduce import parse, sweep_command
from tests.conftest import compose_settings
from tests.task_files import write_official

PAPER = ("experiment=paper", "backbone=roberta_base", "task=rte")


def fake(settings: Settings, **changes: Any) -> dict[str, Any]:
    """A record of this cell, with a fingerprint of its own."""
    run = {
        **{"task": settings.task.name, "backbone": settings.backbone.name, "method": settings.method.name},
        **{"seed": settings.seed, "data": {"fingerprint": "hub:1"}},
    }
    key = record.cell_key(settings.config, "hub:1")
    made = {"key": key, "status": "success", "run": run, "cost": {"samples_per_second": 1000.0}}
    return {**made, "env": {"device": "NVIDIA H200"}, **changes}


def test_a_sweep_expands_into_hydras_jobs() -> None:
    words = ["experiment=paper", "seed=range(2)", "task=rte,mrpc", "method.peft.target_modules=[query,value]"]
    jobs = list(planning.expand(words))
    assert [job[1:3] for job in jobs] == [
        ["seed=0", "task=rte"],
        ["seed=0", "task=mrpc"],
        ["seed=1", "task=rte"],
        ["seed=1", "task=mrpc"],
    ]
    assert all(job[0] == words[0] and job[3] == words[3] for job in jobs)
    assert all(not o.is_sweep_override() for job in jobs for o in OverridesParser.create().parse_overrides(job))
    with pytest.raises(UserError, match=r"task=glob\(\*\): a plan needs the names"):
        list(planning.expand(["task=glob(*)"]))


def test_the_plan_is_of_the_command_that_reproduce_runs() -> None:
    words = sweep_command(parse(["tasks=rte", "methods=lora,head", "backbones=roberta_base", "seeds=0,1"]), "paper")
    cells = planning.settings_of(words[words.index("scripts.run") + 2 :])
    assert [(c.method.name, c.seed) for c in cells] == [("lora", 0), ("head", 0), ("lora", 1), ("head", 1)]
    assert {(c.profile, c.results_dir) for c in cells} == {("paper", "results/paper")}


def test_cells_of_several_seeds_are_those_composed_one_by_one() -> None:
    words = ["task=rte,cola", "backbone=roberta_base", "method=lora,propulsion", "training.epochs=3"]
    swept = planning.settings_of([*words, "seed=0,7,10"])
    alone = [planning.settings_of([*job, f"seed={seed}"])[0] for job in planning.expand(words) for seed in (0, 7, 10)]
    assert swept == alone and [cell.config for cell in swept] == [cell.config for cell in alone]
    with pytest.raises(UserError, match="seed"):
        planning.settings_of([*words, "seed=one"])


def test_states_are_those_the_runner_would_find() -> None:
    cells = [compose_settings(*PAPER, "method=lora", f"seed={seed}") for seed in range(5)]
    other = compose_settings(*PAPER, "method=lora", "seed=3", "training.learning_rate=0.5")
    records = [
        fake(cells[0]),
        fake(cells[1], status="failed"),
        fake(cells[2], status="diverged"),
        fake(other),  # the same cell with other settings is another run
    ]
    (line,) = planning.plan(cells, records, planning.Speeds(records))
    assert [cell.state for cell in line.cells] == ["done", "failed", "done", "to do", "to do"]
    assert [line.count(state) for state in ("done", "failed", "to do")] == [2, 1, 2]


def test_the_cost_is_steps_and_evaluations_at_the_speed_measured() -> None:
    settings = compose_settings(*PAPER, "method=propulsion_paper")
    steps = 78 * 30  # 2,490 rows in batches of 32
    rows = steps * 32 + 24 * 277 / planning.EVALUATION_SPEED  # an evaluation every 100 steps and at the end
    seconds, measured = planning.estimate(settings, planning.Speeds([]))
    assert (seconds, measured) == (pytest.approx(rows / planning.ASSUMED[True]["roberta_base"]), False)
    other = compose_settings("experiment=paper", "backbone=roberta_base", "task=mrpc", "method=lora")
    seconds, measured = planning.estimate(settings, planning.Speeds([fake(other)]))
    assert (seconds, measured) == (pytest.approx(rows / 1000), True)
    own = [fake(other), fake(settings, cost={"samples_per_second": 100.0})]
    assert planning.estimate(settings, planning.Speeds(own))[0] == pytest.approx(rows / 100)
    failed = [fake(other, status="failed"), fake(other, cost={"samples_per_second": None})]
    assert planning.estimate(settings, planning.Speeds(failed))[1] is False


def test_cuts_and_unknown_rows() -> None:
    speeds = planning.Speeds([])
    cut = compose_settings(*PAPER, "method=lora", "training.max_steps=10", "training.max_eval_rows=30")
    assert planning.estimate(cut, speeds)[0] == pytest.approx((10 * 32 + 10 * 10) / 600)
    settings = compose_settings(*PAPER, "method=lora")
    unknown = dataclasses.replace(settings, task=dataclasses.replace(settings.task, name="new"))
    assert planning.estimate(unknown, speeds) == (None, False)
    tiny = compose_settings("experiment=tiny", "task=rte")
    assert planning.estimate(tiny, speeds)[0] == pytest.approx((4 * 8 + 2 * 32 / 3) / 4000)
    assert planning.estimate(tiny, planning.Speeds([], gpu=False))[0] == pytest.approx((32 + 64 / 3) / 150)
    mnli = compose_settings("experiment=tiny", "task=mnli")  # each of its two splits has the rows, and the cut
    assert planning.estimate(mnli, speeds)[0] == pytest.approx((4 * 8 + 2 * 64 / 3) / 4000)
    cut = compose_settings(*PAPER, "task=mnli", "method=lora", "training.max_steps=10", "training.max_eval_rows=30")
    assert planning.estimate(cut, speeds)[0] == pytest.approx((10 * 32 + 2 * 20) / 600)


def test_what_keeps_a_sweep_from_starting_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(planning.hub, "reachable", lambda: False)
    monkeypatch.setattr(planning, "try_to_load_from_cache", lambda *_, **__: None)
    words = ["profile=paper", "tasks=rte", "methods=lora", "backbones=roberta_large", f"data_dir={tmp_path}"]
    assert script.main([*words, f"results_dir={tmp_path / 'none'}"]) == 0
    out = capsys.readouterr().out
    assert "cannot start here: the paper profile needs a CUDA GPU" in out
    assert "cannot start here: backbone roberta_large: the hub cannot be reached" in out
    assert "cannot start here: data of rte: " in out
    assert "| roberta_large | lora" in out
    assert "1 published" in out
    assert "assumed, not measured: roberta_large 200" in out
    assert not (tmp_path / "none").exists()


def test_a_sweep_that_can_start_has_no_obstacle() -> None:
    assert planning.obstacles([compose_settings("experiment=tiny")], gpu=False) == []


def test_a_leased_cell_is_running(tmp_path: Path) -> None:
    cells = [compose_settings("experiment=tiny", f"seed={seed}") for seed in (0, 1)]
    fingerprint = open_source(cells[0].task, cells[0].data).fingerprint()
    key = record.cell_key(cells[1].config, fingerprint)
    with Lease(tmp_path / leases.FOLDER, key, {"fingerprint": fingerprint}):
        (line,) = planning.plan(cells, [], planning.Speeds([]), leases.held(tmp_path))
    assert [cell.state for cell in line.cells] == ["to do", "running"]


def test_a_stale_record_is_named_with_what_changed(tmp_path: Path) -> None:
    write_official(tmp_path / "glue", "rte")
    base = ("experiment=tiny", "data=local", f"data.dir={tmp_path}", "task=rte")
    settings = compose_settings(*base)
    entry, _ = run_cell(dataclasses.replace(settings, results_dir=str(tmp_path / "out")))

    def stale(*overrides: str, records: tuple[dict[str, Any], ...] = (entry,)) -> list[str]:
        return staleness.stale([compose_settings(*base, *overrides)], list(records), staleness.Fingerprints())

    assert stale() == []
    assert stale("seed=1") == []  # another cell, and no record of its name
    name = f"rte/minilm/propulsion seed 0: {entry['key']} is stale: "
    assert stale("task.version=9") == [f"{name}task.version {settings.task.version} -> 9"]
    assert stale("method.degree=5") == [f"{name}method.degree 15 -> 5, method.peft.degree 15 -> 5"]
    older = {**entry, "key": "0" * 16, "run": {**entry["run"], "harness": 0}}
    assert stale(records=(older,)) == [f"rte/minilm/propulsion seed 0: {'0' * 16} is stale: code version 0 -> 1"]
    both = [compose_settings(*base, f"training.learning_rate={rate}") for rate in ("1e-3", "2e-3")]
    assert staleness.stale([settings, *both], [entry], staleness.Fingerprints()) == []
    file = tmp_path / "glue" / "RTE" / "dev.tsv"
    file.write_text(file.read_text().replace("unbalanced", "other"))
    assert stale() == [f"{name}the data changed"]
    (line,) = planning.plan([settings], [entry], planning.Speeds([]))
    assert [cell.state for cell in line.cells] == ["to do"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["watch=soon"], "watch=soon: give whole seconds"),
        (["profile=papper"], "unknown profile 'papper': did you mean paper"),
        (["profile=paper", "tasks=rtee"], "unknown task 'rtee': did you mean rte"),
        (["profile=paper", "methods=lara", "tasks=rte"], "unknown method 'lara': did you mean lora"),
        (["profile=paper", "tasks=rte", "training.epoch=1"], "epoch"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(words) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert "\n" not in err
