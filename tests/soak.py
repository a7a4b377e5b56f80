"""A small sweep that is killed again and again, and has to end as one that never was.

    python -m tests.soak kills=500 seed=1

A parent that has imported everything forks children that run the sweep and are sent SIGKILL: at a random moment, or in
the middle of writing a record, a checkpoint or a lease, with what they were writing cut short. The test suite runs it
with 50 kills, `make soak` with 500. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from propulsion.harness import cell, record
from propulsion.harness.cell import run_cell
from propulsion.harness.digests import file_digest
from propulsion.harness.kept import weights_path
from propulsion.harness.settings import Settings
from tests.conftest import compose_settings

OPTIONS = ("training.max_steps=12", "training.evaluations=2", "training.checkpoint_seconds=0.05", "data.train_rows=48")
CELLS = [("rte", "propulsion"), ("rte", "head"), ("stsb", "propulsion")]
KINDS = ("time", "record", "checkpoint", "lease")
LONGEST = 0.8  # of an undisturbed sweep's time: the latest kill by the clock


def sweep(folder: Path) -> list[Settings]:
    """The cells of the sweep."""
    common = ("experiment=tiny", *OPTIONS, f"results_dir={folder}")
    return [compose_settings(*common, f"task={task}", f"method={method}") for task, method in CELLS]


class Reaper:
    """Kills its own process at the n-th write of a kind, after cutting short what was being written."""

    def __init__(self, kind: str, nth: int, journal: Path) -> None:
        self.kind, self.left, self.journal = kind, nth, journal
        self.part = {"record": "/runs/", "checkpoint": "/checkpoints/", "lease": "/leases/"}.get(kind, "")

    def arm(self) -> None:
        """Put itself in the way of everything that writes."""
        if self.part:
            os.fsync = self._wrap(os.fsync, lambda fd: os.readlink(f"/proc/self/fd/{fd}"))
            os.replace = self._wrap(os.replace, lambda _, to: str(to), before=self.left % 2 == 0)
            os.link = self._wrap(os.link, lambda _, to: str(to), before=self.left % 2 == 0)
            os.unlink = self._wrap(os.unlink, lambda path, **_: str(path))
            torch.save = self._wrap(torch.save, lambda _, file, **__: str(file), cut=True)

    def _wrap(
        self, action: Callable[..., Any], place: Callable[..., str], before: bool = False, cut: bool = False
    ) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            path = os.path.abspath(place(*args, **kwargs))
            if self.part not in path:
                return action(*args, **kwargs)
            self.left -= 1
            if self.left == 0 and before:
                self._die()
            result = action(*args, **kwargs)
            if self.left == 0:
                # A heartbeat is one write of a line in place, which a kill does not cut.
                if (cut or action.__name__ == "fsync") and self.kind != "lease" and os.path.isfile(path):
                    os.truncate(path, os.path.getsize(path) // 2)  # as if killed in the middle of the write
                self._die()
            return result

        return wrapped

    def _die(self) -> None:
        note(self.journal, f"reaped {self.kind}")
        os.kill(os.getpid(), signal.SIGKILL)


def note(journal: Path, line: str) -> None:
    """Add a line to the journal, in one write."""
    handle = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def child(cells: list[Settings], reaper: Reaper, journal: Path, log: Path) -> None:
    """Run the sweep to its end, if nobody kills it."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    written = record.write_record

    def watched(path: Path, entry: dict[str, Any]) -> None:
        note(journal, f"{'twice' if record.read_record(path) else 'writes'} {path.stem}")
        written(path, entry)

    record.write_record = watched
    trained = cell.train

    def resumed(*args: Any, **kwargs: Any) -> Any:
        note(journal, "resumes" if any(args[6].glob("checkpoint-*/whole.json")) else "starts")
        return trained(*args, **kwargs)

    cell.train = resumed
    reaper.arm()
    for settings in cells:
        run_cell(settings)
    os._exit(0)


