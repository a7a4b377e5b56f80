"""Counts: every number that the paper, its public code and arithmetic give, from the YAML files alone."""

from __future__ import annotations

import csv
import functools
import socket
from pathlib import Path

import pytest
from torch import nn

from propulsion.harness import params, trial
from propulsion.harness.backbones import build_empty, load_model
from propulsion.harness.params import count_cell, load_backbone, load_method
from scripts import params as script
from tests.conftest import names

# backbone: full, all with the head frozen, attention, linears of the backbone, head
PUBLISHED = {
    "roberta_base": (124_647_170, 86_018, 27_648, 82_944, 592_130),
    "roberta_large": (355_361_794, 225_282, 73_728, 221_184, 1_051_650),
    "deberta_v3_base": (184_423_682, 85_250, 27_648, 82_944, 592_130),
    "deberta_v3_large": (435_063_810, 224_258, 73_728, 221_184, 1_051_650),
    "llama_7b": (6_607_351_808, 1_363_970, 393_216, 1_359_872, 8_192),
}


@functools.cache
def counted(backbone: str, method: str, policy: str = "trained") -> params.Count:
    return count_cell(load_backbone(backbone), load_method(method), policy)


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_the_table_of_counts(backbone: str) -> None:
    full, everything, attention, linears, head = PUBLISHED[backbone]
    whole = counted(backbone, "full")
    assert whole.counts is not None
    assert (whole.counts.trainable, whole.base, whole.own_head) == (full, full, head)
    deberta = backbone.startswith("deberta")
    frozen = counted(backbone, "propulsion_code" if deberta else "propulsion", "frozen")
    assert frozen.counts is not None
    assert (frozen.counts.adapter, frozen.counts.head, frozen.counts.trainable) == (everything, 0, everything)
    attn, linear = counted(backbone, "propulsion_attn"), counted(backbone, "propulsion_linear")
    assert attn.counts is not None
    assert linear.counts is not None
    assert (attn.counts.adapter, linear.counts.adapter) == (attention, linears)
    assert attn.counts.head == linear.counts.head == head
    paper = counted(backbone, "propulsion_paper", "frozen")
    assert paper.counts is not None
    dead = load_backbone(backbone).architecture["hidden_size"] if deberta else 0  # rel_embeddings: no gradient
    assert paper.counts.trainable == everything - dead


def test_the_ratios_of_the_claims() -> None:
    lora, ada = counted("roberta_base", "lora"), counted("roberta_base", "adalora")
    ours = counted("roberta_base", "propulsion_paper", "frozen")
    attention = counted("roberta_base", "propulsion_attn")
    assert lora.counts is not None
    assert (lora.counts.adapter, lora.counts.head, lora.counts.trainable) == (294_912, 592_130, 887_042)
    assert ada.counts is not None
    assert ada.counts.trainable == 1_034_786
    rounded = {way: round(ratio or 0, 1) for way, ratio in params.ratios(ours, lora).items()}
    assert rounded == {"no heads": 3.4, "both heads": 1.3, "as the paper": 10.3}
    assert params.ratios(ours, ada)["as the paper"] == pytest.approx(12.03, abs=5e-3)
    assert params.ratios(attention, ada)["as the paper"] == pytest.approx(37.4, abs=5e-2)
    full = {b: counted(b, "full") for b in ("roberta_base", "roberta_large")}
    large = counted("roberta_large", "propulsion_paper", "frozen")
    assert params.ratios(ours, full["roberta_base"])["as the paper"] == pytest.approx(1_449, abs=0.5)
    assert params.ratios(large, full["roberta_large"])["as the paper"] == pytest.approx(1_577, abs=0.5)


