"""Every task gives the same columns and, where the files say the same, the same rows, from every source."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import ClassLabel, Features, Value, load_dataset
from omegaconf import OmegaConf

from propulsion.harness.errors import UserError
from propulsion.harness.settings import DataSpec, TaskSpec
from propulsion.harness.sources import UNLABELLED, Source, features, open_source
from tests.conftest import compose_settings, names
from tests.task_files import NAMES, SIZES, TASKS, TEXTS, row, write_hub, write_official

SOURCES = ("hub", "local", "generated")
PUBLISHED = {
    "cola": {"": 1043},
    "sst2": {"": 872},
    "mrpc": {"": 408},
    "stsb": {"": 1500},
    "qqp": {"": 40430},
    "mnli": {"": 9815, "_mm": 9832},
    "qnli": {"": 5463},
    "rte": {"": 277},
    "wnli": {"": 71},
    "ax": {"": 1104},
}
METRICS = {
    "cola": ["matthews_correlation"],
    "ax": ["matthews_correlation"],
    "stsb": ["pearson", "spearman"],
    "mrpc": ["accuracy", "f1"],
    "qqp": ["accuracy", "f1"],
}


@pytest.fixture(scope="module")
def specs() -> dict[str, TaskSpec]:
    return {name: compose_settings(f"task={name}").task for name in TASKS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A hub-like folder of parquet files, and an official download."""
    hub, local = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("local")
    write_hub(hub / "glue")
    for task in TASKS:
        write_official(local / "glue", task)
    return {"hub": hub / "glue", "local": local}


@pytest.fixture
def source(request: pytest.FixtureRequest, specs: dict[str, TaskSpec], folders: dict[str, Path]) -> Source:
    """The source of (task, source) as the parameter says."""
    name, kind = request.param
    task = specs[name]
    if kind == "hub":
        task.hub.path = str(folders["hub"])
    return open_source(task, DataSpec(source=kind, dir=str(folders["local"]), train_rows=60, eval_rows=30))


EVERY = [(task, kind) for task in TASKS for kind in SOURCES]
LABELLED = [pair for pair in EVERY if pair != ("ax", "hub")]  # the hub keeps the labels of AX back
WRITTEN = [pair for pair in LABELLED if pair[1] != "generated"]


def ids(pairs: list[tuple[str, str]]) -> list[str]:
    return ["-".join(pair) for pair in pairs]


def test_the_ten_tasks() -> None:
    assert set(TASKS) <= set(names("task"))


@pytest.mark.parametrize("name", TASKS)
def test_definition(name: str, specs: dict[str, TaskSpec]) -> None:
    task = specs[name]
    assert (task.name, task.version, task.suite) == (name, 1, "glue")
    assert tuple(task.text) == TEXTS[name]
    assert tuple(task.labels) == NAMES[name]
    assert task.kind == ("classification" if NAMES[name] else "regression")
    assert task.metrics == METRICS.get(name, ["accuracy"])
    assert task.primary == task.metrics[0]
    assert {suffix: task.dev_rows[split] for suffix, split in task.parts.items()} == PUBLISHED[name]
    assert set(task.tests) == set(task.parts)
    assert task.diagnostic == (name == "ax")


@pytest.mark.parametrize("source", LABELLED, indirect=True, ids=ids(LABELLED))
def test_same_columns_from_every_source(source: Source) -> None:
    task, data = source.task, source.load()
    label = ClassLabel(names=list(NAMES[task.name])) if NAMES[task.name] else Value("float32")
    texts = {name: Value("string") for name in TEXTS[task.name]}
    expected = Features({**texts, "label": label, "idx": Value("int32")})
    tests = source.load_tests()
    assert data.source == source.data.source
    assert set(data.parts) == set(tests) == set(PUBLISHED[task.name])
    for rows in (data.train, *data.parts.values(), *tests.values()):
        assert rows.features == expected == features(task)
        assert rows.column_names == [*TEXTS[task.name], "label", "idx"]
        assert len(rows) > 0
        one = rows[0]
        assert all(isinstance(one[name], str) and one[name] for name in TEXTS[task.name])
        assert isinstance(one["label"], int if NAMES[task.name] else float)
    for rows in (data.train, *data.parts.values()):
        labels = rows[:]["label"]
        if NAMES[task.name]:
            assert set(labels) == set(range(len(NAMES[task.name])))
        else:
            assert min(labels) >= 0 and max(labels) <= 5 and len(set(labels)) > 3
    if task.name != "ax":
        assert all(set(rows[:]["label"]) == {UNLABELLED} for rows in tests.values())


