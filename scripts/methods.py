"""Try every method on a tiny model of every family and print the table. `make methods` calls this.

    python -m scripts.methods
    python -m scripts.methods methods=lora,vera results_dir=results
    python -m scripts.methods methods=<your own> --config-dir <folder>

Each trial trains a few steps, checks that every trained number gets a gradient and that a row's logits hang on that row
alone, saves and loads. Writes <results_dir>/methods/methods.md; without results_dir=, only the
whole table of conf/method.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from transformers.utils import logging as transformers_logging

from propulsion.harness import configs, methods, params, sheets
from propulsion.harness.errors import UserError, ended, unknown

KEYS = ("methods", "results_dir")
EXPLAINED = (
    "Every `yes` was tried when this table was made, on a tiny random model of the family: four steps of training in "
    "which each trained number gets a gradient, logits that hang neither on the other rows of a batch nor on padding, "
    "and the same logits after saving and loading. merges: the adapter folds into the backbone's weights, to the same "
    "logits, so that it costs nothing to use.",
    f"adapter: trained parameters outside the head on {methods.COUNTED_ON}. rate: the default learning rate of "
    "`conf/method`; runs on real data take theirs from `conf/recipe` where one was searched.",
)


def report(names: list[str]) -> str:
    """The whole page for the named methods."""
    sheet, reasons = methods.sheet(methods.rows(names))
    lines = ["# Methods", "", *(f"- {line}" for line in EXPLAINED), "", *sheets.markdown(sheet)]
    if reasons:
        lines += ["", "No, because:", "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))]
    lines += ["", "## Not covered", "", *(f"- {name}: {why}" for name, why in methods.not_covered().items())]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Try, print, write. Exit code 2 on bad input."""
    started = time.monotonic()
    transformers_logging.set_verbosity_error()
    try:
        chosen = dict(word.partition("=")[::2] for word in configs.take(arguments))
        for key in chosen:
            if key not in KEYS:
                raise unknown("argument", key, KEYS)
        asked = [name for name in chosen.get("methods", "").split(",") if name]
        text = report(asked or configs.names("method"))
        folder = Path(chosen.get("results_dir") or params.default_folder().parent, "methods")
        part = (asked or configs.flag()) and "results_dir" not in chosen
        paths = [] if part else sheets.write(folder, "methods", {"md": text})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    print(f"tried in {time.monotonic() - started:.0f} s")
    if paths:
        print("written:", *paths)
    return 0


if __name__ == "__main__":
    sys.exit(ended(main))
