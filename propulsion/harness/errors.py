"""The one error that is the user's to mend, bad input, and how else a command or a cell ends without a result."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Bad input. Shown as one line, without a traceback; the process exits with code 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest names that do."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return UserError(f"unknown {kind} '{name}': {hint}")


def ended(main: Callable[[list[str]], int]) -> int:
    """The exit code of a command on what was typed; Ctrl-C is one line and 130. What it writes, it writes whole."""
    try:
        return main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted: type the same command again", file=sys.stderr)
        return 130


class CellStopped(Exception):
    """A cell ended without a score; the reason has been printed. `code` is the exit code it asks for."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class RunningElsewhere(Exception):
    """Another process has the cell. `moved`: its heartbeat was seen, so that waiting for its death is in vain."""

    def __init__(self, holder: str, moved: bool) -> None:
        super().__init__(holder, moved)
        self.holder, self.moved = holder, moved

    def __str__(self) -> str:
        return f"running elsewhere ({self.holder})"
