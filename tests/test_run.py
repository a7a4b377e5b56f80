"""The command line: bad input is one clear line and exit code 2 with nothing written; sweeps go on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from baselines import apply_method
from propulsion.harness import cell as cell_module
from propulsion.harness.backbones import load_model, load_tokenizer
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import ended
from propulsion.harness.progress import count_cells, duration
from propulsion.harness.record import PARALLEL_CELLS
from propulsion.harness.sweeps import TOTAL
from scripts import run
from tests.conftest import ROOT, ComposeCell, compose_settings, names


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `python -m scripts.run <words>` in this process; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty-cache"))
    for name in (TOTAL, PARALLEL_CELLS):  # what a sweep leaves in the environment ends with the test
        monkeypatch.setenv(name, "0" if name == TOTAL else "1")

    def call(*words: str) -> int:
        monkeypatch.setattr(run, "_exit_codes", [])
        monkeypatch.setattr(sys, "argv", ["scripts.run", *words])
        return run.main()

    return call


TINY = ("experiment=tiny", "results_dir=out")

BAD = {
    "unknown task": (["task=rtee"], "unknown task 'rtee': did you mean rte"),
    "unknown backbone": (
        ["backbone=roberta_bas"],
        "unknown backbone 'roberta_bas': did you mean roberta_base",
    ),
    "unknown method": (["method=propulsio"], "unknown method 'propulsio': did you mean propulsion"),
    "unknown experiment": (["experiment=minni"], "unknown experiment 'minni': did you mean mini"),
    "unknown key": (["training.learning_rat=1"], "learning_rat"),
    "wrong type": (["training.epochs=many"], "epochs"),
    "unknown choice": (
        ["training.schedule=cosin"],
        "training.schedule=cosin: use linear | cosine | constant",
    ),
    "broken override": (["task="], "task"),
    "batch of nothing": (["training.batch_size=0"], "training.batch_size=0: must be 1 or more"),
    **{
        f"{word}, which makes no sense": ([f"training.{word}"], f"training.{word}: must be {allowed}")
        for word, allowed in {
            "learning_rate=-1.0": "a finite number, 0 or more",
            "learning_rate=nan": "a finite number, 0 or more",
            "head_learning_rate=inf": "a finite number, 0 or more, or null",
            "weight_decay=-0.1": "a finite number, 0 or more",
            "max_grad_norm=-1.0": "a finite number, 0 or more",
            "warmup_ratio=7.0": "0 or more and below 1; for a number of steps, use training.warmup_steps",
            "warmup_steps=-3": "0 or more, or null for the ratio",
            "dropout=1.0": "0 or more and below 1, or null",
            "max_steps=0": "1 or more, or -1 for training.epochs",
            "eval_steps=0": "1 or more, or null",
            "checkpoint_seconds=-1.0": "a finite number, 0 or more",
        }.items()
    },
    "no epochs": (
        ["training.max_steps=-1", "training.epochs=-2"],
        "training.epochs=-2.0: must be a finite number above 0",
    ),
    "a seed below 0": (["seed=-1"], "seed=-1: must be 0 or more and below 2**32"),
    "local data without a folder": (["data=local"], "data.dir"),
    "local data that is not there": (["data=local", "data.dir=nowhere"], "nowhere"),
    "targets that match nothing": (["method.peft.target_modules=[nowhere]"], "nowhere"),
    "BitFit without biases": (["backbone=llama_7b", "method=bitfit"], "llama_7b has no biases to train"),
    "a results folder that is a file": (["results_dir=file/results"], "results_dir=<a folder that can>"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    case: str, command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = BAD[case]
    (tmp_path / "file").write_text("")
    assert command(*TINY, *words) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in printed.out + printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_backbone_file_with_another_digest_is_refused(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "fake_weights"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.safetensors").write_bytes(b"not the weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["backbone.weights=pretrained", "backbone.package=fake_weights", "backbone.package_folder=''"]
    assert command(*TINY, *words) == 2
    error = capsys.readouterr().err
    assert "has sha256 " in error and "its YAML file says 53aa51172d14" in error
    assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_is_one_line(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["backbone=roberta_base", "data=generated", "tracking=off", "results_dir=out"]
    assert command(*words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("error: backbone roberta_base: cannot load FacebookAI/roberta-base")
    assert not Path("out").exists()


def test_a_sweep_goes_on_after_a_failed_cell_and_ends_with_1(
    command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = cell_module.train

    def fails_on_rte(model: Any, parts: Any, tokenizer: Any, rows: Any, scored: Any, settings: Any, *a: Any, **k: Any):
        if settings.task.name == "rte":
            raise RuntimeError("out of luck")
        return train(model, parts, tokenizer, rows, scored, settings, *a, **k)

    monkeypatch.setattr(cell_module, "train", fails_on_rte)
    assert command("-m", *TINY, "task=rte,cola", "seed=0,1") == 1
    out = capsys.readouterr().out.splitlines()
    assert len([line for line in out if line.startswith("[")]) == 4
    assert out[4] == "sweep of 4 cells: 2 done, 2 failed"
    assert out[5] == "failed: rte/minilm/propulsion seed 0 (RuntimeError: out of luck)"
    assert out[6] == "  again: python -m scripts.run experiment=tiny results_dir=out task=rte seed=0"
    assert not list(Path("out").glob(".sweep-*"))
    assert out[0].startswith("[1/4] rte/minilm/propulsion seed 0: failed (RuntimeError: out of luck)")
    assert out[3].startswith("[4/4] cola/minilm/propulsion seed 1: matthews_correlation ")
    records = [json.loads(path.read_text()) for path in Path("out").rglob("*.json")]
    assert sorted((r["run"]["task"], r["status"]) for r in records) == [
        *[("cola", "success")] * 2,
        *[("rte", "failed")] * 2,
    ]
    monkeypatch.undo()


@pytest.mark.parametrize("pack", ["off", "2"])
def test_a_cell_whose_model_cannot_be_built_is_recorded_as_failed_and_the_next_one_runs(
    pack: str, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("backbone.architecture.num_attention_heads=5,2", "training.fast_path=auto", f"sweep.pack={pack}")
    assert command("-m", *TINY, *words) == 1
    assert "sweep of 2 cells: 1 done, 1 failed" in capsys.readouterr().out
    records = [json.loads(path.read_text()) for path in Path("out").rglob("*.json")]
    assert sorted(entry["status"] for entry in records) == ["failed", "success"]


def test_an_error_outside_what_a_record_can_tell_is_one_line_and_the_sweep_goes_on(
    command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of = cell_module.rows_of

    def stale(source: Any, settings: Any) -> Any:
        if settings.seed == 0:
            raise OSError(116, "Stale file handle")
        return rows_of(source, settings)

    monkeypatch.setattr(cell_module, "rows_of", stale)
    assert command("-m", *TINY, "seed=0,1") == 1
    printed = capsys.readouterr()
    (said,) = [line for line in printed.err.splitlines() if "seed 0" in line]
    assert "failed without a record (OSError: [Errno 116] Stale file handle; test_run.py:" in said
    assert "sweep of 2 cells: 1 done, 1 failed" in printed.out and "  again: " in printed.out


def test_a_refused_first_cell_does_not_keep_a_sweep_from_its_end(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    assert command("-m", *TINY, "training.learning_rate=-1,1e-3") == 2
    printed = capsys.readouterr()
    assert "sweep of 2 cells: 1 done, 1 refused" in printed.out and printed.err.count("error: ") == 1
    assert not list(Path("out").glob(".sweep-*"))


def test_a_sweep_typed_again_skips_what_is_done(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("-m", *TINY, "task=rte", "seed=0,1") == 0
    capsys.readouterr()
    assert command("-m", *TINY, "task=rte", "seed=0,1,2") == 0
    out = capsys.readouterr().out.splitlines()
    assert [("skipped" in line) for line in out] == [True, True, False, False]
    assert out[3] == "sweep of 3 cells: 1 done, 2 done before"
    assert len(list(Path("out").rglob("*.json"))) == 3


def test_a_sweep_of_done_cells_imports_no_library_of_models(tmp_path: Path, tiny: ComposeCell) -> None:
    run_cell(tiny())
    words = ["-m", "experiment=tiny", f"results_dir={tiny().results_dir}", "seed=0"]
    script = (
        f"import sys; sys.argv = {['scripts.run', *words]!r}\n"
        "from scripts import run; assert run.main() == 0\n"
        "print(*sorted({'torch', 'transformers', 'peft', 'datasets', 'accelerate', 'pandas'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    skipped, summary, imported = ended.stdout.split("\n")[:3]
    assert skipped.endswith("done before, skipped") and summary == "sweep of 1 cells: 1 done before"
    assert imported == ""
    assert len(list(Path(tiny().results_dir).rglob("*.json"))) == 1


@pytest.mark.parametrize(
    "order", ["import propulsion, peft", "import peft, propulsion", "import propulsion.harness.leases, peft"]
)
def test_the_tuner_is_known_to_peft_in_whichever_order_they_are_imported(order: str) -> None:
    script = f"{order}; from peft import mapping; print(mapping.PEFT_TYPE_TO_CONFIG_MAPPING['PROPULSION'].__name__)"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "PropulsionConfig"


def test_one_bad_cell_of_a_sweep_is_named_and_the_others_run(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("-m", *TINY, "backbone=llama_7b", "method=bitfit,lora", "training.max_steps=1") == 2
    printed = capsys.readouterr()
    assert "llama_7b has no biases" in printed.err
    assert "rte/llama_7b/lora seed 0: accuracy" in printed.out


@pytest.mark.parametrize(
    ("overrides", "cells"),
    [
        (["task=rte"], 1),
        (["task=rte,mrpc", "seed=range(5)"], 10),
        (["task=choice(rte,mrpc,cola)", "training.learning_rate=1e-3,1e-4", "experiment=tiny"], 6),
    ],
)
def test_cells_of_a_sweep_are_counted_before_it_starts(overrides: list[str], cells: int) -> None:
    assert count_cells(overrides) == cells


def test_durations_read_well() -> None:
    assert [duration(s) for s in (0.4, 42, 89.4, 540, 11_100)] == [
        "0 s",
        "42 s",
        "89 s",
        "9 min",
        "3 h 05 min",
    ]


@pytest.mark.parametrize(
    "option", [f"{g}={n}" for g in ("experiment", "backbone", "data", "tracking") for n in names(g)]
)
def test_every_file_of_these_groups_composes(option: str) -> None:
    group, _, name = option.partition("=")
    settings = compose_settings(option)
    if group != "experiment":
        assert getattr(settings, group).name == name if group != "data" else settings.data.source == name


@pytest.mark.parametrize("backbone", names("backbone"))
def test_every_backbone_can_be_shrunk_to_a_toy_and_built(backbone: str) -> None:
    settings = compose_settings("experiment=tiny", f"backbone={backbone}", "method=propulsion")
    tokenizer = load_tokenizer(settings.backbone)
    model, weights = load_model(settings.backbone, settings.task, tokenizer.pad_token_id)
    assert weights.id == "random"
    assert sum(p.numel() for p in model.parameters()) < 200_000
    tuned = apply_method(model, settings.method, settings.backbone)
    batch = tokenizer([["a row", "of text"], ["another", "one of them"]], padding=True, return_tensors="pt")
    assert tuned(**batch).logits.shape == (2, 2)


def test_ctrl_c_at_any_command_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: list[str]) -> int:
        assert arguments == ["results_dir=x"]
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["scripts.tables", "results_dir=x"])
    assert ended(interrupted) == 130
    assert capsys.readouterr().err == "interrupted: type the same command again\n"
    assert ended(len) == 1
