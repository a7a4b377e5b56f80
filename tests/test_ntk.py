"""Tangent kernels: against an explicit Jacobian, theory, and controls in expectation; `make ntk` on a toy backbone."""

from __future__ import annotations

import copy
import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn

from propulsion import PropulsionConfig
from propulsion.harness import cell, leases, record
from propulsion.harness.errors import UserError
from propulsion.harness.leases import Lease
from propulsion.harness.metrics import Questions
from propulsion.harness.ntk import measures, records, regression, report, verdict
from propulsion.harness.ntk.jacobians import kernels, logits, per_output
from propulsion.harness.ntk.measure import Rows, _scores, agreement
from propulsion.harness.settings import Settings
from propulsion.harness.sources import open_source
from scripts import ntk
from tests.conftest import ROOT, compose_settings
from tests.tiny_models import VOCABULARY, tiny_classifier

ROWS = [
    {"input_ids": torch.randint(4, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(length))}
    for length in (3, 5, 6, 9)
]
PROPULSION = {"task_type": "SEQ_CLS", "target_modules": "all"}


def model_of(kind: str, family: str = "bert") -> nn.Module:
    base = tiny_classifier(family).double()
    if kind == "full":
        return base
    if kind == "lora":
        return get_peft_model(base, LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")).eval()
    if kind == "ia3":
        names = {"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]}
        return get_peft_model(base, IA3Config(**names, task_type="SEQ_CLS")).eval()
    return get_peft_model(base, PropulsionConfig(degree=int(kind), **PROPULSION)).eval()


def trained(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def explicit(model: nn.Module, names: list[str]) -> torch.Tensor:
    """The Jacobian `(rows * outputs, parameters)` by one call of autograd for each row and output."""
    parameters = [dict(model.named_parameters())[name] for name in names]
    for parameter in parameters:
        parameter.requires_grad_()
    lines = []
    for row in ROWS:
        for output in model(**row).logits[0]:
            grads = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
            lines.append(torch.cat([grad.reshape(-1) for grad in filled]))
    return torch.stack(lines)


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "llama"])
def test_the_kernel_of_all_parameters_is_that_of_the_explicit_jacobian(family: str) -> None:
    model = model_of("full", family)
    names = trained(model)
    found = kernels(model, {"all": names}, ROWS).grams["all"]
    jacobian = explicit(model, names)
    torch.testing.assert_close(found, jacobian @ jacobian.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["lora", "ia3", "15"])
def test_kernels_of_adapters_are_those_of_the_explicit_jacobian(kind: str) -> None:
    model = model_of(kind)
    names = trained(model)
    groups = {"adapter": names[:-2], "head": names[-2:]}
    found = kernels(model, groups, ROWS)
    for group, own in groups.items():
        jacobian = explicit(model, own)
        torch.testing.assert_close(found.grams[group], jacobian @ jacobian.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("room", "part"),
    [(1, "encoder.layer.1.output.dense.bias"), (1_000, "encoder.layer.1.output"), (60_000, "")],
    ids=["an entry", "a place", "all"],
)
def test_blocks_of_any_size_give_the_same_kernels(room: int, part: str) -> None:
    model = model_of("full")
    names = [name for name in trained(model) if part in name]
    total = sum(dict(model.named_parameters())[name].numel() for name in names)
    entries = torch.randperm(total, generator=torch.Generator().manual_seed(0))[: total // 2].sort().values
    whole = kernels(model, {"all": names}, ROWS, {"some": ("all", entries)})
    blocks = kernels(model, {"all": names}, ROWS, {"some": ("all", entries)}, room=room)
    jacobian = explicit(model, names)[:, entries]
    for name in ("all", "some"):
        torch.testing.assert_close(blocks.grams[name], whole.grams[name], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(whole.grams["some"], jacobian @ jacobian.T, rtol=1e-10, atol=1e-12)


def test_per_output_and_summed_kernels() -> None:
    model = model_of("full")
    names = trained(model)
    found = kernels(model, {"all": names}, ROWS)
    jacobian = explicit(model, names)
    first, second = jacobian[0::2], jacobian[1::2]
    torch.testing.assert_close(found.per_output("all")[1], second @ second.T)
    torch.testing.assert_close(found.summed("all"), first @ first.T + second @ second.T)


def test_at_z_of_one_the_kernel_grows_with_the_square_of_the_degree() -> None:
    found = {}
    for degree in (1, 2, 15, 55):
        model = model_of(str(degree))
        names = [name for name in trained(model) if "propulsion_z" in name]
        found[degree] = kernels(model, {"z": names}, ROWS).grams["z"]
    for degree, gram in found.items():
        torch.testing.assert_close(gram, degree**2 * found[1], rtol=1e-10, atol=1e-14)


def test_the_gradient_of_z_is_that_of_its_row_of_the_weights() -> None:
    """d f / d z_j = k (<W_j, d f / d W_j> + b_j d f / d b_j): Propulsion moves each row of weights along itself."""
    base, tuned = model_of("full"), model_of("3")
    of_z = explicit(tuned, ["base_model.model.bert.encoder.layer.0.output.dense.propulsion_z.default"])
    layer = "bert.encoder.layer.0.output.dense"
    dense = base.get_submodule(layer)
    weight, bias = explicit(base, [f"{layer}.weight"]), explicit(base, [f"{layer}.bias"])
    expected = 3 * ((weight.view(len(weight), *dense.weight.shape) * dense.weight).sum(-1) + bias * dense.bias)
    torch.testing.assert_close(of_z, expected.detach(), rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- controls and measures


def random_gram(rows: int = 12, width: int = 30, seed: int = 0) -> torch.Tensor:
    features = torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return features @ features.T


def test_random_directions_have_the_full_kernel_as_their_mean_and_the_spread_of_projections() -> None:
    gram, number = random_gram(), 50
    draws = torch.stack([measures.random_directions(gram, number, seed) for seed in range(600)])
    diagonal = gram.diagonal()
    # a Wishart matrix over n: variance (K_ij^2 + K_ii K_jj) / n
    spread = ((gram**2 + diagonal[:, None] * diagonal[None]) / number).sqrt()
    assert ((draws.mean(0) - gram).abs() < 4.5 * spread / math.sqrt(len(draws))).all()
    torch.testing.assert_close(draws.std(0), spread, rtol=0.2, atol=0)
    explicit_draws = []
    values, vectors = torch.linalg.eigh(gram)
    root = vectors * values.clamp_min(0).sqrt()
    generator = torch.Generator().manual_seed(1)
    for _ in range(600):  # the same by actual projections of a Jacobian
        projected = root @ torch.randn(len(root), number, dtype=torch.float64, generator=generator)
        explicit_draws.append(measures.alignment(projected @ projected.T, gram))
    drawn = [measures.alignment(draw, gram) for draw in draws]
    assert abs(sum(drawn) / 600 - sum(explicit_draws) / 600) < 0.01
    assert torch.linalg.matrix_rank(measures.random_directions(gram, 3, 0)) == 3


def test_measures_by_hand_and_their_invariances() -> None:
    one, two = torch.diag(torch.tensor([3.0, 4.0])), torch.diag(torch.tensor([4.0, 3.0]))
    assert measures.cosine(one, two) == pytest.approx(24 / 25)
    assert measures.best_scale(one, two) == pytest.approx(24 / 25)
    assert measures.relative_error(one, two) == pytest.approx(math.sqrt(1 - (24 / 25) ** 2))
    gram, other = random_gram(seed=1), random_gram(seed=2)
    shift = torch.ones(12, 12, dtype=torch.float64)
    assert measures.alignment(gram, other) == pytest.approx(measures.alignment(7 * gram + 5 * shift, other))
    assert measures.alignment(gram, gram) == pytest.approx(1)
    features = torch.randn(12, 5, dtype=torch.float64)
    moved = features - features.mean(0)
    torch.testing.assert_close(measures.centred(features @ features.T), moved @ moved.T)
    assert measures.effective_rank(measures.spectrum(torch.eye(7))) == pytest.approx(7)
    assert measures.effective_rank(measures.spectrum(torch.ones(7, 7))) == pytest.approx(1, abs=1e-3)
    assert measures.cosine(torch.zeros(2, 2), one) == 0.0 == measures.best_scale(torch.zeros(2, 2), one)


def test_kernel_regression_is_ridge_regression_on_the_linearised_model() -> None:
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(10, 2, 6, dtype=torch.float64, generator=generator)  # rows, outputs, parameters
    start = torch.randn(10, 2, dtype=torch.float64, generator=generator)
    targets = torch.randn(7, 2, dtype=torch.float64, generator=generator)
    flat = jacobian.reshape(20, 6)
    predicted, share = regression.predict(flat @ flat.T, 2, start, targets)
    ridge = share * float((flat[:14] @ flat[:14].T).diagonal().mean())
    step = torch.linalg.solve(
        flat[:14].T @ flat[:14] + ridge * torch.eye(6, dtype=torch.float64),
        flat[:14].T @ (targets - start[:7]).reshape(-1),
    )
    torch.testing.assert_close(predicted, start[7:] + (flat[14:] @ step).reshape(3, 2), rtol=1e-6, atol=1e-8)


def test_leaving_a_row_out_in_closed_form_is_leaving_it_out() -> None:
    gram, outputs, ridge = random_gram(rows=8, width=5, seed=3), 2, 0.7
    residual = torch.randn(8, dtype=torch.float64)
    errors = []
    for row in range(4):
        own = [2 * row, 2 * row + 1]
        rest = [i for i in range(8) if i not in own]
        inner = gram[rest][:, rest] + ridge * torch.eye(6, dtype=torch.float64)
        errors.append(residual[own] - gram[own][:, rest] @ torch.linalg.solve(inner, residual[rest]))
    expected = float(torch.cat(errors).square().mean())
    assert regression._left_out(gram, ridge, residual, outputs) == pytest.approx(expected)


def test_the_linearised_model_learns_what_a_linear_one_does() -> None:
    """A model that is linear in its parameters is its own linearisation: the regression fits its own outputs."""
    start = torch.zeros(6, 1, dtype=torch.float64)
    features = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = features @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    predicted, share = regression.predict(features @ features.T, 1, start, targets[:4])
    assert share == min(regression.RIDGES)
    torch.testing.assert_close(predicted, targets[4:], rtol=1e-3, atol=1e-4)


def test_agreement_by_hand() -> None:
    ours = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [0.5, 0.0]])
    theirs = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 3.0], [0.5, 0.0]])
    assert agreement(ours, theirs) == 0.75
    line = torch.tensor([[0.0], [1.0], [2.0]])
    assert agreement(line, 5 - 2 * line) == pytest.approx(-1)
    assert agreement(line, torch.ones(3, 1)) == 0.0


