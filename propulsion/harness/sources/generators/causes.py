"""Causes and effects: of two sentences, the one that came before, or after, the premise in one short story."""

from __future__ import annotations

from typing import Any

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

STORIES = (  # what came first, then, and last
    ("forgot the umbrella", "got wet in the rain", "caught a cold"),
    ("skipped breakfast", "was very hungry at noon", "ate two lunches"),
    ("worked all night", "was very tired", "fell asleep at the desk"),
    ("trained every day", "won the race", "got a gold medal"),
    ("spent all the money", "could not pay the rent", "asked for a loan"),
    ("drove too fast", "was stopped by the police", "had to pay a fine"),
    ("touched the hot stove", "burned a finger", "put on a bandage"),
    ("lost the key", "could not open the door", "called a locksmith"),
    ("studied the whole book", "knew every answer in the exam", "got the best grade"),
    ("ate spoiled fish", "had a bad stomach ache", "went to the doctor"),
    ("missed the bus", "came late to work", "apologized to the boss"),
    ("heard a funny joke", "started to laugh", "woke the sleeping baby"),
)


PLAIN = (  # the same, where "never" can stand before each
    ("forgot the umbrella", "got wet in the rain", "caught a cold"),
    ("trained every day", "won the race", "got a gold medal"),
    ("touched the hot stove", "burned a finger", "needed a bandage"),
    ("read the whole book", "knew the answers", "passed the exam"),
    ("ate spoiled fish", "felt sick", "went to the doctor"),
    ("missed the bus", "came late to work", "lost the job"),
    ("heard the joke", "laughed out loud", "woke the baby"),
    ("planted a seed", "grew a tree", "sold apples"),
    ("saved money", "bought a car", "drove to the sea"),
    ("broke the window", "paid for the damage", "asked for a loan"),
    ("learned to swim", "crossed the lake", "won a prize"),
    ("told a lie", "lost a friend", "felt lonely"),
)


def denial(draw: Draw, place: int) -> list[dict[str, Any]]:
    """Anna never won the race. What was the cause? Anna never trained every day. / Anna trained every day."""
    story, cause, never, who = draw.pick(PLAIN), draw.flip(), draw.flip(), draw.pick(PEOPLE)
    told = story[0 if cause else 2]
    right, wrong = (f"{who} {'never ' * says}{told}" for says in (never, not never))
    return _question(place, f"{who} {'never ' * never}{story[1]}", right, wrong, cause)


def person(draw: Draw, place: int) -> list[dict[str, Any]]:
    """Anna was very tired. What was the cause? Anna worked all night. / Ben worked all night."""
    story, cause, (who, other) = draw.pick(STORIES), draw.flip(), draw.two(PEOPLE)
    told = story[0 if cause else 2]
    return _question(place, f"{who} {story[1]}", f"{who} {told}", f"{other} {told}", cause)


def topic(draw: Draw, place: int) -> list[dict[str, Any]]:
    """Anna was very tired. What was the cause? Anna worked all night. / Anna missed the bus."""
    (story, other), cause, who = draw.two(STORIES), draw.flip(), draw.pick(PEOPLE)
    end = 0 if cause else 2
    return _question(place, f"{who} {story[1]}", f"{who} {story[end]}", f"{who} {other[end]}", cause)


def direction(draw: Draw, place: int) -> list[dict[str, Any]]:
    """Anna was very tired. What was the cause? Anna worked all night. / Anna fell asleep at the desk."""
    story, cause, who = draw.pick(STORIES), draw.flip(), draw.pick(PEOPLE)
    right, wrong = (story[0], story[2]) if cause else (story[2], story[0])
    return _question(place, f"{who} {story[1]}", f"{who} {right}", f"{who} {wrong}", cause)


def _question(place: int, premise: str, right: str, wrong: str, cause: bool) -> list[dict[str, Any]]:
    choices = (right, wrong) if place == 0 else (wrong, right)
    record = {"premise": f"{premise}.", "question": "cause" if cause else "effect", "label": place}
    return [{**record, "choice1": f"{choices[0]}.", "choice2": f"{choices[1]}."}]


# Who it is shows in frozen features, so the larger part are denials.
PHENOMENA = (denial, denial, denial, denial, person, topic, direction)
