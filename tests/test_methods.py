"""Every method on every family: tried, counted, seeded, resumed; what needs a hook of peft's, and what is refused."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import set_seed

from baselines import apply_method, count, partition
from baselines import hooks as hooks_module
from baselines.hooks import resumable, start_from_data, starts_from_data
from propulsion.fast import NotFusedError, fast_path, find_path
from propulsion.harness import backbones, checkpoints, methods, params, trial
from propulsion.harness.assembly import row_length
from propulsion.harness.backbones import load_model
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import UserError
from propulsion.harness.settings import MethodSpec
from propulsion.harness.trial import FAMILIES, PAD, TASK, answer, draw, try_method
from scripts import methods as script
from tests.conftest import ComposeCell, compose_settings, names

METHODS = names("method")
WITH_PEFT = [name for name in METHODS if params.load_method(name).apply == "peft"]
REFUSED = {
    ("bitfit", "LLaMA"): "llama_7b has no biases to train",
    ("bitfit", "Mistral"): "mistral_7b has no biases to train",
    ("prefix_tuning", "DeBERTa-v3"): "DebertaV2Model takes no past_key_values",
}
NO_MERGE = {"full", "head", "bitfit", "prompt_tuning", "prefix_tuning", "p_tuning"}  # no change of a frozen weight
UNMERGED = {("beft", "LLaMA"), ("beft", "Mistral")}  # their layers have no bias to fold one into
ROBERTA_HEAD = 592_130


def spec_of(family: str) -> Any:
    return trial.tiny(params.load_backbone(FAMILIES[family]))


def tuned_model(method: MethodSpec, family: str = "BERT", seed: int = 0) -> nn.Module:
    set_seed(seed)
    model = load_model(spec_of(family), TASK, PAD, dropout=0.0)[0]
    return apply_method(model, method, spec_of(family), trial.STEPS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_it_works_or_says_why_not(name: str, family: str) -> None:
    found = try_method(params.load_method(name), family, params.load_backbone(FAMILIES[family]))
    if (name, family) in REFUSED:
        assert found.problem is not None
        assert REFUSED[name, family] in found.problem
    else:
        assert found.problem is None
        assert found.merges == (None if name in NO_MERGE else (name, family) not in UNMERGED)


def spec(**peft_options: Any) -> MethodSpec:
    return MethodSpec(name="m", apply="peft", learning_rate=1e-3, targets=["query"], peft=peft_options)


def test_a_trial_finds_what_never_gets_a_gradient() -> None:
    method = spec(peft_type="SHADOW")
    method.targets = []
    found = try_method(method, "LLaMA", params.load_backbone("llama_7b"))
    assert found.problem is not None
    assert "never get a gradient, as base_model" in found.problem


def test_a_trial_finds_a_method_that_mixes_the_rows_of_a_batch() -> None:
    found = try_method(spec(peft_type="LILY", r=8, scaling=8.0), "LLaMA", params.load_backbone("llama_7b"))
    assert found.problem is not None
    assert "depend on the rows and the padding beside it" in found.problem


def test_a_trial_finds_what_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: Any, folder: str, **_: Any) -> None:
        kept(self, folder)
        state = peft.utils.load_peft_weights(folder)
        peft.utils.save_and_load.safe_load_file  # noqa: B018  (the name that peft reads with)
        torch.save({key: torch.zeros_like(value) for key, value in state.items()}, Path(folder, "adapter_model.bin"))
        Path(folder, "adapter_model.safetensors").unlink()

    kept = peft.PeftModel.save_pretrained
    monkeypatch.setattr(peft.PeftModel, "save_pretrained", nothing)
    found = try_method(params.load_method("lora"), "BERT", params.load_backbone("minilm"))
    assert found.problem is not None
    assert "saved and loaded, the logits differ" in found.problem


# Sizes of the tiny models: layers, width, feed-forward width, words, places.
L, H, F, V, P = 2, 32, 64, 64, 66
DECODERS = ("LLaMA", "Mistral", "Qwen2")
HEAD = {"BERT": 2 * H + 2, "RoBERTa": H * H + H + 2 * H + 2, "DeBERTa-v3": H * H + H + 2 * H + 2}  # decoders: 2 H


def linears(family: str) -> list[tuple[int, int, bool]]:
    """Inputs, outputs and whether there is a bias, of a layer's linears; query, key and value come first."""
    query = 2 * H if family in ("Mistral", "Qwen2") else H  # of two heads that share a key and a value
    biased = family not in DECODERS
    attention = [(H, width, biased or family == "Qwen2") for width in (query, H, H)]
    return [*attention, (query, H, biased), *[(H, F, biased)] * (1 if biased else 2), (F, H, biased)]


