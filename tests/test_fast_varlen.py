"""Variable-length attention: which input takes it, what the comparison lets through, what it does on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

import propulsion
from propulsion.fast import find_path, varlen
from propulsion.fast import rows as rows_module
from propulsion.fast.attention import Attention
from propulsion.fast.masks import Masks
from propulsion.fast.packed import stack_rows
from propulsion.fast.rows import Rows, Span, flatten
from propulsion.fast.workspace import Workspace
from propulsion.harness import batches, training
from propulsion.harness.cell import run_cell
from propulsion.harness.meter import Meter
from propulsion.harness.speed import Speed, path_taken
from tests.conftest import ComposeCell
from tests.test_fast_path import METHODS, NO_DROPOUT, assert_equal, draw, ragged_batch, results
from tests.tiny_models import tiny_classifier

HEADS, WIDTH = 2, 8


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "_verdicts", {})


def shares(query: torch.Tensor, key: torch.Tensor, span: Span, scale: float) -> Iterator[tuple[slice, torch.Tensor]]:
    """Each sequence's rows and how much of each value its tokens take, `(heads, length, length)`."""
    ends = span.starts.tolist()
    for start, end in pairwise(ends):
        q, k = (x[start:end].transpose(0, 1).float() for x in (query, key))
        yield slice(start, end), torch.softmax(scale * q @ k.transpose(1, 2), -1)


def dense(query: Any, key: Any, value: Any, span: Span, rate: float, scale: float, seed: int) -> torch.Tensor:
    """Attention sequence by sequence in ordinary operations, dropout from the seed."""
    source, parts = torch.Generator().manual_seed(seed), []
    for part, share in shares(query, key, span, scale):
        kept = torch.rand(share.shape, generator=source) >= rate
        parts.append(((share * kept / (1 - rate)) @ value[part].transpose(0, 1).float()).transpose(0, 1))
    return torch.cat(parts)


def right_forward(query: Any, key: Any, value: Any, span: Span, rate: float, scale: float) -> tuple[torch.Tensor, ...]:
    seed = torch.randint(2**40, ()) if rate else torch.tensor(0)
    return dense(query, key, value, span, rate, scale, int(seed)).to(query.dtype), seed


