"""Cloze queries about a short report: who of those named did what the query says in other words?"""

from __future__ import annotations

from typing import Any

from propulsion.harness.sources.generators.draw import PEOPLE, PLACES, Draw

DEALS = (  # told of the first person; what the first and the second did
    ("sold the {thing} to", "sold the {thing}", "bought the {thing}"),
    ("lent the {thing} to", "lent the {thing}", "borrowed the {thing}"),
    ("gave the {thing} to", "gave the {thing}", "received the {thing}"),
    ("bought the {thing} from", "bought the {thing}", "sold the {thing}"),
    ("borrowed the {thing} from", "borrowed the {thing}", "lent the {thing}"),
)
GAMES = (("beat", "won the game", "lost the game"), ("lost to", "lost the game", "won the game"))
THINGS = ("boat", "house", "car", "bike", "book", "piano", "horse", "camera")


def deals(draw: Draw, place: int) -> list[dict[str, Any]]:
    """In Paris Anna sold the boat to Ben. Carl was there. / @placeholder bought the boat. / Ben"""
    thing = draw.pick(THINGS)
    return _report(draw, *(text.format(thing=thing) for text in draw.pick(DEALS)))


def games(draw: Draw, place: int) -> list[dict[str, Any]]:
    """In Paris Anna beat Ben. Carl was there. / @placeholder lost the game. / Ben"""
    return _report(draw, *draw.pick(GAMES))


def _report(draw: Draw, told: str, first: str, second: str) -> list[dict[str, Any]]:
    (one, two, third), city = draw.some(PEOPLE, 3), draw.pick(PLACES)
    text, entities = "", []
    pieces = ("In ", city, " ", one, f" {told} ", two, ". ", third, " was there with ", draw.pick((one, two)), ".")
    for number, piece in enumerate(pieces):
        if number % 2:
            entities.append({"start": len(text), "end": len(text) + len(piece) - 1})
        text += piece
    asked, right = draw.pick(((first, one), (second, two)))
    places = [entity for entity in entities if text[entity["start"] : entity["end"] + 1] == right]
    query = {"idx": 0, "query": f"@placeholder {asked}", "answers": [{**entity, "text": right} for entity in places]}
    return [{"passage": {"text": text, "entities": entities}, "qas": [query]}]


PHENOMENA = (deals, deals, games)
