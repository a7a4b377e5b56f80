"""The fast path against the plain modules: losses and gradients, masks, layouts, what it leaves alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertForQuestionAnswering, Trainer, TrainingArguments
from transformers.models.bert.modeling_bert import BertSelfAttention

import propulsion
from propulsion import PropulsionConfig
from propulsion.fast import NotFusedError, find_path, products
from propulsion.fast import path as path_module
from propulsion.fast.attention import Attention
from propulsion.fast.layer import Call, EncoderLayer, Frozen, Vectors
from propulsion.fast.masks import Masks
from propulsion.fast.rows import flatten
from propulsion.fast.workspace import Workspace
from tests.tiny_models import tiny_batch, tiny_classifier, tiny_config

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
FFN_OUT = r".*layer\.\d+\.output\.dense"


def draw(model: nn.Module) -> nn.Module:
    """Moves every vector away from where it starts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("propulsion_z" in name or "ia3_l" in name):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def bitfit(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or "classifier" in name)
    return model


def head(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("classifier" in name)
    return model


def tuner(**options: Any) -> Callable[[nn.Module], nn.Module]:
    return lambda model: get_peft_model(model, PropulsionConfig(task_type="SEQ_CLS", **options))


def ia3(model: nn.Module) -> nn.Module:
    targets = rf".*(key|value)|{FFN_OUT}"
    config = IA3Config(task_type="SEQ_CLS", target_modules=targets, feedforward_modules=FFN_OUT)
    return get_peft_model(model, config).to(model.dtype)


METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "propulsion": tuner(degree=15),
    "even": tuner(degree=4, target_modules="all-linear"),
    "degree one": tuner(degree=1),
    "attention": tuner(degree=5, target_modules="attention"),
    "one layer": tuner(degree=5, target_modules="mlp", layers_to_transform=[1]),
    "biases too": tuner(degree=3, bias="all"),
    "ia3": ia3,
    "bitfit": bitfit,
    "head": head,
}


def ragged_batch() -> dict[str, torch.Tensor]:
    """Lengths 9, 4, 9, 1, 7, the last with padding between its tokens."""
    batch = tiny_batch(5, 9, seed=1)
    for row, real in enumerate([range(9), range(4), range(9), [0], [0, 1, 2, 5, 6, 7, 8]]):
        mask = torch.zeros(9, dtype=torch.long)
        mask[list(real)] = 1
        batch["attention_mask"][row] = mask
        batch["input_ids"][row, mask == 0] = 1
    return batch


