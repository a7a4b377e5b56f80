"""Step 5, training: transformers.Trainer with the groups, clocks and stops that a fair comparison needs."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import get_length_grouped_indices

from baselines import Partition
from propulsion.fast import find_path
from propulsion.harness import checkpoints, packing, ranks, stops
from propulsion.harness.devices import resolve_precision
from propulsion.harness.encode import EvaluationRows
from propulsion.harness.errors import UserError
from propulsion.harness.evaluation import Diverged, Evaluation, Scorer, read_history
from propulsion.harness.settings import Settings, TrainingSpec
from propulsion.harness.speed import merged
from propulsion.harness.turns import clock, current
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


class Meter(TrainerCallback, ExportableState):
    """Clock and token counts of training alone; kept in checkpoints, so that a resumed run adds up."""

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.eval_seconds = 0.0
        self.tokens = 0
        self.padded_tokens = 0
        self._mark = 0.0
        self.pending_loss = 0.0  # summed since the last log line, at step `logged_at`
        self.logged_at = 0
        self._masks: list[torch.Tensor] = []
        self._computed: list[torch.Tensor] = []

    def state(self) -> dict[str, Any]:
        self.settle()
        kept = ("train_seconds", "eval_seconds", "tokens", "padded_tokens", "pending_loss", "logged_at")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in kept}}

    def count(self, mask: torch.Tensor, padded: bool = True) -> None:
        """Count a batch's real tokens and those computed (all places, unless no padding was); read later."""
        real = mask.sum()  # not read from the device now, which would stall a step
        self._masks.append(real)
        if padded:
            self.padded_tokens += mask.numel()
        else:
            self._computed.append(real)

    def settle(self) -> None:
        """Wait for the device, then add what is pending."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.tokens += sum(int(mask) for mask in self._masks)
        self.padded_tokens += sum(int(mask) for mask in self._computed)
        self._masks, self._computed = [], []

    def restart(self) -> None:
        """Leave the time since the last lap out: it was not training."""
        self._mark = clock()

    def lap(self) -> None:
        """Add the time since the last lap or restart to training."""
        now = clock()
        self.train_seconds += now - self._mark
        self._mark = now

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.restart()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.lap()

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.restart()


class Bar(ProgressCallback):
    """The progress bar without the log lines: the record keeps those."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing."""


