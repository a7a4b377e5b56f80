"""Paraphrase: two sentences that say the same, or almost the same words that say something else."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

TRADES = ("sold", "bought", "lost", "found", "painted", "burned", "fixed", "cleaned", "moved", "wanted")
GOODS = ("car", "house", "book", "piano", "boat", "map", "phone", "ring", "lamp", "desk", "clock", "table")
DEEDS = ("thanked", "praised", "called", "helped", "blamed", "met", "hired", "invited", "visited", "paid")
SUBJECTS = ("teacher", "doctor", "boy", "girl", "farmer", "king", "dog", "guest", "pilot", "nurse")
TIMES = ("today", "in May", "in June", "at home", "last year", "again", "at school", "in Paris", "in Rome")
OPPOSITES = (  # two ways to say it, and two ways to say the opposite
    (("big", "large"), ("small", "little")),
    (("fast", "quick"), ("slow", "sluggish")),
    (("rich", "wealthy"), ("poor", "needy")),
    (("happy", "glad"), ("sad", "unhappy")),
    (("loud", "noisy"), ("quiet", "silent")),
    (("clever", "smart"), ("stupid", "foolish")),
    (("ill", "sick"), ("healthy", "well")),
    (("brave", "bold"), ("afraid", "scared")),
)
STATES = (  # one or the other
    ("awake", "asleep"),
    ("alive", "dead"),
    ("present", "absent"),
    ("inside", "outside"),
    ("guilty", "innocent"),
)


def replaced(draw: Draw, label: str) -> tuple[str, ...]:
    """Anna sold the car. / The car was sold by Anna. (or: The boat was sold by Anna.)"""
    who, (deed, did), (thing, other) = draw.pick(PEOPLE), draw.two(TRADES), draw.two(GOODS)
    active = f"{who} {deed} the {thing}."
    if label == "not_equivalent":
        deed, thing = (did, thing) if draw.flip() else (deed, other)
    return draw.two((active, f"The {thing} was {deed} by {who}."))


def opposites(draw: Draw, label: str) -> tuple[str, ...]:
    """The king was rich today. / The king was wealthy today. (or: The king was needy today.)"""
    same, other = draw.two(draw.pick(OPPOSITES))
    word, match = draw.two(same)
    if label == "not_equivalent":
        match = draw.pick(other)
    subject, time = draw.pick(SUBJECTS), draw.pick(TIMES)
    return f"The {subject} was {word} {time}.", f"The {subject} was {match} {time}."


def denial(draw: Draw, label: str) -> tuple[str, ...]:
    """The dog was not awake today. / The dog was asleep today. (or: The dog was awake today.)"""
    one, two = draw.two(draw.pick(STATES))
    subject, time = draw.pick(SUBJECTS), draw.pick(TIMES)
    word = two if label == "equivalent" else one
    return draw.two((f"The {subject} was not {one} {time}.", f"The {subject} was {word} {time}."))


def roles(draw: Draw, label: str) -> tuple[str, ...]:
    """Anna thanked Ben. / Ben was thanked by Anna. (or: Anna was thanked by Ben.)"""
    first, second = draw.two(PEOPLE)
    deed = draw.pick(DEEDS)
    active = f"{first} {deed} {second}."
    if label == "not_equivalent":
        first, second = second, first
    return draw.two((active, f"{second} was {deed} by {first}."))


PHENOMENA = (replaced, replaced, opposites, opposites, denial, roles)
