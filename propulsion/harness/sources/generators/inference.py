"""Inference: a premise and a hypothesis that follows from it, may be true, or cannot be."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

STATES = (
    ("open", "closed"),
    ("full", "empty"),
    ("dead", "alive"),
    ("asleep", "awake"),
    ("wet", "dry"),
    ("dirty", "clean"),
)
THINGS = ("door", "box", "shop", "cat", "bird", "bag", "cup", "room", "dog", "house", "fish", "boat")
MEASURES = (
    ("taller", "shorter"),
    ("older", "younger"),
    ("richer", "poorer"),
    ("faster", "slower"),
    ("stronger", "weaker"),
)
ACTS = ("left", "slept", "sang", "spoke", "won", "lost", "cried", "ate", "ran", "fell", "came", "stayed")
GROUPS = (
    "dogs", "boys", "girls", "birds", "guests", "horses", "teachers", "cats", "men", "women", "kids", "kings",
    "doctors", "players", "students", "workers",
)


def states(draw: Draw, label: str) -> tuple[str, ...]:
    """ "The door is open." / "The door is not closed.", "The box is closed.", "The door is closed." """
    thing, other = draw.two(THINGS)
    pair = draw.two(draw.pick(STATES))
    nots = draw.flip(), draw.flip()
    agree = label == "entailment" or (label == "neutral" and draw.flip())
    words = pair[0], pair[(nots[0] != nots[1]) == agree]
    second = other if label == "neutral" else thing
    return f"The {thing} is {_no(nots[0])}{words[0]}.", f"The {second} is {_no(nots[1])}{words[1]}."


def comparisons(draw: Draw, label: str) -> tuple[str, ...]:
    """ "Anna is taller than Ben." / "Ben is shorter than Anna.", "Carl is ...", "Ben is taller than Anna." """
    one, two, three = draw.some(PEOPLE, 3)
    word, opposite = draw.two(draw.pick(MEASURES))
    first = f"{one} is {word} than {two}."
    swap = draw.flip()
    agree = label == "entailment" or (label == "neutral" and draw.flip())
    if label == "neutral":
        one, two = draw.two((draw.pick((one, two)), three))
    if swap:
        one, two = two, one
    return first, f"{one} is {word if swap != agree else opposite} than {two}."


def company(draw: Draw, label: str) -> tuple[str, ...]:
    """ "Anna and Ben left." / "Ben left.", "Carl left.", "Neither Anna nor Ben left." """
    one, two, three = draw.some(PEOPLE, 3)
    act = draw.pick(ACTS)
    first = f"Both {one} and {two} {act}." if (both := draw.flip()) else f"Neither {one} nor {two} {act}."
    who = three if label == "neutral" else draw.pick((one, two))
    true = label == "entailment" or (label == "neutral" and draw.flip())
    verb = act if both == true else f"never {act}"
    return first, f"{who} {verb}."


def quantities(draw: Draw, label: str) -> tuple[str, ...]:
    """All dogs slept. / Some dogs slept. (or: Some cats slept., Not all dogs slept.)"""
    group, other = draw.two(GROUPS)
    act, every = draw.pick(ACTS), draw.flip()
    true = label == "entailment" or (label == "neutral" and draw.flip())
    first = f"{'All' if every else 'No'} {group} {act}."
    second = f"{'Some' if every == true else 'Not all'} {other if label == 'neutral' else group} {act}."
    return first, second


def _no(negated: bool) -> str:
    return "not " if negated else ""


PHENOMENA = (states, company, quantities, comparisons)