def plain_formulas(family: str) -> dict[str, int]:
    """Parameters outside the head of methods that train or scale what the backbone has."""
    all_linears = linears(family)
    outputs = L * sum(width for _, width, _ in all_linears)
    biases = L * sum(width for _, width, biased in all_linears if biased)
    norms = H * (2 * L + (2 if family == "DeBERTa-v3" else 1))  # their weights; a decoder's norms have no bias
    shifts = 0 if family in DECODERS else norms
    # BERT has two token types and RoBERTa one; DeBERTa has neither them nor places, but 512 relative positions
    rows = V + {"BERT": P + 2, "RoBERTa": P + 1, "DeBERTa-v3": 512}.get(family, 0)
    scales = outputs + H * (3 if family in ("BERT", "RoBERTa") else 1)  # of every linear and table; not rel_embeddings
    on_head = H + 2 if family in ("RoBERTa", "DeBERTa-v3") else 2
    return {
        "head": 0,
        "full": rows * H + L * sum(a * b for a, b, _ in all_linears) + biases + norms + shifts,
        "bitfit": biases + shifts,
        "ln_tuning": norms + shifts,
        "propulsion": scales,
        "propulsion_attn": L * sum(width for _, width, _ in all_linears[:3]),
        "propulsion_paper": scales + on_head,
        # the packaged function trains every linear's bias as well
        "propulsion_package": scales + on_head + biases + (0 if family in DECODERS else on_head),
        "ia3": L * (H + H + F),
        "ia3_peft": L * (H + H + all_linears[3][0] + F),
        "beft": L * H,
        "prompt_tuning": 10 * H,
        "prefix_tuning": 20 * L * 2 * H,
        "p_tuning": 20 * H + (H * 128 + 128) + (128 * 128 + 128) + (128 * H + H),
    }


