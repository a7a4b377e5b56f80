"""Tasks, backbones and methods of one's own: the pages of `docs/` word for word, and what bad input says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from baselines import apply_method
from propulsion.harness import configs, planning, sweeps
from propulsion.harness.backbones import build_empty
from propulsion.harness.errors import UserError
from propulsion.harness.settings import DataSpec, LocalSpec, MethodSpec, TaskSpec
from propulsion.harness.sources import open_source
from scripts import reproduce, search_rates
from tests.conftest import ROOT, compose_settings

BLOCK = re.compile(r"(?:^`~/(?P<path>[^`]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.M | re.S)


def follow(page: str, home: Path) -> str:
    """Write the page's files and run its commands, in order, with another home. Returns what the commands print."""
    said = ""
    environment = {**os.environ, "HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PROPULSION_CACHE": ""}
    for block in BLOCK.finditer((ROOT / "docs" / page).read_text(encoding="utf-8")):
        if block["path"]:
            path = home / block["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block["code"], encoding="utf-8")
            continue
        assert block["kind"] == "sh", "a block that is no command needs its path above it"
        done = subprocess.run(
            ["bash", "-e", "-c", block["code"]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout
        said += done.stdout
    return said


def records(home: Path) -> dict[str, Any]:
    found = [json.loads(path.read_text()) for path in (home / "mine" / "results" / "runs").rglob("*.json")]
    assert all(entry["status"] == "success" for entry in found)
    return {f"{entry['run'][what]}": entry for what in ("task", "method", "backbone") for entry in found}


def test_the_page_on_tasks(tmp_path: Path) -> None:
    said = follow("adding-a-task.md", tmp_path)
    entry = records(tmp_path)["shouts"]
    assert (entry["run"]["data"]["train_rows"], entry["run"]["data"]["eval_rows"]) == (64, 32)
    assert entry["eval"]["last"].keys() == {"accuracy", "f1"}
    assert "shouts Acc" in said


def test_the_page_on_methods(tmp_path: Path) -> None:
    kept = [ROOT / "results" / name for name in ("methods/methods.md", "params/params.md")]
    before = [file.read_bytes() for file in kept]
    said = follow("adding-a-method.md", tmp_path)
    found = records(tmp_path)
    assert found["lora_r2"]["params"]["adapter"] == 2 * 3 * 2 * 2 * 32  # layers, matrices, A and B, r, width
    assert found["norm_weights"]["params"]["adapter"] == 5 * 32
    assert found["my_tuner"]["params"]["adapter"] == 2 * 2 * 32
    assert re.search(r"^\| norm_weights +\|.*\| +yes +\| +yes +\|", said, re.M)  # tried by scripts.methods
    assert re.search(rf"^\| lora_r2 +\|.* {12 * 3 * 2 * 2 * 768:,} ", said, re.M)  # counted by scripts.params
    assert (tmp_path / "mine" / "beside" / "index.html").is_file()
    assert [file.read_bytes() for file in kept] == before  # a part is not written over the whole


def test_the_page_on_backbones(tmp_path: Path) -> None:
    said = follow("adding-a-backbone.md", tmp_path)
    assert '"label": ' in said.splitlines()[-1]
    weights = records(tmp_path)["small"]["run"]["weights"]
    assert weights["id"] == "model"
    assert len(weights["sha256"]) == 64


# Rows

ROWS = [{"utterance": "a dog, ran", "mood": "calm"}, {"utterance": 'he said "no"\nand left', "mood": "loud"}]


def task(**local: Any) -> TaskSpec:
    known = {
        "folder": ".",
        "files": {"train": "t.csv", "dev": "t.csv"},
        "columns": {"text": "utterance", "label": "mood"},
    }
    return TaskSpec(
        name="own", version=1, suite="mine", labels=["calm", "loud"], text=["text"], metrics=["accuracy"],
        primary="accuracy", local=LocalSpec(**{**known, **local}),
    )  # fmt: skip


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    path = folder / name
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def load(folder: Path, spec: TaskSpec) -> list[dict[str, Any]]:
    return open_source(spec, DataSpec(source="local", dir=str(folder))).load().train.to_list()


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_three_types_give_the_same_rows(tmp_path: Path, ending: str) -> None:
    write(tmp_path, f"t.{ending}", ROWS)
    files = {"train": f"t.{ending}", "dev": f"t.{ending}"}
    assert load(tmp_path, task(files=files)) == [
        {"text": "a dog, ran", "label": 0, "idx": 0},
        {"text": 'he said "no"\nand left', "label": 1, "idx": 1},
    ]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_numbers_two_texts_and_other_words_for_labels(tmp_path: Path, ending: str) -> None:
    write(tmp_path, f"t.{ending}", [{"a": "x", "b": "y", "score": 2.5, "kind": 1}])
    files = {"train": f"t.{ending}", "dev": f"t.{ending}"}
    number = task(files=files, columns={"label": "score"})
    number.kind, number.labels, number.text = "regression", [], ["a", "b"]
    assert load(tmp_path, number) == [{"a": "x", "b": "y", "label": 2.5, "idx": 0}]
    words = task(files=files, columns={"text": "a", "label": "kind"}, labels={"0": "calm", "1": "loud"})
    assert load(tmp_path, words) == [{"text": "x", "label": 1, "idx": 0}]


def test_a_test_file_needs_no_labels(tmp_path: Path) -> None:
    write(tmp_path, "t.csv", ROWS)
    write(tmp_path, "test.csv", [{"utterance": "what?"}])
    spec = task(files={"train": "t.csv", "dev": "t.csv", "test": "test.csv"})
    source = open_source(spec, DataSpec(source="local", dir=str(tmp_path)))
    assert source.load_tests()[""].to_list() == [{"text": "what?", "label": -1, "idx": 0}]


CASES = {
    "a column that is not there": (
        "t.csv",
        "utterance,mod\na,calm\n",
        r"no column 'mood' for 'label'; it has utterance, mod",
    ),
    "a label that is not listed": (
        "t.csv",
        "utterance,mood\na,calm\nb,wild\n",
        "line 3: label 'wild' is none of calm, loud",
    ),
    "no label": ("t.csv", "utterance,mood\na,\n", "line 2: no label"),
    "no text": ("t.csv", "utterance,mood\n,calm\n", "line 2: no 'text'"),
    "a cell too many": ("t.csv", "utterance,mood\na,b,calm\n", "line 2: 3 cells where the header has 2"),
    "a quote that stays open": ("t.csv", 'utterance,mood\n"a,calm\n', "line 2: unexpected end of data"),
    "no rows": ("t.csv", "utterance,mood\n", "the file has no rows"),
    "an empty file": ("t.csv", "", "the file is empty; its first line has to name the columns"),
    "no parquet": ("t.parquet", "PAR1 not at all", "no parquet file that can be read"),
    "another type": ("t.xlsx", "PK", r"'\.xlsx' files are not read; use \.csv, \.jsonl, \.parquet"),
    "no JSON": ("t.jsonl", "{'utterance': 1}\n", "line 1: no JSON"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_rows_are_one_line(tmp_path: Path, case: str) -> None:
    name, content, message = CASES[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path, task(files={"train": name, "dev": name}))
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"utterance,mood\n\xff,calm\n")
    with pytest.raises(UserError, match=r"t\.csv: cannot be read \(byte 15 is not UTF-8\)"):
        load(tmp_path, task())


def test_a_column_that_the_task_has_not_is_named(tmp_path: Path) -> None:
    write(tmp_path, "t.csv", ROWS)
    with pytest.raises(UserError, match=r"local\.columns names sentence, but the task's columns are text, label"):
        load(tmp_path, task(columns={"sentence": "utterance", "label": "mood"}))


# Folders


def own_file(folder: Path, name: str, text: str) -> list[str]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return ["--config-dir", str(folder), "task=own"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("task/rte.yaml", "name: rte\n", r"task/rte\.yaml: conf/task/rte\.yaml has that name; give yours another"),
        ("method/mine.yaml", "name: lora\n", r"it says name: lora; write name: mine, as the file is called"),
        ("task/own.yaml", "name: [\n", r"own\.yaml: no YAML"),
        ("method/mine.yaml", "name: mine\nhead: a\nhead: b\n", r"mine\.yaml: no YAML .*head"),
        ("experiment/mine.yaml", "a:\n\t- b\n", r"mine\.yaml: no YAML"),
        ("recipe/lora/minilm/own.yaml", "- a\n", r"own\.yaml: no YAML of keys and values"),
    ],
)
def test_a_bad_file_is_refused_before_anything_runs(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configs.take(own_file(tmp_path, name, text))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config-dir .*nowhere is not a folder"):
        configs.take([f"--config-dir={tmp_path / 'nowhere'}"])


def test_a_plan_finds_what_is_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = own_file(
        tmp_path, "method/lora_r2.yaml", (ROOT / "conf/method/lora.yaml").read_text().replace("lora\n", "lora_r2\n", 1)
    )
    (settings,) = planning.settings_of([*words[:2], "method=lora_r2", "experiment=tiny"])
    assert settings.method.name == "lora_r2"
    monkeypatch.setattr(configs, "_outside", None)
    configs.take(words[:2])  # as the runner composes again what ran elsewhere
    assert planning.settings_of(["method=lora_r2", "experiment=tiny"])[0].method.name == "lora_r2"


@pytest.fixture
def own_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder with LoRA under another name, as `--config-dir` words."""
    monkeypatch.setattr(configs, "_outside", None)  # put back at the end
    text = (ROOT / "conf/method/lora.yaml").read_text().replace("lora\n", "lora_r2\n", 1)
    return own_file(tmp_path, "method/lora_r2.yaml", text)[:2]


def test_a_recipe_lies_where_its_options_do_and_runs_follow_it(own_lora: list[str]) -> None:
    assert configs.take([*own_lora, "x=y"]) == ["x=y"] and configs.flag() == own_lora
    own = Path(own_lora[1])
    assert configs.owner(("method", "lora"), ("task", "rte")) == configs.CONF
    assert configs.owner(("method", "lora_r2"), ("task", "rte")) == own
    recipe = own / "recipe" / "lora_r2" / "minilm" / "rte.yaml"
    recipe.parent.mkdir(parents=True)
    entry = {
        "run": {"data": {"train_rows": 8, "eval_rows": 4}, "seed": 0},
        "cost": {"steps": 2},
    }
    recipe.write_text(search_rates.recipe_text({0.125: 0.5}, ["sst2"], entry))
    (settings,) = planning.settings_of(["task=rte", "backbone=minilm", "method=lora_r2"])
    assert settings.training.learning_rate == 0.125 and settings.recipe is not None
    configs.take([])
    with pytest.raises(UserError, match="unknown method 'lora_r2'"):
        configs.file("method", "lora_r2")


def test_a_sweeps_summary_names_the_folder_outside(own_lora: list[str]) -> None:
    configs.take(own_lora)
    command = sweeps.Note(0, sweeps.FAILED, words=["method=lora_r2"]).command
    assert command.split() == ["python", "-m", "scripts.run", *own_lora, "method=lora_r2"]


def test_all_methods_are_those_outside_too(own_lora: list[str]) -> None:
    configs.take(own_lora)
    request = reproduce.parse(["methods=all", *configs.flag()])
    command = reproduce.sweep_command(request, "mini")
    (methods,) = [word for word in command if word.startswith("method=")]
    assert {"lora", "lora_r2"} <= set(methods.removeprefix("method=").split(","))
    assert [word for word in command if word in own_lora] == own_lora


# Modules


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"module": "no_such_module"}, r"method\.module=no_such_module cannot be imported \(No module named"),
        (
            {"module": "broken_module"},
            r"method\.module=broken_module cannot be imported \(name 'nothing' is not defined\)",
        ),
        ({"module": "json"}, r"the module json has no function rule\(name\)"),
        ({"module": ""}, r"apply: rule needs method\.module"),
        ({"module": "idle_module"}, "has no parameters that its rule names to train"),
    ],
)
def test_bad_modules_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: Any, message: str) -> None:
    (tmp_path / "broken_module.py").write_text("nothing\n")
    (tmp_path / "idle_module.py").write_text("def rule(name):\n    return False\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = compose_settings("experiment=tiny")
    method = MethodSpec(name="m", apply="rule", learning_rate=1e-3, **fields)
    with pytest.raises(UserError, match=message) as raised:
        apply_method(build_empty(settings.backbone, settings.task), method, settings.backbone)
    assert "\n" not in str(raised.value)