def right_backward(
    grad: Any, query: Any, key: Any, value: Any, kept: Any, span: Span, rate: float, scale: float
) -> tuple[torch.Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    with torch.enable_grad():
        out = dense(*leaves, span, rate, scale, int(kept[1]))
    return torch.autograd.grad(out, leaves, grad.float())


RIGHT = varlen.Kernel(right_forward, right_backward)
WRONG = {
    "differs from the reference": RIGHT._replace(
        backward=lambda *given: tuple(1.1 * each for each in right_backward(*given))
    ),
    "draws other dropout": RIGHT._replace(
        backward=lambda grad, q, k, v, kept, *rest: right_backward(grad, q, k, v, (kept[0], kept[1] + 1), *rest)
    ),
    "raises RuntimeError: no such kernel": RIGHT._replace(forward=lambda *given: raising("no such kernel\nat all")),
}


def raising(message: str) -> Any:
    raise RuntimeError(message)


def use(monkeypatch: pytest.MonkeyPatch, kernel: varlen.Kernel) -> None:
    """A kernel for bf16 on a CPU."""
    monkeypatch.setattr(varlen, "kernel", kernel)
    monkeypatch.setattr(varlen, "fits", lambda qkv, heads: qkv.dtype == torch.bfloat16)


def layout(*lengths: int, runs: int = 1) -> Rows:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    rows = flatten(mask, HEADS, runs)
    assert rows is not None
    return rows


def given(rows: Rows, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(rows.tokens, 3 * HEADS * WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_cumulative_lengths_are_each_run_s_own_longest_first() -> None:
    (span,) = layout(3, 5, 1).spans
    assert (span.starts.tolist(), span.longest, span.part) == ([0, 5, 8, 9], 5, slice(0, 9))
    assert span.starts.dtype == torch.int32
    first, second = layout(3, 5, 2, 2, runs=2).spans
    assert (first.starts.tolist(), second.starts.tolist()) == ([0, 5, 8], [0, 2, 4])
    assert (second.part, second.longest) == (slice(8, 12), 2)
    stacked = stack_rows([layout(3, 5), layout(2, 2)])
    for mine, expected in zip(stacked.spans, (first, second), strict=True):
        assert mine.part == expected.part and torch.equal(mine.starts, expected.starts)


def test_only_half_precision_on_a_recent_gpu_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        is_cuda, device = True, torch.device("cuda", 0)

        def __init__(self, dtype: torch.dtype, width: int) -> None:
            self.dtype, self.shape = dtype, (10, 3 * HEADS * width)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    fits: Any = varlen.fits
    assert not fits(torch.zeros(4, 48, dtype=torch.bfloat16), HEADS)  # on a CPU
    assert fits(OnCuda(torch.bfloat16, 32), HEADS) and fits(OnCuda(torch.float16, 64), HEADS)
    assert not fits(OnCuda(torch.float32, 64), HEADS) and not fits(OnCuda(torch.float64, 64), HEADS)
    assert not fits(OnCuda(torch.bfloat16, 12), HEADS) and not fits(OnCuda(torch.bfloat16, 264), HEADS)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not fits(OnCuda(torch.bfloat16, 32), HEADS)


def test_a_right_kernel_is_compared_once_and_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, RIGHT)
    compared = []
    compare = varlen._compare
    monkeypatch.setattr(varlen, "_compare", lambda *words: compared.append(1) or compare(*words))
    attention, rows, space = Attention(HEADS, 0.4, 0.0, 1), layout(9, 4, 9, 1), Workspace()
    qkv = given(rows)
    grad = given(rows)[:, : HEADS * WIDTH]
    for _ in range(2):
        torch.testing.assert_close(
            attention.forward(qkv, rows, None, space), right_forward(*split(qkv), rows.spans[0], 0.0, 0.4)[0].flatten(1)
        )
        expected = attention.backward_by_groups(grad, qkv, rows, None, Workspace())
        torch.testing.assert_close(attention.backward(grad, qkv, rows, None, space), expected, rtol=0.02, atol=0.02)
    assert compared == [1] and capsys.readouterr().err == ""
    shape = torch.device("cpu"), torch.bfloat16, HEADS, WIDTH
    assert varlen.described(*shape) == "variable-length attention"
    single = given(rows, torch.float32)
    reference = attention.forward_by_groups(single, rows, None, Workspace())
    assert torch.equal(attention.forward(single, rows, None, space), reference)  # of another type: by groups
    assert varlen.described(shape[0], torch.float32, HEADS, WIDTH) == "attention by groups"


def split(qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return qkv.view(len(qkv), 3, HEADS, -1).unbind(1)


@pytest.mark.parametrize("reason", WRONG)
def test_a_kernel_that_is_wrong_is_never_used_and_it_is_said_once(
    reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, WRONG[reason])
    attention, rows = Attention(HEADS, 0.4, 0.1, 1), layout(9, 4, 9, 1)
    qkv, masks = given(rows), Masks((7,))
    for _ in range(2):
        expected = attention.forward_by_groups(qkv, rows, masks, Workspace())
        assert torch.equal(attention.forward(qkv, rows, masks, Workspace()), expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the variable-length kernel {reason}" in line
    said = varlen.described(torch.device("cpu"), torch.bfloat16, HEADS, WIDTH)
    assert said.startswith(f"attention by groups: the kernel {reason}")


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_is_no_verdict(
    spoilt: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, RIGHT)
    rows = layout(4, 2)
    attention, space, qkv = Attention(HEADS, 0.5, 0.0, 1), Workspace(), given(rows)
    diverged = qkv.clone()
    diverged[1, 3] = spoilt
    assert not varlen.trusted(attention, diverged, rows, space)
    assert varlen._verdicts == {} and capsys.readouterr().err == ""
    assert varlen.trusted(attention, qkv, rows, space)


def test_memory_that_runs_out_in_the_comparison_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    use(monkeypatch, RIGHT._replace(forward=full))
    rows = layout(5, 2)
    with pytest.raises(torch.OutOfMemoryError):
        Attention(HEADS, 0.4, 0.0, 1).forward(given(rows), rows, None, Workspace())
    assert varlen._verdicts == {}


def test_dropout_follows_the_pass_s_masks_and_leaves_the_device_s_generator_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, RIGHT)
    attention, rows, space = Attention(HEADS, 0.4, 0.3, 1), layout(9, 4, 9, 1, runs=2), Workspace()
    qkv = given(rows)
    before = torch.get_rng_state()
    mixed = attention.forward(qkv, rows, Masks((5, 6)), space)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(attention.forward(qkv, rows, Masks((5, 6)), space), mixed)
    assert not torch.equal(attention.forward(qkv, rows, Masks((6, 6)), space), mixed)
    grad = attention.backward(mixed, qkv, rows, Masks((5, 6)), space)
    value, value_grad = qkv.chunk(3, dim=1)[2].float(), grad.chunk(3, dim=1)[2].float()
    assert float((value * value_grad).sum()) == pytest.approx(float(mixed.float().square().sum()), rel=1e-2)
    alone = layout(9, 4)  # the first run without the second
    part = qkv[: alone.tokens]
    assert torch.equal(attention.forward(part, alone, Masks((5,)), space), mixed[: alone.tokens])
    assert torch.equal(attention.backward(mixed[: alone.tokens], part, alone, Masks((5,)), space), grad[: alone.tokens])


def test_a_model_through_the_kernel_has_the_plain_modules_gradients_and_says_what_it_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, RIGHT)
    model = draw(METHODS["propulsion"](tiny_classifier("bert", **NO_DROPOUT))).train()
    exact = results(model, ragged_batch())
    plain = results(model, ragged_batch(), autocast=True)
    found = results(propulsion.fast_path(model), ragged_batch(), autocast=True)
    path = find_path(model)
    assert path is not None and path.used == 1 and list(varlen._verdicts.values()) == [None]

    def error(one: dict[str, torch.Tensor]) -> float:
        return sum(float((one[n] - exact[n]).norm() / exact[n].norm().clamp_min(1e-3)) for n in exact)

    assert error(found) < 1.5 * error(plain)
    calls = len(varlen._verdicts)
    path.varlen = False
    results(model, ragged_batch(), autocast=True)
    assert len(varlen._verdicts) == calls
    assert path_taken(model, Speed("fused", False)) == "fused"  # on a CPU there is no choice to record
    path.attention = "variable-length attention"
    assert path_taken(model, Speed("fused", False)) == "fused; variable-length attention"


def test_a_mask_that_was_told_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    rows_module.tell(mask, torch.tensor([[1, 1, 1], [1, 0, 0]]))
    told = flatten(mask, HEADS)
    assert told is not None and told.tokens == 4
    mask[1, 1] = 1  # changed since: what was told is no longer so
    read = flatten(mask, HEADS)
    assert read is not None and read.tokens == 4 and read.places.tolist() == [0, 1, 3, 4]
    rows_module.tell(mask, torch.ones(2, 2))  # not of its shape
    again = flatten(mask, HEADS)
    assert again is not None and again.tokens == 4


def test_the_operators_of_this_torch_take_the_calls_and_give_the_shapes() -> None:
    """Without a GPU the kernels' own registration for shapes alone is what there is to ask."""
    rows = layout(9, 4, 9, 1, runs=2)
    attention, masks, qkv = Attention(HEADS, 0.4, 0.1, 1), Masks((5, 6)), given(rows).to("meta")
    mixed = varlen.forward(attention, qkv, rows, masks)
    assert (mixed.shape, mixed.dtype) == ((rows.tokens, HEADS * WIDTH), torch.bfloat16)
    grad = varlen.backward(attention, mixed, qkv, rows, masks)
    assert (grad.shape, grad.dtype) == (qkv.shape, torch.bfloat16)


class OnGpu(batches.Collator):
    """The collator as it is where there is a GPU."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.on_gpu = True


def test_a_run_s_batches_bring_their_masks_on_the_host_and_no_model_sees_them(
    tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    tell = rows_module.tell
    monkeypatch.setattr(rows_module, "tell", lambda mask, host: told.append(mask.equal(host)) or tell(mask, host))
    monkeypatch.setattr(training, "Collator", OnGpu)
    entry, _ = run_cell(tiny("task=rte", "method=propulsion", "training.fast_path=on", "training.max_steps=3"))
    assert entry["status"] == "success" and entry["cost"]["fast_path"] == "fused"
    assert len(told) > 3 and all(told)  # evaluation's too


# ---------------------------------------------------------------- on a GPU


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_inside_a_step_of_a_run(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start of a step to its end, gradient clipping and AdamW in it; log lines lie between steps."""
    watched = []

    def begin(meter: Meter, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= 3:
            watched.append(state.global_step)
            torch.cuda.set_sync_debug_mode("error")

    end = Meter.on_step_end

    def finish(meter: Meter, *args: Any, **kwargs: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        end(meter, *args, **kwargs)

    monkeypatch.setattr(Meter, "on_step_begin", begin)
    monkeypatch.setattr(Meter, "on_step_end", finish)
    try:
        words = ("training.fast_path=on", "training.precision=bf16", "training.max_steps=6")
        entry, _ = run_cell(tiny("task=rte", "method=propulsion", *words))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert entry["status"] == "success", entry["error"]
    assert watched == [3, 4, 5]


@pytest.mark.gpu
@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_flash_kernel_equals_the_reference_on_mixed_lengths(width: int, dtype: torch.dtype) -> None:
    lengths = torch.tensor([128, 1, 77, 16, 128, 5])[:, None]
    rows = flatten((torch.arange(128) < lengths).long().cuda(), 12)
    assert rows is not None
    attention = Attention(12, width**-0.5, 0.1, 1)
    qkv = torch.randn(rows.tokens, 3 * 12 * width, device="cuda", dtype=dtype)
    grad = torch.randn(rows.tokens, 12 * width, device="cuda", dtype=dtype)
    assert varlen.fits(qkv, 12) and varlen._compare(attention, qkv, rows, Workspace()) is None
    pairs = (
        (varlen.forward(attention, qkv, rows, None), attention.forward_by_groups(qkv, rows, None, Workspace())),
        (
            varlen.backward(attention, grad, qkv, rows, None),
            attention.backward_by_groups(grad, qkv, rows, None, Workspace()),
        ),
    )
    for (found, expected), parts in zip(pairs, (1, 3), strict=True):
        assert varlen._error(found, expected, parts) <= varlen.TOLERANCES[dtype]
    masks = Masks((3,))
    assert torch.equal(varlen.forward(attention, qkv, rows, masks), varlen.forward(attention, qkv, rows, masks))
    assert varlen._redrawing_error(attention, qkv, rows) <= varlen.TOLERANCES[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["propulsion", "ia3", "bitfit"])
def test_a_fused_minilm_in_bf16_differs_from_the_plain_path_by_rounding_alone(method: str) -> None:
    shape = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "num_hidden_layers": 6}
    model = draw(METHODS[method](tiny_classifier("bert", **shape, **NO_DROPOUT))).train().cuda()
    batch = {name: value.cuda() for name, value in ragged_batch().items()}

    def measured(bf16: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        return {"loss": loss.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}

    exact, plain = measured(False), measured(True)
    fast = {}
    for kernels in (True, False):
        path = find_path(propulsion.fast_path(model))
        assert path is not None
        path.varlen = kernels
        fast[kernels] = measured(True)
        word = "variable-length attention" if kernels else "attention by groups"
        assert path.used == 1 and path.attention == word

    def error(one: dict[str, torch.Tensor]) -> float:
        return sum(float((one[n] - exact[n]).norm() / exact[n].norm().clamp_min(1e-3)) for n in exact)

    assert error(fast[True]) < 1.5 * error(plain) and error(fast[False]) < 1.5 * error(plain)
    assert float((fast[True]["loss"] - plain["loss"]).abs()) < 2e-2


@pytest.mark.gpu
def test_the_layout_on_a_gpu_is_that_on_the_host() -> None:
    batch = ragged_batch()
    model = draw(METHODS["propulsion"](tiny_classifier("roberta", **NO_DROPOUT).double())).train().cuda()
    on_gpu = {name: value.cuda() for name, value in batch.items()}
    plain = results(model, on_gpu)
    rows_module.tell(on_gpu["attention_mask"], batch["attention_mask"])
    assert_equal(results(propulsion.fast_path(model), on_gpu), plain, 1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("lean", [False, True])
def test_nothing_waits_for_the_gpu_inside_a_fused_step(lean: bool) -> None:
    shape = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
    model = METHODS["propulsion"](tiny_classifier("bert", **shape)).train().cuda()
    propulsion.fast_path(model, lean)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    host = {name: value.pin_memory() for name, value in ragged_batch().items()}

    def step() -> None:
        batch = {name: value.to("cuda", non_blocking=True) for name, value in host.items()}
        rows_module.tell(batch["attention_mask"], host["attention_mask"])
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):  # compares the kernel, prepares weights
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
