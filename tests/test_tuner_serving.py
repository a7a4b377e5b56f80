"""What people do with finished adapters, after peft's own test matrix: rows of one batch with different adapters,
hot-swapping, weighted products, compiling and exporting, custom models, and names that files depend on.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from propulsion import PropulsionConfig, hotswap_adapter
from propulsion.tuner.layer import PropulsionLayer
from tests.test_tuner import draw_z, logits, zs
from tests.tiny_models import tiny_batch, tiny_classifier, tiny_language_model


def two_adapters(model: nn.Module, second: dict[str, Any] | None = None, **config: Any) -> Any:
    """A model in eval mode with the adapters `a` and `b`, as training leaves them."""
    tuned = get_peft_model(model, PropulsionConfig(**config), adapter_name="a")
    tuned.add_adapter("b", PropulsionConfig(**{**config, **(second or {})}))
    draw_z(tuned, 1, adapter="a")
    draw_z(tuned, 2, adapter="b")
    return tuned.eval()


# ---------------------------------------------------------------- rows with adapters of their own


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("bert", {"task_type": "SEQ_CLS"}),  # positions of shape (1, length), a trained head
        ("roberta", {}),  # the head scaled too
        ("gpt2", {"task_type": "SEQ_CLS"}),
        ("llama", {"task_type": "SEQ_CLS"}),
    ],
)
def test_rows_of_one_batch_have_adapters_of_their_own(family: str, config: dict[str, Any]) -> None:
    model = two_adapters(tiny_classifier(family), {"degree": 3, "target_modules": "all-linear"}, **config)
    batch = {k: v for k, v in tiny_batch(5).items() if k != "labels"}
    alone = {}
    for name in ("a", "b"):
        model.set_adapter(name)
        alone[name] = logits(model, **batch)
    with model.disable_adapter():
        alone["__base__"] = logits(model, **batch)
    names = ["b", "__base__", "a", "a", "b"]
    mixed = logits(model, **batch, adapter_names=names)
    torch.testing.assert_close(mixed, torch.stack([alone[n][i] for i, n in enumerate(names)]), rtol=0, atol=1e-6)
    assert not torch.allclose(alone["a"], alone["b"], atol=1e-4)
    torch.testing.assert_close(logits(model, **batch), alone["b"])  # and nothing of it stays
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, **batch, adapter_names=names), alone["__base__"])


@pytest.mark.parametrize(("family", "beams"), [("llama", 1), ("llama", 2), ("t5", 2)])
def test_rows_generate_with_adapters_of_their_own(family: str, beams: int) -> None:
    skip = {"exclude_modules": ["relative_attention_bias"]} if family == "t5" else {}
    model = two_adapters(tiny_language_model(family), degree=55, **skip)
    ids = torch.randint(4, 40, (3, 5), generator=torch.Generator().manual_seed(0))
    length = {"max_new_tokens": 4, "num_beams": beams, "do_sample": False, "eos_token_id": None}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **length}
    alone = {}
    for name in ("a", "b"):
        model.set_adapter(name)
        alone[name] = model.generate(**inputs)
    mixed = model.generate(**inputs, adapter_names=["b", "a", "b"])
    assert torch.equal(mixed, torch.stack([alone["b"][0], alone["a"][1], alone["b"][2]]))
    assert not torch.equal(alone["a"], alone["b"])


def test_rows_in_half_precision_are_those_of_a_batch_of_one_adapter() -> None:
    model = two_adapters(tiny_language_model("llama").to(torch.bfloat16), task_type="CAUSAL_LM")
    batch = {k: v for k, v in tiny_batch().items() if k != "labels"}
    model.set_adapter("b")
    assert torch.equal(logits(model, **batch), logits(model, **batch, adapter_names=["b"] * 3))


def test_adapter_names_that_cannot_work_are_refused() -> None:
    model = two_adapters(tiny_classifier("bert"), task_type="SEQ_CLS")
    batch = tiny_batch()
    with pytest.raises(ValueError, match="no adapter is named c; there are a, b and __base__"):
        model(**batch, adapter_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="adapter_names has 2 names"):
        model(**batch, adapter_names=["a", "b"])
    with pytest.raises(TypeError, match="a list with one name for each row, not a str"):
        model(**batch, adapter_names="abc")
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        model.train()(**batch, adapter_names=["a"] * 3)
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="unmerge it first"):
        model(**batch, adapter_names=["a"] * 3)
    t5 = two_adapters(tiny_language_model("t5"))
    with pytest.raises(ValueError, match=r"relative_attention_bias.*exclude_modules"):
        t5(input_ids=batch["input_ids"], labels=batch["input_ids"], adapter_names=["a"] * 3)
    deberta = two_adapters(tiny_classifier("deberta-v2"))  # its projections also read the relative positions
    with pytest.raises(ValueError, match="layers whose first axis is the batch"):
        deberta(**batch, adapter_names=["a"] * 3)


# ---------------------------------------------------------------- another adapter in the same place


def saved(folder: Path, seed: int, **config: Any) -> tuple[str, torch.Tensor]:
    """A trained adapter of the tiny BERT on disk, and its logits."""
    model = get_peft_model(tiny_classifier("bert"), PropulsionConfig(task_type="SEQ_CLS", **config)).eval()
    draw_z(model, seed)
    model.save_pretrained(folder / str(seed))
    return str(folder / str(seed)), logits(model)


def test_hotswap_gives_the_other_adapter_in_the_same_tensors(tmp_path: Path) -> None:
    first, expected_first = saved(tmp_path, 1)
    second, expected = saved(tmp_path, 2, degree=7, target_modules="attention")  # fewer layers, another degree
    model = PeftModel.from_pretrained(tiny_classifier("bert"), first).eval()
    torch.testing.assert_close(logits(model), expected_first)
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    hotswap_adapter(model, second)
    torch.testing.assert_close(logits(model), expected)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    assert model.peft_config["default"].degree == 7


def test_hotswap_does_not_compile_a_model_again(tmp_path: Path) -> None:
    first, _ = saved(tmp_path, 1)
    second, expected = saved(tmp_path, 2)
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = PeftModel.from_pretrained(tiny_classifier("bert"), first).eval()
    logits(model)  # BERT settles its config's problem_type in the first call
    compiled = torch.compile(model, fullgraph=True, backend=count)
    logits(compiled)
    hotswap_adapter(compiled, second)
    torch.testing.assert_close(logits(compiled), expected)
    assert len(graphs) == 1


def test_hotswap_refuses_what_does_not_fit_and_changes_nothing(tmp_path: Path) -> None:
    whole, _ = saved(tmp_path, 1)
    part, before = saved(tmp_path, 2, target_modules="attention")
    headless = get_peft_model(tiny_classifier("bert"), PropulsionConfig(target_modules="attention"))
    headless.save_pretrained(tmp_path / "headless")
    lora = get_peft_model(tiny_classifier("bert"), LoraConfig(target_modules=["query"]))
    lora.save_pretrained(tmp_path / "lora")
    wide = get_peft_model(tiny_classifier("bert", num_labels=3), PropulsionConfig(task_type="SEQ_CLS"))
    wide.save_pretrained(tmp_path / "wide")
    model = PeftModel.from_pretrained(tiny_classifier("bert"), part).eval()
    with pytest.raises(RuntimeError, match="the loaded adapter has no base_model"):
        hotswap_adapter(model, whole)
    with pytest.raises(RuntimeError, match=r"the saved adapter has no .*classifier"):
        hotswap_adapter(model, tmp_path / "headless")
    with pytest.raises(ValueError, match="the saved adapter is of LORA"):
        hotswap_adapter(model, tmp_path / "lora")
    with pytest.raises(RuntimeError, match=r"classifier.* is \(3,.* there and \(2,"):
        hotswap_adapter(PeftModel.from_pretrained(tiny_classifier("bert"), whole), tmp_path / "wide")
    with pytest.raises(ValueError, match="no adapter 'other' is loaded; there are default"):
        hotswap_adapter(model, part, "other")
    torch.testing.assert_close(logits(model), before)
    model.merge_adapter()
    with pytest.raises(ValueError, match="is merged"):
        hotswap_adapter(model, part)


# ---------------------------------------------------------------- several adapters


def test_a_weighted_adapter_is_the_product_of_powers() -> None:
    model = two_adapters(tiny_language_model("llama"), {"degree": 3}, target_modules="attention")
    model.set_adapter("a")
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both")
    model.add_weighted_adapter(["b"], [0.5], "weak")
    assert model.active_adapters == ["a"]
    batch = {k: v for k, v in tiny_batch().items() if k != "labels"}
    model.base_model.set_adapter(["a", "b"])
    together = logits(model, **batch)
    model.set_adapter("both")
    torch.testing.assert_close(logits(model, **batch), together, rtol=1e-4, atol=1e-5)
    b, weak = zs(model, "b"), zs(model, "weak")
    for name, z in weak.items():
        torch.testing.assert_close(z.data**2, b[name.replace("weak", "b")].data)


def test_a_weighted_adapter_that_means_nothing_is_refused() -> None:
    model = two_adapters(tiny_language_model("llama"), target_modules="attention")
    for adapters, weights, name, message in (
        (["a"], [1.0], "b", "there is an adapter 'b' already"),
        (["a", "b"], [1.0], "c", "2 adapters and 1 weights"),
        (["x"], [1.0], "c", "no adapter 'x' is loaded; there are a, b"),
    ):
        with pytest.raises(ValueError, match=message):
            model.add_weighted_adapter(adapters, weights, name)
    next(iter(zs(model, "b").values())).data[0] = -1.0
    with pytest.raises(ValueError, match="not above 0"):
        model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "c")
    assert set(model.peft_config) == {"a", "b"}
    with pytest.raises(ValueError, match="modules_to_save"):
        two_adapters(tiny_classifier("bert"), task_type="SEQ_CLS").add_weighted_adapter(["a"], [1.0], "c")
    biased = two_adapters(tiny_language_model("llama"), {"bias": "none"}, bias="propulsion_only")
    with pytest.raises(ValueError, match=r"adapter 'a' trains biases \(bias='propulsion_only'\)"):
        biased.add_weighted_adapter(["b", "a"], [1.0, 1.0], "c")
    biased.add_weighted_adapter(["b"], [1.0], "c")
    assert set(biased.peft_config) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "first",
    [
        {"exclude_modules": ["q_proj"]},
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": ["v_proj"], "num_vectors": 2, "init_spread": 0.1},
    ],
)
def test_a_weighted_adapter_scales_the_layers_of_all(first: dict[str, Any]) -> None:
    model = get_peft_model(
        tiny_language_model("llama"), PropulsionConfig(**{"target_modules": "attention", **first}), adapter_name="a"
    )
    model.add_adapter("b", PropulsionConfig(target_modules="attention"))
    draw_z(model, 1, adapter="a")
    draw_z(model, 2, adapter="b")
    state = torch.get_rng_state()
    model.eval().add_weighted_adapter(["a", "b"], [1.0, 1.0], "both")
    assert torch.equal(torch.get_rng_state(), state)
    assert len(zs(model, "both")) == len(zs(model, "b")) > len(zs(model, "a"))
    batch = {k: v for k, v in tiny_batch().items() if k != "labels"}
    model.base_model.set_adapter(["a", "b"])
    together = logits(model, **batch)
    model.set_adapter("both")
    torch.testing.assert_close(logits(model, **batch), together, rtol=1e-4, atol=1e-5)


def test_a_weighted_adapter_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_adapters(tiny_language_model("llama"), target_modules="attention")
    model.set_adapter("a")
    batch = {k: v for k, v in tiny_batch().items() if k != "labels"}
    before, own, calls = logits(model, **batch), PropulsionLayer.update_layer, 0

    def out_of_memory(layer: PropulsionLayer, name: str, config: PropulsionConfig) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("no room for the third layer")
        own(layer, name, config)

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(PropulsionLayer, "update_layer", out_of_memory)
        model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both")
    assert set(model.peft_config) == {"a", "b"}
    assert not zs(model, "both")
    assert model.active_adapters == ["a"]
    assert torch.equal(logits(model, **batch), before)
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both")
    assert len(zs(model, "both")) == len(zs(model, "b"))


def test_a_deleted_adapter_leaves_no_trace() -> None:
    model = two_adapters(tiny_classifier("bert"), task_type="SEQ_CLS")
    model.set_adapter("a")
    before = logits(model)
    model.delete_adapter("b")
    assert torch.equal(logits(model), before)
    assert not [name for name, _ in model.named_parameters() if name.endswith(".b") or ".b." in name]
    assert set(model.peft_config) == {"a"}


# ---------------------------------------------------------------- any module


class Custom(nn.Module):
    """No transformers model: an embedding, a Conv1D, a Linear, and layers that cannot be scaled between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 6)
        self.block = nn.ModuleList([Conv1D(5, 6), nn.LayerNorm(5)])
        self.conv = nn.Conv1d(5, 4, 3)
        self.out = nn.Linear(4, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        for layer in self.block:
            x = layer(x)
        out: torch.Tensor = self.out(self.conv(x.transpose(1, 2)).mean(-1))
        return out


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_custom_model_through_its_whole_life(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    ids = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0))
    base = Custom()(ids)
    model = get_peft_model(Custom(), PropulsionConfig(modules_to_save=["out"]))
    assert torch.equal(model(ids), base)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), torch.tensor([0, 1, 0])).backward()
        optimizer.step()
    tuned = model(ids).detach()
    assert not torch.allclose(tuned, base, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(ids), base)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Custom(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(ids), tuned)
    assert not [name for name, p in loaded.named_parameters() if p.is_meta]
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(ids), tuned)
    assert {type(m) for m in merged.modules()} == {type(m) for m in Custom().modules()}


