"""Word senses: one word in two sentences, of one meaning or of two."""

from __future__ import annotations

from typing import Any

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

# word -> sentences about the animal, and about the thing or deed; {} stands for the word, somebody is named first.
# All words have the same two kinds of meaning, so that what tells them apart in one helps with the others.
SENSES = {
    "bat": (
        ("saw a wild {} asleep in the cave", "fed a young {} with insects", "heard the {} fly from its nest"),
        ("bought a wooden {} for the game", "hit the ball with the {}", "left the {} at the stadium"),
    ),
    "mouse": (
        ("saw a wild {} asleep in the grass", "fed a young {} with cheese", "heard the {} run to its nest"),
        ("bought a wireless {} for the computer", "clicked the {} at the desk", "plugged the {} into the laptop"),
    ),
    "crane": (
        ("saw a wild {} asleep by the lake", "fed a young {} with fish", "heard the {} fly from its nest"),
        ("bought a steel {} for the factory", "lifted the bricks with the {}", "parked the {} at the building"),
    ),
    "seal": (
        ("saw a wild {} asleep on the ice", "fed a young {} with fish", "heard the {} bark in the zoo"),
        ("bought a rubber {} for the pipe", "closed the letter with a {}", "put the {} on the contract"),
    ),
    "bug": (
        ("saw a wild {} asleep on a leaf", "fed the frog with a young {}", "heard the {} crawl in the grass"),
        ("paid a programmer to fix the {}", "found a {} in the software", "printed the {} on the screen"),
    ),
    "worm": (
        ("saw a wild {} asleep in the mud", "fed the bird with a young {}", "watched the {} crawl in the grass"),
        ("paid a programmer to stop the {}", "found a {} on the computer", "sent a {} by email to the office"),
    ),
    "jaguar": (
        ("saw a wild {} asleep in the forest", "fed a young {} with meat", "heard the {} roar in the zoo"),
        ("bought a used {} from the dealer", "drove the {} to the garage", "parked the {} at the office"),
    ),
    "bass": (
        ("saw a wild {} asleep in the lake", "fed a young {} with insects", "watched the {} swim in the river"),
        ("bought an electric {} for the band", "played the {} at the concert", "plugged the {} into the speaker"),
    ),
    "cricket": (
        ("saw a wild {} asleep in the grass", "fed the frog with a young {}", "heard the {} sing in the forest"),
        ("bought a ticket for the {} game", "played {} at the stadium", "watched the {} match on the screen"),
    ),
    "fly": (
        ("saw a wild {} asleep on a leaf", "fed the frog with a young {}", "heard the {} buzz in the forest"),
        ("bought a ticket to {} to the city", "paid the pilot to {} the plane", "took the airline to {} home"),
    ),
    "duck": (
        ("saw a wild {} asleep by the lake", "fed a young {} with bread", "heard the {} fly from its nest"),
        ("told the boxer to {} the punch", "had to {} under the low door", "tried to {} behind the car"),
    ),
    "bear": (
        ("saw a wild {} asleep in the cave", "fed a young {} with fish", "heard the {} roar in the zoo"),
        ("paid the bank to {} the cost", "had to {} the noise at the office", "agreed to {} the blame at work"),
    ),
}


def pairs(draw: Draw, place: int) -> list[dict[str, Any]]:
    """Anna fed a young bat with insects. / Ben hit the ball with the bat.: false."""
    word, label = draw.pick(tuple(SENSES)), bool(place)
    senses = draw.two(SENSES[word])
    first, second = draw.two(senses[0]) if label else (draw.pick(senses[0]), draw.pick(senses[1]))
    record: dict[str, Any] = {"word": word, "label": label}
    for side, who, told in zip("12", draw.two(PEOPLE), (first, second), strict=True):
        start = len(who) + 1 + told.index("{}")
        record |= {f"sentence{side}": f"{who} {told.format(word)}."}
        record |= {f"start{side}": start, f"end{side}": start + len(word)}
    return [record]


PHENOMENA = (pairs,)
