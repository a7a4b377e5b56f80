"""Attention over flat rows by torch's flash kernel, which takes sequences of any lengths one after another: on CUDA.

It keeps no scores and draws dropout again from a seed. Nothing is kept for the backward pass but its inputs either:
output, log-sum-exp and the generator's state come from the forward kernel once more, whose share of a layer's
operations is small (length / 3d of them) and whose output would be d further values a token.

`torch.nn.attention.varlen` is the public way to the kernel, but has no dropout (torch 2.11 to 2.13). The operator
beneath it is private; so on its first use with a shape it is compared with the reference, `Attention` by groups, on
the same input, and where it raises or differs the reference is what runs, here and in the rest of the process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from propulsion.fast.masks import Masks
from propulsion.fast.rows import Rows, Span
from propulsion.fast.workspace import Workspace

if TYPE_CHECKING:
    from propulsion.fast.attention import Attention

aten = torch.ops.aten

# Largest relative error against the reference, of the output and of each gradient, by norms: four units in the last
# place. The kernel rounds the shares and its results to this type, the reference its results alone.
TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
PROBE_RATE = 0.5  # of dropout, when it is looked at whether the backward pass draws what the forward pass drew
CAPABILITY = (8, 0)  # Ampere
WIDEST = 256  # of a head

Tensors = tuple[torch.Tensor, ...]
Shape = tuple[torch.device, torch.dtype, int, int]  # with heads and the width of one


class Kernel(NamedTuple):
    """`forward(query, key, value, span, rate, scale)` gives the output `(tokens, heads, width)`, then what else
    `backward(grad, query, key, value, kept, span, rate, scale)` wants to see again in `kept`. Dropout is drawn from
    the device's default generator in the forward pass alone.
    """

    forward: Callable[..., Tensors]
    backward: Callable[..., Tensors]


def _flash_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, span: Span, rate: float, scale: float
) -> Tensors:
    layout = span.starts, span.starts, span.longest, span.longest
    kept: Tensors = aten._flash_attention_forward(query, key, value, *layout, rate, False, False, scale=scale)[:4]
    return kept


def _flash_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: Tensors,
    span: Span,
    rate: float,
    scale: float,
) -> Tensors:
    out, log_sum_exp, *state = kept
    layout = span.starts, span.starts, span.longest, span.longest
    found: Tensors = aten._flash_attention_backward(
        grad, query, key, value, out, log_sum_exp, *layout, rate, False, *state, scale=scale
    )
    return found


kernel = Kernel(_flash_forward, _flash_backward)
_verdicts: dict[Shape, str | None] = {}  # None: it may be used; else why not


def fits(qkv: torch.Tensor, heads: int) -> bool:
    """Whether the kernel takes such queries, keys and values `(tokens, 3d)` at all."""
    width = qkv.shape[1] // (3 * heads)
    if not qkv.is_cuda or qkv.dtype not in TOLERANCES or width % 8 or width > WIDEST:
        return False
    return torch.cuda.get_device_capability(qkv.device) >= CAPABILITY


def trusted(attention: Attention, qkv: torch.Tensor, rows: Rows, space: Workspace) -> bool:
    """Whether the kernel is used for this input; compares it first where it was not yet. Says so once where it fails.

    Raises:
        torch.OutOfMemoryError: in the comparison, as in any pass.
    """
    if not fits(qkv, attention.heads):
        return False
    shape = _shape(qkv, attention.heads)
    if shape not in _verdicts:
        if not qkv.isfinite().all():  # as from a run that diverged: nothing to judge the kernel by
            return False
        reason = _verdicts[shape] = _compare(attention, qkv, rows, space)
        if reason is not None:
            print(f"attention goes by groups of sequences: the variable-length kernel {reason}", file=sys.stderr)
    return _verdicts[shape] is None


def described(device: torch.device, dtype: torch.dtype, heads: int, width: int) -> str:
    """What attention of that shape went through so far in this process, in words for a record."""
    shape = device, dtype, heads, width
    if shape not in _verdicts:
        return "attention by groups"
    reason = _verdicts[shape]
    return "variable-length attention" if reason is None else f"attention by groups: the kernel {reason}"


def forward(attention: Attention, qkv: torch.Tensor, rows: Rows, masks: Masks | None) -> torch.Tensor:
    """The mixed values `(tokens, d)`, in the type of `qkv`."""
    parts = [
        _mix(attention, _split(attention, qkv, span), span, run, masks)[0].flatten(1)
        for run, span in enumerate(rows.spans)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def backward(
    attention: Attention, grad: torch.Tensor, qkv: torch.Tensor, rows: Rows, masks: Masks | None
) -> torch.Tensor:
    """The gradient of `qkv` from that of the mixed values."""
    result = qkv.new_empty(qkv.shape[0], 3, attention.heads, qkv.shape[1] // (3 * attention.heads))
    for run, span in enumerate(rows.spans):
        given = _split(attention, qkv, span)
        kept = _mix(attention, given, span, run, masks)
        upstream = grad[span.part].to(qkv.dtype).reshape(kept[0].shape)
        found = kernel.backward(upstream, *given, kept, span, _rate(attention, masks), attention.scale)
        torch.stack(found, dim=1, out=result[span.part])
    return result.view(qkv.shape)


def _mix(attention: Attention, given: Tensors, span: Span, run: int, masks: Masks | None) -> Tensors:
    rate = _rate(attention, masks)
    if masks is None or rate == 0:
        return kernel.forward(*given, span, 0.0, attention.scale)
    with _seeded(given[0].device, masks.seed((attention.site, 0), run)):
        return kernel.forward(*given, span, rate, attention.scale)


def _rate(attention: Attention, masks: Masks | None) -> float:
    return 0.0 if masks is None else attention.dropout


def _split(attention: Attention, qkv: torch.Tensor, span: Span) -> Tensors:
    """Views of a run's queries, keys and values, each `(tokens, heads, width)`."""
    return qkv[span.part].view(span.part.stop - span.part.start, 3, attention.heads, -1).unbind(1)


