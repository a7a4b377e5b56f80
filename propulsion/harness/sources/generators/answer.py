"""Question answering as inference: does the sentence hold the answer to the question?"""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import MONTHS, PEOPLE, PLACES, Draw

DEEDS = ("sold", "built", "bought", "painted", "burned", "found", "cleaned", "repaired", "hidden", "opened")
THINGS = ("house", "boat", "church", "bridge", "store", "statue", "hotel", "ship", "tower", "cabin", "gate")
SLOTS = ("Who", "When", "Where")


def slot(draw: Draw, label: str) -> tuple[str, ...]:
    """When was the boat sold? / The boat was sold in May. (or: The boat was sold in Paris.)"""
    asked, other = draw.two(SLOTS)
    thing, deed = draw.pick(THINGS), draw.pick(DEEDS)
    told = asked if label == "entailment" else other
    return _ask(asked, thing, deed), f"The {thing} was {deed} {_fill(draw, told)}."


def subject(draw: Draw, label: str) -> tuple[str, ...]:
    """When was the boat sold? / The boat was sold in May. (or: The hotel was sold in May.)"""
    (thing, other), (deed, did), asked = draw.two(THINGS), draw.two(DEEDS), draw.pick(SLOTS)
    question = _ask(asked, thing, deed)
    if label == "not_entailment":
        thing, deed = (other, deed) if draw.flip() else (thing, did)
    return question, f"The {thing} was {deed} {_fill(draw, asked)}."


def details(draw: Draw, label: str) -> tuple[str, ...]:
    """When was the boat sold? / The boat was sold by Anna in May. (or: ... by Anna in Paris.)"""
    asked, *others = draw.some(SLOTS, 3)
    thing, deed = draw.pick(THINGS), draw.pick(DEEDS)
    told = draw.some((asked, others[0]) if label == "entailment" else others, 2)
    return _ask(asked, thing, deed), f"The {thing} was {deed} {_fill(draw, told[0])} {_fill(draw, told[1])}."


def events(draw: Draw, label: str) -> tuple[str, ...]:
    """When was the boat sold? / The boat was sold in May, the ship in Rome. (or: ... in Rome, ... in May.)"""
    (thing, other), (asked, told), deed = draw.two(THINGS), draw.two(SLOTS), draw.pick(DEEDS)
    slots = (asked, told) if label == "entailment" else (told, asked)
    (one, how), (two, so) = draw.two(((thing, slots[0]), (other, slots[1])))
    return _ask(asked, thing, deed), f"The {one} was {deed} {_fill(draw, how)}, the {two} {_fill(draw, so)}."


def _ask(asked: str, thing: str, deed: str) -> str:
    return f"Who was the {thing} {deed} by?" if asked == "Who" else f"{asked} was the {thing} {deed}?"


def _fill(draw: Draw, told: str) -> str:
    """A person, a month or a place."""
    if told == "Who":
        return f"by {draw.pick(PEOPLE)}"
    return f"in {draw.pick(MONTHS if told == 'When' else PLACES)}"


PHENOMENA = (slot, slot, subject, subject, details, events)
