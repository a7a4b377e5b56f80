"""Finished runs put to use: answers that give the recorded score again, exported adapters, cards, and the hub."""

from __future__ import annotations

import copy
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from markdown_it import MarkdownIt
from peft import PeftModel

from propulsion.harness import record as records
from propulsion.harness.backbones import MeanPoolingBert, build_empty
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import UserError
from propulsion.harness.serving import export as export_module
from propulsion.harness.serving.answers import answer
from propulsion.harness.serving.card import model_card
from propulsion.harness.serving.inputs import Columns, read_rows, typed
from propulsion.harness.serving.open import open_adapter, predictor_of
from propulsion.harness.sources import open_source
from propulsion.harness.submission.predict import Predictor
from propulsion.harness.tokenizers import byte_tokenizer
from scripts import export as export_script
from scripts import predict as predict_script
from tests.conftest import ROOT, compose_settings

CELLS = {"rte": "propulsion", "sst2": "lora", "stsb": "bitfit", "cola": "propulsion_paper"}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides for a tiny BERT in a folder, as a pretrained one from the hub would lie there."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    settings = compose_settings("experiment=tiny", "task=sst2", f"results_dir={folder}")
    torch.manual_seed(0)
    empty = build_empty(settings.backbone, settings.task)
    MeanPoolingBert(empty.config).bert.save_pretrained(folder)  # without a head
    byte_tokenizer(512).save_pretrained(folder)
    words = {"weights": "pretrained", "package": "null", "sha256": "null", "id": str(folder)}
    return tuple(f"backbone.{key}={value}" for key, value in words.items())


