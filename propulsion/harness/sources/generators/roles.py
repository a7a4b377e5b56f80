"""Roles: who is meant by a pronoun follows from what was done, never from its gender. Two rows at a time."""

from __future__ import annotations

from typing import Any

from propulsion.harness.sources.generators.draw import MONTHS, PLACES, Draw

ROLES = (  # who did what to whom, because the first ..., because the second ...
    ("doctor", "treated", "patient", ("knew the illness", "had studied medicine"), ("was ill", "had a fever")),
    (
        "teacher",
        "helped",
        "student",
        ("knew the answer", "liked to explain"),
        ("had failed the test", "could not read"),
    ),
    ("lawyer", "defended", "client", ("knew the law", "liked hard cases"), ("was accused", "was in prison")),
    ("waiter", "served", "guest", ("worked there", "had a tray"), ("was hungry", "had ordered soup")),
    ("nurse", "comforted", "child", ("was on duty", "had a warm heart"), ("was scared", "had lost a toy")),
    ("seller", "cheated", "buyer", ("was greedy", "had false papers"), ("was careless", "had trusted the price")),
    ("guard", "stopped", "visitor", ("watched the door", "did the job well"), ("had no ticket", "wanted to get in")),
    ("coach", "praised", "player", ("was proud", "saw the goal"), ("had won", "had scored twice")),
)


def partner(draw: Draw, place: int) -> list[dict[str, Any]]:
    """In May the doctor in Paris treated the patient because he was ill. / The patient (or: doctor) was ill."""
    agent, verb, other, own, theirs = draw.pick(ROLES)
    who, wrong, reasons = draw.pick(((agent, other, own), (other, agent, theirs)))
    return _pair(draw, place, (agent, verb, other), (who, wrong), draw.pick(reasons))


def outsider(draw: Draw, place: int) -> list[dict[str, Any]]:
    """In May the doctor in Paris treated the patient because he was ill. / The patient (or: the guest) was ill."""
    (agent, verb, other, own, theirs), stranger = draw.two(ROLES)
    side = draw.flip()
    who, reasons = (agent, own) if side else (other, theirs)
    wrong = stranger[0] if side else stranger[2]
    return _pair(draw, place, (agent, verb, other), (who, wrong), draw.pick(reasons))


def _pair(
    draw: Draw, place: int, told: tuple[str, str, str], people: tuple[str, str], reason: str
) -> list[dict[str, Any]]:
    """Both genders of one row: who is meant is named where it follows, else the wrong one."""
    agent, verb, other = told
    who, wrong = people
    start = f"In {draw.pick(MONTHS)} the {agent} in {draw.pick(PLACES)}"
    label, named = ("entailment", who) if place == 0 else ("not_entailment", wrong)
    return [
        {
            "premise": f"{start} {verb} the {other} because {pronoun} {reason}.",
            "hypothesis": f"The {named} {reason}.",
            "label": label,
        }
        for pronoun in draw.two(("he", "she"))
    ]


PHENOMENA = (partner, outsider, outsider)
