"""Training: optimizer groups, steps, the effective batch, divergence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from baselines import Partition
from propulsion.harness.cell import run_cell
from propulsion.harness.optimizing import is_matrix, parameter_groups
from propulsion.harness.sampler import EpochSampler
from propulsion.harness.settings import TrainingSpec, total_steps
from propulsion.harness.training import _arguments
from tests.conftest import ComposeCell


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(3, 4))
        self.z = nn.Parameter(torch.ones(4))
        self.ia3 = nn.Parameter(torch.ones(1, 4))
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def test_groups_give_the_head_its_own_rate_and_decay_matrices_alone() -> None:
    parts = Partition(adapter=("matrix", "z", "ia3"), head=("head.weight", "head.bias"))
    spec = TrainingSpec(learning_rate=0.1, head_learning_rate=0.5, weight_decay=0.01)
    toy = Toy()
    groups = parameter_groups(toy, parts, spec)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        id(toy.matrix): (0.1, 0.01),
        id(toy.z): (0.1, 0.0),
        id(toy.ia3): (0.1, 0.0),
        id(toy.head.weight): (0.5, 0.01),
        id(toy.head.bias): (0.5, 0.0),
    }


def test_vectors_are_decayed_where_a_recipe_asks_for_it() -> None:
    parts = Partition(adapter=("matrix", "z", "ia3"), head=("head.weight", "head.bias"))
    groups = parameter_groups(Toy(), parts, TrainingSpec(learning_rate=0.1, weight_decay=0.01, decay_vectors=True))
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(3, 0.01), (2, 0.01)]


def test_vectors_stored_as_matrices_are_vectors() -> None:
    assert not is_matrix(torch.ones(1, 7))
    assert not is_matrix(torch.ones(7, 1))
    assert is_matrix(torch.ones(2, 7))


@pytest.mark.parametrize(
    ("spec", "rows", "steps"),
    [
        (TrainingSpec(epochs=2, batch_size=16), 100, 14),
        (TrainingSpec(epochs=2, batch_size=16, accumulation=2), 100, 8),
        (TrainingSpec(epochs=0.5, batch_size=10), 100, 5),
        (TrainingSpec(epochs=9, max_steps=3), 100, 3),
    ],
)
def test_total_steps(spec: TrainingSpec, rows: int, steps: int) -> None:
    assert total_steps(spec, rows) == steps


WARMING = [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["training.warmup_ratio=0.5"], [*WARMING, *[1.0] * 4]),
        (["training.warmup_steps=4", "training.warmup_ratio=0"], [*WARMING, *[1.0] * 4]),
        (["training.warmup_ratio=0"], [1.0] * 8),
        (["training.warmup_steps=0"], [1.0] * 8),
        (["training.schedule=linear", "training.warmup_ratio=0.5"], [*WARMING, 1.0, 0.75, 0.5, 0.25]),
    ],
)
def test_a_constant_rate_warms_up_as_its_settings_say(
    tiny: ComposeCell, words: list[str], expected: list[float], tmp_path: Path
) -> None:
    settings = tiny("training.schedule=constant", "training.max_steps=8", *words)
    arguments = _arguments(settings, 100, "fp32", tmp_path)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = get_scheduler(arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(8), 8)
    rates = []
    for _ in range(8):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected)


def test_the_order_of_rows_hangs_on_seed_and_epoch_alone_and_groups_lengths() -> None:
    lengths = [1 + i * 7919 % 60 for i in range(203)]
    sampler = EpochSampler(lengths, batch_size=8, seed=3)
    torch.manual_seed(0)
    first = list(sampler)
    torch.manual_seed(1)
    assert list(sampler) == first
    assert sorted(first) == list(range(203))
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(EpochSampler(lengths, batch_size=8, seed=4)) != first
    spread = [max(b) - min(b) for i in range(0, 200, 8) if (b := [lengths[j] for j in first[i : i + 8]])]
    assert sum(spread) / len(spread) < 20  # of 60: random batches would spread over about 46


def test_accumulated_micro_batches_equal_one_large_batch(tiny: ComposeCell) -> None:
    """Same rows, no dropout: 2 x 4 rows accumulated must train exactly as one batch of 8."""
    quiet = [
        "method=propulsion",
        "training.evaluations=1",
        "training.max_train_rows=8",
        "training.max_steps=5",
    ]
    quiet += ["training.dropout=0.0", "training.learning_rate=0.01"]
    whole, _ = run_cell(tiny(*quiet, "training.batch_size=8"))
    halves, _ = run_cell(tiny(*quiet, "training.batch_size=4", "training.accumulation=2"))
    assert whole["status"] == halves["status"] == "success"
    assert halves["eval"]["history"][-1]["loss"] == pytest.approx(whole["eval"]["history"][-1]["loss"], rel=1e-5)
    assert whole["cost"]["steps"] == halves["cost"]["steps"] == 5


def test_a_run_that_leaves_the_finite_numbers_is_recorded_as_diverged(tiny: ComposeCell) -> None:
    entry, _ = run_cell(tiny("method=full", "training.learning_rate=1e30", "training.max_steps=20"))
    assert entry["status"] == "diverged"
    assert entry["error"]["type"] == "Diverged"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp16", "fp32"])
def test_a_cell_runs_on_cuda(tiny: ComposeCell, precision: str) -> None:
    entry, _ = run_cell(tiny(f"training.precision={precision}"))
    assert entry["status"] == "success"
    assert entry["cost"]["peak_memory_bytes"] > 0
    assert entry["env"]["cuda"] is not None
