"""One frozen encoder layer (BERT, RoBERTa) as one function: vectors are trained, its matrices are not.

Kept per token, width d: the normalised input, queries, keys and values, the normalised attention output, the
feed-forward input (`lean`: computed again) and the normalised output, which is the next layer's input; on a CPU also a
bit for each dropout decision, which a GPU draws again. Everything else is computed again: attention scores and their
mixture, and scaled outputs, which are what a layer norm's input has beside the residual.

A scale s has the gradient sum(g * y) / s with y the scaled output. At s = 0 that is set to 0, which is right when
s = z**k with k of at least 2; the caller keeps other zeros away.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from propulsion.fast.attention import Attention
from propulsion.fast.lowrank import add_low_rank_, low_rank_backward
from propulsion.fast.masks import Masks, Where
from propulsion.fast.products import add_back, back, linear
from propulsion.fast.rows import Rows
from propulsion.fast.rowwise import affine, normalise, normalise_backward, scale_, scale_gradient, shift_, sum_tokens
from propulsion.fast.workspace import Workspace

aten = torch.ops.aten


class Vectors(NamedTuple):
    """What may be trained in a layer. A scale or bias is `(width,)`; all may have a leading axis of runs.

    Names: `qkv`, attention `out`put, feed-forward `up` and `down`. Scales multiply outputs, bias included, but
    `down_input`, which multiplies the input of `down`, as IA3 does. `qkv_inner` `(rank, d)` and `qkv_outer`
    `(3d, rank)` are LoRA's matrices on queries, keys and values together. None: no scale, no LoRA.
    """

    input_bias: torch.Tensor | None  # of the norm before the layer; None where the input is no norm's output
    qkv_bias: torch.Tensor
    out_bias: torch.Tensor
    middle_bias: torch.Tensor  # of the norm between attention and feed-forward
    up_bias: torch.Tensor
    down_bias: torch.Tensor
    qkv_scale: torch.Tensor | None = None
    out_scale: torch.Tensor | None = None
    up_scale: torch.Tensor | None = None
    down_scale: torch.Tensor | None = None
    down_input: torch.Tensor | None = None
    qkv_inner: torch.Tensor | None = None
    qkv_outer: torch.Tensor | None = None


@dataclass(frozen=True)
class Frozen:
    """What is fixed in a layer: matrices `(out, in)` in the type of the products, norm weights, rates."""

    qkv: torch.Tensor
    out: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    input_weight: torch.Tensor | None  # of the norm before the layer
    middle_weight: torch.Tensor
    middle_eps: float
    output_eps: float
    dropout: float
    attention: Attention
    approximate: str  # of gelu: none | tanh
    site: int  # the first of two dropout sites


@dataclass(frozen=True)
class Call:
    """One forward pass: the layout, the masks (None: no dropout), whether to keep less, memory for what is not kept."""

    rows: Rows
    masks: Masks | None
    lean: bool
    space: Workspace = field(default_factory=Workspace)


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor | None, rows: Rows
) -> torch.Tensor:
    """`(x W^T + b) * scale`, bias and scale everybody's or each run's own.

    In half precision a bias that is added later would be rounded twice: there each run has its own product.
    """
    if bias.dim() > 1 and x.dtype in (torch.bfloat16, torch.float16):
        own = [linear(x[part], weight, bias[run]) for run, part in enumerate(rows.runs())]
        return scale_(torch.cat(own), scale, rows)
    if bias.dim() > 1:
        return scale_(shift_(linear(x, weight, bias.new_zeros(weight.shape[0])), bias, rows), scale, rows)
    if scale is None or scale.dim() == 1:
        return linear(x, weight, bias, scale)
    return scale_(linear(x, weight, bias), scale, rows)


class EncoderLayer(torch.autograd.Function):
    """The layer. Input and output are normalised, norm weights and biases left to whoever reads them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, frozen: Frozen, call: Call, *given: torch.Tensor | None) -> torch.Tensor:
        """`(tokens, d)` in float32 or float64, to the normalised output of the same shape."""
        v = Vectors(*given)  # type: ignore[arg-type]
        bits: dict[Where, torch.Tensor] = {}
        masks_given = call.masks
        if call.masks is not None and x.device.type == "cpu":
            call = replace(call, masks=call.masks.remembering(bits))
        rows, space, dtype = call.rows, call.space, frozen.qkv.dtype
        room = space.take("residual", x.shape, x)
        residual = affine(x, frozen.input_weight, v.input_bias, rows, room)
        low_rank = v.qkv_inner is not None
        qkv = _linear(residual.to(dtype), frozen.qkv, v.qkv_bias, None if low_rank else v.qkv_scale, rows)
        if low_rank:
            add_low_rank_(qkv, residual.to(dtype), v.qkv_inner, v.qkv_outer, rows)
            scale_(qkv, v.qkv_scale, rows)
        mixed = frozen.attention.forward(qkv, rows, call.masks, space)
        out = _linear(mixed, frozen.out, v.out_bias, v.out_scale, rows)
        middle, middle_mean, middle_rstd = normalise(_residual(residual, out, frozen, call, 0), frozen.middle_eps)
        residual = affine(middle, frozen.middle_weight, v.middle_bias, rows, room)
        up = _linear(residual.to(dtype), frozen.up, v.up_bias, v.up_scale, rows)
        active = aten.gelu(up, approximate=frozen.approximate, out=space.take("active", up.shape, up))
        out = _linear(scale_(active, v.down_input, rows), frozen.down, v.down_bias, v.down_scale, rows)
        result, mean, rstd = normalise(_residual(residual, out, frozen, call, 1), frozen.output_eps)
        kept = [x, qkv, middle, middle_mean, middle_rstd, result, mean, rstd, None if call.lean else up]
        ctx.save_for_backward(*kept, *given, *bits.values())
        ctx.frozen, ctx.call, ctx.drawn = frozen, replace(call, masks=masks_given), tuple(bits)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the input and of every vector that asks for one."""
        with torch.autocast(grad.device.type, enabled=False):
            return EncoderLayer._backward(ctx, grad)

    @staticmethod
    def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        x, qkv, middle, middle_mean, middle_rstd, result, mean, rstd, up = saved[:9]
        known = 9 + len(Vectors._fields)
        v = Vectors(*saved[9:known])
        frozen, call = ctx.frozen, ctx.call
        if ctx.drawn:
            call = replace(call, masks=call.masks.remembering(dict(zip(ctx.drawn, saved[known:], strict=True))))
        rows, space, dtype = call.rows, call.space, frozen.qkv.dtype
        room = space.take("residual", x.shape, x)
        needs = Vectors(*ctx.needs_input_grad[3:])
        found: dict[str, torch.Tensor] = {}

        # feed-forward
        grad = normalise_backward(grad, result, rstd, None)
        residual = affine(middle, frozen.middle_weight, v.middle_bias, rows, room)
        inner = _dropped(grad, frozen, call, 1)
        if needs.down_scale:
            branch = _branch(result, mean, rstd, residual, space)
            found["down_scale"] = scale_gradient(grad, branch, v.down_scale, rows, space)
        inner, matrix = _through_scale(inner, v.down_scale, frozen.down, "down_bias", v, needs, found, rows)
        inner = back(inner, matrix)
        if up is None:
            up = _linear(residual.to(dtype), frozen.up, v.up_bias, v.up_scale, rows)
        if v.down_input is not None:
            if needs.down_input:
                active = aten.gelu(up, approximate=frozen.approximate, out=space.take("active", up.shape, up))
                found["down_input"] = sum_tokens(active.mul_(inner), v.down_input, rows)
            scale_(inner, v.down_input, rows)
        through = space.take("active", up.shape, up)
        inner = aten.gelu_backward(inner, up, approximate=frozen.approximate, grad_input=through)
        if needs.up_scale:
            found["up_scale"] = scale_gradient(inner, up, v.up_scale, rows, space)
        inner, matrix = _through_scale(inner, v.up_scale, frozen.up, "up_bias", v, needs, found, rows)
        grad = add_back(grad, inner, matrix)
        if needs.middle_bias:
            found["middle_bias"] = sum_tokens(grad, v.middle_bias, rows)
        del up, inner

        # attention
        grad = normalise_backward(grad, middle, middle_rstd, frozen.middle_weight)
        inner = _dropped(grad, frozen, call, 0)
        if needs.out_scale:
            residual = affine(x, frozen.input_weight, v.input_bias, rows, room)
            branch = _branch(middle, middle_mean, middle_rstd, residual, space)
            found["out_scale"] = scale_gradient(grad, branch, v.out_scale, rows, space)
        inner, matrix = _through_scale(inner, v.out_scale, frozen.out, "out_bias", v, needs, found, rows)
        below = ctx.needs_input_grad[0] or needs.input_bias
        if not (below or needs.qkv_scale or needs.qkv_bias or needs.qkv_inner or needs.qkv_outer):
            return None, None, None, *(found.get(name) for name in Vectors._fields)
        inner = back(inner, matrix)
        inner = frozen.attention.backward(inner, qkv, rows, call.masks, space)
        if needs.qkv_scale:
            found["qkv_scale"] = scale_gradient(inner, qkv, v.qkv_scale, rows, space)
        inner, matrix = _through_scale(inner, v.qkv_scale, frozen.qkv, "qkv_bias", v, needs, found, rows)
        if v.qkv_inner is not None and v.qkv_outer is not None:
            low = affine(x, frozen.input_weight, v.input_bias, rows).to(dtype)
            low, found["qkv_inner"], found["qkv_outer"] = low_rank_backward(inner, low, v.qkv_inner, v.qkv_outer, rows)
        if not below:
            return None, None, None, *(found.get(name) for name in Vectors._fields)
        grad = add_back(grad, inner, matrix)
        if v.qkv_inner is not None:
            grad.add_(low)
        if needs.input_bias and v.input_bias is not None:
            found["input_bias"] = sum_tokens(grad, v.input_bias, rows)
        if frozen.input_weight is not None:
            grad.mul_(frozen.input_weight)
        return grad, None, None, *(found.get(name) for name in Vectors._fields)


def _branch(
    normal: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, residual: torch.Tensor, space: Workspace
) -> torch.Tensor:
    """What was added to the residual before a norm, from the norm's result."""
    room = space.take("branch", normal.shape, normal)
    return torch.addcmul(mean, normal, 1 / rstd, out=room).sub_(residual)


