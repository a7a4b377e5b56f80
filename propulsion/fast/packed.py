"""Several runs in one pass through one frozen encoder: their rows one after another, each with its own vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch.nn.functional import pad

from propulsion.fast.layer import Call, Vectors
from propulsion.fast.masks import Masks
from propulsion.fast.path import FastPath, Pass, Trained
from propulsion.fast.rows import Rows

BIASES = ("input_bias", "qkv_bias", "out_bias", "middle_bias", "up_bias", "down_bias")
LOW_RANK = ("qkv_inner", "qkv_outer")

Grads = list[torch.Tensor | None]


@dataclass(frozen=True)
class Slot:
    """One vector of the encoder as every run of a pack has it; None where a run has none there."""

    name: str
    own: tuple[torch.Tensor | None, ...]

    @property
    def trained(self) -> bool:
        """Whether a run trains it."""
        return any(each is not None and each.requires_grad for each in self.own)

    def stack(self, learns: bool = True) -> torch.Tensor | None:
        """All runs' on a leading axis, detached; as it is where it is frozen and everybody's, or there is one run.

        A run without a scale has ones, one without LoRA zeros, one of a lower rank zeros beyond it.
        """
        there = [each for each in self.own if each is not None]
        if not there:
            return None
        if len(self.own) == 1 or (self.name in BIASES and not self.trained):
            return there[0].detach().requires_grad_(learns and self.trained)
        shape = tuple(max(sizes) for sizes in zip(*(each.shape for each in there), strict=True))
        filler = torch.zeros if self.name in LOW_RANK else torch.ones
        absent = filler(shape, dtype=there[0].dtype, device=there[0].device)
        each = [absent if one is None else _padded(one.detach(), shape) for one in self.own]
        return torch.stack(each).requires_grad_(learns and self.trained)

    def gradients(self, stacked: torch.Tensor | None) -> Grads:
        """Each run's part of the gradient of what `stack` gave."""
        result: Grads = []
        for run, one in enumerate(self.own):
            if stacked is None or one is None or not one.requires_grad:
                result.append(None)
            elif len(self.own) == 1:
                result.append(stacked)
            else:
                result.append(stacked[run][tuple(slice(size) for size in one.shape)])
        return result


class Packed:
    """One pass of several runs with the same frozen encoder. The first run's path computes it for all.

    Every run's result is its own alone: no product, sum or mask mixes rows of two runs. `learns`: keep what the
    backward pass needs.
    """

    def __init__(self, path: FastPath, passes: Sequence[Pass], learns: bool = True) -> None:
        self.runs = len(passes)
        own = zip(*map(tensors, passes), strict=True)
        self.slots = [Slot(name, each) for name, each in zip(_names(passes[0]), own, strict=True)]
        self._leaves = [slot.stack(learns) for slot in self.slots]
        bounds = [0]
        for each in passes:
            bounds.append(bounds[-1] + each.call.rows.tokens)
        self._parts = [slice(a, b) for a, b in pairwise(bounds)]
        with torch.set_grad_enabled(learns and any(slot.trained for slot in self.slots)):
            self._hidden = path.encode(_join(passes, self._leaves))

    def close(self) -> None:
        """Let go of all that is kept for the backward pass."""
        self._leaves, self._hidden = [], self._hidden.detach()

    def hidden(self) -> list[torch.Tensor]:
        """The last hidden states of each run, `(tokens, d)`."""
        return [self._hidden.detach()[part] for part in self._parts]

    def backward(self, grads: Sequence[torch.Tensor | None]) -> list[Grads]:
        """For each run, the gradients of `tensors(pass)` from that of its hidden states; None is no gradient."""
        total = torch.zeros_like(self._hidden)
        for part, grad in zip(self._parts, grads, strict=True):
            if grad is not None:
                total[part] = grad
        trained = [leaf for leaf in self._leaves if leaf is not None and leaf.requires_grad]
        found = iter(torch.autograd.grad(self._hidden, trained, total, allow_unused=True))
        by_slot = [
            slot.gradients(next(found) if leaf is not None and leaf.requires_grad else None)
            for slot, leaf in zip(self.slots, self._leaves, strict=True)
        ]
        return [list(each) for each in zip(*by_slot, strict=True)]


def tensors(given: Pass) -> Grads:
    """All vectors of a pass in one order."""
    vectors = given.vectors
    return [*vectors.tables, vectors.norm_bias, *(v for layer in vectors.layers for v in layer), vectors.last_bias]


def _names(given: Pass) -> list[str]:
    layers = [name for _ in given.vectors.layers for name in Vectors._fields]
    return [*("table_scale" for _ in given.vectors.tables), "input_bias", *layers, "input_bias"]


def _join(passes: Sequence[Pass], leaves: Grads) -> Pass:
    """The passes as one, with the vectors of all."""
    first = passes[0]
    tables, wide = len(first.vectors.tables), len(Vectors._fields)
    rest = leaves[tables + 1 : -1]
    layers = [Vectors(*rest[i : i + wide]) for i in range(0, len(rest), wide)]  # type: ignore[arg-type]
    vectors = Trained(tuple(leaves[:tables]), leaves[tables], tuple(layers), leaves[-1])  # type: ignore[arg-type]
    masks = [each.call.masks for each in passes]
    seeds = tuple(seed for each in masks if each is not None for seed in each.seeds)
    call = Call(
        stack_rows([each.call.rows for each in passes]),
        Masks(seeds) if seeds else None,
        first.call.lean,
        first.call.space,
    )
    ids = tuple(torch.cat(each) for each in zip(*(each.ids for each in passes), strict=True))
    return Pass(ids, vectors, call, first.dtype)


def stack_rows(all_rows: Sequence[Rows]) -> Rows:
    """The layout of several batches laid end to end, each a run of its own."""
    groups, bounds, places, before = [], [0], [], 0
    for run, rows in enumerate(all_rows):
        start = bounds[-1]
        for group in rows.groups:
            index = None if group.index is None else group.index + start
            groups.append(replace(group, start=group.start + start, run=run, index=index))
        bounds.append(start + rows.tokens)
        places.append(rows.places + before)
        before += rows.batch * rows.length
    return Rows(1, before, torch.cat(places), tuple(bounds), tuple(groups))


def _padded(one: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    missing = [n for size, full in zip(reversed(one.shape), reversed(shape), strict=True) for n in (0, full - size)]
    return pad(one, missing) if any(missing) else one
