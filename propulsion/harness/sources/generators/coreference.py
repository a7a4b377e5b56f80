"""Coreference: who does the pronoun stand for? The hypothesis puts a name in its place."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import MEN, WOMEN, Draw

MALE = ("man", "boy", "king", "father", "brother", "uncle")
FEMALE = ("woman", "girl", "queen", "mother", "sister", "aunt")
BEASTS = ("dog", "cat", "horse", "bird", "cow", "pig", "goat", "duck", "rat", "bear")
DEEDS = ("met", "called", "saw", "helped", "visited", "paid", "warned", "joined")
CHASES = ("saw", "chased", "followed", "heard", "bit", "watched", "smelled", "passed")
LINKS = ("before", "after", "when", "while", "because")
ACTS = ("left", "slept", "sang", "spoke", "arrived", "laughed", "won", "lost", "cried", "fell")
MOVES = ("slept", "ran", "fell", "ate", "jumped", "drank", "died", "hid", "swam", "woke")
GOODS = ("car", "house", "dog", "book", "garden", "boat", "phone", "picture", "horse", "desk")
# whom "because" explains: the first person or the second
FIRST = ("annoyed", "bored", "amazed", "amused", "scared", "surprised")
SECOND = ("thanked", "praised", "blamed", "admired", "envied", "punished")


def gender(draw: Draw, label: str) -> tuple[str, ...]:
    """The queen met the boy before he left. / The boy left. (or: The queen left.)"""
    woman = draw.flip()
    own, other = (draw.pick(FEMALE), draw.pick(MALE)) if woman else (draw.pick(MALE), draw.pick(FEMALE))
    one, two = draw.two((own, other))
    act, pronoun = draw.pick(ACTS), "she" if woman else "he"
    premise = f"The {one} {draw.pick(DEEDS)} the {two} {draw.pick(LINKS)} {pronoun} {act}."
    return premise, f"The {own if label == 'entailment' else other} {act}."


def number(draw: Draw, label: str) -> tuple[str, ...]:
    """The dogs chased the cat until it slept. / The cat slept. (or: The dogs slept.)"""
    many = draw.flip()
    own, other = draw.two(BEASTS)
    own, other = (f"{own}s", other) if many else (own, f"{other}s")
    one, two = draw.two((own, other))
    act, pronoun = draw.pick(MOVES), "they" if many else "it"
    premise = f"The {one} {draw.pick(CHASES)} the {two} {draw.pick(LINKS)} {pronoun} {act}."
    return premise, f"The {own if label == 'entailment' else other} {act}."


def possession(draw: Draw, label: str) -> tuple[str, ...]:
    """The queen showed the boy her car. / The queen owned the car. (or: The boy owned the car.)"""
    woman, thing = draw.flip(), draw.pick(GOODS)
    own, other = (draw.pick(FEMALE), draw.pick(MALE)) if woman else (draw.pick(MALE), draw.pick(FEMALE))
    one, two = draw.two((own, other))
    verb = draw.pick(("showed", "sold", "gave", "lent", "sent"))
    premise = f"The {one} {verb} the {two} {'her' if woman else 'his'} {thing}."
    return premise, f"The {own if label == 'entailment' else other} owned the {thing}."


def cause(draw: Draw, label: str) -> tuple[str, ...]:
    """ "Anna thanked Emma because she sang." / "Emma sang." or "Anna sang." """
    names, pronoun = (WOMEN, "she") if draw.flip() else (MEN, "he")
    one, two = draw.two(names)
    first, act = draw.flip(), draw.pick(ACTS)
    verb = draw.pick(FIRST if first else SECOND)
    who = one if first == (label == "entailment") else two
    return f"{one} {verb} {two} because {pronoun} {act}.", f"{who} {act}."


PHENOMENA = (gender, gender, number, number, possession, cause)
