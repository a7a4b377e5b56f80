"""Writes small SuperGLUE files: the official download's layout, and a folder laid out like the hub's data set.

Typed in from the published formats, not read from conf/task: the two check each other. `SPLITS[task]` has for each
split the official records; `expected_rows` says in words of its own which rows a loader must make of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value

TASKS = ("boolq", "cb", "copa", "multirc", "record", "wic", "wsc", "axb", "axg")
FOLDERS = {
    **{"boolq": "BoolQ", "cb": "CB", "copa": "COPA", "multirc": "MultiRC", "record": "ReCoRD", "rte": "RTE"},
    **{"wic": "WiC", "wsc": "WSC", "axb": "AX-b", "axg": "AX-g"},
}
LABELS = {
    **dict.fromkeys(("boolq", "multirc", "wic", "wsc"), ("False", "True")),
    "cb": ("entailment", "contradiction", "neutral"),
    **dict.fromkeys(("copa", "record"), ("wrong", "right")),
    **dict.fromkeys(("rte", "axb", "axg"), ("entailment", "not_entailment")),
}
TEXTS = {
    "boolq": ("question", "passage"),
    "cb": ("premise", "hypothesis"),
    "copa": ("premise", "choice"),
    "multirc": ("paragraph", "answer"),
    "record": ("passage", "query"),
    "wic": ("sentence1", "sentence2"),
    "wsc": ("text",),
    "axb": ("sentence1", "sentence2"),
    "axg": ("premise", "hypothesis"),
}
SIZES = {"train": 6, "val": 4, "test": 3}
AWKWARD = "\"unbalanced, it 's\u2028 tab\t \\ é"  # what a line of JSON may hold


def official(task: str, split: str) -> list[dict[str, Any]]:
    """The records of `<TASK>/<split>.jsonl`; of a diagnostic, of its one file. Test records have no labels."""
    count = 4 if task in ("axb", "axg") else SIZES[split]
    records = [_record(task, split, i) for i in range(count)]
    if split == "test" and task not in ("axb", "axg"):
        for record in records:
            record.pop("label", None)
            for question in record.get("passage", {}).get("questions", []) if task == "multirc" else []:
                for answer in question["answers"]:
                    del answer["label"]
            for query in record.get("qas", []):
                del query["answers"]
    return records


def _record(task: str, split: str, i: int) -> dict[str, Any]:
    text, idx = f"{task} {split} {i} {AWKWARD}", i + 10  # an official idx is no line number
    names = LABELS[task]
    if task == "boolq":
        return {"question": f"is {text}", "passage": f"passage {text}", "idx": idx, "label": i % 2 == 1}
    if task in ("cb", "rte", "axg"):
        more = {"pair_id": 551646 + 2 * i} if task == "axg" else {}  # of each row, not of the pair
        return {"premise": f"p {text}", "hypothesis": f"h {text}", "label": names[i % len(names)], "idx": idx, **more}
    if task == "axb":  # its idx is a text
        sentences = {"sentence1": f"1 {text}", "sentence2": f"2 {text}"}
        return {"idx": str(idx), "label": names[i % 2], **sentences, "logic": "Negation"}
    if task == "copa":
        choices = {"choice1": f"1 {text}", "choice2": f"2 {text}", "question": ("cause", "effect")[i // 2 % 2]}
        return {"premise": f"p {text}", **choices, "label": i % 2, "idx": idx}
    if task == "wic":
        spans = {"start1": 5, "end1": 9, "start2": 0, "end2": 4}
        sentences = {"sentence1": f"Some word {text}", "sentence2": f"word {text}"}
        return {"word": "word", **sentences, "idx": idx, "label": i % 2 == 1, **spans, "version": 1.1}
    if task == "wsc":
        target = {"span1_text": "Mark", "span1_index": 0, "span2_text": "he", "span2_index": 3}
        return {"text": f"Mark left when he {text}", "target": target, "idx": idx, "label": i % 2 == 1}
    if task == "multirc":
        return {"idx": idx, "version": 1.1, "passage": {"text": f"passage {text}", "questions": _questions(text, i)}}
    passage = f"Anna met Ben. Later Anna saw Rome. {text}"
    entities = [{"start": 0, "end": 3}, {"start": 9, "end": 11}, {"start": 20, "end": 23}, {"start": 29, "end": 32}]
    answers = [{"start": 0, "end": 3, "text": "Anna"}, {"start": 20, "end": 23, "text": "Anna"}]
    queries = [
        {"query": f"@placeholder went. {text}", "answers": answers, "idx": 100 + 2 * i},
        {"query": f"{text} and @placeholder", "answers": [{"start": 9, "end": 11, "text": "Ben"}], "idx": 101 + 2 * i},
    ]
    return {
        "source": "CNN",
        "passage": {"text": passage, "entities": entities},
        "qas": queries[: 1 + i % 2],
        "idx": idx,
    }


def _questions(text: str, i: int) -> list[dict[str, Any]]:
    """Question numbers go on from passage to passage, and so do those of the answers."""
    questions = []
    for number in range(1 + i % 2):
        place = 2 * i + number
        answers = [{"text": f"a{a} {text}", "idx": 3 * place + a, "label": (i + a) % 2} for a in range(2 + number)]
        questions.append({"question": f"which {number} {text}?", "answers": answers, "idx": place})
    return questions


def expected_rows(task: str, split: str) -> list[dict[str, Any]]:
    """The rows of the records of `official`, in their order."""
    rows: list[dict[str, Any]] = []
    source = "rte" if split == "train" and task in ("axb", "axg") else task
    for record in official(source, split):
        rows += _rows(source, record)
    if source != task:
        names = TEXTS[task]
        rows = [{names[0]: r["premise"], names[1]: r["hypothesis"], "label": r["label"], "idx": r["idx"]} for r in rows]
    if task == "axg":
        rows = [{**row, "group": [place // 2]} for place, row in enumerate(rows)]
    return rows


def _rows(task: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    known = "label" in record
    if task == "copa":
        start = {"cause": "What was the cause?", "effect": "What was the effect?"}[record["question"]]
        return [
            {
                "premise": record["premise"],
                "choice": f"{start} {record[choice]}",
                "label": int(record["label"] == place) if known else -1,
                "idx": place,
                "group": [record["idx"]],
            }
            for place, choice in enumerate(("choice1", "choice2"))
        ]
    if task == "multirc":
        return [
            {
                "paragraph": record["passage"]["text"],
                "answer": f"{question['question']} {answer['text']}",
                "label": answer.get("label", -1),
                "idx": answer["idx"],
                "group": [record["idx"], question["idx"]],
            }
            for question in record["passage"]["questions"]
            for answer in question["answers"]
        ]
    if task == "record":
        rows = []
        for query in record["qas"]:
            answers = sorted({answer["text"] for answer in query.get("answers", [])})
            for place, candidate in enumerate(("Anna", "Ben", "Rome")):
                row = {"passage": record["passage"]["text"], "query": query["query"].replace("@placeholder", candidate)}
                label = int(candidate in answers) if answers else -1
                row |= {"label": label, "idx": place, "group": [record["idx"], query["idx"]]}
                rows.append({**row, "candidate": candidate, "answers": answers})
        return rows
    if task == "wic":
        text1, text2 = record["sentence1"], record["sentence2"]
        marked = {"sentence1": f"Some *word*{text1[9:]}", "sentence2": f"*word*{text2[4:]}"}
        label = int(record["label"]) if known else -1
        return [{**marked, "label": label, "idx": record["idx"], "spans": [[0, 6, 10], [1, 1, 5]]}]
    if task == "wsc":
        text = f"*Mark* left when #he#{record['text'][17:]}"
        label = int(record["label"]) if known else -1
        return [{"text": text, "label": label, "idx": record["idx"], "spans": [[0, 1, 5], [0, 18, 20]]}]
    names = LABELS[task]
    label = names.index(str(record["label"])) if known else -1
    return [
        {
            **{name: record[name] for name in TEXTS.get(task, ("premise", "hypothesis"))},
            "label": label,
            "idx": int(record["idx"]),
        }
    ]


def write_official(folder: Path, task: str) -> None:
    """The task's files under `folder`, as the official download has them."""
    for split in SIZES:
        if task in ("axb", "axg"):
            break
        _write(folder / FOLDERS[task] / f"{split}.jsonl", official(task, split))
    if task in ("axb", "axg"):
        _write(folder / FOLDERS[task] / f"{FOLDERS[task]}.jsonl", official(task, "test"))
        _write(folder / "RTE" / "train.jsonl", official("rte", "train"))


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def hub_rows(task: str, split: str) -> list[dict[str, Any]]:
    """The records as the hub has them: MultiRC by answers, ReCoRD by queries, WSC flat, unknown labels -1."""
    records = official(task, split)
    if task == "multirc":
        return [
            {
                "paragraph": record["passage"]["text"],
                "question": question["question"],
                "answer": answer["text"],
                "idx": {"paragraph": record["idx"], "question": question["idx"], "answer": answer["idx"]},
                "label": answer.get("label", -1),
            }
            for record in records
            for question in record["passage"]["questions"]
            for answer in question["answers"]
        ]
    if task == "record":
        return [
            {
                "passage": record["passage"]["text"],
                "query": query["query"],
                "entities": ["Anna", "Ben", "Rome"],
                "answers": sorted({answer["text"] for answer in query.get("answers", [])}),
                "idx": {"passage": record["idx"], "query": query["idx"]},
            }
            for record in records
            for query in record["qas"]
        ]
    rows = []
    for record in records:
        row = {**record, **record.pop("target", {})}
        label = row.get("label", -1)
        row["label"] = LABELS[task].index(str(label)) if task != "copa" and label != -1 else label
        row["idx"] = int(row["idx"])
        rows.append(row)
    return rows


