"""Inference: a premise, and a hypothesis that follows from it, may be true, or cannot be."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

OWNERS = ("The", "My", "Her", "His", "Our")
THINGS = ("door", "box", "shop", "bag", "cup", "room", "house", "car", "boat", "garage")
THING_STATES = (("open", "closed"), ("full", "empty"), ("wet", "dry"), ("dirty", "clean"))
ANIMALS = ("cat", "dog", "bird", "horse", "fish", "cow", "pig", "duck", "goat", "rabbit")
ANIMAL_STATES = (("dead", "alive"), ("asleep", "awake"), ("wet", "dry"), ("dirty", "clean"))
PEOPLES = ("boys", "girls", "guests", "teachers", "men", "women", "kids", "kings", "doctors", "players")
GROUPS = (*PEOPLES, "dogs", "birds", "horses", "cats", "students", "workers")
ACTS = ("left", "slept", "sang", "spoke", "won", "lost", "cried", "ate", "ran", "fell", "came", "stayed")
TIMES = ("now", "today", "again")  # so that a premise can also be repeated
MEASURES = (
    ("taller", "shorter"),
    ("older", "younger"),
    ("richer", "poorer"),
    ("faster", "slower"),
    ("stronger", "weaker"),
)


def states(draw: Draw, label: str) -> tuple[str, ...]:
    """My door is open now. / My door is not closed. (or: My box is closed., My door is closed.)"""
    names, pairs = draw.pick(((THINGS, THING_STATES), (ANIMALS, ANIMAL_STATES)))
    (name, other), pair, owner = draw.two(names), draw.two(draw.pick(pairs)), draw.pick(OWNERS)
    nots = draw.flip(), draw.flip()
    word = pair[(nots[0] != nots[1]) == _agrees(draw, label)]
    first = f"{owner} {name} is {'not ' * nots[0]}{pair[0]} {draw.pick(TIMES)}."
    return first, f"{owner} {other if label == 'neutral' else name} is {'not ' * nots[1]}{word}."


def company(draw: Draw, label: str) -> tuple[str, ...]:
    """Both Anna and Ben left. / Ben left. (or: Carl left., Ben never left.)"""
    (one, two, three), act, both = draw.some(PEOPLE, 3), draw.pick(ACTS), draw.flip()
    first = f"Both {one} and {two} {act}." if both else f"Neither {one} nor {two} {act}."
    who = three if label == "neutral" else draw.pick((one, two))
    return first, f"{who} {'' if both == _agrees(draw, label) else 'never '}{act}."


def quantities(draw: Draw, label: str) -> tuple[str, ...]:
    """All dogs slept. / Some dogs slept. (or: Some cats slept., Not all dogs slept.)"""
    (group, other), act, every = draw.two(GROUPS), draw.pick(ACTS), draw.flip()
    quantity = "Some" if every == _agrees(draw, label) else "Not all"
    first = f"{'All' if every else 'No'} {group} {act}."
    return first, f"{quantity} {other if label == 'neutral' else group} {act}."


def comparisons(draw: Draw, label: str) -> tuple[str, ...]:
    """Anna is taller than Ben now. / Ben is shorter than Anna. (or: Carl is ..., Ben is taller ...)"""
    (one, two, three), (word, opposite) = draw.some(PEOPLE, 3), draw.two(draw.pick(MEASURES))
    first = f"{one} is {word} than {two} {draw.pick(TIMES)}."
    if label == "neutral":
        one, two = (one, three) if draw.flip() else (three, two)
    swap = draw.flip()
    if swap:
        one, two = two, one
    return first, f"{one} is {opposite if swap == _agrees(draw, label) else word} than {two}."


def _agrees(draw: Draw, label: str) -> bool:
    """Whether the hypothesis agrees with the premise; of somebody else, in half of the rows."""
    return draw.flip() if label == "neutral" else label == "entailment"


PHENOMENA = (states, company, quantities, comparisons)
