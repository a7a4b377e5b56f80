"""Injected faults, each with its outcome: kills, full disks, no memory, bad numbers, changed data, stops."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from propulsion.harness import cell as cell_module
from propulsion.harness import checkpoints, leases, memory, record, stops, sweeps, trainer, watch, weights
from propulsion.harness.cell import run_cell
from propulsion.harness.digests import file_digest
from propulsion.harness.errors import UserError
from propulsion.harness.settings import TrainingSpec
from propulsion.harness.tables import load_records
from scripts import run
from tests.conftest import ROOT, ComposeCell
from tests.soak import scores
from tests.task_files import write_official

OPTIONS = ("method=propulsion", "training.max_steps=20", "training.evaluations=4")
EVERY_STEP = "training.checkpoint_seconds=0"
NEVER = "training.checkpoint_seconds=1e6"


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """A shell starts what runs in its background with Ctrl-C ignored, and what is ignored stays so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], Any]) -> None:
    """Do something in the middle of the training step that follows `step`, once."""
    original, done = trainer.CellTrainer.training_step, []

    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        if self.state.global_step == step and not done:
            done.append(step)
            action()
        return loss

    monkeypatch.setattr(trainer.CellTrainer, "training_step", stepped)


def saved(settings: Any) -> list[str]:
    """The whole checkpoints of a results folder."""
    return sorted(path.parent.name for path in Path(settings.results_dir).glob("checkpoints/*/*/whole.json"))


