"""The files that the two servers take: names, label words, row order, and the lines of each.

GLUE: one tab-separated file per test set with the header `index<TAB>prediction`, the index counting the rows from 0;
class ids for CoLA, SST-2, MRPC, QQP and WNLI, label words for the entailment tasks, a number in 0..5 for STS-B.
SuperGLUE: one JSON object per line, `{"idx": ..., "label": ...}`, with the idx of the test file; words for BoolQ, CB,
RTE, WiC, WSC and the diagnostics, 0 or 1 for COPA, the entity's text for ReCoRD, and for MultiRC answers nested in
questions nested in passages. Source: the exports of jiant (nyu-mll/jiant, jiant/evaluate.py, `write_preds` with
strict_glue_format), the benchmarks' own toolkit. AX takes label words, as the other entailment sets do.

Counts: `num_examples` of the test splits on the hub's cards of nyu-mll/glue and aps/super_glue; MultiRC's 9,693 answers
too, while its 166 passages are those that gluon-nlp's documentation counts (`SuperGlueMultiRC('test')`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

LABEL, NUMBER, CHOICE, ANSWERS, ENTITY = "label", "number", "choice", "answers", "entity"
NLI = {name: name for name in ("entailment", "neutral", "contradiction", "not_entailment")}
LOWER = {"False": "false", "True": "true"}
CAPITAL = {"False": "False", "True": "True"}


@dataclass(frozen=True)
class Target:
    """One prediction file.

    Attributes:
        file: its name, without the ending.
        task: whose test rows it is about.
        model: whose run answers them: another task's for the diagnostics.
        lines: how many the server wants, the header left out.
        words: label name -> what is written.
        form: what a line holds.
        suffix: of the test set among the task's, as in `task.tests`.
        answers: how many answers the lines hold, where one holds several.
    """

    file: str
    task: str
    model: str
    lines: int
    words: Mapping[str, str]
    form: str = LABEL
    suffix: str = ""
    answers: int = 0


@dataclass(frozen=True)
class Suite:
    """The files of one server. `ending`: of their names, which is also their format."""

    title: str
    ending: str
    targets: tuple[Target, ...]


def _target(file: str, task: str, lines: int, words: Mapping[str, str], **more: Any) -> Target:
    return Target(file, task, more.pop("model", task), lines, words, **more)


SUITES = {
    "glue": Suite(
        "GLUE",
        "tsv",
        (
            _target("CoLA", "cola", 1063, {"unacceptable": "0", "acceptable": "1"}),
            _target("SST-2", "sst2", 1821, {"negative": "0", "positive": "1"}),
            _target("MRPC", "mrpc", 1725, {"not_equivalent": "0", "equivalent": "1"}),
            _target("STS-B", "stsb", 1379, {}, form=NUMBER),
            _target("QQP", "qqp", 390965, {"not_duplicate": "0", "duplicate": "1"}),
            _target("MNLI-m", "mnli", 9796, NLI),
            _target("MNLI-mm", "mnli", 9847, NLI, suffix="_mm"),
            _target("QNLI", "qnli", 5463, NLI),
            _target("RTE", "rte", 3000, NLI),
            _target("WNLI", "wnli", 146, {"not_entailment": "0", "entailment": "1"}),
            _target("AX", "ax", 1104, NLI, model="mnli"),
        ),
    ),
    "superglue": Suite(
        "SuperGLUE",
        "jsonl",
        (
            _target("BoolQ", "boolq", 3245, LOWER),
            _target("CB", "cb", 250, NLI),
            _target("COPA", "copa", 500, {}, form=CHOICE),
            _target("MultiRC", "multirc", 166, {}, form=ANSWERS, answers=9693),
            _target("ReCoRD", "record", 10000, {}, form=ENTITY),
            _target("RTE", "rte", 3000, NLI),
            _target("WiC", "wic", 1400, LOWER),
            _target("WSC", "wsc", 146, CAPITAL),
            _target("AX-b", "axb", 1104, NLI, model="rte"),
            _target("AX-g", "axg", 356, NLI, model="rte"),
        ),
    ),
}


def content(suite: Suite, answers: Sequence[Mapping[str, Any]]) -> str:
    """The whole file from its answers, as `answers_of` gives them."""
    if suite.ending == "jsonl":
        return "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    lines = [f"{place}\t{answer['label']}\n" for place, answer in enumerate(answers)]
    return "index\tprediction\n" + "".join(lines)


def answers_of(target: Target, rows: Dataset, labels: Sequence[str], logits: np.ndarray) -> list[dict[str, Any]]:
    """One answer for each line of the file, in the order of the test rows.

    Args:
        rows: the test rows; `idx`, and where rows belong together `group` and `candidate`, say which they are.
        labels: the model's label names, in the order of its class ids.
        logits: (n, classes), or (n, 1) for a regression.
    """
    idx = [int(i) for i in _column(rows, "idx")]
    if target.form == NUMBER:
        values = np.clip(logits.reshape(len(idx)), 0.0, 5.0)
        return [{"idx": i, "label": f"{value:.3f}"} for i, value in zip(idx, values, strict=True)]
    if target.form == LABEL:
        words = [target.words[labels[place]] for place in logits.argmax(axis=-1)]
        return [{"idx": i, "label": word} for i, word in zip(idx, words, strict=True)]
    scores = logits[:, 1] - logits[:, 0]
    groups = [tuple(int(i) for i in group) for group in _column(rows, "group")]
    if target.form == ANSWERS:
        return _nested(groups, idx, scores > 0)
    names = idx if target.form == CHOICE else _column(rows, "candidate")
    return [{"idx": group[-1], "label": names[place]} for group, place in _highest(groups, scores)]


def _column(rows: Dataset, name: str) -> list[Any]:
    return list(rows.select_columns([name])[:][name])


def _highest(groups: Sequence[tuple[int, ...]], scores: np.ndarray) -> list[tuple[tuple[int, ...], int]]:
    """Each group in order with the place of its highest score, the first of equal ones."""
    best: dict[tuple[int, ...], int] = {}
    for place, group in enumerate(groups):
        if group not in best or scores[place] > scores[best[group]]:
            best[group] = place
    return list(best.items())


def _nested(groups: Sequence[tuple[int, ...]], idx: Sequence[int], chosen: np.ndarray) -> list[dict[str, Any]]:
    """MultiRC: passages of questions of answers, each 0 or 1."""
    passages: dict[int, dict[int, list[dict[str, int]]]] = {}
    for (passage, question), answer, is_true in zip(groups, idx, chosen, strict=True):
        passages.setdefault(passage, {}).setdefault(question, []).append({"idx": answer, "label": int(is_true)})
    return [
        {"idx": p, "passage": {"questions": [{"idx": q, "answers": answers} for q, answers in questions.items()]}}
        for p, questions in passages.items()
    ]
