"""The speed comparison: who takes part, what it measures, what it refuses; padding by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from propulsion.harness.speedtest import entrants as field
from propulsion.harness.speedtest.measure import Case, compare
from propulsion.harness.speedtest.padding import share
from scripts import bench

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shape with a small width; the families and their ways stay."""
    for shape in field.SHAPES.values():
        for name, value in {**SMALL, "vocab_size": 64}.items():
            monkeypatch.setitem(shape, name, value)


def test_on_cuda_compiled_modules_and_attention_by_groups_take_part_too() -> None:
    more = set(field.entrants("roberta_large", "cuda")) - set(field.entrants("roberta_large"))
    assert more == {"ours, plain path, compiled", "ours, fast, attention by groups"}
    assert set(field.entrants("llama", "cuda")) - set(field.entrants("llama")) == {"ours, plain path, compiled"}
    lengths = Case("minilm", (9, 4), "small", "cuda").padded_length, Case("minilm", (9, 4), "small").padded_length
    assert lengths == (16, 9)


def test_the_quick_cases_are_those_of_the_goals() -> None:
    assert {"minilm_128", "minilm_sst2", "minilm_rte", "base_bytes"} <= set(bench.QUICK) <= set(bench.CASES)
    assert set(bench.ON_CUDA) <= set(bench.CASES) and "large_128" in bench.ON_CUDA


@pytest.mark.gpu
def test_on_a_gpu_every_entrant_is_measured_with_its_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    monkeypatch.setattr("propulsion.harness.speedtest.measure.PEAK_SIDE", 256)
    case = Case("minilm", (9, 4, 1), "small", "cuda", "bf16")
    facts = compare(case, field.entrants("minilm", "cuda"), field.backbone, rounds=2)
    for name, entry in facts["entrants"].items():
        assert ("refused" in entry and "compiled" in name) or 0 < entry["peak_share"] < 1, (name, entry)
    assert "share of" in bench.table(
        [facts], {**dict.fromkeys(("device", "torch", "transformers", "peft"), ""), "commit": None, "dirty": False}
    )


def test_an_entrant_that_raises_ends_the_comparison_on_a_cpu_and_is_a_row_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shrink(monkeypatch)
    monkeypatch.setattr("propulsion.harness.speedtest.measure._give_back", lambda: None)

    def no_compiler(model: Any) -> Any:
        raise RuntimeError("no compiler\nin this container")

    case = Case("llama", (5, 3), "small")
    with pytest.raises(RuntimeError, match="no compiler"):
        compare(case, {"plain formula": field.ENTRANTS["plain formula"], "compiled": no_compiler}, field.backbone, 1)
    fact = {"refused": "RuntimeError: no compiler"}
    row = bench._row(fact)
    assert row.startswith("RuntimeError: no compiler |") and row.count("|") == 8


@pytest.mark.parametrize("shape", ["minilm", "deberta", "llama"])
def test_every_entrant_is_timed_and_starts_from_the_same_loss(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    monkeypatch.setattr("propulsion.harness.speedtest.measure._give_back", lambda: None)  # slow, for real memory alone
    case = Case(shape, (9, 4, 1), "small")
    facts = compare(case, field.entrants(shape), field.backbone, rounds=1)
    assert facts["tokens"] == 14 and facts["padded_tokens"] == 27
    entries = facts["entrants"]
    assert list(entries) == list(field.entrants(shape))
    assert entries["plain formula"]["ratio"] == entries["plain formula"]["saved_ratio"] == 1.0
    assert all(entry["seconds"] > 0 and entry["saved_bytes"] > 0 for entry in entries.values())
    assert entries["ours, plain path"]["saved_ratio"] < 1
    fast = entries.get("ours, fast")
    for entry in entries.values():  # of one round, the ratio is that of the seconds
        expected = fast and pytest.approx(fast["seconds"] / entry["seconds"])
        assert entry.get("ours_by_this") == expected
    losses = []
    for tune in field.entrants(shape).values():
        model = tune(field.backbone(shape)).eval()
        batch = case.batch(model.config.vocab_size, model.config.pad_token_id)
        with torch.no_grad():
            losses.append(float(model(**batch).loss))
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)


def test_the_command_writes_what_it_measured_and_refuses_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shrink(monkeypatch)
    monkeypatch.setitem(bench.CASES, "small", Case("llama", (5, 3), "a small case", timed=False))
    assert bench.main(["cases=small", f"out={tmp_path}"]) == 0
    (case,) = json.loads((tmp_path / "bench.json").read_text())["cases"]
    assert case["rounds"] == 0 and "seconds" not in case["entrants"]["plain formula"]
    assert "## a small case" in (tmp_path / "bench.md").read_text()
    for words in (["cases=smal"], ["case=small"], ["rounds=0"]):
        assert bench.main([*words, f"out={tmp_path}"]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_padding_is_counted_by_batch() -> None:
    lengths = [3, 5, 2, 8, 1]
    # batches (3, 5), (2, 8), (1): 10 + 16 + 1 places for 19 tokens
    assert share(lengths, range(5), 2) == pytest.approx(1 - 19 / 27)
    assert share(lengths, [2, 0, 1, 3, 4], 2) == pytest.approx(1 - 19 / (6 + 16 + 1))
    assert share(lengths, range(5), 2, multiple=4) == pytest.approx(1 - 19 / (16 + 16 + 4))