def matrix_formulas(family: str) -> dict[str, int]:
    """Parameters of methods that change the matrices of query and value."""
    query, _, value = linears(family)[:3]
    ins, outs = (L * (query[side] + value[side]) for side in (0, 1))
    matrices, lora = 2 * L, 8 * (ins + outs)
    return {
        **dict.fromkeys(("lora", "rslora", "pissa", "olora", "eva", "lora_orthogonal", "velora"), lora),
        "dora": lora + outs,  # a magnitude for each output
        "mica": 8 * ins,  # B is frozen
        "bdlora": 8 * ins + 8 * outs // 2,  # B in two blocks
        "adalora": 12 * (ins + outs) + matrices * 12,
        "loha": 2 * lora,
        "shira": lora,  # as many entries as LoRA has
        "vera": matrices * 256 + outs,
        "hra": 8 * ins,
        "miss": 8 * outs,
        "oft": ins // 32 * (32 * 31 // 2),
        "c3a": outs * H // 32,
        **dict.fromkeys(("fourierft", "waveft"), matrices * 1000),
        "unilora": 1024,
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_counts_on_every_family_by_formulas(name: str, family: str) -> None:
    method = params.load_method(name)
    if (name, family) in REFUSED:
        return
    model = tuned_model(method, family)
    counts = count(model, partition(model, spec_of(family).head, method.head != "frozen"))
    assert counts.head == (0 if method.head == "frozen" else HEAD.get(family, 2 * H))
    formulas = plain_formulas(family) | matrix_formulas(family)
    assert formulas.keys() <= set(METHODS)
    if name in formulas:
        assert counts.adapter == formulas[name]


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("adalora", 24 * (2 * 12 * 768 + 12)),  # P, Q and the singular values, of q and v in 12 layers
        ("dora", 24 * (2 * 8 * 768 + 768)),  # and a magnitude for each output
        *((name, 24 * 2 * 8 * 768) for name in ("rslora", "pissa", "olora", "eva")),
        ("vera", 24 * (256 + 768)),
        ("loha", 24 * 4 * 8 * 768),
        ("fourierft", 24 * 1000),
        ("waveft", 24 * 1000),
        ("c3a", 24 * 768 * 768 // 32),
        ("beft", 12 * 768),
        ("ln_tuning", 25 * 2 * 768),
        ("prompt_tuning", 10 * 768),
        ("prefix_tuning", 20 * 12 * 2 * 768),
        ("p_tuning", 20 * 768 + (768 * 128 + 128) + (128 * 128 + 128) + (128 * 768 + 768)),
        ("oft", 24 * (768 // 32) * (32 * 31 // 2)),
        ("hra", 24 * 8 * 768),
        ("unilora", 1024),
    ],
)
def test_counts_on_roberta_base_by_the_papers_formulas(name: str, adapter: int) -> None:
    counts = params.count_cell(params.load_backbone("roberta_base"), params.load_method(name), "trained").counts
    assert counts is not None
    assert (counts.adapter, counts.head) == (adapter, ROBERTA_HEAD)


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_decides_the_start(name: str) -> None:
    method = params.load_method(name)
    first, again = (dict(tuned_model(method).named_parameters()) for _ in range(2))
    assert first.keys() == again.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, again[key], rtol=0, atol=0)


# Methods whose encoders are trained through the fused layers, BERT's and RoBERTa's alike.
FUSED = {
    *("bitfit", "eva", "head", "ia3", "lora", "lora_orthogonal", "olora", "pissa", "rslora"),
    *("propulsion", "propulsion_attn", "propulsion_package", "propulsion_paper"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_the_fast_path_is_exact_or_off(name: str, family: str) -> None:
    """The same loss and gradients; a method or family that the fused layers do not know runs its own modules."""
    if (name, family) in REFUSED:
        return
    fused = name in FUSED and family in ("BERT", "RoBERTa")
    method, batch, labels = params.load_method(name), draw(), torch.tensor([0, 1, 0, 1])
    results = []
    for fast in (False, True):
        model = tuned_model(method, family).train()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:  # away from starts at 0
                    parameter.add_(0.01 * torch.sin(torch.arange(parameter.numel()).reshape(parameter.shape)))
        if fast and not fused:
            with pytest.raises(NotFusedError):
                fast_path(model)
            return
        if fast:
            fast_path(model)
        set_seed(3)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        path = find_path(model)
        assert (path is not None and (path.used, path.plain) == (1, 0)) == fast
        results.append((loss, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    for key, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][key], grad, rtol=1e-3, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", WITH_PEFT)
def test_a_checkpoint_is_all_that_a_run_needs_or_is_not_used(name: str, tmp_path: Path) -> None:
    model: Any = tuned_model(params.load_method(name)).eval()
    assert resumable(model) == (name != "adalora")  # whose tuner keeps statistics of the steps
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    checkpoints.save_trained(model, tmp_path)
    fresh = tuned_model(params.load_method(name)).eval()
    assert checkpoints.fits(fresh, tmp_path)
    checkpoints.load_trained(fresh, tmp_path)
    torch.testing.assert_close(answer(fresh, draw()), answer(model, draw()), rtol=0, atol=0)


# Hooks


def test_a_pruned_adamss_starts_again() -> None:
    method = params.load_method("adamss")
    method.peft |= {"use_asa": True, "asa_target_subspaces": 2}
    assert not resumable(tuned_model(method))


def test_a_budget_moves_as_the_run_goes_on(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    own = hooks_module.Budget.on_optimizer_step

    def watched(self: Any, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        gradients = [p.grad for n, p in model.named_parameters() if "lora_E" in n]
        assert all(grad is not None for grad in gradients)  # importance is the product of weight and gradient
        own(self, args, state, control, model, **kwargs)
        config = model.peft_config["default"]
        left = sum(sum(ranks) for ranks in config.rank_pattern.values()) if config.rank_pattern else None
        seen.append((state.global_step, config.total_step, config.tinit, config.tfinal, left))

    monkeypatch.setattr(hooks_module.Budget, "on_optimizer_step", watched)
    entry, _ = run_cell(tiny("method=adalora", "training.max_steps=10"))
    assert entry["status"] == "success", entry["error"]
    assert [step for step, *_ in seen] == list(range(10))
    assert {(total, first, last) for _, total, first, last, _ in seen} == {(10, 2, 4)}
    assert seen[-1][-1] == 4 * 8  # four matrices, eight singular values each on average: target_r


def test_steps_are_shares_of_a_run_of_any_length() -> None:
    method = params.load_method("adalora")
    for steps in (*range(1, 25), 100, 999, 50_000):
        set_seed(0)
        model = backbones.build_empty(spec_of("BERT"), TASK)
        config: Any = apply_method(model, method, spec_of("BERT"), steps).peft_config["default"]  # type: ignore[union-attr]
        assert config.total_step == steps
        assert 0 <= config.tinit < steps - config.tfinal


def test_eva_starts_from_the_principal_inputs_of_each_layer() -> None:
    method = params.load_method("eva")
    model: Any = tuned_model(method)
    before = answer(model.eval(), draw())
    assert starts_from_data(model)
    inputs: list[torch.Tensor] = []
    layer = model.get_submodule("base_model.model.bert.encoder.layer.1.attention.self.query")
    batch = draw(rows=16, length=20)
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0][batch["attention_mask"].bool()]))
    answer(model, batch)
    handle.remove()
    start_from_data(model, [batch] * 4)
    found = layer.lora_A["default"].weight
    centred = inputs[0] - inputs[0].mean(dim=0)
    principal = torch.linalg.svd(centred, full_matrices=False).Vh[:8]
    torch.testing.assert_close(
        (found @ principal.T).abs(), torch.eye(8), rtol=0, atol=2e-2
    )  # EVA stops at a cosine of 0.99
    torch.testing.assert_close(answer(model, draw()), before)  # B is 0: the start changes no output
    assert found.requires_grad


def test_a_start_that_does_not_settle_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks_module, "MOST_BATCHES", 2)
    with pytest.raises(UserError, match="not settled after 2 batches of training rows; use fewer"):
        start_from_data(tuned_model(params.load_method("eva")), [draw(seed) for seed in range(3)])


# Virtual tokens


@pytest.mark.parametrize(
    ("name", "tokens"), [("prompt_tuning", 10), ("p_tuning", 20), ("prefix_tuning", 20), ("lora", 0)]
)
def test_virtual_tokens_take_places_of_the_position_table(name: str, tokens: int) -> None:
    settings = compose_settings("experiment=tiny", "backbone=roberta_base", f"method={name}", "training.max_length=512")
    model = load_model(settings.backbone, settings.task, PAD, dropout=0.0)[0]
    tuned = apply_method(model, settings.method, settings.backbone)
    length = row_length(settings, tuned)
    assert length == 512 - tokens
    ids = torch.full((1, length), 5)
    assert answer(tuned.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).isfinite().all()


def test_too_many_virtual_tokens_are_one_line(tiny: ComposeCell) -> None:
    with pytest.raises(UserError, match=r"510 virtual tokens leave 2 of the backbone's 512 places; lower method\.peft"):
        run_cell(tiny("method=prompt_tuning", "method.peft.num_virtual_tokens=510"))


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_a_decoder_reads_from_embeddings_what_it_reads_from_ids(side: str) -> None:
    set_seed(0)
    model = load_model(spec_of("LLaMA"), TASK, PAD)[0].eval()
    batch = draw()
    if side != "right":
        batch = {name: torch.roll(value, 4 if side == "left" else 2, dims=1) for name, value in batch.items()}
    embedded = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"])}
    mask = {"attention_mask": batch["attention_mask"]}
    torch.testing.assert_close(model(**embedded, **mask).logits, model(**batch).logits)


def test_a_prompt_trains_the_head() -> None:
    with pytest.raises(UserError, match=r"with virtual tokens peft trains the head; use method\.head=trained"):
        params_of = params.load_method("prompt_tuning")
        params_of.head = "frozen"
        tuned_model(params_of)


def test_a_tuner_of_the_norms_takes_all_of_them_or_none() -> None:
    method = params.load_method("ln_tuning")
    tuned_model(method, "DeBERTa-v3")
    method.peft["target_modules"] = ".*attention.*LayerNorm"
    with pytest.raises(UserError, match=r"leaves 3 of minilm's norms out, as .*embeddings\.LayerNorm: name them all"):
        tuned_model(method)


# The table


def test_every_type_of_peft_is_used_or_has_a_reason() -> None:
    types = {str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    used = {str(params.load_method(name).peft.get("peft_type", "")).upper() for name in METHODS}
    assert types <= used | methods.NOT_COVERED.keys()
    assert not used & methods.NOT_COVERED.keys()


def test_every_variant_of_pefts_lora_is_used_or_has_a_reason() -> None:
    options, named = methods.lora_options(), methods.LORA_NOT_COVERED.keys()
    assert {"use_dora", "use_rslora", "velora", "eva", "pissa", "mica", "corda", "lora_ga"} <= options
    assert named <= options
    listed = {name.removeprefix("LoRA, ") for name in methods.not_covered() if name.startswith("LoRA, ")}
    assert listed == named and not {"use_dora", "eva", "velora"} & listed


def test_the_table_says_what_was_tried(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert script.main(["methods=bitfit,shira,vera", f"results_dir={tmp_path}"]) == 0
    text = (tmp_path / "methods" / "methods.md").read_text()
    assert text in capsys.readouterr().out
    table = {
        row[0]: row for row in ([c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()) if row
    }
    assert table["bitfit"][2:9] == ["yes", "yes", "yes", "no (1)", "no (2)", "yes", methods.NONE]
    assert "1. method bitfit: llama_7b has no biases to train" in text
    assert table["shira"][8:10] == ["yes", f"{12 * 8 * (384 + 384):,}"]  # counted on real weights, which it reads
    assert table["vera"][8:10] == ["yes", f"{12 * (256 + 384):,}"]
    assert table["vera"][10:12] == ["0.02", "peft's sequence-classification example (RoBERTa-base, MRPC)"]
    assert all(f"- {name}: " in text for name in methods.NOT_COVERED)


def test_bad_arguments_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["methods=lorra"]) == 2
    assert script.main(["method=lora"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: unknown method 'lorra': did you mean lora")
    assert lines[1] == "error: unknown argument 'method': did you mean methods?"


@functools.cache
def committed() -> str:
    return (params.default_folder().parent / "methods" / "methods.md").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_the_committed_table_has_the_file_as_it_is(name: str) -> None:
    method = params.load_method(name)
    (line,) = [line for line in committed().splitlines() if re.match(rf"\| {name} +\|", line)]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == method.peft.get("peft_type", methods.NONE)
    families = cells[2 : 2 + len(FAMILIES)]
    assert cells[2 + len(FAMILIES) :][2] == f"{method.learning_rate:g}"
    for family, cell in zip(FAMILIES, families, strict=True):
        assert cell.startswith("no (") == ((name, family) in REFUSED)
