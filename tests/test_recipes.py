"""Recipes: each fits the settings, each value names its source, the paper's own are the notebooks'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from propulsion.harness import params, recipes, record
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
    assert settings.method.head == ("trained" if stsb else "frozen")
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
    assert settings.recipe.version == 1
    assert settings.training.learning_rate == 0.5
    assert settings.training.batch_size == values["training.batch_size"]
    assert settings.training.epochs == values["training.epochs"]


def test_a_cell_without_a_recipe_has_none() -> None:
    assert compose_settings("experiment=paper", "backbone=roberta_base", "method=head", "task=rte").recipe is None


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
