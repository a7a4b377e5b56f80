"""Every family of models through the tuner: what each group means, exact counts, gradients, merging."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from propulsion import PropulsionConfig
from propulsion.tuner import GROUPS, PropulsionLayer, resolve_targets
from tests.tiny_models import FAMILIES, LAYERS, tiny_batch, tiny_classifier, tiny_language_model

# Full-size architectures: the values published with each checkpoint.
DEBERTA_V3: dict[str, Any] = {
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
ROBERTA: dict[str, Any] = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
CONFIGS: dict[str, PretrainedConfig] = {
    "roberta-base": RobertaConfig(**ROBERTA, **BASE),
    "roberta-large": RobertaConfig(**ROBERTA, **LARGE),
    "deberta-v3-base": DebertaV2Config(**DEBERTA_V3, **BASE, pooler_hidden_size=768),
    "deberta-v3-large": DebertaV2Config(**DEBERTA_V3, **LARGE, pooler_hidden_size=1024),
    "llama-7b": LlamaConfig(pad_token_id=0),
    "gpt2": GPT2Config(pad_token_id=50256),
}

# The first block of each family, and the layers in it that each group means (`all`: the remaining ones).
BLOCKS = {
    "bert": "bert.encoder.layer.0",
    "roberta": "roberta.encoder.layer.0",
    "deberta-v2": "deberta.encoder.layer.0",
    "llama": "model.layers.0",
    "mistral": "model.layers.0",
    "qwen2": "model.layers.0",
    "gpt2": "transformer.h.0",
    "opt": "model.decoder.layers.0",
}
_BERT = {
    "query": ["attention.self.query"],
    "key": ["attention.self.key"],
    "value": ["attention.self.value"],
    "mlp": ["intermediate.dense", "output.dense"],
    "all": ["attention.output.dense"],
}
_DEBERTA = {
    **_BERT,
    **{role: [f"attention.self.{role}_proj"] for role in ("query", "key", "value")},
}
_LLAMA = {
    "query": ["self_attn.q_proj"],
    "key": ["self_attn.k_proj"],
    "value": ["self_attn.v_proj"],
    "mlp": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    "all": ["self_attn.o_proj"],
}
_OPT = {**_LLAMA, "mlp": ["fc1", "fc2"], "all": ["self_attn.out_proj"]}
_GPT2 = {"attention": ["attn.c_attn"], "mlp": ["mlp.c_fc", "mlp.c_proj"], "all": ["attn.c_proj"]}
ROLES: dict[str, dict[str, list[str]]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "deberta-v2": _DEBERTA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "gpt2": _GPT2,
    "opt": _OPT,
}
EMBEDDINGS = {
    "bert": ["word_embeddings", "position_embeddings", "token_type_embeddings"],
    "roberta": ["word_embeddings", "position_embeddings", "token_type_embeddings"],
    "deberta-v2": ["word_embeddings"],
    "llama": ["embed_tokens"],
    "mistral": ["embed_tokens"],
    "qwen2": ["embed_tokens"],
    "gpt2": ["wte", "wpe"],
    "opt": ["embed_tokens", "embed_positions"],
}
HEADS = {
    "bert": ["classifier", "bert.pooler.dense"],
    "roberta": ["classifier.dense", "classifier.out_proj"],
    "deberta-v2": ["classifier", "pooler.dense"],
    "llama": ["score"],
    "mistral": ["score"],
    "qwen2": ["score"],
    "gpt2": ["score"],
    "opt": ["score"],
}


def targets(model: nn.Module, spec: Any = None, **config: Any) -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return resolve_targets(model, PropulsionConfig(target_modules=spec, **config))


def adapted(model: PreTrainedModel, **config: Any) -> PeftModel:
    """The model with an adapter whose z are drawn around 1 and whose trained head has moved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = get_peft_model(model, PropulsionConfig(init_weights=False, **config))
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if "modules_to_save." in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return result.eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(**tiny_batch()).logits


# ---------------------------------------------------------------- exact counts, full-size, on the meta device


