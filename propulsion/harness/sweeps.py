"""What a sweep's cells came to: a note for each, from whichever process ran it, and the summary at the end.

The notes are files, since a launcher's workers, on this machine or another, share nothing else. They hold no result:
the records do. The folder is removed with the summary.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from propulsion.harness import configs
from propulsion.harness.errors import UserError
from propulsion.harness.files import write_text

FOLDER = "PROPULSION_SWEEP"  # in the environment: the folder of the running sweep's notes
TOTAL = "PROPULSION_SWEEP_CELLS"  # in the environment: how many cells it has
TABLES_FOLLOW = "PROPULSION_TABLES_FOLLOW"  # in the environment: who started the sweep makes its tables and logs them
DONE, SKIPPED, FAILED, DIVERGED = "done", "skipped", "failed", "diverged"
REFUSED, ELSEWHERE, STOPPED = "refused", "elsewhere", "stopped"
WORDS = {
    **{DONE: "done", SKIPPED: "done before", FAILED: "failed", DIVERGED: "diverged"},
    **{REFUSED: "refused", ELSEWHERE: "running elsewhere", STOPPED: "stopped"},
}


def pack_width(word: str, auto: int = 1) -> int:
    """How many cells train at once by a value of `sweep.pack`; 1: each alone.

    Raises:
        UserError: it is neither auto, nor off, nor a number.
    """
    if word.lower() == "auto":
        return auto
    if word.lower() in ("off", "false"):
        return 1
    if not re.fullmatch("[1-9][0-9]{0,3}", word):
        raise UserError(f"sweep.pack={word}: use auto, off, or how many cells train at once, as in 8")
    return int(word)


@dataclass(frozen=True)
class Note:
    """One cell of the sweep: what it came to, why, and the words that run it again."""

    number: int
    state: str
    cell: str = ""
    reason: str = ""
    seconds: float = 0.0
    words: list[str] = field(default_factory=list)
    alive: bool = False  # of a cell that runs elsewhere: its owner's heartbeat was seen

    @property
    def command(self) -> str:
        """What to type to run this cell alone; a diverged one counts as done and has to be asked for."""
        words = [*self.words, *(["rerun=true"] if self.state == DIVERGED else [])]
        return shlex.join(["python", "-m", "scripts.run", *configs.flag(), *words])


def begin(results_dir: str, cells: int) -> None:
    """Note the start of a sweep in the environment, which its workers inherit. Writes nothing yet."""
    os.environ[FOLDER] = str(Path(results_dir, f".sweep-{uuid.uuid4().hex[:8]}").absolute())
    os.environ[TOTAL] = str(cells)


def folder() -> Path | None:
    """The folder of the running sweep's notes, or None outside a sweep."""
    name = os.environ.get(FOLDER)
    return Path(name) if name else None


def size() -> int:
    """How many cells the running sweep has; 0 outside a sweep."""
    return int(os.environ.get(TOTAL, "0"))


def leave(note: Note) -> None:
    """Write a cell's note; the latest one counts. A folder that cannot be written is no reason to stop."""
    place = folder()
    if place is None or (note.state == REFUSED and not place.parent.is_dir()):
        return  # what is refused leaves nothing behind, not even a results folder
    try:
        write_text(place / f"{note.number}.json", json.dumps(asdict(note)))
    except OSError:
        return


def notes() -> list[Note]:
    """The notes so far, in the order of the sweep."""
    place = folder()
    files = place.glob("[0-9]*.json") if place else []
    return sorted((Note(**json.loads(file.read_text())) for file in files), key=lambda note: note.number)


def end() -> None:
    """Remove the notes."""
    place = folder()
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)
    os.environ.pop(FOLDER, None)


def summary(found: list[Note], cells: int) -> list[str]:
    """How many cells came to what; then each that has no result, with the command that runs it again."""
    counts = Counter(note.state for note in found)
    parts = [f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state]]
    if cells > len(found):
        parts.append(f"{cells - len(found)} not reached")
    lines = [f"sweep of {cells} cells: {', '.join(parts) or 'none ran'}"]
    for note in found:
        if note.state in (FAILED, DIVERGED, ELSEWHERE):
            lines += [f"{WORDS[note.state]}: {note.cell}{f' ({note.reason})' if note.reason else ''}"]
            lines += [f"  again: {note.command}"]
    return lines