class EpochSampler(Sampler[int]):
    """Rows of like length together, in an order that the seed and the epoch alone decide.

    transformers' own grouping draws from the global random state, which a run resumed in the middle of an
    epoch no longer has: rows would be seen twice and others not at all.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class CellTrainer(Trainer):
    """The trainer with its own order of rows, one optimizer group per learning rate and decay, and a meter.

    Its checkpoints are sealed; where one cannot be written, training goes on with the one before, and says so once.
    """

    _said = False

    def __init__(self, *, partition: Partition, spec: TrainingSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.partition = partition
        self.spec = spec
        # The families' losses are means over the batch and ignore num_items_in_batch: divide per micro-batch.
        self.model_accepts_loss_kwargs = False

    @property
    def meter(self) -> Meter:
        """The meter among the callbacks: a checkpoint puts another in the place of the first."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, Meter))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset
        self.order = EpochSampler(rows["length"], self.spec.batch_size * self.spec.accumulation, self.args.seed)
        return self.order

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)  # the scorer knows the rows by their place

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the trained parameters alone."""
        if self.optimizer is None:
            tuned: Any = model or self.model
            groups = parameter_groups(tuned, self.partition, self.spec)
            self.optimizer = torch.optim.AdamW(groups, lr=self.spec.learning_rate, fused=True)
        return self.optimizer

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Not every wrapper that accelerate puts round the sampler of a resumed epoch hands the epoch on.
        self.order.set_epoch(kwargs["epoch"])
        if self.meter.pending_loss:  # a resumed run: the Trainer forgets the losses since its last log line
            self._tr_loss += self.meter.pending_loss
            self._globalstep_last_logged = self.meter.logged_at
            self.meter.pending_loss = 0.0
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.meter.pending_loss = float(self.accelerator.gather(self._tr_loss).mean())
        self.meter.logged_at = self._globalstep_last_logged
        self._write_checkpoint(*args, **kwargs)
        self.meter.pending_loss = 0.0

    def _write_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        problem: Exception | None = None
        try:
            super()._save_checkpoint(*args, **kwargs)
        except Exception as error:
            problem = error
        ranks.barrier()  # every process writes its own random state into it
        if problem is None and self.is_world_process_zero():
            try:
                checkpoints.seal(folder)
                checkpoints.keep_newest(folder.parent, folder)
            except OSError as error:
                problem = error
        if problem is not None:
            if not checkpoints.cannot_write(problem):
                raise problem
            shutil.rmtree(folder, ignore_errors=True)
            if not self._said:
                reason = str(problem).strip().splitlines()[0]
                print(f"no checkpoint could be saved ({reason}); training goes on without it", file=sys.stderr)
            self._said = True

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        mask, path = inputs["attention_mask"], find_path(model)
        before = path.used if path else 0
        loss = super().training_step(model, inputs, *args, **kwargs)
        packing.finish(model)
        self.meter.count(mask, padded=path is None or path.used == before)
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The loop alone runs on merged weights: callbacks of an evaluation see the model as it is trained.

        Not under autocast, which would round the product and not the weight.
        """
        tuned: Any = self.model
        with contextlib.nullcontext() if self.args.bf16 or self.args.fp16 else merged(tuned):
            return super().evaluation_loop(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.meter.settle()
        self.meter.lap()
        started = clock()
        scores = super().evaluate(*args, **kwargs)
        self.meter.eval_seconds += clock() - started
        self.meter.restart()
        return scores

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "eval_loss" in logs:
            logs["eval_train_seconds"] = self.meter.train_seconds
        super().log(logs, *args, **kwargs)


def parameter_groups(model: nn.Module, parts: Partition, spec: TrainingSpec) -> list[dict[str, Any]]:
    """Optimizer groups by learning rate and weight decay.

    Vectors are not decayed unless `spec.decay_vectors` says so: biases, norms, and scales such as z, which decay
    would pull to 0 instead of to their neutral value 1.
    """
    head_rate = spec.learning_rate if spec.head_learning_rate is None else spec.head_learning_rate
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = []
    for names, rate in ((parts.adapter, spec.learning_rate), (parts.head, head_rate)):
        for decayed in (True, False):
            chosen = [
                parameters[name] for name in names if (spec.decay_vectors or is_matrix(parameters[name])) == decayed
            ]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": spec.weight_decay if decayed else 0.0})
    return groups


def is_matrix(parameter: torch.Tensor) -> bool:
    """False for vectors, also for those stored with an axis of length one, as IA3's are."""
    return parameter.ndim >= 2 and min(parameter.shape) > 1


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
        KeyboardInterrupt, Preempted: asked to stop; a checkpoint was saved.
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
            data_collator=DataCollatorWithPadding(
                tokenizer, pad_to_multiple_of=8 if torch.cuda.is_available() else None
            ),
            compute_metrics=Scorer(settings.task, evaluation),
            callbacks=[Meter(), watch, *callbacks],
        )
        _run_to_the_end(trainer, watch, ranks.agreed(lambda: checkpoints.last_whole(folder)))
        if watch.stopped and not watch.diverged:
            stop.leave()
        late = stop if stop.asked() else None
    trainer.meter.settle()
    log = trainer.state.log_history
    losses = [(int(entry["step"]), entry["loss"]) for entry in log if "loss" in entry]
    return Outcome(read_history(log), trainer.state.global_step, precision, trainer.meter, watch.diverged, losses, late)


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


def total_steps(spec: TrainingSpec, rows: int) -> int:
    """Optimizer steps of a whole run; `batch_size` is that of all devices together."""
    if spec.max_steps > 0:
        return spec.max_steps
    per_epoch = max(1, math.ceil(math.ceil(rows / spec.batch_size) / spec.accumulation))
    return math.ceil(per_epoch * spec.epochs)


def _per_device(batch_size: int) -> int:
    """The share of one process of the batch, so that the effective batch is the recipe's on any number of them."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if batch_size % processes:
        raise UserError(f"training.batch_size={batch_size} cannot be shared by {processes} processes")
    return batch_size // processes


def _arguments(settings: Settings, rows: int, precision: str, checkpoints: Path) -> TrainingArguments:
    spec = settings.training
    cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=_per_device(spec.batch_size),
        per_device_eval_batch_size=spec.eval_batch_size,
        gradient_accumulation_steps=spec.accumulation,
        num_train_epochs=spec.epochs,
        max_steps=spec.max_steps,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule,
        warmup_steps=spec.warmup_ratio if spec.warmup_steps is None else spec.warmup_steps,
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
        ddp_find_unused_parameters=False,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer splits batches over all GPUs it sees, unasked
    steps = total_steps(spec, rows)
    arguments.eval_steps = spec.eval_steps or max(1, steps // spec.evaluations)
    return arguments
