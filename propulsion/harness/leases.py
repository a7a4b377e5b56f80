"""Leases: two sweeps on one results folder, on one machine or on two, never run a cell twice at once.

A lease is a file `<results_dir>/leases/<key>.<n>`, linked into place whole. Its owner raises a counter in it every few
seconds. Whoever finds a lease whose owner is dead, or whose counter stood still for `STALE_SECONDS` of the finder's own
monotonic clock, makes `<key>.<n + 1>`: only one can, since a link is made or not. The highest number is the lease.
Nothing compares clocks of two machines, or a clock with a file's time, so a clock that jumps changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from propulsion.harness.errors import RunningElsewhere

FOLDER = "leases"
BEAT_SECONDS = 5.0
STALE_SECONDS = 120.0  # network file systems may show a change up to a minute late
_ATTEMPTS = 20  # at making a lease, when others make and remove theirs at the same moment


@dataclass(frozen=True)
class Found:
    """A lease as it lies there. `text` changes with every beat of its owner."""

    path: Path
    number: int
    text: str

    @property
    def facts(self) -> dict[str, Any]:
        """Owner, host, pid, ...; empty where the file is torn or empty."""
        with contextlib.suppress(ValueError):
            facts = json.loads(self.text)
            return facts if isinstance(facts, dict) else {}
        return {}

    def __str__(self) -> str:
        return f"{self.facts.get('host', 'unknown host')}, process {self.facts.get('pid', 'unknown')}"


@dataclass
class _Seen:
    text: str
    since: float
    moved: bool = False


_seen: dict[Path, _Seen] = {}  # leases of others, by this process's own clock


class Lease:
    """The right to run a cell; its heart beats in a thread until it is released."""

    def __init__(self, folder: Path, key: str, about: dict[str, Any]) -> None:
        self.folder, self.key = folder, key
        self.owner = uuid.uuid4().hex
        self.number = 0
        self.lost = False
        self._beats = 0
        self._about = {**about, "owner": self.owner, **identity()}
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{key}", daemon=True)

    @property
    def path(self) -> Path:
        """Where this lease lies."""
        return self.folder / f"{self.key}.{self.number}"

    def acquire(self) -> None:
        """Take the lease, or take it over.

        Raises:
            RunningElsewhere: another process has it.
            OSError: the folder cannot be written.
        """
        for _ in range(_ATTEMPTS):
            current = find(self.folder, self.key)
            if current is not None and not is_stale(current):
                raise RunningElsewhere(str(current), moved(current))
            self.number = current.number + 1 if current else 1
            if self._make() and self._is_rightful(current):
                self._thread.start()
                return
        raise RunningElsewhere("several others at once", moved=True)

    def check(self) -> None:
        """Look whether the lease is still ours; a process that slept for long may have lost it.

        Raises:
            RunningElsewhere: another process took it over.
        """
        current = find(self.folder, self.key)
        if current is None or current.facts.get("owner") != self.owner:
            self.lost = True
            raise RunningElsewhere(str(current) if current else "unknown", moved=True)

    def release(self) -> None:
        """Give it back, with those it was taken over from. Those of others stay."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
        current = find(self.folder, self.key)
        if current is not None and current.facts.get("owner") == self.owner:
            # Of processes killed in the middle of _make. First: while a lease lies here, somebody comes to clean up.
            for leftover in _files(self.folder, f".{self.key}.", ".tmp"):
                leftover.unlink(missing_ok=True)
            for found in _all(self.folder, self.key):  # the lowest first: see _is_rightful
                found.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # where nothing else is in them: a refused cell leaves nothing behind
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def _text(self) -> str:
        return json.dumps({**self._about, "beat": f"{self._beats:012d}"}, sort_keys=True) + "\n"

    def _make(self) -> bool:
        """Link the lease into place, whole. False where that number, or the folder, is another's at this moment."""
        try:
            os.makedirs(self.folder, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=f".{self.key}.", suffix=".tmp")
        except FileNotFoundError:  # another's release removed a folder just now
            return False
        except FileExistsError:  # a folder that was there, and was gone when its kind was looked up; or a file
            if self.folder.is_file() or self.folder.parent.is_file():
                raise
            return False
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self._text())
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(name, self.path)
            except (FileExistsError, FileNotFoundError):
                pass
            except OSError:  # a file system without links
                return self._make_without_link()
            return self._is_there()  # over NFS the answer to a link may be lost
        finally:
            Path(name).unlink(missing_ok=True)

    def _is_there(self) -> bool:
        return any(f.number == self.number and f.facts.get("owner") == self.owner for f in _all(self.folder, self.key))

    def _make_without_link(self) -> bool:
        """Create the lease where it did not exist; a reader may see it empty for a moment, which no rule minds."""
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                file.write(self._text())
        except FileExistsError:
            return False
        return True

    def _is_rightful(self, before: Found | None) -> bool:
        """Whether nothing else happened while the lease was made; withdraws it otherwise.

        Between the look at the old lease and the making of ours, its next owner may have come, run the cell and gone.
        The old lease is then gone too, since a release removes the lowest number first.
        """
        others = [found for found in _all(self.folder, self.key) if found.number != self.number]
        if before is None:
            rightful = not others
        else:
            same = any(f.number == before.number and f.facts == before.facts for f in others)
            rightful = same and all(found.number < self.number for found in others)
        if not rightful:
            self.path.unlink(missing_ok=True)
        return rightful

    def _beat(self) -> None:
        """Write in place: a lease that was removed must not come back."""
        while not self._released.wait(BEAT_SECONDS):
            self._beats += 1
            # A full disk or a network that is away for a while: others judge by what they see.
            with contextlib.suppress(OSError), open(self.path, "r+b", buffering=0) as file:
                file.write(self._text().encode())
                os.fsync(file.fileno())
            with contextlib.suppress(RunningElsewhere, OSError):
                self.check()


