"""Step 1, config: the composed Hydra config as typed, validated settings."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from propulsion.harness.errors import UserError, unknown
from propulsion.harness.ranges import check_numbers

KINDS = ("classification", "regression")
SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
BEST_BY = ("primary", "loss")
KEEP_WEIGHTS = ("auto", "none", "last", "best", "both")  # auto: both, where they are small
GROUPS = ("", "given", "pairs")
FAST_PATHS = ("off", "auto", "on")
ATTENTIONS = ("auto", "sdpa", "eager", "flash_attention_2")
QUANTIZED = ("none", "8bit", "4bit")
FSDP = ("auto", "off", "full_shard")
HALF = ("bfloat16", "float16")


@dataclass
class HubSpec:
    """Where a task lives on the hub: `datasets.load_dataset(path, name)` and its split names."""

    path: str = ""  # "": the task is not on the hub
    name: str = ""
    splits: dict[str, str] = field(default_factory=dict)  # ours -> the hub's `split` or `config/split`
    columns: dict[str, Any] = field(default_factory=dict)  # ours -> the hub's name (or names), where they differ


@dataclass
class LocalSpec:
    """Where a task lives in the official download: a folder and one file per split, .tsv or .jsonl."""

    folder: str = ""  # "": the task has no local files
    files: dict[str, Any] = field(default_factory=dict)  # split -> file name, or names of which one exists
    header: bool = True  # False: labelled files have none, and `columns` maps to positions
    skip_short_rows: bool = False  # leave rows with too few columns out, and say how many
    columns: dict[str, Any] = field(default_factory=dict)  # ours -> the file's name (or names), or position
    labels: dict[str, str] = field(default_factory=dict)  # the file's word -> our label name


@dataclass
class TaskSpec:
    """A task: what its rows look like, how it is scored, where it is found. One YAML file."""

    name: str = MISSING
    version: int = MISSING  # raised whenever a change here changes a score
    suite: str = MISSING
    kind: str = "classification"
    labels: list[str] = field(default_factory=list)  # in the order of the class ids; [] in regression
    text: list[str] = field(default_factory=list)  # one or two text columns
    metrics: list[str] = field(default_factory=list)
    primary: str = MISSING
    parts: dict[str, str] = field(default_factory=lambda: {"": "dev"})  # metric suffix -> split scored
    tests: dict[str, str] = field(default_factory=lambda: {"": "test"})  # metric suffix -> split to predict
    dev_rows: dict[str, int] = field(default_factory=dict)  # published rows of each dev split: num_examples on the hub
    hub: HubSpec = field(default_factory=HubSpec)
    local: LocalSpec = field(default_factory=LocalSpec)
    generator: str = ""  # family of the generated data; "": none
    diagnostic: bool = False  # scored apart from the suite
    title: str = ""
    reshape: str = ""  # function of sources/reshape.py that makes rows of a record; "": a record is a row
    group: str = ""  # rows scored together: given (by `reshape`) | pairs (one row and the next); "": none
    answers: bool = False  # rows have a `candidate` and the `answers` that count as right
    spans: int = 0  # marked spans of each row
    cut: str = ""  # the text column that truncation cuts; "": the longer one
    max_length: int = 128  # tokens, where neither recipe nor command line says
    epochs: float = 3.0  # likewise
    also: dict[str, LocalSpec] = field(default_factory=dict)  # other suites with the same rows -> their files

    @property
    def suites(self) -> list[str]:
        """The suites that the task counts for, its own first."""
        return [self.suite, *self.also]


@dataclass
class DataSpec:
    """Which rows: the source and, for a search on training rows, how many to hold out."""

    source: str = MISSING  # hub | local | generated
    dir: str | None = None  # folder of the official layout, for `local`
    seed: int = 0  # of the generated rows and of every fixed subset
    train_rows: int = 1600  # generated rows
    eval_rows: int = 400
    holdout_rows: int = 0  # > 0: evaluate on this many rows taken out of the train split


@dataclass
class BackboneSpec:
    """A backbone: where its weights are, and its architecture, so that counting needs no download."""

    name: str = MISSING
    family: str = MISSING  # the transformers model_type
    id: str = MISSING
    revision: str = "main"
    package: str | None = None  # an installed package that carries the weights, if there is one
    package_folder: str = ""
    sha256: str | None = None  # of model.safetensors; of shards: propulsion.harness.digests.shards_digest
    weights: str = "pretrained"  # pretrained | random
    dtype: str = "float32"
    attention: str = "auto"  # auto (what transformers takes) | sdpa | eager | flash_attention_2; the record has which
    quantize: str = "none"  # none | 8bit | 4bit: frozen linears through bitsandbytes, the head in `dtype`
    pooling: str = "native"  # native (the family's own; of a decoder the last real token) | mean (over the real tokens)
    max_length: int = 512
    note: str = ""
    architecture: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)  # query, key, ... -> regex of module names
    head: list[str] = field(default_factory=list)  # modules new to classification, random at the start


@dataclass
class MethodSpec:
    """A method: which parameters it trains. `apply: peft` takes any config of the peft library."""

    name: str = MISSING
    apply: str = MISSING  # full | head | bitfit | peft | rule (the function `rule` of `module`)
    title: str = ""
    head: str = "trained"  # trained | frozen | wrapped (trained, and scaled or adapted by the method as well)
    learning_rate: float = MISSING
    degree: int | None = None
    num_vectors: int = 1  # of Propulsion: z of each layer, pooled into one before the power
    pooling: str = "avg"  # avg | max | min | l2
    init_spread: float = 0.0  # standard deviation of z around 1 at the start
    targets: list[str] = field(default_factory=list)  # backbone roles, for peft's target_modules
    feedforward: list[str] = field(default_factory=list)  # backbone roles, for IA3's feedforward_modules
    peft: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)  # options of peft's in steps -> their share of the run
    module: str = ""  # a Python module to import first, which brings a tuner or a rule of one's own


@dataclass
class TrainingSpec:
    """How a cell is trained and evaluated."""

    epochs: float = 3.0  # config.yaml: the task's own
    max_steps: int = -1  # > 0 wins over epochs
    batch_size: int = 16
    eval_batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = MISSING  # config.yaml: the method's own
    head_learning_rate: float | None = None  # null: as the rest
    weight_decay: float = 0.0
    decay_vectors: bool = False  # decay z, biases and norms too, as the authors' notebooks do; pulls z to 0, not to 1
    schedule: str = "linear"  # linear | cosine | constant: what follows the warm-up
    warmup_ratio: float = 0.06
    warmup_steps: int | None = None  # wins over the ratio
    max_grad_norm: float = 1.0
    max_length: int = 128  # config.yaml: the task's own
    center_regression: bool = False  # a regression head starts at the mean of the training labels, not at 0
    dropout: float | None = None  # of every dropout of the backbone; null: the backbone's own
    start_from: str | None = None  # trained tensors of another run, as one on MNLI; the head stays new
    max_train_rows: int | None = None
    max_eval_rows: int | None = None
    evaluations: int = 5  # evenly spaced, the last one on the final weights
    eval_steps: int | None = None  # wins over `evaluations`
    best_by: str = "primary"  # primary | loss: what `best` maximises (or minimises)
    precision: str = "auto"  # auto | fp32 | bf16 | fp16
    tf32: bool = False  # float32 matrix products in TF32, on GPUs that have it
    gradient_checkpointing: bool = False  # every block computed again in the backward pass: less memory, more time
    fsdp: str = "auto"  # off | full_shard: frozen weights cut among the processes | auto: as accelerate was told
    checkpoint_seconds: float = 120.0
    keep_checkpoints: bool = False
    keep_weights: str = "auto"  # none | last | best | both | auto: trained tensors in <results_dir>/weights/<key>
    fast_path: str = "off"  # off | auto (on a CPU, where it is exact) | on: fused layers, dropout numbers of their own
    lean: bool = False  # on the fast path: less memory, the feed-forward input computed twice
    cache_features: bool = False  # frozen backbone: every row computed once, without the backbone's dropout


def total_steps(spec: TrainingSpec, rows: int) -> int:
    """Optimizer steps of a whole run; `batch_size` is that of all devices together."""
    if spec.max_steps > 0:
        return spec.max_steps
    per_epoch = max(1, math.ceil(math.ceil(rows / spec.batch_size) / spec.accumulation))
    return math.ceil(per_epoch * spec.epochs)


@dataclass
class RecipeSpec:
    """Where a cell's settings come from: `conf/recipe/<method>/<backbone>/<task>.yaml`, data alone."""

    version: int = MISSING  # raised whenever a value of the recipe changes
    sources: dict[str, str] = field(default_factory=dict)  # key that it sets -> publication, or `ours`
    notes: list[str] = field(default_factory=list)  # where the published run differs and no key can say it


