"""From one record of the official files, or of the hub, to the rows that a classifier reads.

One pure function per task whose records are not rows already. Each takes the record as its file or the hub gives
it and returns the rows in order: the task's text columns, `label` (class id, -1 where it is not published), `idx`,
and what else the task's YAML asks for (`group`, `candidate`, `answers`, `spans`). A row may have `odd`: what was
wrong with it that the official tools put up with; the sources count these and say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

UNLABELLED = -1
Record = dict[str, Any]
Row = dict[str, Any]

FIRST_MARK, SECOND_MARK = "*", "#"  # around the marked spans: as in T5's rendering of WSC
COPA_QUESTIONS = {"cause": "What was the cause?", "effect": "What was the effect?"}
PLACEHOLDER = "@placeholder"
LARGEST = 2**31  # numbers are 32 bits wide in the columns, as on the hub


class BadRow(ValueError):
    """A record that cannot be a row. The message says why; the source adds file and line."""


def copa(record: Record) -> list[Row]:
    """One row per choice, `What was the cause? The sun was rising.`; a group is a question."""
    question, right = _text(record, "question"), _label(record)
    if question not in COPA_QUESTIONS:
        raise BadRow(f"question {question!r} is none of {', '.join(COPA_QUESTIONS)}")
    return [
        {
            "premise": _text(record, "premise"),
            "choice": f"{COPA_QUESTIONS[question]} {_text(record, f'choice{place + 1}')}",
            "label": UNLABELLED if right == UNLABELLED else int(place == right),
            "idx": place,
            "group": [index(record)],
        }
        for place in range(2)
    ]


def multirc(record: Record) -> list[Row]:
    """One row per answer, its question before it; a group is a question. The hub's records are answers already."""
    if "paragraph" in record:
        idx = _part(record, "idx", dict)
        group = [_number(idx, "paragraph"), _number(idx, "question")]
        return [_answer(_text(record, "paragraph"), _text(record, "question"), record, _number(idx, "answer"), group)]
    passage = _part(record, "passage", dict)
    paragraph, rows = _text(passage, "text"), []
    for question in _objects(passage, "questions"):
        text, group = _text(question, "question"), [index(record), index(question)]
        for answer in _objects(question, "answers"):
            rows.append(_answer(paragraph, text, {**answer, "answer": answer.get("text")}, index(answer), group))
    return rows


def _answer(paragraph: str, question: str, record: Record, idx: int, group: list[int]) -> Row:
    answer = _part(record, "answer", str)
    row = {
        "paragraph": paragraph,
        "answer": f"{question} {answer}",
        "label": _label(record),
        "idx": idx,
        "group": group,
    }
    return row if answer.strip() else {**row, "odd": "an answer without a word"}


def record(record: Record) -> list[Row]:
    """One row per candidate, the query with it in the place of `@placeholder`; a group is a query.

    The candidates are the different texts of the passage's entities in alphabetical order, as on the hub: an
    entity named twice is one candidate. `end` is the place of an entity's last character.
    """
    if "query" in record:  # of the hub
        idx = _part(record, "idx", dict)
        query = {"query": _text(record, "query"), "idx": _number(idx, "query"), "answers": record.get("answers")}
        entities = set(_part(record, "entities", list))
        return _candidates(_text(record, "passage"), entities, query, _number(idx, "passage"))
    passage = _part(record, "passage", dict)
    text = _text(passage, "text")
    entities = {_entity(text, entity) for entity in _objects(passage, "entities")}
    rows = []
    for query in _objects(record, "qas"):
        answers = [_text(answer, "text") for answer in _objects(query, "answers")] if query.get("answers") else []
        rows += _candidates(text, entities, {**query, "answers": answers}, index(record))
    return rows


def _entity(text: str, entity: Record) -> str:
    start, end = _number(entity, "start"), _number(entity, "end") + 1
    if not 0 <= start < end <= len(text):
        raise BadRow(f"entity {start}..{end - 1} is outside the passage of {len(text)} characters")
    return text[start:end]


def _candidates(passage: str, entities: set[str], query: Record, passage_idx: int) -> list[Row]:
    text, answers = _text(query, "query"), sorted(set(query["answers"] or ()))
    if PLACEHOLDER not in text:
        raise BadRow(f"query {text[:40]!r} has no {PLACEHOLDER}")
    if not entities:
        raise BadRow("a passage without entities")
    rows: list[Row] = [
        {
            "passage": passage,
            "query": text.replace(PLACEHOLDER, candidate),
            "label": int(candidate in answers) if answers else UNLABELLED,
            "idx": place,
            "group": [passage_idx, index(query)],
            "candidate": candidate,
            "answers": answers,
        }
        for place, candidate in enumerate(sorted(entities))
    ]
    if not entities.issuperset(answers):
        rows[0]["odd"] = "an answer that is no entity of the passage"
    return rows


def wic(record: Record) -> list[Row]:
    """Both sentences with the word between marks: `my mouth *water*.`"""
    row: Row = {"label": _label(record), "idx": index(record), "spans": []}
    for place, side in enumerate("12"):
        text = _text(record, f"sentence{side}")
        start, end = _number(record, f"start{side}"), _number(record, f"end{side}")
        if not 0 <= start < end <= len(text):
            raise BadRow(f"span {start}..{end} is outside sentence{side} of {len(text)} characters")
        row[f"sentence{side}"], (span,) = mark(text, [(start, end, FIRST_MARK)])
        row["spans"].append([place, *span])
    return [row]


