"""Reproducible draws, and the names that the generators share."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# Names that BERT's vocabulary keeps whole, so that rows stay short.
WOMEN = ("Anna", "Emma", "Sarah", "Laura", "Julia", "Maria", "Alice", "Helen", "Lucy", "Jane", "Kate", "Ruth")
MEN = ("Ben", "Carl", "David", "Peter", "Mark", "Paul", "Simon", "Tom", "James", "Frank", "Henry", "Jack")
PEOPLE = WOMEN + MEN
CAPITALS = ("Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Tokyo", "Moscow", "Dublin", "Athens")
PLACES = (*CAPITALS, "Chicago", "Boston", "Prague", "Warsaw", "Cairo", "Sydney", "Toronto", "Munich", "Oslo")
MONTHS = ("January", "March", "April", "May", "June", "July", "August", "October", "November", "December")


class Draw:
    """Random draws that are the same in every process and on every Python version.

    Only `random.Random.random` is used: the standard library promises its sequence for a given seed, and
    promises none for `choice`, `sample` or `shuffle`.

    Args:
        key: what the stream is for; two different keys give two independent streams.
    """

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.sha256(repr(key).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self._random.random() * n)

    def flip(self) -> bool:
        """True half of the time."""
        return self._random.random() < 0.5

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[T], n: int) -> list[T]:
        """`n` different items, in random order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(n)]

    def two(self, items: Sequence[T]) -> tuple[T, T]:
        """Two different items, in random order."""
        first, second = self.some(items, 2)
        return first, second
