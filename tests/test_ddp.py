"""Two processes on CPUs (gloo) against one, by torchrun and by accelerate: same scores and skips, after a kill too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from propulsion.harness.cell import run_cell
from tests import ddp
from tests.conftest import ROOT

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.ddp")


# Without a GPU its processes take the CPUs.
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file")
MULTI_GPU = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: 2
mixed_precision: 'no'
"""


def torchrun(folder: Path, *actions: str) -> subprocess.CompletedProcess[str]:
    return _launch(*TORCHRUN, str(folder), *actions)


def accelerate(config: str, folder: Path, *actions: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with a config file of this text."""
    file = folder.with_suffix(".yaml")
    file.write_text(config)
    return _launch(*ACCELERATE, str(file), "-m", "tests.ddp", str(folder), *actions)


def _launch(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)


def only_record(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("runs/*/*/*/*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


two_devices = pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes cannot share the only GPU")


@two_devices
@pytest.mark.slow
def test_two_processes_equal_one_and_skip_and_resume_the_same_way(tmp_path: Path) -> None:
    killed = torchrun(tmp_path / "two", "kill=15")
    assert killed.returncode != 0
    assert [path.name for path in (tmp_path / "two").glob("checkpoints/*/checkpoint-*")] == ["checkpoint-10"]
    assert not (tmp_path / "two" / "runs").exists() or only_record(tmp_path / "two")["status"] == "failed"
    two = accelerate(MULTI_GPU, tmp_path / "two", "run", "run")
    assert two.stdout.splitlines() == ["success ran on 2", "success skipped on 2"], two.stderr[-3000:]
    ours = only_record(tmp_path / "two")
    alone, _ = run_cell(ddp.settings(str(tmp_path / "one")))
    assert ours["key"] == alone["key"]
    assert ours["cost"]["micro_batch"] == 4 and alone["cost"]["micro_batch"] == 8
    for mine, theirs in zip(ours["eval"]["history"], alone["eval"]["history"], strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["scores"] == pytest.approx(theirs["scores"], abs=1e-5)
    assert ours["eval"]["heldout"] == pytest.approx(alone["eval"]["heldout"], abs=1e-5)
    _, ran = run_cell(ddp.settings(str(tmp_path / "two")))  # what two processes did, one need not do again
    assert not ran