def wsc(record: Record) -> list[Row]:
    """The text with the noun phrase and the pronoun between marks: `*The queen* met the boy before #he# left.`"""
    text, target = _text(record, "text"), _part(record, "target", dict) if "target" in record else record
    found, odd = [], []
    for name, sign in (("span1", FIRST_MARK), ("span2", SECOND_MARK)):
        start, end, fault = locate(text, _text(target, f"{name}_text"), _number(target, f"{name}_index"))
        found.append((start, end, sign))
        odd += [fault] if fault else []
    marked, spans = mark(text, found)
    row = {"text": marked, "label": _label(record), "idx": index(record), "spans": [[0, *s] for s in spans]}
    return [{**row, "odd": odd[0]} if odd else row]


def locate(text: str, span: str, index: int) -> tuple[int, int, str]:
    """Characters (start, end) of a span that is given by its words and the number of its first word.

    In the official files some spans differ from the text in case, punctuation or spaces ("theyscold"), some are a few
    words off, and a few are no part of it at all ("Kamenev, Zinoviev, and Stalin"). The occurrence nearest to the
    index is taken; without one the words at the index, as many as the span has, as the official tools do. The third
    value says which of the two faults it was; empty where the span is at its index.

    Raises:
        BadRow: the text has no word of that number.
    """
    words = list(re.finditer(r"\S+", text))
    if not 0 <= index < len(words):
        raise BadRow(f"span {span!r} at word {index} is outside the text of {len(words)} words")
    parts = [re.escape(part) for part in re.findall(r"\w+", span)] or [re.escape(span.strip())]
    letters = r"\W*".join(map(re.escape, re.findall(r"\w", span))) or parts[0]
    at = words[index]
    for spelt in (r"\W+".join(parts), letters):
        matches = list(re.finditer(rf"(?<!\w){spelt}(?!\w)", text, re.IGNORECASE))
        if matches:
            nearest = min(matches, key=lambda match: abs(match.start() - at.start()))
            there = at.start() <= nearest.start() < at.end()
            return nearest.start(), nearest.end(), "" if there else "a span some words away from its index"
    last = words[min(index + len(span.split()), len(words)) - 1]
    return at.start(), last.end(), "a span that is no part of the text"


def mark(text: str, spans: list[tuple[int, int, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The text with a sign before and after each span (start, end, sign), and where it then has the spans themselves.

    Spans may hold one another. In the result a span reaches over signs of those inside it.
    """
    # At one place: ends before starts; of several starts the longest span's first, of several ends its last.
    edges = sorted(
        [(start, 1, -end, number, sign) for number, (start, end, sign) in enumerate(spans)]
        + [(end, 0, -start, -number, sign) for number, (start, end, sign) in enumerate(spans)]
    )
    pieces, done, length = [], 0, 0
    starts, ends = [0] * len(spans), [0] * len(spans)
    for place, opens, _, number, sign in edges:
        pieces += [text[done:place], sign]
        length += place - done
        done = place
        if opens:
            starts[number] = length + len(sign)
        else:
            ends[-number] = length
        length += len(sign)
    return "".join([*pieces, text[done:]]), list(zip(starts, ends, strict=True))


def _text(record: Record, key: str) -> str:
    value = _part(record, key, str)
    if not value.strip():
        raise BadRow(f"'{key}' is empty")
    return value


def index(record: Record) -> int:
    """The number at `idx`, which AX-b's published file writes as a text: `"12"`.

    Raises:
        BadRow: none, or something else.
    """
    value = record.get("idx")
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else _number(record, "idx")


def _number(record: Record, key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRow(f"'{key}' is {value!r}, not a whole number" if key in record else f"no '{key}'")
    if abs(value) >= LARGEST:
        raise BadRow(f"'{key}' is {value}, out of range")
    return value


def _objects(record: Record, key: str) -> list[Record]:
    found: list[Any] = _part(record, key, list)
    for one in found:
        if not isinstance(one, dict):
            raise BadRow(f"'{key}' holds {str(one)[:40]!r}, not an object")
    return found


def _part(record: Record, key: str, kind: type) -> Any:
    if not isinstance(record, dict) or record.get(key) is None:
        raise BadRow(f"no '{key}'")
    if not isinstance(record[key], kind) or (kind is list and not record[key]):
        names = {"str": "a text", "dict": "an object", "list": "a list with something in it"}
        raise BadRow(f"'{key}' is {str(record[key])[:40]!r}, not {names[kind.__name__]}")
    return record[key]


def _label(record: Record) -> int:
    """0 or 1, as a number or a truth value; -1 where there is none, as in the test rows."""
    label = record.get("label")
    if label is None or (label == UNLABELLED and not isinstance(label, bool)):
        return UNLABELLED
    if label not in (0, 1):
        raise BadRow(f"label {label!r} is none of 0, 1, false, true")
    return int(label)


RESHAPES: dict[str, Callable[[Record], list[Row]]] = {
    function.__name__: function for function in (copa, multirc, record, wic, wsc)
}
