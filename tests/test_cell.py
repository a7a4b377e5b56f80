"""A cell end to end on toy backbones: the record's fields, skipping, failing, going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from propulsion.harness import cell as cell_module
from propulsion.harness import record, trainer
from propulsion.harness.backbones import center_head, load_model
from propulsion.harness.cell import run_cell
from propulsion.harness.digests import start_digest
from propulsion.harness.errors import UserError
from propulsion.harness.kept import weights_path
from propulsion.harness.sources import open_source
from tests.conftest import ComposeCell, compose_settings, names

FIELDS: dict[str, set[str]] = {
    "": {"schema", "key", "status", "error", "run", "params", "eval", "cost", "env"},
    "run": {
        *("task", "task_version", "suite", "backbone", "method", "seed", "profile", "config", "config_hash"),
        *("created_at", "data", "weights"),
    },
    "params": {"adapter", "head", "trainable", "total"},
    "eval": {"primary", "best", "last", "heldout", "best_step", "history"},
    "cost": {
        *("train_seconds", "eval_seconds", "steps", "samples_per_second", "tokens_per_second"),
        *("padding_fraction", "peak_memory_bytes", "adapter_bytes"),
    },
    "env": {
        *("python", "torch", "transformers", "peft", "datasets", "commit", "dirty", "device", "device_count"),
        "precision",
    },
}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_record_has_the_fields_of_the_contract(tiny: ComposeCell) -> None:
    settings = tiny("task=mrpc", "method=propulsion", "training.keep_weights=none")
    entry, ran = run_cell(settings)
    (path,) = files(Path(settings.results_dir))
    assert ran
    assert path == record.record_path(settings, entry["key"])
    assert path.parts[-5:-1] == ("runs", "mrpc", "minilm", "propulsion")
    stored = json.loads(path.read_text())
    assert stored == json.loads(json.dumps(entry))
    for group, fields in FIELDS.items():
        assert fields <= set(stored[group] if group else stored), group
    assert set(stored["run"]["data"]) >= {"source", "fingerprint", "train_rows", "eval_rows", "official"}
    assert set(stored["run"]["weights"]) == {"id", "revision", "sha256"}
    assert stored["run"]["data"]["official"] is False
    assert (stored["run"]["data"]["train_rows"], stored["run"]["data"]["eval_rows"]) == (64, 32)
    for rule in ("best", "last", "heldout"):
        assert set(stored["eval"][rule]) == {"accuracy", "f1"}
    assert [point["step"] for point in stored["eval"]["history"]] == [2, 4]
    assert set(stored["eval"]["history"][0]) >= {"step", "epoch", "loss", "scores", "seconds"}
    assert stored["eval"]["last"] == stored["eval"]["history"][-1]["scores"]
    assert stored["cost"]["steps"] == 4
    assert stored["cost"]["train_seconds"] > 0
    assert 0 <= stored["cost"]["padding_fraction"] < 1
    assert stored["cost"]["adapter_bytes"] == 4 * stored["params"]["trainable"]


@pytest.mark.parametrize("task", names("task"))
def test_every_task_runs(tiny: ComposeCell, task: str) -> None:
    entry, _ = run_cell(tiny(f"task={task}", "training.max_steps=1"))
    assert entry["status"] == "success", entry["error"]
    assert entry["eval"]["primary"] in entry["eval"]["last"]


# All methods are tried on all families in test_methods.py; here those that need something of the runner.
THROUGH_THE_RUNNER = ("full", "bitfit", "lora", "ia3", "propulsion", "propulsion_paper", "adalora", "eva", "p_tuning")


@pytest.mark.parametrize("backbone", ["minilm", "roberta_base", "deberta_v3_base", "llama_7b"])
@pytest.mark.parametrize("method", THROUGH_THE_RUNNER)
def test_methods_run_on_every_family(tiny: ComposeCell, backbone: str, method: str) -> None:
    if (method, backbone) == ("bitfit", "llama_7b"):
        pytest.skip("refused: LLaMA has no biases; see test_bad_input")
    entry, _ = run_cell(tiny(f"backbone={backbone}", f"method={method}", "training.max_steps=1"))
    assert entry["status"] == "success", entry["error"]


def test_the_same_cell_twice_gives_the_same_scores_and_another_seed_does_not(tiny: ComposeCell, tmp_path: Path) -> None:
    def scores(seed: int, folder: str) -> list[dict[str, Any]]:
        entry, ran = run_cell(tiny(f"seed={seed}", f"results_dir={tmp_path / folder}"))
        assert ran
        return [{key: point[key] for key in ("step", "loss", "scores")} for point in entry["eval"]["history"]]

    assert scores(0, "a") == scores(0, "b")
    assert scores(0, "a2") != scores(1, "c")


def test_a_finished_cell_is_skipped_before_a_model_is_loaded(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run_cell(tiny())
    for name in ("build_empty", "build_model"):
        monkeypatch.setattr(cell_module, name, lambda *_: pytest.fail("a finished cell loaded a model"))
    again, ran = run_cell(tiny())
    assert not ran
    assert again == json.loads(json.dumps(first))


def test_a_crash_is_recorded_as_failed_and_the_cell_runs_again(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device fell off")

    monkeypatch.setattr(cell_module, "train", explode)
    entry, _ = run_cell(tiny())
    assert entry["status"] == "failed"
    assert entry["error"]["type"] == "RuntimeError"
    assert entry["error"]["message"] == "the device fell off"
    assert "in explode" in entry["error"]["where"]
    assert entry["eval"]["last"] is None
    monkeypatch.undo()
    entry, ran = run_cell(tiny())
    assert ran
    assert entry["status"] == "success"


def test_a_failure_of_a_cell_that_is_run_again_for_its_weights_leaves_its_record(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done, _ = run_cell(tiny("training.keep_weights=none"))
    monkeypatch.setattr(cell_module, "train", lambda *_, **__: 1 / 0)
    again = tiny("training.keep_weights=both")
    entry, ran = run_cell(again)
    assert ran and entry["status"] == "failed" and entry["key"] == done["key"]
    kept = record.read_record(record.record_path(again, done["key"]))
    assert kept is not None and kept["status"] == "success" and kept["eval"] == json.loads(json.dumps(done["eval"]))
    assert "failed when it was run again; the record of its success stays" in capsys.readouterr().err
    monkeypatch.undo()
    entry, ran = run_cell(again)
    assert ran and set(entry["run"]["kept"]) == {"last", "best"}


def test_a_split_without_two_halves_is_refused(tiny: ComposeCell) -> None:
    with pytest.raises(UserError, match=r"a split of one row has no halves.*raise training\.max_eval_rows"):
        run_cell(tiny("task=rte", "training.max_eval_rows=1"))
    with pytest.raises(UserError, match="a split of one question has no halves"):
        run_cell(tiny("task=copa", "training.max_eval_rows=2"))


@pytest.mark.parametrize("broken_checkpoint", [False, True])
def test_an_interrupted_run_goes_on_from_its_checkpoint_and_ends_the_same(
    tiny: ComposeCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_checkpoint: bool
) -> None:
    """64 rows in batches of 8: the interruption falls into the second of two and a half epochs."""
    options = ("method=propulsion", "training.max_steps=20", "training.evaluations=4", "training.checkpoint_seconds=0")
    undisturbed, _ = run_cell(tiny(*options, f"results_dir={tmp_path / 'undisturbed'}"))
    step = trainer.CellTrainer.training_step

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 11:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer.CellTrainer, "training_step", interrupted)
    settings = tiny(*options)
    with pytest.raises(KeyboardInterrupt):
        run_cell(settings)
    assert not Path(settings.results_dir, "runs").exists()
    (checkpoint,) = Path(settings.results_dir, "checkpoints").glob("*/checkpoint-11")
    if broken_checkpoint:  # as a kill in the middle of its write leaves it; the run then starts anew
        (checkpoint / "trainer_state.json").unlink()
    monkeypatch.undo()
    resumed, _ = run_cell(settings)
    assert resumed["status"] == "success"

    def measured(entry: dict[str, Any]) -> list[Any]:
        return [(point["step"], point["loss"], point["scores"]) for point in entry["eval"]["history"]]

    assert measured(resumed) == measured(undisturbed)
    assert resumed["eval"]["heldout"] == undisturbed["eval"]["heldout"]
    assert resumed["cost"]["padding_fraction"] == undisturbed["cost"]["padding_fraction"]
    seconds = [point["seconds"] for point in resumed["eval"]["history"]]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] <= resumed["cost"]["train_seconds"] < 60
    assert not Path(settings.results_dir, "checkpoints", resumed["key"]).exists()


def test_the_key_follows_what_changes_a_score_and_nothing_else(tiny: ComposeCell, tmp_path: Path) -> None:
    def key(*overrides: str) -> str:
        settings = tiny(*overrides)
        return record.cell_key(settings.config, open_source(settings.task, settings.data).fingerprint())

    base = key()
    assert key(f"results_dir={tmp_path}", "profile=other", "tracking=wandb", "training.checkpoint_seconds=1") == base
    changed = ["seed=1", "task=cola", "method=lora", "method.degree=5", "training.learning_rate=0.5"]
    changed += ["data.train_rows=65", "data.seed=1", "task.version=99", "training.max_eval_rows=7"]
    keys = [key(override) for override in changed]
    assert base not in keys
    assert len(set(keys)) == len(keys)


def test_subsets_are_the_same_rows_for_every_seed_and_method_and_never_official(tiny: ComposeCell) -> None:
    def data(*overrides: str) -> dict[str, Any]:
        entry, _ = run_cell(tiny("training.max_train_rows=16", "training.max_eval_rows=8", *overrides))
        return entry["run"]["data"]

    first = data("seed=0", "method=head")
    assert (first["train_rows"], first["eval_rows"], first["official"]) == (16, 8, False)
    assert data("seed=1", "method=lora") == first


def test_rows_held_out_of_training_take_the_place_of_the_reporting_rows(tiny: ComposeCell) -> None:
    entry, _ = run_cell(tiny("data.holdout_rows=24"))
    assert (entry["run"]["data"]["train_rows"], entry["run"]["data"]["eval_rows"]) == (40, 24)


def test_records_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs" / "abc.json"
    record.write_record(path, {"key": "abc", "status": "success"})
    monkeypatch.setattr(record.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        record.write_record(path, {"key": "abc", "status": "failed"})
    assert record.read_record(path) == record.sealed({"key": "abc", "status": "success"})
    assert files(tmp_path) == [path]


@pytest.mark.parametrize("text", ["", "{", '{"key": "abc"', "[]", '{"key": "other"}'])
def test_a_broken_record_is_never_read_as_a_result(tmp_path: Path, text: str) -> None:
    path = tmp_path / "abc.json"
    path.write_text(text)
    assert record.read_record(path) is None


def test_bad_input_leaves_nothing_behind(tiny: ComposeCell) -> None:
    settings = tiny("method.peft.target_modules=[nowhere]")
    with pytest.raises(UserError):
        run_cell(settings)
    assert not Path(settings.results_dir).exists()


def test_a_run_can_start_from_the_trained_tensors_of_another(tiny: ComposeCell, tmp_path: Path) -> None:
    first = tiny("task=mnli", "method=propulsion", "training.keep_weights=true")
    entry, _ = run_cell(first)
    kept = weights_path(first.results_dir, entry["key"])
    start = ("task=rte", "method=propulsion", f"training.start_from={kept}", "training.learning_rate=0.0")
    started, _ = run_cell(tiny(*start, "training.keep_weights=true", f"results_dir={tmp_path / 'started'}"))
    assert started["run"]["start"] == {"sha256": start_digest(str(kept))}
    before = load_file(kept)
    after = load_file(weights_path(str(tmp_path / "started"), started["key"]))
    vectors = [name for name in before if "propulsion_z" in name]
    assert vectors and all(torch.equal(before[name], after[name]) for name in vectors)  # rate 0: as they started
    assert any(not torch.equal(before[name], torch.ones_like(before[name])) for name in vectors)
    heads = [name for name in before if name not in vectors]
    assert all(before[name].shape != after[name].shape for name in heads)  # three labels there, two here
    fresh, _ = run_cell(tiny("task=rte", "method=propulsion", "training.learning_rate=0.0"))
    assert fresh["key"] != started["key"]


def test_a_start_that_does_not_fit_is_refused(tiny: ComposeCell, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        run_cell(tiny("training.start_from=nowhere.safetensors"))
    first = tiny("method=lora", "training.keep_weights=true")
    entry, _ = run_cell(first)
    kept = weights_path(first.results_dir, entry["key"])
    with pytest.raises(UserError, match="start from a run of the same method and backbone"):
        run_cell(tiny("method=propulsion", f"training.start_from={kept}"))


@pytest.mark.parametrize("backbone", ["minilm", "roberta_base", "deberta_v3_base", "llama_7b"])
def test_dropout_is_one_key_for_every_family(backbone: str) -> None:
    settings = compose_settings("experiment=tiny", f"backbone={backbone}")
    model, _ = load_model(settings.backbone, settings.task, 1, dropout=0.0)
    model.train()
    ids = torch.arange(4, 20).reshape(2, 8)
    first, second = (model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for _ in range(2))
    assert torch.equal(first, second)


def test_a_setting_that_is_new_and_at_its_default_leaves_old_keys_alone(tiny: ComposeCell) -> None:
    config = tiny().config
    older = {**config, "training": {k: v for k, v in config["training"].items() if k != "dropout"}}
    assert record.cell_key(older, "rows") == record.cell_key(config, "rows")
    changed = {**config, "training": {**config["training"], "dropout": 0.0}}
    assert record.cell_key(changed, "rows") != record.cell_key(config, "rows")


@pytest.mark.parametrize("backbone", ["minilm", "roberta_base", "deberta_v3_base"])
def test_a_centred_regression_head_starts_at_the_mean_of_the_labels(backbone: str) -> None:
    settings = compose_settings("experiment=tiny", "task=stsb", f"backbone={backbone}")
    model, _ = load_model(settings.backbone, settings.task, 1, dropout=0.0)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model.eval()(input_ids=ids).logits
        center_head(model, settings.backbone, 2.5)
        assert torch.allclose(model(input_ids=ids).logits, before + 2.5)


def test_a_head_without_a_bias_cannot_be_centred(tiny: ComposeCell) -> None:
    with pytest.raises(UserError, match="the head of llama_7b has no bias"):
        run_cell(tiny("task=stsb", "backbone=llama_7b", "training.center_regression=true"))
    run_cell(tiny("task=rte", "backbone=llama_7b", "training.center_regression=true"))  # not a regression
