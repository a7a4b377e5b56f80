"""Reading real and broken files, the hub's failures, subsets and held-out rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from propulsion.harness import hub
from propulsion.harness.errors import UserError
from propulsion.harness.settings import DataSpec, TaskSpec
from propulsion.harness.sources import TaskData, hold_out, open_source, subset
from propulsion.harness.sources import hub as hub_source
from tests.conftest import compose_settings
from tests.task_files import HEADERS, row, write_hub, write_official


def local(task: str, folder: Path) -> TaskData:
    return open_source(compose_settings(f"task={task}").task, DataSpec(source="local", dir=str(folder))).load()


# --- real files

ROWS = {  # train, dev rows of the files, and whether the dev rows are the published ones
    "cola": (8551, [1043], True),
    "sst2": (67349, [872], True),
    "mrpc": (3668, [408], True),
    "stsb": (5749, [1500], True),
    "rte": (2490, [277], True),
    "qnli": (9999, [5463], True),
    "qqp": (8999, [1000], False),
    "mnli": (8999, [1000, 1000], False),
}
FIRST = {  # first training row
    "cola": ("Our friends won't buy this analysis, let alone the next one we propose.", 1),
    "sst2": ("when are bears bears and ", 1),
    "mrpc": (
        'Amrozi accused his brother, whom he called "the witness", of deliberately distorting his evidence.',
        1,
    ),
    "stsb": ("A plane is taking off.", 5.0),
    "rte": ("No Weapons of Mass Destruction Found in Iraq Yet.", 1),
    "qnli": (
        "What sector has expanded radiply by selling outsourcing services to North America and Europe?",
        1,
    ),
    "qqp": ("How do I get inside University College London being an Indian?", 0),
}


@pytest.mark.parametrize("task", ROWS)
def test_real_files(task: str, real_data: Path) -> None:
    """Every line of the file is a row, in its order, and the cells are the file's bytes."""
    data = local(task, real_data)
    train, dev, official = ROWS[task]
    assert (len(data.train), [len(rows) for rows in data.parts.values()]) == (train, dev)
    assert data.official == official
    if task in FIRST:
        one = data.train[0]
        assert (next(iter(one.values())), one["label"]) == FIRST[task]
    folder = next(iter(HEADERS[task])).split("/")[0]
    lines = (real_data / "glue" / folder / "train.tsv").read_bytes().decode("utf-8-sig").split("\n")
    cells = [line.split("\t") for line in lines[len(lines) - train - 1 : -1]]
    header = lines[0].split("\t")
    names = {"cola": [3], "mrpc": ["#1 String", "#2 String"], "mnli": ["sentence1", "sentence2"]}
    columns = [column for column in data.train.column_names if column not in ("label", "idx")]
    for ours, theirs in zip(columns, names.get(task, columns), strict=True):
        place = theirs if isinstance(theirs, int) else header.index(theirs)
        assert data.train[:][ours] == [line[place] for line in cells]


def test_real_mrpc_keeps_unbalanced_quotes(real_data: Path) -> None:
    first = local("mrpc", real_data).parts[""][0]
    assert first["sentence2"] == '"The foodservice pie business does not fit our long-term growth strategy.'
    assert first["label"] == 1


@pytest.mark.parametrize(("task", "rows"), [("cola", 1063), ("mrpc", 1725), ("rte", 3000), ("stsb", 1379)])
def test_real_test_rows_are_unlabelled(task: str, rows: int, real_data: Path) -> None:
    source = open_source(compose_settings(f"task={task}").task, DataSpec(source="local", dir=str(real_data)))
    (test,) = source.load_tests().values()
    assert len(test) == rows
    assert set(test[:]["label"]) == {-1}
    assert test[:]["idx"] == list(range(rows))


def test_real_labels_match_their_words(real_data: Path) -> None:
    """RTE's and MNLI's label words against their class ids, counted in the raw file."""
    for task, file, names in (
        ("rte", "RTE/train.tsv", ["entailment", "not_entailment"]),
        ("mnli", "MNLI/train.tsv", ["entailment", "neutral", "contradiction"]),
    ):
        words = [line.split("\t")[-1] for line in (real_data / "glue" / file).read_text().split("\n")[1:-1]]
        assert local(task, real_data).train[:]["label"] == [names.index(word) for word in words]


# --- broken files


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def drop_cell(line: int) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        lines = raw.split(b"\n")
        lines[line - 1] = lines[line - 1].rpartition(b"\t")[0]
        return b"\n".join(lines)

    return change


