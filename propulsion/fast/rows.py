"""The flat layout: the real tokens of a padded batch, one after another, and groups of sequences for attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary


class Economy(NamedTuple):
    """What groups of sequences cost: scores held at once, and how many a further group costs as much time as."""

    scores_at_once: int
    group_cost: int


ON_CPU = Economy(1 << 19, 40_000)  # 2 MB in float32, as the cache has
ELSEWHERE = Economy(1 << 23, 1_000_000)  # launches are dear, memory is not; estimated, not measured

# A mask on a device -> its version when it was told, and the same mask on the host.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def tell(mask: torch.Tensor, host: torch.Tensor) -> None:
    """Say what is in a device's mask, so that `flatten` does not have to wait for the device to read it."""
    _known[mask] = mask._version, host


def _on_host(mask: torch.Tensor) -> torch.Tensor:
    version, host = _known.get(mask, (None, None))
    return host if host is not None and version == mask._version and host.shape == mask.shape else mask.cpu()


@dataclass(frozen=True)
class Group:
    """Consecutive sequences that go through attention together, padded to the longest of them.

    `start` and `tokens` say which rows of the flat matrix they are: the group with number `part` of run `run`.
    `index` (n, length) maps each padded place to a row, `real` (n, length) says which places are tokens, and `kept`
    (tokens,) which these are, counted through. All are None where no sequence is shorter than the others.
    """

    start: int
    tokens: int
    lengths: tuple[int, ...]
    run: int
    part: int
    index: torch.Tensor | None = None
    real: torch.Tensor | None = None
    kept: torch.Tensor | None = None  # beside `real`, whose use as an index would wait for a GPU

    @property
    def sequences(self) -> int:
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Of the longest sequence."""
        return max(self.lengths)

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


class Span(NamedTuple):
    """The rows of one run as a variable-length kernel wants them: where each sequence starts and the last one ends."""

    part: slice
    starts: torch.Tensor  # (sequences + 1,), int32, counted from the run's first row
    longest: int


@dataclass(frozen=True)
class Rows:
    """Where the rows of a flat `(tokens, width)` matrix come from.

    `places` (tokens,) are positions in the padded batch, `bounds` the first row of every run and the end: one
    run, unless several share the batch. `groups` cover all sequences. `led`: none begins with padding.
    """

    batch: int
    length: int
    places: torch.Tensor
    bounds: tuple[int, ...]
    groups: tuple[Group, ...]
    led: bool = True

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
        lengths = tuple(part.stop - part.start for part in self.runs())
        return _moved([_group(0, lengths, (0, 0))], self.places.device)[0]

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The sequences of each run by their cumulative lengths."""
        runs = range(len(self.bounds) - 1)
        lengths = [[n for group in self.groups if group.run == run for n in group.lengths] for run in runs]
        starts = [torch.tensor([0, *accumulate(each)], dtype=torch.int32) for each in lengths]
        sent = _send(starts, self.places.device)
        return tuple(Span(*each) for each in zip(self.runs(), sent, map(max, lengths), strict=True))


def flatten(mask: torch.Tensor, heads: int, runs: int = 1) -> Rows | None:
    """The layout of a padded batch, or None where a sequence has no token.

    Args:
        mask: `(batch, length)`, nonzero at real tokens, which may stand anywhere in their row.
        heads: Attention heads, to size the groups.
        runs: How many runs share the batch, in equal parts, one after another.
    """
    batch, length = mask.shape
    real = _on_host(mask).bool()
    lengths = [int(n) for n in real.sum(1).tolist()]
    if min(lengths) == 0:
        return None
    per_run = batch // runs
    order: list[int] = []  # longest first within a run, so that a group is a block of rows
    for run in range(runs):
        order += sorted(range(run * per_run, (run + 1) * per_run), key=lambda row: -lengths[row])
    starts = torch.arange(batch).view(-1, 1) * length
    places = (starts + torch.arange(length))[order][real[order]]
    economy = ON_CPU if mask.device.type == "cpu" else ELSEWHERE
    groups: list[Group] = []
    bounds, row = [0], 0
    for run in range(runs):
        ordered = [lengths[i] for i in order[run * per_run : (run + 1) * per_run]]
        for part, size in enumerate(_split(ordered, heads, economy)):
            group = _group(row, tuple(ordered[:size]), (run, part))
            groups.append(group)
            ordered, row = ordered[size:], row + group.tokens
        bounds.append(row)
    (places,) = _send([places], mask.device)
    return Rows(batch, length, places, tuple(bounds), tuple(_moved(groups, mask.device)), bool(real[:, 0].all()))


def _group(start: int, lengths: tuple[int, ...], name: tuple[int, int]) -> Group:
    longest, tokens = max(lengths), sum(lengths)
    if tokens == longest * len(lengths):
        return Group(start, tokens, lengths, *name)
    sizes = torch.tensor(lengths)
    first = start + torch.cumsum(sizes, 0) - sizes
    steps = torch.arange(longest)
    real = steps < sizes.view(-1, 1)
    index = first.view(-1, 1) + torch.where(real, steps, 0)  # a padded place shows its sequence's first token
    return Group(start, tokens, lengths, *name, index, real, real.view(-1).nonzero().view(-1))


def _moved(groups: list[Group], device: torch.device) -> list[Group]:
    """The groups with their tensors on the device."""
    padded = [group for group in groups if group.real is not None]
    if device.type == "cpu" or not padded:
        return groups
    indices = _send([t for g in padded for t in (g.index, g.kept) if t is not None], device)
    reals = _send([group.real for group in padded if group.real is not None], device)
    sent = iter(zip(indices[::2], reals, indices[1::2], strict=True))

    def move(group: Group) -> Group:
        if group.real is None:
            return group
        index, real, kept = next(sent)
        return replace(group, index=index, real=real, kept=kept)

    return [move(group) for group in groups]


def _send(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Tensors of one type from the host to a device, in one copy that nobody waits for."""
    if device.type == "cpu" or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    flat = (flat.pin_memory() if device.type == "cuda" else flat).to(device, non_blocking=True)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _split(lengths: Sequence[int], heads: int, economy: Economy) -> list[int]:
    """Group sizes for sequences in falling order of length: little padding, few groups, bounded memory.

    The cheapest partition into blocks, by dynamic programming over where a block ends.
    """
    count = len(lengths)
    best, ends = [0.0] * (count + 1), [0] * (count + 1)
    for start in reversed(range(count)):
        scores = heads * lengths[start] ** 2
        most = max(1, economy.scores_at_once // scores)
        options = range(start + 1, min(count, start + most) + 1)
        ends[start] = min(options, key=lambda end: economy.group_cost + (end - start) * scores + best[end])
        best[start] = economy.group_cost + (ends[start] - start) * scores + best[ends[start]]
    sizes, start = [], 0
    while start < count:
        sizes.append(ends[start] - start)
        start = ends[start]
    return sizes
