"""Writes small task files: the official download's layout, and a folder laid out like the hub's data set.

The layouts are typed in here from the published formats, not read from conf/task: the two check each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax")
TEXTS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "ax": ("premise", "hypothesis"),
}
NAMES = {  # label names in the order of the hub's class ids
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "stsb": (),
    "qqp": ("not_duplicate", "duplicate"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
    "ax": ("entailment", "neutral", "contradiction"),
}
DIGITS = ("cola", "sst2", "mrpc", "qqp", "wnli")  # whose files hold class ids, not label names
SIZES = {"train": 9, "dev": 6, "test": 5}

_PARSES = ("sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse")
_MNLI = ("index", "promptID", "pairID", "genre", *_PARSES, "sentence1", "sentence2")
_STSB = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2")
_FIVE = ("label1", "label2", "label3", "label4", "label5")
_AX = (
    "Lexical Semantics",
    "Predicate-Argument Structure",
    "Logic",
    "Knowledge",
    "Domain",
    "Premise",
    "Hypothesis",
)
# file -> header; in the header, the names that stand for (first text, second text, label)
HEADERS: dict[str, dict[str, tuple[str, ...]]] = {
    "cola": {"CoLA/train.tsv": (), "CoLA/dev.tsv": (), "CoLA/test.tsv": ("index", "sentence")},
    "sst2": {
        "SST-2/train.tsv": ("sentence", "label"),
        "SST-2/dev.tsv": ("sentence", "label"),
        "SST-2/test.tsv": ("index", "sentence"),
    },
    "mrpc": {
        "MRPC/train.tsv": ("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        "MRPC/dev.tsv": ("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        "MRPC/test.tsv": ("index", "#1 ID", "#2 ID", "#1 String", "#2 String"),
    },
    "stsb": {
        "STS-B/train.tsv": (*_STSB, "score"),
        "STS-B/dev.tsv": (*_STSB, "score"),
        "STS-B/test.tsv": _STSB,
    },
    "qqp": {
        "QQP/train.tsv": ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        "QQP/dev.tsv": ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        "QQP/test.tsv": ("id", "question1", "question2"),
    },
    "mnli": {
        "MNLI/train.tsv": (*_MNLI, "label1", "gold_label"),
        "MNLI/dev_matched.tsv": (*_MNLI, *_FIVE, "gold_label"),
        "MNLI/dev_mismatched.tsv": (*_MNLI, *_FIVE, "gold_label"),
        "MNLI/test_matched.tsv": _MNLI,
        "MNLI/test_mismatched.tsv": _MNLI,
    },
    "qnli": {
        "QNLI/train.tsv": ("index", "question", "sentence", "label"),
        "QNLI/dev.tsv": ("index", "question", "sentence", "label"),
        "QNLI/test.tsv": ("index", "question", "sentence"),
    },
    "rte": {
        "RTE/train.tsv": ("index", "sentence1", "sentence2", "label"),
        "RTE/dev.tsv": ("index", "sentence1", "sentence2", "label"),
        "RTE/test.tsv": ("index", "sentence1", "sentence2"),
    },
    "wnli": {
        "WNLI/train.tsv": ("index", "sentence1", "sentence2", "label"),
        "WNLI/dev.tsv": ("index", "sentence1", "sentence2", "label"),
        "WNLI/test.tsv": ("index", "sentence1", "sentence2"),
    },
    "ax": {"MNLI/train.tsv": (*_MNLI, "label1", "gold_label"), "AX/diagnostic-full.tsv": (*_AX, "Label")},
}
FIRST = ("sentence", "sentence1", "#1 String", "question1", "question", "Premise")
SECOND = ("sentence2", "#2 String", "question2", "sentence", "Hypothesis")
LABEL = ("label", "Quality", "\ufeffQuality", "score", "is_duplicate", "gold_label", "Label")


def row(task: str, split: str, i: int) -> dict[str, Any]:
    """The row that every writer below writes: awkward texts, labels in turn (class id, or a score)."""
    texts = [f"{task} {split} {i}: \"unbalanced, it 's {name}\u2028 " for name in TEXTS[task]]
    label = float(i % 6) if task == "stsb" else i % len(NAMES[task])
    return {**dict(zip(TEXTS[task], texts, strict=True)), "label": label, "idx": i}


def split_of(file: str) -> str:
    """train, dev or test, for an official file or a split of the hub."""
    stem = file.rpartition("/")[2]
    return "train" if stem.startswith("train") else "test" if stem.startswith("test") else "dev"


def line(task: str, header: tuple[str, ...], one: dict[str, Any]) -> str:
    """One row of an official file with this header, CoLA's four columns where there is none."""
    texts = [one[name] for name in TEXTS[task]]
    word = f"{one['label']:.3f}" if task == "stsb" else NAMES[task][one["label"]]
    word = str(one["label"]) if task in DIGITS else word
    if not header:
        return "\t".join(("gj04", word, "*" if word == "0" else "", texts[0]))
    cells = []
    for name in header:
        if name in LABEL:
            cells.append(word)
        elif name in SECOND and len(texts) > 1 and not (name == "sentence" and task != "qnli"):
            cells.append(texts[1])
        elif name in FIRST:
            cells.append(texts[0])
        else:
            cells.append(str(one["idx"]) if name in ("index", "id") else "entailment")
    return "\t".join(cells)


def write_official(folder: Path, task: str, newline: str = "\n") -> None:
    """The task's files under `folder`, `SIZES` rows each."""
    for file, header in HEADERS[task].items():
        split = split_of(file)
        owner = "mnli" if file.startswith("MNLI/") else task  # AX trains on MNLI
        lines = [line(owner, header, row(owner, split, i)) for i in range(SIZES[split])]
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        text = newline.join([*(["\t".join(header)] if header else []), *lines]) + newline
        path.write_bytes(text.encode())


def write_hub(folder: Path, tasks: tuple[str, ...] = TASKS) -> None:
    """The tasks as parquet files, with the configurations and splits of the hub's data set."""
    configs = []
    for task in tasks:
        splits = ["train", "validation", "test"]
        if task == "mnli":
            splits = ["train"] + [
                f"{kind}_{half}" for kind in ("validation", "test") for half in ("matched", "mismatched")
            ]
        if task == "ax":
            splits = ["test"]
        label = ClassLabel(names=list(NAMES[task])) if NAMES[task] else Value("float32")
        texts = {name: Value("string") for name in TEXTS[task]}
        types = Features({**texts, "label": label, "idx": Value("int32")})
        (folder / task).mkdir(parents=True)
        for split in splits:
            kind = split_of(split)
            rows = [row(task, kind, i) | ({"label": -1} if kind == "test" else {}) for i in range(SIZES[kind])]
            Dataset.from_list(rows, features=types).to_parquet(folder / task / f"{split}-00000-of-00001.parquet")
        files = "".join(f"\n  - split: {split}\n    path: {task}/{split}-*" for split in splits)
        configs.append(f"- config_name: {task}\n  data_files:{files}\n")
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
