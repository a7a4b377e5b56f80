"""Generated rows: their labels by independent semantics, no artefact, no overlap, the same rows everywhere."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from propulsion.harness.errors import UserError
from propulsion.harness.settings import DataSpec, TaskSpec
from propulsion.harness.sources import open_source
from propulsion.harness.sources.generators import FAMILIES, Family, write_rows
from propulsion.harness.sources.generators.draw import MEN, PEOPLE, WOMEN, Draw
from tests.conftest import compose_settings

TASK_OF = {  # one task for each family
    "acceptability": "cola",
    "sentiment": "sst2",
    "paraphrase": "mrpc",
    "duplicate": "qqp",
    "similarity": "stsb",
    "inference": "mnli",
    "answer": "qnli",
    "coreference": "wnli",
    "commitment": "cb",
}
PAIRS = [(family, one) for family in FAMILIES.values() if family.labels for one in dict.fromkeys(family.phenomena)]


def rows_of(family: Family, count: int, share: int = 0, seed: int = 0) -> list[tuple[tuple[str, ...], float]]:
    return write_rows(family, family.labels, share, count, seed)


def of_phenomenon(family: str, name: str, count: int = 400) -> list[tuple[tuple[str, ...], str]]:
    """Rows of one phenomenon with the names of their labels."""
    (phenomenon,) = {one for one in FAMILIES[family].phenomena if one.__name__ == name}
    draw = Draw("test", family, name)
    rows = [(label, phenomenon(draw, label)) for _ in range(count) for label in FAMILIES[family].labels]
    return [(texts, label) for label, texts in rows]


# --- labels against independent semantics: a hypothesis follows when it holds in every world of the premise

World = dict[str, Any]
Claim = Callable[[World], bool]


def relation(premise: Claim, hypothesis: Claim, worlds: Iterable[World]) -> str:
    truths = {hypothesis(world) for world in worlds if premise(world)}
    assert truths, "a premise that holds nowhere says nothing"
    return {(True,): "entailment", (False,): "contradiction"}.get(tuple(truths), "neutral")


def test_quantities_by_possible_worlds() -> None:
    """All, no, some, not all: over every way in which two of each group act."""

    def claim(text: str) -> Claim:
        match = re.fullmatch(r"(All|No|Some|Not all) (\w+) \w+\.", text)
        assert match, text
        quantity, group = match.groups()
        judge: dict[str, Callable[[Iterable[bool]], bool]] = {
            "All": all,
            "No": lambda acts: not any(acts),
            "Some": any,
            "Not all": lambda acts: not all(acts),
        }
        return lambda world: judge[quantity](world[group])

    for (first, second), label in of_phenomenon("inference", "quantities"):
        groups = {re.findall(r"(\w+) \w+\.", text)[0] for text in (first, second)}
        acts = list(itertools.product((True, False), repeat=2))
        worlds = [dict(zip(groups, choice, strict=True)) for choice in itertools.product(acts, repeat=len(groups))]
        assert relation(claim(first), claim(second), worlds) == label, (first, second)


def test_company_by_possible_worlds() -> None:
    def claim(text: str) -> Claim:
        names = [name for name in re.findall(r"[A-Z]\w+", text) if name in PEOPLE]
        truth = not ("Neither" in text or "never" in text)
        return lambda world: all(world[name] == truth for name in names)

    for (first, second), label in of_phenomenon("inference", "company"):
        names = sorted({name for name in re.findall(r"[A-Z]\w+", first + second) if name in PEOPLE})
        worlds = [dict(zip(names, acts, strict=True)) for acts in itertools.product((True, False), repeat=len(names))]
        assert relation(claim(first), claim(second), worlds) == label, (first, second)


COMPLEMENTS = {
    **{"open": "closed", "full": "empty", "wet": "dry", "dirty": "clean", "dead": "alive", "asleep": "awake"},
    **{"inside": "outside", "present": "absent", "guilty": "innocent"},
}


def test_states_by_possible_worlds() -> None:
    def claim(text: str) -> tuple[str, bool]:
        match = re.fullmatch(r"\w+ (\w+) is (not )?(\w+)(?: now| today| again)?\.", text)
        assert match, text
        name, no, word = match.groups()
        assert word in {*COMPLEMENTS, *COMPLEMENTS.values()}
        return name, (word in COMPLEMENTS) != bool(no)

    for (first, second), label in of_phenomenon("inference", "states"):
        (name, value), (other, claimed) = claim(first), claim(second)
        worlds = [
            dict(zip({name, other}, truth, strict=True))
            for truth in itertools.product((True, False), repeat=len({name, other}))
        ]
        found = relation(lambda w, n=name, v=value: w[n] == v, lambda w, n=other, v=claimed: w[n] == v, worlds)
        assert found == label, (first, second)


def test_comparisons_by_possible_worlds() -> None:
    """Every order of the people named, none of them equal."""
    lesser = ("shorter", "younger", "poorer", "slower", "weaker")

    def claim(text: str) -> Claim:
        match = re.fullmatch(r"(\w+) is (\w+) than (\w+)(?: now| today| again)?\.", text)
        assert match, text
        one, word, two = match.groups()
        return lambda world: (world[one] < world[two]) == (word in lesser)

    for (first, second), label in of_phenomenon("inference", "comparisons"):
        names = sorted(set(re.findall(r"[A-Z]\w+", first + second)))
        worlds = [dict(zip(names, order, strict=True)) for order in itertools.permutations(range(len(names)))]
        assert relation(claim(first), claim(second), worlds) == label, (first, second)


def test_ellipsis_by_what_was_done() -> None:
    for (first, second), label in of_phenomenon("coreference", "ellipsis"):
        start = re.match(r"(\w+) (never )?(\w+) (and|but) (.*)\.", first)
        assert start, first
        one, never, act, _, rest = start.groups()
        did = {one: not never}
        (two,) = [word for word in rest.split() if word in PEOPLE]
        did[two] = {"so": True, "neither": False}.get(rest.split()[0], "not" not in rest)
        claim = re.fullmatch(r"(\w+) (never )?(\w+)\.", second)
        assert claim and claim[3] == act, second
        assert (did[claim[1]] == (not claim[2])) == (label == "entailment"), (first, second)


def test_pronouns_agree_with_what_they_stand_for() -> None:
    females = {"woman", "girl", "queen", "mother", "sister", "aunt"}
    for (first, second), label in of_phenomenon("coreference", "gender"):
        who = second.split()[1]
        assert ((who in females) == (" she " in first)) == (label == "entailment"), (first, second)
    for (first, second), label in of_phenomenon("coreference", "animacy"):
        person, thing = first.split()[1], first.split(" and ")[0].split()[-1]
        claimed = second.split()[1]
        assert (claimed == (thing if " it " in first else person)) == (label == "entailment"), (first, second)


@pytest.mark.parametrize("name", ["denial", "comparison"])
def test_duplicate_questions_by_their_meaning(name: str) -> None:
    pairs = [
        ("bigger", "smaller"),
        ("older", "younger"),
        ("richer", "poorer"),
        ("warmer", "colder"),
        ("louder", "quieter"),
    ]
    lesser = {small: big for big, small in pairs}

    def meaning(text: str) -> tuple[str, ...]:
        if name == "comparison":
            match = re.fullmatch(r"Is (\w+) (\w+) than (\w+)\?", text)
            assert match, text
            one, word, two = match.groups()
            return (two, lesser[word], one) if word in lesser else (one, word, two)
        no = " not " in text or " never lets " in text
        return (*re.sub(r"Why do |What makes |What never lets |not ", "", text).split(), str(no))

    for (first, second), label in of_phenomenon("duplicate", name):
        assert (meaning(first) == meaning(second)) == (label == "duplicate"), (first, second)


def test_sentiment_of_negations() -> None:
    good = {"great", "funny", "clever", "moving", "charming", "brilliant", "fresh", "lively", "exciting"}
    for (text,), label in of_phenomenon("sentiment", "negation"):
        flipped = bool(re.search(r" (not|never|hardly|anything but|far from) (?!less)", text)) and "if not" not in text
        assert ((text[:-1].split()[-1] in good) != flipped) == (label == "positive"), text


def test_agreement_is_with_the_head() -> None:
    for (text,), label in of_phenomenon("acceptability", "agreement"):
        words = text.split()
        verb = next(word for word in words if word in ("is", "was", "are", "were"))
        assert (words[1].endswith("s") == (verb in ("are", "were"))) == (label == "acceptable"), text


@pytest.mark.parametrize("name", ["roles", "replaced"])
def test_paraphrases_say_the_same_of_the_same(name: str) -> None:
    def meaning(text: str) -> tuple[str, str, str]:
        words = text.removesuffix(".").replace("The ", "").replace("the ", "").split()
        return (words[-1], words[-3], words[0]) if "was" in words else (words[0], words[1], words[2])

    for (first, second), label in of_phenomenon("paraphrase", name):
        assert (meaning(first) == meaning(second)) == (label == "equivalent"), (first, second)


def test_similarity_is_what_the_two_share() -> None:
    synonyms = "man guy/woman lady/child kid/doctor physician/dog hound/buys purchases/fixes repairs/watches observes"
    synonyms += "/throws tosses/carries hauls/hides conceals/car automobile/rock stone/picture photo/cup mug/boat ship"
    synonyms += "/couch sofa/inside indoors/outside outdoors/nearby close_by/upstairs above"
    thing = {word: group for group in synonyms.split("/") for word in group.split()}
    for (first, second), score in rows_of(FAMILIES["similarity"], 400):
        words = [text.removesuffix(".").replace("close by", "close_by").split() for text in (first, second)]
        slots = [(one[1], one[2], one[4], one[5]) for one in words]
        loss = 0.0
        for weight, one, two in zip((1.5, 2.0, 1.5, 0.5), *slots, strict=True):
            loss += 0.1 * (one != two) if thing[one] == thing[two] else weight
        assert score == pytest.approx(max(5 - loss, 0))


# --- artefacts


def bag_of_words(train: list[tuple[str, ...]], other: list[tuple[str, ...]]) -> tuple[csr_matrix, csr_matrix]:
    """Word counts, a block of columns for each text of the row."""
    blocks = []
    for place in range(len(train[0])):
        counter = CountVectorizer(token_pattern=r"\w+")
        blocks.append((counter.fit_transform([t[place] for t in train]), counter.transform([t[place] for t in other])))
    return tuple(hstack(side).tocsr() for side in zip(*blocks, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bag_of_words_learns_nothing(name: str) -> None:
    """A linear model on words stays within a few points of guessing; so does one on the lengths."""
    family = FAMILIES[name]
    (train, labels), (dev, truth) = (zip(*rows_of(family, n, share), strict=True) for n, share in ((3000, 0), (900, 1)))
    words = bag_of_words(list(train), list(dev))
    lengths = tuple(np.array([[len(t.split()) for t in texts] for texts in side]) for side in (train, dev))
    for inputs, held in (words, lengths):
        if family.labels:
            model = LogisticRegression(C=0.3, max_iter=300).fit(inputs, labels)
            assert model.score(held, truth) < 1 / len(family.labels) + 0.07
        else:
            predicted = Ridge(3.0).fit(inputs, labels).predict(held)
            assert abs(np.corrcoef(predicted, truth)[0, 1]) < 0.12


@pytest.mark.parametrize(("family", "phenomenon"), PAIRS, ids=[f"{f.name}-{p.__name__}" for f, p in PAIRS])
def test_no_word_tells_the_label(family: Family, phenomenon: Callable[..., Any]) -> None:
    """Within each phenomenon every frequent word of either text is as frequent under every label."""
    counts: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    rows = of_phenomenon(family.name, phenomenon.__name__, 3000 // len(family.labels))
    for texts, label in rows:
        for place, text in enumerate(texts):
            for word in set(re.findall(r"\w+", text)):
                counts[place, word][label] += 1
    for (place, word), by_label in counts.items():
        total = sum(by_label.values())
        if total >= 300:
            for label in family.labels:
                share = by_label[label] / total
                assert abs(share - 1 / len(family.labels)) < 0.12, (place, word, dict(by_label))


# --- sizes, splits, seeds


@pytest.mark.parametrize("name", TASK_OF)
def test_balanced_disjoint_and_short(name: str) -> None:
    family = FAMILIES[name]
    shares = [rows_of(family, 2000 if share == 0 else 400, share) for share in range(5)]
    texts = [row for rows in shares for row, _ in rows]
    assert len(set(texts)) == len(texts) == 3600, "no row twice, neither in a split nor in two"
    assert len({tuple(sorted(row)) for row in texts[:2000]} & {tuple(sorted(row)) for row in texts[2000:]}) == 0
    for rows in shares:
        if family.labels:
            counts = Counter(label for _, label in rows)
            assert max(counts.values()) - min(counts.values()) <= 1
        else:
            scores = np.array([score for _, score in rows])
            assert np.histogram(scores, bins=5, range=(0, 5))[0].min() > 0.08 * len(rows)
    for row in texts:
        assert len(row) == family.texts
        assert all(2 <= len(text.split()) <= 12 and text[0].isupper() and text[-1] in ".?" for text in row)
        assert len(row) == 1 or row[0] != row[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_seeds_and_counts(name: str) -> None:
    """Another seed, other rows in the same share; a larger count starts with the smaller one's rows."""
    family = FAMILIES[name]
    rows = rows_of(family, 300)
    assert rows_of(family, 120) == rows[:120]
    other = rows_of(family, 300, seed=1)
    assert len(set(other) & set(rows)) < 150
    assert not {texts for texts, _ in other} & {texts for texts, _ in rows_of(family, 300, share=1)}


