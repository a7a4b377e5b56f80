"""What `make reproduce-glue` calls: the profile and its reason, the sweep as it would be typed, the tables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from scripts import plan, reproduce
from scripts.reproduce import Request, choose_profile, parse, results_dir, run_sweep, sweep_command, sweep_words
from tests.conftest import ROOT, names
from tests.task_files import write_official


def test_words_are_the_requests_own_keys_or_overrides() -> None:
    request = parse(["suite=glue", "tasks=rte,cola", "training.max_steps=3", "seeds=0,1", "overrides=x"])
    assert (request.tasks, request.seeds) == ("rte,cola", "0,1")
    assert request.overrides == ["training.max_steps=3", "overrides=x"]


@pytest.mark.parametrize(
    ("cuda", "missing", "profile"), [(False, [], "mini"), (True, [], "paper"), (True, ["no hub"], "mini")]
)
def test_auto_takes_the_papers_grid_only_where_it_can_run(
    cuda: bool, missing: list[str], profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(reproduce, "obstacles", lambda *_: missing)
    chosen, reason = choose_profile(Request())
    assert chosen == profile
    assert not missing or reason == "no hub"


def test_mini_is_nine_tasks_and_six_methods_and_paper_the_papers_eight() -> None:
    mini = dict(word.split("=", 1) for word in sweep_words(sweep_command(Request(), "mini")))
    assert mini["task"].split(",") == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]
    assert mini["method"].split(",") == ["full", "head", "bitfit", "lora", "ia3", "propulsion"]
    assert (mini["backbone"], mini["seed"], mini["results_dir"]) == ("minilm", "0", "results/mini")
    paper = dict(word.split("=", 1) for word in sweep_words(sweep_command(Request(), "paper")))
    assert "wnli" not in paper["task"].split(",") and len(paper["task"].split(",")) == 8
    assert paper["backbone"] == "roberta_base,roberta_large"


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_all_methods_are_those_of_the_folder(profile: str) -> None:
    words = dict(word.split("=", 1) for word in sweep_words(sweep_command(Request(methods="all"), profile)))
    assert words["method"].split(",") == names("method")


def test_superglue_is_eight_tasks_in_both_profiles_and_rte_is_one_of_them() -> None:
    for profile in ("mini", "paper"):
        words = sweep_words(sweep_command(Request(suite="superglue"), profile))
        found = dict(word.split("=", 1) for word in words)
        assert found["task"].split(",") == ["boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"]


def test_real_and_generated_rows_have_folders_of_their_own() -> None:
    assert results_dir(Request(), "mini") == "results/mini"
    assert results_dir(Request(data_dir="glue_data"), "mini") == "results/mini-local"
    assert results_dir(Request(data_dir="glue_data", results_dir="mine"), "mini") == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["profile=minni"], "unknown profile 'minni': did you mean mini"),
        (["suite=gleu"], "unknown suite 'gleu'"),
        (["tasks=rtee"], "unknown task 'rtee': did you mean rte"),
        (["profile=mini", "data_dir=nowhere"], "nowhere"),
        (["profile=mini", "data_dir=nowhere", "tasks=rte"], "nowhere"),
        (["profile=mini", "tasks=rte", "methods=lorra"], "unknown method 'lorra': did you mean lora"),
        (["profile=mini", "tasks=rte", "seeds=abc"], "seed=abc"),
        (["profile=mini", "tasks=rte", "results_dir=/dev/null/x"], "/dev/null/x cannot be written"),
    ],
)
def test_bad_requests_are_one_line_and_start_nothing(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(reproduce, "run_sweep", lambda _: pytest.fail("the sweep was started"))
    assert reproduce.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_the_paper_profile_refuses_without_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reproduce.main(["profile=paper", "tasks=rte", "backbones=minilm"]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("profile: paper (asked for)")
    assert "PROFILE=paper cannot start: the paper profile needs a CUDA GPU" in printed.err
    assert printed.err.endswith("PROFILE=mini runs anywhere\n")


def test_a_small_sweep_ends_with_its_table(tmp_path: Path) -> None:
    """The whole command in processes of its own, two cells side by side, then again: all skipped."""
    words = ["profile=mini", "tasks=rte", "methods=head,propulsion", f"results_dir={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "scripts.reproduce", *words, "training.max_steps=2", "data.train_rows=64"]
    command += ["data.eval_rows=32"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert first.returncode == 0, first.stderr
    assert "profile: mini (asked for)" in first.stdout
    assert "GLUE, mini profile: generated data, not comparable with the paper" in first.stdout
    assert len(list((tmp_path / "out" / "runs").rglob("*.json"))) == 2
    assert {path.suffix for path in (tmp_path / "out" / "tables").iterdir()} == {".md", ".csv", ".tex"}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert again.returncode == 0
    assert again.stdout.count("done before, skipped") == 2


def test_ctrl_c_waits_for_the_sweep_to_end_in_order(tmp_path: Path) -> None:
    child = (
        "import signal, sys, time\n"
        "def stop(*_): time.sleep(0.5); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )
    parent = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from scripts.reproduce import run_sweep\n"
        f"sys.exit(run_sweep([sys.executable, '-c', {child!r}]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert process.wait(timeout=200) == 130


def test_the_sweeps_exit_code_is_handed_on() -> None:
    assert run_sweep([sys.executable, "-c", "raise SystemExit(1)"]) == 1


def test_the_paper_profile_on_files_leaves_wnli_out_and_the_plan_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in ("rte", "wnli"):
        write_official(tmp_path / "glue", task)
    for profile, tasks in (("paper", "rte"), ("mini", "rte,wnli")):
        request = Request(data_dir=str(tmp_path))
        reproduce.leave_out_absent(request, profile)
        assert request.tasks == tasks and "left out: " in capsys.readouterr().out
    assert plan.main(["suite=glue", "profile=mini", "methods=head", f"data_dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "|     2 |" in said and "data of" not in said
