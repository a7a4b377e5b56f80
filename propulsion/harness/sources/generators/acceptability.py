"""Acceptability: one sentence, well formed or not; each word is as frequent in the good as in the bad."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

NOUNS = ("boy", "girl", "dog", "friend", "teacher", "student", "doctor", "guest", "king", "sister", "farmer")
THINGS = ("book", "car", "house", "letter", "picture", "song", "chair", "table", "garden", "road", "key")
ADJECTIVES = ("old", "young", "small", "tall", "quiet", "strange", "new", "rich", "famous", "tired")
PREPOSITIONS = ("near", "behind", "beside", "with", "from", "by")
MODALS = ("will", "can", "must", "should")
PERFECTS = ("has", "had")
FORMS = {  # base form -> past participle
    **{"write": "written", "take": "taken", "break": "broken", "see": "seen", "steal": "stolen"},
    **{"choose": "chosen", "draw": "drawn", "hide": "hidden", "forget": "forgotten", "drive": "driven"},
}
INTRANSITIVE = ("slept", "laughed", "arrived", "smiled", "vanished", "fell")
TRANSITIVE = ("bought", "found", "opened", "carried", "fixed", "wanted")
REFLEXIVES = {"himself": ("king", "boy", "man", "brother"), "herself": ("queen", "girl", "woman", "sister")}


def order(draw: Draw, label: str) -> tuple[str, ...]:
    """The old teacher found the new key. / The teacher old found the new key."""
    subject, verb = [draw.pick(ADJECTIVES), draw.pick(NOUNS)], draw.pick(TRANSITIVE)
    words = ["The", *subject, verb, "the", draw.pick(ADJECTIVES), draw.pick(THINGS)]
    if label == "unacceptable":
        i = 1 + draw.below(5)
        words[i], words[i + 1] = words[i + 1], words[i]
    return (" ".join(words) + ".",)


def transitivity(draw: Draw, label: str) -> tuple[str, ...]:
    """The old guest found the key. / The old guest slept the key., The old guest found again."""
    takes = draw.flip()
    verb = draw.pick(TRANSITIVE if takes else INTRANSITIVE)
    alone = takes != (label == "acceptable")
    ending = draw.pick(("yesterday", "again", "today", "there")) if alone else f"the {draw.pick(THINGS)}"
    return (f"The {draw.pick(ADJECTIVES)} {draw.pick(NOUNS)} {verb} {ending}.",)


def auxiliary(draw: Draw, label: str) -> tuple[str, ...]:
    """Ben has stolen the letter. / Ben has steal the letter."""
    base, perfect = draw.pick(tuple(FORMS)), draw.flip()
    form = FORMS[base] if perfect == (label == "acceptable") else base
    return (f"{draw.pick(PEOPLE)} {draw.pick(PERFECTS if perfect else MODALS)} {form} the {draw.pick(THINGS)}.",)


def reflexive(draw: Draw, label: str) -> tuple[str, ...]:
    """The queen near the boy hurt herself. / The queen near the boy hurt himself."""
    own, other = draw.two(tuple(REFLEXIVES))
    subject, near = draw.pick(REFLEXIVES[own]), draw.pick(REFLEXIVES[draw.pick((own, other))])
    verb = draw.pick(("hurt", "saw", "blamed", "praised", "dressed"))
    word = own if label == "acceptable" else other
    return (f"The {subject} {draw.pick(PREPOSITIONS)} the {near} {verb} {word}.",)


def agreement(draw: Draw, label: str) -> tuple[str, ...]:
    """The boys near the table are old. / The boys near the table is old."""
    many = draw.flip()
    verb = draw.pick(("are", "were") if many == (label == "acceptable") else ("is", "was"))
    head, other = draw.pick(NOUNS) + "s" * many, draw.pick(THINGS) + "s" * draw.flip()
    return (f"The {head} {draw.pick(PREPOSITIONS)} the {other} {verb} {draw.pick(ADJECTIVES)}.",)


PHENOMENA = (order, order, transitivity, transitivity, auxiliary, reflexive, agreement)
