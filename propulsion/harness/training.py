"""Step 5, training: one cell's run, from its last checkpoint to its final evaluation, with all reasons to stop."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from baselines import Partition
from baselines.hooks import Budget, resumable
from propulsion.harness import checkpoints, ranks, stops
from propulsion.harness.batches import Collator
from propulsion.harness.devices import resolve_precision
from propulsion.harness.encode import EvaluationRows
from propulsion.harness.errors import UserError
from propulsion.harness.evaluation import Diverged, Evaluation, Scorer, read_history
from propulsion.harness.meter import Meter
from propulsion.harness.scales import ScaleWatch
from propulsion.harness.settings import Settings, total_steps
from propulsion.harness.trainer import CellTrainer
from propulsion.harness.turns import current
from propulsion.harness.watch import Watch


@dataclass(frozen=True)
class Outcome:
    """What training leaves behind. `diverged` holds the reason when it left the finite numbers."""

    history: list[Evaluation]
    steps: int
    precision: str
    meter: Meter
    diverged: str | None
    losses: list[tuple[int, float]]  # the training loss by step: means of ten steps each
    late: stops.Stop | None  # asked when there was no step left to stop at: to leave once the record is written
    scales: dict[str, Any] | None  # the extremes of z^k at the evaluations


class Bar(ProgressCallback):
    """The progress bar without the log lines: the record keeps those."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing."""


def train(
    model: nn.Module,
    parts: Partition,
    tokenizer: Any,
    train_rows: Dataset,
    evaluation: EvaluationRows,
    settings: Settings,
    folder: Path,
    callbacks: list[TrainerCallback],
) -> Outcome:
    """Train the model's trainable parameters, from the last whole checkpoint in `folder` if there is one.

    Raises:
        KeyboardInterrupt, Preempted: asked to stop; `left` says whether a checkpoint was saved.
    """
    spec = settings.training
    precision = resolve_precision(spec.precision, settings.backbone.dtype)
    with stops.graceful() as stop:
        watch = Watch(spec.checkpoint_seconds, stop)
        trainer = CellTrainer(
            partition=parts,
            spec=spec,
            model=model,
            args=_arguments(settings, len(train_rows), precision, folder),
            train_dataset=train_rows,
            eval_dataset=evaluation.rows,
            data_collator=Collator(tokenizer),
            compute_metrics=Scorer(settings.task, evaluation),
            callbacks=[Meter(), watch, Budget(), ScaleWatch(settings.cell), *callbacks],
        )
        whole = ranks.agreed(lambda: checkpoints.to_resume(model, folder)) if resumable(model) else None
        _run_to_the_end(trainer, watch, whole)
        if watch.stopped and not watch.diverged:
            stop.leave(left=trainer.left() if resumable(model) else stops.ANEW)
        late = stop if stop.asked() else None
    trainer.meter.settle()
    log = trainer.state.log_history
    losses = [(int(entry["step"]), entry["loss"]) for entry in log if "loss" in entry]
    steps, scales = trainer.state.global_step, trainer.find(ScaleWatch).as_record()
    return Outcome(read_history(log), steps, precision, trainer.meter, watch.diverged, losses, late, scales)


def _run_to_the_end(trainer: CellTrainer, watch: Watch, checkpoint: str | None) -> None:
    """Train, and evaluate the final weights; a run that leaves the finite numbers or is asked to stop ends earlier."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if sys.stderr.isatty() and current() is None:
        trainer.add_callback(Bar)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
        if not watch.diverged and not watch.stopped and not _evaluated_at_the_end(trainer.state):
            trainer.evaluate()
    except Diverged as error:
        watch.diverged = f"{error} at step {trainer.state.global_step}"


def _evaluated_at_the_end(state: TrainerState) -> bool:
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


def _per_device(batch_size: int) -> int:
    """The share of one process of the batch, so that the effective batch is the recipe's on any number of them."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if batch_size % processes:
        raise UserError(f"training.batch_size={batch_size} cannot be shared by {processes} processes")
    return batch_size // processes


def _arguments(settings: Settings, rows: int, precision: str, checkpoints: Path) -> TrainingArguments:
    spec = settings.training
    warmup = spec.warmup_ratio if spec.warmup_steps is None else spec.warmup_steps
    warmed = spec.schedule == "constant" and warmup > 0  # transformers' own `constant` has no warm-up
    cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=_per_device(spec.batch_size),
        per_device_eval_batch_size=spec.eval_batch_size,
        gradient_accumulation_steps=spec.accumulation,
        num_train_epochs=spec.epochs,
        max_steps=spec.max_steps,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="constant_with_warmup" if warmed else spec.schedule,
        warmup_steps=warmup,
        max_grad_norm=spec.max_grad_norm,
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps",
        save_strategy="no",  # Watch decides
        logging_steps=10,
        logging_nan_inf_filter=False,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=cpu,
        dataloader_pin_memory=not cpu,
        accelerator_config={"non_blocking": not cpu},
        ddp_find_unused_parameters=False,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer splits batches over all GPUs it sees, unasked
    steps = total_steps(spec, rows)
    arguments.eval_steps = spec.eval_steps or max(1, steps // spec.evaluations)
    return arguments
