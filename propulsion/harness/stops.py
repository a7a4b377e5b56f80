"""Stopping in order: Ctrl-C once, or a batch system's signal, saves a checkpoint first; Ctrl-C twice stops at once."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from propulsion.harness import ranks

STOP_FILE = "PROPULSION_STOP"  # in the environment of a sweep's workers: where the sweep says that it stops
PREEMPTION = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SAVED = "its checkpoint is saved"
UNSAVED = "its checkpoint could not be saved: it goes on from an earlier one, or starts again"
ANEW = "its method goes on from no checkpoint: it starts again"
LINE = "stopping: a checkpoint is saved first; Ctrl-C again stops at once\n"
_LOOK_SECONDS = 0.5
_threads: list[Stop] = []  # what was asked of the threads of this process, which get no signals themselves


class Preempted(SystemExit):
    """A batch system's signal ended the run. The exit code is the shell's, 128 + signal.

    `finished` is the record of a run that had no step left when the signal came; `left` says what any other one left.
    """

    def __init__(self, number: int, before: Any, finished: dict[str, Any] | None = None, left: str = SAVED) -> None:
        super().__init__(128 + number)
        self.number, self.before, self.finished, self.left = number, before, finished, left

    def hand_over(self) -> None:
        """Give the signal to whom it was meant for before: submitit's handler requeues the job and exits."""
        if callable(self.before) and self.before is not signal.default_int_handler:
            self.before(self.number, None)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, heeded in order. `finished` and `left` as in `Preempted`."""

    def __init__(self, finished: dict[str, Any] | None = None, left: str = SAVED) -> None:
        super().__init__()
        self.finished, self.left = finished, left


class Stop:
    """What was asked of a run while it trained."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.before: dict[int, Any] = {}
        self._looked = 0.0

    def asked(self) -> bool:
        """Whether the run should stop: by a signal to this process, or by the sweep that it belongs to."""
        file = os.environ.get(STOP_FILE)
        if self.number is None and file and time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            self.number = int(signal.SIGINT) if Path(file).exists() else None
        return self.number is not None

    def leave(self, finished: dict[str, Any] | None = None, left: str = SAVED) -> None:
        """End the run, after its checkpoint (`left` says what came of it), or after its record, then `finished`.

        Raises:
            Interrupted: Ctrl-C, or another process of the run was asked.
            Preempted: a batch system's signal.
        """
        if self.number in PREEMPTION:
            raise Preempted(int(self.number), self.before.get(self.number), finished, left)
        raise Interrupted(finished, left)

    def receive(self, number: int, frame: Any) -> None:
        """The signal handler."""
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = int(number)
        if number == signal.SIGINT and ranks.rank() == 0:
            os.write(2, LINE.encode())  # print may be in the middle of a line of its own


@contextmanager
def graceful() -> Iterator[Stop]:
    """Within, signals ask for a stop instead of ending the process. One that is ignored stays ignored.

    In a thread it is the stop that was asked of all of them, see `graceful_threads`.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield _threads[-1] if _threads else stop
        return
    for number in map(int, (signal.SIGINT, *PREEMPTION)):
        before = signal.getsignal(number)
        # Without a handler SIGUSR2 is nobody's business here; submitit sets one.
        if before in (signal.SIG_IGN, None) or (number == signal.SIGUSR2 and not callable(before)):
            continue
        stop.before[number] = signal.signal(number, stop.receive)
    try:
        yield stop
    finally:
        for number, before in stop.before.items():
            signal.signal(number, before)


@contextmanager
def graceful_threads() -> Iterator[None]:
    """In the thread that gets the signals: they ask the cells of the others to stop, each with its checkpoint.

    Raises:
        KeyboardInterrupt, Preempted: at the end, where a stop was asked.
    """
    with graceful() as stop:
        _threads.append(stop)
        try:
            yield
        finally:
            _threads.remove(stop)
    if stop.asked():
        stop.leave()


@contextmanager
def sweep_of_workers(enabled: bool) -> Iterator[None]:
    """In the process that starts workers on this machine: Ctrl-C asks them through a file; twice, it stops at once.

    The workers do not hear Ctrl-C, which a terminal sends to all: the first to end would take the others with it.

    Raises:
        KeyboardInterrupt: at the end, where it was asked to stop.
    """
    if not enabled:
        yield
        return
    file = Path(tempfile.gettempdir(), f"propulsion-stop-{uuid.uuid4().hex}")

    def receive(number: int, frame: Any) -> None:
        if file.exists():
            raise KeyboardInterrupt
        file.touch()
        os.write(2, LINE.encode())

    os.environ[STOP_FILE] = str(file)
    before = signal.signal(signal.SIGINT, receive)
    try:
        with _deaf_children():
            yield
        if file.exists():
            raise KeyboardInterrupt
    except Exception as error:
        if file.exists():  # a worker that was still starting ends without a word of its own
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        os.environ.pop(STOP_FILE, None)
        file.unlink(missing_ok=True)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started within have Ctrl-C blocked from their first moment, before any code of ours could see to it.

    Here another thread takes it, and its handler runs in the main thread as ever. Of a sweep that stops at once, the
    watcher over the workers' semaphores would say that it had to remove them: it is told to say nothing.
    """
    over = threading.Event()
    threading.Thread(target=over.wait, name="ctrl-c", daemon=True).start()
    warned = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (warned, "ignore:resource_tracker")))
    resource_tracker.ensure_running()  # now: where it is started later, it unblocks Ctrl-C
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        over.set()
        os.environ.pop("PYTHONWARNINGS") if warned is None else os.environ.update(PYTHONWARNINGS=warned)


def stopping() -> bool:
    """Whether the sweep that this worker or thread belongs to is being stopped."""
    file = os.environ.get(STOP_FILE)
    return any(stop.asked() for stop in _threads) or (bool(file) and Path(str(file)).exists())
