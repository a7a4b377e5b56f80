"""Leases: one owner at a time, whatever dies, sleeps, races or jumps."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from propulsion.harness import cell as cell_module
from propulsion.harness import finished, leases, record, trainer
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import RunningElsewhere
from propulsion.harness.leases import Lease, find, held
from propulsion.harness.settings import Settings
from propulsion.harness.tables import load_records
from propulsion.harness.tables.conditions import measurement
from tests.conftest import ComposeCell

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(leases, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(leases, "_seen", {})


def foreign(folder: Path, key: str = "abc") -> Lease:
    """A lease of a process on another machine, whose heart does not beat."""
    lease = Lease(folder, key, {"cell": "rte/minilm/lora seed 0"})
    lease._about |= {"host": "node7", "machine": "another", "pid": 1}
    lease.number = 1
    assert lease._make()
    return lease


def wait_until_stale(folder: Path) -> None:
    found = find(folder, "abc")
    assert found is not None
    while not leases.is_stale(found):
        time.sleep(0.02)


def test_one_owner_at_a_time_and_nothing_is_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    with Lease(folder, "abc", {}) as lease:
        assert set(held(tmp_path)) == {"abc"}
        with pytest.raises(RunningElsewhere, match=f"process {os.getpid()}"):
            Lease(folder, "abc", {}).acquire()
        with Lease(folder, "def", {}):  # another cell
            assert set(held(tmp_path)) == {"abc", "def"}
        lease.check()
    assert not folder.exists()
    with Lease(folder, "abc", {}):
        pass


def test_a_beating_lease_is_never_stale_and_one_that_stands_still_is(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    owner = Lease(folder, "abc", {})
    owner._about |= {"machine": "another"}  # so that only the heartbeat tells
    owner.acquire()
    found = find(folder, "abc")
    assert found is not None
    deadline = time.monotonic() + 4 * leases.STALE_SECONDS
    while time.monotonic() < deadline:
        current = find(folder, "abc")
        assert current is not None and not leases.is_stale(current)
        time.sleep(0.03)
    assert leases.moved(current)
    owner._released.set()  # the machine is gone: no beat any more, and nothing cleaned up
    owner._thread.join()
    with pytest.raises(RunningElsewhere):
        Lease(folder, "abc", {}).acquire()
    wait_until_stale(folder)
    with Lease(folder, "abc", {}) as taker:
        assert taker.number == 2
        with pytest.raises(RunningElsewhere):
            owner.check()
        owner.release()  # wakes up, and must not remove what is no longer its own
        taker.check()
    assert not folder.exists()


def test_a_dead_owner_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal\nsys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom propulsion.harness.leases import Lease\n"
        "Lease(Path(sys.argv[2]), 'abc', {}).acquire()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", code, root, str(tmp_path / "leases")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert find(tmp_path / "leases", "abc") is not None
    assert held(tmp_path) == {}
    started = time.monotonic()
    with Lease(tmp_path / "leases", "abc", {}) as lease:
        assert lease.number == 2
    assert time.monotonic() - started < leases.STALE_SECONDS


def test_a_pid_that_was_given_to_another_process_is_no_owner(tmp_path: Path) -> None:
    lease = Lease(tmp_path, "abc", {})
    lease._about |= {"start": "1"}  # this pid, but another start
    lease.number = 1
    assert lease._make()
    assert held(tmp_path.parent) == {}
    with Lease(tmp_path, "abc", {}) as taker:
        assert taker.number == 2


def test_a_release_that_is_killed_half_way_leaves_a_lease_by_which_the_rest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, unlink = tmp_path / "leases", Path.unlink
    lease = Lease(folder, "abc", {})
    lease.acquire()
    (folder / ".abc.killed.tmp").touch()  # of a process that was killed while it made the lease

    def killed(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            lease.release()
    assert [path.name for path in folder.iterdir()] == ["abc.1"]


def test_only_one_of_many_takers_wins(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    foreign(folder)
    wait_until_stale(folder)
    won, start = [], threading.Barrier(8)

    def take() -> None:
        lease = Lease(folder, "abc", {})
        start.wait()
        try:
            lease.acquire()
            won.append(lease)
        except RunningElsewhere:
            return

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = won
    winner.release()
    assert not folder.exists()


def test_a_taker_that_comes_too_late_withdraws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked at a stale lease; before it made its own, the next owner came and went, and a third one came."""
    folder = tmp_path / "leases"
    foreign(folder)
    wait_until_stale(folder)
    late, third = Lease(folder, "abc", {}), Lease(folder, "abc", {})
    make = Lease._make

    def made_after_a_pause(self: Lease) -> bool:
        monkeypatch.setattr(Lease, "_make", make)
        with Lease(folder, "abc", {}):
            pass
        third.acquire()
        return make(self)

    monkeypatch.setattr(Lease, "_make", made_after_a_pause)
    with pytest.raises(RunningElsewhere):
        late.acquire()
    third.check()
    third.release()
    assert not folder.exists()


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    folder = tmp_path / "leases"
    with Lease(folder, "abc", {}) as lease:
        monkeypatch.setattr(time, "time", lambda: jump)
        os.utime(lease.path, (abs(jump), abs(jump)))
        with pytest.raises(RunningElsewhere):
            Lease(folder, "abc", {}).acquire()
        lease.check()


