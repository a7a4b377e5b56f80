"""Duplicate questions: two questions with the same answer, or two that only look alike."""

from __future__ import annotations

from propulsion.harness.sources.generators.draw import PLACES, Draw

SKILLS = (
    "French",
    "chess",
    "math",
    "piano",
    "German",
    "golf",
    "physics",
    "guitar",
    "Spanish",
    "tennis",
    "poker",
    "Latin",
    "swimming",
    "painting",
    "writing",
    "dancing",
    "boxing",
    "singing",
    "cooking",
    "law",
    "music",
    "history",
    "Greek",
    "yoga",
)
# three ways to ask, for each intent; the intents stand in pairs of near misses
INTENTS = (
    ("How can {} learn {}?", "What helps {} to learn {}?", "Where should {} study {}?"),
    ("How can {} teach {}?", "What helps {} to teach {}?", "Where should {} give lessons in {}?"),
    ("Why do {} love {}?", "What makes {} love {}?", "For what reason do {} enjoy {}?"),
    ("Why do {} hate {}?", "What makes {} hate {}?", "For what reason do {} dislike {}?"),
    ("Should {} start {}?", "Is it good if {} begin {}?", "Is it time {} took up {}?"),
    ("Should {} stop {}?", "Is it good if {} quit {}?", "Is it time {} gave up {}?"),
)
WHO = ("kids", "adults", "people", "women", "men", "students", "teachers", "boys", "girls", "parents")
SIZES = (
    ("bigger", "smaller"),
    ("older", "younger"),
    ("richer", "poorer"),
    ("warmer", "colder"),
    ("nearer", "farther"),
    ("louder", "quieter"),
)
ANIMALS = (
    "cats",
    "dogs",
    "birds",
    "horses",
    "babies",
    "wolves",
    "bees",
    "fish",
    "bears",
    "lions",
    "pigs",
    "sheep",
)
HABITS = ("sleep", "bite", "swim", "run", "fight", "cry", "hide", "sing", "jump", "dream", "eat", "drink")


def topic(draw: Draw, label: str) -> tuple[str, ...]:
    """The same intent about the same skill; or another skill, or the near miss of the intent."""
    place = draw.below(len(INTENTS))
    one, two = draw.two(range(3))
    who, (skill, other) = draw.pick(WHO), draw.two(SKILLS)
    first = INTENTS[place][one].format(who, skill)
    if label == "duplicate":
        return first, INTENTS[place][two].format(who, skill)
    if draw.flip():
        return first, INTENTS[place][two].format(who, other)
    return first, INTENTS[place ^ 1][two].format(who, skill)


def comparison(draw: Draw, label: str) -> tuple[str, ...]:
    """ "Is Rome older than Paris?" / "Is Paris younger than Rome?" or "Is Rome younger than Paris?" """
    one, two = draw.two(PLACES)
    more, less = draw.two(draw.pick(SIZES))
    first = f"Is {one} {more} than {two}?"
    return (
        (first, f"Is {two} {less} than {one}?")
        if label == "duplicate"
        else (first, f"Is {one} {less} than {two}?")
    )


def denial(draw: Draw, label: str) -> tuple[str, ...]:
    """ "Why do cats not swim?" / "What stops cats from swimming?": the same question, or its opposite."""
    who, habit = draw.pick(ANIMALS), draw.pick(HABITS)
    no = draw.flip()
    first = f"Why do {who} {'not ' if no else ''}{habit}?"
    second = f"What {'makes' if no != (label == 'duplicate') else 'never lets'} {who} {habit}?"
    return (first, second) if draw.flip() else (second, first)


PHENOMENA = (topic, topic, denial, denial, comparison)
