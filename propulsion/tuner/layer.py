"""The layers of the Propulsion tuner: a frozen layer whose output is scaled per feature by z**k."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D as TransformersConv1D

from propulsion.tuner.pooling import pool

if TYPE_CHECKING:
    from propulsion.tuner.config import PropulsionConfig

BASE = "__base__"  # in `adapter_names`, as elsewhere in peft: the row sees no adapter
INIT_SPREAD = 0.02  # of `init_weights=False`: trained z stay within 0.98 to 1.02
IN_PLACE = "the output of a scaled layer was changed in place before its backward: call model.allow_in_place() first"


class _Scale(torch.autograd.Function):
    """`y * z**k` for k of at least 2, keeping its own output (which the next operation keeps anyway) and never y.

    With out = y * z**k the gradient of z is `k * sum(g * y) * z**(k-1)` = `k * sum(g * out) / z`, and 0 at z = 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: torch.Tensor, z: torch.Tensor, degree: int) -> torch.Tensor:
        return (y * z.pow(degree)).to(y.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, int], output: torch.Tensor) -> None:
        _, z, ctx.degree = inputs
        ctx.save_for_backward(output, z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        try:
            out, z = ctx.saved_tensors
        except RuntimeError as error:
            if "inplace operation" not in str(error):  # such as a second backward pass over the same graph
                raise
            raise RuntimeError(f"{IN_PLACE}: {error}") from None
        needs_y, needs_z, _ = ctx.needs_input_grad
        grad_y = (grad * z.pow(ctx.degree)).to(grad.dtype) if needs_y else None
        if not needs_z:
            return grad_y, None, None
        product = (grad.to(z.dtype) * out).sum_to_size(z.shape)
        return grad_y, torch.where(z == 0, 0.0, ctx.degree * product / z), None


def scale_output(y: torch.Tensor, z: torch.Tensor, degree: int) -> torch.Tensor:
    """The method: `y * z**degree`, the same z for every token (arXiv 2409.10927, V' = V ⊙ z^k).

    For training it keeps the result alone and takes z's gradient from that, in z's type. Degree 1 is the plain
    product, which keeps y: the only degree whose gradient at z = 0 needs it; it is IA3, bit for bit. What is
    lost: where a half-precision result falls below its type's normal numbers, so does the gradient's precision.

    Args:
        y: A layer's output, bias included, `(..., features)`, of any float type.
        z: `(features,)`, or any shape that broadcasts against y without widening it, as `(runs, 1, 1, features)`;
            float32 (float64 in a float64 model).
        degree: The power k, at least 1.

    Returns:
        The shape and type of `y`. A half-precision `y` is widened to z's type, multiplied and rounded once:
        bf16 has no number between 1 and 1.0078, where z lives. Autocast changes none of this.

    Raises:
        RuntimeError: On a second derivative, from degree 2 on.
    """
    if degree == 1:
        return (y * z).to(y.dtype)
    scaled: torch.Tensor = _Scale.apply(y, z, degree)
    return scaled


def output_width(layer: nn.Module) -> int | None:
    """The number of features a layer puts out, or None for a module that this tuner cannot scale.

    Beside Linear, Embedding and Conv1D it knows the layers of quantization libraries, by their `in_features`
    and `out_features`, as long as no ordinary layer sits inside.
    """
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim
    if isinstance(layer, TransformersConv1D):
        return layer.nf
    if isinstance(layer, nn.Linear):
        return layer.out_features
    for inputs, outputs in (("in_features", "out_features"), ("infeatures", "outfeatures")):
        width = getattr(layer, outputs, None)
        if isinstance(getattr(layer, inputs, None), int) and isinstance(width, int):
            ordinary = (nn.Linear, nn.Embedding, TransformersConv1D)
            return None if any(isinstance(m, ordinary) for m in layer.modules()) else width
    return None


class _WideParameterDict(nn.ParameterDict):
    """Parameters that never drop below float32, also when the whole model is cast to half precision."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> _WideParameterDict:
        def wide(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype.itemsize >= 4 else tensor.to(moved.device)

        return super()._apply(wide, recurse)


class PropulsionLayer(nn.Module, BaseTunerLayer):
    """A frozen layer and, for each adapter, a vector z that scales the layer's output, or several pooled into one.

    The scales of several active adapters multiply. While merged, the layer holds its original weights beside
    the merged ones, so that unmerging is exact for every z, zero included; `merge_and_unload` lets go of them
    layer by layer.
    """

    adapter_layer_names = ("propulsion_z",)
    other_param_names = ("degree", "pooling")
    keeps_unscaled = False  # True (`PropulsionModel.allow_in_place`): z's gradient comes from y, not from the output
    weight_axis: int  # the axis of the base weight that counts output features

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: PropulsionConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        width = output_width(self.get_base_layer())
        if width is None:
            raise TypeError(f"Propulsion cannot scale a {type(self.get_base_layer()).__name__}")
        self.width = width
        self.propulsion_z = _WideParameterDict()
        self.degree: dict[str, int] = {}
        self.pooling: dict[str, str] = {}
        self.merged_adapters = []
        self._disable_adapters = False
        self._originals: dict[str, nn.Parameter] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: PropulsionConfig) -> None:
        """Adds the z of one adapter, `(width,)` or `(num_vectors, width)`, on the base layer's device."""
        shape = (self.width,) if config.num_vectors == 1 else (config.num_vectors, self.width)
        z = torch.ones(shape, dtype=self._z_dtype())
        spread = config.init_spread if config.init_weights else config.init_spread or INIT_SPREAD
        if spread:
            z.normal_(1.0, spread)
        self.propulsion_z[adapter_name] = nn.Parameter(z)
        self.degree[adapter_name] = config.degree
        self.pooling[adapter_name] = config.pooling
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Moves z to the base layer's device. Unlike peft's own, it never casts z to half precision."""
        z = self.propulsion_z.get(adapter_name)
        if z is None or z.is_meta:
            return
        reference = self._reference_tensor()
        target = device or (z.device if reference is None else reference.device)
        if (z.device, z.dtype) != (target, self._z_dtype()):
            moved = z.data.to(target, self._z_dtype())
            self.propulsion_z[adapter_name] = nn.Parameter(moved, requires_grad=z.requires_grad)

    def _reference_tensor(self) -> torch.Tensor | None:
        """A tensor of the base layer, to tell its device by. A packed quantized layer has none."""
        base = self.get_base_layer()
        return next((tensor for tensor in (*base.parameters(), *base.buffers())), None)

    def _z_dtype(self) -> torch.dtype:
        reference = self._reference_tensor()
        double = reference is not None and reference.dtype == torch.float64
        return torch.float64 if double else torch.float32

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> torch.Tensor:
        """The base layer's output, scaled by the active adapters: `(..., width)`.

        With `adapter_names` (`rows.py`) every row is scaled by its own adapter instead.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        y = self.base_layer(*args, **kwargs)
        if adapter_names is not None:
            return self._scaled_by_row(y, adapter_names)
        active = [name for name in self.active_adapters if name in self.propulsion_z]
        if self.disable_adapters or self.merged or not active:
            return y
        if len(active) == 1 and not self.keeps_unscaled:
            return scale_output(y, self.vector(active[0]), self.degree[active[0]])
        return scale_output(y, self._scale(active), 1)

    def vector(self, adapter_name: str) -> torch.Tensor:
        """The z of one adapter, `(width,)`: its parameter, or what its several vectors pool to."""
        return pool(self.propulsion_z[adapter_name], self.pooling[adapter_name])

    def _scaled_by_row(self, y: torch.Tensor, adapter_names: Sequence[str]) -> torch.Tensor:
        """Row i of `y`, `(rows, ..., width)`, by the adapter `adapter_names[i]`, if it has a z here."""
        if self.disable_adapters:
            return y
        rows = len(adapter_names)
        if isinstance(self, Embedding) and y.shape[0] == 1:
            y = y.expand(rows, *y.shape[1:])  # one set of positions for all rows
        if y.dim() < 2 or y.shape[0] != rows:
            raise ValueError(
                f"adapter_names has {rows} names, the output of a scaled {type(self).__name__} layer is "
                f"{tuple(y.shape)}: it needs one name for each row, and layers whose first axis is the batch"
            )
        one = torch.ones(self.width, dtype=self._z_dtype(), device=y.device)
        scales = {n: self._scale([n]) if n in self.propulsion_z else one for n in dict.fromkeys(adapter_names)}
        scale = torch.stack([scales[name] for name in adapter_names])
        return scale_output(y, scale.view(rows, *[1] * (y.dim() - 2), self.width), 1)

    def _scale(self, adapter_names: Sequence[str]) -> torch.Tensor:
        """The product of z**k over some adapters, `(width,)`."""
        powers = [self.vector(name).pow(self.degree[name]) for name in adapter_names]
        return reduce(torch.mul, powers)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Multiplies the scale into the base layer's weight and bias.

        The product is taken from the original weights, in float32 at least, and rounded once. The layer gets
        parameters of its own, so that a weight which is tied to another layer's is not changed there.

        Args:
            safe_merge: Check the result before it replaces anything.
            adapter_names: The adapters to merge; None for the active ones.

        Raises:
            ValueError: The base layer cannot be merged, or (with `safe_merge`) the result is not finite.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.propulsion_z]
        if not names:
            return
        self.check_mergeable()
        base = self.get_base_layer()
        originals = self._originals or dict(base.named_parameters(recurse=False))
        with torch.no_grad():
            scale = self._scale([*self.merged_adapters, *names])
            merged = {name: self._scaled(original, scale) for name, original in originals.items()}
        if safe_merge and not all(bool(torch.isfinite(p).all()) for p in merged.values()):
            raise ValueError(f"merging {', '.join(names)} gives NaNs or infinities: its z seem to be broken")
        for name, parameter in merged.items():
            setattr(base, name, parameter)
        self._originals = originals
        self.merged_adapters = [*self.merged_adapters, *names]

    def _scaled(self, parameter: nn.Parameter, scale: torch.Tensor) -> nn.Parameter:
        shape = [1] * parameter.dim()
        shape[self.weight_axis if parameter.dim() > 1 else 0] = -1
        scaled = (parameter * scale.view(shape)).to(parameter.dtype)
        return nn.Parameter(scaled, requires_grad=parameter.requires_grad)

    def check_mergeable(self) -> None:
        """Raises ValueError where scaled weights would not give scaled outputs."""
        base = self.get_base_layer()
        weight = base._parameters.get("weight")
        if isinstance(self.base_layer, BaseTunerLayer):
            reason = "it carries an adapter of another method as well"
        elif weight is None or set(base._parameters) - {"weight", "bias"}:
            reason = "its weight is packed, or computed from other parameters"
        elif type(weight.data) is not torch.Tensor or not weight.is_floating_point() or weight.dtype.itemsize < 2:
            reason = f"its weight is quantized ({weight.dtype})"
        elif getattr(base, "max_norm", None) is not None:
            reason = "its max_norm would shrink the merged rows"
        else:
            return
        raise ValueError(f"Propulsion cannot be merged into this {base._get_name()}: {reason}")

    def unmerge(self) -> None:
        """Puts the original weights back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        base = self.get_base_layer()
        for name, original in self._originals.items():
            merged = getattr(base, name)
            if (original.device, original.dtype) != (merged.device, merged.dtype):  # moved or cast since
                original = nn.Parameter(original.data.to(merged), requires_grad=original.requires_grad)
            setattr(base, name, original)
        self._originals = {}
        self.merged_adapters = []

    def __repr__(self) -> str:
        return f"propulsion.{super().__repr__()}"


class Linear(PropulsionLayer):
    """A linear layer, ordinary or quantized: `(x W^T + b) * z**k`. Quantized ones cannot be merged."""

    weight_axis = 0

    @property
    def in_features(self) -> int:
        base: Any = self.get_base_layer()
        return base.in_features if hasattr(base, "in_features") else base.infeatures

    @property
    def out_features(self) -> int:
        return self.width


class Conv1D(PropulsionLayer):
    """The `Conv1D` of transformers, a linear layer with its weight transposed: `(x W + b) * z**k`."""

    weight_axis = 1

    @property
    def nf(self) -> int:
        return self.width


class Embedding(PropulsionLayer):
    """An embedding whose vectors are scaled: `E[ids] * z**k`. A zero padding vector stays zero."""

    weight_axis = 1

    @property
    def num_embeddings(self) -> int:
        base: Any = self.get_base_layer()
        return base.num_embeddings

    @property
    def embedding_dim(self) -> int:
        return self.width

    @property
    def padding_idx(self) -> int | None:
        base: Any = self.get_base_layer()
        return base.padding_idx
