"""Several vectors of one layer become one, before the power (arXiv 2409.10927, appendix F: Multi-Propulsion)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

# From `(vectors, width)` to `(width,)`. Each gives 1 where every vector is 1, so that a model starts as it was.
POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "avg": lambda z: z.mean(dim=0),
    "max": lambda z: z.amax(dim=0),
    "min": lambda z: z.amin(dim=0),
    # the norm over the root of their number: the plain norm of n ones is not 1, and its power k would blow up
    "l2": lambda z: torch.linalg.vector_norm(z, dim=0) / math.sqrt(z.shape[0]),
}


def pool(z: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector `(width,)` from several, `(vectors, width)`; a single one, `(width,)`, as it is.

    Under `max` and `min` equal vectors share the gradient. `l2` is never negative; its gradient at zero is zero.
    """
    return z if z.dim() == 1 else POOLINGS[pooling](z)
