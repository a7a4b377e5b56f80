"""Similarity: two short events and how much they share, from 0 to 5 as in STS-B."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import Draw

# Two names for each thing; different things share nothing.
AGENTS = (("man", "guy"), ("woman", "lady"), ("child", "kid"), ("doctor", "physician"), ("dog", "hound"))
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
SLOTS = ((AGENTS, 1.5), (VERBS, 2.0), (OBJECTS, 1.5), (PLACES, 0.5))  # and what another filler costs
SYNONYM = 0.1  # what another name for the same thing costs


def shared(draw: Draw) -> tuple[tuple[str, ...], float]:
    """The man buys the car inside. / The guy purchases the rock inside.: 5 - 0.1 - 0.1 - 1.5 = 3.3"""
    changed = draw.some(range(len(SLOTS)), draw.below(len(SLOTS) + 1))
    score, first, second = 5.0, [], []
    for place, (groups, loss) in enumerate(SLOTS):
        one, two = draw.two(groups)
        word, match = draw.pick(one), draw.pick(two if place in changed else one)
        score -= loss if place in changed else SYNONYM * (match != word)
        first.append(word)
        second.append(match)
    return (_say(*first), _say(*second)), round(max(score, 0.0), 1)


def _say(agent: str, verb: str, thing: str, place: str) -> str:
    return f"The {agent} {verb} the {thing} {place}."


PHENOMENA = (shared,)