def in_line(line: int, old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        lines = raw.split(b"\n")
        assert old in lines[line - 1]
        lines[line - 1] = lines[line - 1].replace(old, new)
        return b"\n".join(lines)

    return change


BROKEN: dict[str, tuple[str, str, Callable[[bytes], bytes], str]] = {
    "too few columns": ("rte", "RTE/train.tsv", drop_cell(4), r"train\.tsv, line 4: 3 columns where .* 4"),
    "too few, no header": ("cola", "CoLA/dev.tsv", drop_cell(3), r"dev\.tsv, line 3: 3 columns where .* 4"),
    "too few, first line": ("cola", "CoLA/dev.tsv", drop_cell(1), r"dev\.tsv, line 1: 3 columns where .* 4"),
    "a tab in a text": (
        "rte",
        "RTE/dev.tsv",
        in_line(2, b"it", b"i\tt"),
        r"dev\.tsv, line 2: \d columns where .* 4",
    ),
    "a blank line": (
        "rte",
        "RTE/dev.tsv",
        lambda raw: raw.replace(b"\n1\t", b"\n\n1\t"),
        r"line 3: a blank line between rows",
    ),
    "no such column": (
        "stsb",
        "STS-B/train.tsv",
        in_line(1, b"score", b"mark"),
        r"line 1: no column 'score' for 'label'",
    ),
    "no text column": (
        "mrpc",
        "MRPC/dev.tsv",
        in_line(1, b"#2 String", b"second"),
        r"no column '#2 String' for 'sentence2'",
    ),
    "no label column": ("wnli", "WNLI/dev.tsv", in_line(1, b"label", b"lab"), r"line 1: no column 'label'"),
    "label word": (
        "mnli",
        "MNLI/dev_mismatched.tsv",
        in_line(3, b"neutral", b"-"),
        r"mismatched\.tsv, line 3: label '-' is none of entailment, neutral, contradiction",
    ),
    "label number": (
        "sst2",
        "SST-2/train.tsv",
        in_line(5, b"\t1", b"\t2"),
        r"line 5: label '2' is none of 0, 1",
    ),
    "empty label": ("qqp", "QQP/dev.tsv", in_line(2, b"\t0", b"\t"), r"line 2: label '' is none of 0, 1"),
    "score": (
        "stsb",
        "STS-B/dev.tsv",
        in_line(2, b"0.000", b"high"),
        r"line 2: label 'high' is not a number",
    ),
    "infinite score": (
        "stsb",
        "STS-B/dev.tsv",
        in_line(2, b"0.000", b"nan"),
        r"line 2: label 'nan' is not a number",
    ),
    "empty file": ("qnli", "QNLI/dev.tsv", lambda raw: b"", r"dev\.tsv: the file is empty"),
    "empty file, no header": ("cola", "CoLA/train.tsv", lambda raw: b"", r"train\.tsv: the file has no rows"),
    "header alone": (
        "qnli",
        "QNLI/train.tsv",
        lambda raw: raw[: raw.index(b"\n") + 1],
        r"train\.tsv: the file has no rows",
    ),
    "bytes in a text": (
        "rte",
        "RTE/train.tsv",
        in_line(6, b"unbalanced", b"\xff\xfe"),
        r"line 6: byte 0xff is not UTF-8",
    ),
    "UTF-16": (
        "rte",
        "RTE/dev.tsv",
        lambda raw: raw.decode().encode("utf-16"),
        r"line 1: byte 0xff is not UTF-8",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file(case: str, tmp_path: Path) -> None:
    task, file, change, message = BROKEN[case]
    write_official(tmp_path / "glue", task)
    edit(tmp_path / "glue" / file, change)
    with pytest.raises(UserError, match=message) as caught:
        local(task, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_missing_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set data\.dir"):
        open_source(compose_settings("task=rte").task, DataSpec(source="local"))
    with pytest.raises(UserError, match=r"data\.dir=.*nowhere is not a folder"):
        local("rte", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"rte: no folder RTE in .*; put its files there"):
        local("rte", tmp_path)
    write_official(tmp_path, "rte")
    (tmp_path / "RTE" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"rte: no file dev\.tsv in .*RTE; put the 'dev' rows there"):
        local("rte", tmp_path)
    (tmp_path / "RTE" / "dev.tsv").mkdir()
    with pytest.raises(UserError, match=r"no file dev\.tsv"):
        local("rte", tmp_path)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    write_official(tmp_path, "rte")
    source = open_source(compose_settings("task=rte").task, DataSpec(source="local", dir=str(tmp_path)))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"dev\.tsv: cannot be read \(Permission denied\)"):
        source.load()


def test_missing_test_file_is_missed_only_when_asked_for(tmp_path: Path) -> None:
    write_official(tmp_path, "rte")
    (tmp_path / "RTE" / "test.tsv").unlink()
    source = open_source(compose_settings("task=rte").task, DataSpec(source="local", dir=str(tmp_path)))
    assert len(source.load().train) == 9
    with pytest.raises(UserError, match=r"no file test\.tsv"):
        source.load_tests()
    with pytest.raises(UserError, match="no file for 'nonsense'"):
        source.load_split("nonsense")


def test_unknown_source() -> None:
    with pytest.raises(UserError, match="unknown data source 'locale': did you mean local"):
        open_source(compose_settings("task=rte").task, DataSpec(source="locale"))


def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path) -> None:
    write_official(tmp_path, "rte")
    edit(tmp_path / "RTE" / "train.tsv", lambda raw: raw + b"\n\r\n\n")
    assert local("rte", tmp_path).train.to_list() == [row("rte", "train", i) for i in range(9)]


def test_last_line_without_an_end(tmp_path: Path) -> None:
    write_official(tmp_path, "cola", newline="\r\n")
    edit(tmp_path / "CoLA" / "train.tsv", lambda raw: raw.removesuffix(b"\r\n"))
    assert local("cola", tmp_path).train.to_list() == [row("cola", "train", i) for i in range(9)]


def test_ax_without_labels_says_which_file_has_them(tmp_path: Path) -> None:
    """The unlabelled file that the task's own download holds is read, but cannot be scored."""
    write_official(tmp_path, "ax")
    (tmp_path / "AX" / "diagnostic-full.tsv").unlink()
    (tmp_path / "AX" / "AX.tsv").write_text("index\tsentence1\tsentence2\n0\tIt rains.\tIt pours.\n")
    source = open_source(compose_settings("task=ax").task, DataSpec(source="local", dir=str(tmp_path)))
    assert source.load_split("ax").to_list() == [
        {"premise": "It rains.", "hypothesis": "It pours.", "label": -1, "idx": 0}
    ]
    with pytest.raises(UserError, match=r"1 of 1 'ax' rows of data=local have no label.*AX/diagnostic-full\.tsv"):
        source.load()


def qqp_with_short_rows(folder: Path, rows: int, short: list[int]) -> None:
    """A QQP train file with `rows` good rows and, before those numbered in `short`, a line cut in two."""
    write_official(folder, "qqp")
    lines = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"]
    for i in range(rows):
        if i in short:
            lines.append(f"{i}\t1\t2\tHow do I")
        lines.append(f"{i}\t1\t2\tWhat is {i}?\tWhat is\t{i % 2}")
    (folder / "QQP" / "train.tsv").write_text("\n".join(lines) + "\n")


def test_short_rows_of_qqp_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    qqp_with_short_rows(tmp_path, 300, [4, 100])
    with caplog.at_level(logging.WARNING):
        train = local("qqp", tmp_path).train
    assert train[:]["question1"] == [f"What is {i}?" for i in range(300)]
    assert train[:]["idx"] == [i + (i >= 4) + (i >= 100) for i in range(300)], "idx still counts the file's lines"
    assert "2 short lines left out, the first is line 6" in caplog.text


def test_too_many_short_rows_are_an_error(tmp_path: Path) -> None:
    qqp_with_short_rows(tmp_path, 300, [4, 100, 150, 200])
    with pytest.raises(UserError, match=r"line 6: too few columns, here and in 3 other lines"):
        local("qqp", tmp_path)


def test_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    write_official(tmp_path, "rte")
    task, data = compose_settings("task=rte").task, DataSpec(source="local", dir=str(tmp_path))
    before = open_source(task, data).fingerprint()
    edit(tmp_path / "RTE" / "test.tsv", lambda raw: raw + raw.split(b"\n")[1] + b"\n")
    assert open_source(task, data).fingerprint() == before, "the test rows are neither trained on nor scored"
    edit(tmp_path / "RTE" / "dev.tsv", in_line(2, b"unbalanced", b"Unbalanced"))
    assert open_source(task, data).fingerprint() != before


# --- the hub


@pytest.fixture
def parquet(tmp_path: Path) -> TaskSpec:
    """RTE in a folder of parquet files laid out like the hub's data set."""
    write_hub(tmp_path / "glue", ("rte", "wnli"))
    task = compose_settings("task=rte").task
    task.hub.path = str(tmp_path / "glue")
    return task


HUB = DataSpec(source="hub")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "rtee", r"cannot load .*glue rtee: .*use files with data=local .*or data=generated"),
        ("splits", {"train": "train", "dev": "validations"}, r"cannot load .*glue rte/validations"),
        ("splits", {"train": "train"}, r"task rte has no split 'dev' on the hub"),
        (
            "columns",
            {"sentence2": "second"},
            r"rte/validation: no column 'second' for 'sentence2' in sentence1",
        ),
        ("name", "wnli", r"wnli/validation: the classes are \['not_entailment', 'entailment'\]"),
    ],
)
def test_hub_that_does_not_fit(parquet: TaskSpec, key: str, value: object, message: str) -> None:
    setattr(parquet.hub, key, value)
    with pytest.raises(UserError, match=message) as caught:
        open_source(parquet, HUB).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "message"),
    [("maybe", "maybe"), (2, "[Ll]abel 2"), (-2, "label -2"), (None, "label None")],
)
def test_hub_label_outside_the_set(parquet: TaskSpec, label: object, message: str) -> None:
    first = "entailment" if isinstance(label, str) else 0
    for split in ("train", "validation", "test"):
        file = Path(parquet.hub.path, "rte", f"{split}-00000-of-00001.parquet")
        rows = [row("rte", "dev", i) | {"label": label if i == 2 else first} for i in range(3)]
        Dataset.from_list(rows).to_parquet(file)
    with pytest.raises(UserError, match=message):
        open_source(parquet, HUB).load_split("dev")


