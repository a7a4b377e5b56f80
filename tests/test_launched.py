"""What `accelerate launch` was told, from the variables that its own launcher sets, and what is refused of it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands import launch as launcher
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from propulsion.harness import cell, launched, ranks, sharding
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import CellStopped, UserError
from propulsion.harness.launched import Launch, read
from scripts import run as script
from tests.conftest import ROOT, ComposeCell
from tests.test_ddp import MULTI_GPU


def variables(folder: Path, config: str, *options: str) -> dict[str, str]:
    """Those that accelerate's own launcher gives a process, for a config file and options."""
    file = folder / "config.yaml"
    file.write_text(config)
    words = ["--config_file", str(file), "--main_process_port", "0", *options, "-m", "scripts.run"]
    parsed: argparse.Namespace = launcher.launch_command_parser().parse_args(words)
    args, _, _ = launcher._validate_launch_command(parsed)
    several = args.use_fsdp or args.multi_gpu
    found: dict[str, str] = prepare_multi_gpu_env(args) if several else prepare_simple_launcher_cmd_env(args)[1]
    return found | ({"WORLD_SIZE": "2", "RANK": "0"} if several else {})


def fsdp(*lines: str) -> str:
    return MULTI_GPU.replace("MULTI_GPU", "FSDP") + "fsdp_config:\n" + "".join(f"  {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("lines", "reshards", "blocks"),
    [
        (["fsdp_version: 2"], True, ()),
        (["fsdp_version: 2", "fsdp_reshard_after_forward: false"], False, ()),
        (["fsdp_version: 1", "fsdp_reshard_after_forward: SHARD_GRAD_OP"], False, ()),
        (["fsdp_version: 1", "fsdp_sharding_strategy: SHARD_GRAD_OP"], False, ()),
        (
            ["fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP", "fsdp_transformer_layer_cls_to_wrap: A, B"],
            True,
            ("A", "B"),
        ),
    ],
)
def test_an_fsdp_config_is_read_and_taken_out(
    lines: list[str], reshards: bool, blocks: tuple[str, ...], tmp_path: Path
) -> None:
    given = variables(tmp_path, fsdp(*lines))
    assert given["ACCELERATE_USE_FSDP"] == "true" and given["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    assert read(given) == Launch(by_accelerate=True, shards=True, reshards=reshards, blocks=blocks)
    assert not given.keys() & set(launched.TAKEN)


def test_the_file_on_the_page_is_one(tmp_path: Path) -> None:
    (page,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "several-gpus.md").read_text(), flags=re.DOTALL)
    given = variables(tmp_path, page)
    assert read(given) == Launch(by_accelerate=True, shards=True)
    given = variables(tmp_path, page.replace("distributed_type: FSDP", "distributed_type: MULTI_GPU"))
    assert read(given) == Launch(by_accelerate=True)


