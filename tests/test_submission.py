"""Prediction files: the servers' published formats, typed in here apart from the code, and where answers come from."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from propulsion.harness import record as record_module
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import UserError
from propulsion.harness.kept import weights_path
from propulsion.harness.submission import Request, submit
from propulsion.harness.submission.choose import suites_of
from propulsion.harness.submission.formats import SUITES, Target, answers_of, content
from propulsion.harness.submission.majority import majority_logits
from propulsion.harness.submission.predict import Predictor
from propulsion.harness.tables import load_records
from scripts.submit import main
from tests.conftest import compose_settings

BINARY = {"0", "1"}
ENTAILED = {"entailment", "not_entailment"}
THREE = {"entailment", "neutral", "contradiction"}
GLUE = {  # file -> lines without the header, words
    "CoLA.tsv": (1063, BINARY), "SST-2.tsv": (1821, BINARY), "MRPC.tsv": (1725, BINARY), "STS-B.tsv": (1379, None),
    "QQP.tsv": (390965, BINARY), "MNLI-m.tsv": (9796, THREE), "MNLI-mm.tsv": (9847, THREE),
    "QNLI.tsv": (5463, ENTAILED), "RTE.tsv": (3000, ENTAILED), "WNLI.tsv": (146, BINARY), "AX.tsv": (1104, THREE),
}  # fmt: skip
SUPERGLUE = {
    "BoolQ.jsonl": (3245, {"true", "false"}), "CB.jsonl": (250, THREE), "COPA.jsonl": (500, {0, 1}),
    "MultiRC.jsonl": (166, None), "ReCoRD.jsonl": (10000, None), "RTE.jsonl": (3000, ENTAILED),
    "WiC.jsonl": (1400, {"true", "false"}), "WSC.jsonl": (146, {"True", "False"}),
    "AX-b.jsonl": (1104, ENTAILED), "AX-g.jsonl": (356, ENTAILED),
}  # fmt: skip
RUN = ("experiment=tiny", "method=head", "data.train_rows=24", "data.eval_rows=12", "training.max_steps=2")
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
SUPER_TASKS = ("boolq", "cb", "copa", "multirc", "record", "wic", "wsc")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short run of every task of both suites, on a toy backbone and generated rows."""
    folder = tmp_path_factory.mktemp("finished")
    for task in (*TASKS, *SUPER_TASKS):
        entry, _ = run_cell(compose_settings(*RUN, f"task={task}", f"results_dir={folder}"))
        assert entry["status"] == "success", entry["error"]
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same runs, to be spoiled."""
    return Path(shutil.copytree(finished, tmp_path / "results", ignore=shutil.ignore_patterns("submission")))


def unzip(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


def rows(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


def target(suite: str, file: str) -> Target:
    return next(t for t in SUITES[suite].targets if t.file == file)


def logits(classes: list[int], width: int) -> np.ndarray:
    return np.eye(width)[classes]


def test_names_and_counts_are_the_published_ones() -> None:
    for suite, published in (("glue", GLUE), ("superglue", SUPERGLUE)):
        spec = SUITES[suite]
        assert {f"{t.file}.{spec.ending}": t.lines for t in spec.targets} == {f: n for f, (n, _) in published.items()}
    models = {t.task: t.model for suite in SUITES.values() for t in suite.targets if t.task != t.model}
    assert models == {"ax": "mnli", "axb": "rte", "axg": "rte"}


def test_glue_files_to_the_byte() -> None:
    spec = SUITES["glue"]

    def text(file: str, classes: np.ndarray, task: str) -> str:
        labels = compose_settings(f"task={task}").task.labels
        some = rows(idx=[7, 8, 9][: len(classes)])  # the index counts the rows, whatever a source calls them
        return content(spec, answers_of(target("glue", file), some, labels, classes))

    assert text("CoLA", logits([1, 0, 1], 2), "cola") == "index\tprediction\n0\t1\n1\t0\n2\t1\n"
    assert text("RTE", logits([1, 0], 2), "rte") == "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
    assert text("WNLI", logits([1, 0], 2), "wnli") == "index\tprediction\n0\t1\n1\t0\n"  # 1 is entailment there
    three = "index\tprediction\n0\tentailment\n1\tneutral\n2\tcontradiction\n"
    assert text("MNLI-mm", logits([0, 1, 2], 3), "mnli") == three == text("AX", logits([0, 1, 2], 3), "mnli")
    numbers = np.array([[-0.2], [2.34567], [5.4]])
    assert text("STS-B", numbers, "stsb") == "index\tprediction\n0\t0.000\n1\t2.346\n2\t5.000\n"


def test_superglue_files_to_the_byte() -> None:
    spec = SUITES["superglue"]

    def text(file: str, scores: np.ndarray, task: str, **columns: list[Any]) -> str:
        labels = compose_settings(f"task={task}").task.labels
        return content(spec, answers_of(target("superglue", file), rows(**columns), labels, scores))

    two = logits([1, 0], 2)
    assert text("BoolQ", two, "boolq", idx=[0, 1]) == '{"idx": 0, "label": "true"}\n{"idx": 1, "label": "false"}\n'
    assert text("WiC", two, "wic", idx=[0, 1]) == '{"idx": 0, "label": "true"}\n{"idx": 1, "label": "false"}\n'
    assert text("WSC", two, "wsc", idx=[4, 5]) == '{"idx": 4, "label": "True"}\n{"idx": 5, "label": "False"}\n'
    cb = text("CB", logits([0, 1, 2], 3), "cb", idx=[0, 1, 2])
    assert re.findall(r'"label": "(\w+)"', cb) == ["entailment", "contradiction", "neutral"]
    # COPA: two rows a question; the first of two choices alike.
    scores = np.array([[0, 0.3], [0, 0.8], [0, 0.5], [0, 0.5]])
    copa = text("COPA", scores, "copa", idx=[0, 1, 0, 1], group=[[10], [10], [11], [11]])
    assert copa == '{"idx": 10, "label": 1}\n{"idx": 11, "label": 0}\n'
    multirc = text(
        "MultiRC", logits([1, 0, 0, 1], 2), "multirc", idx=[0, 1, 2, 3], group=[[5, 9], [5, 9], [5, 10], [6, 11]]
    )
    assert [json.loads(line) for line in multirc.splitlines()] == [
        {"idx": 5, "passage": {"questions": [
            {"idx": 9, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]},
            {"idx": 10, "answers": [{"idx": 2, "label": 0}]},
        ]}},
        {"idx": 6, "passage": {"questions": [{"idx": 11, "answers": [{"idx": 3, "label": 1}]}]}},
    ]  # fmt: skip
    record = text(
        "ReCoRD", np.array([[0.0, 1.0], [0.0, 3.0], [0.0, -1.0]]), "record",
        idx=[0, 1, 0], group=[[2, 31], [2, 31], [2, 32]], candidate=["Ann", "Señor B", "C"],
    )  # fmt: skip
    assert record == '{"idx": 31, "label": "Señor B"}\n{"idx": 32, "label": "C"}\n'


def check_glue(files: dict[str, str], expected: dict[str, int]) -> None:
    assert list(files) == [name for name in GLUE if name in expected] or set(files) == set(expected)
    for name, text in files.items():
        lines = text.splitlines()
        assert lines[0] == "index\tprediction" and text.endswith("\n") and "\r" not in text
        index, answers = zip(*(line.split("\t") for line in lines[1:]), strict=True)
        assert list(index) == [str(i) for i in range(expected[name])], name
        words = GLUE[name][1]
        assert all(re.fullmatch(r"[0-5]\.\d{3}", a) for a in answers) if words is None else set(answers) <= words


def test_every_file_of_both_servers_from_finished_runs(finished: Path) -> None:
    glue, superglue = submit(Request(results_dir=str(finished)))
    check_glue(unzip(glue.zip), dict.fromkeys(GLUE, 12))
    files = {name: [json.loads(line) for line in text.splitlines()] for name, text in unzip(superglue.zip).items()}
    assert set(files) == set(SUPERGLUE)
    for name, (_, words) in SUPERGLUE.items():
        assert all(set(line) == {"idx", "passage" if name == "MultiRC.jsonl" else "label"} for line in files[name])
        if words is not None:
            assert {line["label"] for line in files[name]} <= words, name
            assert all(type(line["label"]) is type(next(iter(words))) for line in files[name])
        if (
            name != "ReCoRD.jsonl"
        ):  # the generated queries are numbered within their passages, the official ones are not
            assert len({line["idx"] for line in files[name]}) == len(files[name])
    manifest = json.loads(superglue.manifest.read_text())
    records = {r["run"]["task"]: r for r in load_records(finished)}
    assert [entry["file"] for entry in manifest["files"]] == list(files)
    for entry in manifest["files"]:
        own = records[{"axb": "rte", "axg": "rte"}.get(entry["task"], entry["task"])]
        assert (entry["key"], entry["rule"], entry["seed"], entry["method"]) == (own["key"], "last", 0, "head")
        assert entry["kept_sha256"] == own["run"]["kept"]["last"]["sha256"]
        assert entry["data"]["fingerprint"] == own["run"]["data"]["fingerprint"]
        assert entry["evaluation"]["recomputed"] == pytest.approx(own["eval"]["last"], abs=1e-6)
    assert manifest["missing"] == {}
    assert sum("lines, the server wants" in remark for remark in superglue.remarks) == len(SUPERGLUE)
    again = submit(Request(results_dir=str(finished), suite="superglue"))[0]
    assert json.loads(again.manifest.read_text())["sha256"] == manifest["sha256"]  # the same bytes


def test_answers_are_in_the_order_of_the_rows(finished: Path) -> None:
    """One row at a time gives what batches of like length give."""
    found = next(r for r in load_records(finished) if r["run"]["task"] == "mnli")
    predictor = Predictor(found, "last", str(finished), "")
    tests = predictor.source.load_tests()["_mm"]
    task = predictor.settings.task
    together = predictor.logits(tests, task)
    alone = np.concatenate([predictor.logits(tests.select([i]), task) for i in range(len(tests))])
    assert np.allclose(together, alone, atol=1e-5)
    assert np.ptp(together, axis=0).max() > 1e-4  # the rows do differ


def test_what_was_not_run_is_filled_only_when_asked_for(copied: Path) -> None:
    for task in ("cola", "stsb", "mnli", "multirc", "record", "copa"):
        shutil.rmtree(copied / "runs" / task)
    glue, superglue = submit(Request(results_dir=str(copied)))
    gone = {"CoLA.tsv", "STS-B.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"}
    assert set(unzip(glue.zip)) == set(GLUE) - gone == set(GLUE) - set(json.loads(glue.manifest.read_text())["missing"])
    assert any("CoLA.tsv is not in the zip: task cola has no finished run" in remark for remark in glue.remarks)
    glue, superglue = submit(Request(results_dir=str(copied), fill="majority"))
    check_glue(unzip(glue.zip), dict.fromkeys(GLUE, 12))
    assert set(unzip(superglue.zip)) == set(SUPERGLUE)
    entries = {e["file"]: e for e in json.loads(glue.manifest.read_text())["files"]}
    assert {name for name, entry in entries.items() if entry["from"] == "majority"} == gone
    assert "key" not in entries["CoLA.tsv"] and "key" in entries["RTE.tsv"]
    assert len({line.split("\t")[1] for line in unzip(glue.zip)["CoLA.tsv"].splitlines()[1:]}) == 1


def test_a_multirc_file_short_of_an_answer_is_noted(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many passages as the server wants are not all of its answers."""
    multirc = target("superglue", "MultiRC")
    assert multirc.answers == 9693
    asked = Request(results_dir=str(finished), suite="superglue", tasks="multirc")
    lines, answers = len(unzip(submit(asked)[0].zip)["MultiRC.jsonl"].splitlines()), 12
    for wanted, remarks in ((answers, []), (answers + 1, ["MultiRC.jsonl holds 12 answers, the server wants 13"])):
        spec = replace(SUITES["superglue"], targets=(replace(multirc, lines=lines, answers=wanted),))
        monkeypatch.setitem(SUITES, "superglue", spec)
        assert submit(asked)[0].remarks == remarks


