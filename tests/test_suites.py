"""Suite scores: the benchmarks' formulas on numbers worked by hand, and the name that says which one it is."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from propulsion.harness.tables import build, to_latex, to_markdown, to_text
from propulsion.harness.tables.suites import SCORES, average_name, present, records_of
from tests.test_tables import make

# Typed in from the benchmarks' papers and servers, apart from the table in the module.
GLUE = {
    "cola": {"matthews_correlation": 0.60},
    "sst2": {"accuracy": 0.95},
    "mrpc": {"accuracy": 0.88, "f1": 0.92},
    "stsb": {"pearson": 0.90, "spearman": 0.88},
    "qqp": {"accuracy": 0.90, "f1": 0.70},
    "mnli": {"accuracy": 0.86, "accuracy_mm": 0.84},
    "qnli": {"accuracy": 0.92},
    "rte": {"accuracy": 0.70},
    "wnli": {"accuracy": 0.56},
}
# (.60 + .95 + .90 + .89 + .80 + .85 + .92 + .70 + .56) / 9 = 7.17 / 9
GLUE_SCORE = 7.17 / 9
SUPERGLUE = {
    "boolq": {"accuracy": 0.80},
    "cb": {"accuracy": 0.90, "macro_f1": 0.80, "mean": 0.85},
    "copa": {"choice_accuracy": 0.70},
    "multirc": {"f1a": 0.70, "exact_questions": 0.20, "mean": 0.45},
    "record": {"token_f1": 0.72, "exact_match": 0.70, "mean": 0.71},
    "rte": {"accuracy": 0.70},
    "wic": {"accuracy": 0.65},
    "wsc": {"accuracy": 0.64},
}
# (.80 + .85 + .70 + .45 + .71 + .70 + .65 + .64) / 8 = 5.50 / 8
SUPERGLUE_SCORE = 5.50 / 8


def records(
    scores: dict[str, dict[str, float]], suite: str = "glue", seed: int = 0, method: str = "lora"
) -> list[dict[str, Any]]:
    """One record for each task."""
    made = []
    for task, values in scores.items():
        record = make(task, method, seed)
        primary = next(iter(values))
        record["run"]["suite"] = "glue" if task == "rte" else suite  # RTE is one task of two suites
        record["run"]["data"]["source"] = "local"
        record["eval"] |= {"primary": primary, **{rule: dict(values) for rule in ("last", "best", "heldout")}}
        record["run"]["config"]["task"] |= {"primary": primary, "parts": {"": "dev"}}
        if task == "mnli":
            record["run"]["config"]["task"]["parts"] = {"": "dev", "_mm": "dev_mm"}
        made.append(record)
    return made


def test_the_glue_score_is_the_benchmarks() -> None:
    table = build(records(GLUE), "glue")
    assert table.rows[0].average.mean == pytest.approx(GLUE_SCORE, abs=1e-12)
    assert table.averaged == 9
    for text in (to_markdown([table]), to_latex([table]), to_text(table)):
        assert "GLUE score" in text and "average of" not in text and "79.7" in text
    assert any(note.startswith("GLUE score: ") for note in table.notes)
    assert not any(note.startswith("Average: ") for note in table.notes)


def test_generated_rows_give_no_score_of_a_suite() -> None:
    made = records(GLUE)
    made[0]["run"]["data"]["source"] = "generated"
    table = build(made, "glue")
    assert average_name("glue", table.columns) == "average of 9"
    assert table.averaged == 9


def test_the_superglue_score_is_the_benchmarks_with_the_rte_that_it_shares() -> None:
    made = records(SUPERGLUE, "superglue")
    table = build(made, "superglue")
    assert table.rows[0].average.mean == pytest.approx(SUPERGLUE_SCORE, abs=1e-12)
    assert "SuperGLUE score" in to_markdown([table])
    both = [*made, *records({"cola": GLUE["cola"]})]
    assert {r["run"]["task"] for r in records_of("glue", both)} == {"rte", "cola"}
    assert records_of("superglue", records(GLUE)) == []


@pytest.mark.parametrize(
    ("tasks", "suites"),
    [
        (("rte",), ["glue"]),  # a task of both stands in the suite that its record names
        (("rte", "cola"), ["glue"]),
        (("rte", "wic"), ["superglue"]),
        (("rte", "axb"), ["superglue"]),
        (("rte", "ax"), ["glue"]),
        (("rte", "cola", "wic"), ["glue", "superglue"]),
        (("wic",), ["superglue"]),
    ],
)
def test_a_suite_has_a_table_where_a_task_needs_it(tasks: tuple[str, ...], suites: list[str]) -> None:
    made = [r for task in tasks for r in records({task: {"accuracy": 0.5}}, _suite_of(task))]
    assert present(made) == suites
    shown = {record["run"]["task"] for suite in suites for record in records_of(suite, made)}
    assert shown == set(tasks), "no task is lost"
    own = records({"rte": {"accuracy": 0.5}, "weather": {"accuracy": 0.5}}, "mine")
    assert present(own) == ["glue", "mine"], "a suite that does not know RTE leaves it its table"


def _suite_of(task: str) -> str:
    return "superglue" if task in ("wic", "axb") else "glue"


@pytest.mark.parametrize("suite", ["glue", "superglue"])
@pytest.mark.parametrize("place", range(9))
def test_one_task_short_is_the_average_over_the_tasks_run(suite: str, place: int) -> None:
    scores = GLUE if suite == "glue" else SUPERGLUE
    if place >= len(scores):
        pytest.skip("SuperGLUE has eight")
    left = {task: values for task, values in scores.items() if task != list(scores)[place]}
    table = build(records(left, suite), suite)
    text = to_markdown([table])
    assert f"average of {len(left)}" in text and "GLUE score:" not in text and "GLUE score |" not in text
    primaries = [next(iter(values.values())) for values in left.values()]
    assert table.rows[0].average.mean == pytest.approx(statistics.fmean(primaries))


def test_a_diagnostic_is_no_part_and_a_missing_metric_takes_the_name_away() -> None:
    table = build([*records(GLUE), *records({"ax": {"matthews_correlation": -1.0}})], "glue")
    assert table.rows[0].average.mean == pytest.approx(GLUE_SCORE, abs=1e-12)
    without = {**GLUE, "mrpc": {"accuracy": 0.88}}
    assert "average of 9" in to_markdown([build(records(without), "glue")])


def test_a_method_that_lacks_a_task_or_a_seed_has_none() -> None:
    made = [*records(GLUE), *records(GLUE, seed=1)]
    some = records({task: v for task, v in GLUE.items() if task != "qqp"}, method="head")
    odd = [*records(GLUE, method="ia3"), *records({"rte": GLUE["rte"]}, seed=1, method="ia3")]
    table = build([*made, *some, *odd], "glue")
    averages = {row.method: row.average for row in table.rows}
    assert averages["lora"].mean == pytest.approx(GLUE_SCORE) and averages["lora"].sd == pytest.approx(0)
    assert averages["head"].mean is None and averages["ia3"].mean is None


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_numbers_give_the_mean_of_the_tasks_means(data: st.DataObject) -> None:
    suite = data.draw(st.sampled_from(sorted(SCORES)))
    template = GLUE if suite == "glue" else SUPERGLUE
    drawn = {
        task: {name: data.draw(st.floats(-1, 1), label=f"{task} {name}") for name in values}
        for task, values in template.items()
    }
    expected = statistics.fmean(
        statistics.fmean(value for name, value in values.items() if name != "mean") for values in drawn.values()
    )
    assert build(records(drawn, suite), suite).rows[0].average.mean == pytest.approx(expected, abs=1e-9)


def test_the_scores_named_are_scores_of_the_tasks() -> None:
    """Every metric that a suite's score is made of is one that the task's YAML file asks for."""
    from tests.conftest import compose_settings, names

    for tasks in SCORES.values():
        for task, scores in tasks.items():
            if task not in names("task"):
                pytest.skip(f"no conf/task/{task}.yaml")
            spec = compose_settings(f"task={task}").task
            assert set(scores) <= {f"{metric}{part}" for metric in spec.metrics for part in spec.parts}, task
