"""Duplicate questions: two questions with the same answer, or two that only look alike."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PLACES, Draw

LANGUAGES = (
    "French",
    "German",
    "Spanish",
    "Latin",
    "Greek",
    "English",
    "math",
    "physics",
    "history",
    "music",
)
HOBBIES = ("chess", "golf", "tennis", "poker", "yoga", "swimming", "painting", "dancing", "boxing", "cooking")
SKILLS = LANGUAGES + HOBBIES
WHO = ("kids", "adults", "people", "women", "men", "students", "teachers", "boys", "girls", "parents")
INTENTS = (  # three ways to ask each; neighbours 0-1, 2-3 and 4-5 are near misses of each other
    ("How can {} learn {}?", "What helps {} to learn {}?", "Where should {} study {}?"),
    ("How can {} teach {}?", "What helps {} to teach {}?", "Where should {} give lessons in {}?"),
    ("Why do {} love {}?", "What makes {} love {}?", "For what reason do {} enjoy {}?"),
    ("Why do {} hate {}?", "What makes {} hate {}?", "For what reason do {} dislike {}?"),
    ("Should {} start {}?", "Is it good if {} begin {}?", "Is it time {} took up {}?"),
    ("Should {} stop {}?", "Is it good if {} quit {}?", "Is it time {} gave up {}?"),
)
ANIMALS = ("cats", "dogs", "birds", "horses", "babies", "wolves", "bees", "bears", "lions", "pigs", "sheep")
HABITS = ("sleep", "bite", "swim", "run", "fight", "cry", "hide", "sing", "jump", "dream", "eat", "drink")
SIZES = (
    ("bigger", "smaller"),
    ("older", "younger"),
    ("richer", "poorer"),
    ("warmer", "colder"),
    ("louder", "quieter"),
)


def topic(draw: Draw, label: str) -> tuple[str, ...]:
    """The same intent about the same skill; or another skill, or the near miss of the intent."""
    place, (one, two) = draw.below(len(INTENTS)), draw.two(range(3))
    who, (skill, other) = draw.pick(WHO), draw.two(SKILLS)
    first = INTENTS[place][one].format(who, skill)
    if label == "not_duplicate":
        place, skill = (place, other) if draw.flip() else (place ^ 1, skill)
    return first, INTENTS[place][two].format(who, skill)


def denial(draw: Draw, label: str) -> tuple[str, ...]:
    """Why do cats not swim? / What never lets cats swim? (or: What makes cats swim?)"""
    who, habit, no = draw.pick(ANIMALS), draw.pick(HABITS), draw.flip()
    first = f"Why do {who} {'not ' if no else ''}{habit}?"
    cause = "never lets" if no == (label == "duplicate") else "makes"
    return draw.two((first, f"What {cause} {who} {habit}?"))


def comparison(draw: Draw, label: str) -> tuple[str, ...]:
    """Is Rome older than Paris? / Is Paris younger than Rome? (or: Is Rome younger than Paris?)"""
    (one, two), (more, less) = draw.two(PLACES), draw.two(draw.pick(SIZES))
    first = f"Is {one} {more} than {two}?"
    if label == "not_duplicate":
        one, two = two, one
    return first, f"Is {two} {less} than {one}?"


PHENOMENA = (topic, topic, denial, denial, comparison)
