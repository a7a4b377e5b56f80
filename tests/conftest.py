"""What tests share: composing configs, and the folder of real data where there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from propulsion.harness.settings import Settings, read_settings

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"

torch.set_num_threads(1)  # the suite runs in parallel processes

# The same test on both: so that what needs a GPU is known to run where there is none.
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

ComposeCell = Callable[..., Settings]


def pytest_configure(config: pytest.Config) -> None:
    """`make test-gpu` stops before it collects anything, where there is no GPU."""
    if config.getoption("markexpr", "") == "gpu" and not torch.cuda.is_available():
        raise pytest.UsageError("no CUDA GPU here: these tests need one; make test runs all others")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, and say why, where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def names(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def compose_settings(*overrides: str) -> Settings:
    """Settings of a cell from `conf/`, as `scripts.run` reads them."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_settings(compose("config", list(overrides)))


@pytest.fixture
def tiny(tmp_path: Path) -> ComposeCell:
    """Composes a cell on a toy backbone with random weights and generated rows, in a fresh results folder."""

    def settings(*overrides: str) -> Settings:
        return compose_settings("experiment=tiny", f"results_dir={tmp_path / 'results'}", *overrides)

    return settings


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real GLUE and SuperGLUE files: DATA_DIR, or the one beside the checkout."""
    folder = Path(os.environ.get("DATA_DIR", ROOT.parent / "shared" / "data"))
    if not (folder / "glue").is_dir():
        pytest.skip(f"no real data at {folder}: set DATA_DIR to the official download's folder")
    return folder


@pytest.fixture(autouse=True, scope="session")
def no_token_cache() -> Iterator[None]:
    """Tests leave the user's cache folder alone; those of the cache itself name a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROPULSION_CACHE", "")
        yield