def results(model: nn.Module, batch: dict[str, torch.Tensor], autocast: bool = False) -> dict[str, torch.Tensor]:
    """Loss and every gradient."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**batch).loss
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return {"loss": loss.detach(), **grads}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Relative to each gradient's largest entry; a key's bias has none in theory, hence the floor."""
    assert found.keys() == expected.keys()
    floor = 1e-2 * max(float(value.abs().max()) for name, value in expected.items() if name != "loss")
    for name, value in expected.items():
        scale = max(float(value.abs().max()), floor)
        assert float((found[name] - value).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_losses_and_gradients_equal_the_plain_modules(
    family: str, method: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = draw(METHODS[method](tiny_classifier(family, **NO_DROPOUT).to(dtype))).train()
    single = {name: value[:1] for name, value in ragged_batch().items()}
    for batch in (ragged_batch(), tiny_batch(4, 6), single):
        expected = results(propulsion.plain_path(model), batch)
        for lean in (False, True):
            path = find_path(propulsion.fast_path(model, lean))
            assert_equal(results(model, batch), expected, tolerance)
            assert path is not None and (path.used, path.plain) == (1, 0)


@contextmanager
def same_masks(model: nn.Module, masks: Masks, batch: dict[str, torch.Tensor]) -> Iterator[None]:
    """The plain modules with the masks that the fast path draws, put where their tokens are."""
    backbone = path_module._backbone(model)
    config = backbone.config
    rows = flatten(batch["attention_mask"], config.num_attention_heads)
    assert rows is not None
    like = backbone.embeddings.LayerNorm.weight

    def hidden(site: int) -> Callable[[torch.Tensor], torch.Tensor]:
        rate = config.hidden_dropout_prob
        kept = rows.pad(masks.keep(rate, (rows.tokens, config.hidden_size), like, (site, 0)))
        return lambda x: x * kept / (1 - rate)

    def attention(site: int) -> torch.Tensor:
        """(batch, heads, length, length), zero where there is padding."""
        rate, length, heads = config.attention_probs_dropout_prob, rows.length, config.num_attention_heads
        kept = torch.zeros(rows.batch, heads, length, length, dtype=like.dtype)
        for group in rows.groups:
            shape = (group.sequences * heads, group.length, group.length)
            drawn = masks.keep(rate, shape, like, (site, group.part)).view(-1, heads, group.length, group.length)
            flat = torch.arange(rows.tokens).view(-1, 1)
            for sequence, mask in zip(group.gather(flat)[..., 0], drawn, strict=True):
                size = group.length if group.real is None else int((sequence != sequence[0]).sum()) + 1
                places = rows.places[sequence[:size]]
                row, columns = int(places[0]) // length, places % length
                kept[row][:, columns[:, None], columns] = mask[:, :size, :size]
        return kept / (1 - rate)

    forwards: list[nn.Module] = [backbone.embeddings.dropout]
    sites = [hidden(0)]
    queue = [attention(3 * index + 1) for index in range(len(backbone.encoder.layer))]
    for index, layer in enumerate(backbone.encoder.layer):
        forwards += [layer.attention.output.dropout, layer.output.dropout]
        sites += [hidden(3 * index + 2), hidden(3 * index + 3)]
    for module, function in zip(forwards, sites, strict=True):
        module.forward = function
    original = nn.functional.dropout
    backbone.config._attn_implementation = "eager"

    def dropout(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return x * queue.pop(0) if x.dim() == 4 else original(x, *args, **kwargs)

    nn.functional.dropout = dropout
    try:
        yield
    finally:
        nn.functional.dropout = original
        for module in forwards:
            del module.forward


@pytest.mark.parametrize("method", ["propulsion", "ia3", "bitfit"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("lean", [False, True])
def test_the_same_masks_give_the_same_losses_and_gradients(
    method: str, dtype: torch.dtype, tolerance: float, lean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.4, "classifier_dropout": 0.0}
    model = draw(METHODS[method](tiny_classifier("roberta", **rates).to(dtype))).train()
    batch, masks = ragged_batch(), Masks((11,))
    monkeypatch.setattr(Masks, "draw", staticmethod(lambda runs=1: masks))
    fast = results(propulsion.fast_path(model, lean), batch)
    propulsion.plain_path(model)
    with same_masks(model, masks, batch):
        plain = results(model, batch)
    assert_equal(fast, plain, tolerance)
    quiet = results(model.eval(), batch)
    assert abs(quiet["loss"] - plain["loss"]) > 1e-3  # the masks did something


def test_bf16_autocast_differs_by_rounding_alone() -> None:
    for method in ("propulsion", "ia3"):
        model = draw(METHODS[method](tiny_classifier("bert", **NO_DROPOUT))).train()
        exact = results(model, ragged_batch())
        plain = results(model, ragged_batch(), autocast=True)
        fast = results(propulsion.fast_path(model), ragged_batch(), autocast=True)
        path = find_path(model)
        assert path is not None and path.used == 1 and fast.keys() == plain.keys()

        def error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor] = exact) -> float:
            return sum(float((found[n] - exact[n]).norm() / exact[n].norm().clamp_min(1e-3)) for n in exact)

        assert error(fast) < 1.5 * error(plain)
        assert {grad.dtype for grad in fast.values()} == {torch.float32}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-2)])
