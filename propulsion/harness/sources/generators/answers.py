"""Questions with several right answers, about a paragraph that says of each person where they were."""

from __future__ import annotations

from typing import Any

from propulsion.harness.sources.generators.draw import MONTHS, PEOPLE, PLACES, Draw
from propulsion.harness.sources.generators.inference import ACTS

VERBS = ("went to", "lived in", "came from")


def who(draw: Draw, place: int) -> list[dict[str, Any]]:
    """Anna and Ben went to Paris. Carl went to Rome. / Who went to Paris? / Anna, Ben: true. Carl, Emma: false."""
    one, two, third, absent = draw.some(PEOPLE, 4)
    (here, there), verb = draw.two(PLACES), draw.pick(VERBS)
    facts = draw.two((f"{one} and {two} {verb} {here}.", f"{third} {verb} {there}."))
    return _paragraph(draw, facts, f"Who {verb} {here}?", (one, two), (third, absent))


def where(draw: Draw, place: int) -> list[dict[str, Any]]:
    """Anna went to Paris and Rome. Ben went to Oslo. / Which cities did Anna see? / Paris, Rome: true. Oslo: false."""
    (one, two), (first, second, third, absent) = draw.two(PEOPLE), draw.some(PLACES, 4)
    facts = draw.two((f"{one} saw {first} and {second}.", f"{two} saw {third}."))
    return _paragraph(draw, facts, f"Which cities did {one} see?", (first, second), (third, absent))


def when(draw: Draw, place: int) -> list[dict[str, Any]]:
    """Anna worked in May and June. Ben worked in July. / When did Anna work? / May, June: true. July: false."""
    (one, two), (first, second, third, absent) = draw.two(PEOPLE), draw.some(MONTHS, 4)
    facts = draw.two((f"{one} worked in {first} and {second}.", f"{two} worked in {third}."))
    return _paragraph(draw, facts, f"When did {one} work?", (first, second), (third, absent))


def deeds(draw: Draw, place: int) -> list[dict[str, Any]]:
    """Anna never sang. Ben never left. / What do we know? / Anna never sang: true. Anna sang: false."""
    people, acts, never = draw.two(PEOPLE), draw.two(ACTS), draw.flip()
    told = [f"{who} {'never ' * never}{act}" for who, act in zip(people, acts, strict=True)]
    denied = [f"{who} {'never ' * (not never)}{act}" for who, act in zip(people, acts, strict=True)]
    facts = f"{told[0]}.", f"{told[1]}."
    return _paragraph(draw, facts, "What do we know?", (told[0], told[1]), (denied[0], denied[1]))


def _paragraph(
    draw: Draw, facts: tuple[str, str], question: str, right: tuple[str, str], wrong: tuple[str, str]
) -> list[dict[str, Any]]:
    options = draw.some([(text, 1) for text in right] + [(text, 0) for text in wrong], 4)
    answers = [{"idx": number, "text": text, "label": label} for number, (text, label) in enumerate(options)]
    return [{"passage": {"text": " ".join(facts), "questions": [{"idx": 0, "question": question, "answers": answers}]}}]


# Half is about what is denied, half about who was where.
PHENOMENA = (deeds, deeds, deeds, who, where, when)
