"""Reproduce a suite: choose the profile, run the sweep, write the tables. `make reproduce-glue` and
`make reproduce-superglue` call this.

    python -m scripts.reproduce suite=glue profile=mini tasks=rte,cola methods=head,propulsion seeds=0,1

Whatever else stands on the line goes to the sweep as a Hydra override.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from omegaconf import OmegaConf

from propulsion.harness import configs, planning, recipes
from propulsion.harness.errors import UserError, ended, unknown
from propulsion.harness.progress import duration
from propulsion.harness.record import check_writable
from propulsion.harness.sources import open_source
from propulsion.harness.sweeps import TABLES_FOLLOW, pack_width
from propulsion.harness.tracking import log_tables
from scripts.tables import print_tables

PROFILES = ("auto", "mini", "paper")
METHODS = ["full", "head", "bitfit", "lora", "ia3", "propulsion"]
PAPER_METHODS = [*METHODS, "propulsion_attn", "propulsion_paper"]
PAPER_BACKBONES = ["roberta_base", "roberta_large"]
INTERRUPTED = 130
MOST_JOBS = 4  # about 1.5 GB of memory each


@dataclass
class Request:
    """What was typed. Lists are comma-separated names; an empty one is the profile's own, `methods=all` every one."""

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


def choose_profile(request: Request) -> tuple[str, str]:
    """The profile to run and why. `auto` takes the paper's where all that it needs is at hand.

    Raises:
        UserError: the name is unknown.
    """
    if request.profile not in PROFILES:
        raise unknown("profile", request.profile, PROFILES)
    if request.profile != "auto":
        return request.profile, "asked for"
    if not torch.cuda.is_available():
        return "mini", "torch sees no CUDA GPU"
    missing = obstacles(request, "paper")
    return ("mini", missing[0]) if missing else ("paper", "a CUDA GPU, the backbones and the data are at hand")


def obstacles(request: Request, profile: str) -> list[str]:
    """What keeps the profile's sweep from starting here, found before the first of many hours."""
    first = request.tasks.split(",")[0] or suite_tasks(request.suite)[0]
    planning.settings_of(sweep_words(sweep_command(replace(request, tasks=first), profile)))  # all names and seeds
    one = replace(request, methods="propulsion", seeds="0")  # weights and rows are the same for all
    cells = planning.settings_of(sweep_words(sweep_command(one, profile)))
    return planning.obstacles(cells, gpu=profile == "paper")


def leave_out_absent(request: Request, profile: str) -> None:
    """Where a data folder is given and no tasks are named: keep to the tasks that it has files for, and say so."""
    if not request.data_dir or request.tasks:
        return
    absent = {}
    tasks = profile_tasks(request.suite, profile)
    for task in tasks:
        (settings,) = planning.settings_of([f"task={task}", "data=local", f"data.dir={request.data_dir}"])
        try:
            open_source(settings.task, settings.data)
        except UserError as error:
            absent[task] = str(error)
    present = [task for task in tasks if task not in absent]
    if not present:
        raise UserError(next(iter(absent.values())))
    if absent:
        print(f"left out: {', '.join(absent)} (no files in {request.data_dir})")
    request.tasks = ",".join(present)


def suite_tasks(suite: str) -> list[str]:
    """The tasks that give a suite its score, by name: its own, and those that it shares with another."""
    tasks: list[Any] = [OmegaConf.load(configs.file("task", name)) for name in configs.names("task")]
    suites = {str(task.name): (str(task.suite), *task.get("also", {})) for task in tasks if not task.get("diagnostic")}
    chosen = [name for name, counted in suites.items() if suite in counted]
    if not chosen:
        raise unknown("suite", suite, {str(task.suite) for task in tasks})
    return chosen


def profile_tasks(suite: str, profile: str) -> list[str]:
    """All of the suite; of GLUE in the paper profile the paper's eight, which leaves WNLI out."""
    tasks = suite_tasks(suite)
    return [task for task in tasks if task in recipes.TASKS] if (suite, profile) == ("glue", "paper") else tasks


def sweep_words(command: list[str]) -> list[str]:
    """The Hydra overrides of a sweep's command line."""
    return command[command.index("scripts.run") + 2 :]


def sweep_command(request: Request, profile: str) -> list[str]:
    """The Hydra sweep, exactly as a person could type it."""
    paper = profile == "paper"
    command = [sys.executable, "-m", "scripts.run", "-m", f"experiment={profile}", f"profile={profile}"]
    command += [
        f"seed={request.seeds}",
        f"task={request.tasks or ','.join(profile_tasks(request.suite, profile))}",
        f"backbone={request.backbones or ','.join(PAPER_BACKBONES if paper else ['minilm'])}",
        f"method={_methods(request, profile)}",
    ]
    if request.data_dir:
        command += ["data=local", f"data.dir={request.data_dir}"]
    command.append(f"results_dir={results_dir(request, profile)}")
    if profile == "mini" and not torch.cuda.is_available() and not _packs(request):
        # One thread each: small matrices gain more from two cells side by side than from two threads.
        command += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={min(os.cpu_count() or 1, MOST_JOBS)}"]
    return command + request.overrides


def _methods(request: Request, profile: str) -> str:
    if request.methods == "all":
        return ",".join(configs.names("method"))
    return request.methods or ",".join(PAPER_METHODS if profile == "paper" else METHODS)


def _packs(request: Request) -> bool:
    """Whether packs were asked for, which train in one process."""
    words = [word.partition("=")[2] for word in request.overrides if word.lstrip("+").startswith("sweep.pack=")]
    return bool(words) and pack_width(words[-1]) > 1


def results_dir(request: Request, profile: str) -> str:
    """The asked folder, or `results/<profile>`; real data has its own, since the two never share a table."""
    if request.results_dir:
        return request.results_dir
    return f"results/{profile}-local" if request.data_dir and profile == "mini" else f"results/{profile}"


def run_sweep(command: list[str]) -> int:
    """Run the sweep in a process of its own. Returns its exit code.

    Ctrl-C is the sweep's to answer: it gets the signal as well, ends in order, and says what to type next.
    """
    process = subprocess.Popen(command, env={**os.environ, TABLES_FOLLOW: "1"})
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, previous)


def main(arguments: list[str]) -> int:
    """Run the sweep and write the tables of what is there. Exit codes as scripts.run."""
    started = time.monotonic()
    try:
        request = parse([*configs.take(arguments), *configs.flag()])
        profile, reason = choose_profile(request)
        print(f"profile: {profile} ({reason})", flush=True)
        leave_out_absent(request, profile)
        missing = obstacles(request, profile)
        if missing:
            others = f" (and {len(missing) - 1} more: make plan PROFILE={profile})" if missing[1:] else ""
            instead = "" if profile == "mini" else ". PROFILE=mini runs anywhere"
            raise UserError(f"PROFILE={profile} cannot start: {missing[0]}{others}{instead}")
        check_writable(results_dir(request, profile))
        command = sweep_command(request, profile)
        print(f"sweep:   {shlex.join(['python', *command[1:]])}", flush=True)
        code = run_sweep(command)
        if code != INTERRUPTED:
            print_tables(results_dir(request, profile))
            log_tables(planning.settings_of(sweep_words(command))[0])
            print(f"took {duration(time.monotonic() - started)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(ended(main))
