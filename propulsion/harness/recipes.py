"""Recipes as data: `conf/recipe/<method>/<backbone>/<task>.yaml`, what each sets, and where it is from."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from propulsion.harness.record import REPOSITORY
from propulsion.harness.settings import Config

CONF = REPOSITORY / "conf"
FOLDER = CONF / "recipe"
GROUPS = ("task", "backbone", "method", "training", "recipe")  # of a config: all that a recipe is about
OURS = "ours"  # what follows it says how the value was chosen
# What a value's source may be. A value whose publication was not seen is `ours`, whatever it was taken from.
SOURCES = (
    "Propulsion paper, section 4.2, second-hand",
    "authors' notebook (Propulsion in All)",
    "authors' notebook (Propulsion in Attention)",
    "authors' notebook (packaged function)",
    "LoRA paper, Table 9",
    "LoRA paper, Appendix D",
    "LoRA repository, examples/NLU",
    "RoBERTa repository, README.glue.md",
    "BitFit repository, run_glue.py",
    OURS,
)
METHODS = ("full", "bitfit", "lora", "ia3", "propulsion", "propulsion_attn", "propulsion_paper")
BACKBONES = ("roberta_base", "roberta_large")
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")


def grid() -> Iterator[tuple[str, str, str]]:
    """The paper's grid: (method, backbone, task)."""
    return ((m, b, t) for m in METHODS for b in BACKBONES for t in TASKS)


def path(method: str, backbone: str, task: str) -> Path:
    """Where a cell's recipe lies, if it has one."""
    return FOLDER / method / backbone / f"{task}.yaml"


def read(file: Path) -> dict[str, Any]:
    """A recipe as it stands in its file."""
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


@functools.cache
def composed(method: str, backbone: str, task: str) -> dict[str, Any] | None:
    """`GROUPS` of the config of a run that follows the cell's recipe to the letter; None without a recipe."""
    if not path(method, backbone, task).is_file():
        return None
    names = {"task": task, "backbone": backbone, "method": method}
    files: dict[Any, Any] = {group: OmegaConf.load(CONF / group / f"{name}.yaml") for group, name in names.items()}
    defaults: Any = OmegaConf.load(CONF / "config.yaml")
    config: Any = OmegaConf.merge(
        OmegaConf.structured(Config),
        {**files, "training": defaults["training"]},
        read(path(method, backbone, task)),
    )
    return {group: OmegaConf.to_container(config[group], resolve=True) for group in GROUPS}


def keys(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a recipe sets, `training.epochs` -> value, its own block left out."""
    flat: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    walk({key: value for key, value in recipe.items() if key != "recipe"}, "")
    return flat


def sourced(sources: dict[str, str]) -> bool:
    """Whether any value has a source other than ourselves."""
    return any(not source.startswith(OURS) for source in sources.values())
