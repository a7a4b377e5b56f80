"""`make gpu-report`, end to end at toy size on a CPU, and on a GPU where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from propulsion.harness import gpu_report
from scripts.gpu_report import grid, main, parse
from tests.conftest import DEVICES

WAYS = ("compiled", "fused", "fused-groups", "lean")  # beside plain modules


def test_without_a_gpu_it_says_in_one_line_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main([f"out={tmp_path / 'out'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no CUDA GPU here: make gpu-report measures RoBERTa-large and a LLaMA-7B shape")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shape=small"], "shape=small: use paper | tiny"),
        (["sise=tiny"], "unknown option 'sise=tiny': did you mean shape=?"),
        (["rounds=1", "device=cpu"], "rounds=1: must be 2 or more"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {message.split(':')[0]}")


def test_the_grid_is_that_of_the_issue() -> None:
    found = grid(parse(["device=cpu"]))
    names = {step.name for step in gpu_report.steps(found)}
    wanted = {f"roberta_large-{m}-{n}" for m in ("full", "lora", "ia3", "bitfit", "propulsion") for n in (64, 128, 512)}
    wanted |= {f"llama_7b-{m}-{n}" for m in ("lora", "ia3", "bitfit", "propulsion") for n in (64, 128, 512)}
    assert wanted <= names
    ours = {f"{b}-propulsion-{w}-{n}" for b in ("roberta_large", "llama_7b") for w in WAYS for n in (64, 128, 512)}
    assert names - wanted == ours
    assert {cell.backbone.weights for cell in found.cells} == {"random"}
    assert {cell.backbone.architecture["hidden_size"] for cell in found.cells} == {1024, 4096}


@pytest.mark.parametrize("device", DEVICES)
def test_every_measurement_is_made_once_and_goes_on_after_a_stop(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["shape=tiny", f"device={device}", "part=speed", "rounds=2", f"out={tmp_path}"]
    measure, done = gpu_report.measure, []

    def stopped(step: gpu_report.Step, *rest: object) -> object:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(step.name)
        return measure(step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu_report, "measure", stopped)
    assert main(words) == 130
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith("-tiny")  # a try beside a real report leaves it alone
    assert sorted(path.stem for path in (folder / "speed").glob("*.json")) == sorted(done)
    monkeypatch.undo()
    capsys.readouterr()
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith("there already")] == [f"{name}: there already" for name in done]
    facts = {path.stem: json.loads(path.read_text()) for path in (folder / "speed").glob("*.json")}
    assert facts.keys() == {step.name for step in gpu_report.steps(grid(parse(words)))}
    for name, fact in facts.items():
        if name.startswith("llama_7b-bitfit"):
            assert fact["status"] == "refused" and "has no biases to train" in fact["reason"]
        elif fact["status"] == "refused":
            assert (fact["way"] in ("compiled", "fused-groups") and fact["reason"] == "measured on CUDA alone") or (
                name.startswith("llama_7b") and "encoders" in fact["reason"]
            )
        else:
            assert fact["status"] == "success", fact
            assert fact["tokens_per_second"] == pytest.approx(16 / fact["seconds"])
            assert 0 < fact["seconds_low"] <= fact["seconds"] <= fact["seconds_high"]
    text = (folder / "speed.md").read_text()
    assert text.count("| roberta_large | 8 × 2 |") == 9 and "LLaMA" not in text.splitlines()[0]


def test_a_machine_without_a_compiler_goes_on_with_the_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no compiler found\nand more")

    monkeypatch.setattr(gpu_report, "_measure", fails)
    found = grid(parse(["shape=tiny", "device=cpu", "rounds=2"]))
    ways = {step.way: step for step in gpu_report.steps(found)}
    fact = gpu_report.measure(ways["compiled"], found, "cpu")
    assert (fact["status"], fact["reason"]) == ("refused", "RuntimeError: no compiler found")
    with pytest.raises(RuntimeError, match="no compiler found"):
        gpu_report.measure(ways["fused"], found, "cpu")


def test_operations_of_a_step_are_counted_as_by_hand() -> None:
    """Two operations a weight and token: forward and input gradient of frozen linears, the weight's too of the head."""
    found = grid(parse(["shape=tiny", "device=cpu", "rounds=2"]))
    step = next(s for s in gpu_report.steps(found) if s.name == "llama_7b-propulsion-8")
    flops = gpu_report.measure(step, found, "cpu")["flops"]
    hidden, inner, layers, batch, length = 32, 64, 2, 2, 8
    linears = 2 * 2 * batch * length * (4 * hidden * hidden + 3 * hidden * inner) * layers
    head = 3 * 2 * batch * hidden * 2
    attention = 3.5 * 2 * 2 * batch * length * length * hidden * layers  # not counted by every kernel on a CPU
    assert linears + head <= flops <= linears + head + attention


@pytest.mark.slow
def test_the_scores_are_a_sweep_of_records_with_tables(tmp_path: Path) -> None:
    assert main(["shape=tiny", "device=cpu", "part=scores", f"out={tmp_path}"]) == 0
    (folder,) = tmp_path.iterdir()
    records = [json.loads(path.read_text()) for path in (folder / "minilm").glob("runs/*/*/*/*.json")]
    assert sorted(entry["run"]["method"] for entry in records) == ["head", "propulsion"]
    assert all(entry["status"] == "success" and entry["env"]["device"] for entry in records)
    assert (folder / "minilm" / "index.html").is_file()


def test_the_scores_need_real_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_report, "place", lambda out, device: Path(out))
    assert main(["part=scores"]) == 2
    assert "type make gpu-report DATA_DIR=<folder>" in capsys.readouterr().err
