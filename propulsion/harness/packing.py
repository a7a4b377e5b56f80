"""Packs: cells that share a frozen backbone train together, each as if it were alone.

Every cell runs the ordinary runner, with its own trainer, optimizer, schedule, data order, random streams, checkpoints
and record, and takes turns with the others (`turns`). Where a step comes to the encoder it stops; once all have come
there, one pass with all their rows computes it (`fast.packed`), and in the same way its gradients; so do evaluations,
but not under autocast. So nothing of a cell depends on which others are there, but for the memory that they leave it;
cells of any length, task and state go together, and when one is over the next of the sweep takes its seat.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from baselines import apply_method
from propulsion.fast import find_path
from propulsion.fast.packed import Grads, Packed, tensors
from propulsion.fast.path import FastPath, Pass
from propulsion.fast.workspace import Workspace
from propulsion.harness import memory, ranks, speed, stops, sweeps
from propulsion.harness.backbones import build_empty
from propulsion.harness.devices import resolve_precision, tf32
from propulsion.harness.errors import UserError
from propulsion.harness.settings import Settings
from propulsion.harness.turns import Turn, current

AUTO = {"cuda": 8, "cpu": 1}  # cells that train at once with `sweep.pack=auto`; 1: none are packed
# Tokens of a shared pass without gradients. On a CPU (minilm shape, against the plain modules) 16 rows a cell took 0.61
# of the time alone and 0.54 by four or eight, 64 rows 0.56 alone and 0.58 by four: more costs memory and gains nothing.
EVALUATED_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class Forward:
    """A cell's request: the hidden states of its pass, and how many cells went together."""

    path: FastPath
    given: Pass
    learns: bool  # whether gradients are asked for afterwards

    @property
    def kind(self) -> tuple[Any, ...]:
        """Requests of one kind can go together."""
        call = self.given.call
        return id(self.path._prepared), self.given.dtype, call.lean, call.masks is None, self.learns


@dataclass(frozen=True)
class Backward:
    """A cell's request: the gradients of its vectors from that of its hidden states."""

    grad: torch.Tensor | None


class Seat:
    """A cell's place in a pack: what its fast path calls instead of computing a pass itself."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.most = 1  # cells that went together
        self._open: tuple[Pass, torch.Tensor] | None = None

    def __call__(self, path: FastPath, given: Pass) -> torch.Tensor:
        """The hidden states of a pass, cut off from the encoder's graph; `finish` goes on from their gradient."""
        learns = torch.is_grad_enabled() and _trained(given)
        hidden, together = self.member.ask(Forward(path, given, learns))
        self.most = max(self.most, together)
        if learns:
            self._open = given, hidden.requires_grad_()
        return hidden

    def finish(self) -> None:
        """The rest of the backward pass, after that of the head."""
        if self._open is None:
            return
        (given, hidden), self._open = self._open, None
        found = self.member.ask(Backward(hidden.grad))
        pairs = zip(tensors(given), found, strict=True)
        own = [(vector, grad) for vector, grad in pairs if vector is not None and grad is not None]
        torch.autograd.backward([vector for vector, _ in own], [grad for _, grad in own])


class Member(Turn):
    """A cell of a pack."""

    def __init__(self, job: Callable[[], None], shelves: list[Shelf]) -> None:
        super().__init__(job)
        self.shelves = shelves


class Shelf:
    """The frozen tensors of a backbone, once for all cells of a pack that have them, and what passes need beside.

    A method that starts from the weights, as PiSSA does, changes frozen ones: its cells have a shelf of their own.
    """

    def __init__(self) -> None:
        self.known: dict[str, nn.Parameter] = {}
        self.prepared: Any = {}
        self.space = Workspace()

    def share(self, path: FastPath) -> bool:
        """Put the known tensors in the place of the backbone's own, where those are equal to the bit; False if not."""
        slots = [
            (module, name, f"{prefix.replace('.base_layer', '')}.{name}")
            for prefix, module in path.backbone.named_modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and not parameter.requires_grad
        ]
        own = {key: module._parameters[name] for module, name, key in slots}
        if not all(_equal(own[key], self.known[key]) for key in own.keys() & self.known.keys()):
            return False
        for module, name, key in slots:
            module._parameters[name] = self.known.setdefault(key, own[key])
        path._prepared, path._space = self.prepared, self.space
        return True


