"""Commitment: is the speaker bound to a clause that stands under a verb, to its opposite, or to neither?"""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

ACTS = ("left", "slept", "sang", "spoke", "won", "lost", "cried", "ate", "ran", "fell", "came", "stayed")
KNOWING = ("knew", "noticed", "remembered", "realized", "regretted", "saw", "understood", "discovered")
FEIGNING = ("pretended", "wrongly thought", "dreamed", "imagined")


def knowing(draw: Draw, label: str) -> tuple[str, ...]:
    """Anna noticed that Ben left. / Ben left. (or: Ben never left., Carl left.)"""
    speaker, one, other = draw.some(PEOPLE, 3)
    act, did = draw.pick(ACTS), draw.flip()
    start = f"{speaker} {draw.pick(KNOWING)} that {one} {'' if did else 'never '}{act}."
    return start, _claim(draw, label, one, other, act, did)


def asking(draw: Draw, label: str) -> tuple[str, ...]:
    """When did Anna find out that Ben left? / as `knowing`: what a question takes for granted holds."""
    speaker, one, other = draw.some(PEOPLE, 3)
    act, did = draw.pick(ACTS), draw.flip()
    start = f"When did {speaker} find out that {one} {'' if did else 'never '}{act}?"
    return start, _claim(draw, label, one, other, act, did)


def feigning(draw: Draw, label: str) -> tuple[str, ...]:
    """Anna pretended that Ben left. / Ben never left. (or: Ben left., Carl left.)"""
    speaker, one, other = draw.some(PEOPLE, 3)
    act, did = draw.pick(ACTS), draw.flip()
    start = f"{speaker} {draw.pick(FEIGNING)} that {one} {'' if did else 'never '}{act}."
    return start, _claim(draw, label, one, other, act, not did)


def _claim(draw: Draw, label: str, one: str, other: str, act: str, did: bool) -> str:
    """Of the same person what is the case or its opposite; of another one either."""
    if label == "neutral":
        one, true = other, draw.flip()
    else:
        true = did == (label == "entailment")
    return f"{one} {'' if true else 'never '}{act}."


PHENOMENA = (knowing, knowing, asking, feigning)