def test_the_packaged_functions_count_of_roberta_base() -> None:
    backbone = load_backbone("roberta_base")
    model = build_empty(backbone, params.TASK)
    biases = sum(m.bias.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert biases == 82_944 + 770
    assert 86_018 + biases == 169_732  # the packaged function trains the biases of the linears as well


def test_the_packaged_function_is_counted_with_the_rest() -> None:
    rows = {(row.method, row.policy): row for row in params.count_all(["roberta_base"])}
    assert rows["propulsion_package", "frozen"].counts.trainable == 169_732


def test_a_row_holds_together() -> None:
    row = counted("minilm", "propulsion")
    assert row.counts is not None
    assert row.counts.trainable == row.counts.adapter + row.counts.head
    assert row.counts.total == row.base + row.counts.adapter
    assert row.bytes == 4 * row.counts.trainable
    assert row.share == row.counts.trainable / row.base


@pytest.mark.parametrize("method", ["lora", "ia3", "bitfit", "full"])
def test_a_frozen_head_changes_nothing_in_the_backbone(method: str) -> None:
    trained, frozen = counted("minilm", method), counted("minilm", method, "frozen")
    assert trained.counts is not None
    assert frozen.counts is not None
    assert (frozen.counts.adapter, frozen.counts.head) == (trained.counts.adapter, 0)


def test_a_frozen_head_that_is_not_built_counts_as_one_that_is() -> None:
    rows = [row for row in params.count_all(["minilm"], ["lora", "vera", "propulsion"]) if row.policy == "frozen"]
    assert rows == [counted("minilm", name, "frozen") for name in ("lora", "vera", "propulsion")]


def test_refusals_are_rows() -> None:
    bitfit, head = counted("llama32_1b", "bitfit"), counted("minilm", "head", "frozen")
    assert bitfit.counts is None
    assert "llama32_1b has no biases to train" in bitfit.refusal
    assert head.refusal == "nothing left to train"
    assert params.ratios(bitfit, head) == dict.fromkeys(params.WAYS)


@pytest.mark.parametrize("method", names("method"))
def test_every_method_is_counted_as_on_a_model_with_weights(method: str) -> None:
    backbone, spec = trial.tiny(load_backbone("roberta_base")), load_method(method)
    row = count_cell(backbone, spec, spec.head)
    assert row.counts is not None
    model = load_model(backbone, params.TASK, trial.PAD)[0]
    assert row == params.count_model(model, backbone, spec, spec.head)


def test_a_method_that_reads_the_weights_is_counted_on_random_ones() -> None:
    found = counted("roberta_base", "shira").counts
    assert found is not None
    assert (found.adapter, found.head) == (24 * 8 * (768 + 768), 592_130)
    assert counted("roberta_base", "shira", "frozen").refusal == ""


def test_a_method_that_reads_the_weights_of_a_large_backbone_says_that_it_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(params, "_drawn", lambda backbone: pytest.fail(f"{backbone.name} has no room"))
    assert script.main(["backbones=llama32_1b,llama_7b", "methods=shira,lora", f"results_dir={tmp_path}"]) == 0
    with (tmp_path / "params" / "params.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["method"] == "shira"]
    assert len(rows) == 4
    for row in rows:
        assert row["adapter"] == ""
        assert "reads the weights before it knows what it trains, and is counted on random ones below" in row["refusal"]


@pytest.mark.parametrize("backbone", ["roberta_base", "roberta_large", "minilm"])
def test_the_arithmetic_ends_on_the_count(backbone: str) -> None:
    lines, total = params.arithmetic(load_backbone(backbone))
    frozen = counted(backbone, "propulsion", "frozen")
    assert frozen.counts is not None
    pooled = 0 if backbone != "minilm" else load_backbone("minilm").architecture["hidden_size"]
    assert frozen.counts.trainable == total - pooled  # one linear is the whole head of minilm
    assert f"= {total:,}" in lines[-1]


def test_the_report_needs_no_network_and_says_the_headline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    chosen = ["backbones=roberta_base,roberta_large,llama32_1b", "methods=full,lora,bitfit,propulsion"]
    assert script.main([*chosen, f"results_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    for number in ("355,361,794", "86,018", "225,282", "1,577x", "1,449x", "4,131x", "10.3x", "3.4x", "1.3x"):
        assert number in out
    text = (tmp_path / "params" / "params.md").read_text(encoding="utf-8")
    assert "= 82,944" in text
    assert "refused: no biases" in text
    with (tmp_path / "params" / "params.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 4 * 2
    (row,) = (
        r for r in rows if (r["backbone"], r["method"], r["head_policy"]) == ("roberta_base", "propulsion", "frozen")
    )
    assert (row["adapter"], row["head"], row["bytes_fp32"]) == ("86018", "0", str(4 * 86_018))
    assert float(row["x_lora_as_the_paper"]) == pytest.approx(10.31, abs=0.01)
    latex = (tmp_path / "params" / "params.tex").read_text(encoding="utf-8")
    assert latex.count("\\begin{table*}") == latex.count("\\end{table*}") == 3
    assert "roberta_base" not in latex.replace("roberta\\_base", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbones=roberta_bas"], "unknown backbone 'roberta_bas': did you mean roberta_base"),
        (["methods=lara"], "unknown method 'lara': did you mean lora"),
        (["backbone=minilm"], "unknown argument 'backbone': did you mean backbones"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([*words, f"results_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert "\n" not in err
    assert not list(tmp_path.iterdir())
