"""Recipes: each fits the settings, each value names its source, the paper's own are the notebooks'."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from propulsion.harness import params, planning, recipes, record
from propulsion.harness.errors import UserError
from propulsion.harness.settings import MethodSpec, TrainingSpec
from tests.conftest import compose_settings

GRID = list(recipes.grid())
NOTEBOOKS = {  # the authors' notebooks: learning rate, epochs, evaluation steps, weight decay
    "rte": (2e-4, 30, 100, 0.0),
    "cola": (1e-4, 7, 100, 0.0),
    "mnli": (1e-4, 3, 500, 5e-4),
    "mrpc": (1e-4, 10, 100, 0.01),
    "qnli": (1e-4, 3, 100, 0.0),
    "qqp": (1e-4, 2, 1000, 0.0),
    "stsb": (2e-5, 10, 100, 0.0),
}
DEGREES = {"sst2": 15, "qqp": 15, "rte": 15, "qnli": 55, "mrpc": 55, "cola": 20, "stsb": 20, "mnli": 20}


def recipe(method: str, backbone: str, task: str) -> dict[str, Any]:
    return recipes.read(recipes.path(method, backbone, task))


def sources(method: str, backbone: str, task: str) -> dict[str, str]:
    return dict(recipe(method, backbone, task)["recipe"]["sources"])


def test_the_paper_grid_has_a_recipe_in_every_cell_and_no_other_file() -> None:
    found = {tuple(file.relative_to(recipes.FOLDER).with_suffix("").parts) for file in recipe_files()}
    assert {cell for cell in found if cell[1] in recipes.BACKBONES} >= set(GRID)
    strays = {cell for cell in found if cell[1] in recipes.BACKBONES} - set(GRID)
    assert {method for method, _, _ in strays} <= {"propulsion_package"}


def recipe_files() -> list[Path]:
    return sorted(recipes.FOLDER.glob("*/*/*.yaml"))


@pytest.mark.parametrize("file", recipe_files(), ids=lambda f: "/".join(f.with_suffix("").parts[-3:]))
def test_a_recipe_sets_known_keys_and_each_has_a_source(file: Path) -> None:
    content = recipes.read(file)
    assert "# @package _global_" in file.read_text(encoding="utf-8").splitlines()
    assert set(content) <= {"training", "method", "recipe"}
    assert set(content["recipe"]) <= {"version", "sources", "notes"}
    assert content["recipe"]["version"] >= 1
    values = recipes.keys(content)
    assert set(content["recipe"]["sources"]) == set(values)
    OmegaConf.merge(OmegaConf.structured(TrainingSpec), content.get("training", {}))
    method = OmegaConf.merge(OmegaConf.structured(MethodSpec), content.get("method", {}))
    own = params.load_method(file.parts[-3])
    assert set(method.peft) <= set(own.peft)
    if "method.degree" in values:
        assert own.degree is not None
    if file.parts[-2] in recipes.BACKBONES:
        assert set(content["recipe"]["sources"].values()) <= set(recipes.SOURCES)


def test_the_cells_without_a_sourced_recipe_are_these() -> None:
    unsourced = {(m, b) for m, b, t in GRID if not recipes.sourced(sources(m, b, t))}
    assert unsourced == {
        ("ia3", "roberta_base"),
        ("ia3", "roberta_large"),
        ("bitfit", "roberta_large"),
        ("propulsion_paper", "roberta_large"),
    }
    for method, backbone in unsourced:  # whole rows, not single tasks
        assert not any(recipes.sourced(sources(method, backbone, task)) for task in recipes.TASKS)


@pytest.mark.parametrize("task", NOTEBOOKS)
def test_propulsion_paper_is_the_notebooks_protocol(task: str) -> None:
    settings = compose_settings("experiment=paper", f"task={task}", "backbone=roberta_base", "method=propulsion_paper")
    training, stsb = settings.training, task == "stsb"
    rate, epochs, every, decay = NOTEBOOKS[task]
    assert (training.learning_rate, training.epochs, training.eval_steps) == (rate, epochs, every)
    assert (training.weight_decay, training.max_length) == (decay, 512)
    assert training.batch_size == (16 if stsb else 32)
    assert (training.schedule, training.warmup_steps) == (("linear", 0) if stsb else ("cosine", 500))
    assert training.best_by == "loss"
    assert training.dropout == (0.0 if task in ("mnli", "qqp") else None)
    assert settings.method.head == ("wrapped" if stsb else "frozen")
    assert training.decay_vectors == (decay > 0)  # the notebooks' optimizer decays all that it trains
    assert settings.method.degree == settings.method.peft["degree"] == (35 if task == "mnli" else 55)
    assert (settings.profile, settings.data.source, settings.tracking.name) == ("paper", "hub", "wandb")


@pytest.mark.parametrize("task", recipes.TASKS)
@pytest.mark.parametrize("backbone", recipes.BACKBONES)
def test_the_degrees_are_the_papers(task: str, backbone: str) -> None:
    for method in ("propulsion", "propulsion_attn"):
        found = recipe(method, backbone, task)
        assert found["method"]["degree"] == DEGREES[task]
        assert "second-hand" in found["recipe"]["sources"]["method.degree"]


def test_published_settings_of_the_peers() -> None:
    rte = {b: recipes.keys(recipe("lora", b, "rte")) for b in recipes.BACKBONES}
    base = rte["roberta_base"]
    assert (base["training.learning_rate"], base["training.batch_size"], base["training.epochs"]) == (
        5e-4,
        32,
        80,
    )
    assert (base["method.peft.r"], base["method.peft.lora_alpha"]) == (8, 8)
    large = rte["roberta_large"]
    assert (large["training.learning_rate"], large["training.batch_size"], large["training.epochs"]) == (
        4e-4,
        8,
        20,
    )
    full = recipes.keys(recipe("full", "roberta_large", "mnli"))
    assert (full["training.learning_rate"], full["training.batch_size"], full["training.epochs"]) == (
        1e-5,
        32,
        10,
    )
    for method in ("lora", "full"):
        for task in recipes.TASKS:
            notes = " ".join(recipe(method, "roberta_large", task)["recipe"].get("notes", []))
            assert ("MNLI run" in notes) == (task in ("mrpc", "rte", "stsb"))


@pytest.mark.parametrize("method", recipes.METHODS)
def test_a_recipe_composes_and_the_command_line_wins(method: str) -> None:
    cell = ("experiment=paper", "backbone=roberta_large", f"method={method}", "task=qqp")
    settings = compose_settings(*cell, "training.learning_rate=0.5", "seed=3")
    values = recipes.keys(recipe(method, "roberta_large", "qqp"))
    assert settings.recipe is not None
    assert settings.recipe.version == recipe(method, "roberta_large", "qqp")["recipe"]["version"]
    assert settings.training.learning_rate == 0.5
    assert settings.training.batch_size == values["training.batch_size"]
    assert settings.training.epochs == values["training.epochs"]


def test_a_cell_without_a_recipe_has_none() -> None:
    assert compose_settings("experiment=paper", "backbone=roberta_base", "method=head", "task=rte").recipe is None


@pytest.mark.parametrize("file", recipe_files(), ids=lambda f: "/".join(f.with_suffix("").parts[-3:]))
def test_no_note_excuses_what_a_key_can_say(file: Path) -> None:
    content = recipes.read(file)
    for note in content["recipe"].get("notes", []):
        assert "dropout" not in note  # training.dropout can say it
        assert "MNLI run" not in note or "training.start_from is off" in note
    if "dropout" in content.get("training", {}):  # values changed since version 1
        assert content["recipe"]["version"] >= 2


@pytest.mark.parametrize("method", [*recipes.METHODS, "propulsion_package"])
def test_what_a_recipe_composes_to_is_what_hydra_composes(method: str) -> None:
    found = recipes.composed(method, "roberta_base", "cola")
    config = compose_settings("experiment=paper", "backbone=roberta_base", f"method={method}", "task=cola").config
    assert found == {group: config[group] for group in recipes.GROUPS}
    assert recipes.composed("head", "roberta_base", "cola") is None


# What decides a run. A key that moves makes every finished cell run again.

SMALL = {
    "task": {"name": "rte", "version": 1, "suite": "glue", "primary": "accuracy", "title": "RTE"},
    "backbone": {"name": "b", "family": "roberta", "id": "some/id", "note": "words"},
    "method": {"name": "m", "apply": "peft", "learning_rate": 0.5, "peft": {"r": 8}},
    "data": {"source": "local", "dir": "somewhere"},
    "training": {"learning_rate": 0.001, "epochs": 2.0, "batch_size": 16, "dropout": None, "start_from": None},
    "tracking": {"name": "off"},
    "recipe": {"version": 1, "sources": {"training.epochs": "ours"}, "notes": []},
    "seed": 3,
    "profile": "custom",
    "results_dir": "results",
}


def test_the_key_of_a_config_stays() -> None:
    assert record.HARNESS_VERSION == 1, "a new version changes every key: update the one below"
    assert record.cell_key(SMALL, "rows:1") == "df6d756ce061a477", "finished cells would not be found any more"


def test_a_constant_rate_that_warms_up_is_another_cell_than_one_that_did_not() -> None:
    """Once it ignored its warm-up: those records are not found any more, and all others are."""

    def version(**training: Any) -> int:
        return record.harness_version({**SMALL, "training": {**SMALL["training"], **training}})

    assert version() == version(schedule="linear") == record.HARNESS_VERSION
    assert version(schedule="constant", warmup_ratio=0.0) == record.HARNESS_VERSION
    assert version(schedule="constant", warmup_steps=0) == record.HARNESS_VERSION
    assert version(schedule="constant") == version(schedule="constant", warmup_ratio=0.0, warmup_steps=5) == 2
    warmed = {**SMALL, "training": {**SMALL["training"], "schedule": "constant"}}
    key = record.cell_key(warmed, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "HEEDS_WARMUP", record.HARNESS_VERSION)
        assert record.cell_key(warmed, "") != key
    bitfit = compose_settings("backbone=roberta_base", "method=bitfit", "task=rte")
    assert bitfit.training.schedule == "constant"
    assert record.harness_version(bitfit.config) == record.HARNESS_VERSION


def test_the_defaults_that_keys_leave_out_stay() -> None:
    text = json.dumps(record._defaults(), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == "5def9bd6cadbb3b8", (
        "a default changed, so raise record.HARNESS_VERSION (unless the change is a new key whose default leaves "
        "scores as they were), and update the digest"
    )


def test_a_start_decides_a_run_by_its_content(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, content in zip(files, ("one", "one", "two"), strict=True):
        file.write_text(content)
    fresh = record.cell_key(SMALL, "")
    same, again, other = (
        record.cell_key({**SMALL, "training": {**SMALL["training"], "start_from": str(file)}}, "") for file in files
    )
    assert same == again
    assert len({fresh, same, other}) == 3

    def start(known: Any, name: str | None) -> Any:
        run = {"config": {**SMALL, "training": {**SMALL["training"], "start_from": name}}, "start": known}
        return record.decisive(run)["start"]

    assert start({"sha256": "f0"}, "last.safetensors") == "f0"
    assert start(None, "last.safetensors") == "last.safetensors"  # failed before the file was read
    assert start(None, None) is None


def test_a_setting_newer_than_a_record_has_its_default() -> None:
    older = {**SMALL, "training": {k: v for k, v in SMALL["training"].items() if k != "dropout"}}
    assert record.decisive({"config": older}) == record.decisive({"config": SMALL})
    changed = {**SMALL, "training": {**SMALL["training"], "dropout": 0.0}}
    assert record.decisive({"config": changed}) != record.decisive({"config": SMALL})


def test_the_version_of_a_recipe_is_part_of_the_key_and_its_words_are_not() -> None:
    config = compose_settings("backbone=roberta_base", "method=lora", "task=rte").config
    key = record.cell_key(config, "")

    def changed(**parts: Any) -> str:
        return record.cell_key({**config, "recipe": {**config["recipe"], **parts}}, "")

    assert changed(sources={"training.epochs": "a better citation"}, notes=[]) == key
    assert changed(version=2) != key
    assert record.cell_key({**config, "recipe": None}, "") != key


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+recipe.sources={training.epoch: ours}", "training.epoch"),
        ("+recipe.sources={task.title: ours}", "task.title"),
    ],
)
def test_a_recipe_that_does_not_fit_is_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        compose_settings("backbone=roberta_base", "method=lora", "task=rte", override)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+training.max_step=5", "unknown key of training 'max_step': did you mean max_steps"),
        ("+sed=5", "unknown key 'sed': did you mean seed"),
    ],
)
def test_a_key_that_the_schema_lacks_is_refused_however_it_is_typed(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_settings("task=rte", override)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("training.max_step=5", "unknown key of training 'max_step': did you mean max_steps"),
        ("trainin.max_steps=5", "unknown key 'trainin': did you mean training"),
        ("training.max_steps=five", "could not be converted to Integer"),
    ],
)
def test_an_override_that_hydra_refuses_is_explained(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        planning.settings_of(["task=rte", word])
    assert "append" not in str(raised.value) and "\n" not in str(raised.value)