def runs(settings: Any) -> list[str]:
    return sorted(path.name for path in Path(settings.results_dir).glob("runs/*/*/*/*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fifty_kills_change_nothing() -> None:
    command = [sys.executable, "-m", "tests.soak", "kills=50", "seed=7"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590)
    assert ended.returncode == 0, ended.stderr[-3000:]
    facts = json.loads(ended.stdout.splitlines()[-1])
    assert facts["kills"] == 50 and sum(facts["by"].values()) == 50
    assert set(facts["by"]) == {"time", "record", "checkpoint", "lease"}
    assert facts["resumed"] > 0 and facts["twice"] == 0 and facts["restarts"] == 50
    assert facts["kept_weights"] == 2 * facts["cells"]  # best and last of each, equal to the undisturbed sweep's


# Records


@pytest.mark.parametrize("damage", ["truncated", "edited", "emptied"])
def test_a_record_that_is_none_is_named_set_aside_and_run_again(
    tiny: ComposeCell, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = run_cell(tiny())
    path = record.record_path(tiny(), first["key"])
    text = path.read_text()
    entry = json.loads(text)
    entry["eval"]["last"]["accuracy"] = 0.999
    broken = {"truncated": text[: len(text) // 2], "edited": json.dumps(entry), "emptied": ""}[damage]
    for number in (1, 2):
        path.write_text(broken)
        assert load_records(tiny().results_dir) == []
        again, ran = run_cell(tiny())
        assert ran and again["eval"]["last"] == first["eval"]["last"]
        assert f"set aside as {path.name}.broken-{number}" in capsys.readouterr().err
        assert path.with_name(f"{path.name}.broken-{number}").read_text() == broken
    assert len(load_records(tiny().results_dir)) == 1


def test_records_without_a_digest_stay_readable(tiny: ComposeCell) -> None:
    first, _ = run_cell(tiny())
    path = record.record_path(tiny(), first["key"])
    assert first["digest"] == json.loads(path.read_text())["digest"]
    path.write_text(json.dumps({key: value for key, value in first.items() if key != "digest"}))
    _, ran = run_cell(tiny())
    assert not ran and len(load_records(tiny().results_dir)) == 1


def test_a_full_disk_at_the_record_keeps_the_checkpoint_and_the_cell_goes_on(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(*OPTIONS, EVERY_STEP)

    def full(path: Path, text: str) -> None:
        with open("/dev/full", "w") as file:
            file.write(text)

    monkeypatch.setattr(record, "write_text", full)
    with pytest.raises(UserError, match=r"No space left on device.*goes on from its last checkpoint"):
        run_cell(settings)
    monkeypatch.undo()
    assert runs(settings) == [] and saved(settings) == ["checkpoint-19"]
    trained: list[int] = []
    at_step(monkeypatch, 19, lambda: trained.append(19))
    entry, ran = run_cell(settings)
    assert ran and entry["status"] == "success" and trained == [19]


@pytest.mark.parametrize("writer", ["torch", "safetensors", "seal"])
def test_a_full_disk_at_a_checkpoint_is_said_once_and_training_goes_on(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, writer: str
) -> None:
    calm, _ = run_cell(tiny(*OPTIONS, f"results_dir={tmp_path / 'calm'}"))
    save = torch.save

    def full(*args: Any, **kwargs: Any) -> None:
        if writer == "torch":
            save({"z": torch.ones(1 << 16)}, "/dev/full")
        with open("/dev/full", "w") as file:
            file.write("full")

    if writer == "torch":
        monkeypatch.setattr(torch, "save", full)
    elif writer == "seal":
        monkeypatch.setattr(checkpoints, "write_text", full)
    else:
        monkeypatch.setattr(trainer.CellTrainer, "save_model", full)
    settings = tiny(*OPTIONS, EVERY_STEP)
    at_step(
        monkeypatch,
        19,
        lambda: kept.extend(path.name for path in Path(settings.results_dir).glob("check*/*/checkpoint-*")),
    )
    kept: list[str] = []
    entry, _ = run_cell(settings)
    assert kept == []  # no half of one is left
    assert entry["eval"]["last"] == calm["eval"]["last"]
    said = [line for line in capsys.readouterr().err.splitlines() if "no checkpoint could be saved" in line]
    assert len(said) == 1


def test_a_full_disk_at_the_lease_is_one_line(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(leases.os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        run_cell(tiny())


def test_a_full_disk_at_the_best_weights_costs_those_weights_alone(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = weights.write_bytes

    def full(path: Path, content: bytes) -> None:
        if path.name.startswith("best-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(path, content)

    monkeypatch.setattr(weights, "write_bytes", full)
    entry, _ = run_cell(tiny(*OPTIONS, NEVER))
    assert entry["status"] == "success" and set(entry["run"]["kept"]) == {"last"}
    assert "the best weights so far could not be written (No space left on device)" in capsys.readouterr().err


def test_a_full_disk_at_the_last_weights_keeps_the_checkpoint(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    settings = tiny(*OPTIONS, EVERY_STEP, "training.keep_weights=last")
    monkeypatch.setattr(weights, "write_bytes", full)
    with pytest.raises(UserError, match=r"No space left on device.*goes on from its last checkpoint"):
        run_cell(settings)
    assert runs(settings) == [] and saved(settings) == ["checkpoint-19"]
    monkeypatch.undo()
    entry, ran = run_cell(settings)
    assert ran and set(entry["run"]["kept"]) == {"last"}


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, stops.Preempted)], ids=str
)
def test_a_stop_asked_after_the_last_step_is_heeded_once_the_record_is_written(
    number: int,
    raised: type[BaseException],
    tiny: ComposeCell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings, evaluated = tiny(*OPTIONS, NEVER), trainer.CellTrainer.evaluate

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == self.state.max_steps:
            os.kill(os.getpid(), number)
        return evaluated(self, *args, **kwargs)

    monkeypatch.setattr(trainer.CellTrainer, "evaluate", interrupted)
    monkeypatch.setenv(run.MAIN_PROCESS, str(os.getpid()))
    monkeypatch.setenv(sweeps.FOLDER, str(Path(settings.results_dir, ".sweep-x").absolute()))
    monkeypatch.setenv(sweeps.TOTAL, "1")
    with pytest.raises(raised):
        run.run_one(settings, 0, [])
    assert len(runs(settings)) == 1 and [note.state for note in sweeps.notes()] == [sweeps.DONE]
    said = capsys.readouterr().out
    assert "last" in said and "its checkpoint is saved" not in said
    _, ran = run_cell(settings)
    assert not ran


def test_another_error_while_saving_is_no_full_disk() -> None:
    assert not checkpoints.cannot_write(RuntimeError("CUDA error: an illegal memory access"))
    assert not checkpoints.cannot_write(ValueError("no such parameter"))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, which nobody can write into")
def test_a_results_folder_that_cannot_be_written_is_refused_and_one_with_the_record_is_skipped(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        run_cell(tiny("results_dir=/proc/results"))
    run_cell(tiny())
    monkeypatch.setattr(record, "check_writable", lambda _: pytest.fail("a finished cell needs no room"))
    _, ran = run_cell(tiny())
    assert not ran


# Checkpoints


@pytest.mark.parametrize("damage", ["cut", "lost", "unsealed", "extra"])
def test_half_a_checkpoint_is_not_read(tmp_path: Path, damage: str) -> None:
    older, newer = tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"
    for folder in (older, newer):
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"12345678")
        checkpoints.seal(folder)
    assert checkpoints.last_whole(tmp_path) == str(newer)  # by number: "10" is after "9"
    if damage == "cut":
        os.truncate(newer / "optimizer.pt", 4)
    elif damage == "lost":
        (newer / "optimizer.pt").unlink()
    elif damage == "unsealed":
        (newer / checkpoints.SEAL).unlink()
    else:
        (newer / "more.pt").write_bytes(b"1")
    assert checkpoints.last_whole(tmp_path) == str(older)
    assert not newer.exists()


@pytest.mark.parametrize("jump", [-1e8, 1e8])
def test_rotation_goes_by_step_whatever_the_clock_says(tmp_path: Path, jump: float) -> None:
    for step in (8, 9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        checkpoints.seal(folder)
        os.utime(folder, (1e9 - jump * step, 1e9 - jump * step))
    checkpoints.keep_newest(tmp_path, tmp_path / "checkpoint-10")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


# Memory


def allocate(error: str) -> None:
    """Run out of memory for real."""
    if error == "torch":
        torch.empty(1 << 60, dtype=torch.int8)
    if error == "python":
        bytearray(1 << 62)
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("error", ["torch", "python", "cuda"])
def test_out_of_memory_on_the_first_step_halves_the_micro_batch(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: str
) -> None:
    """The same rows in each step, so without dropout the same run but for rounding."""
    options = ("training.dropout=0.0", "training.max_train_rows=16")
    calm, _ = run_cell(tiny(*OPTIONS, *options, f"results_dir={tmp_path / 'calm'}"))
    original, sizes = trainer.CellTrainer.training_step, []

    def stepped(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(inputs["labels"]))
        if sizes[-1] > 2:
            allocate(error)
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.CellTrainer, "training_step", stepped)
    entry, _ = run_cell(tiny(*OPTIONS, *options))
    assert sizes[:3] == [8, 4, 2] and set(sizes[3:]) == {2}
    assert entry["status"] == "success"
    assert (entry["cost"]["micro_batch"], entry["cost"]["oom_retries"], entry["cost"]["steps"]) == (2, 2, 20)
    assert entry["run"]["config"]["training"]["batch_size"] == 8  # as it was asked for
    assert entry["key"] == calm["key"]
    assert entry["eval"]["history"][-1]["loss"] == pytest.approx(calm["eval"]["history"][-1]["loss"], rel=1e-4)
    assert (calm["cost"]["micro_batch"], calm["cost"]["oom_retries"]) == (8, 0)
    assert "again with micro-batches of 4" in capsys.readouterr().err


def test_what_does_not_fit_row_by_row_is_failed(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.CellTrainer, "training_step", lambda *_, **__: allocate("cuda"))
    entry, _ = run_cell(tiny(*OPTIONS))
    assert entry["status"] == "failed" and entry["error"]["type"] == "TooLarge"
    assert (entry["cost"]["micro_batch"], entry["cost"]["oom_retries"]) == (1, 4)


@pytest.mark.parametrize("batch", [1, 2, 7, 12, 30, 64])
def test_smaller_pieces_make_the_same_batch(batch: int) -> None:
    spec: TrainingSpec | None = TrainingSpec(batch_size=batch, accumulation=3)
    while spec is not None:
        assert spec.batch_size * spec.accumulation == 3 * batch
        last, spec = spec, memory.smaller(spec)
    assert last.batch_size == last.eval_batch_size == 1


def test_an_evaluation_that_does_not_fit_is_made_smaller_too(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, predict = tiny(*OPTIONS, "training.batch_size=1"), trainer.CellTrainer.prediction_step
    calm, _ = run_cell(tiny(*OPTIONS, "training.batch_size=1", f"results_dir={settings.results_dir}-calm"))

    def step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if len(inputs["labels"]) > 1:
            allocate("cuda")
        return predict(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.CellTrainer, "prediction_step", step)
    entry, _ = run_cell(settings)
    assert entry["status"] == "success" and entry["cost"]["oom_retries"] == 1
    assert entry["eval"]["last"] == calm["eval"]["last"]


def test_a_checkpoint_holds_what_is_trained_and_restores_it_over_the_same_weights_alone(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny("method=head", "training.max_steps=20", NEVER)
    at_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_cell(settings)
    (name,) = saved(settings)
    (folder,) = Path(settings.results_dir).glob(f"checkpoints/*/{name}")
    stored = load_file(folder / checkpoints.TRAINED)
    assert set(stored) == {"classifier.weight", "classifier.bias"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 60_000  # most of it the random states
    build = cell_module.build_model

    def other(*args: Any) -> Any:
        built = build(*args)
        with torch.no_grad():
            next(p for p in built[1].parameters() if not p.requires_grad).mul_(1.001)
        return built

    starts: list[int] = []
    monkeypatch.setattr(cell_module, "build_model", other)
    at_step(monkeypatch, 0, lambda: starts.append(0))
    run_cell(settings)
    assert starts == [0] and "was made over other weights" in capsys.readouterr().err


# Numbers


def test_a_loss_that_is_no_number_at_step_k_ends_as_diverged_with_its_history(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.CellTrainer.training_step

    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 13 else loss

    monkeypatch.setattr(trainer.CellTrainer, "training_step", stepped)
    entry, _ = run_cell(tiny("training.max_steps=40", "training.evaluations=8"))
    assert entry["status"] == "diverged"
    assert entry["error"]["message"] == "the training loss is nan at step 20"
    assert [point["step"] for point in entry["eval"]["history"]] == [5, 10, 15, 20]
    assert [step for step, _ in entry["error"]["losses"]] == [10, 20]
    assert json.loads(record.record_path(tiny(), entry["key"]).read_text())["error"]["losses"][1] == [20, None]
    monkeypatch.undo()
    again = ("training.max_steps=40", "training.evaluations=8")
    assert not run_cell(tiny(*again))[1]  # it is a result
    entry, ran = run_cell(tiny(*again, "rerun=true"))
    assert ran and entry["status"] == "success"
    assert not run_cell(tiny(*again, "rerun=true"))[1]  # only what diverged runs again


def test_a_loss_that_runs_away_is_told_from_one_that_jumps() -> None:
    logs = watch.RUNAWAY_LOGS
    assert watch.divergence([]) is None
    assert watch.divergence([0.7, *[6.9] * 50]) is None
    assert watch.divergence([0.7, *[7.1] * (logs - 1)]) is None
    assert watch.divergence([0.7, *[7.1] * logs]) == "the training loss ran away, from 0.7 to 7.1"
    assert watch.divergence([0.7, *[7.1] * (logs - 1), 0.6]) is None
    assert watch.divergence([0.7, float("inf")]) == "the training loss is inf"


def test_a_run_away_ends_the_run(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    original = trainer.CellTrainer.training_step

    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs) * (100.0 if self.state.global_step >= 10 else 1.0)

    monkeypatch.setattr(trainer.CellTrainer, "training_step", stepped)
    entry, _ = run_cell(tiny("training.max_steps=500"))
    assert entry["status"] == "diverged" and "ran away" in entry["error"]["message"]
    assert entry["cost"]["steps"] == 10 * (1 + watch.RUNAWAY_LOGS)


# Data


def test_data_that_changes_between_two_starts_is_another_cell(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_official(tmp_path / "glue", "rte")
    options = ("task=rte", "data=local", f"data.dir={tmp_path}", *OPTIONS, EVERY_STEP)
    at_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_cell(tiny(*options))
    assert saved(tiny()) == ["checkpoint-8"]
    file = tmp_path / "glue" / "RTE" / "train.tsv"
    file.write_text(file.read_text().replace("unbalanced", "other"))
    starts: list[int] = []
    at_step(monkeypatch, 0, lambda: starts.append(0))
    entry, _ = run_cell(tiny(*options))
    assert starts == [0]  # from the beginning, not from the checkpoint of other rows
    assert entry["status"] == "success"
    (left,) = Path(tiny().results_dir, "checkpoints").iterdir()
    assert left.name != entry["key"]


def test_data_that_changes_while_it_is_read_is_refused(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_official(tmp_path / "glue", "rte")
    rows = cell_module.rows_of

    def changed(*args: Any) -> Any:
        found = rows(*args)
        with open(tmp_path / "glue" / "RTE" / "dev.tsv", "a") as file:
            file.write("7\tone\tmore\tentailment\n")
        return found

    monkeypatch.setattr(cell_module, "rows_of", changed)
    with pytest.raises(UserError, match="the data changed while it was read"):
        run_cell(tiny("task=rte", "data=local", f"data.dir={tmp_path}"))


def test_a_digest_follows_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text("one")
    old = file.stat()
    os.utime(file, (1e9, 1e9))
    first = file_digest(file)
    file.write_text("two")
    os.utime(file, ns=(10**18, 10**18))
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))  # the same size, and its time set back
    assert file_digest(file) != first
    shutil.copyfile(tmp_path / "rows", tmp_path / "copy")
    assert file_digest(tmp_path / "copy") == file_digest(file)


# Stops


def test_ctrl_c_once_saves_a_checkpoint_and_the_run_goes_on_to_the_same_end(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_cell(tiny(*OPTIONS, f"results_dir={tmp_path / 'calm'}"))
    settings = tiny(*OPTIONS, NEVER)
    for step in (4, 12):  # the second in an epoch that the first one's checkpoint was not made in
        at_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run_cell(settings)
        assert saved(settings) == [f"checkpoint-{step + 1}"]
        assert capfd.readouterr().err.count(stops.LINE) == 1
        assert not Path(settings.results_dir, "leases").exists()
        monkeypatch.undo()
    run_cell(settings)
    assert scores(Path(settings.results_dir)) == scores(tmp_path / "calm")


def test_ctrl_c_twice_stops_at_once(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny(*OPTIONS, NEVER)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one did not stop it")

    before = signal.getsignal(signal.SIGINT)
    at_step(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt):
        run_cell(settings)
    assert saved(settings) == [] and runs(settings) == []
    assert not Path(settings.results_dir, "leases").exists()
    assert signal.getsignal(signal.SIGINT) == before


def test_a_stop_says_what_it_leaves(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*words: str) -> str:
        at_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(stops.Preempted) as preempted:
            run_cell(tiny(*OPTIONS, NEVER, *words))
        return preempted.value.left

    assert stopped() == stops.SAVED
    assert stopped("method=adalora") == stops.ANEW
    monkeypatch.setattr(checkpoints, "seal", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert stopped("seed=5") == stops.UNSAVED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_batch_systems_signal_saves_a_checkpoint_and_is_handed_on(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    settings = tiny(*OPTIONS, NEVER)
    heard: list[int] = []
    before = signal.signal(number, lambda received, _: heard.append(received))  # as submitit does
    try:
        at_step(monkeypatch, 4, lambda: os.kill(os.getpid(), number))
        with pytest.raises(stops.Preempted) as preempted:
            run_cell(settings)
        assert heard == [] and saved(settings) == ["checkpoint-5"]
        preempted.value.hand_over()
        assert heard == [number] and preempted.value.code == 128 + number
    finally:
        signal.signal(number, before)


def test_workers_do_not_hear_ctrl_c_from_their_first_moment() -> None:
    joblib = pytest.importorskip("joblib", reason="no launcher of local workers is installed")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    asked = False
    with pytest.raises(KeyboardInterrupt), stops.sweep_of_workers(True):
        masks = joblib.Parallel(n_jobs=2)(joblib.delayed(signal.pthread_sigmask)(signal.SIG_BLOCK, []) for _ in "ab")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        asked = stops.stopping()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        pytest.fail("the second one did not stop it")
    assert asked
    assert all(signal.SIGINT in mask for mask in masks)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_sweep_that_stops_asks_its_workers_through_a_file(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = tiny("training.max_steps=100000", NEVER)
    monkeypatch.setenv(stops.STOP_FILE, str(tmp_path / "stop"))
    at_step(monkeypatch, 3, (tmp_path / "stop").touch)
    with pytest.raises(KeyboardInterrupt):
        run_cell(settings)
    (name,) = saved(settings)
    assert int(name.rpartition("-")[2]) < 100000
