"""Pronouns: does the marked pronoun stand for the marked noun phrase?"""

from __future__ import annotations

from typing import Any

from propulsion.harness.sources.generators.coreference import ACTS, FEMALE, LIFELESS, LIVELY, MALE, WARES, WORKERS
from propulsion.harness.sources.generators.draw import MEN, MONTHS, WOMEN, Draw


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


def _schema(parts: tuple[str, ...], pronoun: str, own: str, other: str, place: int) -> list[dict[str, Any]]:
    """The record of a sentence in parts; the phrase is the pronoun's own where the label is true."""
    phrase = own if place else other
    index = {part: len(" ".join(parts[:number]).split()) for number, part in enumerate(parts)}
    target = {"span1_text": phrase, "span1_index": index[phrase], "span2_text": pronoun, "span2_index": index[pronoun]}
    return [{"text": f"{' '.join(parts)}.", "target": target, "label": bool(place)}]


PHENOMENA = (gender, animacy)