class Pack:
    """Runs cells, `width` at a time."""

    def __init__(self, width: int) -> None:
        self.width = width  # seats
        self.together = width  # passes that fit into memory at once, as far as is known
        self.told: set[type[Exception]] = set()  # failures that were spoken of
        self.shelves: list[Shelf] = []
        self.seated: list[Member] = []
        self.waiting: list[Member] = []  # those of them that have come to the encoder, the first come first

    def run(self, jobs: Iterable[Callable[[], None]]) -> None:
        """Run every job; a new one starts where one is over, unless a stop was asked for.

        Raises:
            BaseException: what the first job that did not end by itself raised, after all are over.
        """
        threads = torch.get_num_threads()
        try:
            with tf32(False):  # a cell puts it back at its end, which the others must not see
                self._run(deque(jobs))
        finally:
            torch.set_num_threads(threads)  # a cell's own number is that of every thread to come

    def _run(self, queue: deque[Callable[[], None]]) -> None:
        failures: list[BaseException] = []
        while True:
            while queue and len(self.seated) < self.width and not stops.stopping():
                member = Member(queue.popleft(), self.shelves)
                self.seated.append(member)
                self._resume(member)
                failures += self._leave()  # one that never comes to the encoder: refused, failed, running elsewhere
            if not self.waiting:
                break
            self._step()
            failures += self._leave()
        for failure in failures:
            raise failure

    def _leave(self) -> list[BaseException]:
        """Free the seats of those that are over; what they raised."""
        over = [member for member in self.seated if member.over]
        self.seated = [member for member in self.seated if not member.over]
        return [member.failure for member in over if member.failure is not None]

    def _step(self) -> None:
        """One pass, forward and backward, for those that have waited longest and can go together."""
        kind = self.waiting[0].request.kind
        group = _bounded([member for member in self.waiting if member.request.kind == kind][: self.together])
        self.waiting = [member for member in self.waiting if member not in group]
        group, packed = self._forward(group)
        if packed is None:
            return
        asked = [member.request for member in group]
        for member, hidden in zip(group, packed.hidden(), strict=True):
            self._resume(member, (hidden, len(group)))
        if any(isinstance(member.request, Backward) for member in group):
            grads = [member.request.grad if isinstance(member.request, Backward) else None for member in group]
            started = time.perf_counter()
            answers = self._gradients(asked, grads, packed)
            self._share_time(group, asked, started)
            for member, answer in zip(group, answers, strict=True):
                if isinstance(member.request, Backward):
                    self._resume(member, answer)

    def _forward(self, group: list[Member]) -> tuple[list[Member], Packed | None]:
        """The pass of the group, or of as many from its start as it works for; the others wait on."""
        while True:
            started = time.perf_counter()
            asked = [member.request for member in group]
            try:
                packed = Packed(asked[0].path, [each.given for each in asked], asked[0].learns)
                self._share_time(group, asked, started)
                return group, packed
            except Exception as error:
                failure = _without_frames(error)
            if len(group) == 1:
                self._resume(group[0], failure)
                return group, None
            half = math.ceil(len(group) / 2)
            self._note(failure, half)
            self.waiting[:0] = group[half:]
            group = group[:half]

    def _gradients(
        self, asked: Sequence[Forward], grads: Sequence[torch.Tensor | None], packed: Packed
    ) -> list[Grads | Exception]:
        """Each cell's gradients. Where memory does not suffice, once more in halves: the masks are drawn again."""
        try:
            return [*packed.backward(grads)]
        except Exception as error:
            failure = _without_frames(error)
        packed.close()
        if len(asked) == 1:
            return [failure]
        half = math.ceil(len(asked) / 2)
        self._note(failure, half)
        found: list[Grads | Exception] = []
        for part in (slice(None, half), slice(half, None)):
            if all(grad is None for grad in grads[part]):  # they have asked for none
                found += [failure] * len(asked[part])
                continue
            try:
                again = Packed(asked[part][0].path, [each.given for each in asked[part]])
            except Exception as error:
                found += [_without_frames(error)] * len(asked[part])
                continue
            found += self._gradients(asked[part], grads[part], again)
        return found

    def _note(self, failure: Exception, half: int) -> None:
        """Say why a pass goes in halves; for want of memory those to come do too."""
        if isinstance(failure, memory.TooLarge):
            if half < self.together:
                self.together = half
                print(f"pack: {failure}; goes on with {half} cells in a pass", file=sys.stderr)
        elif type(failure) not in self.told:
            self.told.add(type(failure))
            reason = " ".join([f"{type(failure).__name__}:", *str(failure).strip().splitlines()[:1]])
            print(f"pack: {reason}; tries {half} cells in a pass", file=sys.stderr)

    def _resume(self, member: Member, answer: Any = None) -> None:
        member.resume(answer)
        if isinstance(member.request, Forward):
            self.waiting.append(member)

    @staticmethod
    def _share_time(group: Sequence[Member], asked: Sequence[Forward], started: float) -> None:
        """The pass's time is each cell's by its tokens."""
        seconds, tokens = time.perf_counter() - started, [each.given.call.rows.tokens for each in asked]
        for member, own in zip(group, tokens, strict=True):
            member.seconds += seconds * own / sum(tokens)


def join(model: nn.Module) -> None:
    """Called by a cell once its model is as it trains: take a seat in the pack that the cell runs in, if any."""
    member, path = current(), find_path(model)
    if isinstance(member, Member) and path is not None:
        if torch.cuda.is_available():
            model.cuda()  # where the shared tensors are; the trainer would move each cell's own
        if not any(shelf.share(path) for shelf in member.shelves):
            member.shelves.append(Shelf())
            member.shelves[-1].share(path)
        path.exchange = Seat(member)