def fork(*args: Any) -> int:
    """Run `child` in a fork; returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            child(*args)
        finally:
            os._exit(3)
    return pid


def scores(folder: Path) -> dict[str, Any]:
    """What must not differ: everything measured but time and memory, and the kept weights to the bit, by key.

    Fails on a record that is not whole, or kept weights that are not those of the record.
    """
    found = {}
    for path in sorted(folder.glob("runs/*/*/*/*.json")):
        entry = record.read_record(path)
        assert entry is not None and entry["status"] == record.SUCCESS, path
        history = [{k: v for k, v in point.items() if k != "seconds"} for point in entry["eval"]["history"]]
        cost = {name: entry["cost"][name] for name in ("steps", "padding_fraction", "adapter_bytes")}
        kept = entry["run"]["kept"]
        found[path.stem] = {**entry["eval"], "history": history, "params": entry["params"], "cost": cost, "kept": kept}
        for rule, facts in (kept or {}).items():
            assert file_digest(weights_path(str(folder), path.stem, rule)) == facts["sha256"], (path, rule)
    return found


def soak(kills: int, seed: int, base: Path) -> dict[str, Any]:
    """Kill the sweep so many times, in as many fresh folders as it takes, and compare each with the undisturbed one.

    Raises:
        AssertionError: a record is missing, broken or other than it should be, or a cell ran twice to its end.
    """
    rng = random.Random(seed)
    journal, log = base / "journal", base / "log"
    started = time.monotonic()
    os.waitpid(fork(sweep(base / "calm"), Reaper("", 0, journal), base / "calm-journal", log), 0)
    longest = LONGEST * (time.monotonic() - started)
    expected = scores(base / "calm")
    assert len(expected) == len(CELLS), log.read_text()[-2000:]
    done, sweeps, kinds, ended, processes, kept = 0, 0, Counter[str](), True, 0, 0
    cells: list[Settings] = []
    while done < kills or not ended:
        if ended:
            sweeps += 1
            cells = sweep(base / f"sweep-{sweeps}")
        kind, processes = rng.choice(KINDS) if done < kills else "", processes + 1
        pid = fork(cells, Reaper(kind, rng.randint(1, 6 if kind != "checkpoint" else 16), journal), journal, log)
        status = _wait(pid, rng.uniform(0.0, longest) if kind == "time" else 250)
        ended = os.WIFEXITED(status)
        assert not ended or os.WEXITSTATUS(status) == 0, log.read_text()[-2000:]
        if not ended:
            done += 1
            kinds[kind] += 1
        if ended:
            folder = Path(cells[0].results_dir)
            found = scores(folder)
            assert found == expected, f"{folder} differs from the undisturbed sweep"
            kept += sum(len(entry["kept"] or {}) for entry in found.values())
            files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]
            left = [path.name for path in files if path.relative_to(folder).parts[0] != "weights"]
            assert not left, left
            shutil.rmtree(folder)
    events = Counter(line.split()[0] for line in journal.read_text().splitlines())
    assert events["twice"] == 0, "a cell ran twice to its end"
    facts = {"kills": done, "by": dict(sorted(kinds.items())), "restarts": processes - sweeps, "sweeps": sweeps}
    facts |= {"cells": sweeps * len(CELLS), "kept_weights": kept}
    return facts | {"resumed": events["resumes"], "started": events["starts"], "twice": events["twice"]}


def _wait(pid: int, seconds: float) -> int:
    """The exit status of a child, which is killed when the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def main(words: list[str]) -> int:
    """Parse `kills=` and `seed=`, soak, print the facts."""
    options = dict(word.split("=", 1) for word in words)
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as base:
        facts = soak(int(options.get("kills", "500")), int(options.get("seed", "0")), Path(base))
    print(json.dumps(facts | {"seconds": round(time.monotonic() - started, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
