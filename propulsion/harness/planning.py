"""What a sweep would run, what is done, and how long the rest may take, before anything starts."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from propulsion.harness import configs, hub, recipes
from propulsion.harness.backbones import find_weights
from propulsion.harness.errors import UserError, unknown
from propulsion.harness.leases import Found
from propulsion.harness.record import DIVERGED, FAILED, SUCCESS, cell_key
from propulsion.harness.settings import BackboneSpec, Settings, explain, read_settings, total_steps
from propulsion.harness.sources import open_source
from propulsion.harness.staleness import Fingerprints, is_of, name_of

Record = dict[str, Any]

# Training rows of the published splits; of COPA and ReCoRD those that a classifier reads, ReCoRD's about.
TRAIN_ROWS = {
    **{"cola": 8551, "sst2": 67349, "mrpc": 3668, "stsb": 5749, "qqp": 363846, "mnli": 392702},
    **{"qnli": 104743, "rte": 2490, "wnli": 635},
    **{"boolq": 9427, "cb": 250, "copa": 800, "multirc": 27243, "record": 1_200_000, "wic": 5428, "wsc": 554},
    **{"axb": 2490, "axg": 2490},
}
# Rows of a scored question, about; of other tasks one.
QUESTION_ROWS = {"copa": 2, "multirc": 5, "record": 12, "axg": 2}
# Samples per second of training where nothing was measured yet: a guess for GLUE's lengths, by whether it is
# one current data-centre GPU or two processor cores. `make plan` says that it is a guess.
ASSUMED = {
    True: {"minilm": 4000.0, "roberta_base": 600.0, "roberta_large": 200.0, "deberta_v3_base": 350.0},
    False: {"minilm": 150.0, "roberta_base": 10.0, "roberta_large": 3.0, "deberta_v3_base": 6.0},
}
ASSUMED_OTHER = {True: 100.0, False: 1.0}
EVALUATION_SPEED = 3.0  # samples per second of evaluation over those of training: no backward pass


@dataclass(frozen=True)
class Cell:
    """One run to be. `state`: done | running | failed | to do. `seconds` is None where the rows are not known."""

    settings: Settings
    state: str
    recipe: str  # published | ours | none
    seconds: float | None
    measured: bool  # the speed behind `seconds`


@dataclass
class Line:
    """The cells of one backbone and method."""

    backbone: str
    method: str
    cells: list[Cell] = field(default_factory=list)

    def count(self, state: str) -> int:
        """Cells in this state."""
        return sum(cell.state == state for cell in self.cells)

    @property
    def hours(self) -> float:
        """Hours that the cells not done would take."""
        return sum(cell.seconds or 0.0 for cell in self.cells if cell.state != "done") / 3600


def expand(words: list[str]) -> Iterator[list[str]]:
    """The overrides of each job that Hydra's basic sweeper would make of a sweep's words.

    Raises:
        UserError: a glob, which only a sweep itself resolves.
    """
    choices = []
    for word, override in zip(words, OverridesParser.create().parse_overrides(words), strict=True):
        if override.is_sweep_override():
            if isinstance(override.value(), Glob):
                raise UserError(f"{word}: a plan needs the names themselves, as in tasks=rte,mrpc")
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([word])
    return (list(job) for job in itertools.product(*choices))


def settings_of(words: list[str]) -> list[Settings]:
    """The settings of every cell of a sweep.

    Raises:
        UserError: a name or key that does not exist, or a value that does not fit.
    """
    try:
        words, outside = configs.search_path(words)
        composed: dict[tuple[str, ...], DictConfig] = {}
        with initialize_config_dir(str(configs.CONF), version_base="1.3"):
            return [read_settings(_config(job, outside, composed)) for job in expand(words)]
    except MissingConfigException as error:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        raise unknown(group, name, error.options or []) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def _config(job: list[str], outside: list[str], composed: dict[tuple[str, ...], DictConfig]) -> DictConfig:
    """A job's config. Those that differ in the seed alone are composed once: Hydra takes a tenth of a second each."""
    seeds = [word for word in job if re.fullmatch(r"seed=\d+", word)]
    rest = tuple(word for word in job if word not in seeds)
    if rest not in composed:
        composed[rest] = compose("config", [*rest, *outside])
    for word in seeds:
        composed[rest].seed = int(word.removeprefix("seed="))
    return composed[rest]


def obstacles(cells: Iterable[Settings], gpu: bool) -> list[str]:
    """What keeps a sweep from starting here: a GPU, weights or rows that are not to be had. Loads nothing."""
    reasons = []
    if gpu and not torch.cuda.is_available():
        reasons.append("the paper profile needs a CUDA GPU, and torch sees none here")
    cells = list(cells)
    for backbone in {cell.backbone.name: cell.backbone for cell in cells}.values():
        if not _weights_at_hand(backbone):
            reasons.append(f"backbone {backbone.name}: the hub cannot be reached and the cache lacks {backbone.id}")
    missing: dict[str, str] = {}
    for cell in {cell.task.name: cell for cell in cells}.values():
        try:
            source = open_source(cell.task, cell.data)
            if cell.data.source != "hub" or not hub.reachable():
                source.fingerprint()
        except UserError as error:
            missing[cell.task.name] = str(error)
    if missing:
        reasons.append(f"data of {', '.join(missing)}: {next(iter(missing.values()))}")
    return reasons


