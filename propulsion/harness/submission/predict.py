"""A recorded run as a model again: rebuilt, loaded from its kept weights, and checked against its own record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import EvalPrediction

from propulsion.harness.assembly import build_model, rows_of
from propulsion.harness.classifier import Classifier
from propulsion.harness.digests import file_digest
from propulsion.harness.encode import evaluation_rows
from propulsion.harness.errors import UserError
from propulsion.harness.evaluation import ALL, Scorer
from propulsion.harness.keeping import kept_names
from propulsion.harness.kept import weights_path
from propulsion.harness.settings import Config, Settings, TaskSpec, read_settings
from propulsion.harness.sources import Source, open_source
from propulsion.harness.tables.reading import record_name
from propulsion.harness.weights import load_trained

Record = dict[str, Any]
ROWS_APART = 2  # this many rows may fall the other way on another device, whose rounding is another


def settings_of_record(record: Record, results_dir: str, data_dir: str | None) -> Settings:
    """The settings that a record's run had. Of files and folders on a machine a record has only the names.

    Args:
        data_dir: where local data lie; None where none will be read.

    Raises:
        UserError: a config that this version does not read, or local data without their folder.
    """
    config = dict(record["run"]["config"])
    config["data"] = {**config["data"], "dir": data_dir or None}
    config["training"] = {**config["training"], "start_from": None}  # the kept weights hold all that was trained
    if config["data"]["source"] == "local" and data_dir == "":
        raise UserError(
            f"{record_name(record)} is of local files: say where they are, data_dir=<folder> (make: DATA_DIR=)"
        )
    try:
        merged: Any = OmegaConf.merge(OmegaConf.structured(Config), {**config, "results_dir": results_dir})
        return read_settings(merged)
    except (OmegaConfBaseException, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{record_name(record)}: its config is of another version ({reason}); run the cell again"
        ) from (error)


@dataclass
class Predictor:
    """One run's model. Nothing is loaded before it is needed; `check` comes before any answer."""

    record: Record
    rule: str
    results_dir: str
    data_dir: str | None  # None: its rows are not needed

    @property
    def name(self) -> str:
        """The record's place, for people."""
        return record_name(self.record)

    @property
    def kept(self) -> dict[str, Any]:
        """Step, digest and size of the weights, from the record.

        Raises:
            UserError: the run kept none by this rule.
        """
        kept: dict[str, Any] | None = (self.record["run"].get("kept") or {}).get(self.rule)
        if kept is None:
            raise UserError(
                f"{self.name} kept no weights of its {self.rule} evaluation: type the command that ran it again, with "
                f"training.keep_weights=both added and results_dir={self.results_dir}; it keeps its key"
            )
        return kept

    @cached_property
    def file(self) -> Path:
        """The weights file, which is the one that the record names.

        Raises:
            UserError: it is gone, or another.
        """
        path = weights_path(self.results_dir, self.record["key"], self.rule)
        again = "run the cell again with training.keep_weights=both"
        if not path.is_file():
            raise UserError(f"{self.name}: its weights {path} are gone; put them back, or {again}")
        if file_digest(path) != self.kept["sha256"]:
            raise UserError(
                f"{self.name}: {path} is not the file that the record names (sha256); delete it and {again}"
            )
        return path

    @cached_property
    def settings(self) -> Settings:
        """The run's settings."""
        return settings_of_record(self.record, self.results_dir, self.data_dir)

    @cached_property
    def source(self) -> Source:
        """The run's data: the same rows as then.

        Raises:
            UserError: they are not there, or others.
        """
        source = open_source(self.settings.task, self.settings.data)
        recorded = self.record["run"]["data"]["fingerprint"]
        if source.fingerprint() != recorded:
            raise UserError(
                f"{self.name}: the {self.settings.data.source} data here are not those of the record "
                f"({source.fingerprint()}, not {recorded}); set data_dir=<the folder it was run on>"
            )
        return source

    @cached_property
    def classifier(self) -> Classifier:
        """The model with the kept weights, on the device.

        Raises:
            UserError: the backbone is not there, or another than the record's.
        """
        tokenizer, model, parts, weights = build_model(self.settings)
        recorded = self.record["run"]["weights"]
        compared = ("sha256",) if recorded["sha256"] else ("id", "revision")
        for what in compared:
            if asdict(weights)[what] != recorded[what]:
                raise UserError(
                    f"{self.name}: backbone {self.settings.backbone.name} here has {what} {asdict(weights)[what]}, the "
                    f"record's has {recorded[what]}; install the weights it was run with"
                )
        load_trained(model, self.file, kept_names(self.settings, model, parts))
        model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return Classifier(self.name, self.settings, tokenizer, model, self.record["env"].get("precision"))

    def release(self) -> None:
        """Let go of the model."""
        self.__dict__.pop("classifier", None)

    def check(self) -> dict[str, dict[str, float]]:
        """Score the loaded model on the run's own evaluation rows and compare with the record.

        Returns:
            `recorded` and `recomputed`, each metric -> score.

        Raises:
            UserError: they differ by more than rounding on another device can explain.
        """
        parts = rows_of(self.source, self.settings).parts
        encoded = {suffix: self.classifier.encoded(part) for suffix, part in parts.items()}
        rows = evaluation_rows(encoded, parts)
        logits = self.classifier.logits(rows.rows)
        output = EvalPrediction(predictions=logits, label_ids=np.asarray(rows.rows[:]["labels"]))
        scores = Scorer(self.settings.task, rows)(output)
        recorded: dict[str, float] = self.record["eval"][self.rule]
        recomputed = {name: float(scores[f"{ALL}/{name}"]) for name in recorded}
        tolerance = 0.005 + ROWS_APART / min(len(part) for part in parts.values())
        for name, score in recorded.items():
            if not abs(recomputed[name] - score) <= tolerance:
                raise UserError(
                    f"{self.name}: its {self.rule} weights score {name} {recomputed[name]:.4f} on the evaluation rows, "
                    f"the record says {score:.4f}; nothing was written. Run the cell again with "
                    "training.keep_weights=both"
                )
        return {"recorded": dict(recorded), "recomputed": recomputed}

    def logits(self, rows: Dataset, task: TaskSpec) -> np.ndarray:
        """(n, classes) or (n, 1) for rows of a task with the same labels, in their order."""
        if task.labels != self.settings.task.labels:
            raise UserError(f"{task.name} has other labels than {self.settings.task.name}, whose model is to answer it")
        return self.classifier.logits(self.classifier.encoded(rows, task))