def test_two_hundred_steps_end_at_the_same_scores(dtype: torch.dtype, tolerance: float) -> None:
    """Adam makes whole steps of rounding where a gradient is almost zero, hence the tolerance in float32."""
    ends, before = [], None
    for fast in (False, True):
        torch.manual_seed(0)
        model = METHODS["propulsion"](tiny_classifier("bert", **NO_DROPOUT, num_hidden_layers=1).to(dtype)).train()
        if fast:
            propulsion.fast_path(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
        with torch.no_grad():
            before = model(**tiny_batch(40, 9, seed=77)).logits
        for step in range(200):
            batch = tiny_batch(6, 5 + step % 7, seed=step % 20)
            batch["labels"] = (batch["input_ids"][:, 0] > 20).long()
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            ends.append(model.eval()(**tiny_batch(40, 9, seed=77)).logits)
    moved = float((ends[0] - before).abs().max())
    assert moved > 0.1
    assert float((ends[0] - ends[1]).abs().max()) < tolerance * moved


def saved_bytes(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**batch)
    return sum(size for pointer, size in kept.items() if pointer not in parameters)


def test_it_keeps_what_it_says_per_token() -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 8, "intermediate_size": 256, "max_position_embeddings": 66}
    model = METHODS["propulsion"](tiny_classifier("bert", **shape)).train()
    batch = tiny_batch(32, 64)
    plain = saved_bytes(model, batch)
    fast = saved_bytes(propulsion.fast_path(model), batch)
    lean = saved_bytes(propulsion.fast_path(model, lean=True), batch)
    layer = int(batch["attention_mask"].sum()) * 64 * 4 * 8
    assert fast < 9.8 * layer and lean < 5.8 * layer  # 9 and 5 widths a token, and what surrounds the layers
    assert fast / plain < 0.42 and lean / plain < 0.25


# ---------------------------------------------------------------- what it leaves alone


def test_parameters_saving_loading_merging_and_evaluation_never_see_it(tmp_path: Path) -> None:
    model = draw(METHODS["propulsion"](tiny_classifier("roberta")))
    names, batch = list(model.state_dict()), tiny_batch()
    with torch.no_grad():
        expected = model(**batch).logits
    assert propulsion.fast_path(model) is model
    path = find_path(model)
    assert path is not None and list(model.state_dict()) == names
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)
    assert path.used == path.plain == 0
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_classifier("roberta"), tmp_path)
    assert find_path(loaded) is None
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, expected)
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            other = find_path(clone)
            assert other is not None and other is not path and other.backbone is path_module._backbone(clone)
            assert torch.equal(clone(**batch).logits, expected)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected)
    assert find_path(propulsion.plain_path(merged)) is None
    assert "forward" not in vars(path_module._backbone(merged))


def test_merged_and_disabled_adapters_act_as_on_the_plain_path() -> None:
    model = draw(METHODS["propulsion"](tiny_classifier("bert", **NO_DROPOUT))).train()
    batch = ragged_batch()
    for state in ("on", "merged", "on"):
        if state == "merged":
            model.merge_adapter()
        plain = results(propulsion.plain_path(model), batch)
        fast = results(propulsion.fast_path(model), batch)
        assert_equal({n: fast[n] for n in plain}, plain, 1e-5)
        if state == "merged":
            model.unmerge_adapter()
    with model.disable_adapter():
        fast_loss = model(**batch).loss
        plain_loss = propulsion.plain_path(model)(**batch).loss
        torch.testing.assert_close(fast_loss, plain_loss)


@pytest.mark.parametrize("method", ["propulsion", "ia3", "lora"])
def test_a_merged_adapter_that_is_disabled_is_unmerged_as_on_the_plain_path(method: str) -> None:
    losses = []
    for put in (propulsion.plain_path, propulsion.fast_path):
        torch.manual_seed(0)
        model: Any = draw({**METHODS, "lora": lora}[method](tiny_classifier("bert", **NO_DROPOUT))).train()
        put(model)
        merged(model)
        with model.disable_adapter():
            losses.append(model(**ragged_batch()).loss)
            assert not any(getattr(module, "merged", False) for module in model.modules())
    path = find_path(model)
    assert path is not None and path.used == 1
    torch.testing.assert_close(*losses)