@pytest.mark.parametrize(
    ("backbone", "spec", "adapter"),
    [
        # paper.md, "Parameter counts": All with a frozen head that carries z, Attn
        ("roberta-base", None, 86_018),
        ("roberta-base", "attention", 27_648),
        ("roberta-large", None, 225_282),
        ("roberta-large", "attention", 73_728),
        ("llama-7b", None, 1_363_970),
        ("llama-7b", "attention", 393_216),
        ("deberta-v3-base", "attention", 27_648),
        ("deberta-v3-large", "attention", 73_728),
        # the published 85,250 and 224,258 hold a z on rel_embeddings, which never gets a gradient
        ("deberta-v3-base", ["all", "rel_embeddings"], 85_250),
        ("deberta-v3-base", None, 85_250 - 768),
        ("deberta-v3-large", ["all", "rel_embeddings"], 224_258),
        ("deberta-v3-large", None, 224_258 - 1024),
        # by hand: a position of `all` alone
        ("roberta-base", "embeddings", 3 * 768),
        ("roberta-base", "mlp", 12 * (3072 + 768)),
        ("roberta-base", "query", 12 * 768),
        ("gpt2", None, 12 * (3 * 768 + 768 + 3072 + 768) + 2 * 768 + 2),
    ],
)
def test_trainable_parameters_with_a_frozen_head(backbone: str, spec: Any, adapter: int) -> None:
    model = _meta_model(backbone, target_modules=spec)
    trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert all("propulsion_z" in name for name in trainable)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sum(trainable.values()) == adapter


@pytest.mark.parametrize(
    ("backbone", "spec", "adapter", "head"),
    [
        ("roberta-base", "all-linear", 82_944, 592_130),
        ("roberta-base", None, 85_248, 592_130),
        ("roberta-base", "attention", 27_648, 592_130),
        ("roberta-large", "all-linear", 221_184, 1_051_650),
        ("llama-7b", "all-linear", 1_359_872, 8_192),
        ("llama-7b", None, 1_363_968, 8_192),
        ("deberta-v3-base", None, 85_250 - 768 - 2, 2 * 768 + 2),  # the pooler carries z and stays frozen
    ],
)
def test_trainable_parameters_with_a_trained_head(backbone: str, spec: Any, adapter: int, head: int) -> None:
    model = _meta_model(backbone, target_modules=spec, task_type="SEQ_CLS")
    trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    z = {name: size for name, size in trainable.items() if "propulsion_z" in name}
    assert not any("modules_to_save" in name or "classifier" in name for name in z)
    assert sum(z.values()) == adapter
    assert sum(trainable.values()) - sum(z.values()) == head


def test_deberta_with_its_pooler_trained() -> None:
    config = {"task_type": "SEQ_CLS", "modules_to_save": ["pooler"]}
    model = _meta_model("deberta-v3-base", **config)
    trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    adapter = sum(size for name, size in trainable.items() if "propulsion_z" in name)
    assert (adapter, sum(trainable.values()) - adapter) == (82_944 + 768, 592_130)


def _meta_model(backbone: str, **config: Any) -> PeftModel:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(CONFIGS[backbone])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, PropulsionConfig(**config))


# ---------------------------------------------------------------- what the groups mean


@pytest.mark.parametrize("family", sorted(ROLES))
def test_groups_mean_the_right_layers(family: str) -> None:
    model = tiny_classifier(family)
    block, roles = BLOCKS[family], ROLES[family]
    parts = {role: {f"{block}.{name}" for name in names} for role, names in roles.items()}
    parts.setdefault("attention", set().union(*(parts.get(r, set()) for r in ("query", "key", "value"))))
    for group in sorted({"query", "key", "value", "attention", "mlp"} & set(parts)):
        found = targets(model, group)
        assert {name for name in found if name.startswith(block)} == parts[group], group
        assert len(found) == LAYERS * len(parts[group]), group
    embeddings = targets(model, "embeddings")
    assert sorted(name.rpartition(".")[2] for name in embeddings) == sorted(EMBEDDINGS[family])

    whole_block = parts["attention"] | parts["mlp"] | parts["all"]
    everything = {re.sub(r"(?<=\.)0(?=\.)", str(i), name) for name in whole_block for i in range(LAYERS)}
    everything |= embeddings | set(HEADS[family])
    assert targets(model) == targets(model, "all") == everything
    assert targets(model, "all-linear") == everything - embeddings
    assert targets(model, sorted(GROUPS) if "query" in parts else ["all", "mlp"]) == everything
    assert targets(model, task_type="SEQ_CLS", modules_to_save=["classifier", "score"]) == {
        name for name in everything if not name.startswith(("classifier", "score"))
    }


def test_groups_on_t5_and_language_models() -> None:
    t5 = tiny_language_model("t5")
    attention = targets(t5, "attention")
    assert {name.rpartition(".")[2] for name in attention} == {"q", "k", "v"}
    assert len(attention) == 3 * LAYERS * (1 + 2)  # the encoder's, and the decoder's two
    assert {name.rpartition(".")[2] for name in targets(t5, "mlp")} == {"wi", "wo"}
    assert {n.rpartition(".")[2] for n in targets(t5, "embeddings")} == {
        "embed_tokens",
        "relative_attention_bias",
    }
    assert "lm_head" in targets(t5) and "lm_head" not in targets(t5, "all-linear")
    gpt2 = tiny_language_model("gpt2")
    assert targets(gpt2) - targets(gpt2, "all-linear") - targets(gpt2, "embeddings") == {"lm_head"}


