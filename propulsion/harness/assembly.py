"""What a cell is put together from: its rows, and its tuned model. Runs and submissions make them the same way."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, set_seed

from baselines import Partition, apply_method, partition
from baselines.apply import ANY_STEPS
from baselines.hooks import virtual_tokens
from propulsion.harness.backbones import Weights, center_head, load_model, load_tokenizer
from propulsion.harness.errors import UserError
from propulsion.harness.settings import Settings
from propulsion.harness.sources import Source, TaskData, hold_out, subset
from propulsion.harness.sources.base import examples

LEAST_TOKENS = 8


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
    if min(map(examples, parts.values())) < 2:
        raise UserError(
            f"{settings.cell}: a split of one {'question' if grouped else 'row'} has no halves to choose a "
            "checkpoint on and to score it on; raise training.max_eval_rows"
        )
    return TaskData(train=train_rows, parts=parts, source=data.source, official=official)


def build_model(
    settings: Settings, mean: float | None = None, steps: int = ANY_STEPS
) -> tuple[PreTrainedTokenizerBase, nn.Module, Partition, Weights]:
    """Tokenizer, tuned model, its trained parts and the backbone's provenance; what is random follows the seed.

    A regression starts at `mean` where one is given; `steps` are those of the run to come.
    """
    set_seed(settings.seed)
    tokenizer = load_tokenizer(settings.backbone)
    model, weights = load_model(settings.backbone, settings.task, tokenizer.pad_token_id, settings.training.dropout)
    if mean is not None:
        center_head(model, settings.backbone, mean)
    tuned = apply_method(model, settings.method, settings.backbone, steps)
    return tokenizer, tuned, partition(tuned, settings.backbone.head, settings.method.head != "frozen"), weights


def row_length(settings: Settings, tuned: nn.Module) -> int:
    """The most tokens of a row: the setting's, within what the backbone has places for beside virtual tokens.

    Raises:
        UserError: virtual tokens leave no place for a row.
    """
    room = settings.backbone.max_length - virtual_tokens(tuned)
    if room < LEAST_TOKENS:
        raise UserError(
            f"{settings.cell}: {virtual_tokens(tuned)} virtual tokens leave {max(room, 0)} of the backbone's "
            f"{settings.backbone.max_length} places; lower method.peft.num_virtual_tokens"
        )
    return min(settings.training.max_length, room)


def seed_batches(rows: Dataset, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> DataLoader[Any]:
    """Batches of training inputs without labels, in an order that the seed decides; the same each time."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    inputs = rows.select(order).remove_columns(["labels", "length"])
    return DataLoader(
        inputs,
        batch_size=settings.training.batch_size,
        collate_fn=lambda batch: dict(DataCollatorWithPadding(tokenizer)(batch)),
    )