def test_two_adapters_multiply_as_on_the_plain_path() -> None:
    model = get_peft_model(
        tiny_classifier("bert", **NO_DROPOUT).double(), PropulsionConfig(degree=2, init_weights=False), "a"
    )
    model.add_adapter("b", PropulsionConfig(degree=3, target_modules="attention", init_weights=False))
    model.base_model.set_adapter(["a", "b"])
    model.train()
    plain = results(model, ragged_batch())
    assert_equal(results(propulsion.fast_path(model), ragged_batch()), plain, 1e-10)
    path = find_path(model)
    assert path is not None and path.used == 1


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: get_peft_model(tiny_classifier("bert"), LoHaConfig(target_modules=["query"])), "not linear with"),
        (lambda: tiny_classifier("roberta"), "is trained"),
        (lambda: head(tiny_classifier("deberta-v2")), "holds 0 BERT or RoBERTa encoders"),
        (lambda: head(tiny_classifier("bert", hidden_act="relu")), "not gelu"),
    ],
)
def test_what_it_cannot_do_exactly_it_refuses(build: Callable[[], nn.Module], reason: str) -> None:
    model = build()
    with pytest.raises(NotFusedError, match=reason):
        propulsion.fast_path(model)
    assert find_path(model) is None


def test_passes_that_it_cannot_do_exactly_run_the_plain_modules() -> None:
    model = METHODS["degree one"](tiny_classifier("bert", **NO_DROPOUT)).train()
    propulsion.fast_path(model)
    path = find_path(model)
    assert path is not None
    empty = tiny_batch()
    empty["attention_mask"][1] = 0
    model(**empty)
    assert (path.used, path.plain, path.reason) == (0, 1, "a sequence has no token")
    hidden = model(**tiny_batch(), output_hidden_states=True).hidden_states
    assert path.plain == 2 and len(hidden) == 3
    z = next(p for n, p in model.named_parameters() if n.endswith("query.propulsion_z.default"))
    with torch.no_grad():
        z[0] = 0.0
    fast = results(model, tiny_batch())
    assert path.plain == 3 and path.reason == "a scale of degree 1 is exactly 0"
    plain = results(propulsion.plain_path(model), tiny_batch())
    assert all(torch.equal(fast[name], value) for name, value in plain.items())


def test_the_trainer_of_transformers_takes_it(tmp_path: Path) -> None:
    model = METHODS["propulsion"](tiny_classifier("bert"))
    path, batch = find_path(propulsion.fast_path(model)), tiny_batch(4, 6)
    arguments = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no")
    rows = [{name: value[row] for name, value in batch.items()} for row in range(4)]
    Trainer(model, arguments, train_dataset=rows).train()
    assert path is not None and (path.used, path.plain, path.reason) == (2, 0, None)


def test_the_reason_names_what_it_was_called_with_alone() -> None:
    model = METHODS["propulsion"](tiny_classifier("bert"))
    path = find_path(propulsion.fast_path(model))
    model(**tiny_batch(), output_hidden_states=True, output_attentions=False, return_dict=True)
    assert path is not None and path.reason == "it was called with output_hidden_states"


def test_a_sequence_that_begins_with_padding_is_plain() -> None:
    model = METHODS["propulsion"](tiny_classifier("bert", **NO_DROPOUT)).train()
    batch = tiny_batch(4, 6)
    batch["attention_mask"][:] = 1
    batch["attention_mask"][2, :3] = 0
    plain, path = results(model, batch), find_path(propulsion.fast_path(model))
    fast = results(model, batch)
    assert path is not None and (path.used, path.reason) == (0, "a sequence begins with padding")
    assert all(torch.equal(fast[name], value) for name, value in plain.items())


def test_question_answering_is_plain_where_there_is_padding() -> None:
    config = tiny_config("bert", **NO_DROPOUT)
    model = get_peft_model(BertForQuestionAnswering(config), PropulsionConfig()).train()
    batch = {name: value for name, value in ragged_batch().items() if name != "labels"}
    spans = {"start_positions": torch.zeros(5, dtype=torch.long), "end_positions": torch.zeros(5, dtype=torch.long)}
    plain = results(model, {**batch, **spans})
    model = pickle.loads(pickle.dumps(copy.deepcopy(propulsion.fast_path(model))))
    path, fast = find_path(model), results(model, {**batch, **spans})
    assert path is not None and path.reason == "a head for question answering reads padded positions"
    assert all(torch.equal(fast[name], value) for name, value in plain.items())
    results(model, {"input_ids": batch["input_ids"], **spans})
    assert (path.used, path.plain) == (1, 1)


class OtherAttention(BertSelfAttention):
    """An attention that somebody changed."""


def own_forward(module: nn.Module) -> None:
    module.forward = partial(type(module).forward, module)  # type: ignore[method-assign]


