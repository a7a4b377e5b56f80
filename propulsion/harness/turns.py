"""Cells that take turns in one process: each as if it were alone, one at a time, until it asks for something.

A cell is a thread of its own, since it is ordinary code that stops in the middle of a step. Only one runs at any
moment, and each finds the random state, and what accelerate keeps for the whole process, as it left them: what the
others do never shows.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

SHARED: tuple[Any, ...] = (AcceleratorState, GradientState, PartialState)  # each keeps one dict for the process


class Surroundings:
    """The state of the process that a cell reads and changes, as it was when this was made."""

    def __init__(self) -> None:
        self.python, self.torch = random.getstate(), torch.get_rng_state()
        self.numpy = np.random.get_state()  # noqa: NPY002 (libraries draw from the old global one)
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self.shared = [dict(each._shared_state) for each in SHARED]

    def restore(self) -> None:
        """Put it back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        for each, kept in zip(SHARED, self.shared, strict=True):
            each._shared_state.clear()
            each._shared_state.update(kept)


class Turn(threading.Thread):
    """One cell. The thread that made it gives it turns with `resume`; the cell gives them back with `ask`.

    `seconds` is the time of its turns and what is added for work done on its behalf.
    """

    def __init__(self, job: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.request: Any = None
        self.failure: BaseException | None = None
        self.over = False
        self.seconds = 0.0
        self._since = 0.0
        self._answer: Any = None
        self._surroundings: Surroundings | None = None
        self.threads = torch.get_num_threads()
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)

    def resume(self, answer: Any = None) -> None:
        """Let the cell run until it asks for something (`request`) or is over. An exception as answer is raised."""
        self._answer, self.request = answer, None
        before = Surroundings()
        if self._surroundings is not None:
            self._surroundings.restore()
        self._since = time.perf_counter()
        if self.ident is None:
            self.start()
        self._go.release()
        self._back.acquire()
        self.seconds += time.perf_counter() - self._since
        self._surroundings = Surroundings()
        before.restore()

    def ask(self, request: Any) -> Any:
        """Called by the cell: end this turn with a request. Returns the answer, in the next turn."""
        self.request = request
        self._back.release()
        self._go.acquire()
        answer, self._answer = self._answer, None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def run(self) -> None:
        """The thread's work."""
        self._go.acquire()
        torch.set_num_threads(1)  # each would get workers of its own, and all of them crowd the cores
        try:
            self.job()
        except BaseException as error:
            self.failure = error
        finally:
            self.over = True
            self._back.release()

    def clock(self) -> float:
        """Seconds of this cell so far; called by the cell."""
        return self.seconds + time.perf_counter() - self._since


def current() -> Turn | None:
    """The cell that calls, where it takes turns with others."""
    thread = threading.current_thread()
    return thread if isinstance(thread, Turn) else None


def threads() -> int:
    """How many threads torch computes with; for a cell that takes turns, those of the thread that made it."""
    own = current()
    return torch.get_num_threads() if own is None else own.threads


def clock() -> float:
    """Seconds on a clock that stands still while other cells have their turn."""
    own = current()
    return time.perf_counter() if own is None else own.clock()
