"""The flat layout: the real tokens of a padded batch, one after another, and groups of sequences for attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

SCORES_AT_ONCE = 1 << 19  # attention scores held at once, per group of sequences: 2 MB in float32, as the cache has
GROUP_COST = 40_000  # a further group costs about as much time as this many scores


@dataclass(frozen=True)
class Group:
    """Consecutive sequences that go through attention together, padded to the longest of them.

    `start` and `tokens` say which rows of the flat matrix they are: the group with number `part` of run `run`.
    `index` (n, length) maps each padded place to a row, `real` (n, length) says which places are tokens and `kept`
    (tokens,) which these are, counted through. All are None where no sequence is shorter than the others.
    """

    start: int
    tokens: int
    sequences: int
    length: int
    run: int
    part: int
    index: torch.Tensor | None
    real: torch.Tensor | None
    kept: torch.Tensor | None  # beside `real`, whose use as an index would wait for a GPU

    def gather(self, flat: torch.Tensor) -> torch.Tensor:
        """`(tokens, width)` of this group, as `(n, length, width)`; what stands at a padded place is arbitrary."""
        if self.index is None:
            return flat[self.start : self.start + self.tokens].view(self.sequences, self.length, -1)
        return flat.index_select(0, self.index.view(-1)).view(self.sequences, self.length, -1)

    def scatter(self, padded: torch.Tensor, flat: torch.Tensor) -> None:
        """Write `(n, length, ..., )` back to this group's rows of `flat`."""
        rows = flat[self.start : self.start + self.tokens]
        if self.kept is None:
            rows.view(padded.shape).copy_(padded)
        else:
            rows.copy_(padded.reshape(self.sequences * self.length, -1).index_select(0, self.kept))


@dataclass(frozen=True)
class Rows:
    """Where the rows of a flat `(tokens, width)` matrix come from.

    `places` (tokens,) are positions in the padded batch, `bounds` the first row of every run and the end: one
    run, unless several share the batch. `groups` cover all sequences.
    """

    batch: int
    length: int
    places: torch.Tensor
    bounds: tuple[int, ...]
    groups: tuple[Group, ...]

    @property
    def tokens(self) -> int:
        return self.bounds[-1]

    def pad(self, flat: torch.Tensor) -> torch.Tensor:
        """`(tokens, width)` as `(batch, length, width)`, zero where there is padding. Differentiable."""
        padded = flat.new_zeros(self.batch * self.length, flat.shape[-1])
        return padded.index_copy(0, self.places, flat).view(self.batch, self.length, -1)

    def runs(self) -> list[slice]:
        """The rows of each run."""
        return [slice(a, b) for a, b in pairwise(self.bounds)]

    @cached_property
    def abreast(self) -> Group:
        """The runs side by side, each as one long sequence: for a product of all runs at once."""
        return _group(0, [b - a for a, b in pairwise(self.bounds)], (0, 0), self.places.device)


def flatten(mask: torch.Tensor, heads: int, runs: int = 1) -> Rows | None:
    """The layout of a padded batch, or None where a sequence has no token.

    Args:
        mask: `(batch, length)`, nonzero at real tokens, which may stand anywhere in their row.
        heads: Attention heads, to size the groups.
        runs: How many runs share the batch, in equal parts, one after another.
    """
    batch, length = mask.shape
    real = mask.bool()
    lengths = [int(n) for n in real.sum(1).tolist()]
    if min(lengths) == 0:
        return None
    per_run = batch // runs
    order: list[int] = []  # longest first within a run, so that a group is a block of rows
    for run in range(runs):
        order += sorted(range(run * per_run, (run + 1) * per_run), key=lambda row: -lengths[row])
    starts = torch.arange(batch, device=mask.device).view(-1, 1) * length
    places = (starts + torch.arange(length, device=mask.device))[order][real[order]]
    groups: list[Group] = []
    bounds, row = [0], 0
    for run in range(runs):
        ordered = [lengths[i] for i in order[run * per_run : (run + 1) * per_run]]
        for part, size in enumerate(_split(ordered, heads)):
            group = _group(row, ordered[:size], (run, part), mask.device)
            groups.append(group)
            ordered, row = ordered[size:], row + group.tokens
        bounds.append(row)
    return Rows(batch, length, places, tuple(bounds), tuple(groups))


def _group(start: int, lengths: Sequence[int], name: tuple[int, int], device: torch.device) -> Group:
    longest, tokens = max(lengths), sum(lengths)
    if tokens == longest * len(lengths):
        return Group(start, tokens, len(lengths), longest, *name, None, None, None)
    sizes = torch.tensor(lengths)
    first = start + torch.cumsum(sizes, 0) - sizes
    steps = torch.arange(longest)
    real = steps < sizes.view(-1, 1)
    index = first.view(-1, 1) + torch.where(real, steps, 0)  # a padded place shows its sequence's first token
    kept = real.view(-1).nonzero().view(-1)
    return Group(start, tokens, len(lengths), longest, *name, *(each.to(device) for each in (index, real, kept)))


def _split(lengths: Sequence[int], heads: int) -> list[int]:
    """Group sizes for sequences in falling order of length: little padding, few groups, bounded memory.

    The cheapest partition into blocks, by dynamic programming over where a block ends.
    """
    count = len(lengths)
    best, ends = [0.0] * (count + 1), [0] * (count + 1)
    for start in reversed(range(count)):
        scores = heads * lengths[start] ** 2
        most = max(1, SCORES_AT_ONCE // scores)
        options = range(start + 1, min(count, start + most) + 1)
        ends[start] = min(options, key=lambda end: GROUP_COST + (end - start) * scores + best[end])
        best[start] = GROUP_COST + (ends[start] - start) * scores + best[ends[start]]
    sizes, start = [], 0
    while start < count:
        sizes.append(ends[start] - start)
        start = ends[start]
    return sizes