IN_A_LAYER = [f"encoder.layer.0.{name}" for name in ("attention", "attention.self", "output.LayerNorm", "output.dense")]
PARTS = ["embeddings", "embeddings.LayerNorm", "embeddings.dropout", "encoder", "encoder.layer.1", *IN_A_LAYER]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.register_forward_hook(lambda *_: None),
        lambda module: module.register_forward_pre_hook(lambda *_: None),
        lambda module: module.register_full_backward_hook(lambda *_: None),
        lambda module: module.register_full_backward_pre_hook(lambda *_: None),
        own_forward,
    ],
    ids=["forward", "forward pre", "backward", "backward pre", "own forward"],
)
def test_what_acts_on_a_module_keeps_the_pass_plain(part: str, change: Callable[[nn.Module], Any]) -> None:
    model = METHODS["attention"](tiny_classifier("bert", **NO_DROPOUT)).train()
    path = find_path(propulsion.fast_path(model))
    assert path is not None
    change(path.backbone.get_submodule(part))
    model(**tiny_batch())
    assert path.used == 0 and path.reason is not None and ("hooks" in path.reason or "of its own" in path.reason)


def test_a_part_of_another_class_is_refused() -> None:
    model = METHODS["attention"](tiny_classifier("bert", **NO_DROPOUT))
    path_module._backbone(model).encoder.layer[1].attention.self.__class__ = OtherAttention
    with pytest.raises(NotFusedError, match="OtherAttention"):
        propulsion.fast_path(model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nn.Identity(), "it has Identity in the place of a dropout"),
        (nn.Dropout(1.0), "a dropout rate is 1"),
    ],
)
@pytest.mark.parametrize("part", ["embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"])
def test_no_dropout_and_one_of_everything_are_plain(part: str, change: nn.Module, reason: str) -> None:
    model = METHODS["attention"](tiny_classifier("bert", **NO_DROPOUT)).train()
    path = find_path(propulsion.fast_path(model))
    assert path is not None
    path.backbone.get_submodule(part).dropout = change.train()
    results(model, tiny_batch())
    assert (path.used, path.reason) == (0, reason)


def test_hooks_that_act_on_the_fast_path_too_leave_it_on() -> None:
    """Those of what is called as it is, and those that transformers leaves behind."""
    model = METHODS["attention"](tiny_classifier("bert", **NO_DROPOUT)).train()
    path, seen = find_path(propulsion.fast_path(model)), []
    assert path is not None
    model(**tiny_batch(), output_hidden_states=True)
    for module in (path.backbone, path.backbone.pooler):
        module.register_forward_hook(lambda module, *_: seen.append(module))
    model(**tiny_batch())
    assert (path.used, path.plain, len(seen)) == (1, 1, 2)


@pytest.mark.parametrize("degree", [2, 5])
def test_a_z_of_zero_has_the_formula_s_gradient(degree: int) -> None:
    model = tuner(degree=degree)(tiny_classifier("bert", **NO_DROPOUT).double()).train()
    with torch.no_grad():
        for name, z in model.named_parameters():
            if "propulsion_z" in name:
                z[::3], z[1::3] = 0.0, -1.05
    plain = results(model, ragged_batch())
    assert_equal(results(propulsion.fast_path(model), ragged_batch()), plain, 1e-10)


def test_a_changed_weight_is_seen() -> None:
    model = METHODS["attention"](tiny_classifier("bert", **NO_DROPOUT)).train()
    propulsion.fast_path(model)
    results(model, tiny_batch())
    with torch.no_grad():
        path_module._backbone(model).encoder.layer[0].attention.self.query.base_layer.weight.mul_(1.5)
    fast = results(model, tiny_batch())
    assert_equal(fast, results(propulsion.plain_path(model), tiny_batch()), 1e-5)


def lora(model: nn.Module) -> nn.Module:
    """LoRA on queries and values that does something from the first step on."""
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], init_lora_weights=False)
    return get_peft_model(model, config)


def merged(model: Any) -> nn.Module:
    model.merge_adapter()
    return model


def rounded(model: nn.Module) -> nn.Module:
    return model.bfloat16().float()


def unloaded(model: Any) -> nn.Module:
    return METHODS["propulsion"](model.merge_and_unload())


