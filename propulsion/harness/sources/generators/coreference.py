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
# who helps, who is helped, and what can be said of either
HELPERS = ("doctor", "nurse", "teacher", "pilot", "guard", "priest", "sailor", "soldier")
HELPED = ("patient", "child", "guest", "tourist", "student", "prisoner", "baby", "victim")
KIND = ("kind", "brave", "polite", "strong", "generous", "skilled")
NEEDY = ("ill", "lost", "hurt", "weak", "scared", "hungry")


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


def reason(draw: Draw, label: str) -> tuple[str, ...]:
    """The nurse helped the child because she was lost. / The child was lost. (or: The nurse was lost.)"""
    helper, helped, needy = draw.pick(HELPERS), draw.pick(HELPED), draw.flip()
    trait = draw.pick(NEEDY if needy else KIND)
    verb, pronoun = draw.pick(("helped", "saved", "served", "joined")), draw.pick(("he", "she"))
    who = helped if needy == (label == "entailment") else helper
    return f"The {helper} {verb} the {helped} because {pronoun} was {trait}.", f"The {who} was {trait}."


PHENOMENA = (reason, reason, gender, gender, number, possession)
