"""Where a classifier reads: the mean of the real tokens, or the last of them, by the mask alone."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, BertPreTrainedModel, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPoolingBert(BertPreTrainedModel):
    """BERT with a linear head on the mean of the real tokens' last hidden states.

    Sentence encoders such as MiniLM were trained for this pooling, and their own pooler never was.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels or 1
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits of shape (batch, labels) from ids of shape (batch, length) and their mask.

        Before the places of the ids the mask has those of `past_key_values`, which are not pooled.
        """
        hidden = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
        ).last_hidden_state
        if attention_mask is None:
            pooled = hidden.mean(dim=1)
        else:
            mask = attention_mask[:, -hidden.shape[1] :].unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None and self.config.problem_type == "regression":
            loss = functional.mse_loss(logits.squeeze(-1), labels)
        elif labels is not None:
            loss = functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class LastRealToken:
    """The forward of a decoder's classifier: its `score` on the hidden state of the last real token.

    transformers looks for the last token that is not the padding token. LLaMA has no padding token of its own and
    LLaMA 3 no unknown one either, so rows are padded with the end-of-text token, which real text may end with. Here
    the attention mask alone says what is real, and positions count real tokens, so that padding on either side, or
    none, gives the same logits.
    """

    base_model: Any
    score: nn.Module
    config: Any

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits of shape (batch, labels) from ids of shape (batch, length) and their mask.

        Before the places of the ids the mask has those of `past_key_values`, which count as positions.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None
        rows, length = given.shape[:2]
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        full = (rows, before + length)
        mask = given.new_ones(full, dtype=torch.long) if attention_mask is None else attention_mask.long()
        hidden = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            position_ids=(mask.cumsum(dim=-1) - 1).clamp_min(0)[:, before:],
            past_key_values=past_key_values,
            use_cache=False,
        ).last_hidden_state
        last = (mask[:, before:] * torch.arange(length, device=mask.device)).argmax(dim=-1)
        logits = self.score(hidden[torch.arange(rows, device=hidden.device), last.to(hidden.device)])
        loss = None
        if labels is not None and self.config.problem_type == "regression":
            loss = functional.mse_loss(logits.squeeze(-1).float(), labels.float())
        elif labels is not None:
            loss = functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


@functools.cache
def _reading_by_mask(cls: type) -> type:
    return type(cls.__name__, (LastRealToken, cls), {"__module__": cls.__module__})


def read_by_mask(model: PreTrainedModel) -> PreTrainedModel:
    """Give a decoder's classifier (LLaMA, Mistral, Qwen and the like) the forward above; others stay as they are."""
    cls: Any = type(model)
    if issubclass(cls, GenericForSequenceClassification) and not issubclass(cls, LastRealToken):
        model.__class__ = _reading_by_mask(cls)
    return model
