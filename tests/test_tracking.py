"""W&B: it follows a cell when it can, and never stops one."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import platform
import re
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from propulsion.harness import record, tracking, trainer
from propulsion.harness.cell import run_cell
from propulsion.harness.tracking import Tracker, log_tables
from tests.conftest import ComposeCell


class FakeRun:
    """What the tracker uses of a W&B run."""

    def __init__(self, folder: Path, offline: bool) -> None:
        self.dir = str(folder / "offline-run" / "files")
        self.offline = offline
        self.summary: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.exit_code: int | None = None

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A stand-in for the wandb module that keeps what it was told."""
    module = types.ModuleType("wandb")
    module.api = types.SimpleNamespace(api_key=None)  # type: ignore[attr-defined]
    module.Settings = lambda **options: options  # type: ignore[attr-defined]
    module.torn_down = 0  # type: ignore[attr-defined]
    module.calls = []  # type: ignore[attr-defined]

    def init(**options: Any) -> FakeRun:
        module.calls.append(options)  # type: ignore[attr-defined]
        module.run = FakeRun(tmp_path, options["mode"] == "offline")  # type: ignore[attr-defined]
        return module.run  # type: ignore[attr-defined]

    def teardown() -> None:
        module.torn_down += 1  # type: ignore[attr-defined]

    module.init, module.teardown = init, teardown  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tracker, "offline", False)
    monkeypatch.setattr(Tracker, "off", False)
    monkeypatch.setattr(logging, "raiseExceptions", True)


def test_a_cell_is_named_grouped_and_logged_and_offline_says_how_to_upload(
    tiny: ComposeCell, wandb: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, _ = run_cell(tiny("tracking=wandb", "task=mrpc", "seed=3"))
    (options,) = wandb.calls
    assert options["id"] == entry["key"]
    assert options["name"] == "mrpc/minilm/propulsion seed 3"
    assert options["group"] == "mrpc/minilm/propulsion"
    assert options["mode"] == "offline"  # auto, and no key is set
    assert "tracking" not in options["config"]
    assert any("eval_all/accuracy" in values for _, values in wandb.run.logged)
    assert wandb.run.summary["last/accuracy"] == entry["eval"]["last"]["accuracy"]
    assert wandb.run.exit_code == 0
    assert f"wandb sync {tmp_path / 'offline-run'}" in capsys.readouterr().out


def test_auto_is_online_where_a_key_is_set(tiny: ComposeCell, wandb: Any) -> None:
    wandb.api.api_key = "secret"
    entry, _ = run_cell(tiny("tracking=wandb"))
    assert wandb.calls[0]["mode"] == "online"
    assert "secret" not in str(entry)


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failure_of_tracking_is_said_once_and_ends_nothing(
    tiny: ComposeCell,
    wandb: Any,
    where: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    target = wandb if where == "init" else FakeRun
    monkeypatch.setattr(target, where, broken)
    entry, _ = run_cell(tiny("tracking=wandb"))
    assert entry["status"] == "success"
    said = [line for line in capsys.readouterr().err.splitlines() if "W&B failed" in line]
    assert len(said) == (2 if where == "init" else 1)  # online, then offline
    assert re.search(r"W&B failed to \w+ \(No space left on device\); the cell goes on without it", said[0])


def test_a_login_that_is_broken_is_said_once_and_all_cells_are_kept_offline(
    tiny: ComposeCell, wandb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.api.api_key = "broken"
    init = wandb.init

    def refuses(**options: Any) -> FakeRun:
        if options["mode"] == "online":
            wandb.calls.append(options)
            raise RuntimeError("the login has failed")
        return init(**options)

    wandb.init = refuses
    for seed in (0, 1, 2):
        run_cell(tiny("tracking=wandb", f"seed={seed}", "training.max_steps=1"))
    assert [call["mode"] for call in wandb.calls] == ["online", "offline", "offline", "offline"]
    assert capsys.readouterr().err.count("W&B failed to start (the login has failed)") == 1
    assert wandb.torn_down == 1  # else W&B says of the same run, offline, that its id is in use


@pytest.mark.parametrize("fills", ["before", "after"])
def test_a_full_disk_in_the_folder_of_wandb_is_said_in_one_line_and_no_upload_is_promised(
    tiny: ComposeCell, wandb: Any, fills: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = itertools.count()

    def full(folder: Path) -> None:
        if fills == "before" or next(tries) % 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tracking, "try_writing", full)
    for seed in (0, 1):
        entry, _ = run_cell(tiny("tracking=wandb", f"seed={seed}", "training.max_steps=1"))
        assert entry["status"] == "success"
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if "W&B failed" in line and "No space left" in line]
    assert len(said) == (1 if fills == "before" else 2)  # each run's own
    assert "wandb sync" not in printed.out and logging.raiseExceptions is (fills == "before")


def test_a_resumed_run_tells_again_what_was_logged_before(
    tiny: ComposeCell, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("tracking=wandb", "training.max_steps=20", "training.evaluations=4", "training.checkpoint_seconds=0")
    step = trainer.CellTrainer.training_step

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 12:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer.CellTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cell(tiny(*options))
    first = wandb.run
    monkeypatch.setattr(trainer.CellTrainer, "training_step", step)
    run_cell(tiny(*options))
    assert wandb.calls[0]["id"] == wandb.calls[1]["id"]
    before = [(at, values.get("eval_loss"), values.get("loss")) for at, values in first.logged]
    after = [(at, values.get("eval_loss"), values.get("loss")) for at, values in wandb.run.logged]
    assert after[: len(before)] == before and len(after) > len(before)


def test_off_never_imports_wandb(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    entry, _ = run_cell(tiny("tracking=off"))
    assert entry["status"] == "success"


def test_the_real_library_writes_an_offline_run_without_host_or_key(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    settings = tiny("tracking=wandb", "training.max_steps=2")
    entry, _ = run_cell(settings)
    assert entry["status"] == "success"
    printed = capsys.readouterr()
    folder = re.search(r"wandb sync (\S+)", printed.out)
    assert folder, printed.err
    run = Path(folder.group(1))
    assert run.is_dir() and run.is_relative_to(settings.results_dir) and run.name.endswith(entry["key"])
    stored = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert b"0123456789abcdef0123456789abcdef01234567" not in stored


def test_offline_runs_are_there_once_for_each_id_and_the_tables_have_one(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = tiny("tracking=wandb", "training.max_steps=2")
    entry, _ = run_cell(settings)
    record.record_path(settings, entry["key"]).unlink()
    time.sleep(1.1)  # the library names folders by the second
    run_cell(settings)
    for _ in range(2):
        log_tables(settings)
        time.sleep(1.1)
    folders = [path.name for path in Path(settings.results_dir, "wandb").glob("offline-run-*")]
    ids = sorted(name.split("-", 3)[3] for name in folders)
    assert ids[0] == entry["key"] and ids[1].startswith("tables-") and len(ids) == 2
    assert len(list(Path(settings.results_dir, "wandb", "superseded").iterdir())) == 2
    stored = b"".join(p.read_bytes() for p in Path(settings.results_dir, "wandb").rglob("*") if p.is_file())
    assert platform.node().encode() not in stored or len(platform.node()) < 4
    (table,) = Path(settings.results_dir, "wandb").glob("offline-run-*/files/media/table/table/*.json")
    assert "propulsion" in table.read_text()
