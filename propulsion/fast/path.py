"""The fast path: the encoder of a BERT or RoBERTa backbone, flat and fused, in the place of its forward."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import BertModel, RobertaModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from propulsion.fast import varlen
from propulsion.fast.attention import Attention
from propulsion.fast.embeddings import Embeddings
from propulsion.fast.layer import Call, EncoderLayer, Frozen, Vectors
from propulsion.fast.masks import Masks
from propulsion.fast.reading import (
    NotFusedError,
    Read,
    check_dropout,
    check_family,
    check_own,
    low_rank,
    read,
    read_activation,
    read_norm,
    scales,
)
from propulsion.fast.rows import Rows, flatten
from propulsion.fast.rowwise import affine
from propulsion.fast.workspace import Workspace

FAMILIES = (BertModel, RobertaModel)
IGNORED = {"return_dict", "num_items_in_batch"}  # the latter: transformers' Trainer sends it for the loss, through all


def fast_path(model: nn.Module, lean: bool = False) -> nn.Module:
    """Train a frozen BERT or RoBERTa encoder through fused layers: same losses and gradients, less memory and time.

    It acts on forward passes with gradients alone, and on those that it computes exactly: every matrix of the
    encoder frozen, vectors (Propulsion, IA3, trained biases) or nothing on them. Other passes, evaluation among
    them, run the model's own modules. Parameters, names, saving, loading and merging stay as they are. Padding
    costs nothing: hidden states at padded positions come out as zero, so that only a head that leaves these out is
    exact. One that reads the first position does, as a batch where a sequence begins with padding runs the model's own
    modules; so does one with any padding under a `*ForQuestionAnswering`. For tokens, or masked ones, labels at padded
    positions must be -100. Dropout draws from the same distribution as
    the plain modules, but other numbers.

    Changed weights are seen, merges of peft's, casts and moves too. What cannot be seen is a write of one's own into
    `weight.data` in place, which torch counts nowhere: call `fast_path` again after it.

    Args:
        model: The model, tuned or not; changed in place.
        lean: Keep less and compute the feed-forward input again in the backward pass.

    Returns:
        The model.

    Raises:
        ValueError: Nothing in the model can take the fused path; the message says why.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise NotFusedError("virtual tokens go in as embeddings, or as keys and values")
    backbone = _backbone(model)
    path = FastPath(backbone, lean, reads_padding=_answers_questions(model))
    path.read()
    plain_path(model)
    backbone.forward = path  # an attribute of the instance: no module, no parameter, nothing that is saved
    return model


def plain_path(model: nn.Module) -> nn.Module:
    """Undo `fast_path`, in place; nothing happens where it was not on. Returns the model."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), FastPath):
            del module.__dict__["forward"]
    return model


def find_path(model: nn.Module) -> FastPath | None:
    """The fast path of a model, or None where it is not on."""
    found = (module.__dict__.get("forward") for module in model.modules())
    return next((forward for forward in found if isinstance(forward, FastPath)), None)


def _backbone(model: nn.Module) -> Any:
    found = [module for module in model.modules() if type(module) in FAMILIES]
    if len(found) != 1:
        raise NotFusedError(f"{type(model).__name__} holds {len(found)} BERT or RoBERTa encoders, not one")
    return found[0]


def _answers_questions(model: nn.Module) -> bool:
    return any(
        kind.__name__.endswith("ForQuestionAnswering") for each in model.modules() for kind in type(each).__mro__
    )


@dataclass
class _Layer:
    """One encoder layer as it computes now."""

    qkv: list[Read]
    out: Read
    up: Read
    down: Read
    middle: nn.LayerNorm
    output: nn.LayerNorm


_Mark = tuple[int, StorageWeakRef, int]  # of a weight: its version, and the memory that it lies in
_State = list[tuple[weakref.ref[nn.Module], tuple[str, ...]]]  # of a layer: its modules, and what is merged into each


@dataclass(frozen=True)
class _Prepared:
    """A layer's matrices as the products want them, and what they were made from: held, so that `is` can tell."""

    sources: list[torch.Tensor]
    marks: list[_Mark]
    matrices: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Trained:
    """All vectors of an encoder, as they act: scales of the embeddings, bias of their norm, layers, last bias."""

    tables: tuple[torch.Tensor | None, ...]
    norm_bias: torch.Tensor
    layers: tuple[Vectors, ...]
    last_bias: torch.Tensor


