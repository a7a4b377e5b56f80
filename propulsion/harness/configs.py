"""Config files outside the repository: Hydra's `--config-dir`, for everything that composes a config."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from propulsion.harness.errors import UserError
from propulsion.harness.record import REPOSITORY

CONF = REPOSITORY / "conf"
FLAGS = ("--config-dir", "-cd")
NAMED = ("task", "backbone", "method")  # groups whose files say their own name


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
    folder = folder or split(sys.argv[1:])[1]
    if folder is None:
        return rest, []
    return rest, [f"hydra.searchpath=['file://{Path(folder).expanduser().resolve()}']"]


def check(words: Sequence[str]) -> None:
    """Look through the folder of a `--config-dir` among the words.

    Raises:
        UserError: it is no folder, a file is no YAML, says another name than its own, or has a name that is taken
            (Hydra would use the repository's without a word).
    """
    _, folder = split(words)
    if folder is None:
        return
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"--config-dir {folder} is not a folder")
    for path in sorted(root.rglob("*.yaml")):
        group = path.parent.relative_to(root)
        if (CONF / group / path.name).is_file():
            raise UserError(f"{path}: conf/{(group / path.name).as_posix()} has that name; give yours another")
        if group.as_posix() in NAMED:
            _check_name(path)


def _check_name(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    name = content.get("name") if isinstance(content, dict) else None
    if name != path.stem:
        raise UserError(f"{path}: it says name: {name}; write name: {path.stem}, as the file is called")