def finish(model: nn.Module) -> None:
    """Called by a cell's trainer after the backward pass of the head."""
    path = find_path(model)
    if path is not None and isinstance(path.exchange, Seat):
        path.exchange.finish()


def shares_evaluation(model: nn.Module) -> bool:
    """Whether passes without gradients go through the pack, on weights that must then stay as all have them."""
    path = find_path(model)
    return path is not None and isinstance(path.exchange, Seat)


def packed_with(model: nn.Module) -> int:
    """How many cells shared a pass, this one included."""
    path = find_path(model)
    return path.exchange.most if path is not None and isinstance(path.exchange, Seat) else 1


def width(settings: Settings) -> int:
    """How many cells train at once by `sweep.pack`; 1: each alone.

    Raises:
        UserError: it is neither auto, nor off, nor a number.
    """
    return sweeps.pack_width(settings.sweep.pack, AUTO["cuda" if torch.cuda.is_available() else "cpu"])


@dataclass(frozen=True)
class Fit:
    """Whether a cell can be packed: cells of one `key` go together; None: `reason` says why it runs alone."""

    key: str | None
    reason: str = ""


def fit(settings: Settings) -> Fit:
    """What a cell can be packed with. Builds its model without weights."""
    spec, backbone = settings.training, settings.backbone
    if width(settings) == 1:
        return Fit(None, f"sweep.pack={settings.sweep.pack}")
    if ranks.size() > 1:
        return Fit(None, "several processes")
    if spec.fast_path == "off":
        return Fit(None, "training.fast_path=off")
    if spec.tf32:
        return Fit(None, "training.tf32=true, a setting of the whole process")
    weights = json.dumps(asdict(backbone), sort_keys=True)
    reason = _obstacle(weights, settings)
    if reason not in (FROZEN, TRAINED):
        return Fit(None, reason)
    try:
        precision = resolve_precision(spec.precision, backbone.dtype)
    except UserError as error:  # the cell itself is refused with it
        return Fit(None, str(error))
    seed = settings.seed if backbone.weights == "random" else None  # drawn from it
    return Fit(json.dumps([weights, precision, spec.dropout, spec.lean, reason, seed]))


Cell = TypeVar("Cell")


def packs(cells: Iterable[Cell], settings_of: Callable[[Cell], Settings]) -> list[list[Cell]]:
    """The cells in groups that train together, by the first of each; one that is alone trains as ever."""
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        key = fit(settings_of(cell)).key
        groups.setdefault(object() if key is None else key, []).append(cell)
    return list(groups.values())


FROZEN, TRAINED = "frozen", "trained"  # is anything in the encoder trained: else nothing goes back through it
_obstacles: dict[tuple[Any, ...], str] = {}


def _obstacle(weights: str, settings: Settings) -> str:
    """Why a cell cannot be packed, or FROZEN or TRAINED where it can."""
    spec = settings.training
    method = json.dumps(asdict(settings.method), sort_keys=True)
    choices = (spec.fast_path, spec.lean, spec.cache_features, spec.gradient_checkpointing)
    known = (weights, method, *choices, settings.task.kind)
    if known not in _obstacles:
        _obstacles[known] = _look(settings)
    return _obstacles[known]


def _look(settings: Settings) -> str:
    try:
        model = apply_method(build_empty(settings.backbone, settings.task), settings.method, settings.backbone)
        chosen = speed.set_up(model, settings.training)
    except UserError as error:
        return str(error)  # the cell itself is refused with it
    except Exception as error:  # the cell itself fails with it
        return f"{type(error).__name__}: {error}"
    path = find_path(model)
    if path is None:
        return (chosen.path or "its features are computed once").removeprefix("plain: ")
    return TRAINED if any(parameter.requires_grad for parameter in path.backbone.parameters()) else FROZEN


def _trained(given: Pass) -> bool:
    return any(vector is not None and vector.requires_grad for vector in tensors(given))


def _bounded(group: list[Member]) -> list[Member]:
    """Those from the start that go together: of evaluations, whose batches are large, no more than gain by it."""
    if group[0].request.learns:
        return group
    totals = itertools.accumulate(member.request.given.call.rows.tokens for member in group)
    return [member for member, total in zip(group, totals, strict=True) if total <= EVALUATED_AT_ONCE] or group[:1]


def _equal(own: torch.Tensor | None, known: torch.Tensor) -> bool:
    if own is None or own.shape != known.shape or own.dtype != known.dtype:
        return False
    return own is known or torch.equal(own.to(known.device), known)


def _without_frames(error: Exception) -> Exception:
    """The error, for the cell to raise. Of one for want of memory not itself: its frames hold the tensors."""
    return memory.TooLarge(error) if memory.is_out_of_memory(error) else error
