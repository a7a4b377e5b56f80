"""Cells as one process of several runs them: `torchrun --nproc-per-node=2 -m tests.ddp <folder> <word> ...`.

Each further word is an action on the cell: `run`, or `kill=<step>`, which ends the run by SIGKILL at that step; or
an override of its settings, as in `training.fsdp=full_shard`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from propulsion.harness import ranks, trainer
from propulsion.harness.cell import run_cell
from propulsion.harness.settings import Settings
from tests.conftest import compose_settings

OPTIONS = ("method=propulsion", "training.max_steps=24", "training.evaluations=3", "training.dropout=0.0")
EXACT = ("training.precision=fp32",)  # on GPUs as well: halves of a batch are rounded otherwise than the whole


def settings(folder: str, *overrides: str) -> Settings:
    """A cell without dropout, whose random draws differ between processes."""
    learning = ("training.learning_rate=0.01", "training.checkpoint_seconds=0", "training.batch_size=8")
    return compose_settings("experiment=tiny", *OPTIONS, *learning, *EXACT, *overrides, f"results_dir={folder}")


def main(folder: str, *actions: str) -> None:
    """Do the actions in turn; the first process prints what each came to."""
    torch.set_num_threads(1)
    overrides = [word for word in actions if "=" in word and not word.startswith("kill=")]
    for action in actions:
        if action in overrides:
            continue
        name, _, step = action.partition("=")
        if name == "kill":
            _kill_at(int(step))
        entry, ran = run_cell(settings(folder, *overrides))
        if ranks.rank() == 0:
            print(f"{entry['status']} {'ran' if ran else 'skipped'} on {entry['env']['device_count']}", flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _kill_at(last: int) -> None:
    step = trainer.CellTrainer.training_step

    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args, **kwargs)

    trainer.CellTrainer.training_step = stepped  # type: ignore[method-assign]


if __name__ == "__main__":
    main(*sys.argv[1:])
