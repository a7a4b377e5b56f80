"""Word senses: one word in two sentences, of one meaning or of two."""

from __future__ import annotations

from typing import Any

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

# word -> sentences with the one meaning, and with the other; {} stands for the word, somebody is named first.
# The sentences of one meaning have a word in common, so that the pair can tell.
SENSES = {
    "bank": (
        ("swam to the {} of the river", "fished in the river from the {}", "saw the river from its muddy {}"),
        ("asked the {} for a loan", "paid the loan back to the {}", "got a cheap loan from a {}"),
    ),
    "bat": (
        ("saw a {} in the dark cave", "woke the {} in the cave", "heard the {} leave its cave"),
        ("hit the ball with a {}", "missed the ball with the {}", "swung the {} at the ball"),
    ),
    "match": (
        ("lit the candle with a {}", "held a {} to the candle", "had a candle but no {}"),
        ("won the tennis {}", "lost a {} of tennis", "watched the tennis {}"),
    ),
    "letter": (
        ("put a stamp on the {}", "sent the {} without a stamp", "tore the stamp off the {}"),
        ("learned the last {} of the alphabet", "wrote each {} of the alphabet", "forgot a {} of the alphabet"),
    ),
    "mouse": (
        ("plugged the {} into the computer", "moved the {} of the computer", "bought a computer with a {}"),
        ("saw a {} eat the cheese", "caught the {} with cheese", "gave the {} some cheese"),
    ),
    "palm": (
        ("read the lines of the hand on the {}", "opened the hand to show the {}", "cut the {} of one hand"),
        ("rested on the beach under a {}", "planted a {} at the beach", "saw the beach behind the {}"),
    ),
    "nail": (
        ("hit the {} with a hammer", "took a hammer and a {}", "bent the {} with the hammer"),
        ("broke a {} of one finger", "painted the {} of each finger", "hurt a finger under the {}"),
    ),
    "spring": (
        ("waited all winter for {}", "likes {} more than winter", "moved in {} after the winter"),
        ("oiled the {} of the clock", "broke the clock and its {}", "took the {} out of the clock"),
    ),
    "star": (
        ("saw a {} in the night sky", "drew the sky with one {}", "found the {} high in the sky"),
        ("became a {} of film", "met the {} of the film", "made a film about a {}"),
    ),
    "plant": (
        ("grew a {} from a seed", "found the seed of a {}", "got one seed from the {}"),
        ("made steel in a {}", "sold the {} and its steel", "works in a steel {}"),
    ),
    "court": (
        ("told the judge in {} the truth", "saw the judge leave the {}", "met the judge before the {}"),
        ("played badminton on the {}", "left the {} after badminton", "booked the {} for badminton"),
    ),
    "trunk": (
        ("climbed the {} of the old tree", "painted the tree and its {}", "hid behind the {} of a tree"),
        ("saw the elephant lift its {}", "touched the {} of the elephant", "fed the elephant by its {}"),
    ),
}


def pairs(draw: Draw, place: int) -> list[dict[str, Any]]:
    """Anna swam to the bank of the river. / Ben asked the bank for a loan.: false."""
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
