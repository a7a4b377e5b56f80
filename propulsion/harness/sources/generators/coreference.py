"""Coreference: what does the pronoun, or "did", stand for? The hypothesis spells it out."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

MALE = ("man", "boy", "king", "father", "brother", "uncle")
FEMALE = ("woman", "girl", "queen", "mother", "sister", "aunt")
DEEDS = ("met", "called", "saw", "helped", "visited", "paid", "warned", "joined")
LINKS = ("before", "after", "when", "while", "because")
ACTS = ("left", "slept", "sang", "spoke", "arrived", "laughed", "won", "lost", "cried", "fell")
PERSONS = ("actor", "pilot", "singer", "farmer", "waiter", "driver", "nurse", "child", "doctor", "teacher", "guest", "guard")
WARES = ("cup", "vase", "plate", "bottle", "glass", "lamp", "mirror", "bowl", "window", "chair", "pipe", "clock")
LIVELY = ("cried", "slept", "spoke", "laughed", "sang", "smiled", "sighed", "prayed")
LIFELESS = ("broke", "cracked", "burned", "leaked", "rusted", "melted", "split", "snapped")


def animacy(draw: Draw, label: str) -> tuple[str, ...]:
    """The boy dropped the cup and it broke. / The cup broke. (or: The boy broke.)"""
    person, thing, lively = draw.pick(PERSONS), draw.pick(WARES), draw.flip()
    act = draw.pick(LIVELY if lively else LIFELESS)
    pronoun = draw.pick(("he", "she")) if lively else "it"
    who = person if lively == (label == "entailment") else thing
    verb = draw.pick(("dropped", "hit", "moved", "washed", "held", "touched"))
    return f"The {person} {verb} the {thing} and {pronoun} {act}.", f"The {who} {act}."


def gender(draw: Draw, label: str) -> tuple[str, ...]:
    """The queen met the boy before he left. / The boy left. (or: The queen left.)"""
    woman = draw.flip()
    own, other = (draw.pick(FEMALE), draw.pick(MALE)) if woman else (draw.pick(MALE), draw.pick(FEMALE))
    one, two = draw.two((own, other))
    act, pronoun = draw.pick(ACTS), "she" if woman else "he"
    premise = f"The {one} {draw.pick(DEEDS)} the {two} {draw.pick(LINKS)} {pronoun} {act}."
    return premise, f"The {own if label == 'entailment' else other} {act}."


def ellipsis(draw: Draw, label: str) -> tuple[str, ...]:
    """Anna sang but Ben did not. / Ben never sang. (or: Ben sang.): what "did" stands for"""
    (one, two), act = draw.two(PEOPLE), draw.pick(ACTS)
    did, alike = draw.flip(), draw.flip()
    start = f"{one} {act}" if did else f"{one} never {act}"
    end = f"and {'so' if did else 'neither'} did {two}" if alike else f"but {two} did{' not' if did else ''}"
    who, true = (one, did) if draw.flip() else (two, did == alike)
    return f"{start} {end}.", f"{who} {'' if true == (label == 'entailment') else 'never '}{act}."


PHENOMENA = (ellipsis, ellipsis, ellipsis, animacy, animacy, gender)
