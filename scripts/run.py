"""Run one cell, or a sweep of cells.

    python -m scripts.run task=rte backbone=minilm method=propulsion seed=0
    python -m scripts.run -m task=rte,mrpc method=head,lora,propulsion 'seed=range(3)' data=local data.dir=<folder>

Tasks, backbones and methods of your own: --config-dir <folder> (docs/adding-a-task.md and its neighbours).
A finished cell is skipped, an interrupted one goes on, a failed one is recorded and the sweep goes on.
What is done is skipped before torch is imported, which takes longer than all the rest: hence the imports in functions.
Exit code: 0 all done, 1 a cell failed, 2 bad input, 75 a cell is running elsewhere, 130 interrupted (Ctrl-C once saves
a checkpoint first, twice stops at once), 128 + n stopped by signal n with its checkpoint saved.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

import hydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from propulsion.harness import configs, ranks, stops, sweeps
from propulsion.harness.errors import CellStopped, RunningElsewhere, UserError, unknown
from propulsion.harness.finished import skipped
from propulsion.harness.leases import BEAT_SECONDS, STALE_SECONDS
from propulsion.harness.progress import cell_line, job, note_of
from propulsion.harness.record import REPOSITORY
from propulsion.harness.settings import Settings, explain, read_settings

MAIN_PROCESS = "PROPULSION_MAIN_PROCESS"
LAUNCHER, LOCAL_WORKERS = "hydra/launcher=", "hydra/launcher=joblib"
TRY_LATER = 75  # EX_TEMPFAIL of sysexits.h
_exit_codes: list[int] = []


@dataclass(frozen=True)
class Waiting:
    """A cell of the sweep that runs once all are known."""

    settings: Settings
    number: int
    words: list[str]

    def run(self) -> None:
        """Run it."""
        run_one(self.settings, self.number, self.words)


_waiting: list[Waiting] = []


@hydra.main(version_base="1.3", config_path=str(REPOSITORY / "conf"), config_name="config")
def run(config: DictConfig) -> None:
    """Run the composed config's cell and print its line."""
    if _is_worker():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep says when to stop
    number, words = job()
    if stops.stopping():
        return sweeps.leave(sweeps.Note(number, sweeps.STOPPED, words=words))
    try:
        settings = read_settings(config)
    except UserError as error:
        return _refuse(sweeps.Note(number, sweeps.REFUSED, reason=str(error), words=words))
    try:
        done = skipped(settings)
        at_once = 1 if done else _width(settings)
    except UserError as error:
        return _refuse(sweeps.Note(number, sweeps.REFUSED, settings.cell, str(error), words=words))
    if done is not None:
        return _tell(settings, done, False, 0.0, number, words)
    if at_once > 1 and sweeps.size() and os.environ.get(MAIN_PROCESS) == str(os.getpid()) and not _launcher():
        _waiting.append(Waiting(settings, number, words))
        return None
    run_one(settings, number, words)


def run_packs() -> None:
    """Run the cells that were kept back: those that fit together in packs, the others alone, in the sweep's order."""
    if not _waiting:
        return
    from propulsion.harness import packing

    waiting, _waiting[:] = list(_waiting), []
    for cells in packing.packs(waiting, lambda cell: cell.settings):
        if len(cells) == 1:
            cells[0].run()
        else:
            with stops.graceful_threads():
                packing.Pack(packing.width(cells[0].settings)).run(cell.run for cell in cells)


def run_one(settings: Settings, number: int, words: list[str], again: bool = False) -> None:
    """Run a cell, print its line and leave its note, whichever way it ends."""
    from propulsion.harness.cell import run_cell
    from propulsion.harness.turns import clock, current

    started = clock()
    try:
        entry, ran = run_cell(settings)
    except UserError as error:
        return _refuse(sweeps.Note(number, sweeps.REFUSED, settings.cell, str(error), words=words))
    except CellStopped:
        raise
    except RunningElsewhere as elsewhere:
        holder, alive = elsewhere.holder, elsewhere.moved
        sweeps.leave(sweeps.Note(number, sweeps.ELSEWHERE, settings.cell, holder, words=words, alive=alive))
        if not again:
            _say(f"{settings.cell}: {elsewhere}")
        return None if sweeps.size() else _stop(TRY_LATER)
    except KeyboardInterrupt as stop:
        if isinstance(stop, stops.Interrupted) and stop.finished:
            _tell(settings, stop.finished, True, clock() - started, number, words)
        else:
            sweeps.leave(sweeps.Note(number, sweeps.STOPPED, settings.cell, words=words))
            if isinstance(stop, stops.Interrupted) and stop.left != stops.SAVED:
                _say(f"{settings.cell}: stopped, {stop.left}")
        if _is_worker():
            return None
        raise
    except stops.Preempted as preempted:
        if preempted.finished:
            _tell(settings, preempted.finished, True, clock() - started, number, words)
        else:
            _say(f"{settings.cell}: stopped by signal {preempted.number}, {preempted.left}")
        if current() is not None:  # of a pack: the others save theirs first
            raise
        preempted.hand_over()
        if os.environ.get(MAIN_PROCESS) != str(os.getpid()):  # whoever waits for a launched job wants a result
            raise CellStopped(int(preempted.code or 0)) from preempted
        raise
    except Exception as error:
        if ranks.size() > 1:  # the others would wait for this process
            raise
        return _fail(settings, error, number, words)
    _tell(settings, entry, ran, clock() - started, number, words)


def _fail(settings: Settings, error: Exception, number: int, words: list[str]) -> None:
    """A cell that ended before or after what its record can tell of: the sweep goes on with the next."""
    from propulsion.harness.record import error_entry

    found = error_entry(error)
    reason = f"{found['type']}: {' '.join(found['message'].split())[:200]}; {found['where']}"
    print(f"{settings.cell}: failed without a record ({reason})", file=sys.stderr)
    sweeps.leave(sweeps.Note(number, sweeps.FAILED, settings.cell, reason, words=words))
    _stop(1)


