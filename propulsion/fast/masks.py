"""Dropout masks that the backward pass draws again, or unpacks from the bits that were kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import torch

LEVELS = 1 << 16  # on a CPU a decision is a 16-bit integer against a threshold: a tenth of bernoulli's time

Where = tuple[tuple[int, int], int]  # the site and the run of a mask


@dataclass(frozen=True)
class Masks:
    """The masks of one forward pass: the same arguments give the same mask, for any site in any order.

    `seeds` has one entry for every run in the batch, so that a run's masks do not depend on its neighbours.
    `bits` holds what was drawn, a bit for each decision; None: nothing is kept and everything is drawn again.
    """

    seeds: tuple[int, ...]
    bits: dict[Where, torch.Tensor] | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def draw(runs: int = 1) -> Masks:
        """Masks that follow torch's default CPU generator, as set_seed and checkpoints have it."""
        return Masks(tuple(int(seed) for seed in torch.randint(2**62, (runs,))))

    def remembering(self, bits: dict[Where, torch.Tensor]) -> Masks:
        """The same masks: those in `bits` are taken from there, others are added to it. On a CPU alone."""
        return replace(self, bits=bits)

    def keep(
        self,
        rate: float,
        shape: Sequence[int],
        like: torch.Tensor,
        site: tuple[int, int],
        run: int = 0,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """1 where an element is kept and 0 where it is dropped, `shape`, of the type and device of `like`.

        Args:
            rate: The share that is dropped; on a CPU to 1 in 65,536.
            shape: Of the part that belongs to one run.
            like: Gives type and device alone.
            site: Which decision of the model, and which part of it.
            run: Whose seed.
            out: Where to write it.
        """
        kept = like.new_empty(tuple(shape)) if out is None else out
        if like.device.type != "cpu":
            generator = torch.Generator(like.device).manual_seed(self.seed(site, run))
            return kept.copy_(torch.rand(tuple(shape), generator=generator, device=like.device) >= rate)
        decisions = self._decide(rate, prod(shape), site, run)
        return kept.copy_(torch.from_numpy(decisions.view(np.uint8)).view(tuple(shape)))

    def seed(self, site: tuple[int, int], run: int = 0) -> int:
        """For a device's own generator, which then draws that mask."""
        return int(self._source(site, run).random_raw()) >> 1

    def _source(self, site: tuple[int, int], run: int) -> np.random.SFC64:
        return np.random.SFC64([self.seeds[run], *site])

    def _decide(self, rate: float, count: int, site: tuple[int, int], run: int) -> np.ndarray:
        """0 or 1 for each element, a byte each."""
        if self.bits is not None and (site, run) in self.bits:
            return np.unpackbits(self.bits[site, run].numpy(), count=count)
        integers = self._source(site, run).random_raw(-(-count // 4)).view(np.int16)[:count]
        decisions: np.ndarray = integers >= round(rate * LEVELS) - LEVELS // 2
        if self.bits is not None:
            self.bits[site, run] = torch.from_numpy(np.packbits(decisions))
        return decisions