@dataclass(frozen=True)
class Pass:
    """What one pass through the encoder needs beside what is frozen. `ids`: word, token type, position, `(tokens,)`."""

    ids: tuple[torch.Tensor, ...]
    vectors: Trained
    call: Call
    dtype: torch.dtype | None  # of the products; None: that of the matrices


@dataclass
class FastPath:
    """The forward of a backbone. `used` and `plain` count passes with gradients; `reason`: why the last was plain.

    `varlen`: may the variable-length kernel be used; `attention`: what attention goes through on a GPU, in words.
    `reads_padding`: the head reads every position, so that a batch with padding is plain.
    `exchange`, where it is set, computes the pass in the place of `encode`: a pack does, for several runs at once, and
    then passes without gradients as well, but not those under autocast: the plain modules round elsewhere.
    """

    backbone: Any
    lean: bool
    used: int = 0
    plain: int = 0
    reason: str | None = None
    exchange: Callable[[FastPath, Pass], torch.Tensor] | None = None
    varlen: bool = True
    reads_padding: bool = False
    attention: str | None = None
    _space: Workspace = field(default_factory=Workspace, repr=False)
    _prepared: dict[tuple[int, torch.dtype], _Prepared] = field(default_factory=dict, repr=False)
    _states: dict[tuple[int, torch.dtype], _State] = field(default_factory=dict, repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's output: fused where that is exact, else from its own forward."""
        learns = torch.is_grad_enabled()
        if learns or (self.exchange is not None and _autocast(self.backbone.device.type) is None):
            try:
                output = self._fused(*args, **kwargs)
                self.used += learns
                return output
            except NotFusedError as error:
                self.plain += learns
                self.reason = str(error) if learns else self.reason
        return type(self.backbone).forward(self.backbone, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> FastPath:
        copied = memo.get(id(self.backbone))
        return FastPath(
            self.backbone if copied is None else copied, self.lean, varlen=self.varlen, reads_padding=self.reads_padding
        )

    def __reduce__(self) -> Any:
        return FastPath, (self.backbone, self.lean, 0, 0, None, None, self.varlen, self.reads_padding)

    def read(self) -> list[_Layer]:
        """The layers with the vectors that act now.

        Raises:
            NotFusedError: something in the model stands in the way.
        """
        config = self.backbone.config
        if config.is_decoder or config.add_cross_attention:
            raise NotFusedError("it is a decoder")
        if config.output_attentions or config.output_hidden_states or not config.return_dict:
            raise NotFusedError("its config asks for attentions, hidden states or a tuple")
        if config.chunk_size_feed_forward:
            raise NotFusedError("its feed-forward is chunked")
        modules = list(self.backbone.modules())
        if any(vars(module).get("gradient_checkpointing") for module in modules):
            raise NotFusedError("gradient checkpointing is on")
        called = {self.backbone, *(self.backbone.pooler.modules() if self.backbone.pooler is not None else ())}
        for module in modules:
            if module not in called:  # those are: their hooks act
                check_own(module)
        check_family(self.backbone.embeddings, self.backbone.encoder)
        check_dropout(self.backbone.embeddings.dropout)
        if {module.training for module in modules if isinstance(module, nn.Dropout)} != {self.backbone.training}:
            raise NotFusedError("parts of it are in training mode, others not")
        read_norm(self.backbone.embeddings.LayerNorm)
        return self._layers()

    def _layers(self) -> list[_Layer]:
        return [_read_layer(layer) for layer in self.backbone.encoder.layer]

    def _fused(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        asked = {key for key, value in others.items() if value is not None and value is not False}
        if asked - IGNORED:
            raise NotFusedError(f"it was called with {', '.join(sorted(asked - IGNORED))}")
        if input_ids is None or others.get("return_dict") is False:
            raise NotFusedError("it was called without input_ids, or for a tuple")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.shape != input_ids.shape:
            raise NotFusedError("its attention mask is not of shape (batch, length)")
        layers = self.read()
        heads = self.backbone.config.num_attention_heads
        rows = flatten(attention_mask, heads)
        if rows is None:
            raise NotFusedError("a sequence has no token")
        if not rows.led:  # a pooler, or a head that reads the first position, wants what stands there
            raise NotFusedError("a sequence begins with padding")
        if self.reads_padding and rows.tokens < input_ids.numel():
            raise NotFusedError("a head for question answering reads padded positions")
        rates = [module.p for module in self.backbone.modules() if isinstance(module, nn.Dropout)]
        dropout = self.backbone.training and max(rates) > 0
        call = Call(rows, Masks.draw() if dropout else None, self.lean, self._space)
        kind = input_ids.device.type
        dtype = _autocast(kind)
        with torch.autocast(kind, enabled=False):
            ids = tuple(_flat(ids, rows) for ids in self._ids(input_ids, token_type_ids, position_ids))
            with torch.enable_grad():  # so that a pass without gradients shows as well what is trained
                vectors = self._vectors(layers)
            given = Pass(ids, vectors, call, dtype)
            hidden = self.encode(given) if self.exchange is None else self.exchange(self, given)
        self.attention = self._attention(hidden.device, dtype or layers[0].out.weight.dtype)
        sequence = rows.pad(hidden)
        pooled = self.backbone.pooler(sequence) if self.backbone.pooler is not None else None
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=sequence, pooler_output=pooled)

    def _attention(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type == "cpu":
            return None
        heads = self.backbone.config.num_attention_heads
        if not self.varlen:
            return "attention by groups"
        return varlen.described(device, dtype, heads, self.backbone.config.hidden_size // heads)

    def _tables(self) -> list[Read]:
        names = ("word", "token_type", "position")
        return [read(getattr(self.backbone.embeddings, f"{name}_embeddings")) for name in names]

    def _vectors(self, layers: list[_Layer]) -> Trained:
        """The vectors that act now, differentiable with respect to what is trained."""
        tables, norm = self._tables(), self.backbone.embeddings.LayerNorm
        if norm.weight.dtype not in (torch.float32, torch.float64):
            raise NotFusedError(f"its norms are in {norm.weight.dtype}")
        pieces = [[(table.outputs, table.weight.shape[1])] for table in tables]
        for layer in layers:
            pieces.append([(each.outputs, each.weight.shape[0]) for each in layer.qkv])
            pieces += [[(each.outputs, each.weight.shape[0])] for each in (layer.out, layer.up, layer.down)]
        factors = scales(pieces)
        inputs = scales([[(layer.down.inputs, layer.down.weight.shape[1])] for layer in layers])
        norms = [None, *(layer.output for layer in layers)]  # the norm before each layer
        own = [factors[3 + 4 * index : 7 + 4 * index] for index in range(len(layers))]
        found = map(_layer_vectors, layers, norms, own, inputs)
        return Trained(tuple(factors[:3]), norm.bias, tuple(found), layers[-1].output.bias)

    def encode(self, given: Pass) -> torch.Tensor:
        """The last hidden states, `(tokens, d)`, by the frozen parts of this backbone and the given vectors."""
        embeddings, call, vectors = self.backbone.embeddings, given.call, given.vectors
        norm, rate = embeddings.LayerNorm, embeddings.dropout.p
        weights = tuple(table.weight for table in self._tables())
        hidden: torch.Tensor = Embeddings.apply(
            weights, given.ids, norm.weight, norm.eps, rate, call, vectors.norm_bias, *vectors.tables
        )
        before: nn.LayerNorm | None = None
        for index, layer in enumerate(self._layers()):  # `_fused` has read the rest in this pass
            frozen = self._frozen(index, layer, before, given.dtype)
            hidden = EncoderLayer.apply(hidden, frozen, call, *vectors.layers[index])
            before = layer.output
        return affine(hidden, None if before is None else before.weight, vectors.last_bias, call.rows)

    def _ids(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Word, token type and position ids, each `(batch, length)`, as the embeddings would choose them."""
        embeddings = self.backbone.embeddings
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        if position_ids is None and isinstance(self.backbone, RobertaModel):
            position_ids = embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        return input_ids, token_type_ids.expand_as(input_ids), position_ids.expand_as(input_ids)

    def _frozen(self, index: int, layer: _Layer, before: nn.LayerNorm | None, dtype: torch.dtype | None) -> Frozen:
        module = self.backbone.encoder.layer[index]
        attention = module.attention.self
        qkv, out, up, down = self._matrices(index, layer, dtype or layer.out.weight.dtype)
        return Frozen(
            qkv=qkv,
            out=out,
            up=up,
            down=down,
            input_weight=None if before is None else before.weight,
            middle_weight=layer.middle.weight,
            middle_eps=layer.middle.eps,
            output_eps=layer.output.eps,
            dropout=module.output.dropout.p,
            attention=Attention(
                attention.num_attention_heads, attention.scaling, attention.dropout.p, 3 * index + 1, self.varlen
            ),
            approximate=read_activation(module.intermediate.intermediate_act_fn),
            site=3 * index + 2,
        )

    def _matrices(self, index: int, layer: _Layer, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values as one matrix, and the other three; made once, and again when a weight changes.

        A write to `weight.data` shows in no version. A merge of peft's is one: the modules and what is merged into
        them tell. These are this path's alone, where a pack has one copy of the matrices for several models.
        """
        sources = [*(each.weight for each in layer.qkv), layer.out.weight, layer.up.weight, layer.down.weight]
        marks, state, key = [_mark(weight) for weight in sources], self._state(index), (index, dtype)
        known = self._prepared.get(key)
        changed = self._states.setdefault(key, state) != state
        if known is None or changed or known.marks != marks or any(map(operator.is_not, known.sources, sources)):
            with torch.no_grad():
                qkv = torch.cat([weight.to(dtype) for weight in sources[:3]])
                matrices = (qkv, *(weight.detach().to(dtype) for weight in sources[3:]))
            known = self._prepared[key] = _Prepared(sources, marks, matrices)
            self._states[key] = state
        return known.matrices

    def _state(self, index: int) -> _State:
        module = self.backbone.encoder.layer[index]
        attention = module.attention
        own = attention.self
        layers = (own.query, own.key, own.value, attention.output.dense, module.intermediate.dense, module.output.dense)
        return [(weakref.ref(each), tuple(vars(each).get("merged_adapters", ()))) for each in layers]


def _mark(weight: torch.Tensor) -> _Mark:
    """Held weakly, so that new memory at the address of old is told from it; the address: a storage may change its."""
    return weight._version, StorageWeakRef(weight.untyped_storage()), weight.data_ptr()


def _read_layer(layer: Any) -> _Layer:
    attention = layer.attention
    check_family(layer, attention, attention.self, attention.output, layer.intermediate, layer.output)
    check_dropout(attention.self.dropout, attention.output.dropout, layer.output.dropout)
    if attention.output.dropout.p != layer.output.dropout.p:
        raise NotFusedError("the dropout rates within a layer differ")
    read_activation(layer.intermediate.intermediate_act_fn)
    found = _Layer(
        qkv=[read(getattr(attention.self, name)) for name in ("query", "key", "value")],
        out=read(attention.output.dense),
        up=read(layer.intermediate.dense),
        down=read(layer.output.dense),
        middle=read_norm(attention.output.LayerNorm),
        output=read_norm(layer.output.LayerNorm),
    )
    if any(each.inputs for each in (*found.qkv, found.out, found.up)):
        raise NotFusedError("IA3 scales an input other than that of the last feed-forward layer")
    if any(each.low for each in (found.out, found.up, found.down)):
        raise NotFusedError("LoRA is on another layer than queries, keys and values")
    if any(each.bias is None for each in (*found.qkv, found.out, found.up, found.down)):
        raise NotFusedError("a linear layer has no bias")
    return found


def _layer_vectors(
    layer: _Layer, before: nn.LayerNorm | None, own: list[torch.Tensor | None], down_input: torch.Tensor | None
) -> Vectors:
    biases: Any = [each.bias for each in layer.qkv]
    others: Any = [each.bias for each in (layer.out, layer.up, layer.down)]
    inner, outer = low_rank(layer.qkv)
    return Vectors(
        input_bias=None if before is None else before.bias,
        qkv_bias=torch.cat(biases),
        out_bias=others[0],
        middle_bias=layer.middle.bias,
        up_bias=others[1],
        down_bias=others[2],
        qkv_scale=own[0],
        out_scale=own[1],
        up_scale=own[2],
        down_scale=own[3],
        down_input=down_input,
        qkv_inner=inner,
        qkv_outer=outer,
    )


def _autocast(kind: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _flat(ids: torch.Tensor, rows: Rows) -> torch.Tensor:
    return ids.reshape(-1)[rows.places]
