"""Methods: exactly which parameters are trained, adapter and head apart, on all four families."""

from __future__ import annotations

import re

import pytest
from peft import PeftModel

from baselines import NeedsWeightsError, apply_method, count, partition
from propulsion.harness.backbones import build_empty
from propulsion.harness.errors import UserError
from propulsion.harness.settings import Settings
from tests.conftest import compose_settings, names

FAMILIES = ("minilm", "roberta_base", "deberta_v3_base", "llama_7b")
REFUSED = {
    ("bitfit", "llama_7b"): "llama_7b has no biases to train; use method=",
    ("prefix_tuning", "deberta_v3_base"): "takes no past_key_values, which a prefix is given as; use method=",
}
READS_WEIGHTS = ("adamss", "frod", "mica", "shira")
ROBERTA_BASE, ROBERTA_BASE_HEAD = 124_647_170, 592_130
MLP_OUT, MLP_IN, HIDDEN, LAYERS, RANK = 768, 3072, 768, 12, 8


def parts_of(settings: Settings):
    model = apply_method(build_empty(settings.backbone, settings.task), settings.method, settings.backbone)
    return model, partition(model, settings.backbone.head, settings.method.head != "frozen")


@pytest.mark.parametrize(
    ("method", "adapter", "head"),
    [
        ("full", ROBERTA_BASE - ROBERTA_BASE_HEAD, ROBERTA_BASE_HEAD),
        ("head", 0, ROBERTA_BASE_HEAD),
        # per layer: q, k, v, o, two feed-forward and two norm biases; plus the embeddings' norm
        ("bitfit", LAYERS * (4 * HIDDEN + MLP_IN + HIDDEN + 2 * HIDDEN) + HIDDEN, ROBERTA_BASE_HEAD),
        ("lora", 294_912, ROBERTA_BASE_HEAD),  # 12 layers x 2 targets x 2 matrices x 8 x 768
        ("ia3", LAYERS * (HIDDEN + HIDDEN + MLP_IN), ROBERTA_BASE_HEAD),
        ("ia3_peft", LAYERS * (HIDDEN + HIDDEN + HIDDEN + MLP_IN), ROBERTA_BASE_HEAD),
        ("propulsion", 82_944 + 3 * HIDDEN, ROBERTA_BASE_HEAD),
        ("propulsion_attn", 27_648, ROBERTA_BASE_HEAD),
        ("propulsion_paper", 86_018, 0),
        ("propulsion_package", 169_732, 0),
    ],
)
def test_counts_on_roberta_base(method: str, adapter: int, head: int) -> None:
    model, parts = parts_of(compose_settings("task=rte", "backbone=roberta_base", f"method={method}"))
    counts = count(model, parts)
    assert (counts.adapter, counts.head) == (adapter, head)
    assert counts.trainable == adapter + head
    own = 0 if method in ("full", "head", "bitfit") else adapter
    if method == "propulsion_package":
        own -= 82_944 + 770  # the biases that it trains are the backbone's and the head's own
    assert counts.total == ROBERTA_BASE + own


def test_a_wrapped_head_is_trained_and_carries_z() -> None:
    options = ("backbone=roberta_base", "method=propulsion_paper", "method.head=wrapped", "task=stsb")
    model, parts = parts_of(compose_settings(*options))
    counts = count(model, parts)
    own_head = ROBERTA_BASE_HEAD - HIDDEN - 1  # one output instead of two
    assert (counts.adapter, counts.head) == (82_944 + 3 * HIDDEN + HIDDEN + 1, own_head)
    assert counts.trainable == 677_378  # the notebook's count on STS-B
    assert {name.rpartition(".")[2] for name in parts.head} == {"weight", "bias"}


def test_propulsion_paper_on_roberta_large() -> None:
    model, parts = parts_of(compose_settings("backbone=roberta_large", "method=propulsion_paper"))
    assert count(model, parts).trainable == 225_282


@pytest.mark.parametrize("backbone", FAMILIES)
@pytest.mark.parametrize("method", names("method"))
def test_partition_is_exactly_what_is_trained(method: str, backbone: str) -> None:
    settings = compose_settings("experiment=tiny", f"backbone={backbone}", f"method={method}")
    if (method, backbone) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[method, backbone]):
            parts_of(settings)
        return
    if method in READS_WEIGHTS:
        with pytest.raises(
            NeedsWeightsError, match=f"method {method} reads the weights before it knows what it trains"
        ):
            parts_of(settings)
        return
    model, parts = parts_of(settings)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(parts.adapter) | set(parts.head) == trained
    assert not set(parts.adapter) & set(parts.head)
    assert bool(parts.head) == (settings.method.head == "trained")
    assert bool(parts.adapter) == (method != "head")
    heads = "|".join(settings.backbone.head)
    assert all(re.match(rf"(base_model\.(model\.)?)?({heads})\.", name) for name in parts.head)


def test_canonical_ia3_scales_the_input_of_the_second_feed_forward_layer_alone() -> None:
    model, _ = parts_of(compose_settings("experiment=tiny", "backbone=roberta_base", "method=ia3"))
    assert isinstance(model, PeftModel)
    feedforward = {name for name, module in model.named_modules() if getattr(module, "is_feedforward", False)}
    assert feedforward
    assert all(re.search(r"layer\.\d+\.output\.dense$", name) for name in feedforward)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.peft.target_modules=[nowhere]", "nowhere"),
        ("+method.peft.no_such_option=1", "no_such_option"),
        ("method.peft.peft_type=PROPULSIO", "unknown peft_type 'PROPULSIO': did you mean PROPULSION"),
        ("method.apply=fulll", "did you mean full"),
        ("method.head=thawed", "unknown head policy 'thawed'"),
        ("method=lora method.head=wrapped", "puts nothing on the head"),
        ("method=full method.head=wrapped", "puts nothing on the head"),
        ("method.degree=0", "degree"),
    ],
)
def test_what_does_not_fit_is_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        parts_of(compose_settings("experiment=tiny", *override.split()))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_an_unknown_role_is_named() -> None:
    with pytest.raises(UserError, match="unknown module role of minilm 'quer': did you mean query"):
        parts_of(compose_settings("experiment=tiny", "method=lora", "method.targets=[quer]"))