def test_majorities_by_hand() -> None:
    tasks = {name: compose_settings(f"task={name}").task for name in ("cola", "stsb", "copa", "record")}
    many = rows(label=[1, 0, 1], idx=[0, 1, 2])
    test = rows(idx=[0, 1])
    assert majority_logits(target("glue", "CoLA"), tasks["cola"], many, test).argmax(axis=1).tolist() == [1, 1]
    scores = rows(label=[1.0, 2.0, 4.5], idx=[0, 1, 2])
    assert majority_logits(target("glue", "STS-B"), tasks["stsb"], scores, test).tolist() == [[2.5], [2.5]]
    train = rows(label=[0, 1, 0, 1, 1, 0], idx=[0, 1, 0, 1, 0, 1], group=[[0], [0], [1], [1], [2], [2]])
    choices = rows(idx=[0, 1], group=[[0], [0]])
    copa = target("superglue", "COPA")
    found = answers_of(copa, choices, tasks["copa"].labels, majority_logits(copa, tasks["copa"], train, choices))
    assert found == [{"idx": 0, "label": 1}]
    text = "Bo met Ann. Ann left."
    named = rows(idx=[0, 1], group=[[0, 3], [0, 3]], candidate=["Bo", "Ann"], passage=[text, text])
    form = target("superglue", "ReCoRD")
    found = answers_of(form, named, tasks["record"].labels, majority_logits(form, tasks["record"], train, named))
    assert found == [{"idx": 3, "label": "Ann"}]


