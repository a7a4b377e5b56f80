"""Packed sweeps as they are typed: what the plan says of them, and one that is killed in the middle."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from propulsion.harness import packing, planning
from propulsion.harness.settings import Settings
from scripts import plan
from tests.conftest import ROOT, ComposeCell
from tests.test_packing import _same, run_packed, scores

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


def test_a_pack_that_is_killed_goes_on_from_its_checkpoints(
    tiny: ComposeCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["training.fast_path=auto", "sweep.pack=2", "task=rte", "training.max_steps=12", "training.dropout=0.1"]
    words += ["training.checkpoint_seconds=0"]
    methods = ("propulsion", "lora")

    def cells(folder: str) -> list[Settings]:
        return [tiny(*words, f"method={method}", f"results_dir={tmp_path / folder}") for method in methods]

    own = {**os.environ, "KILL_AFTER": "9", "PYTHONPATH": str(ROOT)}
    typed = ["-m", "experiment=tiny", *words, f"method={','.join(methods)}", f"results_dir={tmp_path / 'killed'}"]
    command = [sys.executable, "-c", KILLED, *typed]
    ended = subprocess.run(command, env=own, cwd=tmp_path, capture_output=True, timeout=300, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not list((tmp_path / "killed").glob("runs/*/*/*/*.json"))
    assert len(list((tmp_path / "killed").glob("checkpoints/*/*/whole.json"))) == 2
    calm = run_packed(cells("calm"))
    step, passes = packing.Pack._step, itertools.count()

    def counted(pack: packing.Pack) -> None:
        next(passes)
        step(pack)

    monkeypatch.setattr(packing.Pack, "_step", counted)
    again = run_packed(cells("killed"))
    assert 0 < next(passes) < 9  # of fourteen, two of them evaluations
    for one, other in zip(calm, again, strict=True):
        _same(scores(one), scores(other))
        assert other["cost"]["packed_with"] == 2


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
