"""Prediction files for the GLUE and SuperGLUE servers, from the kept weights of finished runs. `make submit`.

    python -m scripts.submit results_dir=results/minilm-real method=lora seed=0 data_dir=<folder>
    python -m scripts.submit results_dir=... method=lora seed=0 tasks=rte,cola rule=best fill=majority

Writes <results_dir>/submission/<suite>-<backbone>-<method>-seed<seed>-<rule>.zip and its manifest, a .json beside it.
The runs must have kept their weights (training.keep_weights: auto, the default, keeps small ones). `rule`: last, the
final weights, or best, those of the best evaluation. `fill=majority` answers the tasks that were not run.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path

from propulsion.harness.errors import UserError, unknown
from propulsion.harness.submission import Request, Submission, submit

RESULTS = Path("results")
PLURALS = {"backbones": "backbone", "methods": "method", "seeds": "seed"}  # as the make variables have it


def parse(arguments: list[str]) -> Request:
    """The request of `key=value` words.

    Raises:
        UserError: another key, or no result set to take.
    """
    request = Request()
    for word in arguments:
        key, _, value = word.partition("=")
        key = PLURALS.get(key, key)
        if key not in Request.__dataclass_fields__:
            raise unknown("argument", key, Request.__dataclass_fields__)
        setattr(request, key, value)
    request.results_dir = request.results_dir or _result_set()
    return request


def _result_set() -> str:
    """The only result set that has kept weights."""
    found = sorted(str(folder.parent) for folder in RESULTS.glob("*/weights") if folder.is_dir())
    if len(found) != 1:
        which = f"choose one: results_dir={'|'.join(found)}" if found else "run some first, as with make reproduce-glue"
        raise UserError(f"{len(found) or 'no'} result sets in results/ have kept weights: {which}")
    return found[0]


def report(made: Submission) -> str:
    """What was written, and what the server may not like."""
    lines = [f"{made.zip}: {len(made.files)} files ({', '.join(made.files)})", f"{made.manifest}: its manifest"]
    return "\n".join([*lines, *(f"note: {remark}" for remark in made.remarks)])


def main(arguments: list[str]) -> int:
    """Write the submissions. Exit code 2 on bad input, with one line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        for made in submit(parse(arguments), say=functools.partial(print, flush=True)):
            print(report(made))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
