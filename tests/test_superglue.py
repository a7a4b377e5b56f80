"""SuperGLUE's tasks: the same rows from the hub, from official files and, in kind, from the generators."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from propulsion.harness.errors import UserError
from propulsion.harness.settings import DataSpec, TaskSpec
from propulsion.harness.sources import Source, TaskData, features, group_numbers, hold_out, open_source, subset
from propulsion.harness.sources.generators import FAMILIES, RECORD_FAMILIES, write_records, write_rows
from propulsion.harness.sources.reshape import RESHAPES
from tests import task_files
from tests.conftest import compose_settings
from tests.superglue_files import FOLDERS, LABELS, SIZES, TASKS, TEXTS, expected_rows, write_hub, write_official

PUBLISHED = {  # what the benchmark counts: questions of COPA, MultiRC and ReCoRD, pairs of AX-g
    **{"boolq": 3270, "cb": 56, "copa": 100, "multirc": 953, "record": 10000, "wic": 638, "wsc": 104},
    **{"axb": 1104, "axg": 178},
}
METRICS = {
    **{task: ["accuracy"] for task in ("boolq", "wic", "wsc")},
    "cb": ["accuracy", "macro_f1", "mean"],
    "copa": ["choice_accuracy"],
    "multirc": ["f1a", "exact_questions", "mean"],
    "record": ["token_f1", "exact_match", "mean"],
    "axb": ["matthews_correlation"],
    "axg": ["accuracy", "gender_parity"],
}
PASSAGES = {"boolq": "passage", "cb": "premise", "copa": "premise", "multirc": "paragraph", "record": "passage"}
FUNCTIONS = {"copa", "multirc", "record", "wic", "wsc"}
GROUPED = {"copa", "multirc", "record", "axg"}


def spec(task: str) -> TaskSpec:
    return compose_settings(f"task={task}").task


@pytest.fixture(scope="module")
def specs() -> dict[str, TaskSpec]:
    return {task: spec(task) for task in (*TASKS, "rte")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    hub, local = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("local")
    write_hub(hub / "super_glue")
    for task in TASKS:
        write_official(local / "superglue", task)
    return {"hub": hub / "super_glue", "local": local}


def opened(task: TaskSpec, kind: str, folders: dict[str, Path], rows: int = 40) -> Source:
    if kind == "hub":
        task.hub.path = str(folders["hub"])
    return open_source(task, DataSpec(source=kind, dir=str(folders["local"]), train_rows=rows, eval_rows=rows // 2))


@pytest.mark.parametrize("name", TASKS)
def test_definition(name: str, specs: dict[str, TaskSpec]) -> None:
    task = specs[name]
    assert (task.name, task.suite, task.suites, task.kind) == (name, "superglue", ["superglue"], "classification")
    assert (tuple(task.text), tuple(task.labels)) == (TEXTS[name], LABELS[name])
    assert task.metrics == METRICS[name]
    assert task.primary == ("mean" if "mean" in task.metrics else task.metrics[0])
    assert list(task.dev_rows.values()) == [PUBLISHED[name]]
    assert task.diagnostic == (name in ("axb", "axg"))
    assert (task.cut, bool(task.group)) == (PASSAGES.get(name, ""), name in GROUPED)
    assert (task.reshape, task.spans) == (name if name in FUNCTIONS else "", 2 if name in ("wic", "wsc") else 0)


@pytest.mark.parametrize("kind", ["hub", "local"])
@pytest.mark.parametrize("name", TASKS)
def test_rows_are_the_files_rows(name: str, kind: str, specs: dict[str, TaskSpec], folders: dict[str, Path]) -> None:
    """None dropped, doubled, reordered or altered, in any split; the test rows have no labels."""
    source = opened(specs[name], kind, folders)
    data = source.load()
    diagnostic = name in ("axb", "axg")
    assert data.train.to_list() == expected_rows(name, "train")
    assert data.parts[""].to_list() == expected_rows(name, "test" if diagnostic else "val")
    tests = source.load_tests()[""].to_list()
    assert tests == expected_rows(name, "test")
    assert diagnostic or {row["label"] for row in tests} == {-1}
    assert data.train.features == data.parts[""].features == features(specs[name])
    assert data.official is False


@pytest.mark.parametrize("name", TASKS)
def test_generated_rows_have_the_same_columns(name: str, specs: dict[str, TaskSpec], folders: dict[str, Path]) -> None:
    source = opened(specs[name], "generated", folders, rows=80)
    data, tests = source.load(), source.load_tests()[""]
    dev = data.parts[""]
    assert data.train.features == dev.features == tests.features == features(specs[name])
    assert 80 <= len(data.train) < 86 and 40 <= len(dev) < 46
    classes = [dev[:]["label"].count(number) for number in range(len(LABELS[name]))]
    assert min(classes) >= len(dev) // (5 if name == "record" else 2 * len(classes))
    assert name in ("axb", "axg") or set(tests[:]["label"]) == {-1}
    text = specs[name].text[0]
    assert not set(data.train[:][text]) & set(dev[:][text]) or name in ("cb", "boolq", "wic", "axb")
    rows = [tuple(row[column] for column in TEXTS[name]) for row in [*data.train, *dev]]
    assert len(set(rows)) > len(rows) * 0.9 and not set(rows[: len(data.train)]) & set(rows[len(data.train) :])
    if specs[name].group:
        sizes = {"copa": {2}, "axg": {2}, "multirc": {4}, "record": {4}}[name]
        groups = group_numbers(dev).tolist()
        assert {groups.count(group) for group in set(groups)} == sizes
        assert groups == sorted(groups)
    if name in ("copa", "record"):
        numbers = group_numbers(dev).tolist()
        right = [number for number, label in zip(numbers, dev[:]["label"], strict=True) if label == 1]
        assert sorted(right) == sorted(set(numbers)), "one right row in each group"


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("name", (*TASKS, "rte"))
def test_generated_rows_are_the_generators_rows(name: str, split: str, specs: dict[str, TaskSpec]) -> None:
    """None dropped, doubled or reordered between the generator and the rows."""
    task = specs[name]
    split = name if task.diagnostic and split != "train" else split
    share = 0 if split == "train" else 1 + ["dev", "test"].index(split) if split != name else 1
    count = 60 if split == "train" else 30
    rows = open_source(task, DataSpec("generated", train_rows=60, eval_rows=30)).load_split(split).to_list()
    if task.generator in FAMILIES:
        written = write_rows(FAMILIES[task.generator], task.labels, share, count, 0)
        assert [tuple(row[column] for column in task.text) for row in rows] == [texts for texts, _ in written]
        assert [row["idx"] for row in rows] == list(range(count))
        return
    expected: list[dict[str, Any]] = []
    for batch in write_records(RECORD_FAMILIES[task.generator], share, 0):
        for record in batch:
            expected += RESHAPES[name](record) if name in RESHAPES else [record]
        if len(expected) >= count:
            break
    columns = [*task.text, "idx", *(["group"] if task.reshape and task.group else [])]
    assert [[row[c] for c in columns] for row in rows] == [[row[c] for c in columns] for row in expected]


# --- RTE, which both suites have


def test_rte_is_one_task_of_two_suites(tmp_path: Path, specs: dict[str, TaskSpec]) -> None:
    task = specs["rte"]
    assert (task.suite, task.suites) == ("glue", ["glue", "superglue"])
    write_official(tmp_path / "superglue", "rte")
    data = local(task, tmp_path)
    expected = [
        {"sentence1": row["premise"], "sentence2": row["hypothesis"], "label": row["label"], "idx": row["idx"]}
        for row in expected_rows("rte", "val")
    ]
    assert data.parts[""].to_list() == expected
    task_files.write_official(tmp_path / "glue", "rte")
    both = local(task, tmp_path)
    assert both.train.to_list() == [task_files.row("rte", "train", i) for i in range(task_files.SIZES["train"])]
    (tmp_path / "glue" / "RTE" / "dev.tsv").unlink()
    assert len(local(task, tmp_path).train) == SIZES["train"], "all files of one layout, or of the other"
    (tmp_path / "superglue" / "RTE" / "val.jsonl").unlink()
    with pytest.raises(UserError, match=r"rte: no file dev\.tsv in .*glue/RTE"):
        local(task, tmp_path)


# --- what is wrong with a file


def local(task: TaskSpec, folder: Path) -> TaskData:
    return open_source(task, DataSpec(source="local", dir=str(folder))).load()


def broken(task: str, folder: Path, line: int, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The task's files, one record of the dev file (of a diagnostic, the only one) changed in place."""
    write_official(folder, task)
    name = f"{FOLDERS[task]}.jsonl" if task in ("axb", "axg") else "val.jsonl"
    path = folder / FOLDERS[task] / name
    lines = path.read_text().splitlines()
    record = json.loads(lines[line - 1])
    change(record)
    lines[line - 1] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")
    return path


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: Any) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