def test_hub_columns_under_other_names(parquet: TaskSpec) -> None:
    parquet.hub.columns = {"sentence1": "sentence2", "sentence2": "sentence1"}
    got = open_source(parquet, HUB).load().train[0]
    expected = row("rte", "train", 0)
    assert (got["sentence1"], got["sentence2"]) == (expected["sentence2"], expected["sentence1"])


def test_hub_fingerprint_follows_the_files(parquet: TaskSpec) -> None:
    before = open_source(parquet, HUB).fingerprint()
    file = Path(parquet.hub.path, "rte", "validation-00000-of-00001.parquet")
    Dataset.from_list([row("rte", "dev", i) for i in range(3)]).to_parquet(file)
    source = open_source(parquet, HUB)
    assert source.fingerprint() != before
    assert len(source.load().parts[""]) == 3, "the rows follow the files too, whatever the library has cached"


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No hub, and an empty cache of the datasets library."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))
    hub_source._open_builder.cache_clear()
    return cache


def test_hub_that_cannot_be_reached(unreachable: Path) -> None:
    task = compose_settings("task=rte").task
    for use in (lambda: open_source(task, HUB).fingerprint(), lambda: open_source(task, HUB).load()):
        with pytest.raises(UserError, match=r"hub cannot be reached .* DATA_DIR=.* or data=generated") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_cached_rows_serve_without_the_hub(unreachable: Path, parquet: TaskSpec) -> None:
    """Rows that the datasets library has cached under the hub's name are used."""
    load_dataset(parquet.hub.path, "rte", cache_dir=str(unreachable))
    (unreachable / "glue").rename(unreachable / "nyu-mll___glue")
    task = compose_settings("task=rte").task
    source = open_source(task, HUB)
    assert source.load().train.to_list() == [row("rte", "train", i) for i in range(9)]
    assert source.fingerprint() == open_source(task, HUB).fingerprint() != open_source(parquet, HUB).fingerprint()


