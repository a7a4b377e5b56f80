"""Kernels from per-row Jacobians (torch.func), in memory that does not grow with the number of parameters.

Rows go through the model one at a time, without padding. Parameters are taken in blocks: a block's Jacobian over all
rows and outputs is computed, multiplied into the kernels, and let go of, so that memory is bounded by the block and
time is (number of blocks) x (one forward and a backward pass for every row and output).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Row = dict[str, torch.Tensor]  # the model's inputs for one row, `(1, length)` each
ROOM = 1 << 30  # bytes of one block's Jacobian


@dataclass(frozen=True)
class Piece:
    """Part of a parameter: the places `index` along its first axis, in order; None: all of it."""

    name: str
    index: torch.Tensor | None
    numel: int
    stride: int  # entries of one place


@dataclass
class Kernels:
    """Gram matrices `(rows * outputs, rows * outputs)` in float64, row after row, by the name of the parameters."""

    rows: int
    outputs: int
    grams: dict[str, torch.Tensor] = field(default_factory=dict)

    def summed(self, name: str) -> torch.Tensor:
        """The sum of the outputs' own kernels, `(rows, rows)`."""
        return torch.stack(self.per_output(name)).sum(0)

    def per_output(self, name: str) -> list[torch.Tensor]:
        """The kernel of each output with itself, `(rows, rows)`."""
        return per_output(self.grams[name], self.outputs)


def per_output(gram: torch.Tensor, outputs: int) -> list[torch.Tensor]:
    """The `(rows, rows)` kernels of the outputs from the whole Gram matrix."""
    return [gram[output::outputs, output::outputs] for output in range(outputs)]


def kernels(
    model: nn.Module,
    groups: Mapping[str, Sequence[str]],
    rows: Sequence[Row],
    subsets: Mapping[str, tuple[str, torch.Tensor]] | None = None,
    room: int = ROOM,
) -> Kernels:
    """The kernels of groups of parameters, at the model's present weights.

    Args:
        model: puts out logits `(1, outputs)`; in evaluation mode, or dropout would make the kernel random.
        groups: name of a kernel -> names of its parameters. A parameter may be in one group only.
        rows: the inputs.
        subsets: name of a further kernel -> (group, sorted numbers of single entries of the group's parameters,
            counted through all of them in order).
        room: bytes that the Jacobian of a block may take; a single place of a parameter may exceed it.
    """
    model.eval()
    found: Kernels | None = None
    offsets = {group: _offsets(model, names) for group, names in groups.items()}
    group_of = {name: group for group, names in groups.items() for name in names}
    outputs = logits(model, rows[:1]).shape[1]
    used = _used_places(model, rows)
    pieces = _pieces(model, list(group_of), used, max(1, room // (_itemsize(model) * len(rows) * outputs)))
    size = len(rows) * outputs
    found = Kernels(len(rows), outputs)
    for name in [*groups, *(subsets or {})]:
        found.grams[name] = torch.zeros(size, size, dtype=torch.float64)
    for block in _blocks(pieces, room // (_itemsize(model) * size)):
        whole = torch.cat([jacobian(model, block, row) for row in rows])
        start = 0
        for piece in block:
            own = whole[:, start : start + piece.numel]
            start += piece.numel
            group = group_of[piece.name]
            _add(found.grams[group], own)
            for name, (of, entries) in (subsets or {}).items():
                if of == group:
                    _add(found.grams[name], own[:, _columns(piece, offsets[group][piece.name], entries)])
        del whole
    return found


def jacobian(model: nn.Module, pieces: Sequence[Piece], row: Row) -> torch.Tensor:
    """The Jacobian of one row's logits, `(outputs, entries of all pieces)`."""
    known = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def forward(*values: torch.Tensor) -> torch.Tensor:
        given = dict(known)
        for piece, value in zip(pieces, values, strict=True):
            index = piece.index
            given[piece.name] = value if index is None else given[piece.name].index_copy(0, index, value)
        return _one_row(torch.func.functional_call(model, given, (), row))

    places = [known[p.name] if p.index is None else known[p.name].index_select(0, p.index) for p in pieces]
    with sdpa_kernel(SDPBackend.MATH):
        pulled: Any = torch.func.vjp(forward, *places)
        values, pull = pulled
        lines = [pull(one) for one in torch.eye(len(values), dtype=values.dtype, device=values.device)]
    return torch.stack([torch.cat([part.reshape(-1) for part in line]) for line in lines]).cpu()


@torch.no_grad()
def logits(model: nn.Module, rows: Sequence[Row]) -> torch.Tensor:
    """Every row's logits, `(rows, outputs)`, in float64."""
    return torch.stack([_one_row(model(**row)) for row in rows]).double().cpu()


def _one_row(output: Any) -> torch.Tensor:
    found: torch.Tensor = output.logits[0]
    return found


def _itemsize(model: nn.Module) -> int:
    return max(parameter.itemsize for parameter in model.parameters())


def _offsets(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """Where each parameter begins when the group's entries are counted through."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    found, start = {}, 0
    for name in names:
        found[name] = start
        start += sizes[name]
    return found


def _used_places(model: nn.Module, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """The rows of each embedding table that are looked up at all: every other entry's Jacobian is exactly zero.

    A table that another module holds as well, as tied output weights do, is not among them.
    """
    holders = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    seen: dict[str, set[int]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and holders[id(module.weight)] == 1:
            places = seen.setdefault(f"{name}.weight", set())

            def note(_: nn.Module, args: tuple[torch.Tensor, ...], places: set[int] = places) -> None:
                places.update(args[0].unique().tolist())

            handles.append(module.register_forward_pre_hook(note))
    try:
        logits(model, rows)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.tensor(sorted(places)) for name, places in seen.items() if places}


def _pieces(model: nn.Module, names: Sequence[str], used: Mapping[str, torch.Tensor], room: int) -> Iterator[Piece]:
    """The parameters, in pieces of at most `room` entries where a single place allows."""
    parameters = dict(model.named_parameters())
    for name in names:
        parameter = parameters[name]
        stride = parameter[0].numel() if parameter.dim() else 1
        index = used[name].to(parameter.device) if name in used else None
        if index is None and parameter.numel() <= room:
            yield Piece(name, None, parameter.numel(), stride)
            continue
        places = torch.arange(len(parameter), device=parameter.device) if index is None else index
        for part in places.split(max(1, room // stride)):
            yield Piece(name, part, len(part) * stride, stride)


def _blocks(pieces: Iterator[Piece], room: int) -> Iterator[list[Piece]]:
    """Pieces that fit into `room` entries together."""
    block: list[Piece] = []
    for piece in pieces:
        if block and sum(p.numel for p in block) + piece.numel > room:
            yield block
            block = []
        block.append(piece)
    if block:
        yield block


def _add(gram: torch.Tensor, part: torch.Tensor) -> None:
    gram += (part @ part.T).double()


def _columns(piece: Piece, offset: int, entries: torch.Tensor) -> torch.Tensor:
    """The columns of a piece's Jacobian that hold the given entries, of which others are passed over."""
    places = None if piece.index is None else piece.index.cpu()
    low = offset + (0 if places is None else int(places[0]) * piece.stride)
    high = offset + (piece.numel if places is None else (int(places[-1]) + 1) * piece.stride)
    first, last = torch.searchsorted(entries, torch.tensor([low, high])).tolist()
    own = entries[first:last] - offset
    if places is None:
        return own
    place, within = own // piece.stride, own % piece.stride
    found = torch.searchsorted(places, place).clamp_max(len(places) - 1)
    there = places[found] == place
    return found[there] * piece.stride + within[there]