def find(folder: Path, key: str) -> Found | None:
    """The lease of a cell, or None where nobody has one."""
    return max(_all(folder, key), key=lambda found: found.number, default=None)


def held(results_dir: str | Path) -> dict[str, Found]:
    """Every lease of a results folder that is not known to be stale, by the cell's key."""
    folder = Path(results_dir, FOLDER)
    keys = {path.stem for path in _files(folder) if not path.name.startswith(".")}
    found = {key: lease for key in keys if (lease := find(folder, key)) is not None}
    return {key: lease for key, lease in found.items() if not is_stale(lease)}


def _all(folder: Path, key: str) -> list[Found]:
    """All leases of a cell, the lowest number first."""
    return sorted(_read(folder, key), key=lambda found: found.number)


def _files(folder: Path, prefix: str = "", suffix: str = "") -> list[Path]:
    """Those in a folder that another's release may remove at any moment, which a glob does not bear."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names if name.startswith(prefix) and name.endswith(suffix)]


def _read(folder: Path, key: str) -> Iterator[Found]:
    for path in _files(folder, f"{key}."):
        number = path.suffix.removeprefix(".")
        if number.isdigit():
            with contextlib.suppress(FileNotFoundError):
                yield Found(path, int(number), path.read_text(encoding="utf-8", errors="replace"))


def is_stale(lease: Found) -> bool:
    """Whether its owner is dead, or did not raise the counter for long enough while this process looked."""
    if _owner_is_dead(lease.facts):
        return True
    seen = _look(lease)
    return not seen.moved and time.monotonic() - seen.since > STALE_SECONDS


def moved(lease: Found) -> bool:
    """Whether its counter was seen to change: the owner is alive."""
    return _look(lease).moved


def _look(lease: Found) -> _Seen:
    seen = _seen.get(lease.path)
    if seen is None:
        seen = _seen[lease.path] = _Seen(lease.text, time.monotonic())
    elif seen.text != lease.text:
        seen = _seen[lease.path] = _Seen(lease.text, time.monotonic(), moved=True)
    elif seen.moved and time.monotonic() - seen.since > STALE_SECONDS:
        seen.moved = False  # it moved once and stands still since then
    return seen


def identity() -> dict[str, Any]:
    """What tells this process from every other: host, boot and pid namespace, pid and its start."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "start": start_of(os.getpid())}


def _machine() -> str:
    """Where a pid means the same process: the same name, boot and pid namespace."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "|".join(parts)


def start_of(pid: int) -> str | None:
    """The kernel's start tick of a living process, which tells it from a later one of the same number.

    None for a process that is gone or a zombie, and on systems without /proc.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]


def _owner_is_dead(facts: dict[str, Any]) -> bool:
    if not facts.get("start") or facts.get("machine") != _machine():
        return False  # of another machine, or one that cannot say: only the counter tells
    return start_of(int(facts["pid"])) != facts["start"]