# ---------------------------------------------------------------- the verdict


def entry(
    task: str, seed: int, ours: float, directions: float, subset: float, source: str = "local", rows: int = 40
) -> dict[str, Any]:
    controls = {"directions": directions, "subset": subset}
    return {
        "run": {
            "task": task, "backbone": "minilm", "seed": seed, "data": {"source": source}, "weights": {"id": "x"},
            "config": {"seed": seed},
        },
        "rows": {"train": rows, "eval": 24, "outputs": 2},
        "subjects": {"propulsion": {
            "adapter": {"alignment": ours},
            "controls": {name: {"adapter": {"alignment": value}} for name, value in controls.items()},
        }},
    }  # fmt: skip


def test_the_verdict_needs_every_task_and_three_seeds_of_real_rows() -> None:
    tasks = verdict.CLAIMED[1]
    entries = [entry(task, seed, 0.95, 0.99, 0.8) for task in tasks for seed in range(3)]
    found = verdict.found(entries, "minilm")
    assert [each.task for each in found] == list(tasks) and verdict.whole(found)
    assert all(each.close and each.beats(each.subset) and not each.beats(each.directions) for each in found)
    assert not verdict.whole(verdict.found(entries[1:], "minilm"))
    assert not verdict.whole(verdict.found(entries[3:], "minilm"))
    generated = [entry("sst2", seed, 0.95, 0.99, 0.8, "generated") for seed in range(3)]
    assert verdict.found(generated, "minilm") == []
    assert not verdict.found([entry("sst2", 0, 0.89, 0.9, 0.9)], "minilm")[0].close