@pytest.mark.parametrize("change", [merged, unloaded, rounded])
def test_a_merge_or_a_cast_which_no_version_tells_is_seen(change: Callable[[nn.Module], nn.Module]) -> None:
    model = lora(tiny_classifier("bert", **NO_DROPOUT)).train()
    propulsion.fast_path(model)
    path = find_path(model)
    results(model, tiny_batch())
    assert path is not None
    model = change(model).train()
    fast = results(model, tiny_batch())
    assert (path.used, path.plain) == (2, 0) and find_path(model) is path
    plain = results(propulsion.plain_path(model), tiny_batch())
    assert_equal({name: fast[name] for name in plain}, plain, 1e-5)


# ---------------------------------------------------------------- parts


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    runs=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_the_flat_layout_holds_every_token_once(lengths: list[int], runs: int, seed: int) -> None:
    lengths = lengths * runs
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(lengths), 12, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, torch.randperm(12, generator=generator)[:length]] = 1
    rows = flatten(mask, heads=2, runs=runs)
    assert rows is not None
    assert sorted(rows.places.tolist()) == mask.flatten().nonzero().flatten().tolist()
    flat = torch.randn(rows.tokens, 3)
    padded = rows.pad(flat)
    assert torch.equal(padded.view(-1, 3)[rows.places], flat) and not padded[mask == 0].any()
    back = torch.zeros_like(flat)
    for group in rows.groups:
        group.scatter(group.gather(flat), back)
    assert torch.equal(back, flat)
    assert all(part.stop - part.start == sum(lengths) // runs for part in rows.runs())


def test_masks_are_drawn_at_the_rate_the_same_again_and_elsewhere_differently() -> None:
    masks, like = Masks((5, 6)), torch.empty(0)
    kept = masks.keep(0.1, (400, 501), like, (2, 0))
    assert torch.equal(kept, masks.keep(0.1, (400, 501), like, (2, 0)))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert abs(float(kept.mean()) - 0.9) < 5 * (0.09 / kept.numel()) ** 0.5
    others = [masks.keep(0.1, (400, 501), like, site, run) for site, run in (((3, 0), 0), ((2, 1), 0), ((2, 0), 1))]
    for other in others:
        assert abs(float((kept * other).mean()) - 0.81) < 0.005  # independent
    torch.manual_seed(0)
    first = Masks.draw()
    torch.manual_seed(0)
    assert Masks.draw() == first != Masks.draw()


def test_decisions_kept_as_bits_are_those_that_were_drawn() -> None:
    masks, like, bits = Masks((5, 6)), torch.empty(0), {}
    drawn = [masks.keep(0.3, (7, 11), like, site, run) for site in ((2, 0), (2, 1)) for run in (0, 1)]
    for _ in range(2):  # first drawn, then unpacked
        again = masks.remembering(bits)
        found = [again.keep(0.3, (7, 11), like, site, run) for site in ((2, 0), (2, 1)) for run in (0, 1)]
        assert all(torch.equal(a, b) for a, b in zip(found, drawn, strict=True))
        assert len(bits) == 4 and all(each.nbytes == 10 for each in bits.values())
    bits[(2, 0), 0].zero_()
    assert not masks.remembering(bits).keep(0.3, (7, 11), like, (2, 0), 0).any()  # it did read them


def test_two_passes_at_once_and_a_second_backward_do_not_disturb_each_other() -> None:
    """What a call takes from the workspace is not what the backward pass needs."""
    model = draw(METHODS["propulsion"](tiny_classifier("bert", hidden_dropout_prob=0.3).double())).train()
    propulsion.fast_path(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    batches = ragged_batch(), tiny_batch(4, 6)

    def gradients(losses: list[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
        return [torch.autograd.grad(loss, trained, retain_graph=True) for loss in losses]

    torch.manual_seed(0)
    alone = [gradients([model(**batch).loss])[0] for batch in batches]
    torch.manual_seed(0)
    losses = [model(**batch).loss for batch in batches]
    for found in (gradients(losses), gradients(losses)):
        for mine, expected in zip(found, alone, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))


def test_a_workspace_grows_and_gives_each_thread_its_own() -> None:
    space, like = Workspace(), torch.empty(0)
    first = space.take("a", (4, 3), like)
    assert space.take("a", (2, 5), like).data_ptr() == first.data_ptr()
    assert space.take("b", (4, 3), like).data_ptr() != first.data_ptr()
    assert space.take("a", (4, 3), like.double()).dtype == torch.float64
    assert space.take("a", (40, 3), like).shape == (40, 3)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(space.take, "a", (40, 3), like).result()
    assert other.data_ptr() != space.take("a", (40, 3), like).data_ptr()


def test_runs_that_share_a_batch_are_as_alone() -> None:
    """A leading run axis on the scales, masks by run: the layer of a packed batch equals each run's own."""
    torch.manual_seed(0)
    width, heads, runs = 8, 2, 3
    double = {"dtype": torch.float64}
    frozen = Frozen(
        qkv=torch.randn(24, width, **double),
        out=torch.randn(width, width, **double),
        up=torch.randn(16, width, **double),
        down=torch.randn(width, 16, **double),
        input_weight=torch.rand(width, **double),
        middle_weight=torch.rand(width, **double),
        middle_eps=1e-5,
        output_eps=1e-5,
        dropout=0.3,
        attention=Attention(heads, 0.5, 0.2, 1),
        approximate="none",
        site=2,
    )
    shapes = {"input_bias": 8, "qkv_bias": 24, "out_bias": 8, "middle_bias": 8, "up_bias": 16, "down_bias": 8}
    biases = {name: torch.randn(size, **double) for name, size in shapes.items()}
    sizes = {"qkv_scale": 24, "out_scale": 8, "up_scale": 16, "down_scale": 8, "down_input": 16}
    scales = {n: (1 + 0.1 * torch.randn(runs, size, **double)).requires_grad_() for n, size in sizes.items()}
    mask = (torch.arange(6) < torch.tensor([6, 2, 5, 3, 3, 3])[:, None]).long()
    rows, masks = flatten(mask, heads, runs), Masks((7, 8, 9))
    assert rows is not None
    x = torch.randn(rows.tokens, width, **double)
    weight = torch.randn(rows.tokens, width, **double)
    packed = EncoderLayer.apply(x, frozen, Call(rows, masks, False), *Vectors(**biases, **scales))
    (packed * weight).sum().backward()
    for run, part in enumerate(rows.runs()):
        alone = flatten(mask[2 * run : 2 * run + 2], heads)
        assert alone is not None
        own = {name: scale[run].detach().clone().requires_grad_() for name, scale in scales.items()}
        call = Call(alone, Masks(masks.seeds[run : run + 1]), True)
        output = EncoderLayer.apply(x[part], frozen, call, *Vectors(**biases, **own))
        torch.testing.assert_close(packed[part], output, rtol=1e-12, atol=1e-12)
        (output * weight[part]).sum().backward()
        for name, scale in own.items():
            torch.testing.assert_close(scales[name].grad[run], scale.grad, rtol=1e-10, atol=1e-10)


def test_onednn_products_equal_torch_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight, bias, total = torch.randn(33, 48), torch.randn(20, 48), torch.randn(20), torch.randn(33, 48)
    found = []
    for use in (True, False):
        monkeypatch.setattr(products, "onednn", lambda use=use: use)
        y = products.linear(x, weight, bias)
        found.append([y, products.back(y, weight), products.add_back(total.clone(), y, weight)])
    for ours, own in zip(*found, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("method", ["propulsion", "ia3", "bitfit"])
def test_gradients_equal_the_plain_modules_on_cuda(method: str) -> None:
    model = draw(METHODS[method](tiny_classifier("roberta", **NO_DROPOUT).double())).train().cuda()
    batch = {name: value.cuda() for name, value in ragged_batch().items()}
    plain = results(model, batch)
    assert_equal(results(propulsion.fast_path(model), batch), plain, 1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_masks_are_drawn_again_on_cuda() -> None:
    masks, like = Masks((5,)), torch.empty(0, device="cuda")
    kept = masks.keep(0.1, (400, 500), like, (2, 0))
    assert torch.equal(kept, masks.keep(0.1, (400, 500), like, (2, 0)))
    assert abs(float(kept.mean()) - 0.9) < 0.005
