"""Paraphrase: two sentences that say the same, or almost the same words that say something else."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

# past tense, past participle
DEEDS = (
    ("thanked", "thanked"),
    ("praised", "praised"),
    ("saw", "seen"),
    ("chose", "chosen"),
    ("called", "called"),
    ("helped", "helped"),
    ("blamed", "blamed"),
    ("met", "met"),
    ("hired", "hired"),
    ("invited", "invited"),
)
# two ways to say it, and the two ways to say its opposite
OPPOSITES = (
    (("big", "large"), ("small", "little")),
    (("fast", "quick"), ("slow", "sluggish")),
    (("rich", "wealthy"), ("poor", "needy")),
    (("happy", "glad"), ("sad", "unhappy")),
    (("loud", "noisy"), ("quiet", "silent")),
    (("clever", "smart"), ("stupid", "foolish")),
    (("ill", "sick"), ("healthy", "well")),
    (("brave", "bold"), ("afraid", "scared")),
)
SUBJECTS = (
    "The teacher",
    "The doctor",
    "The boy",
    "The girl",
    "The farmer",
    "The king",
    "The dog",
    "The guest",
    "The pilot",
)
TIMES = ("today", "in May", "in June", "at home", "last year", "again", "at school", "in Paris", "in Rome")
STATES = (("awake", "asleep"), ("alive", "dead"), ("present", "absent"), ("inside", "outside"), ("lost", "found"))
TRADES = ("sold", "bought", "lost", "found", "painted", "burned", "fixed", "built", "cleaned", "moved")
GOODS = ("car", "house", "book", "horse", "dog", "piano", "boat", "map", "phone", "ring", "lamp", "desk")


def roles(draw: Draw, label: str) -> tuple[str, ...]:
    """ "Anna thanked Ben." / "Ben was thanked by Anna." or "Anna was thanked by Ben." """
    first, second = draw.two(PEOPLE)
    past, participle = draw.pick(DEEDS)
    active, passive = f"{first} {past} {second}.", f"{second} was {participle} by {first}."
    if label == "not_equivalent":
        passive = f"{first} was {participle} by {second}."
    return (active, passive) if draw.flip() else (passive, active)


def opposites(draw: Draw, label: str) -> tuple[str, ...]:
    """ "The king was rich." / "The king was wealthy." or "The king was poor." """
    same, other = draw.two(draw.pick(OPPOSITES))
    word = draw.pick(same)
    match = same[1 - same.index(word)] if label == "equivalent" else draw.pick(other)
    subject, time = draw.pick(SUBJECTS), draw.pick(TIMES)
    return f"{subject} was {word} {time}.", f"{subject} was {match} {time}."


def denial(draw: Draw, label: str) -> tuple[str, ...]:
    """The dog was not awake. / The dog was asleep. (or: The dog was awake.)"""
    one, two = draw.two(draw.pick(STATES))
    subject, time = draw.pick(SUBJECTS), draw.pick(TIMES)
    no = f"{subject} was not {one} {time}."
    yes = f"{subject} was {two if label == 'equivalent' else one} {time}."
    return (no, yes) if draw.flip() else (yes, no)


def replaced(draw: Draw, label: str) -> tuple[str, ...]:
    """Anna sold the car. / The car was sold by Anna. (or: The car was bought by Anna., The boat was ...)"""
    who, (deed, did), (thing, other) = draw.pick(PEOPLE), draw.two(TRADES), draw.two(GOODS)
    active = f"{who} {deed} the {thing}."
    if label == "not_equivalent":
        deed, thing = (did, thing) if draw.flip() else (deed, other)
    passive = f"The {thing} was {deed} by {who}."
    return (active, passive) if draw.flip() else (passive, active)


PHENOMENA = (replaced, replaced, opposites, opposites, denial, roles)