def _shape(qkv: torch.Tensor, heads: int) -> Shape:
    return qkv.device, qkv.dtype, heads, qkv.shape[1] // (3 * heads)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """The device's default generator at a seed, and afterwards as it was. The host alone takes part."""
    index = torch.cuda.current_device() if device.index is None and device.type == "cuda" else device.index
    generator = torch.cuda.default_generators[index] if device.type == "cuda" else torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def _compare(attention: Attention, qkv: torch.Tensor, rows: Rows, space: Workspace) -> str | None:
    """What is wrong with the kernel on this input; None where nothing is."""
    mixed = attention.forward_by_groups(qkv, rows, None, space).clone()
    source = torch.Generator(qkv.device).manual_seed(0)
    grad = torch.randn(mixed.shape, generator=source, device=qkv.device, dtype=qkv.dtype)
    expected = mixed, attention.backward_by_groups(grad, qkv, rows, None, space)
    value = torch.randn(mixed.shape, generator=source, device=qkv.device, dtype=qkv.dtype)
    try:
        found = forward(attention, qkv, rows, None), backward(attention, grad, qkv, rows, None)
        drift = _redrawing_error(attention, torch.cat([*qkv.chunk(3, dim=1)[:2], value], dim=1), rows)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return f"raises {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    most = TOLERANCES[qkv.dtype]
    apart = max(_error(mine, its, parts) for mine, its, parts in zip(found, expected, (1, 3), strict=True))
    if not apart <= most:
        return f"differs from the reference by {apart:.1e} of it, more than {most:.0e}"
    if not drift <= most:
        return "draws other dropout in the backward pass than in the forward pass"
    return None


def _error(found: torch.Tensor, expected: torch.Tensor, parts: int) -> float:
    """The largest relative error of parts side by side; one that is small beside all counts as a tenth of all."""
    if found.shape != expected.shape:
        return float("inf")
    floor = 0.1 * expected.float().norm()
    pairs = zip(found.float().chunk(parts, dim=1), expected.float().chunk(parts, dim=1), strict=True)
    return max(float((a - b).norm() / b.norm().clamp_min(floor)) for a, b in pairs)


def _redrawing_error(attention: Attention, qkv: torch.Tensor, rows: Rows) -> float:
    """How far sum(output^2) is from sum(value * its gradient), relative to it, when the gradient is the output.

    The output is linear in the values, so they are equal, unless the two passes drop other shares.
    """
    probe, masks = replace(attention, dropout=PROBE_RATE), Masks(tuple(range(len(rows.spans))))
    out = forward(probe, qkv, rows, masks)
    grad = backward(probe, out, qkv, rows, masks).chunk(3, dim=1)[2].float()
    whole = out.float().square().sum()
    return float(((grad * qkv.chunk(3, dim=1)[2]).sum() - whole).abs() / whole)