def test_a_removed_lease_does_not_come_back(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "leases", "abc", {})
    lease.acquire()
    lease.path.unlink()
    time.sleep(5 * leases.BEAT_SECONDS)
    assert lease.lost and not lease.path.exists()
    lease.release()


def _count(folder: Path, results: Any) -> None:
    """Take the lease fifteen times, and write down when it was ours."""
    had = 0
    while had < 15:
        lease = Lease(folder, "abc", {})
        try:
            lease.acquire()
        except RunningElsewhere:
            time.sleep(0.001)
            continue
        began = time.monotonic()
        time.sleep(0.001)
        results.put((began, time.monotonic()))
        lease.release()
        had += 1
    results.put(None)


def test_processes_that_race_never_have_it_together(tmp_path: Path) -> None:
    results = FORK.Queue()
    workers = [FORK.Process(target=_count, args=(tmp_path / "leases", results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    spans, ended = [], 0
    while ended < len(workers):
        span = results.get(timeout=60)
        ended, spans = (ended + 1, spans) if span is None else (ended, [*spans, span])
    for worker in workers:
        worker.join()
    spans.sort()
    assert len(spans) == 60
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def _sweep_away(folder: Path, ended: Any) -> None:
    """What releases of other cells do, without a pause: make the folders, and remove them where they are empty."""
    while not ended.is_set():
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True)


def test_folders_that_others_remove_at_any_moment_stop_nobody(tmp_path: Path) -> None:
    folder, ended = tmp_path / "results" / "leases", FORK.Event()
    sweepers = [FORK.Process(target=_sweep_away, args=(folder, ended), daemon=True) for _ in range(2)]
    for sweeper in sweepers:
        sweeper.start()
    had = 0
    try:
        for _ in range(500):
            lease = Lease(folder, "abc", {})
            with contextlib.suppress(RunningElsewhere):  # each attempt met a folder that had just gone
                lease.acquire()
                had += 1
                assert list(leases.held(folder.parent)) == ["abc"]
            lease.release()
    finally:
        ended.set()
        for sweeper in sweepers:
            sweeper.join()
    assert had > 100


def _sweep(cells: list[Settings], meeting: Path, ran: Any) -> None:
    """A sweep of its own, whose first run waits in the middle until the other sweep's is in its middle too."""
    signal.alarm(60)  # a process that waits in vain ends
    step = trainer.CellTrainer.training_step

    def beside(self: Any, *args: Any, **kwargs: Any) -> Any:
        (meeting / str(os.getpid())).touch()
        while len(list(meeting.iterdir())) < 2:
            time.sleep(0.01)
        return step(self, *args, **kwargs)

    trainer.CellTrainer.training_step = beside  # type: ignore[method-assign]
    left = list(cells)
    while left:
        for settings in list(left):
            with contextlib.suppress(RunningElsewhere):
                entry, now = run_cell(settings)
                left.remove(settings)
                if now:
                    ran.put((entry["key"], os.getpid()))
        time.sleep(0.01)
    ran.put(None)


def test_two_sweeps_at_once_share_the_cells_and_mark_what_ran_beside_another(
    tiny: ComposeCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "STALE_SECONDS", 60.0)
    meeting, neighbours = tmp_path / "meeting", tmp_path / "neighbours"
    meeting.mkdir()
    neighbours.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(neighbours))  # not those of other tests
    cells = [
        tiny(f"task={task}", f"seed={seed}", "training.max_steps=11") for task in ("rte", "cola") for seed in (0, 1)
    ]
    ran = FORK.Queue()
    sweeps = [FORK.Process(target=_sweep, args=(cells, meeting, ran)) for _ in range(2)]
    for sweep in sweeps:
        sweep.start()
    runs, ended = [], 0
    while ended < 2:
        found = ran.get(timeout=60)
        ended, runs = (ended + 1, runs) if found is None else (ended, [*runs, found])
    for sweep in sweeps:
        sweep.join()
    records = load_records(tiny().results_dir)
    assert sorted(key for key, _ in runs) == sorted(entry["key"] for entry in records)
    assert len(runs) == 4 and len({pid for _, pid in runs}) == 2
    beside = [entry for entry in records if entry["env"]["parallel_cells"] == 2]
    assert beside  # the first to end saw the other; that one may have seen it before
    assert all("2 cells at once" in measurement(entry) for entry in beside)
    assert not Path(tiny().results_dir, "leases").exists() and not list(neighbours.glob("*/*"))
    alone, _ = run_cell(tiny("seed=7"))
    assert alone["env"]["parallel_cells"] == 1 and "at once" not in measurement(alone)


def test_a_cell_that_another_process_has_is_not_run(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("task=rte")
    key = record.cell_key(settings.config, cell_module.open_source(settings.task, settings.data).fingerprint())
    folder = Path(settings.results_dir, leases.FOLDER)
    with Lease(folder, key, {}):
        monkeypatch.setattr(cell_module, "_run", lambda *_: pytest.fail("a leased cell was run"))
        with pytest.raises(RunningElsewhere):
            run_cell(settings)
        assert not Path(settings.results_dir, "runs").exists()
        monkeypatch.undo()
    _, ran = run_cell(settings)
    assert ran
    assert not folder.exists()


def test_a_cell_that_was_finished_between_two_looks_is_not_run(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run_cell(tiny())
    looks = iter([None])
    original = finished.finished
    monkeypatch.setattr(finished, "finished", lambda *a, **k: next(looks, None) or (original(*a, **k) if k else None))
    monkeypatch.setattr(cell_module, "_run", lambda *_: pytest.fail("a finished cell was run"))
    again, ran = run_cell(tiny())
    assert not ran and again["digest"] == first["digest"]


def test_a_run_that_lost_its_lease_writes_nothing_more(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("training.max_steps=20", "training.checkpoint_seconds=0")
    trained = cell_module.train

    def stolen(*args: Any, **kwargs: Any) -> Any:
        (mine,) = Path(settings.results_dir, leases.FOLDER).glob("[!.]*")
        mine.with_suffix(".2").write_text('{"owner": "thief", "host": "node7", "pid": 9}')
        return trained(*args, **kwargs)

    monkeypatch.setattr(cell_module, "train", stolen)
    with pytest.raises(RunningElsewhere, match="node7, process 9"):
        run_cell(settings)
    assert not Path(settings.results_dir, "runs").exists()
    assert not list(Path(settings.results_dir).glob("checkpoints/*/checkpoint-*"))
    assert [path.suffix for path in Path(settings.results_dir, leases.FOLDER).glob("[!.]*.2")] == [".2"]
