"""The model card of an exported run, README.md: its scores with the conditions they were measured under."""

from __future__ import annotations

import re
from typing import Any

import yaml

from propulsion.harness.tables.conditions import conditions, title
from propulsion.harness.tables.escape import markdown, plain
from propulsion.harness.tables.reading import at

Record = dict[str, Any]
ENGLISH = ("glue", "superglue")  # suites whose language is known
RULES = {
    "last": "the final weights",
    "heldout": "chosen on one half of the evaluation rows, scored on the other",
    "best": "the best evaluation on the reporting rows themselves, which flatters",
}


def model_card(record: Record, rule: str, whole: bool = False, license: str = "") -> str:
    """Markdown with the hub's metadata, from the record alone; text from it is shown and never obeyed.

    There is no `model-index` among the metadata: the hub would show its numbers without their conditions.

    Args:
        rule: `last` or `best`, whose weights lie beside the card.
        whole: the folder holds a whole model, not an adapter.
        license: as the hub names it; none is claimed where none is given.
    """
    run = record["run"]
    name = f"{run['method']} on {run['task']}, {run['backbone']}, seed {run['seed']}"
    parts = [
        f"---\n{yaml.safe_dump(_metadata(record, whole, license), sort_keys=False, allow_unicode=True)}---",
        f"# {markdown(name)}",
        _what(record, rule, whole),
        f"## Scores\n\n{markdown(title(run['suite'], [record]))}. One run, one seed; scores are × 100.",
        _scores(record),
        f"The weights in this folder are those of the row `{rule}`: {RULES[rule]}. Other seeds, other rows and "
        "another checkpoint rule give other scores; where the table above says generated or cut rows, it compares "
        "with no publication.",
        "## Conditions",
        "\n".join(f"- **{label}**: {markdown(text)}" for label, text in conditions([record])),
        f"## Use\n\n```python\n{_usage(record, whole)}\n```",
        f"Record `{_word(record['key'])}` of the benchmark, in `record.json`; its fields are described in the "
        "project's `docs/record.md`.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(record: Record, whole: bool, license: str) -> dict[str, Any]:
    run = record["run"]
    base = at(record, "run.weights.id")
    kind = "peft" if at(record, "run.config.method.apply") == "peft" and not whole else "transformers"
    tags = [run["method"], run["task"], run["suite"], "text-classification"]
    tags += ["propulsion"] if "propulsion" in str(run["method"]) else []
    data: dict[str, Any] = {
        "license": plain(license) or None,
        "base_model": plain(str(base)) if base else None,
        "library_name": kind,
        "pipeline_tag": "text-classification",
        "language": "en" if run["suite"] in ENGLISH else None,
        "tags": [plain(str(tag)) for tag in dict.fromkeys(tags)],
    }
    return {key: value for key, value in data.items() if value is not None}


def _what(record: Record, rule: str, whole: bool) -> str:
    params, run = record["params"], record["run"]
    kind = "A whole model" if whole else "An adapter"
    return (
        f"{kind} for {markdown(str(run['task']))}, trained with {markdown(str(run['method']))}: "
        f"{params['adapter']:,} parameters in or around the backbone and {params['head']:,} in the classification "
        f"head, of {params['total']:,}. Weights of the {rule} evaluation."
    )


def _scores(record: Record) -> str:
    names = sorted({name for rule in RULES for name in record["eval"].get(rule) or {}})
    lines = [["checkpoint", *names], ["---", *("---:" for _ in names)]]
    for rule in RULES:
        scores = record["eval"].get(rule)
        if scores:
            lines.append([rule, *(_points(scores.get(name)) for name in names)])
    return "\n".join("| " + " | ".join(markdown(str(cell)) for cell in line) + " |" for line in lines)


def _points(score: Any) -> str:
    return f"{100 * score:.1f}" if isinstance(score, (int, float)) else "not available"


def _usage(record: Record, whole: bool) -> str:
    """Python that loads the folder and asks it. Names that are no plain names are left for the reader to fill in."""
    weights = record["run"]["weights"] or {}
    spec = at(record, "run.config.backbone") or {}
    labels = at(record, "run.config.task.labels") or []
    mean = spec.get("pooling") == "mean"
    cls = "MeanPoolingBert" if mean else "AutoModelForSequenceClassification"
    source = "propulsion.harness.backbones" if mean else "transformers"
    lines = [f"from {source} import {cls}" + ("  # in a clone of this project" if mean else "")]
    if whole:
        lines += ["", f'model = {cls}.from_pretrained("<this folder>").eval()']
        return "\n".join([*lines, *_asking(record, '"<this folder>"')])
    revision = f', revision="{_word(weights.get("revision"))}"' if weights.get("revision") else ""
    settings = f"num_labels={len(labels) or 1}"
    if not labels:
        settings += ', problem_type="regression"'
    module = str(at(record, "run.config.method.module") or "")
    own = "propulsion" in str(at(record, "run.config.method.peft.peft_type")).lower()
    return "\n".join(
        [
            "from peft import PeftModel",
            *lines,
            *(
                ["import propulsion  # this project's library, not its namesake: makes the method known to peft"]
                if own
                else []
            ),
            *([f"import {module}  # makes the method known to peft"] if re.fullmatch(r"[\w.]+", module) else []),
            "",
            f'base = {cls}.from_pretrained("{_word(weights.get("id"))}"{revision}, {settings})',
            'model = PeftModel.from_pretrained(base, "<this folder>").eval()',
            *([f"labels = {[_word(label) for label in labels]}"] if labels else []),
            *_asking(record, f'"{_word(weights.get("id"))}"{revision}'),
        ]
    )


def _asking(record: Record, tokenizer: str) -> list[str]:
    """Lines that put a text to the model, where a row of the task is its texts and nothing else."""
    task = at(record, "run.config.task") or {}
    if task.get("kind") not in ("classification", "regression") or task.get("spans") or task.get("cut"):
        marks = ", with the words in question between * and #" if task.get("spans") else ""
        return [f"# `python -m scripts.predict` of the project asks it{marks}"]
    texts = ", ".join(["'A text.'", "'Another.'"][: len(task.get("text") or [None])])
    length = _row_length(record)
    return [
        "",
        "import torch",
        "from transformers import AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({tokenizer})",
        f'batch = tokenizer({texts}, truncation=True, max_length={length}, return_tensors="pt")',
        "with torch.no_grad():",
        "    answer = model(**batch).logits" + (".softmax(-1)" if task["kind"] == "classification" else ""),
        "print(answer)",
    ]


def _row_length(record: Record) -> int:
    """Tokens of a row: the setting's, within the places that virtual tokens leave."""
    places = int(at(record, "run.config.backbone.max_length") or 0)
    virtual = int(at(record, "run.config.method.peft.num_virtual_tokens") or 0)
    return min(int(at(record, "run.config.training.max_length") or 0), places - virtual)


def _word(text: Any) -> str:
    """A name as it is; anything that could be more than a name becomes a blank to fill in."""
    return str(text) if re.fullmatch(r"[\w./-]+", str(text)) else "<name>"