def test_every_phenomenon_occurs() -> None:
    assert all(len(set(family.phenomena)) >= 3 for family in FAMILIES.values() if family.labels)
    assert len(WOMEN) == len(MEN)


DIGESTS = {  # version, digest of the first 60 rows
    "acceptability": (1, "7965649132b4"),
    "sentiment": (1, "eb16b570811c"),
    "paraphrase": (1, "44f6e73c8c31"),
    "duplicate": (1, "3aca8d6d9ac3"),
    "similarity": (1, "999a5e90d7d0"),
    "inference": (1, "fbc0cf7de4c0"),
    "answer": (1, "218642d08c66"),
    "coreference": (1, "67b0e77bda07"),
    "yesno": (1, "08def6d33bf9"),
    "commitment": (1, "f02cc5c36b7b"),
}


def digest(name: str) -> str:
    return hashlib.sha256(repr(rows_of(FAMILIES[name], 60)).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_the_same_for_good(name: str) -> None:
    """In every process, whatever its string hashing; rows that change must raise the family's version."""
    assert (FAMILIES[name].version, digest(name)) == DIGESTS[name]


# --- what cannot be


def spec(**changes: Any) -> TaskSpec:
    task = compose_settings("task=rte").task
    for key, value in changes.items():
        setattr(task, key, value)
    return task


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": "inferense"}, "unknown generator 'inferense': did you mean inference"),
        ({"generator": ""}, "task rte has no generator; use data=local or data=hub"),
        ({"generator": "sentiment"}, "sentiment writes 1 text columns, the task has 2"),
        (
            {"labels": ["yes", "no"]},
            "inference writes the labels entailment, neutral, contradiction, the task has yes, no",
        ),
        ({"generator": "similarity"}, "similarity writes scores, the task has entailment"),
        ({"labels": []}, "the task has scores"),
        ({"tests": {name: name for name in "abcd"}}, "data=generated has at most 4 splits"),
    ],
)
def test_generator_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        open_source(spec(**changes), DataSpec(source="generated"))


