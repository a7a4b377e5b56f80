"""What tables say about a suite as a whole: tests only where they were made, and the same numbers everywhere."""

from __future__ import annotations

import csv
import html
import io
from typing import Any

import numpy as np
import pytest
from scipy import stats

from propulsion.harness import claims
from propulsion.harness.statistics import holm
from propulsion.harness.tables import RULES, build, overall, to_csv, to_latex, to_markdown
from propulsion.harness.tables.as_csv import to_suite_csv
from propulsion.harness.tables.build import build_all
from propulsion.harness.tables.comparison import MARGIN
from tests.test_tables import assert_latex_is_sound, cells, make, rows

LEVELS = {"full": 0.70, "lora": 0.62, "propulsion": 0.66}


def some(seeds: int, tasks: tuple[str, ...] = ("cola", "mrpc", "rte"), methods: Any = None) -> list[dict[str, Any]]:
    """Records whose scores are drawn, the same each time, around `LEVELS`."""
    draw = np.random.default_rng(0)
    return [
        make(task, method, seed, round(float(level + draw.normal(0, 0.02)), 4))
        for task in tasks
        for method, level in (methods or LEVELS).items()
        for seed in range(seeds)
    ]


def scores_of(records: list[dict[str, Any]], method: str) -> np.ndarray:
    """(tasks x seeds) in points, by hand."""
    found = {(r["run"]["task"], r["run"]["seed"]): r for r in records if r["run"]["method"] == method}
    tasks, seeds = ({key[i] for key in found} for i in (0, 1))
    return np.array(
        [[100 * next(iter(found[t, s]["eval"]["last"].values())) for s in sorted(seeds)] for t in sorted(tasks)]
    )


def test_a_comparison_is_scipys_test_with_holm_over_the_table() -> None:
    records = some(3)
    table = build(records, "glue")
    by_method = {row.method: row for row in table.rows}
    p_values = []
    for method in ("full", "lora"):
        gaps = (scores_of(records, "propulsion") - scores_of(records, method)).ravel()
        theirs = stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=np.inf)
        found = by_method[method].overall.comparison
        assert found
        assert found.p == pytest.approx(theirs.pvalue)
        assert found.difference == pytest.approx(gaps.mean())
        assert (found.tasks, found.seeds) == (3, 3)
        p_values.append(found.p)
    assert [by_method[m].overall.p for m in ("full", "lora")] == pytest.approx(holm(p_values))
    assert by_method["propulsion"].overall.comparison is None
    own = by_method["full"].overall
    assert own.median == pytest.approx(np.median(scores_of(records, "full").mean(axis=1)))
    assert own.iqm == pytest.approx(stats.trim_mean(scores_of(records, "full"), 0.25, axis=None))


def test_marks_stand_only_where_a_test_was_made() -> None:
    few = build(some(2), "glue")  # 6 pairs over the suite, 2 within a task
    assert cells(few, "full")["RTE Acc"].count("*") == 0
    assert all(cell.p is None for row in few.rows for cell in row.cells)
    assert "no test within a task: that takes 6 shared seeds or more" in to_markdown([few])
    many = build(some(8), "glue")
    assert cells(many, "full")["RTE Acc"].endswith(r" \*")
    assert cells(many, "full")["average of 3"].endswith(r" \*")
    assert "*" not in cells(many, "propulsion")["RTE Acc"]
    assert any(row["p_holm"] for row in rows([many]))
    one = build(some(1), "glue")
    assert "No marks: no test within a task" in to_markdown([one])
    assert "*" not in cells(one, "full")["average of 3"]
    alone = build(some(8, methods={"lora": 0.6, "full": 0.7}), "glue")
    assert "differs from" not in to_markdown([alone])  # there is nothing of the family to compare with
    assert overall.against(alone) is None
    gap = build(some(8), "glue", "best-last")
    assert "*" not in "".join(cells(gap, "full").values())


def test_too_few_seeds_say_how_many_would_do() -> None:
    assert all(row.overall.comparison is None for row in build(some(1), "glue").rows)  # one seed is no sample
    sheet = overall.against(build([r for r in some(2) if r["run"]["task"] != "mrpc"], "glue"))
    assert sheet
    row = dict(zip(sheet.header, sheet.rows[0], strict=True))
    assert (row["p"], row["p (Holm)"]) == ("no test", "no test")
    # Two tests: 2 * 2 / 2^n is at most 0.05 from 7 pairs on, which over two tasks takes 4 seeds.
    assert row["seeds that would do"].startswith("≥ 4 to test, about ")
    enough = overall.against(build(some(8), "glue"))
    assert enough
    assert enough.rows[0][-1] == "enough"


def test_only_shared_seeds_and_tasks_are_compared() -> None:
    records = [r for r in some(4) if (r["run"]["method"], r["run"]["seed"]) not in {("full", 0), ("propulsion", 3)}]
    records = [r for r in records if (r["run"]["method"], r["run"]["task"]) != ("full", "mrpc")]
    row = next(row for row in build(records, "glue").rows if row.method == "full")
    assert row.overall.comparison
    assert (row.overall.comparison.tasks, row.overall.comparison.seeds) == (2, 2)
    assert row.overall.median is None  # no score on one task: nothing over the suite
    other = [make("rte", "full", 0), make("rte", "propulsion", 1)]
    assert build(other, "glue").rows[0].overall.comparison is None


