"""Run one cell, or a sweep of cells.

    python -m scripts.run task=rte backbone=minilm method=propulsion seed=0
    python -m scripts.run -m task=rte,mrpc method=head,lora,propulsion 'seed=range(3)' data=local data.dir=<folder>

A finished cell is skipped, an interrupted one goes on, a failed one is recorded and the sweep goes on.
Exit code: 0 all done, 1 a cell failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import time

import hydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from propulsion.harness.cell import run_cell
from propulsion.harness.errors import CellStopped, UserError, unknown
from propulsion.harness.progress import cell_line
from propulsion.harness.record import REPOSITORY
from propulsion.harness.settings import read_settings

MAIN_PROCESS = "PROPULSION_MAIN_PROCESS"
_exit_codes: list[int] = []


@hydra.main(version_base="1.3", config_path=str(REPOSITORY / "conf"), config_name="config")
def run(config: DictConfig) -> None:
    """Run the composed config's cell and print its line."""
    started = time.monotonic()
    try:
        settings = read_settings(config)
        entry, ran = run_cell(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _stop(2)
    if int(os.environ.get("RANK", "0")) == 0:
        print(cell_line(settings, entry, ran, started), flush=True)
    if entry["status"] == "failed":
        _stop(1)


def _stop(code: int) -> None:
    """Ask for an exit code: kept here, or raised where a launcher runs the cell in another process."""
    if os.environ.get(MAIN_PROCESS) != str(os.getpid()):
        raise CellStopped(code)
    _exit_codes.append(code)


def main() -> int:
    """Run, and turn every way to end into an exit code and at most one line."""
    os.environ[MAIN_PROCESS] = str(os.getpid())
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors over here instead of printing them
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers of a sweep fork
    try:
        run()
    except CellStopped as stopped:
        return stopped.code
    except MissingConfigException as error:
        print(f"error: {_missing(error)}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {' '.join(str(error).split())}; see conf/config.yaml for the keys", file=sys.stderr)
        return 2
    except ValueError as error:  # Hydra's word for `task=null`
        if "Config group override" not in str(error):
            raise
        print("error: a config group needs a name, as in task=rte", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: type the same command again and it goes on where it stopped", file=sys.stderr)
        return 130
    return max(_exit_codes, default=0)


def _missing(error: MissingConfigException) -> UserError | str:
    """`unknown task 'rt': did you mean rte?` from Hydra's own error."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group or not error.options:
        return " ".join(str(error).split())
    return unknown(group, name, error.options)


if __name__ == "__main__":
    sys.exit(main())
