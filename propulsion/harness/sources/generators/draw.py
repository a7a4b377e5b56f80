"""Reproducible draws and the word lists that the generators share."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# First names that a wordpiece vocabulary of BERT's kind keeps whole, so that rows stay short.
WOMEN = ("Anna", "Emma", "Sarah", "Laura", "Julia", "Maria", "Alice", "Helen", "Lucy", "Jane", "Kate", "Ruth")
MEN = ("Ben", "Carl", "David", "Peter", "Mark", "Paul", "Simon", "Tom", "James", "Frank", "Henry", "Jack")
PEOPLE = WOMEN + MEN
PLACES = (
    "Paris",
    "London",
    "Rome",
    "Berlin",
    "Madrid",
    "Vienna",
    "Chicago",
    "Boston",
    "Tokyo",
    "Moscow",
    "Dublin",
    "Athens",
    "Prague",
    "Warsaw",
    "Cairo",
    "Sydney",
    "Toronto",
    "Munich",
    "Milan",
    "Oslo",
)
MONTHS = ("January", "March", "April", "May", "June", "July", "August", "October", "November", "December")


class Draw:
    """Random draws that are the same in every process and on every Python version.

    Only `random.Random.random` is used: the standard library promises its sequence for a given seed, and
    promises none for `choice`, `sample` or `shuffle`.

    Args:
        key: what the stream is for; two different keys give two independent streams.
    """

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256(repr(key).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self._random.random() * n)

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def flip(self) -> bool:
        """True half of the time."""
        return self._random.random() < 0.5

    def some(self, items: Sequence[T], n: int) -> list[T]:
        """`n` different items, in random order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(n)]

    def two(self, items: Sequence[T]) -> tuple[T, T]:
        """Two different items."""
        first, second = self.some(items, 2)
        return first, second