@pytest.mark.parametrize("source", WRITTEN, indirect=True, ids=ids(WRITTEN))
def test_rows_are_the_files_rows(source: Source) -> None:
    """No row dropped, doubled, reordered or altered: quotes, spaces and rare line separators included."""
    task, data = source.task.name, source.load()
    origin = "mnli" if task == "ax" else task  # AX trains on MNLI
    assert data.train.to_list() == [row(origin, "train", i) for i in range(SIZES["train"])]
    for rows in data.parts.values():
        assert rows.to_list() == [row(task, "dev", i) for i in range(SIZES["dev"])]
    for rows in source.load_tests().values():
        kind = "dev" if task == "ax" else "test"
        expected = [row(task, kind, i) | ({} if task == "ax" else {"label": -1}) for i in range(SIZES[kind])]
        assert rows.to_list() == expected


@pytest.mark.parametrize("source", EVERY, indirect=True, ids=ids(EVERY))
def test_fingerprint_is_stable_and_names_the_content(
    source: Source, specs: dict[str, TaskSpec], folders: dict[str, Path]
) -> None:
    again = open_source(source.task, source.data)
    assert source.fingerprint() == again.fingerprint()
    prints = {open_source(specs[name], source.data).fingerprint() for name in ("rte", "wnli", "cola")}
    assert len(prints) == 3


@pytest.mark.parametrize("source", [("ax", "hub")], indirect=True, ids=["ax"])
def test_hub_has_no_labels_to_score_ax(source: Source) -> None:
    with pytest.raises(UserError, match=r"ax: 5 of 5 'ax' rows of data=hub have no label.*diagnostic-full\.tsv"):
        source.load()
    assert [rows[:]["label"] for rows in source.load_tests().values()] == [[UNLABELLED] * 5]


def test_windows_line_ends_and_the_flat_layout(tmp_path: Path, specs: dict[str, TaskSpec]) -> None:
    for task in ("mrpc", "cola"):
        write_official(tmp_path, task, newline="\r\n")
        data = open_source(specs[task], DataSpec(source="local", dir=str(tmp_path))).load()
        assert data.train.to_list() == [row(task, "train", i) for i in range(SIZES["train"])]


def test_official_means_exactly_the_published_rows(
    tmp_path: Path, specs: dict[str, TaskSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both MNLI halves must be whole; generated rows are never official, whatever their number."""
    write_official(tmp_path, "mnli")
    task, local = specs["mnli"], DataSpec(source="local", dir=str(tmp_path))
    assert not open_source(task, local).load().official
    monkeypatch.setattr(task, "dev_rows", {"dev": SIZES["dev"], "dev_mismatched": 9832})
    assert not open_source(task, local).load().official
    monkeypatch.setattr(task, "dev_rows", {"dev": SIZES["dev"], "dev_mismatched": SIZES["dev"]})
    assert open_source(task, local).load().official
    assert not open_source(task, DataSpec(source="generated", train_rows=9, eval_rows=SIZES["dev"])).load().official


def test_a_new_task_needs_one_yaml_file(tmp_path: Path) -> None:
    """Another suite, other names, other columns: no Python."""
    text = """
    name: weather
    version: 1
    suite: mine
    labels: [dry, rain]
    text: [report]
    metrics: [accuracy]
    primary: accuracy
    local:
      folder: Weather
      files: {train: a.tsv, dev: b.tsv}
      columns: {report: words, label: y}
      labels: {d: dry, r: rain}
    """
    (tmp_path / "mine" / "Weather").mkdir(parents=True)
    for file in ("a.tsv", "b.tsv"):
        (tmp_path / "mine" / "Weather" / file).write_text("y\tx\twords\nr\t\twet\nd\t\tsunny\n")
    task = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TaskSpec), OmegaConf.create(text)))
    assert isinstance(task, TaskSpec)
    data = open_source(task, DataSpec(source="local", dir=str(tmp_path))).load()
    assert data.train.to_list() == [
        {"report": "wet", "label": 1, "idx": 0},
        {"report": "sunny", "label": 0, "idx": 1},
    ]
    for kind in ("hub", "generated"):
        with pytest.raises(UserError, match=r"task weather .*data=local"):
            open_source(task, DataSpec(source=kind)).load()


def test_hub_layout_is_what_the_library_reads(folders: dict[str, Path], tmp_path: Path) -> None:
    """The oracle of the hub source: the same folder through `load_dataset`."""
    rows = load_dataset(str(folders["hub"]), "rte", split="validation", cache_dir=str(tmp_path))
    assert rows.to_list() == [row("rte", "dev", i) for i in range(SIZES["dev"])]
