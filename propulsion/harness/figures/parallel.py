"""Figures of several suites and backbones, in several processes where that is safe: most of a report's time."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from propulsion.harness.figures.kinds import FigureFile, draw_all
from propulsion.harness.tables.model import Table

_suites: Sequence[Sequence[Table]] = ()  # what forked processes find here need not be sent to them


def draw_suites(suites: Sequence[Sequence[Table]], processes: int = 1) -> list[FigureFile]:
    """The figures of every suite, in order; the number of processes does not change a byte.

    Args:
        suites: for each suite its tables, one for each rule.
        processes: more than 1 only in a program without threads of its own: its copies start by a fork.
    """
    global _suites
    _suites = suites
    jobs = [(i, b) for i, tables in enumerate(suites) for b in dict.fromkeys(row.backbone for row in tables[0].rows)]
    processes = min(processes, len(jobs)) if sys.platform == "linux" else 1
    try:
        if processes < 2:
            return [figure for job in jobs for figure in _draw(job)]
        with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
            return [figure for figures in pool.map(_draw, jobs) for figure in figures]
    finally:
        _suites = ()


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def _draw(job: tuple[int, str]) -> list[FigureFile]:
    suite, backbone = job
    return draw_all(_suites[suite], backbone)
