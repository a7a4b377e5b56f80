"""Sentiment: one sentence about a work; words of praise and blame say nothing without their context."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import Draw

WORKS = ("film", "movie", "show", "play", "book", "story", "song", "album", "concert", "series")
PARTS = ("plot", "acting", "script", "music", "ending", "cast", "start", "title", "dialogue", "setting")
GOOD = ("great", "funny", "clever", "moving", "charming", "brilliant", "fresh", "lively", "exciting")
BAD = ("dull", "boring", "weak", "awful", "silly", "terrible", "clumsy", "slow", "stupid")
VERBS = ("was", "is", "seemed", "felt")
KEEP = ("truly", "very", "nothing but", "never less than", "nothing if not")
FLIP = ("not", "never", "hardly", "anything but", "far from")


def negation(draw: Draw, label: str) -> tuple[str, ...]:
    """The film was anything but dull. / The film was nothing but dull."""
    own, other = _words(draw, label)
    phrase = f"{draw.pick(KEEP)} {own}" if draw.flip() else f"{draw.pick(FLIP)} {other}"
    return (f"{draw.pick(('The', 'This', 'That'))} {draw.pick(WORKS)} {draw.pick(VERBS)} {phrase}.",)


def concession(draw: Draw, label: str) -> tuple[str, ...]:
    """Despite the dull plot, the film was great. / Despite the great plot, the film was dull."""
    own, other = _words(draw, label)
    work, part, verb = draw.pick(WORKS), draw.pick(PARTS), draw.pick(VERBS)
    if draw.flip():
        return (f"Despite the {other} {part}, the {work} {verb} {own}.",)
    return (f"The {work} {verb} {own} despite the {other} {part}.",)


def expectation(draw: Draw, label: str) -> tuple[str, ...]:
    """We expected some dull film but it was great. / We expected some great film but it was dull."""
    own, other = _words(draw, label)
    work, verb = draw.pick(WORKS), draw.pick(("expected", "feared", "predicted", "imagined"))
    if draw.flip():
        return (f"We {verb} some {other} {work} but it was {own}.",)
    return (f"It was {own}, though we {verb} some {other} {work}.",)


def comparison(draw: Draw, label: str) -> tuple[str, ...]:
    """The film was more clever than dull. / The film was less clever than dull."""
    own, other = _words(draw, label)
    phrase = f"more {own} than {other}" if draw.flip() else f"less {other} than {own}"
    return (f"The {draw.pick(WORKS)} {draw.pick(VERBS)} {phrase}.",)


def _words(draw: Draw, label: str) -> tuple[str, str]:
    """An adjective of the label's side, and one of the other."""
    good, bad = draw.pick(GOOD), draw.pick(BAD)
    return (good, bad) if label == "positive" else (bad, good)


PHENOMENA = (negation, concession, expectation, comparison)
