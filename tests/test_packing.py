"""Packs: cells that train together come to what each comes to alone."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import set_seed

from propulsion.fast import fast_path, find_path
from propulsion.fast.packed import Packed, tensors
from propulsion.harness import cell as cell_module
from propulsion.harness import packing, record
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import UserError
from propulsion.harness.packing import Pack, fit, packs
from propulsion.harness.settings import Settings
from propulsion.harness.turns import Turn, clock, current
from scripts import run
from tests.conftest import ComposeCell, compose_settings

FAST = "training.fast_path=auto"
METHODS = ("propulsion", "lora", "ia3", "bitfit", "propulsion_attn", "head", "propulsion_paper", "propulsion")


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, torch.Tensor]]:
    """The trained tensors of every cell that ends while the test runs, by cell and turn."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    train = cell_module.train

    def spy(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        outcome = train(model, *args, **kwargs)
        settings = args[4]
        found[f"{settings.config['results_dir']} {settings.cell} {settings.training.learning_rate}"] = trained(model)
        return outcome

    monkeypatch.setattr(cell_module, "train", spy)
    return found


def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells with a float64 model."""
    load = cell_module.load_model

    def wide(*args: Any, **kwargs: Any) -> Any:
        model, weights = load(*args, **kwargs)
        return model.double(), weights

    monkeypatch.setattr(cell_module, "load_model", wide)


def run_packed(cells: Sequence[Settings], width: int = 8) -> list[dict[str, Any]]:
    """The records of cells that train together, in their order."""
    entries: dict[int, dict[str, Any]] = {}

    def job(number: int) -> Callable[[], None]:
        return lambda: entries.update({number: run_cell(cells[number])[0]})

    Pack(width).run([job(number) for number in range(len(cells))])
    return [entries[number] for number in range(len(cells))]


def outcome(entry: dict[str, Any]) -> dict[str, Any]:
    """What a record says of the run, times and counts of time left out."""
    history = [{k: v for k, v in each.items() if k != "seconds"} for each in entry["eval"]["history"]]
    return {**{k: entry[k] for k in ("key", "status", "params")}, "eval": {**entry["eval"], "history": history}}


@pytest.mark.parametrize(("runs", "dropout"), itertools.product((2, 3, 8), (0.0, 0.1)))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_runs_equal_their_solo_runs(
    runs: int,
    dropout: float,
    dtype: str,
    tmp_path: Path,
    models: dict[str, dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if dtype == "float64":
        double(monkeypatch)
    cells = {
        place: [
            compose_settings(
                "experiment=tiny",
                f"results_dir={tmp_path / place}",
                f"task={('rte', 'stsb', 'cola')[number % 3]}",
                f"method={METHODS[number]}",
                f"training.learning_rate={0.001 * (number + 1)}",
                f"training.batch_size={4 + number % 3}",
                f"training.weight_decay={0.1 * (number % 2)}",
                f"training.schedule={('linear', 'cosine')[number % 2]}",
                f"training.dropout={dropout}",
                "training.max_steps=50",
                FAST,
            )
            for number in range(runs)
        ]
        for place in ("solo", "packed")
    }
    solo = [run_cell(settings)[0] for settings in cells["solo"]]
    packed = run_packed(cells["packed"])
    assert [entry["cost"]["packed_with"] for entry in solo] == [1] * runs
    together = sum(settings.method.name != "head" for settings in cells["packed"])
    assert max(entry["cost"]["packed_with"] for entry in packed) == together
    tolerance = {"float32": 1e-5, "float64": 1e-10}[dtype]
    for one, other, settings in zip(solo, packed, cells["solo"], strict=True):
        assert one["key"] == other["key"] and one["status"] == other["status"] == "success"
        name = f"{settings.cell} {settings.training.learning_rate}"
        own, theirs = models[f"{tmp_path / 'solo'} {name}"], models[f"{tmp_path / 'packed'} {name}"]
        for key, tensor in own.items():
            torch.testing.assert_close(theirs[key], tensor, rtol=tolerance, atol=tolerance)
        assert one["eval"]["last"] == pytest.approx(other["eval"]["last"], abs=1e-6)
        assert [e["step"] for e in one["eval"]["history"]] == [e["step"] for e in other["eval"]["history"]]
        assert one["cost"]["padding_fraction"] == other["cost"]["padding_fraction"] == 0


def test_a_cell_does_not_depend_on_who_else_is_there(tiny: ComposeCell) -> None:
    cell = tiny(FAST, "task=rte", "results_dir=${oc.env:PWD}/unused")
    assert fit(cell).key is None or cell  # composed


