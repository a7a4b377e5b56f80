"""Similarity: two short events and how much they share, from 0 to 5 as in STS-B."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

# three synonyms each; words of different groups share nothing
AGENTS = (
    ("man", "guy"),
    ("woman", "lady"),
    ("child", "kid"),
    ("doctor", "physician"),
    ("dog", "hound"),
    ("soldier", "trooper"),
)
VERBS = (
    ("buys", "purchases"),
    ("fixes", "repairs"),
    ("watches", "observes"),
    ("throws", "tosses"),
    ("carries", "hauls"),
    ("hides", "conceals"),
)
OBJECTS = (
    ("car", "automobile"),
    ("rock", "stone"),
    ("picture", "photo"),
    ("cup", "mug"),
    ("boat", "ship"),
    ("couch", "sofa"),
)
PLACES = (("inside", "indoors"), ("outside", "outdoors"), ("nearby", "close by"), ("upstairs", "above"))
LOSS = {"agent": 1.5, "verb": 2.0, "object": 1.5, "place": 0.6}


def shared(draw: Draw) -> tuple[tuple[str, ...], float]:
    """Slots kept, said with a synonym (0.1 off) or replaced (the slot's whole weight off)."""
    slots = (AGENTS, VERBS, OBJECTS, PLACES)
    changed = draw.some(range(4), draw.below(5))
    score, first, second = 5.0, [], []
    for i, (groups, loss) in enumerate(zip(slots, LOSS.values(), strict=True)):
        one, two = draw.two(groups)
        word = draw.pick(one)
        if i in changed:
            match, score = draw.pick(two), score - loss
        else:
            match = draw.pick(one)
            score -= 0.1 * (match != word)
        first.append(word)
        second.append(match)
    return (_say(first), _say(second)), round(max(score, 0.0), 1)


def roles(draw: Draw) -> tuple[tuple[str, ...], float]:
    """Who does it to whom: the same roles 5, swapped 2.5, one person replaced 3, both 1.5."""
    (one, two), (other, another) = draw.two(PEOPLE), draw.two(PEOPLE)
    verb = draw.pick(("calls", "helps", "sees", "follows", "meets", "pays"))
    score, (who, whom) = draw.pick(
        ((5.0, (one, two)), (2.5, (two, one)), (3.0, (one, other)), (1.5, (other, another)))
    )
    return (f"{one} {verb} {two}.", f"{who} {verb} {whom}."), score


def _say(words: list[str]) -> str:
    agent, verb, thing, place = words
    return f"A {agent} {verb} a {thing} {place}."


PHENOMENA = (shared,)