@pytest.fixture(scope="module")
def finished(backbone: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task -> the record of one short run on generated rows."""
    folder = tmp_path_factory.mktemp("finished")
    found = {}
    for task, method in CELLS.items():
        words = (f"task={task}", f"method={method}", "training.max_steps=6", "training.learning_rate=0.01")
        settings = compose_settings("experiment=tiny", *backbone, *words, f"results_dir={folder}")
        entry, _ = run_cell(settings)
        assert entry["status"] == "success", entry["error"]
        found[task] = records.record_path(settings, entry["key"])
    return found


def predictor(path: Path, rule: str = "last") -> Predictor:
    return predictor_of(path, str(path.parents[4]), rule)


def dev_rows(path: Path) -> Dataset:
    """The evaluation rows of a run, as its record says."""
    (rows,) = open_source(predictor(path).settings.task, predictor(path).settings.data).load().parts.values()
    return rows


def predicted(*words: str) -> list[dict[str, Any]]:
    return list(predict_script.predict(predict_script.parse(list(words))))


def refused(capsys: pytest.CaptureFixture[str], script: Any, *words: str) -> str:
    """The one line on stderr of a command that is refused."""
    assert script.main(list(words)) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.startswith("error: ") and out.err.count("\n") == 1, out
    return out.err


def write_jsonl(rows: Dataset, columns: list[str], path: Path) -> Path:
    lines = [json.dumps({name: row[name] for name in columns}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("merge", ["false", "true"])
def test_answers_to_the_evaluation_rows_give_the_recorded_score(
    merge: str, finished: dict[str, Path], tmp_path: Path
) -> None:
    for task in ("rte", "sst2"):
        entry, rows = json.loads(finished[task].read_text()), dev_rows(finished[task])
        spec = predictor(finished[task]).settings.task
        file = write_jsonl(rows, spec.text, tmp_path / f"{task}.jsonl")
        for rule in ("last", "best"):
            words = (f"record={finished[task]}", f"file={file}", f"rule={rule}", f"merge={merge}")
            answers = predicted(*words)
            right = [
                answer["label"] == spec.labels[label] for answer, label in zip(answers, rows["label"], strict=True)
            ]
            assert np.mean(right) == pytest.approx(entry["eval"][rule]["accuracy"])
            assert all(sum(a["probabilities"].values()) == pytest.approx(1) for a in answers)


def test_a_regression_answers_with_a_number(finished: dict[str, Path], tmp_path: Path) -> None:
    rows = dev_rows(finished["stsb"])
    file = write_jsonl(rows, ["sentence1", "sentence2"], tmp_path / "rows.jsonl")
    scores = [entry["score"] for entry in predicted(f"record={finished['stsb'].stem}", f"file={file}",
              f"results_dir={finished['stsb'].parents[4]}")]  # fmt: skip
    recorded = json.loads(finished["stsb"].read_text())["eval"]["last"]["pearson"]
    assert np.corrcoef(scores, rows["label"])[0, 1] == pytest.approx(recorded, abs=1e-6)


def test_every_format_gives_the_same_answers(finished: dict[str, Path], tmp_path: Path) -> None:
    rows = dev_rows(finished["rte"]).select(range(5))
    pairs = list(zip(rows["sentence1"], rows["sentence2"], strict=True))
    (tmp_path / "a.txt").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as stream:
            csv.writer(stream, delimiter=delimiter).writerows([["sentence1", "sentence2"], *pairs])
    write_jsonl(rows, ["sentence1", "sentence2"], tmp_path / "a.jsonl")
    Dataset.from_dict({"x": [a for a, _ in pairs], "y": [b for _, b in pairs]}).to_parquet(tmp_path / "a.parquet")
    chosen = predictor(finished["rte"]).classifier
    expected = list(answer(chosen, [list(pair) for pair in pairs]))
    for name in ("a.txt", "a.csv", "a.tsv", "a.jsonl"):
        assert predicted(f"record={finished['rte']}", f"file={tmp_path / name}") == expected, name
    named = (f"file={tmp_path / 'a.parquet'}", "column=x", "column2=y")
    assert predicted(f"record={finished['rte']}", *named) == expected
    (one,) = predicted(f"record={finished['rte']}", f"text={pairs[0][0]}", f"text2={pairs[0][1]}")
    assert one["label"] == expected[0]["label"]
    for label, share in one["probabilities"].items():  # alone it is padded otherwise
        assert share == pytest.approx(expected[0]["probabilities"][label], abs=1e-5)


def test_script_prints_and_writes_json_lines(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"record={finished['sst2']}", "text=a = b, a fine film"]
    assert predict_script.main(words) == 0
    shown = capsys.readouterr().out
    assert set(json.loads(shown)) == {"label", "probabilities"}
    assert predict_script.main([*words, f"out={tmp_path / 'x.jsonl'}"]) == 0
    assert (tmp_path / "x.jsonl").read_text() == shown and capsys.readouterr().out == ""


def test_one_clear_line_for_each_refusal_of_predict(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        return refused(capsys, predict_script, *words)

    rte, sst2 = f"record={finished['rte']}", f"record={finished['sst2']}"
    assert "type record=<key or path> or adapter=<folder>" in said("text=x")
    assert "type text=... or file=<name>" in said(sst2)
    assert "unknown argument 'txt'" in said(sst2, "txt=x")
    assert "add text2=" in said(rte, "text=x")
    assert "leave text2 out" in said(sst2, "text=x", "text2=y")
    assert "rule=last or rule=best" in said(sst2, "text=x", "rule=heldout")
    assert "there is no such file" in said(sst2, f"file={tmp_path}/none.csv")
    assert "must end in .txt" in said(sst2, f"file={tmp_path}")
    (tmp_path / "a.csv").write_text("review,stars\nfine,3\n")
    assert "has no column text; it has review, stars" in said(sst2, f"file={tmp_path}/a.csv", "column=text")
    assert "name its text with column=; it has review, stars" in said(sst2, f"file={tmp_path}/a.csv")
    assert "takes 2 texts: type column= and column2=" in said(rte, f"file={tmp_path}/a.csv", "column=review")
    (tmp_path / "a.txt").write_text("one\ttwo\nthree\n")
    assert "line 2: rte takes two texts, with one tab" in said(rte, f"file={tmp_path}/a.txt", f"out={tmp_path}/o")
    assert not (tmp_path / "o").exists()
    (tmp_path / "a.jsonl").write_text('{"sentence": 3}\n')
    assert "row 1: sentence is a int, not text" in said(sst2, f"file={tmp_path}/a.jsonl")
    (tmp_path / "a.jsonl").write_text("{\n")
    assert "line 1 is not JSON" in said(sst2, f"file={tmp_path}/a.jsonl")
    (tmp_path / "a.parquet").write_text("no parquet")
    assert "cannot be read" in said(sst2, f"file={tmp_path}/a.parquet")
    assert "no record of that key" in said("record=0123456789abcdef", f"results_dir={tmp_path}", "text=x")
    assert "there is no such file" in said(f"record={tmp_path}/x.json", "text=x")
    assert "no adapter to merge" in said(f"record={finished['stsb']}", "text=x", "text2=y", "merge=true")
    assert "no adapter_config.json; type the folder" in said(f"adapter={tmp_path}", "text=x")


def test_a_run_without_kept_weights_says_how_to_get_them(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = json.loads(finished["sst2"].read_text())
    entry["run"]["kept"] = None
    path = tmp_path / finished["sst2"].relative_to(finished["sst2"].parents[4])
    records.write_record(path, entry)
    assert "training.keep_weights=both" in refused(capsys, predict_script, f"record={path}", "text=x")
    records.write_record(path, entry | {"status": "diverged"})
    assert "its run diverged" in refused(capsys, predict_script, f"record={path}", "text=x")
    path.write_text(path.read_text().replace("diverged", "success"))
    assert "edited by hand or damaged" in refused(capsys, predict_script, f"record={path}", "text=x")


# ---------------------------------------------------------------- exports


@pytest.mark.parametrize("task", ["rte", "sst2"])
def test_exported_adapter_loads_with_peft_and_answers_alike(
    task: str, finished: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    assert export_script.main([f"record={finished[task]}", f"out={out}", "license=mit"]) == 0
    assert {file.name for file in out.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "record.json",
    }  # fmt: skip
    entry = json.loads(finished[task].read_text())
    base = MeanPoolingBert.from_pretrained(entry["run"]["config"]["backbone"]["id"], num_labels=2)
    found = PeftModel.from_pretrained(base, out).eval()
    spec, ours = predictor(finished[task]), predictor(finished[task]).classifier
    encoded = ours.encoded(dev_rows(finished[task]))
    expected = ours.logits(encoded)
    ours.model = found
    assert np.array_equal(ours.logits(encoded), expected)
    texts = [f"text={n}" if i == 0 else f"text2={n}" for i, n in enumerate(spec.settings.task.text)]
    assert predicted(f"adapter={out}", *texts) == predicted(f"record={finished[task]}", *texts)
    merged = predicted(f"adapter={out}", *texts, "merge=true")
    assert merged[0]["label"] == predicted(f"adapter={out}", *texts)[0]["label"]
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == entry["run"]["weights"]["id"]
    assert export_script.main([f"record={finished[task]}", f"out={out}", "rule=best"]) == 0  # replaced


@pytest.mark.parametrize("task", ["stsb", "cola", "rte"])
def test_a_whole_model_holds_any_method(task: str, finished: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert export_script.main([f"record={finished[task]}", f"out={out}", "whole=true"]) == 0
    ours = predictor(finished[task]).classifier
    encoded = ours.encoded(dev_rows(finished[task]))
    expected = ours.logits(encoded)
    ours.model = MeanPoolingBert.from_pretrained(out).eval()
    np.testing.assert_allclose(ours.logits(encoded), expected, atol=1e-5)
    labels = ours.settings.task.labels
    assert list(ours.model.config.id2label.values()) == (labels or ["score"])
    entry = json.loads((out / "record.json").read_text())
    assert entry["run"]["config"]["backbone"]["id"] == Path(ours.settings.backbone.id).name
    assert records.is_intact(entry) and str(Path(ours.settings.backbone.id).parent) not in json.dumps(entry)


def test_a_public_config_keeps_a_hub_name_and_no_folder(tmp_path: Path) -> None:
    def public(name: str) -> str:
        return str(records.public({"backbone": {"id": name}})["backbone"]["id"])

    assert public("FacebookAI/roberta-base") == "FacebookAI/roberta-base"
    assert public(str(tmp_path / "gone")) == "gone" and public("~/mine/model") == "model"


def test_a_quote_in_a_tsv_is_a_letter_and_a_row_of_another_width_is_named(tmp_path: Path) -> None:
    task = compose_settings("experiment=tiny", "task=rte").task
    file = tmp_path / "rows.tsv"
    file.write_text('sentence1\tsentence2\n"An open quote\tb\nc\td "e"\n\n')
    assert list(read_rows(file, task, Columns())) == [['"An open quote', "b"], ["c", 'd "e"']]
    file.write_text("sentence1\tsentence2\na\tb\nc\n")
    with pytest.raises(UserError, match="row 2 has 1 columns, and its header 2"):
        list(read_rows(file, task, Columns()))


def test_a_task_about_marked_words_wants_the_marks() -> None:
    wic, wsc = (compose_settings("experiment=tiny", f"task={name}").task for name in ("wic", "wsc"))
    assert typed("my mouth *waters*", "the *water* is cold", wic) == ["my mouth *waters*", "the *water* is cold"]
    assert typed("*The queen* met the boy before #he# left.", None, wsc)
    for task, texts in ((wic, ("my mouth *waters*", "the water")), (wsc, ("*The queen* met him.", None))):
        with pytest.raises(UserError, match=f"{task.name} asks about marked words, as in .*there are none in"):
            typed(*texts, task)


def test_an_adapter_of_ones_own_tuner_opens_with_its_module(backbone: tuple[str, ...], tmp_path: Path) -> None:
    """In a process that has not imported it: a rule's tuner that is IA3 under another name."""
    (tmp_path / "my_tuner.py").write_text(
        "from peft import IA3Config, IA3Model\n"
        "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as C, PEFT_TYPE_TO_PREFIX_MAPPING as P\n"
        "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as T\n"
        "class MyConfig(IA3Config):\n"
        "    def __post_init__(self):\n"
        "        super().__post_init__()\n"
        "        self.peft_type = 'MY_TUNER'\n"
        "C['MY_TUNER'], T['MY_TUNER'], P['MY_TUNER'] = MyConfig, IA3Model, 'ia3_'\n"
    )
    words = [*backbone, "experiment=tiny", "task=rte", "method=ia3", "method.module=my_tuner", "training.max_steps=1"]
    words += ["method.peft.peft_type=MY_TUNER", f"results_dir={tmp_path / 'results'}"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}

    def said(module: str, *words: str) -> str:
        command = [sys.executable, "-m", module, *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said("scripts.run", *words)
    (path,) = (tmp_path / "results" / "runs").rglob("*.json")
    said("scripts.export", f"record={path}", f"out={tmp_path / 'adapter'}")
    assert '"label"' in said("scripts.predict", f"adapter={tmp_path / 'adapter'}", "text=A.", "text2=B.")


def test_virtual_tokens_are_in_no_whole_model(
    backbone: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("experiment=tiny", *backbone, "task=rte", "method=prompt_tuning", "training.max_steps=1")
    settings = compose_settings(*words, f"results_dir={tmp_path}")
    entry, _ = run_cell(settings)
    said = refused(capsys, export_script, f"record={records.record_path(settings, entry['key'])}", "whole=true")
    assert "virtual tokens cannot be merged into a model; leave whole=true out" in said


def test_one_clear_line_for_each_refusal_of_export(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        return refused(capsys, export_script, *words)

    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    rte = f"record={finished['rte']}"
    assert "no peft method, it has no adapter: add whole=true" in said(f"record={finished['stsb']}")
    assert "does not hold its head" in said(f"record={finished['cola']}", f"out={tmp_path / 'cola'}")
    assert "exists and is no export of this run" in said(rte, f"out={taken}")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"] and len(list(taken.iterdir())) == 1
    assert "type record=<key or path>" in said()
    assert "whole=1: use true or false" in said(rte, "whole=1")
    assert "push needs license=" in said(rte, "push=me/it")
    assert "<user or organization>/<name>" in said(rte, "push=it", "license=mit")
    words = ("experiment=tiny", "task=sst2", "method=head", "training.max_steps=1", f"results_dir={tmp_path / 'r'}")
    settings = compose_settings(*words)
    entry, _ = run_cell(settings)
    assert "random weights" in said(f"record={records.record_path(settings, entry['key'])}", "whole=true")
    assert "a folder of yours, which nobody else has" in said(rte, "push=me/it", "license=mit")


def test_an_adapter_that_peft_saved_needs_backbone_and_task(
    finished: dict[str, Path], backbone: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor(finished["sst2"]).classifier.model.save_pretrained(tmp_path / "bare")
    bare = f"adapter={tmp_path / 'bare'}"
    assert "add backbone=<name> and task=<name>" in refused(capsys, predict_script, bare, "text=x")
    assert "unknown task 'sst': did you mean" in refused(
        capsys, predict_script, bare, "backbone=minilm", "task=sst", "text=x"
    )
    with pytest.MonkeyPatch.context() as patch:
        words = ["experiment=tiny", *backbone]
        found = open_adapter.__globals__["settings_of"]
        patch.setitem(open_adapter.__globals__, "settings_of", lambda given: found([*given, *words]))
        (one,) = predicted(bare, "backbone=minilm", "task=sst2", "text=x")
        (same,) = predicted(f"record={finished['sst2']}", "text=x")
        assert one["probabilities"] == pytest.approx(same["probabilities"], abs=0.02)  # its precision is not known
        assert "does not fit" in refused(
            capsys, predict_script, bare, "backbone=minilm", "task=mnli", "text=x", "text2=y"
        )


# ---------------------------------------------------------------- model cards


def test_card_is_written_from_the_record(finished: dict[str, Path]) -> None:
    entry = json.loads(finished["rte"].read_text())
    text = model_card(entry, "last", license="apache-2.0")
    _, head, body = text.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["license"] == "apache-2.0" and data["base_model"] == entry["run"]["weights"]["id"]
    assert {"propulsion", "rte", "glue"} <= set(data["tags"]) and "model-index" not in data
    assert "license" not in yaml.safe_load(model_card(entry, "last").split("---\n", 2)[1])
    for rule in ("last", "best", "heldout"):
        assert f"| {rule} | {100 * entry['eval'][rule]['accuracy']:.1f} |" in body
    env, run = entry["env"], entry["run"]
    data_of, counts = run["data"], entry["params"]
    facts = [f"torch {env['torch']}", f"peft {env['peft']}", env["device"], entry["key"], str(env["commit"])[:12]]
    facts += [f"{data_of['eval_rows']} evaluation rows", f"{data_of['train_rows']} training rows", "generated data"]
    facts += ["not the published dev split", "seed 0", f"{counts['adapter']:,} parameters"]
    for fact in facts:
        assert fact in body, fact
    assert "More Information Needed" not in text


def test_card_of_a_task_and_method_of_ones_own(finished: dict[str, Path]) -> None:
    entry = json.loads(finished["rte"].read_text())
    assert "language: en" in model_card(entry, "last")
    entry["run"]["suite"] = "mine"
    method, backbone = entry["run"]["config"]["method"], entry["run"]["config"]["backbone"]
    method |= {"module": "my_tuner", "peft": {"peft_type": "MY_TUNER", "num_virtual_tokens": 20}}
    entry["run"]["config"]["training"]["max_length"] = backbone["max_length"]
    text = model_card(entry, "last")
    assert "language" not in text and "\nimport my_tuner  # makes the method known to peft\n" in text
    assert f"max_length={backbone['max_length'] - 20}," in text
    method["module"] = "os; import sys"
    assert "import sys" not in model_card(entry, "last")


@pytest.mark.parametrize(("task", "whole"), [("rte", False), ("sst2", False), ("stsb", True), ("sst2", True)])
def test_the_code_of_a_card_gives_the_runs_answers(
    task: str, whole: bool, finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert export_script.main([f"record={finished[task]}", f"out={out}", f"whole={str(whole).lower()}"]) == 0
    ours = predictor(finished[task]).classifier
    monkeypatch.chdir(Path(ours.settings.backbone.id).parent)  # where the folder's name is a model's
    tokens = MarkdownIt("commonmark").parse((out / "README.md").read_text())
    (code,) = [token.content for token in tokens if token.type == "fence"]
    found: dict[str, Any] = {}
    exec(code.replace("<this folder>", str(out)), found)
    texts = ["A text.", "Another."][: len(ours.settings.task.text)]
    (said,) = answer(ours, [texts])
    expected = [said["score"]] if "score" in said else list(said["probabilities"].values())
    assert found["answer"][0].tolist() == pytest.approx(expected, abs=1e-5)


def test_card_shows_hostile_text_and_obeys_none_of_it(finished: dict[str, Path]) -> None:
    bad = "<script>alert(1)</script> [x](http://evil) | ![i](http://evil) `c`\n---\nlicense: stolen\n# Head"
    entry = copy.deepcopy(json.loads(finished["rte"].read_text()))
    for group, name in (("env", "device"), ("env", "torch"), ("run", "method"), ("run", "task"), ("run", "backbone")):
        entry[group][name] = bad
    entry["run"]["weights"] = {"id": f"```\n{bad}", "revision": '"); import os #', "sha256": bad}
    entry["run"]["config"]["backbone"]["note"] = bad
    entry["run"]["config"]["task"]["labels"] = [bad, "']; import os"]
    text = model_card(entry, "last", license=bad)
    data = yaml.safe_load(text.split("\n---\n", 1)[0].removeprefix("---\n"))
    assert all("\n" not in str(value) for value in data.values())
    body = text.split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    kinds = [token.type for token in tokens] + [child.type for token in tokens for child in token.children or []]
    assert not {"html_block", "html_inline", "link_open", "image"} & set(kinds)
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2", "h2", "h2"]
    (code,) = [token.content for token in tokens if token.type == "fence"]
    assert "import os" not in code and "alert" not in code
    compile(code, "card", "exec")


# ---------------------------------------------------------------- the hub


class FakeApi:
    """What was asked of the hub."""

    calls: list[tuple[str, dict[str, Any]]]
    fails: Exception | None = None

    def create_repo(self, name: str, **options: Any) -> str:
        if self.fails:
            raise self.fails
        FakeApi.calls.append((name, options))
        return f"https://hub.example/{name}"

    def upload_folder(self, **options: Any) -> None:
        FakeApi.calls.append(("upload", options))


def test_push_is_by_option_alone(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeApi.calls = []
    monkeypatch.setattr(export_module, "own_folder", lambda spec: None)
    monkeypatch.setattr(export_module.huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(export_module.huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(export_module.hub, "reachable", lambda: False)
    words = [f"record={finished['rte']}", f"out={tmp_path / 'a'}", "license=mit"]
    assert export_script.main(words) == 0
    assert FakeApi.calls == []
    capsys.readouterr()

    def told() -> str:
        assert export_script.main([*words, "push=me/it"]) == 2
        return capsys.readouterr().err

    assert "cannot be reached; the folder is" in told()
    monkeypatch.setattr(export_module.hub, "reachable", lambda: True)
    assert "no token; type `hf auth login`" in told()
    monkeypatch.setattr(export_module.huggingface_hub, "get_token", lambda: "secret")
    assert FakeApi.calls == []
    monkeypatch.setattr(FakeApi, "fails", OSError("no room"))
    assert "the hub refused (no room)" in told()
    monkeypatch.setattr(FakeApi, "fails", None)
    assert export_script.main([*words, "push=me/it"]) == 0
    assert FakeApi.calls[0] == ("me/it", {"private": True, "exist_ok": True})
    assert FakeApi.calls[1][1]["folder_path"] == str(tmp_path / "a")
    assert "pushed to https://hub.example/me/it" in capsys.readouterr().out
