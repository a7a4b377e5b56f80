"""Acceptability: one sentence, well formed or not; each word is as frequent in the good as in the bad."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

NOUNS = (
    "boy",
    "girl",
    "dog",
    "friend",
    "teacher",
    "student",
    "doctor",
    "guest",
    "king",
    "sister",
    "farmer",
    "pilot",
)
THINGS = (
    "book",
    "car",
    "house",
    "letter",
    "picture",
    "song",
    "chair",
    "table",
    "garden",
    "river",
    "road",
    "key",
)
ADJECTIVES = ("old", "young", "small", "tall", "quiet", "strange", "new", "rich", "famous", "tired")
PREPOSITIONS = ("near", "behind", "beside", "with", "from", "by")
# base form, past participle: where the two differ in sound and spelling from each other
VERBS = (
    ("eat", "eaten"),
    ("write", "written"),
    ("take", "taken"),
    ("break", "broken"),
    ("see", "seen"),
    ("steal", "stolen"),
    ("drive", "driven"),
    ("choose", "chosen"),
    ("give", "given"),
    ("draw", "drawn"),
    ("hide", "hidden"),
    ("do", "done"),
)
MODALS = ("will", "can", "must", "should")
PERFECTS = ("has", "had")
INTRANSITIVE = ("slept", "laughed", "arrived", "smiled", "vanished", "fell")
TRANSITIVE = ("bought", "found", "opened", "carried", "fixed", "wanted")
REFLEXIVES = {"himself": ("king", "boy", "man", "brother"), "herself": ("queen", "girl", "woman", "sister")}


def agreement(draw: Draw, label: str) -> tuple[str, ...]:
    """ "The keys near the table are old." / "The keys near the table is old." """
    plural = draw.flip()
    good = label == "acceptable"
    head, other = draw.pick(NOUNS), draw.pick(THINGS)
    verb = draw.pick(("are", "were")) if plural == good else draw.pick(("is", "was"))
    subject = (
        f"{head}{'s' if plural else ''} {draw.pick(PREPOSITIONS)} the {other}{'s' if draw.flip() else ''}"
    )
    return (f"The {subject} {verb} {draw.pick(ADJECTIVES)}.",)


def auxiliary(draw: Draw, label: str) -> tuple[str, ...]:
    """ "Ben has written a letter." / "Ben has write a letter." """
    base, participle = draw.pick(VERBS)
    perfect = draw.flip()
    form = participle if perfect == (label == "acceptable") else base
    return (
        f"{draw.pick(PEOPLE)} {draw.pick(PERFECTS if perfect else MODALS)} {form} the {draw.pick(THINGS)}.",
    )


def reflexive(draw: Draw, label: str) -> tuple[str, ...]:
    """ "The queen near the boy hurt herself." / "... hurt himself." """
    own, other = draw.two(tuple(REFLEXIVES))
    word = own if label == "acceptable" else other
    subject, near = draw.pick(REFLEXIVES[own]), draw.pick(REFLEXIVES[draw.pick((own, other))])
    verb = draw.pick(("hurt", "saw", "blamed", "praised", "dressed"))
    return (f"The {subject} {draw.pick(PREPOSITIONS)} the {near} {verb} {word}.",)


def order(draw: Draw, label: str) -> tuple[str, ...]:
    """ "The old teacher found the key." / "The teacher old found the key." """
    words = [
        "The",
        draw.pick(ADJECTIVES),
        draw.pick(NOUNS),
        draw.pick(TRANSITIVE),
        "the",
        draw.pick(ADJECTIVES),
        draw.pick(THINGS),
    ]
    if label == "unacceptable":
        i = draw.pick((1, 2, 3, 4, 5))
        words[i], words[i + 1] = words[i + 1], words[i]
    return (" ".join(words) + ".",)


def transitivity(draw: Draw, label: str) -> tuple[str, ...]:
    """ "The guest found the key." / "The guest slept the key." / "The guest found." """
    takes = draw.flip()
    verb = draw.pick(TRANSITIVE if takes else INTRANSITIVE)
    ending = (
        f"the {draw.pick(THINGS)}"
        if takes == (label == "acceptable")
        else draw.pick(("yesterday", "again", "today", "there"))
    )
    return (f"The {draw.pick(ADJECTIVES)} {draw.pick(NOUNS)} {verb} {ending}.",)


PHENOMENA = (order, order, transitivity, transitivity, auxiliary, reflexive, agreement)