def test_unknown_split_and_impossible_sizes() -> None:
    source = open_source(spec(), DataSpec(source="generated"))
    with pytest.raises(UserError, match="task rte has no split 'validation'; it has train, dev, test"):
        source.load_split("validation")
    for key in ("train_rows", "eval_rows"):
        with pytest.raises(UserError, match=rf"data\.{key}=0: must be 1 or more"):
            open_source(spec(), DataSpec(source="generated", **{key: 0}))


def test_more_rows_than_there_are() -> None:
    few = Family("few", 1, 1, ("a", "b"), (lambda draw, label: (f"{label} {draw.below(20)}.",),))
    with pytest.raises(UserError, match=r"generator few has only about \d+ of 100 rows: ask for fewer"):
        write_rows(few, few.labels, 0, 100, 0)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"train_rows": 1601}, {"eval_rows": 399}])
def test_fingerprint_follows_what_decides_the_rows(changed: dict[str, int]) -> None:
    before = open_source(spec(), DataSpec(source="generated")).fingerprint()
    assert open_source(spec(), DataSpec(source="generated", **changed)).fingerprint() != before


def test_two_way_inference_keeps_the_three_way_rows_apart() -> None:
    """RTE's second class is half neutral, half contradiction."""
    rows = write_rows(FAMILIES["inference"], ("entailment", "not_entailment"), 0, 400, 0)
    assert Counter(label for _, label in rows) == {0: 200, 1: 200}