@dataclass
class TrackingSpec:
    """W&B: `auto` logs online when a key is set, else offline."""

    name: str = "off"  # off | wandb
    mode: str = "auto"  # auto | online | offline
    project: str = "propulsion"
    entity: str | None = None


@dataclass
class SweepSpec:
    """How the cells of a sweep share the machine; no score depends on it."""

    pack: str = "auto"  # auto | off | N: cells over one frozen backbone that train at once in one process


@dataclass
class Config:
    """The schema of a composed config: every key, its type and its default (Hydra's store has it as `schema`)."""

    task: TaskSpec = field(default_factory=TaskSpec)
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    method: MethodSpec = field(default_factory=MethodSpec)
    data: DataSpec = field(default_factory=DataSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    tracking: TrackingSpec = field(default_factory=TrackingSpec)
    sweep: SweepSpec = field(default_factory=SweepSpec)
    recipe: RecipeSpec | None = None
    seed: int = 0
    profile: str = "custom"
    rerun: bool = False  # run a cell again that ended as diverged, which counts as done
    results_dir: str = MISSING


ConfigStore.instance().store("schema", Config)
# `${ratio:0.015,${method.degree}}` in an experiment's file: a rate that goes down as the degree goes up.
OmegaConf.register_new_resolver("ratio", lambda above, below: float(f"{above / below:.6g}"), replace=True)
SPECS: dict[str, Any] = {
    "task": TaskSpec,
    "backbone": BackboneSpec,
    "method": MethodSpec,
    "data": DataSpec,
    "training": TrainingSpec,
    "tracking": TrackingSpec,
}


@dataclass
class Settings(Config):
    """Everything that one cell needs, typed. `config` is the resolved config as it is recorded."""

    config: dict[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> str:
        """The cell's name for people: `rte/minilm/propulsion seed 0`."""
        return f"{self.task.name}/{self.backbone.name}/{self.method.name} seed {self.seed}"


def read_settings(config: DictConfig) -> Settings:
    """The typed settings of a composed config.

    Raises:
        UserError: a value of the wrong type, one that is missing, or one that makes no sense.
    """
    try:
        resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        _check_keys(resolved)
        typed: Any = OmegaConf.to_object(config)
        settings = Settings(**{name: getattr(typed, name) for name in Config.__dataclass_fields__}, config=resolved)
        _check_recipe(settings.recipe)
        _name_kept_weights(settings.training)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        key = getattr(error, "full_key", None)
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"config{f' key {key}' if key else ''}: {reason}; see conf/config.yaml") from error
    _check(settings)
    return settings


def _check_keys(resolved: dict[str, Any]) -> None:
    """Refuse a key that the schema does not have: `+training.max_step=5` would be recorded and do nothing."""
    for group, keys in {"": Config, **SPECS}.items():
        found, known = resolved if not group else resolved.get(group) or {}, keys.__dataclass_fields__
        for name in found:
            if name not in known and name != "hydra":
                raise unknown(f"key of {group}" if group else "key", name, known)


def explain(error: Exception) -> str:
    """One line on an override that Hydra refused, with the nearest key instead of Hydra's advice to add a new one."""
    text = " ".join(str(error).split())
    found = re.match(r"Could not override '(?:(\w+)\.)?(\w+)", text)
    group = (found[1] or "") if found else ""
    if found and not group:
        return str(unknown("key", found[2], Config.__dataclass_fields__))
    if found and group in SPECS:
        return str(unknown(f"key of {group}", found[2], SPECS[group].__dataclass_fields__))
    if found:
        return str(unknown("key", group, Config.__dataclass_fields__))
    if text.startswith("Error merging override"):
        cause = " ".join(str(error.__cause__ or "").split(" full_key")[0].split())
        text += f" ({cause})" if cause else ""
    return f"{text}; all keys, with types and defaults, are in propulsion/harness/settings.py"


def _check_recipe(recipe: RecipeSpec | None) -> None:
    specs: dict[str, Any] = {"training": TrainingSpec, "method": MethodSpec}
    for key in recipe.sources if recipe else ():
        group, _, name = key.partition(".")
        if group not in specs or name.partition(".")[0] not in specs[group].__dataclass_fields__:
            raise ValueError(f"recipe.sources names {key}, which is no key of training or method")


def _name_kept_weights(spec: TrainingSpec) -> None:
    """`true` and `false`, as older command lines and records have it, are `last` and `none`."""
    spec.keep_weights = {"true": "last", "false": "none"}.get(spec.keep_weights.lower(), spec.keep_weights)


def _check(settings: Settings) -> None:
    choices = {
        "task.kind": (settings.task.kind, KINDS),
        "training.schedule": (settings.training.schedule, SCHEDULES),
        "training.precision": (settings.training.precision, PRECISIONS),
        "training.best_by": (settings.training.best_by, BEST_BY),
        "training.keep_weights": (settings.training.keep_weights, KEEP_WEIGHTS),
        "task.group": (settings.task.group, GROUPS),
        "task.cut": (settings.task.cut, ("", *settings.task.text)),
        "training.fast_path": (settings.training.fast_path, FAST_PATHS),
        "training.fsdp": (settings.training.fsdp, FSDP),
        "backbone.attention": (settings.backbone.attention, ATTENTIONS),
        "backbone.quantize": (settings.backbone.quantize, QUANTIZED),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"{key}={value}: use {' | '.join(allowed)}")
    check_numbers(settings.training)
    if not 0 <= settings.seed < 2**32:
        raise UserError(f"seed={settings.seed}: must be 0 or more and below 2**32")
    if settings.training.precision == "fp32" and settings.backbone.dtype in HALF:
        raise UserError(
            f"training.precision=fp32 with backbone.dtype={settings.backbone.dtype}: what is trained is float32 and "
            "the rest is not; set backbone.dtype=float32, or training.precision=auto"
        )
