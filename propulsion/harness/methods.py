"""The table of methods: what each is, on which families it works or why not, what it trains, where its rate is from."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from propulsion.harness import configs, params
from propulsion.harness.settings import MethodSpec
from propulsion.harness.sheets import NONE, Sheet
from propulsion.harness.trial import FAMILIES, Trial, try_method

# The same for the options of LoRA that make it another method, and for its starts.
LORA_NOT_COVERED = {
    "alora_invocation_tokens": "decoders whose texts all hold its invocation",
    "arrow": "mixes LoRA adapters that were trained before",
    "corda": "its start needs a pass over data before peft wraps the model, which no hook of peft's does",
    "gaussian": "another spread of the start alone: `method.peft.init_lora_weights=gaussian` on any LoRA",
    "kasa": "two terms of its loss are left to the training loop, and it changes the frozen weights for good",
    "loftq": "quantizes the backbone that it is compared on",
    "lora_ga": "its start needs gradients of the bare model, before peft wraps it: no hook of peft's does it",
    "monteclora": "a term of its loss is left to the training loop",
    "pissa_niter_[number of iters]": "a faster start of PiSSA: `method.peft.init_lora_weights=pissa_niter_16`",
    "use_qalora": "for GPTQ weights alone",
}

COUNTED_ON = "minilm"
OURS = "ours"
# What the pinned peft has, or the field knows, and no file here uses: why.
NOT_COVERED = {
    "ADAPTION_PROMPT": "LLaMA, Mistral and GPT-2 only, and peft's config has no place for a trained head",
    "CARTRIDGE": "a prefix that is distilled from a long text's cache; without one it is PREFIX_TUNING",
    "CPT": "peft has it for causal language models alone",
    "LILY": "its router mixes experts by the mean over the batch: a row's logits depend on the other rows",
    "MULTITASK_PROMPT_TUNING": "needs a task id with every row",
    "POLY": "needs a task id with every row",
    "SHADOW": "decoders only, and the last layer's update never gets a gradient",
    "TRAINABLE_TOKENS": "trains named rows of one vocabulary, for new tokens; peft's config has no place for a head",
    "XLORA": "mixes LoRA adapters that were trained before",
    "Houlsby and MAM adapters": "not in peft; the library that has them, adapters 1.3.0, pins transformers 4.57",
}


@dataclass(frozen=True)
class Row:
    """A method with its trials, in the order of `FAMILIES`."""

    spec: MethodSpec
    trials: tuple[Trial, ...]
    adapter: int | None  # parameters on `COUNTED_ON`
    source: str  # the paper or page that the file names
    rate_source: str


def rows(names: Iterable[str]) -> list[Row]:
    """Try every named method on every family.

    Raises:
        UserError: no such method.
    """
    return [_row(params.load_method(name)) for name in names]


def _row(spec: MethodSpec) -> Row:
    trials = tuple(try_method(spec, family, params.load_backbone(name)) for family, name in FAMILIES.items())
    source, rate_source = comments(configs.file("method", spec.name).read_text(encoding="utf-8"))
    return Row(spec, trials, adapter_size(spec), source, rate_source)


def adapter_size(spec: MethodSpec) -> int | None:
    """Parameters outside the head on `COUNTED_ON`."""
    found = params.count_cell(params.load_backbone(COUNTED_ON), spec, spec.head)
    return found.counts.adapter if found.counts else None


def comments(text: str) -> tuple[str, str]:
    """What a method's file says of its source (its first comment) and of its learning rate (`ours` by default)."""
    first = re.match(r"# (.+)\n", text)
    rate = re.search(r"^learning_rate: \S+ # (.+)$", text, re.M) or re.search(r"^# learning_rate: (.+)$", text, re.M)
    return first[1].rstrip(".") if first else "", rate[1].rstrip(".") if rate else OURS


def lora_options() -> set[str]:
    """What makes another method of peft's LoRA: options of its config (`velora_config` is `velora`), and its starts."""
    fields = peft.LoraConfig.__dataclass_fields__
    options = {
        name.removesuffix("_config")
        for name, field in fields.items()
        if field.metadata.get("is_lora_variant") or re.fullmatch("use_.*lora|.*_config", name)
        if name not in ("megatron_config", "runtime_config")  # not of the method
    }
    hint = typing.get_type_hints(peft.LoraConfig)["init_lora_weights"]
    return options | {word for part in typing.get_args(hint) for word in typing.get_args(part)}


def _lora_used() -> set[str]:
    """Those of `lora_options` that a file uses."""
    files = [params.load_method(name).peft for name in configs.names("method")]
    words = [{*options, options.get("init_lora_weights")} for options in files if options.get("peft_type") == "LORA"]
    return {str(word).removesuffix("_config") for word in set().union(*words)} & lora_options()


def not_covered() -> dict[str, str]:
    """peft's types and its LoRA's variants that no file uses, and what else was looked at, with the reasons.

    Raises:
        KeyError: one of peft's is neither used nor listed, as after a new release.
    """
    used = {str(params.load_method(name).peft.get("peft_type", "")).upper() for name in configs.names("method")}
    types = {str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    others = {name: reason for name, reason in NOT_COVERED.items() if name not in types}
    variants = {f"LoRA, {name}": LORA_NOT_COVERED[name] for name in sorted(lora_options() - _lora_used())}
    return {kind: NOT_COVERED[kind] for kind in sorted(types - used)} | variants | others


def sheet(found: list[Row]) -> tuple[Sheet, list[str]]:
    """The table, and the numbered reasons that its `no` refer to."""
    reasons: list[str] = []

    def word(trial: Trial) -> str:
        if trial.problem is None:
            return "yes"
        if trial.problem not in reasons:
            reasons.append(trial.problem)
        return f"no ({reasons.index(trial.problem) + 1})"

    lines = [
        (
            row.spec.name,
            str(row.spec.peft.get("peft_type", NONE)),
            *map(word, row.trials),
            _merged(row.trials),
            NONE if row.adapter is None else f"{row.adapter:,}",
            f"{row.spec.learning_rate:g}",
            row.rate_source,
            row.source or row.spec.title,
        )
        for row in found
    ]
    header = ("method", "peft type", *FAMILIES, "merges", f"adapter on {COUNTED_ON}", "rate", "rate from", "what it is")
    return Sheet("Methods", header, tuple(lines), words=2), reasons


def _merged(trials: tuple[Trial, ...]) -> str:
    """Whether the adapter folds into the backbone's weights; `not` names the families on which it does not."""
    tried = [trial for trial in trials if trial.merges is not None]
    without = [trial.family for trial in tried if not trial.merges]
    if not tried:
        return NONE
    return f"not {', '.join(without)}" if without else "yes"