def drop(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: Any) -> None:
        for key in keys[:-1]:
            record = record[key]
        del record[keys[-1]]

    return change


BROKEN: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("boolq", put("passage", value=" "), "'passage' is empty or no text: ' '"),
    ("boolq", drop("passage"), "no 'passage'"),
    ("boolq", put("label", value="maybe"), "label 'maybe' is none of False, True"),
    ("boolq", drop("label"), "no label"),
    ("cb", put("label", value="entails"), "label 'entails' is none of entailment, contradiction, neutral"),
    ("cb", put("hypothesis", value=7), "'hypothesis' is empty or no text: 7"),
    ("cb", put("idx", value="a"), "'idx' is 'a', not a whole number"),
    ("axb", put("idx", value="-1"), "'idx' is '-1', not a whole number"),
    ("cb", put("idx", value=True), "'idx' is True, not a whole number"),
    ("copa", drop("choice2"), "no 'choice2'"),
    ("copa", put("choice1", value=""), "'choice1' is empty"),
    ("copa", put("question", value="reason"), "question 'reason' is none of cause, effect"),
    ("copa", put("label", value=2), "label 2 is none of 0, 1"),
    ("multirc", put("passage", "text", value=""), "'text' is empty"),
    ("multirc", put("passage", "questions", value=[]), r"'questions' is '\[\]', not a list with something in it"),
    ("multirc", put("passage", "questions", 0, "answers", value=[]), r"'answers' is '\[\]', not a list"),
    ("multirc", drop("passage", "questions", 0, "answers", 1, "text"), "no 'answer'"),
    ("multirc", put("passage", "questions", 0, "answers", 0, "label", value="yes"), "label 'yes' is none of 0, 1"),
    ("multirc", drop("passage", "questions", 0, "answers", 0, "label"), "no label"),
    ("record", put("passage", "entities", value=[]), r"'entities' is '\[\]', not a list with something in it"),
    ("record", put("passage", "entities", 0, "end", value=9999), r"entity 0\.\.9999 is outside the passage of"),
    ("record", put("qas", 0, "query", value="who?"), "query 'who\\?' has no @placeholder"),
    ("record", put("qas", 0, "answers", value=[]), "no label"),
    ("wic", put("end1", value=999), r"span 5\.\.999 is outside sentence1 of \d+ characters"),
    ("wic", put("start2", value=4), r"span 4\.\.4 is outside sentence2"),
    ("wic", put("start1", value="5"), "'start1' is '5', not a whole number"),
    ("wic", put("label", value="maybe"), "label 'maybe' is none of"),
    ("wsc", put("target", "span2_index", value=99), r"span 'he' at word 99 is outside the text of \d+ words"),
    ("wsc", put("target", "span1_text", value=""), "'span1_text' is empty"),
    ("wsc", drop("target"), "no 'span1_text'"),
    ("multirc", put("passage", "questions", 0, "answers", 0, value="x"), "'answers' holds 'x', not an object"),
    ("multirc", put("passage", "questions", 0, value="x"), "'questions' holds 'x', not an object"),
    ("record", drop("qas"), "no 'qas'"),
    ("record", put("qas", 0, value="x"), "'qas' holds 'x', not an object"),
    ("record", put("qas", 0, "answers", value=["Ben"]), "'answers' holds 'Ben', not an object"),
    ("record", put("qas", 0, "answers", value="Ben"), "'answers' is 'Ben', not a list"),
    ("record", put("passage", "entities", 0, value="Ben"), "'entities' holds 'Ben', not an object"),
    ("copa", put("idx", value=10), r"the idx of .*COPA/val\.jsonl, line 1"),
    ("wsc", put("target", value="he"), "'target' is 'he', not an object"),
    ("cb", put("idx", value=2**31), "'idx' is 2147483648, out of range"),
    ("cb", put("premise", value="\ud83d x"), "no JSON .*surrogates not allowed"),
    ("axb", put("sentence2", value=""), "'sentence2' is empty"),
    ("axg", put("label", value="neutral"), "label 'neutral' is none of entailment, not_entailment"),
]