def refused(copied: Path, **asked: str) -> str:
    with pytest.raises(UserError) as error:
        submit(Request(results_dir=str(copied), **asked))
    assert "\n" not in str(error.value)
    assert not (copied / "submission").exists()
    return str(error.value)


def edit(copied: Path, task: str, change: Any) -> None:
    (path,) = (copied / "runs" / task).rglob("*.json")
    entry = json.loads(path.read_text())
    change(entry)
    record_module.write_record(path, entry)  # sealed: an edit by hand would be set aside


def test_one_clear_line_for_each_refusal(copied: Path) -> None:
    assert "rule=last or rule=best" in refused(copied, rule="heldout")
    assert "unknown task 'rt': did you mean rte" in refused(copied, tasks="rt")
    assert "method=head" in refused(copied, method="lora")
    (path,) = (copied / "runs" / "rte").rglob("*.json")
    weights = weights_path(str(copied), path.stem)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is not the file that the record names" in refused(copied, tasks="rte")
    weights.unlink()
    assert "are gone" in refused(copied, tasks="rte")
    edit(copied, "rte", lambda entry: entry["run"].update(kept=None))
    assert "training.keep_weights=both" in refused(copied, tasks="rte")
    edit(copied, "cola", lambda entry: entry["run"]["data"].update(fingerprint="generated:0"))
    assert "are not those of the record" in refused(copied, tasks="cola")


