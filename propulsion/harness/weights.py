"""The trained tensors of a run: kept for a later use, proven by a digest, loaded again.

Two uses: `make submit` predicts the test rows from them, and `training.start_from=<file>` starts another run from
them, as published RTE, MRPC and STS-B numbers often start from a model tuned on MNLI without saying so.

Which ones are kept is `training.keep_weights`: none | last | best | both, or `auto`, which is both for a run that
trains little (see `AUTO_BYTES`). They lie at `<results_dir>/weights/<key>/{last,best}.safetensors`; the record's
`run.kept` has their digests.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from propulsion.harness.checkpoints import is_whole
from propulsion.harness.digests import file_digest
from propulsion.harness.errors import UserError
from propulsion.harness.evaluation import Evaluation, best_evaluation, read_history
from propulsion.harness.files import write_bytes
from propulsion.harness.kept import BEST


class BestWeights(TrainerCallback):
    """Writes the tensors at every evaluation that is the best so far, as `best-<step>.safetensors`.

    Which one is the best is read from the trainer's log, which a checkpoint holds too. A file goes only when a
    checkpoint has been written that knows a better one, so that a run resumed from any checkpoint has the file of
    the best evaluation before it.
    """

    def __init__(self, folder: Path, names: Sequence[str], primary: str, best_by: str) -> None:
        self.folder, self.names, self.primary, self.best_by = folder, list(names), primary, best_by

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        best = self._best(state)
        if state.is_world_process_zero and best is not None and best.step == state.global_step:
            try:
                save_trained(model, self.names, self.path(best.step))
            except OSError as error:
                print(
                    f"the best weights so far could not be written ({error.strerror}); training goes on without them",
                    file=sys.stderr,
                )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        best = self._best(state)
        written = is_whole(self.folder / f"checkpoint-{state.global_step}")  # a full disk leaves none
        if state.is_world_process_zero and best is not None and written:
            for path in self.folder.glob("best-*.safetensors"):
                if path != self.path(best.step):
                    path.unlink(missing_ok=True)

    def path(self, step: int) -> Path:
        """The file of the evaluation at that step."""
        return self.folder / f"best-{step}.safetensors"

    def _best(self, state: TrainerState) -> Evaluation | None:
        history = read_history(state.log_history)
        return best_evaluation(history, self.primary, self.best_by) if history else None


def keep(
    model: nn.Module, names: Sequence[str], rules: Sequence[str], best: Path | None, folder: Path, steps: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """Put the weights of each rule into the folder; what was kept, for the record.

    Args:
        model: with the final weights.
        names: of the tensors.
        best: the file that `BestWeights` wrote for the best evaluation.
        steps: the step of each rule's evaluation.

    Returns:
        rule -> `{step, sha256, bytes}` of its file.
    """
    kept = {}
    for rule in rules:
        path = folder / f"{rule}.safetensors"
        if rule == BEST:
            if best is None or not best.is_file():
                continue  # resumed from a checkpoint of a run that was not to keep it
            write_bytes(path, best.read_bytes())
        else:
            save_trained(model, names, path)
        kept[rule] = {"step": steps[rule], "sha256": file_digest(path), "bytes": path.stat().st_size}
    return kept


def tensor_names(model: nn.Module, trained: Sequence[str], head: Sequence[str]) -> list[str]:
    """What a file holds: the trained parameters, and a frozen head, whose random start is in no other file.

    Args:
        head: names of the head's parameters, whether they are trained or not.
    """
    known = dict(model.named_parameters())
    return list(dict.fromkeys([*trained, *(n for n in head if n in known and ".original_module." not in n)]))


def save_trained(model: nn.Module, names: Sequence[str], path: Path) -> None:
    """Write the named parameters, whole or not at all."""
    parameters = dict(getattr(model, "module", model).named_parameters())
    write_bytes(path, save({name: parameters[name].detach().cpu().contiguous() for name in names}))


def load_trained(model: nn.Module, path: Path, names: Sequence[str]) -> None:
    """Set the parameters that a run trained, from its own file.

    Args:
        names: of the tensors that the file must hold, no more and no fewer.

    Raises:
        UserError: it is no file of this model's tensors.
    """
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); run its cell again with training.keep_weights=both") from (
            error
        )
    parameters = dict(model.named_parameters())
    odd = [n for n in {*names, *stored} if n not in names or n not in stored or stored[n].shape != parameters[n].shape]
    if odd:
        raise UserError(f"{path} does not fit the model of its record: {min(odd)} is missing, new or of another shape")
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(stored[name])


def load_start(model: nn.Module, names: Sequence[str], path: str) -> None:
    """Set the named parameters (a method's own, not the head's) from a run of the same method and backbone.

    Raises:
        UserError: the file is missing, no safetensors file, or lacks one of them in that shape.
    """
    stored = _read(path)
    parameters = dict(model.named_parameters())
    for name in names:
        if name not in stored or stored[name].shape != parameters[name].shape:
            raise UserError(
                f"training.start_from={path} holds no {name} of shape {tuple(parameters[name].shape)}; "
                "start from a run of the same method and backbone"
            )
        with torch.no_grad():
            parameters[name].copy_(stored[name])


def _read(path: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"training.start_from={path} cannot be read ({error}); give the last.safetensors of a run "
            "with training.keep_weights=last"
        ) from error
