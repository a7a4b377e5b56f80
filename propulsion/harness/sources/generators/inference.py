"""Inference: a premise and a hypothesis that follows from it, may be true, or cannot be."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

# a kind, and what every one of them is
KINDS = (
    ("poodle", "dog"),
    ("rose", "flower"),
    ("oak", "tree"),
    ("hammer", "tool"),
    ("salmon", "fish"),
    ("eagle", "bird"),
    ("apple", "fruit"),
    ("truck", "vehicle"),
    ("violin", "instrument"),
    ("sofa", "chair"),
    ("shirt", "garment"),
    ("novel", "book"),
)
DEEDS = ("bought", "saw", "found", "wanted", "sold", "lost", "painted", "liked")
STATES = (
    ("open", "closed"),
    ("full", "empty"),
    ("dead", "alive"),
    ("asleep", "awake"),
    ("wet", "dry"),
    ("dirty", "clean"),
)
THINGS = ("door", "box", "shop", "cat", "bird", "bag", "cup", "room", "dog", "house", "fish", "boat")
MEASURES = (
    ("taller", "shorter"),
    ("older", "younger"),
    ("richer", "poorer"),
    ("faster", "slower"),
    ("stronger", "weaker"),
)
ACTS = ("left", "slept", "sang", "spoke", "won", "lost", "cried", "ate", "paid", "called")
GROUPS = ("dogs", "boys", "girls", "birds", "guests", "horses", "teachers", "cats")
TRAITS = ("old", "young", "small", "big", "black", "white", "tired", "hungry")


def states(draw: Draw, label: str) -> tuple[str, ...]:
    """ "The door is open." / "The door is not closed.", "The box is closed.", "The door is closed." """
    thing, other = draw.two(THINGS)
    pair = draw.two(draw.pick(STATES))
    nots = draw.flip(), draw.flip()
    agree = label == "entailment" or (label == "neutral" and draw.flip())
    words = pair[0], pair[(nots[0] != nots[1]) == agree]
    second = other if label == "neutral" else thing
    return f"The {thing} is {_no(nots[0])}{words[0]}.", f"The {second} is {_no(nots[1])}{words[1]}."


def comparisons(draw: Draw, label: str) -> tuple[str, ...]:
    """ "Anna is taller than Ben." / "Ben is shorter than Anna.", "Carl is ...", "Ben is taller than Anna." """
    one, two, three = draw.some(PEOPLE, 3)
    word, opposite = draw.two(draw.pick(MEASURES))
    first = f"{one} is {word} than {two}."
    swap = draw.flip()
    agree = label == "entailment" or (label == "neutral" and draw.flip())
    if label == "neutral":
        one, two = draw.two((draw.pick((one, two)), three))
    if swap:
        one, two = two, one
    return first, f"{one} is {word if swap != agree else opposite} than {two}."


def kinds(draw: Draw, label: str) -> tuple[str, ...]:
    """ "Anna bought a rose." / "Anna bought a flower.": from kind to class, back again, and under negation."""
    up, no = draw.flip(), draw.flip()
    kind, whole = draw.pick(KINDS)
    if label == "entailment":
        nots, up = (no, no), not no
    elif label == "contradiction":
        nots, up = (no, not no), not no
    else:
        nots = no, draw.flip()
        up = no if nots[0] == nots[1] else no
    words = (kind, whole) if up else (whole, kind)
    who, deed = draw.pick(PEOPLE), draw.pick(DEEDS)
    first, second = (
        f"{who} {deed} {'no' if n else 'a'} {word}." for n, word in zip(nots, words, strict=True)
    )
    return first, second


def company(draw: Draw, label: str) -> tuple[str, ...]:
    """ "Anna and Ben left." / "Ben left.", "Carl left.", "Neither Anna nor Ben left." """
    one, two, three = draw.some(PEOPLE, 3)
    act = draw.pick(ACTS)
    first = f"Both {one} and {two} {act}." if (both := draw.flip()) else f"Neither {one} nor {two} {act}."
    who = three if label == "neutral" else draw.pick((one, two))
    true = label == "entailment" or (label == "neutral" and draw.flip())
    verb = act if both == true else f"never {act}"
    return first, f"{who} {verb}."


def quantities(draw: Draw, label: str) -> tuple[str, ...]:
    """ "All old dogs slept." / "Some dogs slept." """
    group, trait, act = draw.pick(GROUPS), draw.pick(TRAITS), draw.pick(ACTS)
    narrow, wide = f"{trait} {group}", group
    forms = {
        "entailment": (
            ("All", wide, "Some", narrow),
            ("All", wide, "All", narrow),
            ("No", wide, "No", narrow),
            ("Some", narrow, "Some", wide),
        ),
        "neutral": (
            ("Some", wide, "Some", narrow),
            ("All", narrow, "All", wide),
            ("No", narrow, "No", wide),
            ("Some", wide, "All", narrow),
        ),
        "contradiction": (
            ("All", wide, "No", narrow),
            ("No", wide, "Some", narrow),
            ("Some", narrow, "No", wide),
            ("No", wide, "All", narrow),
        ),
    }
    q1, g1, q2, g2 = draw.pick(forms[label])
    return f"{q1} {g1} {act}.", f"{q2} {g2} {act}."


def _no(negated: bool) -> str:
    return "not " if negated else ""


PHENOMENA = (states, comparisons, kinds, company, quantities)
