"""A run as a folder that `PeftModel.from_pretrained` loads: adapter, model card, and the record behind both."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from peft import PeftModel
from peft.utils import get_peft_model_state_dict

from baselines import in_head
from baselines.hooks import virtual_tokens
from propulsion.harness import hub
from propulsion.harness.backbones import own_folder
from propulsion.harness.errors import UserError
from propulsion.harness.files import write_text
from propulsion.harness.record import public, sealed
from propulsion.harness.serving.card import model_card
from propulsion.harness.serving.open import RECORD
from propulsion.harness.submission.predict import Predictor

Record = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What is to be written. `whole`: the model itself, merged, instead of an adapter. `push`: a hub id, or ''."""

    out: str = ""
    whole: bool = False
    license: str = ""
    push: str = ""
    private: bool = True


def export(predictor: Predictor, wish: Wish) -> Path:
    """Write the folder, whole or not at all; an earlier export of the same run is replaced.

    Raises:
        UserError: nothing that could be loaded would come of it, or the folder is taken; nothing was written.
    """
    record = predictor.record
    _refuse(predictor, wish)
    out = Path(wish.out or _place(predictor))
    if out.exists() and not _earlier(out, record):
        raise UserError(f"out={out} exists and is no export of this run; name another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            _write(predictor, wish, draft)
            draft.chmod(0o755)
            shutil.rmtree(out, ignore_errors=True)
            os.replace(draft, out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error.strerror}); name another folder") from error
    return out


def _place(predictor: Predictor) -> Path:
    run = predictor.record["run"]
    name = f"{run['task']}-{run['backbone']}-{run['method']}-seed{run['seed']}-{predictor.rule}"
    return Path(predictor.results_dir, "exports", f"{name}-{predictor.record['key'][:8]}")


def _earlier(out: Path, record: Record) -> bool:
    if out.is_dir() and not any(out.iterdir()):
        return True
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("key") == record["key"]


def _refuse(predictor: Predictor, wish: Wish) -> None:
    spec = predictor.settings
    if spec.backbone.weights == "random":
        raise UserError(f"{predictor.name}: its backbone has random weights, which nobody else has; nothing to export")
    if spec.method.apply != "peft" and not wish.whole:
        raise UserError(
            f"{predictor.name}: method {spec.method.name} is no peft method, it has no adapter: "
            "add whole=true for a folder with the whole model"
        )
    if wish.whole and spec.method.apply == "peft" and virtual_tokens(predictor.classifier.model):
        raise UserError(f"{predictor.name}: virtual tokens cannot be merged into a model; leave whole=true out")
    if wish.push and not wish.whole and own_folder(spec.backbone) is not None:
        raise UserError(
            f"{predictor.name}: its backbone is a folder of yours, which nobody else has: add whole=true, or leave "
            "push out"
        )


def _write(predictor: Predictor, wish: Wish, folder: Path) -> None:
    classifier, record = predictor.classifier, predictor.record
    labels = predictor.settings.task.labels
    if wish.whole:
        if isinstance(classifier.model, PeftModel):
            classifier.merge("whole=true")
        model = classifier.model
        model.config.id2label = dict(enumerate(labels)) or {0: "score"}
        model.config.label2id = {label: number for number, label in model.config.id2label.items()}
        model.save_pretrained(folder)
        classifier.tokenizer.save_pretrained(folder)
    else:
        _check_complete(predictor)
        config = classifier.model.peft_config["default"]
        weights = record["run"]["weights"]  # a public name, where the model was read from a folder of this machine
        config.base_model_name_or_path, config.revision = weights["id"], weights["revision"]
        classifier.model.save_pretrained(str(folder), save_embedding_layers=False)
    write_text(folder / "README.md", model_card(record, predictor.rule, wish.whole, wish.license))
    if wish.whole:  # an adapter is opened again on the folder that its run began with
        record = sealed({**record, "run": {**record["run"], "config": public(record["run"]["config"])}})
    write_text(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _check_complete(predictor: Predictor) -> None:
    """Refuse where peft's file would lack what the run trained, as a head that is frozen at its random start."""
    model = predictor.classifier.model
    if model.peft_config["default"].is_prompt_learning:
        return  # its file holds the tokens that came of the parameters, not these
    saved = sum(t.numel() for t in get_peft_model_state_dict(model, save_embedding_layers=False).values())
    head = 0
    if predictor.settings.method.head != "trained":
        head = sum(p.numel() for p in _head(predictor))
    if saved < predictor.record["params"]["trainable"] + head:
        raise UserError(
            f"{predictor.name}: a peft adapter does not hold its head (method.head="
            f"{predictor.settings.method.head}): add whole=true for a folder with the whole model"
        )


def _head(predictor: Predictor) -> list[Any]:
    named = predictor.classifier.model.named_parameters()
    head = predictor.settings.backbone.head
    return [p for name, p in named if in_head(name, head) and not p.requires_grad]


def push(folder: Path, wish: Wish) -> str:
    """Upload an exported folder. Returns its address.

    Raises:
        UserError: no licence, no network, no token, or the hub refuses; the folder stays.
    """
    later = f"the folder is {folder}"
    if not hub.reachable():
        raise UserError(f"push={wish.push}: the hub cannot be reached; {later}, push it later")
    if not huggingface_hub.get_token():
        raise UserError(f"push={wish.push}: no token; type `hf auth login`, or set HF_TOKEN; {later}")
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(wish.push, private=wish.private, exist_ok=True)
        api.upload_folder(repo_id=wish.push, folder_path=str(folder), commit_message=f"Export of {folder.name}")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"push={wish.push}: the hub refused ({reason}); {later}") from error
    return str(address)


def check_wish(wish: Wish) -> None:
    """Refuse before the work begins what the hub would refuse, or what only a person can say.

    Raises:
        UserError: push without a licence or with a name that is none.
    """
    if wish.push and not wish.license:
        raise UserError("push needs license=<as the hub names it>, such as license=apache-2.0: only you can say it")
    if wish.push and wish.push.count("/") != 1:
        raise UserError(f"push={wish.push}: type <user or organization>/<name>")
