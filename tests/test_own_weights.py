"""Weights in a folder of one's own: in one file or in shards, their digest, and what is refused."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from propulsion.harness import params, trial
from propulsion.harness.backbones import WEIGHTS_FILE, WEIGHTS_INDEX, find_weights, load_model
from propulsion.harness.digests import file_digest
from propulsion.harness.errors import UserError
from propulsion.harness.settings import BackboneSpec
from propulsion.harness.tokenizers import byte_tokenizer


def saved(folder: Path, shard: str) -> BackboneSpec:
    """A tiny LLaMA in a folder, in shards of at most this size."""
    spec = trial.tiny(params.load_backbone("llama_7b"))
    set_seed(0)
    load_model(spec, trial.TASK, trial.PAD)[0].save_pretrained(folder, max_shard_size=shard)
    byte_tokenizer(spec.max_length).save_pretrained(folder)
    return replace(spec, weights="pretrained", id=str(folder), package=None, sha256=None)


@pytest.fixture
def whole(tmp_path: Path) -> BackboneSpec:
    return saved(tmp_path / "whole", "1GB")


@pytest.fixture
def shards(tmp_path: Path) -> BackboneSpec:
    spec = saved(tmp_path / "shards", "50KB")
    assert len(list(Path(spec.id).glob("model-*-of-00002.safetensors"))) == 2
    return spec


def logits(spec: BackboneSpec) -> torch.Tensor:
    set_seed(1)
    model, _ = load_model(spec, trial.TASK, trial.PAD, dropout=0.0)
    return trial.answer(model.eval(), trial.draw())


def test_shards_are_the_model_that_one_file_is(whole: BackboneSpec, shards: BackboneSpec) -> None:
    assert torch.equal(logits(shards), logits(whole))


def test_the_digest_of_shards_is_what_two_commands_print(whole: BackboneSpec, shards: BackboneSpec) -> None:
    assert find_weights(whole)[1].sha256 == file_digest(Path(whole.id, WEIGHTS_FILE))
    command = "sha256sum model-*.safetensors | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=shards.id, capture_output=True, text=True, check=True).stdout
    path, weights = find_weights(shards)
    assert (path, weights.id, weights.revision) == (shards.id, "shards", None)
    assert weights.sha256 == printed.split()[0]
    assert find_weights(replace(shards, sha256=weights.sha256))[1] == weights


def test_other_shards_have_another_digest_and_are_refused(shards: BackboneSpec) -> None:
    before = find_weights(shards)[1].sha256
    shard = Path(shards.id, "model-00002-of-00002.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    assert find_weights(shards)[1].sha256 != before
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json has sha256 .* its YAML file says"):
        find_weights(replace(shards, sha256=before))


def test_a_missing_shard_and_a_broken_index_are_one_line(shards: BackboneSpec) -> None:
    Path(shards.id, "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"no weights at .*model-00001-of-00002\.safetensors, which .*index\.json names"
    ):
        find_weights(shards)
    index = Path(shards.id, WEIGHTS_INDEX)
    for text in ("{", "[]", json.dumps({"metadata": {}}), json.dumps({"weight_map": 1})):
        index.write_text(text)
        with pytest.raises(UserError, match=r"index\.json cannot be read \(.*\); download it again"):
            find_weights(shards)
    index.unlink()
    with pytest.raises(UserError, match=r"put a model\.safetensors there, or model\.safetensors\.index\.json and its"):
        find_weights(shards)
