"""Reproduce a suite: choose the profile, run the sweep, write the tables. `make reproduce-glue` calls this.

    python -m scripts.reproduce suite=glue profile=mini tasks=rte,cola methods=head,propulsion seeds=0,1

Whatever else stands on the line goes to the sweep as a Hydra override.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import OmegaConf

from propulsion.harness import planning
from propulsion.harness.errors import UserError, unknown
from propulsion.harness.progress import duration
from propulsion.harness.record import REPOSITORY
from scripts.tables import print_tables

PROFILES = ("auto", "mini", "paper")
METHODS = ["full", "head", "bitfit", "lora", "ia3", "propulsion"]
PAPER_METHODS = [*METHODS, "propulsion_attn", "propulsion_paper"]
PAPER_BACKBONES = ["roberta_base", "roberta_large"]
MOST_JOBS = 4  # about 1.5 GB of memory each


@dataclass
class Request:
    """What was typed. Lists are comma-separated names; an empty one means the profile's own."""

    suite: str = "glue"
    profile: str = "auto"
    tasks: str = ""
    methods: str = ""
    backbones: str = ""
    seeds: str = "0"
    data_dir: str = ""
    results_dir: str = ""
    overrides: list[str] = field(default_factory=list)


def parse(arguments: list[str]) -> Request:
    """Split `key=value` words into the request's own keys and Hydra overrides."""
    request = Request()
    for word in arguments:
        key, found, value = word.partition("=")
        if found and key != "overrides" and key in Request.__dataclass_fields__:
            setattr(request, key, value)
        else:
            request.overrides.append(word)
    return request


def choose_profile(name: str) -> tuple[str, str]:
    """The profile to run and why.

    Raises:
        UserError: the name is unknown, or `paper` cannot run here.
    """
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    cuda = torch.cuda.is_available()
    if name == "paper" and not cuda:
        raise UserError(
            "PROFILE=paper needs a CUDA GPU, and torch sees none here; "
            "type PROFILE=mini for the small sweep that runs anywhere"
        )
    if name != "auto":
        return name, "asked for"
    if cuda:
        return "paper", "torch sees a CUDA GPU"
    return "mini", "torch sees no CUDA GPU"


def suite_tasks(suite: str) -> list[str]:
    """The tasks of a suite that give it a score, by name."""
    files = sorted((REPOSITORY / "conf" / "task").glob("*.yaml"))
    tasks: list[Any] = [OmegaConf.load(file) for file in files]
    chosen = [str(task.name) for task in tasks if task.suite == suite and not task.get("diagnostic", False)]
    if not chosen:
        raise unknown("suite", suite, {str(task.suite) for task in tasks})
    return chosen


def refuse_paper(command: list[str]) -> None:
    """Check, before the first of many hours, that the sweep has its GPU, backbones and data.

    Raises:
        UserError: names the first thing that is missing.
    """
    missing = planning.obstacles(planning.settings_of(sweep_words(command)), gpu=True)
    if missing:
        raise UserError(f"PROFILE=paper cannot start: {missing[0]}")


def sweep_words(command: list[str]) -> list[str]:
    """The Hydra overrides of a sweep's command line."""
    return command[command.index("scripts.run") + 2 :]


def sweep_command(request: Request, profile: str) -> list[str]:
    """The Hydra sweep, exactly as a person could type it."""
    paper = profile == "paper"
    command = [sys.executable, "-m", "scripts.run", "-m", f"experiment={profile}", f"profile={profile}"]
    command += [
        f"seed={request.seeds}",
        f"task={request.tasks or ','.join(suite_tasks(request.suite))}",
        f"backbone={request.backbones or ','.join(PAPER_BACKBONES if paper else ['minilm'])}",
        f"method={request.methods or ','.join(PAPER_METHODS if paper else METHODS)}",
    ]
    if request.data_dir:
        command += ["data=local", f"data.dir={request.data_dir}"]
    command.append(f"results_dir={results_dir(request, profile)}")
    if profile == "mini" and not torch.cuda.is_available():
        # One thread each: small matrices gain more from two cells side by side than from two threads.
        command += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={min(os.cpu_count() or 1, MOST_JOBS)}"]
    return command + request.overrides


def results_dir(request: Request, profile: str) -> str:
    """The asked folder, or `results/<profile>`; real data has its own, since the two never share a table."""
    if request.results_dir:
        return request.results_dir
    return f"results/{profile}-local" if request.data_dir and profile == "mini" else f"results/{profile}"


def main(arguments: list[str]) -> int:
    """Run the sweep and write the tables. Exit codes as scripts.run."""
    started = time.monotonic()
    request = parse(arguments)
    try:
        profile, reason = choose_profile(request.profile)
        command = sweep_command(request, profile)
        if profile == "paper":
            refuse_paper(command)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"profile: {profile} ({reason})")
    print(f"sweep:   {shlex.join(['python', *command[1:]])}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code in (2, 130):
        return code
    try:
        print_tables(results_dir(request, profile))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"took {duration(time.monotonic() - started)}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
