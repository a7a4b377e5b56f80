"""Word senses: one word in two sentences, of one meaning or of two."""

from __future__ import annotations

from typing import Any

from propulsion.harness.sources.generators.draw import PEOPLE, Draw

# word -> sentences with the one meaning, and with the other; {} stands for the word, somebody is named first
SENSES = {
    "bank": (
        ("swam to the {} of the river", "fished from the {} of the stream", "sat on the muddy {} by the water"),
        ("opened an account at the {}", "asked the {} for a loan", "took money out of the {}"),
    ),
    "bat": (
        ("saw a {} fly out of the cave", "heard a {} flap its wings", "feared that the {} would bite"),
        ("hit the ball with a {}", "swung the wooden {} hard", "bought a {} for baseball"),
    ),
    "match": (
        ("lit the candle with a {}", "struck a {} in the dark", "burned a finger on the {}"),
        ("won the tennis {}", "played in the final {}", "watched the football {}"),
    ),
    "letter": (
        ("posted the {} to a friend", "put a stamp on the {}", "opened the envelope with the {}"),
        ("spelled the word without the {} A", "learned the last {} of the alphabet", "typed a capital {}"),
    ),
    "mouse": (
        ("clicked with the {}", "plugged the {} into the computer", "moved the {} to the icon"),
        ("saw a {} eat the cheese", "kept a {} in a cage", "set a trap for the {}"),
    ),
    "palm": (
        ("read the lines on the {} of the hand", "held a coin in the {}", "hit the table with a flat {}"),
        ("picked coconuts from the {}", "rested under a {} on the beach", "watered the {} in the garden"),
    ),
    "nail": (
        ("hammered a {} into the wall", "hung the picture on a {}", "pulled a rusty {} out of the wood"),
        ("painted one {} red", "bit a {} of the left hand", "broke a finger {}"),
    ),
    "spring": (
        ("planted flowers in {}", "waited for {} after a long winter", "loves the mild days of {}"),
        ("stretched the metal {}", "replaced the {} of the mattress", "oiled the {} of the clock"),
    ),
    "star": (
        ("watched a {} in the night sky", "measured the light of a distant {}", "saw the {} through a telescope"),
        ("became a film {}", "asked the {} for an autograph", "met a {} of the music world"),
    ),
    "plant": (
        ("watered the {} in the pot", "grew a {} from a seed", "cut the leaves of the {}"),
        ("worked in a car {}", "closed the old steel {}", "managed a {} with many workers"),
    ),
    "court": (
        ("went to {} to sue the firm", "told the {} the truth", "heard the judge of the {}"),
        ("played tennis on the {}", "swept the {} after the game", "booked the {} for badminton"),
    ),
    "trunk": (
        ("climbed up the {} of the oak", "carved a name into the {} of the tree", "leaned on the {} of a pine"),
        ("saw the elephant lift its {}", "touched the {} of the elephant", "drew an elephant with a long {}"),
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
