"""The learning-rate search: the grid, its extension at an edge, the choice, and the recipe that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from propulsion.harness import configs
from propulsion.harness.errors import UserError
from propulsion.harness.tables import load_records
from scripts import search_rates
from scripts.search_rates import alike, best_rate, first_rates, mean_scores, next_rate, recipe_text
from tests.conftest import CONF
from tests.task_files import write_official


def entry(
    task: str, rate: float, score: float, status: str = "success", method: str = "lora", seed: int = 0
) -> dict[str, Any]:
    return {
        "status": status,
        "run": {
            "task": task,
            "method": method,
            "backbone": "minilm",
            "seed": seed,
            "config": {"training": {"learning_rate": rate, "start_from": None}},
            "data": {"train_rows": 800, "eval_rows": 300, "fingerprint": task},
        },
        "eval": {"primary": "accuracy", "last": {"accuracy": score} if status == "success" else None},
        "cost": {"steps": 100},
    }


def test_the_grid_is_three_rates_a_factor_of_three_apart() -> None:
    assert first_rates(1e-3) == [0.00033, 0.001, 0.003]


def test_a_best_rate_at_an_edge_asks_for_one_further_out() -> None:
    assert next_rate({1e-3: 0.5, 3e-3: 0.6, 9e-3: 0.7}) == 0.027
    assert next_rate({1e-3: 0.8, 3e-3: 0.6, 9e-3: 0.7}) == 0.00033
    assert next_rate({1e-3: 0.5, 3e-3: 0.9, 9e-3: 0.7}) is None


@given(st.dictionaries(st.floats(1e-6, 1.0), st.floats(0, 1), min_size=1))
def test_the_best_rate_has_the_highest_score_and_of_equals_is_the_smallest(
    scores: dict[float, float],
) -> None:
    best = best_rate(scores)
    assert scores[best] == max(scores.values())
    assert all(best <= rate for rate in scores if scores[rate] == scores[best])


def test_the_mean_is_over_all_tasks_or_the_rate_does_not_count() -> None:
    records = [entry("sst2", 1e-3, 0.8), entry("stsb", 1e-3, 0.6), entry("sst2", 3e-3, 0.9)]
    records += [
        entry("sst2", 9e-3, 0.0, status="diverged"),
        entry("stsb", 9e-3, 0.4),
        entry("rte", 1e-3, 0.1),
    ]
    assert mean_scores(records, ["sst2", "stsb"]) == {
        1e-3: pytest.approx(0.7),
        9e-3: pytest.approx(0.2),
    }


def test_the_recipe_holds_the_rate_and_says_where_it_comes_from() -> None:
    text = recipe_text({1e-3: 0.7, 3e-3: 0.75}, ["sst2", "stsb"], entry("sst2", 3e-3, 0.8))
    recipe: Any = OmegaConf.create(text)
    assert text.startswith("# @package _global_\n")
    assert recipe.training.learning_rate == 3e-3
    source = recipe.recipe.sources["training.learning_rate"]
    assert source.startswith("ours: mean of sst2 and stsb on 300 held-out training rows after 100 steps on 800 others")
    assert "0.001: 70.0, 0.003: 75.0" in source


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["on=sst2", "tasks=rte", "methods=lora"], "data_dir is missing"),
        (["colour=red"], "unknown option 'colour'"),
    ],
)
def test_bad_words_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert search_rates.main(words) == 2
    assert message in capsys.readouterr().err


def test_only_runs_of_one_method_backbone_size_and_seed_are_compared() -> None:
    records = [entry("sst2", 1e-3, 0.8), entry("sst2", 1e-3, 0.1, method="ia3")]
    assert alike(records, "lora", "minilm") == records[:1]
    with pytest.raises(UserError, match=r"one \(seed, training rows, held-out rows\)"):
        alike([*records, entry("sst2", 1e-3, 0.9, seed=1)], "lora", "minilm")
    for group, other in (
        ("config", {"training": {"learning_rate": 1e-3, "batch_size": 8}}),
        ("data", {"fingerprint": "x"}),
    ):
        another = entry("sst2", 3e-3, 0.9)
        another["run"][group] = {**another["run"][group], **other}
        with pytest.raises(UserError, match="the runs of lora on sst2 differ in other settings or data"):
            alike([*records, another], "lora", "minilm")
    assert len(alike([*records, entry("rte", 3e-3, 0.9)], "lora", "minilm")) == 2
    with pytest.raises(UserError, match="found none"):
        alike(records, "full", "minilm")


def test_nothing_finished_is_one_line() -> None:
    assert next_rate({}) is None
    with pytest.raises(UserError, match="no learning rate has a finished run"):
        best_rate({})


@pytest.mark.slow
def test_a_search_end_to_end_writes_the_recipes_of_ones_own_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tasks, a toy backbone, at least three rates; the recipes land beside the method's file, outside `conf/`."""
    monkeypatch.setattr(configs, "_outside", None)  # put back at the end
    for task in ("sst2", "rte"):
        write_official(tmp_path / "glue", task)
    own = tmp_path / "mine"
    (own / "method").mkdir(parents=True)
    text = (CONF / "method" / "lora.yaml").read_text().replace("name: lora", "name: lora_own")
    (own / "method" / "lora_own.yaml").write_text(text)
    toy = "{vocab_size:30522,hidden_size:16,num_hidden_layers:1,num_attention_heads:2,intermediate_size:16}"
    words = f"data.holdout_rows=3 training.max_steps=1 backbone.weights=random backbone.architecture={toy}"
    options = [f"data_dir={tmp_path / 'glue'}", f"results_dir={tmp_path / 'search'}", f"overrides={words}"]
    found = search_rates.main(["--config-dir", str(own), "on=sst2", "tasks=sst2,rte", "methods=lora_own", *options])
    printed = capsys.readouterr()
    assert found == 0, printed.err
    recipes = [own / "recipe" / "lora_own" / "minilm" / f"{task}.yaml" for task in ("sst2", "rte")]
    assert printed.out.splitlines()[-2:] == [str(path) for path in recipes]
    first, second = (yaml.safe_load(path.read_text()) for path in recipes)
    tried = {entry["run"]["config"]["training"]["learning_rate"] for entry in load_records(tmp_path / "search")}
    assert first == second and first["training"]["learning_rate"] in tried and len(tried) >= 3
    assert not (CONF / "recipe" / "lora_own").exists()


def searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str, code: int) -> int:
    """The exit code of a search whose every cell ends so, its sweeps with this code."""
    found: list[dict[str, Any]] = []

    def sweep(command: list[str]) -> int:
        rates = next(word for word in command if word.startswith("training.learning_rate=")).partition("=")[2]
        found.extend(entry("sst2", float(rate), 0.5, status) for rate in rates.split(","))
        return code

    monkeypatch.setattr(search_rates, "run_sweep", sweep)
    monkeypatch.setattr(search_rates, "load_records", lambda _: list(found))
    words = ["on=sst2", "tasks=rte", "methods=lora", "data_dir=x", f"results_dir={tmp_path}"]
    return search_rates.main(words)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ("failed", 1, "the search over method=lora is not whole (exit code 1)"),
        ("success", 75, "is not whole (exit code 75)"),
        ("diverged", 0, "every run of lora diverged: no rate to recommend"),
    ],
)
def test_a_search_that_is_not_whole_writes_no_recipe(
    status: str,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: pytest.fail("a recipe was written"))
    assert searched(monkeypatch, tmp_path, status, code) == 2
    assert said in capsys.readouterr().err


def test_unknown_names_of_a_search_are_named_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search_rates, "run_sweep", lambda _: pytest.fail("it started"))
    assert search_rates.main(["on=sst2", "tasks=rtee", "methods=lora", "data_dir=x"]) == 2
    assert "unknown task 'rtee': did you mean rte" in capsys.readouterr().err


def test_ctrl_c_in_a_search_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        searched(monkeypatch, tmp_path, "success", 130)
