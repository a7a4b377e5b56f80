"""Answers of a finished run, or of an adapter folder, to texts of your own: one JSON object a line.

    python -m scripts.predict record=<key or path> text='What a film!'
    python -m scripts.predict record=<key or path> text='A man eats.' text2='Someone eats.' rule=best
    python -m scripts.predict record=<key or path> file=rows.parquet column=sentence out=answers.jsonl
    python -m scripts.predict adapter=<folder> backbone=minilm task=sst2 file=rows.txt merge=true
    python -m scripts.predict adapter=<folder> --config-dir <folder> backbone=<your own> task=<your own> text=...

The run must have kept its weights (training.keep_weights: auto, the default, keeps small ones). A file is .txt (a
text a line; of a pair, a tab between), .csv, .tsv, .jsonl or .parquet, whose texts are in the columns that the task
names, in `text` and `text2`, or in `column=` and `column2=`. `merge=true` folds the adapter into the weights first.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from propulsion.harness import configs
from propulsion.harness.classifier import Classifier
from propulsion.harness.errors import UserError, unknown
from propulsion.harness.files import write_text
from propulsion.harness.serving.answers import answer
from propulsion.harness.serving.inputs import Columns, read_rows, typed
from propulsion.harness.serving.open import find_record, open_adapter, predictor_of
from propulsion.harness.settings import TaskSpec


@dataclass
class Request:
    """What was typed."""

    record: str = ""
    results_dir: str = ""
    rule: str = "last"
    adapter: str = ""
    backbone: str = ""
    task: str = ""
    text: str | None = None
    text2: str | None = None
    file: str = ""
    column: str = ""
    column2: str = ""
    merge: str = "false"
    out: str = ""


def parse(arguments: list[str]) -> Request:
    """The request of `key=value` words.

    Raises:
        UserError: another key, or words that do not go together.
    """
    request = Request()
    for word in arguments:
        key, _, value = word.partition("=")
        if key not in Request.__dataclass_fields__:
            raise unknown("argument", key, Request.__dataclass_fields__)
        setattr(request, key, value)
    if bool(request.record) == bool(request.adapter):
        raise UserError("which model? type record=<key or path> or adapter=<folder>, one of them")
    if (request.text is None) == (not request.file):
        raise UserError("which texts? type text=... or file=<name>, one of them")
    if request.text2 is not None and request.file:
        raise UserError("text2 goes with text=: in a file the second text has a column of its own (column2=)")
    if request.merge not in ("true", "false"):
        raise UserError(f"merge={request.merge}: use true or false")
    return request


def _rows(request: Request, task: TaskSpec) -> Iterator[list[str]]:
    if request.text is not None:
        return iter([typed(request.text, request.text2, task)])
    return read_rows(Path(request.file), task, Columns(request.column, request.column2))


def _classifier(request: Request) -> Classifier:
    if request.adapter:
        return open_adapter(request.adapter, request.backbone, request.task)
    predictor = predictor_of(*find_record(request.record, request.results_dir), request.rule)
    next(_rows(request, predictor.settings.task), None)  # what is wrong with the texts is said before a model is loaded
    return predictor.classifier


def predict(request: Request) -> Iterator[dict[str, Any]]:
    """The answers, in the order of the rows.

    Raises:
        UserError: no model, or no texts, to be had.
    """
    classifier = _classifier(request)
    if request.merge == "true":
        classifier.merge()
    return answer(classifier, _rows(request, classifier.settings.task))


def main(arguments: list[str]) -> int:
    """Print the answers, or write them whole to `out=`. Exit code 2 on bad input, with one line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        request = parse(configs.take(arguments))
        lines = (json.dumps(entry, ensure_ascii=False) for entry in predict(request))
        if request.out:
            write_text(Path(request.out), "".join(f"{line}\n" for line in lines))
        else:
            for line in lines:
                print(line, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: the answers cannot be written ({error.strerror}); name another file with out=", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