def _weights_at_hand(spec: BackboneSpec) -> bool:
    try:
        path, _ = find_weights(spec)
    except UserError:
        return False
    if path != spec.id or hub.reachable():  # random, an installed package, or to be fetched
        return True
    return isinstance(try_to_load_from_cache(spec.id, "config.json", revision=spec.revision), str)


def plan(
    cells: Iterable[Settings], records: list[Record], speeds: Speeds, running: dict[str, Found] | None = None
) -> list[Line]:
    """The cells by backbone and method, each with its state and cost. `running`: the leases, by key."""
    states = _states(records, running or {}, Fingerprints())
    lines: dict[tuple[str, str], Line] = {}
    for settings in cells:
        name = (settings.backbone.name, settings.method.name)
        line = lines.setdefault(name, Line(*name))
        seconds, measured = estimate(settings, speeds)
        line.cells.append(Cell(settings, states(settings), _recipe(settings), seconds, measured))
    return list(lines.values())


def _states(records: list[Record], running: dict[str, Found], fingerprints: Fingerprints) -> Callable[[Settings], str]:
    by_cell: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        run = record["run"]
        by_cell.setdefault((run["task"], run["backbone"], run["method"], run["seed"]), []).append(record)
    leased = {str(lease.facts.get("fingerprint")) for lease in running.values()}

    def state(settings: Settings) -> str:
        """As the runner would find it: by the key, with the data as it is now where that can be told."""
        own = by_cell.get(name_of(settings), [])
        found = {record["status"] for record in own if is_of(settings, record, fingerprints)}
        if found & {SUCCESS, DIVERGED}:
            return "done"
        if any(cell_key(settings.config, fingerprint) in running for fingerprint in leased):
            return "running"
        return "failed" if FAILED in found else "to do"

    return state


def _recipe(settings: Settings) -> str:
    if settings.recipe is None:
        return "none"
    return "published" if recipes.sourced(settings.recipe.sources) else "ours"


class Speeds:
    """Training samples per second: of the same backbone, method and task, else of what is most like it, else assumed.

    A task's lengths and a method's backward pass both decide the speed, so that both count before the backbone alone.
    """

    def __init__(self, records: list[Record], gpu: bool = True) -> None:
        self.gpu = gpu  # what an assumed speed is of
        self.measured: list[tuple[str, str, str, float]] = []
        self.devices: set[str] = set()
        for record in records:
            run, speed = record["run"], record["cost"]["samples_per_second"]
            if record["status"] == SUCCESS and speed:
                self.measured.append((run["backbone"], run["method"], run["task"], speed))
                self.devices.add(str(record["env"]["device"]))

    def of(self, backbone: str, method: str, task: str) -> tuple[float, bool]:
        """The median speed, and whether it was measured."""
        for alike in ({method, task}, {task}, {method}, set[str]()):
            speeds = [speed for b, m, t, speed in self.measured if b == backbone and alike <= {m, t}]
            if speeds:
                return statistics.median(speeds), True
        return self.assumed(backbone), False

    def assumed(self, backbone: str) -> float:
        """The guess for a backbone."""
        return ASSUMED[self.gpu].get(backbone, ASSUMED_OTHER[self.gpu])


def _scored_rows(settings: Settings) -> int:
    """Rows of an evaluation: of each scored split, as cut by `max_eval_rows`."""
    task, most = settings.task, settings.training.max_eval_rows
    if settings.data.holdout_rows:
        splits = [settings.data.holdout_rows]
    elif settings.data.source == "generated":
        splits = [settings.data.eval_rows] * len(task.parts)
    else:
        splits = [task.dev_rows.get(split, 0) * QUESTION_ROWS.get(task.name, 1) for split in task.parts.values()]
    return sum(min(rows, most or rows) for rows in splits)


def estimate(settings: Settings, speeds: Speeds) -> tuple[float | None, bool]:
    """Seconds that a cell takes, evaluation included, and whether the speed was measured."""
    speed, measured = speeds.of(settings.backbone.name, settings.method.name, settings.task.name)
    spec, data = settings.training, settings.data
    rows = data.train_rows if data.source == "generated" else TRAIN_ROWS.get(settings.task.name)
    if rows is None:
        return None, measured
    rows -= data.holdout_rows or 0
    rows, scored = min(rows, spec.max_train_rows or rows), _scored_rows(settings)
    steps = total_steps(spec, rows)
    every = spec.eval_steps or max(1, steps // spec.evaluations)
    trained = steps * spec.batch_size * spec.accumulation
    return (trained + math.ceil(steps / every) * scored / EVALUATION_SPEED) / speed, measured