def test_weights_that_do_not_score_what_the_record_says_are_refused(copied: Path) -> None:
    def lie(entry: dict[str, Any]) -> None:
        entry["eval"]["last"]["accuracy"] = 1 - entry["eval"]["last"]["accuracy"] + 0.3

    edit(copied, "sst2", lie)
    assert "the record says" in refused(copied, tasks="sst2")


def test_another_backbone_is_refused(copied: Path, finished: Path) -> None:
    edit(copied, "rte", lambda entry: entry["run"].update(weights={"id": "x", "revision": None, "sha256": "ab" * 32}))
    assert "mixed backbones" in refused(copied, tasks="rte,cola")
    assert "has sha256 None, the record's has abab" in refused(copied, tasks="rte")


def test_seeds_methods_and_settings_are_chosen_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    cells = [("head", 0, ()), ("head", 1, ()), ("bitfit", 0, ()), ("head", 0, ("training.learning_rate=0.5",))]
    keys = []
    for method, seed, more in cells:
        words = (*RUN, "task=rte", f"method={method}", f"seed={seed}", f"results_dir={folder}", *more)
        keys.append(run_cell(compose_settings(*words))[0]["key"])
    assert "bitfit, head: add method=bitfit|head (make: METHODS=" in refused(folder)
    assert "0, 1: add seed=0|1 (make: SEEDS=" in refused(folder, method="head")
    assert "choose one with keys=" in refused(folder, method="head", seed="0")
    for rule in ("last", "best"):
        (made,) = submit(Request(results_dir=str(folder), method="head", seed="0", keys=keys[3], rule=rule))
        entry = json.loads(made.manifest.read_text())["files"][0]
        assert (entry["file"], entry["key"], entry["rule"]) == ("RTE.tsv", keys[3], rule)
    assert made.zip.name == "glue-minilm-head-seed0-best.zip"


