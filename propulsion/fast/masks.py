"""Dropout masks that are drawn again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

LEVELS = 1 << 16  # on a CPU a decision is a 16-bit integer against a threshold: a tenth of bernoulli's time


@dataclass(frozen=True)
class Masks:
    """The masks of one forward pass: the same arguments give the same mask, for any site in any order.

    `seeds` has one entry for every run in the batch, so that a run's masks do not depend on its neighbours.
    """

    seeds: tuple[int, ...]

    @staticmethod
    def draw(runs: int = 1) -> Masks:
        """Masks that follow torch's default CPU generator, as set_seed and checkpoints have it."""
        return Masks(tuple(int(seed) for seed in torch.randint(2**62, (runs,))))

    def keep(
        self, rate: float, shape: Sequence[int], like: torch.Tensor, site: tuple[int, int], run: int = 0
    ) -> torch.Tensor:
        """1 where an element is kept and 0 where it is dropped, `shape`, of the type and device of `like`.

        Args:
            rate: The share that is dropped; on a CPU to 1 in 65,536.
            shape: Of the part that belongs to one run.
            like: Gives type and device alone.
            site: Which decision of the model, and which part of it.
            run: Whose seed.
        """
        source = np.random.SFC64([self.seeds[run], *site])
        if like.device.type != "cpu":
            generator = torch.Generator(like.device).manual_seed(int(source.random_raw()) >> 1)
            return (torch.rand(tuple(shape), generator=generator, device=like.device) >= rate).to(like.dtype)
        count = prod(shape)
        bits = np.random.Generator(source).integers(0, 2**64, size=-(-count // 4), dtype=np.uint64)
        decisions = torch.from_numpy(bits.view(np.int16))[:count].view(tuple(shape))
        kept = torch.empty(tuple(shape), dtype=like.dtype)
        return torch.ge(decisions, round(rate * LEVELS) - LEVELS // 2, out=kept)
