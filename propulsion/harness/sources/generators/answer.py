"""Question answering as inference: does the sentence hold the answer to the question?"""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import MONTHS, PEOPLE, PLACES, Draw

DEEDS = ("sold", "built", "bought", "painted", "lost", "found", "stolen", "burned", "opened", "hidden")
THINGS = (
    "car",
    "house",
    "boat",
    "church",
    "piano",
    "bridge",
    "store",
    "horse",
    "statue",
    "hotel",
    "map",
    "ring",
)
SLOTS = ("Who", "When", "Where")


def _fill(draw: Draw, slot: str) -> str:
    match slot:
        case "Who":
            return f"by {draw.pick(PEOPLE)}"
        case "When":
            return f"in {draw.pick(MONTHS)}"
        case _:
            return f"in {draw.pick(PLACES)}"


def _ask(slot: str, thing: str, deed: str) -> str:
    return f"Who was the {thing} {deed} by?" if slot == "Who" else f"{slot} was the {thing} {deed}?"


def slot(draw: Draw, label: str) -> tuple[str, ...]:
    """When was the car sold? / The car was sold in May. (or: The car was sold in Paris.)"""
    asked, other = draw.two(SLOTS)
    thing, deed = draw.pick(THINGS), draw.pick(DEEDS)
    told = asked if label == "entailment" else other
    return _ask(asked, thing, deed), f"The {thing} was {deed} {_fill(draw, told)}."


def details(draw: Draw, label: str) -> tuple[str, ...]:
    """ "When was the car sold?" / "The car was sold by Anna in May." or "... by Anna in Paris." """
    asked, *others = draw.some(SLOTS, 3)
    thing, deed = draw.pick(THINGS), draw.pick(DEEDS)
    told = draw.some((asked, others[0]) if label == "entailment" else others, 2)
    return _ask(asked, thing, deed), f"The {thing} was {deed} {_fill(draw, told[0])} {_fill(draw, told[1])}."


def events(draw: Draw, label: str) -> tuple[str, ...]:
    """ "When was the car sold?" / "In May the car was sold, in Paris the boat." """
    (thing, other), deed = draw.two(THINGS), draw.pick(DEEDS)
    asked, told = draw.two(SLOTS)
    mine, yours = (asked, told) if label == "entailment" else (told, asked)
    parts = ((thing, mine), (other, yours)) if draw.flip() else ((other, yours), (thing, mine))
    (a, sa), (b, sb) = parts
    return _ask(asked, thing, deed), f"The {a} was {deed} {_fill(draw, sa)}, the {b} {_fill(draw, sb)}."


def objects(draw: Draw, label: str) -> tuple[str, ...]:
    """ "When was the car sold?" / "The car was sold in May." or "The boat was sold in May." """
    (thing, other), (deed, did) = draw.two(THINGS), draw.two(DEEDS)
    slot = draw.pick(SLOTS)
    what, how = (thing, deed) if label == "entailment" else draw.pick(((other, deed), (thing, did)))
    return _ask(slot, thing, deed), f"The {what} was {how} {_fill(draw, slot)}."


PHENOMENA = (slot, slot, objects, objects, details, events)