@pytest.mark.parametrize(("task", "change", "message"), BROKEN, ids=[f"{c[0]}-{n}" for n, c in enumerate(BROKEN)])
def test_a_bad_record_stops_with_its_line(
    task: str, change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    path = broken(task, tmp_path, 2, change)
    with pytest.raises(UserError, match=rf"line 2: {message}") as caught:
        local(spec(task), tmp_path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "a"\n', r"line 1: no JSON"),
        ("[1, 2]\n", r"line 1: '\[1, 2\]' is no JSON object"),
        ("", r"val\.jsonl: the file has no rows"),
        ("\n\n", r"val\.jsonl: the file has no rows"),
        ('{"question": "a", "passage": "b", "label": true}\n\n{}\n', r"line 2: an empty line between others"),
    ],
)
def test_a_broken_file(content: str, message: str, tmp_path: Path) -> None:
    write_official(tmp_path, "boolq")
    (tmp_path / "BoolQ" / "val.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        local(spec("boolq"), tmp_path)


def test_line_ends_byte_order_mark_and_missing_idx(tmp_path: Path) -> None:
    """Windows line ends, blank lines at the end and a mark at the start are no rows; lines then number the rows."""
    write_official(tmp_path, "boolq")
    path = tmp_path / "BoolQ" / "val.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    bare = [{key: value for key, value in record.items() if key != "idx"} for record in records]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, bare)).encode() + b"\r\n\r\n")
    expected = [row | {"idx": number} for number, row in enumerate(expected_rows("boolq", "val"))]
    assert local(spec("boolq"), tmp_path).parts[""].to_list() == expected


def test_what_the_official_tools_put_up_with_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = broken("multirc", tmp_path, 3, put("passage", "questions", 0, "answers", 0, "text", value=""))
    with caplog.at_level(logging.WARNING):
        rows = local(spec("multirc"), tmp_path).parts[""]
    assert len(rows) == len(expected_rows("multirc", "val"))
    assert f"multirc: an answer without a word, in 1 rows; the first is {path}, line 3" in caplog.text


def test_an_answer_that_is_no_entity_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No candidate can then be right; the query stays, and scores what shares words with the answer."""
    path = broken("record", tmp_path, 2, put("qas", 0, "answers", 0, "text", value="Nobody"))
    with caplog.at_level(logging.WARNING):
        rows = local(spec("record"), tmp_path).parts[""]
    assert len(rows) == len(expected_rows("record", "val"))
    assert f"record: an answer that is no entity of the passage, in 1 rows; the first is {path}, line 2" in caplog.text


def test_hub_rows_that_are_wrong(folders: dict[str, Path], tmp_path: Path) -> None:
    task = spec("copa")
    write_hub(tmp_path / "hub")
    task.hub.path = str(tmp_path / "hub")
    file = tmp_path / "hub" / "copa" / "validation-00000-of-00001.parquet"
    rows = Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"), keep_in_memory=True)
    rows.map(lambda row: row | {"choice2": ""}, keep_in_memory=True).to_parquet(file)
    with pytest.raises(UserError, match=r"copa/validation, row 1: 'choice2' is empty"):
        open_source(task, DataSpec(source="hub")).load()


# --- real files

REAL = {  # train, dev, test records of the files
    **{"boolq": (2270, 1000, None), "cb": (250, 56, 250), "copa": (400, 100, 500), "wic": (5428, 638, 1400)},
    "rte": (2490, 277, 3000),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str, real_data: Path, specs: dict[str, TaskSpec]) -> None:
    """Every record is there in its order, with its texts and its label; the word of WiC stands between the marks."""
    task, folder = specs[name], real_data / "superglue" / FOLDERS[name]
    if name == "rte":
        task = spec("rte")
        task.local, task.suite = task.also["superglue"], "superglue"
    source = open_source(task, DataSpec(source="local", dir=str(real_data)))
    data = source.load()
    train, dev, test = REAL[name]
    per = 2 if name == "copa" else 1
    assert (len(data.train), len(data.parts[""])) == (train * per, dev * per)
    assert data.official == (name != "boolq")
    splits = {"train": data.train, "val": data.parts[""]}
    if test:
        splits["test"] = source.load_tests()[""]
        assert len(splits["test"]) == test * per
    for split, found in splits.items():
        there = [json.loads(line)["idx"] for line in (folder / f"{split}.jsonl").read_text("utf-8").splitlines()]
        numbers = [group[-1] for group in found[:]["group"]] if name == "copa" else found[:]["idx"]
        assert numbers == [idx for idx in there for _ in range(per)], f"{split}: dropped, doubled or reordered"
    records = [json.loads(line) for line in (folder / "val.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = data.parts[""].to_list()
    if name == "copa":
        assert [row["label"] for row in rows[1::2]] == [record["label"] for record in records]
        assert all(row["choice"].endswith(record["choice2"]) for row, record in zip(rows[1::2], records, strict=True))
        return
    assert [row["idx"] for row in rows] == [record["idx"] for record in records]
    names = {str(record["label"]) for record in records}
    assert names == set(task.labels)
    assert [task.labels[row["label"]] for row in rows] == [str(record["label"]) for record in records]
    if name == "wic":
        for row, record in zip(rows, records, strict=True):
            for side, (_, start, end) in zip("12", row["spans"], strict=True):
                text, word = (
                    row[f"sentence{side}"],
                    record[f"sentence{side}"][record[f"start{side}"] : record[f"end{side}"]],
                )
                assert text[start - 1 : end + 1] == f"*{word}*"
                assert text[: start - 1] + word + text[end + 1 :] == record[f"sentence{side}"]


def test_real_record(real_data: Path, specs: dict[str, TaskSpec]) -> None:
    rows = local(specs["record"], real_data).parts[""]
    groups = group_numbers(rows)
    assert (groups.max() + 1, len(rows)) == (32, 369)
    lines = (real_data / "superglue" / "ReCoRD" / "val.jsonl").read_text("utf-8").splitlines()
    queries = [[record["idx"], query["idx"]] for record in map(json.loads, lines) for query in record["qas"]]
    assert [list(group) for group in dict.fromkeys(map(tuple, rows[:]["group"]))] == queries
    assert all(row["candidate"] in row["query"] and row["candidate"] in row["passage"] for row in rows)
    assert all((row["candidate"] in row["answers"]) == (row["label"] == 1) for row in rows)
    assert len({int(groups[n]) for n, label in enumerate(rows[:]["label"]) if label == 1}) == 32


# --- groups stay whole


@pytest.mark.parametrize("name", sorted(GROUPED))
def test_subsets_and_held_out_rows_keep_groups_whole(
    name: str, specs: dict[str, TaskSpec], folders: dict[str, Path]
) -> None:
    rows = opened(specs[name], "generated", folders, rows=200).load().train
    whole = {tuple(group): rows[:]["group"].count(group) for group in rows[:]["group"]}

    def groups(part: Dataset) -> dict[tuple[int, ...], int]:
        found = part[:]["group"]
        return {tuple(group): found.count(group) for group in found}

    smaller: dict[tuple[int, ...], int] = {}
    for size in (1, 7, 30, 101, 199):
        part = subset(rows, size, 0, whole_groups=True)
        found = groups(part)
        assert found.items() <= whole.items() and smaller.items() <= found.items()
        assert max(size - 3, 1) <= len(part) <= max(size, 4)
        smaller = found
    assert subset(rows, 500, 0, whole_groups=True) is rows
    rest, held = hold_out(rows, 50, 0, whole_groups=True)
    assert groups(rest).items() <= whole.items() and groups(held).items() <= whole.items()
    assert len(rest) + len(held) == len(rows) and 47 <= len(held) <= 50
