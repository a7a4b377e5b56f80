"""A zip of one suite's prediction files, and beside it a manifest that says where every answer is from."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from propulsion.harness import record as records
from propulsion.harness.errors import UserError
from propulsion.harness.files import write_bytes, write_text
from propulsion.harness.planning import settings_of
from propulsion.harness.settings import Settings
from propulsion.harness.sources import open_source
from propulsion.harness.submission.choose import Record, Request, choose, suites_of, wanted
from propulsion.harness.submission.formats import SUITES, Target, answers_of, content
from propulsion.harness.submission.majority import majority_logits
from propulsion.harness.submission.predict import Predictor

FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # of the files in the zip, so that the same answers give the same bytes


@dataclass
class Submission:
    """What was written. `remarks`: one line for each thing that the server may not like."""

    zip: Path
    manifest: Path
    files: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def submit(request: Request, say: Callable[[str], None] = lambda line: None) -> list[Submission]:
    """Write the zip and the manifest of every suite that the chosen runs are of.

    Args:
        say: is handed a line before each run answers, since a large test set takes its time.

    Raises:
        UserError: no run, weights or rows to be had, or more than one choice; nothing was written then.
    """
    request.check()
    chosen = choose(request)
    predictors = {
        task: Predictor(record, request.rule, request.results_dir, request.data_dir) for task, record in chosen.items()
    }
    for predictor in predictors.values():
        _ = predictor.kept, predictor.file, predictor.source  # what is missing is said before the work begins
    made = [_Draft(request, suite, predictors) for suite in suites_of(request, chosen)]
    for number, (task, predictor) in enumerate(predictors.items(), 1):
        rows = {file: len(rows) for draft in made for file, rows in draft.answered_by(task)}
        tests = ", ".join(f"{file} {count:,}" for file, count in rows.items()) or "none"
        say(f"[{number}/{len(predictors)}] {predictor.name}: its recorded score, then its test rows ({tests})")
        dev = predictor.check()
        for draft in made:
            draft.predict(task, predictor, dev)
        predictor.release()
    return [draft.write() for draft in made]


class _Draft:
    """The files of one suite while they are made."""

    def __init__(self, request: Request, suite: str, predictors: dict[str, Predictor]) -> None:
        self.request, self.suite, self.spec = request, suite, SUITES[suite]
        self.first: Record = next(iter(predictors.values())).record
        self.texts: dict[str, str] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.missing: dict[str, str] = {}
        self.rows: dict[str, Dataset] = {}
        self.tasks: dict[str, Settings] = {}
        for target in wanted(request, suite):
            self._find_rows(target, predictors.get(target.model))

    def _find_rows(self, target: Target, predictor: Predictor | None) -> None:
        """Read the test rows, or note why the file will be missing."""
        if predictor is None and not self.request.fill:
            self.missing[target.file] = f"task {target.model} has no finished run"
            return
        try:
            settings = self._settings(target, predictor)
            source = open_source(settings.task, settings.data)
            self.rows[target.file] = source.load_split(settings.task.tests[target.suffix])
            self.tasks[target.file] = settings
        except UserError as error:
            if target.task == target.model:
                raise UserError(f"{error}; or leave {target.task} out: name the others with tasks=") from error
            self.missing[target.file] = str(error)

    def _settings(self, target: Target, predictor: Predictor | None) -> Settings:
        """Whose `task` and `data` say where the test rows are: the run's own, or as another run's of the same data."""
        if predictor is not None and target.task == target.model:
            return predictor.settings
        data = predictor.settings.data if predictor else None
        if data is None:
            config = self.first["run"]["config"]["data"]
            words = [
                f"data={config['source']}",
                *(f"data.{k}={config[k]}" for k in ("seed", "train_rows", "eval_rows")),
            ]
        else:
            words = [
                f"data={data.source}",
                *(f"data.{k}={getattr(data, k)}" for k in ("seed", "train_rows", "eval_rows")),
            ]
        (settings,) = settings_of([f"task={target.task}", *words])
        settings.data.dir = self.request.data_dir or None
        return settings

    def predict(self, task: str, predictor: Predictor, dev: dict[str, dict[str, float]]) -> None:
        """The files that this run answers."""
        for target in self._targets(task):
            settings, rows = self.tasks[target.file], self.rows[target.file]
            logits = predictor.logits(rows, settings.task)
            run = predictor.record["run"]
            self._add(
                target,
                answers_of(target, rows, settings.task.labels, logits),
                {
                    "from": "run",
                    "record": predictor.name,
                    "key": predictor.record["key"],
                    "rule": self.request.rule,
                    "step": predictor.kept["step"],
                    "seed": run["seed"],
                    "method": run["method"],
                    "backbone": run["backbone"],
                    "backbone_weights": run["weights"],
                    "kept_sha256": predictor.kept["sha256"],
                    "data": {k: run["data"][k] for k in ("source", "fingerprint")},
                    "evaluation": dev,
                },
            )

    def answered_by(self, task: str) -> Iterator[tuple[str, Dataset]]:
        """File and test rows of each that this task's run answers."""
        return ((target.file, self.rows[target.file]) for target in self._targets(task))

    def _targets(self, task: str) -> Iterator[Target]:
        return (t for t in self.spec.targets if t.model == task and t.file in self.rows)

    def _fill(self) -> None:
        """The majority's answers for the tasks that were not run."""
        for target in self.spec.targets:
            if target.file in self.rows and target.file not in self.texts:
                settings, rows = self.tasks[target.file], self.rows[target.file]
                source = open_source(settings.task, settings.data)
                logits = majority_logits(target, settings.task, source.load_split("train"), rows)
                data = {"source": settings.data.source, "fingerprint": source.fingerprint()}
                self._add(
                    target,
                    answers_of(target, rows, settings.task.labels, logits),
                    {"from": "majority", "data": data, "note": "not run: the training rows' majority answer"},
                )

    def _add(self, target: Target, answers: list[dict[str, Any]], entry: dict[str, Any]) -> None:
        name = f"{target.file}.{self.spec.ending}"
        self.texts[target.file] = content(self.spec, answers)
        self.entries[target.file] = {
            "file": name,
            "task": target.task,
            **entry,
            "test_rows": len(self.rows[target.file]),
            "lines": len(answers),
            "published_lines": target.lines,
            "sha256": hashlib.sha256(self.texts[target.file].encode()).hexdigest(),
        }

    def write(self) -> Submission:
        """Write the zip, then the manifest."""
        self._fill()
        run, ending = self.first["run"], self.spec.ending
        files = [target.file for target in self.spec.targets if target.file in self.texts]
        if not files:
            raise UserError(f"no file of {self.spec.title} can be made: {next(iter(self.missing.values()), 'no task')}")
        stem = f"{self.suite}-{run['backbone']}-{run['method']}-seed{run['seed']}-{self.request.rule}"
        path = Path(self.request.results_dir, "submission", f"{stem}.zip")
        packed = _zip({f"{file}.{ending}": self.texts[file] for file in files})
        manifest = {
            "suite": self.suite,
            "zip": path.name,
            "sha256": hashlib.sha256(packed).hexdigest(),
            "created_at": records.now(),
            "backbone": run["backbone"],
            "method": run["method"],
            "seed": run["seed"],
            "rule": self.request.rule,
            "env": records.environment(None),
            "files": [self.entries[file] for file in files],
            "missing": {f"{file}.{ending}": reason for file, reason in self.missing.items()},
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        try:
            write_bytes(path, packed)
            write_text(path.with_suffix(".json"), text)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); free the folder or its disk") from error
        return Submission(path, path.with_suffix(".json"), files, self._remarks())

    def _remarks(self) -> list[str]:
        ending = self.spec.ending
        remarks = [f"{file}.{ending} is not in the zip: {reason}" for file, reason in self.missing.items()]
        for target in self.spec.targets:
            entry = self.entries.get(target.file)
            if entry is None:
                continue
            if entry["lines"] != entry["published_lines"]:
                remarks.append(
                    f"{entry['file']} has {entry['lines']} lines, the server wants {entry['published_lines']}: "
                    f"the test rows of {entry['task']} are not the published ones"
                )
            elif target.answers and entry["test_rows"] != target.answers:
                remarks.append(f"{entry['file']} holds {entry['test_rows']} answers, the server wants {target.answers}")
            if entry["from"] == "majority":
                remarks.append(f"{entry['file']} is the majority answer: {entry['task']} was not run")
        return remarks


def _zip(files: dict[str, str]) -> bytes:
    """A zip with the files at its root."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            info = zipfile.ZipInfo(name, FIXED_TIME)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, text.encode())
    return out.getvalue()