def _width(settings: Settings) -> int:
    from propulsion.harness import packing

    return packing.width(settings)


def _tell(settings: Settings, entry: dict[str, Any], ran: bool, seconds: float, number: int, words: list[str]) -> None:
    """Leave the note of a cell that has a record, and print its line."""
    if ranks.rank() == 0:
        sweeps.leave(note_of(settings, entry, ran, seconds, number, words))
    _say(cell_line(settings, entry, ran, seconds, number))
    if entry["status"] == "failed":
        _stop(1)


def _say(line: str) -> None:
    if ranks.rank() == 0:
        print(line, flush=True)


def _refuse(note: sweeps.Note) -> None:
    if ranks.speaks():
        print(f"error: {note.reason}", file=sys.stderr)
    sweeps.leave(note)
    _stop(2)


def _is_worker() -> bool:
    """Whether a launcher runs this cell in another process than the one that was started."""
    return os.environ.get(MAIN_PROCESS) not in (None, str(os.getpid())) and bool(os.environ.get(stops.STOP_FILE))


def _stop(code: int) -> None:
    """Ask for an exit code: kept here, or raised where a launcher runs the cell in another process."""
    if os.environ.get(MAIN_PROCESS) != str(os.getpid()):
        raise CellStopped(code)
    _exit_codes.append(code)


def main() -> int:
    """Run, and turn every way to end into an exit code and at most one line."""
    os.environ[MAIN_PROCESS] = str(os.getpid())
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors over here instead of printing them
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers of a sweep fork
    try:
        ranks.check()
        configs.take(sys.argv[1:])
        return _sweep()
    except UserError as error:
        if ranks.speaks():
            print(f"error: {error}", file=sys.stderr)
        return 2
    except CellStopped as stopped:
        return stopped.code
    except MissingConfigException as error:
        print(f"error: {_missing(error)}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    except ValueError as error:  # Hydra's word for `task=null`
        if "Config group override" not in str(error):
            raise
        print("error: a config group needs a name, as in task=rte", file=sys.stderr)
        return 2
    except Exception as error:  # of the launcher: a job that was killed, or cancelled while it waited
        if not type(error).__module__.startswith("submitit"):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"error: a job has no result ({reason}); type the same command again for what is left", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: type the same command again and it goes on where it stopped", file=sys.stderr)
        return 130


def _sweep() -> int:
    """Run what was typed; at the end of a sweep, try again what ran elsewhere and say what came of all cells."""
    packs = [word for word in sys.argv if word.lstrip("+").startswith("sweep.pack=")]
    pack = packs[-1].partition("=")[2] if packs else "auto"
    if sweeps.pack_width(pack) > 1 and _launcher():
        raise UserError(f"{packs[-1]} packs the cells of one process: leave {_launcher()} out")
    if ranks.size() > 1 and _launcher():  # its workers would take each other for processes of their own cells
        raise UserError(f"{_launcher()} starts processes for other cells: leave it out beside torchrun or accelerate")
    try:
        with stops.sweep_of_workers(LOCAL_WORKERS in sys.argv):
            run()
            run_packs()
            if not _launcher() or LOCAL_WORKERS in sys.argv:
                _try_again()
        return next((code for code in (2, 1, TRY_LATER) if code in _exit_codes), 0)
    finally:
        if sweeps.size() and ranks.rank() == 0:
            _track(sweeps.notes())
            print(*sweeps.summary(sweeps.notes(), sweeps.size()), sep="\n", flush=True)
        sweeps.end()


def _track(notes: list[sweeps.Note]) -> None:
    """Log the tables of a sweep that has any, unless who started it makes them itself."""
    done = [note for note in notes if note.state == sweeps.DONE]
    if sweeps.TABLES_FOLLOW not in os.environ and done:
        from propulsion.harness import planning
        from propulsion.harness.tracking import log_tables

        with contextlib.suppress(UserError):  # a file of conf/ that went since: the records are there
            (settings,) = planning.settings_of(done[0].words)
            log_tables(settings)


def _launcher() -> str | None:
    """The word that chose a launcher other than Hydra's own, which runs the cells in other processes."""
    return next((word for word in sys.argv if LAUNCHER in word), None)


def _try_again() -> None:
    """Cells that another process had: their record may be there now, or their owner dead.

    Waits for as long as it takes to tell a slow owner from a dead one, never for a cell.
    """
    patience = time.monotonic() + STALE_SECONDS + 2 * BEAT_SECONDS
    waiting = ranks.agreed(lambda: _elsewhere(sweeps.notes()))
    while waiting:
        from propulsion.harness import planning

        for note in waiting:
            (settings,) = planning.settings_of(note.words)
            run_one(settings, note.number, note.words, again=True)
        left = ranks.agreed(lambda: _elsewhere(sweeps.notes()))
        waiting = [note for note in left if not note.alive] if time.monotonic() < patience else []
        if waiting:
            time.sleep(BEAT_SECONDS)
    if ranks.agreed(lambda: _elsewhere(sweeps.notes())):
        _exit_codes.append(TRY_LATER)


def _elsewhere(notes: list[sweeps.Note]) -> list[sweeps.Note]:
    return [note for note in notes if note.state == sweeps.ELSEWHERE]


def _missing(error: MissingConfigException) -> UserError | str:
    """`unknown task 'rt': did you mean rte?` from Hydra's own error."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group or not error.options:
        return " ".join(str(error).split())
    return unknown(group, name, error.options)


if __name__ == "__main__":
    sys.exit(main())
