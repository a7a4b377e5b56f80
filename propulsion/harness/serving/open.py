"""A model that answers, from a record with kept weights or from an adapter folder that `save_pretrained` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError

from baselines.modules import import_method
from propulsion.harness.backbones import load_model, load_tokenizer
from propulsion.harness.classifier import Classifier
from propulsion.harness.errors import UserError
from propulsion.harness.kept import RULES
from propulsion.harness.planning import settings_of
from propulsion.harness.record import SUCCESS, look
from propulsion.harness.settings import Settings
from propulsion.harness.submission.predict import Predictor, settings_of_record
from propulsion.harness.tables.reading import problem

RECORD = "record.json"  # in an exported folder: the record of its run
RESULTS = Path("results")


def find_record(named: str, results_dir: str = "") -> tuple[Path, str]:
    """The file of a record, and its results folder.

    Args:
        named: a path, or a key (16 hex digits or the start of it).
        results_dir: where to look for a key; every set in `results/` if empty.

    Raises:
        UserError: there is none, or several.
    """
    path = Path(named)
    if path.suffix == ".json":
        if not path.is_file():
            raise UserError(f"record={named}: there is no such file; type the path of a record, or its key")
        folder = results_dir or _results_of(path)
        return path, folder
    if not named or "/" in named:
        raise UserError(f"record={named}: type the path of a record (.json), or its key")
    folders = [Path(results_dir)] if results_dir else sorted(RESULTS.glob("*"))
    found = sorted({file for folder in folders for file in folder.glob(f"runs/*/*/*/{_literal(named)}*.json")})
    if len(found) != 1:
        where = results_dir or "results/"
        told = f"{len(found)} records ({', '.join(file.stem for file in found[:4])})" if found else "no record"
        raise UserError(f"record={named}: {told} of that key in {where}; type its path, or results_dir=<folder>")
    return found[0], _results_of(found[0])


def _literal(text: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _results_of(path: Path) -> str:
    """`<results_dir>/runs/<task>/<backbone>/<method>/<key>.json`."""
    parents = path.resolve().parents
    if len(parents) < 5 or parents[3].name != "runs":
        raise UserError(
            f"{path} does not lie in <results_dir>/runs/...: add results_dir=<folder>, whose weights/ it has"
        )
    return str(path.parents[4] if len(path.parents) > 4 else parents[4])


def predictor_of(path: Path, results_dir: str, rule: str = "last") -> Predictor:
    """The run behind a record, its kept weights found and checked.

    Raises:
        UserError: no record of a run that ended well, or no weights of that rule.
    """
    if rule not in RULES:
        raise UserError(f"rule={rule}: weights are kept of {' and '.join(RULES)}; type rule=last or rule=best")
    entry, why = look(path)
    why = why if entry is None else problem(entry)
    if entry is None or why:
        raise UserError(f"{path} is no record: {why}")
    if entry["status"] != SUCCESS:
        raise UserError(f"{path}: its run {entry['status']}, so there is no model; choose another record")
    predictor = Predictor(entry, rule, results_dir, None)
    _ = predictor.kept, predictor.file
    return predictor


def open_adapter(folder: str, backbone: str = "", task: str = "") -> Classifier:
    """A model with the adapter of a folder.

    Args:
        backbone: name of `conf/backbone`; not needed for a folder that `scripts.export` wrote.
        task: name of `conf/task`: its labels, and one or two texts. Likewise.

    Raises:
        UserError: no adapter folder, or one that does not fit the backbone and task.
    """
    place = Path(folder)
    if not (place / "adapter_config.json").is_file():
        hint = "it holds a whole model: load it as its README.md says" if (place / "config.json").is_file() else (
            "type the folder that save_pretrained or scripts.export wrote"
        )  # fmt: skip
        raise UserError(f"adapter={folder} has no adapter_config.json; {hint}")
    settings, precision = _settings_of(place, backbone, task)
    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(settings.backbone)
    base, _ = load_model(settings.backbone, settings.task, tokenizer.pad_token_id)
    import_method(settings.method)  # a tuner of one's own makes itself known to peft
    try:
        model = PeftModel.from_pretrained(base, folder)
    except (RuntimeError, ValueError, KeyError, OSError, TypeError, SafetensorError) as error:
        raise UserError(
            f"adapter={folder} does not fit backbone {settings.backbone.name} and task {settings.task.name} "
            f"({' '.join(str(error).split())[:200]}); name others with backbone= and task="
        ) from error
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return Classifier(folder, settings, tokenizer, model, precision)


def _settings_of(folder: Path, backbone: str, task: str) -> tuple[Settings, str | None]:
    """The settings of the adapter's run and its precision, or what is known of an adapter from elsewhere."""
    if (folder / RECORD).is_file() and not (backbone or task):
        entry = _exported(folder / RECORD)
        return settings_of_record(entry, "", None), entry["env"].get("precision")
    if not (backbone and task):
        raise UserError(
            f"adapter={folder} has no {RECORD} of its run: add backbone=<name> and task=<name>, as conf/ has them"
        )
    (settings,) = settings_of([f"task={task}", f"backbone={backbone}", "data=generated"])
    return settings, None


def _exported(file: Path) -> dict[str, Any]:
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: add backbone=<name> and task=<name>") from error
    if why := problem(entry):
        raise UserError(f"{file} is no record ({why}): add backbone=<name> and task=<name>")
    found: dict[str, Any] = entry
    return found