def test_failed_runs_take_no_part() -> None:
    records = [*some(3), make("rte", "full", 7, None, status="failed")]
    row = next(row for row in build(records, "glue").rows if row.method == "full")
    assert row.overall.comparison
    assert row.overall.comparison.seeds == 3


def test_every_backbone_has_its_own_reference() -> None:
    other = [
        make("rte", m, s, 0.5 + s / 10, backbone="roberta_base") for m in ("lora", "propulsion_attn") for s in (0, 1)
    ]
    table = build([*some(3), *other], "glue")
    assert {(row.backbone, row.method): row.reference for row in table.rows} == {
        ("minilm", "full"): "propulsion",
        ("minilm", "lora"): "propulsion",
        ("minilm", "propulsion"): "",
        ("roberta_base", "lora"): "propulsion_attn",
        ("roberta_base", "propulsion_attn"): "",
    }


def test_the_same_numbers_in_markdown_latex_and_csv() -> None:
    tables = build_all(some(6), "glue")
    assert [table.rule for table in tables] == list(RULES)
    markdown, latex = html.unescape(to_markdown(tables)), to_latex(tables)
    numbers = {(row["rule"], row["method"]): row for row in csv.DictReader(io.StringIO(to_suite_csv(tables)))}
    for table in tables:
        for sheet in overall.of_table(table):
            for row in sheet.rows:
                assert f"| {' | '.join(row)} |".replace(" ", "").replace("*", "") in markdown.replace(" ", "").replace(
                    r"\*", ""
                )
                plain = (
                    latex.replace(r"$\pm$", "±").replace(r"$\times$", "×").replace("---", "—").replace(r"$\geq$", "≥")
                )
                assert " & ".join(row) in plain.replace(r"\textless{}", "<")
    sheet = overall.against(tables[0])
    assert sheet
    for row in sheet.rows:
        shown, exact = dict(zip(sheet.header, row, strict=True)), numbers["last", row[0]]
        assert float(shown["propulsion minus method"]) == pytest.approx(
            float(exact["reference_minus_method"]), abs=0.0501
        )
        assert float(shown["P(propulsion better)"]) == pytest.approx(
            float(exact["probability_of_improvement"]), abs=0.00501
        )
        assert shown["within 1 point"] == exact["equivalence"]
    assert_latex_is_sound(latex)


def test_the_rules_stand_side_by_side_with_the_largest_gap() -> None:
    records = [make("rte", "lora", 0, 0.5, 0.53), make("cola", "lora", 0, 0.2, 0.21)]
    sheet = overall.rules(build_all(records, "glue"))
    assert sheet
    assert sheet.header == ("method", "last", "heldout", "best", "best-last", "largest gap")
    assert sheet.rows == (("lora", "35.0", "—", "37.0", "+2.0", "+3.0 (RTE Acc)"),)


def test_no_column_mixes_metrics() -> None:
    record = make("mrpc", "lora", 0, 0.7)
    record["eval"]["last"]["f1"] = 0.8
    table = build([record, make("rte", "lora", 0, 0.6)], "glue")
    assert [(c.task, c.score) for c in table.columns] == [("mrpc", "accuracy"), ("mrpc", "f1"), ("rte", "accuracy")]
    assert {(r["task"], r["score"]) for r in csv.DictReader(io.StringIO(to_csv([table])))} == {
        (c.task, c.score) for c in table.columns
    }


def test_the_margin_is_that_of_the_claims() -> None:
    assert claims.POINTS == MARGIN


def test_time_and_memory_never_mix_runs_that_were_not_measured_alike() -> None:
    records = [make("rte", "lora", seed) for seed in range(3)]
    records[2]["env"]["parallel_cells"] = 4
    records[2]["cost"]["train_seconds"] = 900.0
    table = build(records, "glue")
    assert cells(table, "lora")["train s"] == "20.0‡"
    assert any(note.startswith("‡") for note in table.notes)


def test_one_task_of_several_is_no_comparison_over_the_suite() -> None:
    records = [*some(3), *(make("rte", "bitfit", seed, 0.5 + seed / 100) for seed in range(3))]
    sheet = overall.against(build(records, "glue"))
    assert sheet
    assert [row[0] for row in sheet.rows] == ["full", "lora"]
    assert sheet.legend.endswith("Not compared, with fewer than two tasks or seeds in common: bitfit.")
    alone = overall.against(build([r for r in records if r["run"]["task"] == "rte"], "glue"))
    assert alone  # where there is one task, it is what the table is of
    assert [row[0] for row in alone.rows] == ["full", "bitfit", "lora"]


def test_a_difference_says_what_minus_what() -> None:
    table = build(some(3), "glue")
    sheet = overall.against(table)
    assert sheet
    assert sheet.header[1] == "propulsion minus method"
    by_method = {row.method: row for row in table.rows}
    for method, told, *_ in sheet.rows:
        means = [100 * (by_method[name].average.mean or 0) for name in ("propulsion", method)]
        assert float(told) == pytest.approx(means[0] - means[1], abs=0.051)
