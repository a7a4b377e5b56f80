"""Packs: the products of all runs at once, and passes without gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines import apply_method
from propulsion.fast import fast_path, find_path, lowrank
from propulsion.fast.lowrank import add_low_rank_, low_rank_backward
from propulsion.fast.packed import stack_rows
from propulsion.fast.path import FastPath, Pass
from propulsion.fast.rows import Rows, flatten
from propulsion.harness import packing
from propulsion.harness.backbones import load_model
from propulsion.harness.packing import Pack
from tests.conftest import compose_settings
from tests.test_packing import Run

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
RANK, INNER, OUTER = 3, 5, 7


def rows_of(tokens: list[int], device: str = "cpu") -> Rows:
    """The layout of runs of one sequence each."""
    found = [flatten(torch.ones(1, count, device=device), 1) for count in tokens]
    return stack_rows([rows for rows in found if rows is not None])


def drawn(tokens: list[int], device: str = "cpu", seed: int = 0) -> list[torch.Tensor]:
    """Product, input, A and B of every run, and a gradient, in float64."""
    generator = torch.Generator().manual_seed(seed)
    total, runs = sum(tokens), len(tokens)
    shapes = ((total, OUTER), (total, INNER), (runs, RANK, INNER), (runs, OUTER, RANK), (total, OUTER))
    return [torch.randn(*shape, dtype=torch.float64, generator=generator).to(device) for shape in shapes]


def at_once(monkeypatch: pytest.MonkeyPatch, yes: bool = True) -> None:
    monkeypatch.setattr(lowrank, "_at_once", lambda inner: yes and inner.dim() == 3)


def check(tokens: list[int], device: str, seed: int = 0) -> None:
    """Result and gradients are those of the formula, run by run, by autograd."""
    y, x, a, b, grad = drawn(tokens, device, seed)
    rows = rows_of(tokens, device)
    leaves = [each.clone().requires_grad_() for each in (x, a, b)]
    parts = [leaves[0][part] @ leaves[1][run].T @ leaves[2][run].T for run, part in enumerate(rows.runs())]
    expected = y + torch.cat(parts)
    found = [add_low_rank_(y.clone(), x, a, b, rows), *low_rank_backward(grad, x, a, b, rows)]
    wanted = [expected.detach(), *torch.autograd.grad(expected, leaves, grad)]
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("together", [True, False])
@settings(deadline=None, max_examples=25)
@given(tokens=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_low_rank_products_are_each_run_s_own(together: bool, device: str, tokens: list[int], seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_once(patch, together)
        check(tokens, device, seed)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("bad", range(5))
def test_numbers_that_are_not_finite_stay_in_their_run(
    bad: int, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once(monkeypatch, together)
    tokens, broken = [4, 2, 6], 1
    given, rows = drawn(tokens), rows_of(tokens)
    whole = [add_low_rank_(given[0].clone(), *given[1:4], rows), *low_rank_backward(given[4], *given[1:4], rows)]
    part = rows.runs()[broken]
    given[bad][part if bad in (0, 1, 4) else broken] = float("nan")
    found = [add_low_rank_(given[0].clone(), *given[1:4], rows), *low_rank_backward(given[4], *given[1:4], rows)]
    assert any(not bool(each.isfinite().all()) for each in found)
    for index, (own, other) in enumerate(zip(found, whole, strict=True)):
        for run, rest in enumerate(rows.runs()):
            if run != broken:
                place = rest if index < 2 else run
                assert torch.equal(own[place], other[place])


def test_lora_runs_with_products_at_once_end_where_solo_runs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (1, 7, 0, 2)  # LoRA in the first two
    solo, packed = ([Run(number, torch.float64, 0.1) for number in numbers] for _ in range(2))
    for run in solo:
        run.train()
    at_once(monkeypatch)
    Pack(len(packed)).run([run.train for run in packed])
    for one, other in zip(solo, packed, strict=True):
        assert packing.packed_with(other.model) == len(numbers)
        for name, tensor in one.trained().items():
            torch.testing.assert_close(other.trained()[name], tensor, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("method", ["propulsion", "lora", "ia3", "bitfit", "head"])
def test_an_evaluation_in_a_pack_has_the_logits_of_the_plain_modules(method: str) -> None:
    cell = compose_settings("experiment=tiny", "task=rte", f"method={method}")
    mask = (torch.arange(9) < torch.tensor([[9], [4], [1], [6]])).long()
    batch = {"input_ids": torch.randint(5, 260, mask.shape) * mask, "attention_mask": mask}
    models = []
    for seed in range(3):
        torch.manual_seed(0)
        model = apply_method(load_model(cell.backbone, cell.task, 0, 0.1)[0].double(), cell.method, cell.backbone)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        models.append(fast_path(model).eval())
    found: list[list[torch.Tensor]] = [[] for _ in models]

    def evaluate(number: int, passes: int) -> None:
        packing.join(models[number])
        with torch.no_grad():
            found[number] += [models[number](**batch).logits for _ in range(passes)]

    expected = []
    for model in models:
        with torch.no_grad():
            expected.append(model(**batch).logits)
    Pack(3).run([lambda n=n: evaluate(n, 1 + n) for n in range(3)])  # type: ignore[misc]
    for number, logits in enumerate(found):
        path = find_path(models[number])
        assert path is not None and (path.used, path.plain) == (0, 0)
        assert len(logits) == 1 + number and packing.packed_with(models[number]) == 3
        for each in logits:
            assert not each.requires_grad
            torch.testing.assert_close(each, expected[number], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(expected[0], expected[1])


def test_an_evaluation_takes_no_more_cells_than_gain_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [Run(number, torch.float32, 0.0) for number in range(3)]
    ids = torch.full((2, 5), 7)
    sizes: list[int] = []

    class Counted(packing.Packed):
        def __init__(self, path: FastPath, passes: Sequence[Pass], learns: bool = True) -> None:
            sizes.append(len(passes))
            super().__init__(path, passes, learns)

    def evaluate(run: Run) -> None:
        packing.join(run.model)
        run.model.eval()
        with torch.no_grad():
            run.model(input_ids=ids)

    monkeypatch.setattr(packing, "Packed", Counted)
    for most, expected in ((30, [3]), (29, [2, 1]), (1, [1, 1, 1])):
        monkeypatch.setattr(packing, "EVALUATED_AT_ONCE", most)
        sizes.clear()
        Pack(3).run([lambda run=run: evaluate(run) for run in runs])  # type: ignore[misc]
        assert sizes == expected


def test_evaluations_and_steps_of_others_do_not_mix() -> None:
    solo, packed = ([Run(number, torch.float64, 0.1) for number in (0, 1, 2)] for _ in range(2))
    for run in solo:
        run.train()
    batch = {name: each for name, each in packed[2].batch().items() if name != "labels"}

    def evaluate() -> None:
        packing.join(packed[2].model)
        packed[2].model.eval()
        for _ in range(20):
            with torch.no_grad():
                packed[2].model(**batch)

    Pack(3).run([packed[0].train, evaluate, packed[1].train])
    assert [packing.packed_with(run.model) for run in packed] == [2, 2, 1]
    for one, other in list(zip(solo, packed, strict=True))[:2]:
        for name, tensor in one.trained().items():
            torch.testing.assert_close(other.trained()[name], tensor, rtol=1e-10, atol=1e-10, msg=name)


def test_an_evaluation_under_autocast_is_the_plain_modules() -> None:
    run = Run(0, torch.float32, 0.0)
    batch = {name: each for name, each in run.batch().items() if name != "labels"}
    run.model.eval()
    seen: list[int] = []

    class Counted(packing.Packed):
        def __init__(self, path: FastPath, passes: Sequence[Pass], learns: bool = True) -> None:
            seen.append(1)
            super().__init__(path, passes, learns)

    def evaluate() -> None:
        packing.join(run.model)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            run.model(**batch)
        assert not seen
        with torch.no_grad():
            run.model(**batch)
        assert seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "Packed", Counted)
        Pack(1).run([evaluate])
