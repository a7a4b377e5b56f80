"""A finished run as a folder that other people can load: an adapter, a model card, and the record of the run.

    python -m scripts.export record=<key or path>
    python -m scripts.export record=<key or path> rule=best out=<folder> license=apache-2.0
    python -m scripts.export record=<key or path> whole=true     # the merged model instead: any method
    python -m scripts.export record=<key or path> license=apache-2.0 push=<user>/<name> private=true

The run must have kept its weights (training.keep_weights: auto, the default, keeps small ones). Without `out=` the
folder lies in <results_dir>/exports. Nothing is uploaded without `push=`, and only what the folder holds.
"""

from __future__ import annotations

import os
import sys

from propulsion.harness.errors import UserError, unknown
from propulsion.harness.serving.export import Wish, check_wish, export, push
from propulsion.harness.serving.open import find_record, predictor_of

WORDS = {"true": True, "false": False}
KNOWN = ("record", "results_dir", "rule", *Wish.__dataclass_fields__)


def parse(arguments: list[str]) -> tuple[dict[str, str], Wish]:
    """Which run, and what is to be written.

    Raises:
        UserError: another key, or no record.
    """
    words = dict.fromkeys(("record", "results_dir", "rule"), "") | {"rule": "last"}
    wish: dict[str, str | bool] = {}
    for word in arguments:
        key, _, value = word.partition("=")
        if key not in KNOWN:
            raise unknown("argument", key, KNOWN)
        if key in words:
            words[key] = value
        elif isinstance(getattr(Wish, key), bool):
            if value not in WORDS:
                raise UserError(f"{key}={value}: use true or false")
            wish[key] = WORDS[value]
        else:
            wish[key] = value
    if not words["record"]:
        raise UserError("which run? type record=<key or path>")
    return words, Wish(**wish)  # type: ignore[arg-type]


def main(arguments: list[str]) -> int:
    """Write the folder, and upload it where that is asked for. Exit code 2 on bad input, with one line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        words, wish = parse(arguments)
        check_wish(wish)
        predictor = predictor_of(*find_record(words["record"], words["results_dir"]), words["rule"])
        folder = export(predictor, wish)
        print(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
        if wish.push:
            print(f"pushed to {push(folder, wish)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
