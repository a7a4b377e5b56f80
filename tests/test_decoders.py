"""Decoders as classifiers: where they read, how they are padded and cut, and every task on them, in bf16 too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from baselines import apply_method, count, partition
from propulsion.harness import backbones
from propulsion.harness.backbones import architecture, build_empty, load_model, load_tokenizer
from propulsion.harness.cell import run_cell
from propulsion.harness.encode import encode
from propulsion.harness.pooling import read_by_mask
from propulsion.harness.settings import TaskSpec
from propulsion.harness.sources.base import make_rows
from propulsion.tuner import PropulsionLayer
from tests.conftest import CONF, DEVICES, ComposeCell, compose_settings, names
from tests.tiny_models import tiny_classifier

DECODERS = [name for name in names("backbone") if compose_settings(f"backbone={name}").backbone.head == ["score"]]
TWO = TaskSpec(name="two", labels=["0", "1"])
EOS = 3


def batch(lengths: list[int], side: str, pad: int) -> dict[str, torch.Tensor]:
    """Random rows of these lengths, the end-of-text token in the middle and, in every other row, at the end."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((len(lengths), max(lengths)), pad)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        text = torch.randint(4, 40, (length,), generator=generator)
        text[length // 2] = EOS
        text[-1] = EOS if row % 2 else text[-1]
        place = slice(0, length) if side == "right" else slice(ids.shape[1] - length, None)
        ids[row, place], mask[row, place] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pad", [1, EOS], ids=["pad of its own", "pad is eos"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_every_row_is_read_at_its_last_real_token(family: str, side: str, pad: int, device: str) -> None:
    """Against each row alone, without any padding, read at its last position."""
    model: Any = read_by_mask(tiny_classifier(family, pad_token_id=pad, eos_token_id=EOS)).double().to(device)
    rows = {name: value.to(device) for name, value in batch([9, 4, 1, 6], side, pad).items()}
    with torch.no_grad():
        padded = model(**rows).logits
        for number, (ids, mask) in enumerate(zip(rows["input_ids"], rows["attention_mask"], strict=True)):
            hidden = model.base_model(input_ids=ids[mask.bool()].unsqueeze(0)).last_hidden_state
            torch.testing.assert_close(padded[number], model.score(hidden[0, -1]), rtol=1e-9, atol=1e-9)


def test_the_own_rule_of_transformers_would_read_elsewhere() -> None:
    """Where the pad token ends a text, it reads the token before: what `read_by_mask` is for."""
    own = tiny_classifier("llama", pad_token_id=EOS, eos_token_id=EOS)
    rows = batch([9, 4], "right", EOS)
    with torch.no_grad():
        theirs = own(**rows).logits
        ours = read_by_mask(own)(**rows).logits
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)  # ends on another token: the same place
    assert not torch.allclose(ours[1], theirs[1], atol=1e-3)


def test_loss_and_gradients_equal_those_of_transformers_where_both_read_the_same_place() -> None:
    rows = {**batch([9, 5, 7], "right", 1), "labels": torch.tensor([0, 1, 0])}
    own, ours = (tiny_classifier("llama", problem_type="single_label_classification") for _ in range(2))
    losses = [own(**rows).loss, read_by_mask(ours)(**rows).loss]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1])
    for theirs, mine in zip(own.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-4, atol=1e-6)


