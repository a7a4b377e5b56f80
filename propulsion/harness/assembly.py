"""What a cell is put together from: its rows, and its tuned model. Runs and submissions make them the same way."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from baselines import Partition, apply_method, partition
from propulsion.harness.backbones import Weights, center_head, load_model, load_tokenizer
from propulsion.harness.settings import Settings
from propulsion.harness.sources import Source, TaskData, hold_out, subset


def rows_of(source: Source, settings: Settings) -> TaskData:
    """The cell's rows: the source's splits, or training rows held out, cut to the asked sizes."""
    spec, seed, grouped = settings.training, settings.data.seed, bool(settings.task.group)
    data = source.load()
    train_rows, parts, official = data.train, data.parts, data.official
    if settings.data.holdout_rows:
        train_rows, held = hold_out(train_rows, settings.data.holdout_rows, seed, grouped)
        parts, official = {"": held}, False
    if spec.max_train_rows is not None:
        train_rows = subset(train_rows, spec.max_train_rows, seed)
    if spec.max_eval_rows is not None:
        official = official and all(len(rows) <= spec.max_eval_rows for rows in parts.values())
        parts = {suffix: subset(rows, spec.max_eval_rows, seed, grouped) for suffix, rows in parts.items()}
    return TaskData(train=train_rows, parts=parts, source=data.source, official=official)


def build_model(
    settings: Settings, mean: float | None = None
) -> tuple[PreTrainedTokenizerBase, nn.Module, Partition, Weights]:
    """Tokenizer, tuned model, its trained parts and the backbone's provenance; what is random follows the seed.

    A regression starts at `mean` where one is given.
    """
    set_seed(settings.seed)
    tokenizer = load_tokenizer(settings.backbone)
    model, weights = load_model(settings.backbone, settings.task, tokenizer.pad_token_id, settings.training.dropout)
    if mean is not None:
        center_head(model, settings.backbone, mean)
    tuned = apply_method(model, settings.method, settings.backbone)
    return tokenizer, tuned, partition(tuned, settings.backbone.head, settings.method.head != "frozen"), weights
