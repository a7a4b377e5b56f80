"""Processes of one run, by torchrun or `accelerate launch`: who is first, what they agree on. One process: all free."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from propulsion.harness.errors import UserError
from propulsion.harness.launched import launch

Value = TypeVar("Value")


TOGETHER = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # set beside WORLD_SIZE by whatever starts processes


def check() -> None:
    """Refuse an environment in which the processes of a run cannot find each other, and what `launch` refuses.

    Raises:
        UserError: WORLD_SIZE alone is set, as some clusters do for a container, or accelerate asks for too much.
    """
    launch()  # what accelerate was told is taken out of the environment
    missing = [name for name in TOGETHER if name not in os.environ]
    if size() > 1 and missing:
        raise UserError(
            f"WORLD_SIZE={size()} is set and {', '.join(missing)} not: start the processes with torchrun or "
            "accelerate launch, or unset WORLD_SIZE"
        )


def rank() -> int:
    """This process's number among those of the run, from 0."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process is the one of its machine that says what is wrong there."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def agreed(decide: Callable[[], Value]) -> Value:
    """What the first process decides, on all of them. `decide` runs on the first alone.

    The others must not look for themselves: a record or a lease may come to be between two looks, and processes that
    decide otherwise wait for each other for ever.

    Raises:
        Exception: what `decide` raised on the first process, on every process.
    """
    if size() == 1:
        return decide()
    torch = join()
    box: list[tuple[Value | None, Exception | None]] = [(None, None)]
    if rank() == 0:
        try:
            box = [(decide(), None)]
        except Exception as error:
            box = [(None, error)]
    torch.distributed.broadcast_object_list(box, src=0)
    value, failure = box[0]
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]


def either(*flags: bool) -> tuple[bool, ...]:
    """For each flag whether it is set on any process."""
    if size() == 1:
        return flags
    torch = join()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in found.tolist())


def barrier() -> None:
    """Wait for all processes."""
    if size() > 1:
        join().distributed.barrier()


def join() -> Any:
    """Start the process group as the Trainer will: gloo on CPUs, NCCL on GPUs. Returns torch.

    Imported here alone: one process that only skips what is done does without it.

    Raises:
        UserError: as `check`.
    """
    check()  # first: what accelerate was told is taken out of the environment
    import torch
    from accelerate import PartialState

    if not torch.distributed.is_initialized():
        PartialState(cpu=not torch.cuda.is_available())
    return torch