def llama_3_tokenizer() -> PreTrainedTokenizerBase:
    """As LLaMA 3's: byte-level, a start token before each text, no unknown and no padding token."""
    vocabulary = {
        token: n for n, token in enumerate(["<|begin|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")


def loaded(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerBase:
    """What the harness makes of a tokenizer that the hub gives."""
    monkeypatch.setattr(backbones.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.setattr(backbones.hub, "reachable", lambda: True)
    return load_tokenizer(compose_settings("backbone=llama3_8b").backbone)


def test_padding_takes_a_token_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = llama_3_tokenizer()
    before = len(plain)
    tokenizer = loaded(plain, monkeypatch)
    assert (tokenizer.pad_token, len(tokenizer)) == ("<|end|>", before)
    with_unknown = llama_3_tokenizer()
    with_unknown.unk_token = "!"  # as LLaMA 1 and 2 and Mistral have one
    assert loaded(with_unknown, monkeypatch).pad_token == "!"


def test_a_text_that_ends_on_the_padding_token_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = loaded(llama_3_tokenizer(), monkeypatch)
    settings = compose_settings("experiment=tiny", "backbone=llama3_8b")
    model, _ = load_model(settings.backbone, settings.task, tokenizer.pad_token_id)
    texts = ["yes<|end|>", "a longer text"]
    rows = tokenizer.pad([tokenizer(text) for text in texts], return_tensors="pt")
    assert rows["input_ids"][0].tolist().count(tokenizer.pad_token_id) > 1
    with torch.no_grad():
        together = model(**rows).logits
        for number, text in enumerate(texts):
            torch.testing.assert_close(together[number], model(**tokenizer(text, return_tensors="pt")).logits[0])


@pytest.mark.parametrize("backbone", DECODERS)
def test_every_backbone_file_gives_a_model_that_reads_either_padding_alike(backbone: str) -> None:
    settings = compose_settings("experiment=tiny", f"backbone={backbone}")
    model, _ = load_model(settings.backbone, settings.task, EOS)
    model.eval().double()
    with torch.no_grad():
        right, left = (model(**batch([9, 4, 1, 6], side, EOS)).logits for side in ("right", "left"))
        torch.testing.assert_close(right, left, rtol=1e-9, atol=1e-9)
        (alone,) = model(input_ids=batch([9], "right", EOS)["input_ids"]).logits
        torch.testing.assert_close(right[0], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("task", [task for task in names("task") if compose_settings(f"task={task}").task.cut])
def test_a_long_passage_is_cut_and_nothing_else(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = loaded(llama_3_tokenizer(), monkeypatch)
    spec = compose_settings(f"task={task}").task
    question = next(column for column in spec.text if column != spec.cut)
    told, asked = "Anna left the house. " * 40, "who left?"
    group: dict[str, Any] = {"group": [[0, 0]]} if spec.group else {}
    extra: dict[str, Any] = {"candidate": ["Anna"], "answers": [["Anna"]]} if spec.answers else {}
    columns = {spec.cut: [told], question: [asked], "label": [0], "idx": [0], **group, **extra}
    ids = encode(make_rows(spec, columns), tokenizer, spec, 64)[0]["input_ids"]
    first, second = tokenizer.decode(ids).split("<|begin|>")[1:]
    cut, kept = (first, second) if spec.text[0] == spec.cut else (second, first)
    assert len(ids) == 64 and kept.strip() == asked and cut and told.startswith(cut)


@pytest.mark.parametrize("task", ["rte", "axb", "axg", "wic"])
def test_where_no_text_is_the_passage_the_longer_one_is_cut(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = loaded(llama_3_tokenizer(), monkeypatch)
    spec = compose_settings(f"task={task}").task
    told, asked = "Anna left the house. " * 40, "who left?"
    spans: dict[str, Any] = {"spans": [[[0, 0, 4], [1, 0, 3]]]} if spec.spans else {}
    group: dict[str, Any] = {"group": [[0, 0]]} if spec.group else {}
    columns = {spec.text[0]: [told], spec.text[1]: [asked], "label": [0], "idx": [0], **spans, **group}
    ids = encode(make_rows(spec, columns), tokenizer, spec, 64)[0]["input_ids"]
    first, second = tokenizer.decode(ids).split("<|begin|>")[1:]
    assert len(ids) == 64 and second.strip() == asked and told.startswith(first)


@pytest.mark.parametrize("backbone", DECODERS)
def test_propulsion_scales_every_projection_the_embedding_and_on_request_the_head(backbone: str) -> None:
    settings = compose_settings("experiment=tiny", f"backbone={backbone}", "method=propulsion_paper")
    model = apply_method(build_empty(settings.backbone, TWO), settings.method, settings.backbone)
    scaled = [name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, PropulsionLayer)]
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert sorted(scaled) == sorted([*projections * 2, "embed_tokens", "score"])


PUBLISHED = {  # parameters of the language model, as the weights' own pages state them
    "llama_7b": 6_738_415_616,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "llama32_1b": 1_235_814_400,
    "mistral_7b": 7_241_732_096,
    "qwen2_7b": 7_615_616_512,
}


@pytest.mark.parametrize("backbone", DECODERS)
def test_dimensions_give_the_published_number_of_parameters(backbone: str) -> None:
    spec = compose_settings(f"backbone={backbone}").backbone
    config = architecture(spec, TWO)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[backbone]
    assert config.rope_parameters["rope_theta"] == spec.architecture["rope_theta"]


def test_a_new_decoder_is_one_file(tmp_path: Path, tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    """OLMo 2, of which nothing here has heard, from a YAML file alone."""
    text = (CONF / "backbone" / "llama_7b.yaml").read_text()
    new = text.replace("name: llama_7b", "name: olmo2_7b").replace("family: llama", "family: olmo2")
    folder = tmp_path / "more" / "backbone"
    folder.mkdir(parents=True)
    (folder / "olmo2_7b.yaml").write_text(new.replace("id: huggyllama/llama-7b", "id: allenai/OLMo-2-1124-7B"))
    entry, _ = run_cell(
        tiny("backbone=olmo2_7b", f"hydra.searchpath=[file://{tmp_path / 'more'}]", "method=propulsion")
    )
    assert entry["status"] == "success", entry["error"]
    assert entry["params"]["adapter"] == 2 * (5 * 32 + 2 * 64) + 32  # q, k, v, o, down; gate, up; the embedding


@pytest.mark.parametrize("backbone", ["mistral_7b", "qwen2_7b"])
def test_every_projection_of_the_other_families_is_trained(tiny: ComposeCell, backbone: str) -> None:
    entry, _ = run_cell(tiny(f"backbone={backbone}", "method=propulsion", "training.max_steps=1"))
    assert entry["status"] == "success", entry["error"]
    assert entry["params"]["adapter"] == 2 * (5 * 32 + 2 * 64) + 32


def test_bf16_autocast_over_a_float32_llama_stays_beside_float32(tiny: ComposeCell, tmp_path: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        words = (f"training.precision={precision}", f"results_dir={tmp_path / precision}", "training.max_steps=10")
        entry, _ = run_cell(tiny("backbone=llama_7b", "method=propulsion", "training.learning_rate=3e-3", *words))
        assert entry["status"] == "success", entry["error"]
        assert (entry["env"]["precision"], entry["env"]["attention"]) == (precision, "sdpa")
        losses.append([evaluation["loss"] for evaluation in entry["eval"]["history"]])
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], abs=0.02)


@pytest.mark.parametrize("task", names("task"))
def test_every_task_runs_on_a_tiny_llama_in_bf16(tiny: ComposeCell, task: str) -> None:
    """Weights and autocast in bf16; what is trained stays in float32."""
    small = (
        "training.max_steps=2",
        "training.evaluations=1",
        "data.train_rows=16",
        "data.eval_rows=16",
        "training.max_length=96",
    )
    settings = tiny("backbone=llama32_1b", "backbone.dtype=bfloat16", f"task={task}", "method=propulsion", *small)
    entry, _ = run_cell(settings)
    assert entry["status"] == "success", entry["error"]
    assert entry["env"]["precision"] == "bf16"
    assert entry["eval"]["primary"] in entry["eval"]["last"]
    assert entry["cost"]["adapter_bytes"] == 4 * entry["params"]["trainable"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["propulsion", "propulsion_paper", "lora", "ia3", "head", "full"])
def test_what_is_trained_on_a_half_precision_backbone_is_float32(method: str, dtype: str) -> None:
    """z, the adapters and the head's master weights; the rest stays as it is."""
    settings = compose_settings("experiment=tiny", "backbone=llama_7b", f"backbone.dtype={dtype}", f"method={method}")
    model, _ = load_model(settings.backbone, settings.task, 1)
    tuned: nn.Module = apply_method(model, settings.method, settings.backbone)
    trained = {n: p for n, p in tuned.named_parameters() if p.requires_grad}
    assert trained and {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in tuned.parameters() if not p.requires_grad} <= {getattr(torch, dtype)}
    parts = partition(tuned, settings.backbone.head, settings.method.head != "frozen")
    assert (count(tuned, parts).head > 0) == (method != "propulsion_paper")


def test_the_config_of_a_decoder_is_read_by_its_own_family() -> None:
    for name in ("mistral_7b", "qwen2_7b"):
        spec = compose_settings(f"backbone={name}").backbone
        assert AutoConfig.for_model(spec.family).model_type == spec.family