def test_query_of_a_fused_layer_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="one layer here, c_attn: use 'attention'"):
        targets(tiny_classifier("gpt2"), "query")


def test_lists_mix_names_and_groups_and_names_win() -> None:
    model = tiny_classifier("roberta")
    mixed = targets(model, ["attention", "out_proj", "roberta.encoder.layer.1.output.dense"])
    names = {"classifier.out_proj", "roberta.encoder.layer.1.output.dense"}
    assert mixed == targets(model, "attention") | names
    named_key = nn.ModuleDict({"key": nn.Linear(2, 2), "other": nn.Linear(2, 2), "mlp": nn.Linear(2, 2)})
    assert targets(named_key, ["key"]) == {"key"}
    assert targets(named_key, "all") == {"key", "other", "mlp"}


def test_regex_matches_whole_names_of_layers_only() -> None:
    model = tiny_classifier("roberta")
    assert targets(model, r".*layer\.1\..*(query|value)") == {
        "roberta.encoder.layer.1.attention.self.query",
        "roberta.encoder.layer.1.attention.self.value",
    }
    assert targets(model, ".*") == targets(model, "all")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        (["qury"], "did you mean query"),
        ("encoder", "it is no Linear, Embedding or Conv1D"),
        (["encoder"], "it is no Linear, Embedding or Conv1D"),
        (["query", "zzz"], "'zzz' matches nothing"),
        ("out_proj", "give the list ['out_proj']"),
    ],
)
def test_target_that_matches_nothing_lists_what_could_match(spec: Any, hint: str) -> None:
    base = tiny_classifier("roberta")
    with pytest.raises(ValueError, match="matches nothing in RobertaForSequenceClassification") as caught:
        get_peft_model(base, PropulsionConfig(target_modules=spec))
    message = str(caught.value)
    assert hint in message and "\n" not in message
    assert f"Groups: {', '.join(GROUPS)}." in message
    assert "Name endings: dense, key, out_proj, position_embeddings, query," in message
    assert not any(isinstance(module, PropulsionLayer) for module in base.modules())


def test_invalid_regex_is_refused() -> None:
    with pytest.raises(ValueError, match="no group and no valid regex"):
        targets(tiny_classifier("roberta"), "(")


def test_exclusions_and_block_indices() -> None:
    model = tiny_classifier("roberta")
    everything = targets(model)
    assert targets(model, exclude_modules=["key", "classifier.dense"]) == {
        n for n in everything if not n.endswith(".key") and n != "classifier.dense"
    }
    assert targets(model, exclude_modules=r".*embeddings.*") == everything - targets(model, "embeddings")
    second = {n for n in everything if ".layer.1." in n}
    assert targets(model, layers_to_transform=1) == targets(model, "all", layers_to_transform=[1]) == second
    assert targets(model, layers_to_transform=[1], layers_pattern="layer") == second
    first = {n for n in everything if ".layer.0." in n}
    assert targets(model, layers_to_transform=0) == targets(model, layers_to_transform=[0]) == first
    assert targets(model, layers_to_transform=[]) == everything  # as in peft
    assert targets(model, ["all", "classifier.dense"], layers_to_transform=[1]) == {
        *second,
        "classifier.dense",
    }
    for index in (0, [0]):  # whose heads have names of one part
        assert "classifier" not in targets(tiny_classifier("bert"), layers_to_transform=index)
        assert "lm_head" not in targets(tiny_language_model("llama"), layers_to_transform=index)
    with pytest.raises(ValueError, match="taken out again"):
        targets(model, ["classifier.dense"], modules_to_save=["classifier"])


def test_layers_to_transform_holds_in_the_adapted_and_the_reloaded_model(tmp_path: Any) -> None:
    model = adapted(tiny_classifier("roberta"), layers_to_transform=[1])
    wrapped = {name for name, module in model.named_modules() if isinstance(module, PropulsionLayer)}
    assert wrapped and all(".layer.1." in name for name in wrapped)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_classifier("roberta"), tmp_path)
    assert {name for name, module in loaded.named_modules() if isinstance(module, PropulsionLayer)} == wrapped


def test_a_second_adapter_resolves_its_groups_on_an_adapted_model() -> None:
    model = adapted(tiny_classifier("roberta"), target_modules="attention", task_type="SEQ_CLS")
    model.add_adapter("second", PropulsionConfig(target_modules="all", task_type="SEQ_CLS"))
    expected = targets(tiny_classifier("roberta"), modules_to_save=["classifier"])
    found = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, PropulsionLayer) and "second" in module.propulsion_z
    }
    assert found == expected


