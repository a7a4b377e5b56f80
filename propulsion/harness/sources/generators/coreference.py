"""Coreference: what does the pronoun, or "did", stand for? The hypothesis spells it out."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

ACTS = ("left", "slept", "sang", "spoke", "arrived", "laughed", "won", "lost", "cried", "fell")
WORKERS = ("actor", "pilot", "singer", "farmer", "waiter", "driver", "nurse", "doctor", "teacher", "guard")
WARES = ("cup", "vase", "plate", "bottle", "glass", "lamp", "mirror", "bowl", "pipe", "clock")
LIVELY = ("cried", "slept", "spoke", "laughed", "sang", "smiled", "sighed", "prayed")
LIFELESS = ("broke", "cracked", "burned", "leaked", "rusted", "melted", "split", "snapped")
MALE = ("man", "boy", "king", "father", "brother", "uncle")
FEMALE = ("woman", "girl", "queen", "mother", "sister", "aunt")


def ellipsis(draw: Draw, label: str) -> tuple[str, ...]:
    """Anna sang but Ben did not. / Ben never sang. (or: Ben sang.)"""
    (one, two), act = draw.two(PEOPLE), draw.pick(ACTS)
    did, alike = draw.flip(), draw.flip()
    start = f"{one} {'' if did else 'never '}{act}"
    end = f"and {'so' if did else 'neither'} did {two}" if alike else f"but {two} did{' not' * did}"
    who, true = (one, did) if draw.flip() else (two, did == alike)
    return f"{start} {end}.", f"{who} {'' if true == (label == 'entailment') else 'never '}{act}."


def animacy(draw: Draw, label: str) -> tuple[str, ...]:
    """The actor dropped the cup and it broke. / The cup broke. (or: The actor broke.)"""
    person, thing, lively = draw.pick(WORKERS), draw.pick(WARES), draw.flip()
    act = draw.pick(LIVELY if lively else LIFELESS)
    pronoun = draw.pick(("he", "she")) if lively else "it"
    who = person if lively == (label == "entailment") else thing
    verb = draw.pick(("dropped", "hit", "moved", "washed", "held", "touched"))
    return f"The {person} {verb} the {thing} and {pronoun} {act}.", f"The {who} {act}."


def gender(draw: Draw, label: str) -> tuple[str, ...]:
    """The queen met the boy before he left. / The boy left. (or: The queen left.)"""
    woman, act = draw.flip(), draw.pick(ACTS)
    own, other = (draw.pick(names) for names in ((FEMALE, MALE) if woman else (MALE, FEMALE)))
    one, two = draw.two((own, other))
    verb = draw.pick(("met", "called", "saw", "helped", "visited", "paid", "warned", "joined"))
    link = draw.pick(("before", "after", "when", "while", "because"))
    premise = f"The {one} {verb} the {two} {link} {'she' if woman else 'he'} {act}."
    return premise, f"The {own if label == 'entailment' else other} {act}."


PHENOMENA = (ellipsis, ellipsis, ellipsis, animacy, animacy, gender)
