"""transformers.Trainer with the order of rows, the groups, the clocks and the checkpoints of a fair comparison."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer

from baselines import Partition
from propulsion.fast import find_path
from propulsion.harness import checkpoints, packing, ranks, stops
from propulsion.harness.batches import take_host_mask
from propulsion.harness.meter import Meter
from propulsion.harness.optimizing import parameter_groups
from propulsion.harness.sampler import EpochSampler
from propulsion.harness.settings import TrainingSpec
from propulsion.harness.speed import merged
from propulsion.harness.turns import clock

Kind = TypeVar("Kind")


class CellTrainer(Trainer):
    """The trainer with its own order of rows, one optimizer group per learning rate and decay, and a meter.

    Its checkpoints are sealed; where one cannot be written, training goes on with the one before, and says so once.
    """

    _said = False
    _saved_at: int | None = None  # the step of the last checkpoint that was written whole

    def __init__(self, *, partition: Partition, spec: TrainingSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.partition = partition
        self.spec = spec
        # The families' losses are means over the batch and ignore num_items_in_batch: divide per micro-batch.
        self.model_accepts_loss_kwargs = False

    def find(self, kind: type[Kind]) -> Kind:
        """The callback of a kind: a checkpoint puts another in the place of the first."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, kind))

    @property
    def meter(self) -> Meter:
        """The meter among the callbacks."""
        return self.find(Meter)

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

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it would walk through all parameters at every step, for a number that no record has."""
        return 0

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Not every wrapper that accelerate puts round the sampler of a resumed epoch hands the epoch on.
        self.order.set_epoch(kwargs["epoch"])
        if self.meter.pending_loss:  # a resumed run: the Trainer forgets the losses since its last log line
            self._tr_loss += self.meter.pending_loss
            self._globalstep_last_logged = self.meter.logged_at
            self.meter.pending_loss = 0.0
        super()._run_epoch(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """What is trained, without the frozen backbone."""
        tuned: Any = self.model
        checkpoints.save_trained(tuned, Path(str(output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        tuned: Any = self.model
        checkpoints.load_trained(tuned, Path(resume_from_checkpoint))

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
        else:
            self._saved_at = self.state.global_step

    def left(self) -> str:
        """What a stop after this step leaves."""
        return stops.SAVED if self._saved_at == self.state.global_step else stops.UNSAVED

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        take_host_mask(prepared)
        return prepared

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        mask, path = inputs["attention_mask"], find_path(model)
        before = path.used if path else 0
        loss = super().training_step(model, inputs, *args, **kwargs)
        packing.finish(model)
        self.meter.count(mask, padded=path is None or path.used == before)
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The loop alone runs on merged weights: callbacks of an evaluation see the model as it is trained.

        Not under autocast, which would round the product and not the weight, nor in a pack, where they are not its own.
        """
        tuned: Any = self.model
        rounded = self.args.bf16 or self.args.fp16
        with contextlib.nullcontext() if rounded or packing.shares_evaluation(tuned) else merged(tuned):
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