def test_records_of_one_seed_are_one_seed_and_other_conditions_are_no_seeds() -> None:
    own = [entry("sst2", seed, 0.95, 0.99, 0.8) for seed in (0, 1)]
    others = [entry("sst2", seed, 0.5, 0.99, 0.8, rows=100) for seed in (0, 2)]
    again = entry("sst2", 0, 0.5, 0.99, 0.8)  # the same cell of another result set
    (found,) = verdict.found([*own, again, others[0]], "minilm")
    assert (found.ours, found.others) == ((0.95, 0.95), 1)
    degree = entry("sst2", 2, 0.5, 0.99, 0.8)
    degree["subjects"]["propulsion"]["degree"] = 55
    (found,) = verdict.found([*others, *own, degree, entry("sst2", 5, 0.95, 0.99, 0.8)], "minilm")
    assert (found.ours, found.others) == ((0.95, 0.95, 0.95), 3)


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make ntk` writes, on a toy backbone with random weights."""
    folder = tmp_path_factory.mktemp("ntk")
    for words in RUNS:
        assert ntk.main([*WORDS, f"results_dir={folder}", *words]) == 0
    return folder


WORDS = [
    *("experiment=tiny", "methods=full,head,lora,propulsion", "degrees=3", "training.center_regression=true"),
    *("training.max_train_rows=8", "training.max_eval_rows=8", "training.keep_weights=last", "training.max_steps=2"),
]
RUNS = (["tasks=sst2", "seeds=0"], ["tasks=sst2,stsb", "seeds=1", "trained=no"])


def test_make_ntk_measures_and_writes(results: Path) -> None:
    entries = records.read(results)
    assert [(e["run"]["task"], e["run"]["seed"]) for e in entries] == [("sst2", 0), ("sst2", 1), ("stsb", 1)]
    subjects = entries[0]["subjects"]
    assert list(subjects) == ["full", "head", "lora", "propulsion", "propulsion k=3"]
    assert subjects["full"]["adapter"]["alignment"] == pytest.approx(1) == subjects["full"]["whole"]["alignment"]
    assert "adapter" not in subjects["head"] and "controls" not in subjects["head"]
    ours, other = subjects["propulsion"], subjects["propulsion k=3"]
    assert other["adapter"]["alignment"] == pytest.approx(ours["adapter"]["alignment"], abs=1e-5)
    assert ours["adapter"]["scale"] / other["adapter"]["scale"] == pytest.approx((3 / 15) ** 2, rel=1e-4)
    assert len(ours["whole"]["outputs"]) == 2 and len(entries[2]["subjects"]["full"]["whole"]["outputs"]) == 1
    for label in ("lora", "propulsion"):
        controls = subjects[label]["controls"]
        assert set(controls) == {"directions", "subset"}
        assert 0 < controls["directions"]["adapter"]["alignment"] <= 1 + 1e-9
    assert 0 <= ours["trained"]["agreement"] <= 1 and ours["trained"]["steps"] == 2
    assert "trained" not in entries[1]["subjects"]["propulsion"]
    assert ours["trained"]["kernel"]["alignment_to_start"] > 0.5
    for name in ("tables/ntk.md", "tables/ntk.csv", "tables/ntk.tex", "figures/ntk-minilm-closeness.png"):
        assert (results / name).stat().st_size > 500
    with (results / "tables" / "ntk.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    (value,) = [
        r["value"] for r in rows
        if (r["task"], r["seed"], r["method"], r["measure"]) == ("sst2", "1", "lora", "adapter.alignment")
    ]  # fmt: skip
    assert float(value) == entries[1]["subjects"]["lora"]["adapter"]["alignment"]


def test_kernels_that_are_there_are_skipped_and_the_tables_stay(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in results.rglob("*") if path.suffix in (".md", ".csv", ".svg", ".json")}
    for words in RUNS:
        assert ntk.main([*WORDS, f"results_dir={results}", *words]) == 0
    assert capsys.readouterr().out.count("done before, skipped") == 3
    assert {path: path.read_bytes() for path in before} == before


def test_a_plain_run_lands_in_no_committed_folder() -> None:
    committed = {line[2:].strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line[:2] == "!/"}
    folders = [ntk.parse(words).folder for words in ([], ["data_dir=x"], ["data_dir=x", "results_dir=mine"])]
    assert folders == ["results/ntk-generated", "results/ntk-local", "mine"]
    assert committed and not committed & set(folders)


def measured(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*.json")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=0", "training.max_train_rows=6"], "under other conditions (training.max_train_rows)"),
        (["seeds=7", "training.max_train_rows=6"], "under other conditions (training.max_train_rows)"),
        (["seeds=0", "task.version=9", "data.seed=1"], "under other conditions (data.seed, fingerprint, task.version)"),
        (["seeds=7,0", "methods=full,head"], "of full, head, lora, propulsion, propulsion k=3"),
        (["seeds=0", "trained=no"], "trained=yes"),
    ],
)
def test_kernels_of_another_kind_are_neither_replaced_nor_mixed(
    words: list[str], message: str, results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = measured(results)
    monkeypatch.setattr(ntk, "run_cell", lambda *_: pytest.fail("a cell was run"))
    monkeypatch.setattr(ntk, "measure", lambda *_: pytest.fail("a kernel was measured"))
    assert ntk.main([*WORDS, f"results_dir={results}", "tasks=sst2", *words]) == 2
    error = capsys.readouterr().err
    assert str(records.path_of(results, "sst2", "minilm", 0)) in error
    assert message in error and "results_dir=" in error and error.count("\n") == 1
    assert measured(results) == before


def test_a_file_that_is_no_whole_record_is_set_aside(results: Path, tmp_path: Path, capsys: Any) -> None:
    (known,) = [e for e in records.read(results) if (e["run"]["task"], e["run"]["seed"]) == ("stsb", 1)]
    path = records.path_of(tmp_path, "stsb", "minilm", 1)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert records.write(tmp_path, known) == path
    assert path.with_name("1.json.broken-1").read_text() == "{"
    assert "set aside as 1.json.broken-1" in capsys.readouterr().err
    assert records.read(tmp_path) == [known]


def edited(results: Path, folder: Path, name: str, change: Any) -> Path:
    """A copy of the kernels with one of SST-2, seed 0, written over under a name as `change` leaves it."""
    shutil.copytree(results / "kernels", folder / "kernels")
    known = json.loads(records.path_of(folder, "sst2", "minilm", 0).read_text())
    change(known)
    path = folder / "kernels" / "sst2" / "minilm" / name
    path.write_text(json.dumps(record.sealed({key: value for key, value in known.items() if key != "digest"})))
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("0.json", lambda e: e["rows"].update(train=7), "training rows"),
        ("0.json", lambda e: e["run"]["data"].update(fingerprint="other"), "fingerprint"),
        ("0.json", lambda e: e["run"]["weights"].update(id="other"), "weights"),
        ("0.json", lambda e: e["run"]["config"]["training"].update(max_length=7), "training.max_length"),
        ("00.json", lambda e: None, "seed 0 twice"),
    ],
)
def test_unlike_kernels_never_share_a_table(
    name: str, change: Any, message: str, results: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"sst2, minilm: .*results_dir") as refused:
        report.write_report(edited(results, tmp_path, name, change))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "tables").exists()


def test_the_legend_names_every_version_that_measured(results: Path, tmp_path: Path) -> None:
    made, _ = report.write_report(edited(results, tmp_path, "0.json", lambda e: e["env"].update(torch="9.9")))
    assert "torch 9.9, " in made[0].legend and made[0].legend.count("torch ") == 2
    assert made[1].legend.count("torch ") == 1


def test_a_cell_that_another_process_has_is_one_line_and_try_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, f"results_dir={tmp_path}", "tasks=sst2", "methods=full,head"]
    settings = ntk.cells(ntk.parse(words), "sst2", "minilm", "0")["full"]
    key = record.cell_key(settings.config, open_source(settings.task, settings.data).fingerprint())
    with Lease(tmp_path / leases.FOLDER, key, {}):
        assert ntk.main(words) == 75
    out = capsys.readouterr()
    assert out.out.startswith("sst2/minilm/full seed 0: running elsewhere (") and out.out.count("\n") == 1
    assert out.err == ""
    assert records.read(tmp_path) == []


def broken_training(monkeypatch: pytest.MonkeyPatch, method: str, seeds: tuple[int, ...]) -> None:
    """Training as it is, but for the cells of one method and some seeds: they fail."""
    whole = cell.train

    def train(*given: Any, **named: Any) -> Any:
        (settings,) = (value for value in given if isinstance(value, Settings))
        if settings.method.name == method and settings.seed in seeds:
            raise RuntimeError("no room left")
        return whole(*given, **named)

    monkeypatch.setattr(cell, "train", train)


def test_a_failed_training_is_said_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, f"results_dir={tmp_path}", "tasks=sst2", "methods=full,lora", "seeds=0,1"]
    with pytest.MonkeyPatch.context() as patched:
        broken_training(patched, "lora", (0,))
        assert ntk.main(words) == 1
    out = capsys.readouterr().out.splitlines()
    assert "sst2/minilm/lora seed 0: failed (RuntimeError: no room left)" in out
    assert "[1/2] sst2/minilm seed 0: 2 kernels; not measured, as a training failed" in out
    assert [e["run"]["seed"] for e in records.read(tmp_path)] == [1]  # the grid went on
    assert (tmp_path / "tables" / "ntk.md").is_file()
    assert ntk.main(words) == 0
    assert capsys.readouterr().out.count("done before, skipped") == 1
    first = records.read(tmp_path)[0]
    assert first["run"]["seed"] == 0 and all("trained" in subject for subject in first["subjects"].values())


def test_where_every_training_failed_there_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        broken_training(patched, "full", (0,))
        assert ntk.main([*WORDS, f"results_dir={tmp_path}", "tasks=sst2", "methods=full"]) == 1
    out = capsys.readouterr()
    assert "sst2/minilm/full seed 0: failed (RuntimeError: no room left)" in out.out and out.err == ""
    assert records.read(tmp_path) == []


def test_a_diverged_training_is_said_and_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_cell(settings: Settings) -> tuple[dict[str, Any], bool]:
        return {"status": record.DIVERGED, "error": {"type": "Diverged", "message": "a logit is not finite"}}, True

    monkeypatch.setattr(ntk, "run_cell", run_cell)
    chosen = ntk.cells(ntk.parse([*WORDS, f"results_dir={tmp_path}", "methods=full"]), "sst2", "minilm", "0")
    assert ntk.trained_cells(chosen) == {}
    assert capsys.readouterr().out == "sst2/minilm/full seed 0: diverged (Diverged: a logit is not finite)\n"


@pytest.mark.parametrize("task", ["copa", "axg", "multirc", "record"])
def test_tasks_of_questions_are_scored_as_their_cells_are(task: str, tmp_path: Path) -> None:
    words = [f"tasks={task}", "methods=full,lora", "training.max_eval_rows=16", "training.evaluations=1"]
    assert ntk.main([*WORDS, f"results_dir={tmp_path}", *words]) == 0
    (found,) = records.read(tmp_path)
    for label, subject in found["subjects"].items():
        (path,) = tmp_path.glob(f"runs/{task}/minilm/{label}/*.json")
        assert subject["trained"]["scores"] == pytest.approx(json.loads(path.read_text())["eval"]["last"])
        assert set(subject["regression"]["scores"]) == set(subject["trained"]["scores"])


def test_a_question_is_answered_by_the_row_that_speaks_loudest() -> None:
    """Two questions of two choices, the right one first in both; every row alone speaks for class 1."""
    task = compose_settings("experiment=tiny", "task=copa", "method=full").task
    rows = Rows([], np.array([0.0, 1, 0, 1, 0]), 1, Questions(np.array([0, 0, 1, 1])))
    loud = torch.tensor([[0.0, 3.0], [0.0, 1.0], [0.0, 1.0], [0.0, 2.0]])
    assert _scores(loud, rows, task) == {"choice_accuracy": 0.5}


@pytest.mark.parametrize("methods", ["full", "full,head"])
def test_without_a_method_that_has_controls_there_is_no_figure_of_them(methods: str, tmp_path: Path) -> None:
    words = [*WORDS, f"results_dir={tmp_path}", "tasks=sst2", f"methods={methods}", "trained=no"]
    assert ntk.main(words) == 0
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} == {
        *("ntk-minilm-sst2-heatmaps.png", "ntk-minilm-sst2-spectra.png"),
    }


def test_the_recorded_kernel_is_that_of_the_cells_own_start(results: Path) -> None:
    """The trace of Propulsion's kernel, from the explicit Jacobian of the model as its cell builds it."""
    from propulsion.harness.assembly import build_model
    from propulsion.harness.ntk.measure import read_rows

    request = ntk.parse([*WORDS, f"results_dir={results}"])
    settings = ntk.cells(request, "sst2", "minilm", "1")["propulsion"]
    rows = read_rows(settings)
    _, model, parts, _ = build_model(settings)
    model.eval()
    total = 0.0
    for row in rows.inputs:
        for output in model(**row).logits[0]:
            own = [dict(model.named_parameters())[name] for name in parts.adapter]
            total += sum(float(g.double().square().sum()) for g in torch.autograd.grad(output, own, retain_graph=True))
    recorded = next(e for e in records.read(results) if (e["run"]["task"], e["run"]["seed"]) == ("sst2", 1))
    assert recorded["subjects"]["propulsion"]["adapter"]["trace"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["methods=head"], "leave `full` among the methods"),
        (["trained=maybe"], "trained=maybe: use yes or no"),
        (["memory=much"], "memory=much: give whole GB"),
        (["methods=full,nope"], "unknown method 'nope'"),
        (["training.max_steps=1,2"], "give every other key one value"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    assert ntk.main([*WORDS, f"results_dir={tmp_path}", "tasks=sst2", *words]) == 2
    assert message in capsys.readouterr().err


def test_dropout_does_not_touch_a_kernel() -> None:
    model = model_of("15")
    names = trained(model)
    one = kernels(model.train(), {"all": names}, ROWS).grams["all"]
    two = kernels(copy.deepcopy(model).train(), {"all": names}, ROWS).grams["all"]
    assert torch.equal(one, two) and torch.equal(logits(model, ROWS), logits(model.eval(), ROWS))
    assert len(per_output(one, 2)) == 2
