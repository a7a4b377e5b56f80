"""A sharded tiny LLaMA on two processes (gloo) against one whole: scores, kept weights, going on after a kill.

Sharded by the setting, and by an FSDP config of accelerate's alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from propulsion.harness.cell import run_cell
from propulsion.harness.errors import UserError
from propulsion.harness.kept import weights_path
from tests import ddp
from tests.conftest import ComposeCell
from tests.test_ddp import MULTI_GPU, accelerate, only_record, torchrun, two_devices

# z on the head as well, and the head frozen: it has to be in the kept file, whole
LLAMA = ("backbone=llama_7b", "method=propulsion_paper", "training.keep_weights=both")
SHARDED = (*LLAMA, "training.gradient_checkpointing=true")
# fsdp_cpu_ram_efficient_loading is on by default: the other process would start from empty weights
FSDP = MULTI_GPU.replace("MULTI_GPU", "FSDP") + "fsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: true}\n"


@two_devices
@pytest.mark.slow
def test_two_processes_with_half_the_weights_each_equal_one_with_all(tmp_path: Path) -> None:
    killed = torchrun(tmp_path / "two", *SHARDED, "training.fsdp=full_shard", "kill=15")
    assert killed.returncode != 0
    assert [path.name for path in (tmp_path / "two").glob("checkpoints/*/checkpoint-*")] == ["checkpoint-10"]
    two = accelerate(FSDP, tmp_path / "two", *SHARDED, "run", "run")
    assert two.stdout.splitlines() == ["success ran on 2", "success skipped on 2"], two.stderr[-3000:]
    ours = only_record(tmp_path / "two")
    alone, _ = run_cell(ddp.settings(str(tmp_path / "one"), *LLAMA))
    assert ours["key"] == alone["key"]  # sharding is no other run
    assert ours["params"] == alone["params"]
    whole = sum(tensor.numel() for tensor in load_file(weights_path(str(tmp_path / "one"), alone["key"])).values())
    assert ours["cost"]["sharded_parameters"] == alone["params"]["total"] - whole  # all but z and the head
    assert alone["cost"]["sharded_parameters"] is None
    for mine, theirs in zip(ours["eval"]["history"], alone["eval"]["history"], strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["scores"] == pytest.approx(theirs["scores"], abs=1e-5)
    kept = [load_file(weights_path(str(tmp_path / name), ours["key"])) for name in ("one", "two")]
    assert kept[0].keys() == kept[1].keys() and any("score" in name for name in kept[0])
    moved = 0.0
    for name, expected in kept[0].items():
        torch.testing.assert_close(kept[1][name], expected, rtol=0, atol=1e-4)
        moved = max(moved, float((expected - 1).abs().max()) if "propulsion_z" in name else 0.0)
    assert moved > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("method=full",), "freezes nothing: use training.fsdp=off"),
        (("backbone.quantize=4bit", "method=lora"), "cannot cut quantized weights"),
        (("training.fast_path=auto",), "gathers the weights of ordinary layers"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    tiny: ComposeCell, options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from propulsion.harness import sharding

    settings = tiny("backbone=llama_7b", "method=propulsion", "training.fsdp=full_shard", *options)
    with pytest.raises(UserError, match=r"needs several processes: torchrun"):
        sharding.check(settings)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        sharding.check(settings)
