"""Pronouns: does the marked pronoun stand for the marked noun phrase?"""

from __future__ import annotations

from typing import Any

from propulsion.harness.sources.generators.causes import PLAIN
from propulsion.harness.sources.generators.coreference import ACTS, FEMALE, LIFELESS, LIVELY, MALE, WARES, WORKERS
from propulsion.harness.sources.generators.draw import MEN, MONTHS, WOMEN, Draw

SPEAKING = ("said", "thought", "knew", "hoped", "heard", "wrote", "dreamed", "feared")


def gender(draw: Draw, place: int) -> list[dict[str, Any]]:
    """In May *the queen* met the boy before #he# left.: false."""
    woman, names = draw.flip(), draw.flip()
    if names:
        own, other = (draw.pick(side) for side in ((WOMEN, MEN) if woman else (MEN, WOMEN)))
    else:
        own, other = (f"the {draw.pick(side)}" for side in ((FEMALE, MALE) if woman else (MALE, FEMALE)))
    one, two = draw.two((own, other))
    verb, link = draw.pick(("met", "called", "saw", "helped", "visited")), draw.pick(("before", "after", "when"))
    pronoun = "she" if woman else "he"
    return _schema(
        (f"In {draw.pick(MONTHS)}", one, verb, two, link, pronoun, draw.pick(ACTS)), pronoun, own, other, place
    )


def animacy(draw: Draw, place: int) -> list[dict[str, Any]]:
    """In May the actor dropped *the cup* and #it# broke.: true."""
    person, thing, lively = f"the {draw.pick(WORKERS)}", f"the {draw.pick(WARES)}", draw.flip()
    pronoun, act = (draw.pick(("he", "she")), draw.pick(LIVELY)) if lively else ("it", draw.pick(LIFELESS))
    verb = draw.pick(("dropped", "hit", "moved", "washed", "held", "touched"))
    own, other = (person, thing) if lively else (thing, person)
    return _schema((f"In {draw.pick(MONTHS)}", person, verb, thing, "and", pronoun, act), pronoun, own, other, place)


def alone(draw: Draw, place: int) -> list[dict[str, Any]]:
    """In May *the queen* said that #she# left.: true. (or: *the king* said that #she# left., who is somebody else)"""
    woman, names = draw.flip(), draw.flip()
    who = draw.pick(WOMEN if woman else MEN) if names else f"the {draw.pick(FEMALE if woman else MALE)}"
    pronoun = "she" if woman == bool(place) else "he"
    parts = (f"In {draw.pick(MONTHS)}", who, draw.pick(SPEAKING), "that", pronoun, draw.pick(ACTS))
    return _record(parts, who, pronoun, place)


def denial(draw: Draw, place: int) -> list[dict[str, Any]]:
    """*Anna* never trained every day but Ruth did, so #she# never won the race.: true. (or: so #she# won the race.)"""
    (one, two), never, story = draw.two(draw.pick((WOMEN, MEN))), draw.flip(), draw.pick(PLAIN)
    pronoun = "she" if one in WOMEN else "he"
    told = (f"{'never ' * never}{story[0]} but", two, f"did{' not' * (not never)}, so", pronoun)
    return _record((one, *told, f"{'never ' * (never == bool(place))}{story[1]}"), one, pronoun, place)


def _schema(parts: tuple[str, ...], pronoun: str, own: str, other: str, place: int) -> list[dict[str, Any]]:
    """The record of a sentence with two noun phrases; the marked one is the pronoun's own where the label is true."""
    return _record(parts, own if place else other, pronoun, place)


def _record(parts: tuple[str, ...], phrase: str, pronoun: str, place: int) -> list[dict[str, Any]]:
    """The record of a sentence in parts, two of which are marked."""
    index = {part: len(" ".join(parts[:number]).split()) for number, part in enumerate(parts)}
    target = {"span1_text": phrase, "span1_index": index[phrase], "span2_text": pronoun, "span2_index": index[pronoun]}
    return [{"text": f"{' '.join(parts)}.", "target": target, "label": bool(place)}]


# In the first what is denied decides; the others need agreement.
PHENOMENA = (denial, denial, denial, denial, alone, gender, animacy)
