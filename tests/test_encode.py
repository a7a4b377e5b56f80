"""What truncation cuts, where marked spans end up, and which rows a question's rows are scored with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EvalPrediction, PreTrainedTokenizerBase

from propulsion.harness.backbones import load_tokenizer
from propulsion.harness.encode import encode, evaluation_rows, span_tokens
from propulsion.harness.evaluation import Scorer
from propulsion.harness.settings import DataSpec
from propulsion.harness.sources import group_numbers, open_source
from propulsion.harness.sources.base import make_rows
from propulsion.harness.sources.reshape import BadRow, locate, mark, wic, wsc
from propulsion.harness.tokenizers import byte_tokenizer
from tests.conftest import compose_settings

BYTES = byte_tokenizer(512)


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerBase:
    return load_tokenizer(compose_settings("task=rte").backbone)


@pytest.fixture(params=["pieces", "bytes"])
def tokenizer(request: pytest.FixtureRequest, pieces: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return pieces if request.param == "pieces" else BYTES


def rows(task: str, **columns: Any) -> Any:
    spec, count = compose_settings(f"task={task}").task, len(next(iter(columns.values())))
    columns = {"label": [0] * count, "idx": list(range(count)), **columns}
    return make_rows(spec, columns), spec


@pytest.mark.parametrize(("task", "question", "passage"), [("boolq", 0, 1), ("multirc", 1, 0), ("cb", 1, 0)])
def test_the_passage_is_cut_and_the_question_is_whole(
    task: str, question: int, passage: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Even where the question is the longer of the two; only one that leaves no room at all is cut as well."""
    asked = ["who left", "who left and " * 6, "who " * 200]
    told = ["Anna left. " * 60, "Anna left. " * 8, "Anna left. " * 60]
    spec = compose_settings(f"task={task}").task
    texts = {spec.text[question]: asked, spec.text[passage]: told}
    dataset, spec = rows(task, **texts, **({"group": [[0, 0]] * 3} if spec.group else {}))
    encoded = encode(dataset, tokenizer, spec, 100)
    for number, ids in enumerate(encoded[:]["input_ids"]):
        alone = tokenizer(asked[number], add_special_tokens=False)["input_ids"]
        assert len(ids) <= 100
        joined, found = ",".join(map(str, ids)), ",".join(map(str, alone))
        assert (f",{found}," in joined) == (number < 2)
    assert encoded[:]["length"][0] == encoded[:]["length"][2] == 100


