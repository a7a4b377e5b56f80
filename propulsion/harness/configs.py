"""Where config files lie: in `conf/`, and in a folder outside the repository, Hydra's `--config-dir`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from propulsion.harness.errors import UserError, unknown
from propulsion.harness.record import REPOSITORY

CONF = REPOSITORY / "conf"
FLAGS = ("--config-dir", "-cd")
NAMED = ("task", "backbone", "method")  # groups whose files say their own name

_outside: Path | None = None  # the folder that this process was given; see `take`


def split(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The words without `--config-dir <folder>`, and the folder; of several flags the last."""
    rest: list[str] = []
    folder: str | None = None
    found = iter(words)
    for word in found:
        flag, equals, value = word.partition("=")
        if flag in FLAGS:
            folder = value if equals else next(found, None)
        else:
            rest.append(word)
    return rest, folder


def search_path(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides among the words, and those that let `compose` find what a typed `--config-dir` holds."""
    rest, folder = split(words)
    root = _outside if folder is None else Path(folder).expanduser()
    return rest, [] if root is None else [f"hydra.searchpath=['file://{root.resolve()}']"]


def take(words: Sequence[str]) -> list[str]:
    """The words without `--config-dir <folder>`; from here on this process finds what lies in the folder, by name.

    Raises:
        UserError: it is no folder, a file is no YAML, says another name than its own, or has a name that is taken
            (Hydra would use the repository's without a word).
    """
    global _outside
    rest, folder = split(words)
    root = None if folder is None else Path(folder).expanduser()
    if root is not None:
        _check(root)
    _outside = root
    return rest


def flag() -> list[str]:
    """The words that give another process the same folder."""
    return [] if _outside is None else [FLAGS[0], str(_outside)]


def owner(*options: tuple[str, str]) -> Path:
    """The root that a file about these options, (group, name), belongs to: `conf/` where all of them are there.

    Raises:
        UserError: no such option.
    """
    found = {file(group, name).parents[1] for group, name in options}
    return CONF if found == {CONF} else (found - {CONF}).pop()


def names(group: str) -> list[str]:
    """The options of a config group, those of the folder outside too."""
    return sorted(path.stem for root in _roots() for path in (root / group).glob("*.yaml"))


def file(group: str, name: str) -> Path:
    """The file of one option.

    Raises:
        UserError: no such option.
    """
    for root in _roots():
        if (path := root / group / f"{name}.yaml").is_file():
            return path
    raise unknown(group, name, names(group))


def _roots() -> list[Path]:
    return [CONF] if _outside is None else [CONF, _outside]


def _check(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"--config-dir {root} is not a folder")
    for path in sorted(root.rglob("*.yaml")):
        group = path.parent.relative_to(root)
        if (CONF / group / path.name).is_file():
            raise UserError(f"{path}: conf/{(group / path.name).as_posix()} has that name; give yours another")
        name = _content(path).get("name")
        if group.as_posix() in NAMED and name != path.stem:
            raise UserError(f"{path}: it says name: {name}; write name: {path.stem}, as the file is called")


def _content(path: Path) -> dict[str, Any]:
    """A file as Hydra will read it.

    Raises:
        UserError: it is no YAML, says a key twice, or is no mapping.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: no YAML of keys and values")
    return {str(key): value for key, value in content.items()}
