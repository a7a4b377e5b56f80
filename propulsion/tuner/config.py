"""The configuration of the Propulsion tuner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft.config import PeftConfig

from propulsion.tuner.pooling import POOLINGS
from propulsion.tuner.targets import GROUPS


class _Kind(str):
    """The method's name. It reads like a member of peft's own enum, of which transformers' loaders take `.value`."""

    value = name = property(str)


PEFT_TYPE = _Kind("PROPULSION")
BIASES = ("none", "all", "propulsion_only")


@dataclass
class PropulsionConfig(PeftConfig):
    """Configuration of a [`PropulsionModel`]: which layers are scaled, and by which power of z.

    Args:
        degree: The k of `y * z**k`, an integer of at least 1.
        num_vectors: How many z each layer has; from two on they are pooled into one before the power (arXiv
            2409.10927, appendix F: Multi-Propulsion). Vectors that start equal stay equal under any of the
            poolings: start them apart with `init_spread`.
        pooling: How several z become one, feature by feature: `avg`, `max`, `min`, or `l2`, the root of the mean
            square, which is 1 where every z is.
        target_modules: The layers to scale. A list of name endings, as elsewhere in peft; a group (`all`,
            `all-linear`, `attention`, `query`, `key`, `value`, `mlp`, `embeddings`); a list that mixes both;
            or a string that is no group, taken as a regex over whole module names. A layer's name wins over a
            group of the same name. None means `all`: every Linear, Embedding and Conv1D layer. The tuner
            works on a copy of the config, which holds the names of the layers it found; these are saved.
        exclude_modules: Layers to leave out: a list of names or name endings, or a regex.
        modules_to_save: Modules that are trained and saved whole, such as a classification head. They never
            carry a z. With `task_type="SEQ_CLS"` peft adds `classifier` and `score` by itself; with
            `task_type=None` the head stays frozen and carries z, as in the authors' notebooks.
        bias: Which biases are trained and saved as well: `none`, `all`, or `propulsion_only`, those of the
            scaled layers. Disabling the adapter does not undo a trained bias.
        init_weights: True starts every z at 1, so that the model's outputs do not change. False draws z
            around 1, which only serves tests.
        init_spread: The standard deviation of a normal draw of z around 1. 0, the method as published, draws
            nothing.
        layers_to_transform: The index, or indices, of the blocks to scale; whatever lies outside the blocks,
            embeddings included, is left out.
        layers_pattern: The name of the list of blocks, where it is not the first numbered part of a name.

    Raises:
        ValueError: The degree or the number of vectors is not an integer of at least 1, the bias or the pooling is
            none of the above, the spread is negative, no target is given, or `layers_to_transform` comes with a regex.
    """

    # peft saves the whole embedding matrix beside an adapter that targets `embed_tokens` or `lm_head`, unless
    # the config names trainable tokens. The matrix is frozen here: an empty set keeps the file at a few kB.
    trainable_token_indices: ClassVar[dict[str, list[int]]] = {}

    degree: int = field(default=15, metadata={"help": "The k of y * z**k, an integer of at least 1."})
    num_vectors: int = field(default=1, metadata={"help": "How many z each layer has, pooled into one."})
    pooling: str = field(default="avg", metadata={"help": f"How several z become one: {', '.join(POOLINGS)}."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": f"Name endings, groups ({', '.join(GROUPS)}) or a regex. None means 'all'."},
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names, name endings or a regex of layers to leave out."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained and saved whole, such as a head."}
    )
    bias: str = field(default="none", metadata={"help": f"Biases to train as well: {', '.join(BIASES)}."})
    init_weights: bool = field(
        default=True, metadata={"help": "Start every z at 1. False draws z around 1, for tests only."}
    )
    init_spread: float = field(
        default=0.0, metadata={"help": "Standard deviation of a normal draw of z around 1; 0 draws nothing."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "The indices of the blocks to scale. Not with a regex."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "The name of the list of blocks, such as 'layers' or 'h'."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        for name in ("degree", "num_vectors"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {self.pooling!r}")
        if not 0 <= self.init_spread < float("inf"):
            raise ValueError(f"init_spread must be 0 or more, not {self.init_spread!r}")
        if self.bias not in BIASES:
            raise ValueError(f"bias must be one of {', '.join(BIASES)}, not {self.bias!r}")
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        if self.target_modules is not None and not self.target_modules:
            raise ValueError("target_modules is empty: leave it out for all layers, or name a layer or a group")
        if self.layers_to_transform is not None and self._is_regex():
            raise ValueError("layers_to_transform cannot be combined with a regex in target_modules")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform")

    def _is_regex(self) -> bool:
        return isinstance(self.target_modules, str) and self.target_modules not in GROUPS


def _as_set(names: Any) -> Any:
    """Lists become sets, as in peft's own configs; None and regexes stay."""
    return set(names) if isinstance(names, (list, tuple)) else names
