"""Yes-or-no questions about a passage: two facts, and a question that mixes them up or does not."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import MONTHS, PEOPLE, PLACES, Draw

ACTS = (("leave", "left"), ("sleep", "slept"), ("sing", "sang"), ("win", "won"), ("cry", "cried"), ("fall", "fell"))
STATES = (("open", "closed"), ("full", "empty"), ("wet", "dry"), ("dirty", "clean"), ("new", "old"), ("hot", "cold"))
COLOURS = ("red", "blue", "green", "white", "black", "brown")
THINGS = ("box", "bag", "cup", "car", "boat", "house", "shop", "bottle", "pan", "basket")


def places(draw: Draw, label: str) -> tuple[str, ...]:
    """did anna live in paris / Anna lived in Paris. Ben lived in Rome. (or: did anna live in rome, in oslo)"""
    (one, two), (own, other, third) = draw.two(PEOPLE), draw.some(PLACES, 3)
    asked = own if label == "True" else draw.pick((other, third))
    facts = draw.two((f"{one} lived in {own}.", f"{two} lived in {other}."))
    return f"did {one.lower()} live in {asked.lower()}", " ".join(facts)


def dates(draw: Draw, label: str) -> tuple[str, ...]:
    """was the car sold in may / The car was sold in May, after a long wait. (or: was the boat sold in may)"""
    (thing, other), (month, late), people = draw.two(THINGS), draw.two(MONTHS), draw.two(PEOPLE)
    asked, when = thing, month
    if label == "False":
        asked, when = (other, month) if draw.flip() else (thing, late)
    passage = f"The {thing} was sold in {month}, after {people[0]} and {people[1]} had waited for a long time."
    return f"was the {asked} sold in {when.lower()}", passage


def polarity(draw: Draw, label: str) -> tuple[str, ...]:
    """did ben leave / Anna left but Ben did not. (label: the opposite of what is asked)"""
    (one, two), (act, acted), first = draw.two(PEOPLE), draw.pick(ACTS), draw.flip()
    passage = f"{one} {acted} but {two} did not." if first else f"{one} did not {act} but {two} did."
    who = one if first == (label == "True") else two
    return f"did {who.lower()} {act}", passage


def states(draw: Draw, label: str) -> tuple[str, ...]:
    """is the red box open / The red box is open and the blue box is closed. (or: is the red box closed)"""
    thing, (one, two), (state, other) = draw.pick(THINGS), draw.two(COLOURS), draw.two(draw.pick(STATES))
    colour, right, wrong = draw.pick(((one, state, other), (two, other, state)))
    passage = f"The {one} {thing} is {state} and the {two} {thing} is {other}."
    return f"is the {colour} {thing} {right if label == 'True' else wrong}", passage


PHENOMENA = (places, places, dates, dates, polarity, states)
