"""Packed sweeps as they are typed: what the plan says of them, and one that is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from propulsion.harness import planning, record
from scripts import plan
from tests.conftest import ROOT, ComposeCell
from tests.test_packing import _same, scores

# Kills its own process, as the kernel would, after so many passes of a pack.
KILLED = """
import itertools, os, signal, sys
from propulsion.harness import packing
from scripts import run
step, count = packing.Pack._step, itertools.count(1)
def killed(pack):
    step(pack)
    if next(count) == int(os.environ["KILL_AFTER"]):
        os.kill(os.getpid(), signal.SIGKILL)
packing.Pack._step = killed
sys.exit(run.main())
"""


def test_the_plan_shows_the_packs_and_why_a_cell_runs_alone(tiny: ComposeCell) -> None:
    def lines(*words: str) -> list[planning.Line]:
        cells = [
            tiny(f"task={task}", f"method={method}", *words)
            for task in ("rte", "stsb")
            for method in ("propulsion", "lora", "full")
        ]
        return planning.plan(cells, [], planning.Speeds([]))

    packed = lines("training.fast_path=auto", "sweep.pack=3")
    name = packed[0].backbone
    assert plan.packs(packed, []) == [
        f"pack: 4 cells of {name}, 3 at once (lora, propulsion)",
        "alone: 2 cells (the weight of a layer norm is trained)",
    ]
    assert plan.packs(packed, ["hydra/launcher=joblib"]) == []
    assert plan.packs(lines("training.fast_path=auto", "sweep.pack=off"), []) == []
    assert plan.packs(lines("sweep.pack=3"), []) == ["alone: 6 cells (training.fast_path=off)"]


def test_a_pack_that_is_killed_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    words = ["-m", "experiment=tiny", "training.fast_path=auto", "sweep.pack=2", "task=rte", "training.max_steps=12"]
    words += ["method=propulsion,lora", "training.dropout=0.1", "training.checkpoint_seconds=0"]

    def sweep(folder: str, kill_after: int) -> int:
        own = {**os.environ, "KILL_AFTER": str(kill_after), "PYTHONPATH": str(ROOT), record.PARALLEL_CELLS: "1"}
        command = [sys.executable, "-c", KILLED, *words, f"results_dir={tmp_path / folder}"]
        return subprocess.run(command, env=own, cwd=tmp_path, capture_output=True, timeout=300, check=False).returncode

    def found(folder: str) -> dict[str, dict[str, Any]]:
        return {path.stem: json.loads(path.read_text()) for path in (tmp_path / folder / "runs").rglob("*.json")}

    assert sweep("killed", 9) == -signal.SIGKILL  # in the second half: an evaluation is behind them
    assert not found("killed") and len(list((tmp_path / "killed").glob("checkpoints/*/*/whole.json"))) == 2
    assert sweep("killed", 10) == 0  # which it comes to only if it does not go on from there
    assert not list((tmp_path / "killed").glob("leases/*"))
    assert sweep("calm", 0) == 0
    calm = found("calm")
    assert len(calm) == 2
    for key, entry in found("killed").items():
        _same(scores(calm[key]), scores(entry))
        assert entry["cost"]["packed_with"] == 2
    assert found("killed").keys() == calm.keys()


@pytest.mark.parametrize("word", ["abc", "0"])
def test_a_word_for_packs_that_is_none_ends_a_sweep_with_one_line(word: str, tmp_path: Path) -> None:
    words = ["-m", "experiment=tiny", f"sweep.pack={word}", "task=rte,cola", f"results_dir={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.run", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: sweep.pack={word}: use auto, off, or how many cells train at once, as in 8\n"
    assert not (tmp_path / "out" / "runs").exists()
