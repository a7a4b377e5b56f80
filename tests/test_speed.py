"""What saves time around the training step: a cell on the fast path, merged evaluation, caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from propulsion import PropulsionConfig
from propulsion.harness import record, speed, token_cache
from propulsion.harness.cell import run_cell
from propulsion.harness.encode import encode
from propulsion.harness.errors import UserError
from propulsion.harness.tokenizers import byte_tokenizer
from propulsion.tuner.layer import Embedding, PropulsionLayer
from tests.conftest import ComposeCell
from tests.tiny_models import tiny_batch, tiny_classifier

QUIET = ("training.dropout=0.0", "training.learning_rate=0.01", "training.max_steps=6")


def losses(entry: dict[str, Any]) -> list[float]:
    return [point["loss"] for point in entry["eval"]["history"]]


@pytest.mark.parametrize("method", ["propulsion", "ia3", "bitfit", "head"])
def test_a_cell_on_the_fast_path_scores_as_on_the_plain_one_and_computes_no_padding(
    tiny: ComposeCell, method: str
) -> None:
    plain, _ = run_cell(tiny(f"method={method}", *QUIET))
    fast, _ = run_cell(tiny(f"method={method}", *QUIET, "training.fast_path=auto"))
    assert fast["status"] == plain["status"] == "success"
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-5)
    assert fast["eval"]["last"] == plain["eval"]["last"]
    if not torch.cuda.is_available():
        assert (plain["cost"]["fast_path"], fast["cost"]["fast_path"]) == (None, "fused")
        assert fast["cost"]["padding_fraction"] == 0 < plain["cost"]["padding_fraction"]


def test_auto_falls_back_and_says_why_and_on_refuses(tiny: ComposeCell) -> None:
    entry, _ = run_cell(tiny("method=full", "training.fast_path=auto"))
    assert entry["status"] == "success" and entry["cost"]["fast_path"].startswith("plain: ")
    with pytest.raises(UserError, match="fast_path=auto"):
        run_cell(tiny("method=full", "training.fast_path=on"))
    with pytest.raises(UserError, match=r"off \| auto \| on"):
        tiny("training.fast_path=maybe")


def test_lean_is_recorded_and_leaves_the_key_alone(tiny: ComposeCell, tmp_path: Path) -> None:
    """It draws the same masks and computes the same numbers twice."""
    on = ("method=propulsion", "training.fast_path=on")
    fused, _ = run_cell(tiny(*on))
    lean, ran = run_cell(tiny(*on, "training.lean=true", f"results_dir={tmp_path / 'lean'}"))
    assert ran and lean["cost"]["fast_path"] == "lean"
    assert (lean["key"], losses(lean)) == (fused["key"], losses(fused))
    assert fused["key"] != record.cell_key(tiny("method=propulsion").config, fused["run"]["data"]["fingerprint"])


def test_merging_for_evaluation_is_exact_and_undone_to_the_bit() -> None:
    model = get_peft_model(tiny_classifier("bert"), PropulsionConfig(init_weights=False, bias="all"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    held = dict(model.named_parameters())
    with torch.no_grad():
        expected = model(**tiny_batch()).logits
        with speed.merged(model):
            layers = [m for m in model.modules() if isinstance(m, PropulsionLayer)]
            assert {m.merged for m in layers if not isinstance(m, Embedding)} == {True}
            assert {m.merged for m in layers if isinstance(m, Embedding)} == {False}
            torch.testing.assert_close(model(**tiny_batch()).logits, expected)
        assert torch.equal(model(**tiny_batch()).logits, expected)
        with pytest.raises(KeyboardInterrupt), speed.merged(model):
            raise KeyboardInterrupt
    assert all(p is held[name] and torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("reason", ["large", "half"])
def test_weights_that_are_large_or_of_half_precision_are_not_merged(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    model = get_peft_model(tiny_classifier("bert"), PropulsionConfig(init_weights=False))
    if reason == "half":
        model = model.to(torch.bfloat16)
    else:
        monkeypatch.setattr(speed, "MERGED_BYTES", 1000)
    with speed.merged(model):
        assert not any(m.merged for m in model.modules() if isinstance(m, PropulsionLayer))


def test_cached_features_compute_every_row_once(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[speed.Features] = []
    original = speed.Features.__init__

    def spy(self: speed.Features, backbone: Any) -> None:
        original(self, backbone)
        made.append(self)

    monkeypatch.setattr(speed.Features, "__init__", spy)
    options = ("method=head", "training.learning_rate=0.01", "training.max_steps=24")
    cached, _ = run_cell(tiny(*options, "training.cache_features=true"))
    assert cached["cost"]["cached_features"] is True
    (features,) = made
    assert features.computed <= 64 + 32  # 24 steps of 8 rows and two evaluations of 32 would be 256
    quiet, _ = run_cell(tiny(*options, "training.dropout=0.0"))
    still, _ = run_cell(tiny(*options, "training.dropout=0.0", "training.cache_features=true"))
    assert losses(still) == pytest.approx(losses(quiet), rel=1e-5)
    assert len({cached["key"], quiet["key"], still["key"]}) == 3
    tuned, _ = run_cell(tiny("method=propulsion", "training.cache_features=true"))
    assert tuned["cost"]["cached_features"] is False


def test_encoded_rows_are_cached_by_content(tiny: ComposeCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(token_cache.FOLDER, str(tmp_path / "cache"))
    task, tokenizer = tiny("task=rte").task, byte_tokenizer(64)

    def rows(last: str = "end") -> Dataset:
        texts = [f"row {i}" for i in range(299)] + [last]
        return Dataset.from_dict({**dict.fromkeys(task.text, texts), "label": [i % 2 for i in range(300)]})

    def files() -> list[Path]:
        return sorted((tmp_path / "cache").rglob("*.*"))

    first = encode(rows(), tokenizer, task, 32)
    (file,) = files()
    calls: list[int] = []
    monkeypatch.setattr("propulsion.harness.encode._encode", lambda *a: calls.append(1) or first)
    again = encode(rows(), tokenizer, task, 32)
    assert not calls and again[:] == first[:]
    encode(rows("other"), tokenizer, task, 32)
    encode(rows(), tokenizer, task, 31)
    assert len(calls) == 2 and len(files()) == 3
    file.write_bytes(file.read_bytes()[:100])  # a broken file is made again
    encode(rows(), tokenizer, task, 32)
    assert len(calls) == 3 and encode(rows(), tokenizer, task, 32)[:] == first[:] and len(calls) == 3
    monkeypatch.setenv(token_cache.FOLDER, "")
    encode(rows(), tokenizer, task, 32)
    assert len(calls) == 4