# ---------------------------------------------------------------- compiled and exported


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_whole_model_compiles_without_a_graph_break(family: str) -> None:
    model = get_peft_model(tiny_classifier(family), PropulsionConfig(task_type="SEQ_CLS")).eval()
    draw_z(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(compiled), logits(model))


@pytest.mark.parametrize("merged", [True, False])
def test_export_of_a_classifier(merged: bool) -> None:
    model: Any = get_peft_model(tiny_classifier("bert"), PropulsionConfig(task_type="SEQ_CLS")).eval()
    draw_z(model)
    expected = logits(model)
    model = model.merge_and_unload() if merged else model.get_base_model()
    batch = {name: value for name, value in tiny_batch().items() if name != "labels"}
    program = torch.export.export(model, (), batch)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    assert any("propulsion" in name for name in program.state_dict) != merged


@pytest.mark.skipif(
    importlib.util.find_spec("onnxscript") is None or importlib.util.find_spec("onnxruntime") is None,
    reason="onnxscript and onnxruntime are not installed; torch.export, which ONNX starts from, is tested above",
)
def test_onnx_of_the_merged_model(tmp_path: Path) -> None:
    import onnxruntime  # type: ignore[import-not-found, unused-ignore]

    model = get_peft_model(tiny_classifier("bert"), PropulsionConfig(task_type="SEQ_CLS")).eval()
    draw_z(model)
    expected = logits(model)
    batch = {name: value for name, value in tiny_batch().items() if name != "labels"}
    torch.onnx.export(model.merge_and_unload(), (), tmp_path / "m.onnx", kwargs=batch, dynamo=True)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    found = session.run(None, {name: value.numpy() for name, value in batch.items()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- names in files

BLOCK = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
NAMES = {  # of a saved adapter's tensors: files that people have depend on them
    "bert": [
        *(f"bert.embeddings.{name}_embeddings.propulsion_z" for name in ("word", "position", "token_type")),
        *(
            f"bert.encoder.layer.{i}.{name}.propulsion_z"
            for i in (0, 1)
            for name in (*BLOCK, "intermediate.dense", "output.dense")
        ),
        "bert.pooler.dense.propulsion_z",
        "classifier.weight",
        "classifier.bias",
    ],
    "gpt2": [
        "transformer.wte.propulsion_z",
        "transformer.wpe.propulsion_z",
        *(
            f"transformer.h.{i}.{name}.propulsion_z"
            for i in (0, 1)
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ),
        "score.weight",
    ],
}
SETTINGS = {
    "base_model_name_or_path", "bias", "degree", "exclude_modules", "inference_mode", "init_weights",
    "layers_pattern", "layers_to_transform", "modules_to_save", "peft_type", "peft_version", "revision",
    "target_modules", "task_type", "auto_mapping", "num_vectors", "pooling", "init_spread",
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(NAMES))
def test_names_in_a_saved_adapter_are_those_of_every_version(family: str, tmp_path: Path) -> None:
    model = get_peft_model(tiny_classifier(family), PropulsionConfig(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path)
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert set(found) == {f"base_model.model.{name}" for name in NAMES[family]}
    assert set(found) == set(get_peft_model_state_dict(model))
    assert all(t.dtype == torch.float32 for t in found.values())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(config) == SETTINGS
    assert (config["peft_type"], config["degree"]) == ("PROPULSION", 15)


# ---------------------------------------------------------------- loaders of transformers' own


def test_transformers_loads_and_deletes_an_adapter_by_itself(tmp_path: Path) -> None:
    base = tiny_classifier("bert")
    base.save_pretrained(tmp_path / "base")
    tuned = get_peft_model(tiny_classifier("bert"), PropulsionConfig(degree=3, task_type="SEQ_CLS")).eval()
    draw_z(tuned)
    tuned.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "adapter")
    before = logits(base)
    base.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(base), logits(tuned))
    base.delete_adapter("default")
    assert torch.equal(logits(base), before)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits(again), logits(tuned))


def test_the_type_of_a_config_is_a_plain_word_everywhere_else() -> None:
    kind: Any = PropulsionConfig().peft_type
    assert kind == kind.value == kind.name == "PROPULSION" and type(kind.value) is str
    for same in (copy.deepcopy(kind), pickle.loads(pickle.dumps(kind)), json.loads(json.dumps(kind))):
        assert same == kind and hash(same) == hash("PROPULSION")
    assert f"{kind}" == str(kind) == "PROPULSION"
