"""The speed comparison: who takes part, what it measures, what it refuses; padding by hand."""

from __future__ import annotations

import json
from pathlib import Path

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