def test_without_fsdp_it_is_ddp_and_without_accelerate_nothing(tmp_path: Path) -> None:
    given = variables(tmp_path, MULTI_GPU, "--mixed_precision", "bf16")
    assert read(given) == Launch(by_accelerate=True, precision="bf16")
    assert read({"WORLD_SIZE": "2", "RANK": "1"}) == Launch()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (fsdp("fsdp_offload_params: true"), (), "fsdp_offload_params=true: leave it out"),
        (fsdp("fsdp_activation_checkpointing: true"), (), "use training.gradient_checkpointing=true"),
        (fsdp("fsdp_sharding_strategy: HYBRID_SHARD"), (), "fsdp_sharding_strategy=hybrid_shard: use true"),
        (fsdp("fsdp_auto_wrap_policy: SIZE_BASED_WRAP"), (), "fsdp_auto_wrap_policy=SIZE_BASED_WRAP: use"),
        (MULTI_GPU, ("--dynamo_backend", "inductor"), "leave dynamo_backend out"),
        (
            MULTI_GPU.replace("MULTI_GPU", "MULTI_CPU") + "use_cpu: true\n",
            (),
            "accelerate starts one process on CPUs, however many are asked for",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused(
    config: str, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read(variables(tmp_path, config, *options))


@pytest.mark.parametrize(("name", "title"), launched.FOREIGN.items())
def test_other_engines_are_refused_before_accelerate_starts_them(
    name: str, title: str, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    told(None)
    with pytest.raises(UserError, match=f"asks for {title}: use distributed_type MULTI_GPU or FSDP"):
        ranks.join()


@pytest.mark.parametrize(
    ("own", "words", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, (), "accelerate's configuration asks for DeepSpeed: "),
        ({"WORLD_SIZE": "2", "RANK": "0"}, (), "WORLD_SIZE=2 is set and LOCAL_RANK, MASTER_ADDR, MASTER_PORT not: "),
        (
            {"WORLD_SIZE": "2", **dict.fromkeys(ranks.TOGETHER, "0")},
            ("-m", "seed=0,1", "hydra/launcher=joblib"),
            "hydra/launcher=joblib starts processes for other cells: leave it out beside torchrun",
        ),
    ],
)
def test_a_run_that_was_started_wrongly_ends_with_one_line(
    own: dict[str, str],
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    told: Any,
) -> None:
    """Before processes look for each other, and from the first of a machine alone."""
    told(None)
    for name in ("WORLD_SIZE", *ranks.TOGETHER):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["scripts.run", "experiment=tiny", *words])
    monkeypatch.setenv(script.MAIN_PROCESS, "")
    assert script.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert script.main() == 2
    assert capsys.readouterr().err == ""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Lets a test say how the process was launched; None: as its environment says."""
    launched.launch.cache_clear()

    def launch_as(how: Launch | None) -> None:
        if how is not None:
            for name in ("sharding", "devices"):
                monkeypatch.setattr(f"propulsion.harness.{name}.launch", lambda: how)

    yield launch_as
    launched.launch.cache_clear()


def test_the_setting_and_the_config_must_not_contradict_each_other(
    tiny: ComposeCell, told: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    llama = ("backbone=llama_7b", "method=propulsion")
    told(Launch(by_accelerate=True, shards=True))
    with pytest.raises(UserError, match=r"says FSDP and training\.fsdp=off: leave one of the two out"):
        run_cell(tiny(*llama, "training.fsdp=off"))
    with pytest.raises(UserError, match=r"accelerate's FSDP cuts frozen weights .*; method full freezes nothing"):
        run_cell(tiny("backbone=llama_7b", "method=full"))
    assert sharding.wanted(tiny(*llama).training)
    told(Launch(by_accelerate=True))
    assert not sharding.wanted(tiny(*llama).training)
    sharding.check(tiny(*llama, "training.fsdp=full_shard"))
    assert "weights are cut, though accelerate's configuration does not say FSDP" in capsys.readouterr().err


def test_the_precision_of_the_config_must_be_that_of_the_run(
    tiny: ComposeCell, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would win over fp32, and the record would not know."""
    told(Launch(by_accelerate=True, precision="bf16"))
    with pytest.raises(UserError, match=r"mixed_precision bf16, training\.precision comes to fp32: set training"):
        run_cell(tiny("training.precision=fp32"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told(Launch(by_accelerate=True, on_cpu=True))
    with pytest.raises(UserError, match="says use_cpu and there is a GPU"):
        run_cell(tiny("training.precision=fp32"))


def test_blocks_that_are_not_there_are_refused(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny_models import tiny_classifier

    told(Launch(by_accelerate=True, shards=True, blocks=("BertLayer",)))
    monkeypatch.setattr(ranks, "join", lambda: None)
    monkeypatch.setattr(sharding, "init_device_mesh", lambda *_: None)
    with pytest.raises(UserError, match="LlamaForSequenceClassification has none of these"):
        sharding.shard(tiny_classifier("llama"), ["score"])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_several_that_fails_says_why(
    rank: int, tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first one's record cannot know of another's, and torchrun prints no more than the exit code."""

    def fails(*_: Any) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")  # from here on: nobody is there to meet
        monkeypatch.setenv("RANK", str(rank))
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(cell, "_run_smaller", fails)
    settings = tiny("task=rte", "method=head")
    with pytest.raises(CellStopped):
        run_cell(settings)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{settings.cell}: process {rank} of 2 failed (RuntimeError: out of luck; test_launched.py:")
    assert len(list(Path(settings.results_dir).glob("runs/*/*/*/*.json"))) == (rank == 0)