# ---------------------------------------------------------------- layers without a path for a gradient


@pytest.mark.parametrize("spec", [None, "embeddings", r".*embeddings", ["all"]])
def test_rel_embeddings_are_left_out_of_groups_and_regexes_with_a_warning(spec: Any) -> None:
    with pytest.warns(UserWarning, match=r"left out deberta.encoder.rel_embeddings") as caught:
        found = resolve_targets(tiny_classifier("deberta-v2"), PropulsionConfig(target_modules=spec))
    assert "deberta.encoder.rel_embeddings" not in found and found
    assert len(caught) == 1


def test_rel_embeddings_are_taken_by_name_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="rel_embeddings will never get a gradient"):
        model = get_peft_model(tiny_classifier("deberta-v2"), PropulsionConfig(target_modules=["rel_embeddings"]))
    assert model.targeted_module_names == ["deberta.encoder.rel_embeddings"]


def test_excluded_dead_layers_do_not_warn_and_dead_layers_alone_are_refused() -> None:
    model = tiny_classifier("deberta-v2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_targets(model, PropulsionConfig(exclude_modules=["rel_embeddings"]))
    with pytest.raises(ValueError, match=r"no gradient can reach: deberta.encoder.rel_embeddings"):
        targets(model, ".*rel_embeddings")


def test_layers_read_without_a_call_or_held_twice_are_left_out() -> None:
    attention = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"left out 0.out_proj.*MultiheadAttention"):
        assert resolve_targets(attention, PropulsionConfig()) == {"1"}
    shared = nn.Linear(4, 4)
    with pytest.warns(UserWarning, match=r"left out 0.*several names"):
        assert resolve_targets(nn.Sequential(shared, nn.Linear(4, 4), shared), PropulsionConfig()) == {"1"}


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_parameter_gets_a_gradient(family: str, task_type: str | None) -> None:
    model = adapted(tiny_classifier(family), task_type=task_type)
    model(**tiny_batch()).loss.backward()
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert not [name for name, p in trainable if p.grad is None or not p.grad.any()]
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


# ---------------------------------------------------------------- the life of an adapter on every family


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_unmerged(family: str, task_type: str | None) -> None:
    base = tiny_classifier(family)
    reference = logits(base)
    model = adapted(base, task_type=task_type, degree=15)
    expected = logits(model)
    assert (expected - reference).abs().max() > 1e-2  # the adapter does something
    with model.disable_adapter():
        assert torch.equal(logits(model), reference)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), expected, rtol=1e-6, atol=1e-6)
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    merged = model.merge_and_unload()
    assert type(merged) is type(base)
    assert not any("propulsion" in name or "base_layer" in name for name in merged.state_dict())
    torch.testing.assert_close(logits(merged), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_unmerged_to_rounding_in_float64(family: str) -> None:
    model = adapted(tiny_classifier(family).double(), task_type="SEQ_CLS", degree=15)
    expected = logits(model)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_model_can_be_saved_and_loaded_as_a_plain_model(family: str, tmp_path: Any) -> None:
    model = adapted(tiny_classifier(family), task_type="SEQ_CLS")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(merged))


@pytest.mark.parametrize("family", FAMILIES)
def test_unload_gives_the_base_model_back(family: str) -> None:
    base = tiny_classifier(family)
    reference, names = logits(base), list(base.state_dict())
    unloaded = adapted(base).unload()
    assert list(unloaded.state_dict()) == names
    assert torch.equal(logits(unloaded), reference)


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reloaded_adapter_gives_the_same_outputs(family: str, task_type: str | None, tmp_path: Any) -> None:
    model = adapted(tiny_classifier(family), task_type=task_type)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 8_000
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the saved names no longer reach a dead layer
        loaded = PeftModel.from_pretrained(tiny_classifier(family), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_model_trains_in_bf16_with_float32_z(family: str) -> None:
    model = adapted(tiny_classifier(family).to(torch.bfloat16))
    output = model(**tiny_batch())
    output.loss.backward()
    z = [p for n, p in model.named_parameters() if "propulsion_z" in n]
    assert output.logits.dtype == torch.bfloat16
    assert {p.dtype for p in z} == {p.grad.dtype for p in z} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(family: str) -> None:
    model = adapted(tiny_classifier(family))
    z = {n: p for n, p in model.named_parameters() if "propulsion_z" in n}
    model.train()  # checkpointing only acts in training; the tiny models' dropout is switched off below
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for module in model.modules():
        for attribute in ("attention_dropout", "pos_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**tiny_batch()).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in z.items()})
    for name in z:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], msg=name)