@pytest.mark.parametrize(
    ("runs", "asked", "suites"),
    [
        (("rte", "wic"), {}, ["superglue"]),
        (("rte", "cola"), {}, ["glue"]),
        (("rte", "cola", "wic"), {}, ["glue", "superglue"]),
        (("rte",), {}, ["glue"]),
        (("rte",), {"suite": "superglue"}, ["superglue"]),
        (("rte", "wic"), {"suite": "glue"}, ["glue"]),
        (
            ("rte",),
            {"tasks": "rte,copa"},
            ["superglue"],
        ),  # named, and not run: its file is filled, or said to be missing
        (("rte",), {"tasks": "rte,cola,copa"}, ["glue", "superglue"]),
        (("rte",), {"tasks": "axb"}, ["superglue"]),  # a file of SuperGLUE alone, answered by the RTE run
    ],
)
def test_a_task_of_both_suites_brings_in_no_suite_by_itself(
    runs: tuple[str, ...], asked: dict[str, str], suites: list[str]
) -> None:
    own = {"wic": "superglue"}
    chosen = {task: {"run": {"task": task, "suite": own.get(task, "glue")}} for task in runs}
    assert suites_of(Request(**asked), chosen) == suites


def test_a_run_that_failed_answers_nothing(copied: Path) -> None:
    edit(copied, "rte", lambda entry: entry.update(status=record_module.FAILED))
    assert "no finished run" in refused(copied, tasks="rte")


def test_script(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"results_dir={finished}", "tasks=rte,mnli", "methods=head", "suite=glue"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in said[:2]] == ["[1/2]", "[2/2]"], "a line before each run answers"
    assert any("rte/" in line and line.endswith("(RTE 12)") for line in said[:2])
    assert any("mnli/" in line and line.endswith("(MNLI-m 12, MNLI-mm 12, AX 12)") for line in said[:2])
    assert "glue-minilm-head-seed0-last.zip: 4 files (MNLI-m, MNLI-mm, RTE, AX)" in "\n".join(said[2:])
    assert main([f"results_dir={finished}", "taks=rte"]) == 2
    assert "unknown argument 'taks': did you mean tasks" in capsys.readouterr().err


def test_real_files_have_the_published_counts_and_a_missing_one_is_said(real_data: Path, tmp_path: Path) -> None:
    tiny = ("experiment=tiny", "method=head", "data=local", f"data.dir={real_data}", "training.max_steps=1")
    for task in ("rte", "cola", "sst2"):
        rows_ = ("training.max_train_rows=16", "training.max_eval_rows=40", f"results_dir={tmp_path}")
        assert run_cell(compose_settings(*tiny, f"task={task}", *rows_))[0]["status"] == "success"
    (made,) = submit(Request(results_dir=str(tmp_path), data_dir=str(real_data), tasks="rte,cola"))
    check_glue(unzip(made.zip), {"CoLA.tsv": 1063, "RTE.tsv": 3000})
    assert not any("the server wants" in remark for remark in made.remarks)
    with pytest.raises(UserError, match=r"sst2: no file test.tsv in .*; or leave sst2 out"):
        submit(Request(results_dir=str(tmp_path), data_dir=str(real_data)))
    with pytest.raises(UserError, match="say where they are, data_dir="):
        submit(Request(results_dir=str(tmp_path), tasks="rte"))