def test_the_tasks_of_glue_lose_tokens_from_the_longer_text_as_ever(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset, spec = rows("qnli", question=["who left " * 30], sentence=["Anna left. " * 60])
    ids = encode(dataset, tokenizer, spec, 60)[0]["input_ids"]
    assert ids == tokenizer("who left " * 30, "Anna left. " * 60, truncation=True, max_length=60)["input_ids"]


WORDS = st.lists(st.sampled_from(["bank", "é", "a", "naïve", "it's", "ten-year", "中", "(so)"]), min_size=1, max_size=8)


@settings(deadline=None, max_examples=40)
@given(st.tuples(WORDS, WORDS), st.tuples(WORDS, WORDS), st.integers(8, 60))
def test_span_tokens_are_the_spans_or_nothing(before: Any, after: Any, length: int) -> None:
    """The bytes between the token positions are the word, at any length; else all of it is not there."""
    texts = [" ".join([*b, "target", *a]) for b, a in zip(before, after, strict=True)]
    record: dict[str, Any] = {"idx": 0, "label": True}
    for side, text in zip("12", texts, strict=True):
        start = text.index("target")
        record |= {f"sentence{side}": text, f"start{side}": start, f"end{side}": start + 6}
    (row,) = wic(record)
    dataset, spec = rows("wic", **{key: [value] for key, value in row.items()})
    ids = encode(dataset, BYTES, spec, length)[0]["input_ids"]
    (found,) = span_tokens(dataset, BYTES, spec, length)
    for number, (first, last) in enumerate(found):
        sides = BYTES.decode(ids).replace("<s>", "").split("</s>")
        kept = "*target" in sides[number] or sides[number].startswith("*target")
        assert kept == (first >= 0)
        if first >= 0:
            assert BYTES.decode(ids[first:last]) == "target"
    assert found.shape == (2, 2)


def test_word_pieces_of_a_span(pieces: PreTrainedTokenizerBase) -> None:
    record = {"text": "The queen met Zbigniew before he left.", "idx": 0}
    target = {"span1_text": "Zbigniew", "span1_index": 3, "span2_text": "he", "span2_index": 5}
    (row,) = wsc({**record, "target": target})
    assert (row["text"], row["label"]) == ("The queen met *Zbigniew* before #he# left.", -1)
    dataset, spec = rows("wsc", **{key: [value] for key, value in row.items()})
    ids = encode(dataset, pieces, spec, 64)[0]["input_ids"]
    (name, pronoun) = span_tokens(dataset, pieces, spec, 64)[0]
    assert pieces.decode(ids[slice(*name)]) == "zbigniew" and name[1] - name[0] > 1
    assert pieces.decode(ids[slice(*pronoun)]) == "he"
    lost = span_tokens(dataset, pieces, spec, 9)[0]
    assert (lost[1] == -1).all() and lost[0][0] in (name[0], -1)


# --- spans given by words


@pytest.mark.parametrize(
    ("text", "span", "index", "expected", "fault"),
    [
        ("Mark told Pete many lies.", "Pete", 2, "Pete", ""),
        ('"The sack of potatoes" fell.', "the sack of potatoes", 0, "The sack of potatoes", ""),
        ("He saw Bob's dog.", "Bob's dog.", 2, "Bob's dog", ""),
        ("We met Ann, Joe, and Al there.", "Ann Joe and\nAl", 2, "Ann, Joe, and Al", ""),
        ("It fell and it broke.", "it", 3, "it", ""),
        ("Mothers came, but they scold them.", "theyscold", 3, "they scold", ""),
        ("It was the rapist's therapist.", "therapist", 2, "therapist", "a span some words away from its index"),
        ("He saw the cat and the cat ran.", "the cat", 4, "the cat", "a span some words away from its index"),
        (
            "Kamenev met with Zinoviev.",
            "Kamenev and Zinoviev",
            0,
            "Kamenev met with",
            "a span that is no part of the text",
        ),
        ("They went and cried", "them", 3, "cried", "a span that is no part of the text"),
        ("He saw scatter and cat.", "cat", 2, "cat", "a span some words away from its index"),
    ],
)
def test_a_span_is_found_by_its_words(text: str, span: str, index: int, expected: str, fault: str) -> None:
    start, end, said = locate(text, span, index)
    assert (text[start:end], said) == (expected, fault)


def test_the_occurrence_at_the_index_is_taken() -> None:
    text = "it said it when it fell"
    assert [locate(text, "it", index)[0] for index in (0, 2, 4)] == [0, 8, 16]
    assert locate(text, "it", 3)[0] in (8, 16)
    for index in (-1, 6):
        with pytest.raises(BadRow, match=f"span 'it' at word {index} is outside the text of 6 words"):
            locate(text, "it", index)


@settings(deadline=None, max_examples=200)
@given(st.text("ab *#é", min_size=2, max_size=20), st.data())
def test_marks_go_around_spans_that_are_where_they_are_said_to_be(text: str, data: st.DataObject) -> None:
    """Apart, side by side, one in the other or the same: without signs the text and both spans are as they were."""
    spans = []
    for sign in "<>":
        start = data.draw(st.integers(0, len(text) - 1))
        spans.append((start, data.draw(st.integers(start + 1, len(text))), sign))
    (a, b), (c, d) = spans[0][:2], spans[1][:2]
    if a < c < b < d or c < a < d < b:
        return  # crossing spans: neither wholly around the other
    marked, found = mark(text, spans)
    assert marked.replace("<", "").replace(">", "") == text
    assert len(marked) == len(text) + 4
    for (start, end, sign), (first, last) in zip(spans, found, strict=True):
        assert marked[first - 1] == marked[last] == sign
        assert marked[first:last].replace("<", "").replace(">", "") == text[start:end]


# --- questions of several rows


@pytest.mark.parametrize("task", ["copa", "multirc", "record", "axg"])
def test_halves_keep_questions_whole_and_scores_follow_the_rows(task: str) -> None:
    """Right answers everywhere give 1.0 in every metric and on both halves, though the rows were sorted by length."""
    spec = compose_settings(f"task={task}").task
    part = open_source(spec, DataSpec(source="generated", train_rows=8, eval_rows=80)).load().parts[""]
    joined = evaluation_rows({"": encode(part, BYTES, spec, 256)}, {"": part})
    assert joined.questions is not None
    groups, numbers = joined.questions.group, group_numbers(part)
    assert (numbers[joined.place] == groups).all()
    by_group = {int(group): set(joined.selects[groups == group].tolist()) for group in groups}
    assert all(len(halves) == 1 for halves in by_group.values())
    assert sum(halves == {True} for halves in by_group.values()) == len(by_group) // 2
    labels = np.asarray(joined.rows["labels"])
    right = np.stack([1 - 2 * labels, 2 * labels - 1], axis=1).astype(float)
    scores = Scorer(spec, joined)(EvalPrediction(predictions=right, label_ids=labels))
    assert set(scores) == {f"{rows}/{metric}" for rows in ("all", "select", "report") for metric in spec.metrics}
    assert set(scores.values()) == {1.0}
    wrong = Scorer(spec, joined)(EvalPrediction(predictions=-right, label_ids=labels))
    assert wrong[f"all/{spec.metrics[0]}"] == 0.0 or task == "record"


def test_of_two_candidates_alike_the_first_of_the_file_counts() -> None:
    spec = compose_settings("task=copa").task
    columns = {"premise": ["p"] * 4, "choice": ["a long choice indeed", "b", "a long choice", "b"]}
    columns |= {"label": [1, 0, 0, 1], "idx": [0, 1, 0, 1], "group": [[0], [0], [1], [1]]}  # type: ignore[dict-item]
    part = make_rows(spec, columns)
    joined = evaluation_rows({"": encode(part, BYTES, spec, 64)}, {"": part})
    labels = np.asarray(joined.rows["labels"])
    assert labels.tolist() != [1, 0, 0, 1], "sorted by length"
    scores = Scorer(spec, joined)(EvalPrediction(predictions=np.zeros((4, 2)), label_ids=labels))
    assert scores["all/choice_accuracy"] == 0.5


def test_without_groups_the_halves_are_those_of_the_rows() -> None:
    spec = compose_settings("task=rte").task
    part = open_source(spec, DataSpec(source="generated", train_rows=8, eval_rows=31)).load().parts[""]
    encoded = {"": encode(part, BYTES, spec, 64)}
    with_source, without = evaluation_rows(encoded, {"": part}), evaluation_rows(encoded)
    assert with_source.questions is None
    assert (with_source.selects == without.selects).all()
    drawn = np.random.RandomState(20240910).permutation(31)[:15]
    assert sorted(with_source.place[with_source.selects].tolist()) == sorted(drawn.tolist())