def _hub_features(task: str) -> Features:
    text, number = Value("string"), Value("int32")
    label = ClassLabel(names=["choice1", "choice2"] if task == "copa" else list(LABELS[task]))
    columns: dict[str, Any] = {
        "boolq": {"question": text, "passage": text},
        "cb": {"premise": text, "hypothesis": text},
        "rte": {"premise": text, "hypothesis": text},
        "axg": {"premise": text, "hypothesis": text},
        "axb": {"sentence1": text, "sentence2": text},
        "copa": {"premise": text, "choice1": text, "choice2": text, "question": text},
        "multirc": {"paragraph": text, "question": text, "answer": text},
        "record": {"passage": text, "query": text, "entities": List(text), "answers": List(text)},
        "wic": {"word": text, "sentence1": text, "sentence2": text}
        | dict.fromkeys(("start1", "start2", "end1", "end2"), number),
        "wsc": {"text": text, "span1_index": number, "span2_index": number, "span1_text": text, "span2_text": text},
    }[task]
    parts = {"multirc": ("paragraph", "question", "answer"), "record": ("passage", "query")}
    idx: Any = dict.fromkeys(parts[task], number) if task in parts else number
    return Features({**columns, "idx": idx, **({} if task == "record" else {"label": label})})


def write_hub(folder: Path) -> None:
    """All tasks as parquet files, with the configurations and splits of `aps/super_glue`."""
    configs = []
    for task in (*TASKS, "rte"):
        splits = {"test": "test"} if task in ("axb", "axg") else {"train": "train", "validation": "val", "test": "test"}
        types = _hub_features(task)
        (folder / task).mkdir(parents=True)
        for split, ours in splits.items():
            rows = [{name: row[name] for name in types} for row in hub_rows(task, ours)]
            Dataset.from_list(rows, features=types).to_parquet(folder / task / f"{split}-00000-of-00001.parquet")
        files = "".join(f"\n  - split: {split}\n    path: {task}/{split}-*" for split in splits)
        configs.append(f"- config_name: {task}\n  data_files:{files}\n")
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