# --- subsets


def numbered(n: int) -> Dataset:
    return Dataset.from_dict({"idx": list(range(n))})


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), rows=st.integers(1, 80), seed=st.integers(0, 1000))
def test_subset(n: int, rows: int, seed: int) -> None:
    picked = subset(numbered(n), rows, seed)[:]["idx"]
    assert picked == sorted(set(picked))
    assert len(picked) == min(rows, n)
    assert picked == subset(numbered(n), rows, seed)[:]["idx"]
    assert set(picked) >= set(subset(numbered(n), max(rows // 2, 1), seed)[:]["idx"])


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 60), share=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_hold_out_divides_the_rows(n: int, share: float, seed: int) -> None:
    rows = min(max(int(n * share), 1), n - 1)
    rest, held = (part[:]["idx"] for part in hold_out(numbered(n), rows, seed))
    assert len(held) == rows
    assert sorted(rest + held) == list(range(n))
    assert rest == sorted(rest) and held == sorted(held)


def test_subset_is_the_same_for_good() -> None:
    """numpy promises this stream; a change would silently change every published subset."""
    assert subset(numbered(1000), 8, 0)[:]["idx"] == sorted(np.random.RandomState(0).permutation(1000)[:8].tolist())
    assert subset(numbered(1000), 8, 0)[:]["idx"] == [27, 231, 298, 553, 672, 859, 971, 993]
    assert subset(numbered(1000), 8, 1)[:]["idx"] != subset(numbered(1000), 8, 0)[:]["idx"]


@pytest.mark.parametrize("rows", [0, -1, 10, 11])
def test_hold_out_that_cannot_be(rows: int) -> None:
    with pytest.raises(UserError, match=rf"data\.holdout_rows={rows}: .* 10 rows"):
        hold_out(numbered(10), rows, 0)


def test_a_blank_line_of_qqp_is_a_short_row_and_costs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    qqp_with_short_rows(tmp_path, 300, [])
    (file,) = tmp_path.rglob("train.tsv")
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([*lines[:5], b"", *lines[5:]]))
    with caplog.at_level(logging.WARNING):
        rows = local("qqp", tmp_path).train
    assert len(rows) == 300 and "1 short lines left out, the first is line 6" in caplog.text
