"""Ablations from records: which run belongs where, tables by hand, steps to a score, the command on a toy backbone."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from propulsion.harness.ablations import convergence, figures, report, tables
from propulsion.harness.ablations.axes import AXES, BASE, ablations, is_base, setting
from propulsion.harness.errors import UserError
from propulsion.harness.figures import style
from propulsion.harness.record import sealed
from scripts import ablations as command
from tests.conftest import ROOT, compose_settings, names
from tests.synthetic import template

GRIDS = [name.removeprefix(command.PREFIX) for name in names("experiment") if name.startswith(command.PREFIX)]


def run(key: str, score: float, seed: int = 0, task: str = "sst2", **varied: Any) -> dict[str, Any]:
    """A record of the base cell with some settings changed, `method__degree=5`."""
    record = copy.deepcopy(template())
    config = record["run"]["config"]
    record["key"] = key.ljust(16, "0")
    record["run"] |= {"task": task, "seed": seed, "method": "propulsion", "profile": "ablations"}
    config["seed"] = seed
    config["task"]["name"] = task
    config["method"] |= {"name": "propulsion", "degree": 15, "head": "trained", "learning_rate": 1e-3}
    config["method"]["peft"] = {"peft_type": "PROPULSION", "target_modules": "all", "degree": 15}
    config["training"] |= {"learning_rate": 1e-3, "weight_decay": 0.0, "decay_vectors": False}
    for path, value in varied.items():
        *parents, last = path.split("__")
        node = config
        for name in parents:
            node = node[name]
        node[last] = value
    config["method"]["peft"]["degree"] = config["method"]["degree"]
    primary = record["eval"]["primary"] = "accuracy"
    record["eval"]["last"] = {primary: score}
    return record


def test_the_base_is_the_base_cell_of_the_grids() -> None:
    settings = compose_settings("experiment=ablation", "task=sst2")
    record = {"run": {"config": settings.config, "method": settings.method.name}}
    assert is_base(record)
    assert settings.training.learning_rate == settings.method.learning_rate
    assert settings.method.name == "propulsion" and settings.profile == "ablations"


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_varies_what_its_axis_says(grid: str) -> None:
    from hydra import compose, initialize_config_dir

    from propulsion.harness.settings import read_settings

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"experiment=ablation_{grid}", "task=sst2"], return_hydra_config=True)
        params = dict(config.hydra.sweeper.params)
        first = [f"{key}={str(values).split(',')[0]}" for key, values in params.items()]
        settings = read_settings(compose("config", [f"experiment=ablation_{grid}", "task=sst2", *first]))
    assert grid in command.GRIDS
    if grid == "convergence":
        assert set(params) == {"method"} and settings.training.eval_steps == 10
        assert settings.training.fast_path == "off" and settings.sweep.pack == "off"
        return
    axis = next(axis for axis in AXES if axis.name == grid.replace("_", "-"))
    assert set(params) <= set(axis.keys) | {"method.degree"}
    assert axis.level({"run": {"config": settings.config}}) is not None


def test_the_rate_of_the_second_degree_grid_keeps_the_product() -> None:
    for degree in (1, 5, 15, 25, 35, 55):
        settings = compose_settings("experiment=ablation_degree_rate", "task=sst2", f"method.degree={degree}")
        assert settings.training.learning_rate * degree == pytest.approx(0.015, rel=1e-5)
        assert settings.method.peft["degree"] == degree
    assert compose_settings("experiment=ablation_degree_rate", "task=sst2").training.learning_rate == 1e-3


def test_each_run_belongs_to_the_axes_that_it_varies() -> None:
    records = [
        run("a", 0.80),
        run("b", 0.70, method__degree=5),
        run("c", 0.75, method__degree=5, training__learning_rate=3e-3),
        run("d", 0.60, method__peft={"peft_type": "PROPULSION", "target_modules": "mlp"}),
        run("e", 0.65, method__num_vectors=2, method__pooling="max"),
        run("f", 0.66, method__init_spread=0.01),
        run("g", 0.50, method__head="frozen"),
        run("h", 0.55, training__weight_decay=0.1, training__decay_vectors=True),
        run("i", 0.10, method__degree=5, method__head="frozen"),  # two things at once: in no ablation
    ]
    found = {each.axis.name: each for each in ablations(records)}
    keys = {
        name: ["".join(r["key"][0] for r in own) for _, own in each.levels] for name, each in found.items()
    }  # level by level
    assert keys == {
        "degree": ["b", "a"],
        "degree-rate": ["c", "a"],
        "position": ["d", "a"],
        "vectors": ["a", "e", "f"],
        "init": ["a", "f"],
        "head": ["a", "g"],
        "decay": ["a", "h"],
    }
    assert all(each.base in [level for level, _ in each.levels] for each in found.values())
    assert {each.axis.label(each.base) for each in found.values()} == {
        *("15", "all", "1 (all at 1)", "1", "trained", "none"),
    }


def test_runs_under_other_conditions_are_left_out_and_counted_and_doubles_are_refused() -> None:
    records = [run("a", 0.8), run("b", 0.7, method__degree=5), run("c", 0.9, training__max_steps=7)]
    (found, *_) = ablations(records)
    assert found.left_out == 1 and len(found.levels) == 2
    assert "1 runs under other conditions are left out" in tables.said(tables.scores(found))
    with pytest.raises(UserError, match="the same cell and seed twice"):
        ablations([*records, run("d", 0.6, method__degree=5)])


def test_a_setting_that_is_newer_than_the_record_has_the_bases_value() -> None:
    record = run("a", 0.8)
    for name in ("num_vectors", "pooling", "init_spread"):
        record["run"]["config"]["method"].pop(name, None)
    assert is_base(record) and setting(record, "method.pooling") == BASE["method.pooling"]


def test_layers_that_are_given_as_a_list_are_a_level() -> None:
    peft = {"peft_type": "PROPULSION", "target_modules": ["query", "key"]}
    records = [run("a", 0.8), run("b", 0.7, method__peft=peft), run("c", 0.6, method__degree=5)]
    found = {each.axis.name: tables.sheet(tables.scores(each)) for each in ablations(records)}
    assert [row[0] for row in found["position"].rows] == ["all (base)", "query, key"]
    assert [row[0] for row in found["degree"].rows] == ["5", "15 (base)"]


def test_the_table_by_hand() -> None:
    records = [
        run(f"{task}{seed}{degree}", score + 0.01 * seed, seed, task, method__degree=degree)
        for task, offset in (("sst2", 0.0), ("rte", -0.2))
        for seed in range(3)
        for degree, score in ((1, 0.6 + offset), (15, 0.8 + offset), (55, 0.7 + offset))
    ]
    (ablation,) = ablations(records)
    found = tables.scores(ablation)
    sheet = tables.sheet(found)
    assert [row[0] for row in sheet.rows] == ["1", "15 (base)", "55"]
    assert sheet.header[4:6] == ("SST-2 Acc", "RTE Acc")
    assert sheet.rows[0][4:] == ("61.0 ± 1.0", "41.0 ± 1.0", "51.0", "-20.0")
    assert sheet.rows[1][4:] == ("81.0 ± 1.0", "61.0 ± 1.0", "71.0", "+0.0")
    assert "Best 15, worst 1: 20.0 points apart" in sheet.legend and "is 1.0 on average" in sheet.legend
    blocks = [[0.6 + o + 0.01 * s, 0.8 + o + 0.01 * s, 0.7 + o + 0.01 * s] for o in (0, -0.2) for s in range(3)]
    assert tables.friedman(found) == pytest.approx(stats.friedmanchisquare(*zip(*blocks, strict=True)).pvalue)
    assert tables.friedman(tables.scores(ablations(records[:6])[0])) is None  # too few blocks
    rows = tables.csv_rows(found)
    assert rows[0]["seeds"] == "0:0.6 1:0.61 2:0.62" and rows[0]["mean"] == pytest.approx(0.61)


def test_without_a_run_of_the_base_cell_no_level_is_the_base() -> None:
    records = [run("a", 0.7, method__degree=5), run("b", 0.6, method__degree=1)]
    (ablation,) = ablations(records)
    assert ablation.base is None
    found = tables.scores(ablation)
    assert [(row[0], row[-2], row[-1]) for row in tables.sheet(found).rows] == [("1", "60.0", "—"), ("5", "70.0", "—")]
    assert [row["base"] for row in tables.csv_rows(found)] == [False, False]


def test_a_figure_names_the_base_cell_only_where_there_is_one() -> None:
    def words(*records: dict[str, Any]) -> str:
        (ablation,) = ablations(list(records))
        with style.drawing():
            figure = figures.levels(tables.scores(ablation))
        return " ".join(text.get_text() for text in figure.texts)

    varied = [run("a", 0.8, method__head="frozen"), run("b", 0.7, method__head="wrapped")]
    assert "base cell" in words(*varied, run("c", 0.6)) and "base cell" not in words(*varied)


def test_failed_runs_are_named_and_the_mean_left_out() -> None:
    records = [run("a", 0.8), run("b", 0.7, method__degree=5), run("c", 0.6, 1, method__degree=5)]
    records[1] |= {"status": "failed"}
    records[1]["eval"] |= {"last": None}
    sheet = tables.sheet(tables.scores(ablations(records)[0]))
    assert sheet.rows[0][4] == "60.0, failed 1/2"


# ---------------------------------------------------------------- convergence


def curve(method: str, seed: int, scores: list[float], ms: float = 10.0, memory: int = 10**9) -> dict[str, Any]:
    record = run(f"{method}{seed}", scores[-1], seed)
    record["run"]["method"] = record["run"]["config"]["method"]["name"] = method
    record["eval"]["history"] = [
        {"step": 10 * i, "epoch": i, "loss": 0.1, "train_loss": 0.1, "seconds": float(i), "scores": {"accuracy": s}}
        for i, s in enumerate(scores, 1)
    ]
    record["cost"] |= {"steps": 50, "train_seconds": ms * 50 / 1000, "peak_memory_bytes": memory}
    return record


def test_steps_to_a_score_by_hand() -> None:
    records = [
        curve("lora", 0, [0.5, 0.7, 0.91, 0.95, 0.96], ms=10, memory=2 * 10**9),
        curve("lora", 1, [0.5, 0.6, 0.7, 0.8, 0.85]),
        curve("propulsion", 0, [0.5, 0.92, 0.93, 0.99, 1.0], ms=20),
        curve("propulsion", 1, [0.91, 0.6, 0.7, 0.8, 0.9], ms=40, memory=3 * 10**9),
    ]
    sheet = convergence.sheet_of(records, "minilm", "sst2")
    assert sheet is not None
    assert sheet.header == (
        *("method", "adapter", "seeds", "best Acc", "steps to 0.90", "to 90% of best", "to 95% of best"),
        *("ms/step", "memory GB"),
    )
    lora, propulsion = sheet.rows
    assert lora[0] == "lora" and lora[2:] == ("2", "90.5", "30 (1/2)", "40 (2/2)", "40 (1/2)", "10.0", "2.00")
    assert propulsion[2:] == ("2", "95.5", "15 (2/2)", "15 (2/2)", "25 (2/2)", "30.0", "3.00")
    assert "every 10 steps" in sheet.legend
    never = convergence.sheet_of([curve("lora", 0, [0.5] * 5), curve("head", 0, [0.6] * 5)], "minilm", "sst2")
    assert never is not None and [row[4] for row in never.rows] == ["never", "never"]


def test_runs_that_were_seldom_evaluated_say_nothing_about_steps() -> None:
    records = [curve("lora", 0, [0.5, 0.9]), curve("head", 0, [0.5, 0.9])]
    assert convergence.sheet_of(records, "minilm", "sst2") is None


# ---------------------------------------------------------------- the command

TOY = [
    *("backbone.weights=random", "backbone.architecture.vocab_size=264", "backbone.architecture.hidden_size=32"),
    *("backbone.architecture.num_hidden_layers=2", "backbone.architecture.num_attention_heads=2"),
    *("backbone.architecture.intermediate_size=64", "data.train_rows=32", "data.eval_rows=16"),
    *("training.max_steps=2", "training.evaluations=1"),
]


def test_make_ablations_runs_the_base_and_its_grid_and_writes_the_report(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["grids=degree_rate", "tasks=sst2", f"results_dir={tmp_path}", *TOY]
    assert command.main(words) == 0
    printed = capfd.readouterr().out
    assert "sweep of 6 cells: 5 done, 1 done before" in printed  # degree 15 is the base
    assert "Degree at one product of degree and learning rate" in printed
    document = (tmp_path / "tables" / "ablations.md").read_text(encoding="utf-8")
    assert "15 (base)" in document and "generated" in document
    with (tmp_path / "tables" / "ablations.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["level"] for row in rows] == ["1", "5", "15", "25", "35", "55"]
    for row in rows:
        record = json.loads(next(tmp_path.glob(f"runs/*/*/*/{row['keys']}.json")).read_text())
        assert float(row["mean"]) == record["eval"]["last"]["accuracy"]
        assert record["run"]["config"]["training"]["learning_rate"] == pytest.approx(
            0.015 / int(row["level"]), rel=1e-5
        )
    assert (tmp_path / "figures" / "ablation-minilm-degree.png").stat().st_size > 5000
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".md", ".csv", ".svg", ".tex")}
    assert command.main(["report=only", f"results_dir={tmp_path}"]) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_the_sweeps_are_as_they_could_be_typed() -> None:
    request = command.parse(["grids=degree,convergence", "seeds=0,1", "data_dir=x", "training.max_steps=9"])
    lines = [" ".join(line[3:]) for line in command.sweeps(request)]
    shared = (
        "task=sst2 backbone=minilm seed=0,1 data=local data.dir=x results_dir=results/ablations-local "
        "training.max_steps=9"
    )
    assert lines == [
        f"-m experiment={name} {shared}" for name in ("ablation", "ablation_degree", "ablation_convergence")
    ]
    assert [line[4] for line in command.sweeps(command.parse(["grids=convergence"]))] == [
        "experiment=ablation_convergence"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grids=degre"], "unknown grid 'degre': did you mean degree"),
        (["tasks=nope"], "unknown task 'nope'"),
        (["report=maybe"], "unknown report 'maybe'"),
        (["report=only", "results_dir=/nonexistent"], "run `make ablations` first"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 2
    assert message in capsys.readouterr().err


def test_every_figure_of_an_ablation_is_drawn(tmp_path: Path) -> None:
    records = [run("a", 0.8), run("b", 0.7, method__degree=5), run("c", 0.75, method__head="frozen")]
    for record in records:
        path = tmp_path / "runs" / "sst2" / "minilm" / "propulsion" / f"{record['key']}.json"
        record["run"]["task"] = "sst2"
        record["run"]["backbone"] = "minilm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(sealed({k: v for k, v in record.items() if k != "digest"})))
    made, paths = report.write_report(tmp_path)
    assert len(made) == 2
    assert {path.name for path in paths if path.suffix == ".png"} == {
        *("ablation-minilm-degree.png", "ablation-minilm-head.png"),
    }