def _residual(residual: torch.Tensor, out: torch.Tensor, frozen: Frozen, call: Call, which: int) -> torch.Tensor:
    """`residual + dropout(out)`."""
    if call.masks is None or frozen.dropout == 0:
        return residual + out
    kept = _kept(residual, frozen, call, which)
    return torch.addcmul(residual, out.to(kept.dtype), kept, value=1 / (1 - frozen.dropout), out=kept)


def _dropped(grad: torch.Tensor, frozen: Frozen, call: Call, which: int) -> torch.Tensor:
    """The gradient that passes dropout, not in its own place."""
    if call.masks is None or frozen.dropout == 0:
        return grad.clone()
    return _kept(grad, frozen, call, which).mul_(grad).mul_(1 / (1 - frozen.dropout))


def _kept(like: torch.Tensor, frozen: Frozen, call: Call, which: int) -> torch.Tensor:
    assert call.masks is not None
    kept = call.space.take("kept", like.shape, like)
    for run, part in enumerate(call.rows.runs()):
        call.masks.keep(frozen.dropout, kept[part].shape, like, (frozen.site + which, 0), run, kept[part])
    return kept


def _through_scale(
    grad: torch.Tensor,
    scale: torch.Tensor | None,
    weight: torch.Tensor,
    bias: str,
    v: Vectors,
    needs: Vectors,
    found: dict[str, torch.Tensor],
    rows: Rows,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient and the matrix that takes it back, one of them times the scale: the smaller, if that is exact.

    Also finds the bias's gradient, which is what that behind the scale sums to.
    """
    low_rank = bias == "qkv_bias" and v.qkv_inner is not None  # which needs the gradient itself
    exact = scale is not None and scale.dim() == 1 and weight.dtype == scale.dtype and not low_rank
    in_matrix = exact and weight.shape[1] < grad.shape[0]
    if not in_matrix:
        scale_(grad, scale, rows)
    if getattr(needs, bias):
        total = sum_tokens(grad, getattr(v, bias), rows)
        found[bias] = total * scale if in_matrix and scale is not None else total
    return grad, weight * scale.view(-1, 1) if in_matrix and scale is not None else weight
