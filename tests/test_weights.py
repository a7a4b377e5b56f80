"""The kept weights of a run: they are those of the recorded evaluation, also after a kill, and prove it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from propulsion.harness import trainer, training
from propulsion.harness.assembly import build_model
from propulsion.harness.cell import run_cell
from propulsion.harness.digests import file_digest
from propulsion.harness.encode import encode, evaluation_rows
from propulsion.harness.errors import UserError
from propulsion.harness.evaluation import Scorer
from propulsion.harness.keeping import kept_names
from propulsion.harness.kept import AUTO_BYTES, rules_kept, weights_path
from propulsion.harness.settings import Settings
from propulsion.harness.sources import open_source
from propulsion.harness.weights import load_trained
from tests.conftest import ComposeCell

MANY = ("training.max_steps=16", "training.evaluations=8", "training.learning_rate=0.05", "method=propulsion")


def scores_of(settings: Settings, path: Path) -> dict[str, float]:
    """Scores on the evaluation rows of the loaded weights, row by row without padding."""
    tokenizer, model, parts, _ = build_model(settings)
    load_trained(model, path, kept_names(settings, model, parts))
    model.eval()
    data = open_source(settings.task, settings.data).load()
    rows = evaluation_rows({suffix: encode(part, tokenizer, settings.task, 64) for suffix, part in data.parts.items()})
    logits = []
    for row in rows.rows:
        inputs = {k: torch.tensor([row[k]]) for k in ("input_ids", "attention_mask", "token_type_ids") if k in row}
        with torch.no_grad():
            logits.append(model(**inputs).logits[0])
    output: Any = type("Output", (), {"predictions": torch.stack(logits).numpy(), "label_ids": rows.rows["labels"]})
    flat = Scorer(settings.task, rows)(output)
    return {name.removeprefix("all/"): value for name, value in flat.items() if name.startswith("all/")}


@pytest.mark.parametrize("method", ["head", "lora", "propulsion", "propulsion_paper", "bitfit", "full"])
def test_the_kept_weights_give_the_recorded_scores(tiny: ComposeCell, method: str) -> None:
    settings = tiny(*MANY, f"method={method}", "task=sst2", "training.keep_weights=both")
    entry, _ = run_cell(settings)
    kept = entry["run"]["kept"]
    assert (kept["last"]["step"], kept["best"]["step"]) == (16, entry["eval"]["best_step"])
    for rule in ("last", "best"):
        path = weights_path(settings.results_dir, entry["key"], rule)
        assert (kept[rule]["sha256"], kept[rule]["bytes"]) == (file_digest(path), path.stat().st_size)
        assert scores_of(settings, path) == pytest.approx(entry["eval"][rule], abs=1e-6)


def test_the_best_weights_are_those_of_the_best_step_and_not_the_last(tiny: ComposeCell) -> None:
    settings = tiny(*MANY, "task=sst2", "training.best_by=loss")
    entry, _ = run_cell(settings)
    history = entry["eval"]["history"]
    best = min(history, key=lambda point: point["loss"])
    assert best["step"] == entry["run"]["kept"]["best"]["step"]
    short = tiny(*MANY, "task=sst2", "training.best_by=loss", f"results_dir={settings.results_dir}-other")
    step = trainer.CellTrainer.training_step
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def spy(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:  # the state before each step
        seen[self.state.global_step] = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        return step(self, model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.CellTrainer, "training_step", spy)
        again, _ = run_cell(short)
    stored = load_file(weights_path(short.results_dir, again["key"], "best"))
    expected = seen.get(best["step"]) or load_file(weights_path(short.results_dir, again["key"], "last"))
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    assert again["run"]["kept"]["best"]["sha256"] == entry["run"]["kept"]["best"]["sha256"]


@pytest.mark.parametrize("killed_at", [3, 9, 15])
def test_a_killed_and_resumed_run_keeps_the_same_weights(
    tiny: ComposeCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Checkpoints at every third step only, so that evaluations after the last one are done twice."""
    options = (*MANY, "task=sst2", "training.checkpoint_seconds=1e9")
    undisturbed, _ = run_cell(tiny(*options, f"results_dir={tmp_path / 'undisturbed'}"))
    settings, step = tiny(*options), trainer.CellTrainer.training_step

    def sometimes(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step % 3 == 0

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == killed_at + 1 and not kills:
            kills.append(1)
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    kills: list[int] = []
    monkeypatch.setattr(training.Watch, "on_step_end", sometimes)
    monkeypatch.setattr(trainer.CellTrainer, "training_step", killed)
    if killed_at < 15:
        with pytest.raises(KeyboardInterrupt):
            run_cell(settings)
        assert not weights_path(settings.results_dir, undisturbed["key"], "best").exists()
    else:  # killed after the training, before the record: all of it is there and nothing counts yet
        with monkeypatch.context() as patch:
            patch.setattr("propulsion.harness.cell.keep_weights", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run_cell(settings)
    resumed, _ = run_cell(settings)
    digests = [{rule: kept["sha256"] for rule, kept in e["run"]["kept"].items()} for e in (resumed, undisturbed)]
    assert digests[0] == digests[1]
    assert not Path(settings.results_dir, "checkpoints", resumed["key"]).exists()


def test_what_is_kept_by_each_word(tiny: ComposeCell, tmp_path: Path) -> None:
    sizes = {"none": (), "last": ("last",), "best": ("best",), "both": ("last", "best"), "auto": ("last", "best")}
    words = {**sizes, "true": ("last",), "false": ()}
    keys = set()
    for word, kept in words.items():
        settings = tiny(f"training.keep_weights={word}", f"results_dir={tmp_path / word}")
        entry, _ = run_cell(settings)
        keys.add(entry["key"])
        assert tuple(entry["run"]["kept"] or ()) == kept, word
        assert {p.stem for p in tmp_path.glob(f"{word}/weights/*/*")} == set(kept), word
    assert len(keys) == 1  # it decides no score
    assert rules_kept("auto", AUTO_BYTES) == ("last", "best")
    assert rules_kept("auto", AUTO_BYTES + 1) == ()
    with pytest.raises(UserError, match=r"training.keep_weights=all: use auto \| none \| last \| best \| both"):
        tiny("training.keep_weights=all")


def test_weights_asked_for_later_run_the_cell_again_and_auto_does_not(tiny: ComposeCell) -> None:
    first, _ = run_cell(tiny("training.keep_weights=none"))
    assert run_cell(tiny())[1] is False  # auto: an older record is done as it is
    again, ran = run_cell(tiny("training.keep_weights=both"))
    assert ran and set(again["run"]["kept"]) == {"last", "best"} and again["key"] == first["key"]
    assert run_cell(tiny("training.keep_weights=both"))[1] is False
    weights_path(tiny().results_dir, again["key"], "best").unlink()
    assert run_cell(tiny("training.keep_weights=last"))[1] is False
    assert run_cell(tiny("training.keep_weights=best"))[1] is True


def test_a_file_that_does_not_fit_is_refused(tiny: ComposeCell, tmp_path: Path) -> None:
    settings = tiny("method=lora", "training.keep_weights=last")
    entry, _ = run_cell(settings)
    path = weights_path(settings.results_dir, entry["key"])
    other = tiny("method=propulsion")
    _, model, parts, _ = build_model(other)
    with pytest.raises(UserError, match="does not fit the model of its record"):
        load_trained(model, path, kept_names(other, model, parts))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        load_trained(model, broken, [])
