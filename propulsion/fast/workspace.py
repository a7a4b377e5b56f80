"""Memory for what lives within one call alone, used again by the next layer and the next step.

On a CPU a fresh tensor of megabytes costs page faults and cold caches, often more than the arithmetic on it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod

import torch


class Workspace(threading.local):
    """Buffers by name, each as large as the largest tensor that was asked for; every thread has its own."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """A tensor of any content, of the type and device of `like`, good until the next `take` of that name.

        A GPU's allocator keeps freed memory by itself: there it is a new tensor.
        """
        if like.device.type != "cpu":
            return like.new_empty(tuple(shape))
        count = prod(shape)
        known = self._buffers.get((name, like.dtype))
        if known is None or known.numel() < count:
            known = self._buffers[name, like.dtype] = torch.empty(count, dtype=like.dtype)
        return known[:count].view(tuple(shape))
