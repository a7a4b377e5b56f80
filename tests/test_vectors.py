"""Several vectors of one layer, pooled before the power: values, gradients, counts, saving, merging, the fast path."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn import functional

from baselines import apply_method
from propulsion import PropulsionConfig, fast_path
from propulsion.fast import find_path
from propulsion.harness import record
from propulsion.harness.backbones import build_empty
from propulsion.harness.errors import UserError
from propulsion.harness.optimizing import parameter_groups
from propulsion.tuner.pooling import POOLINGS, pool
from tests.conftest import ROOT, ComposeCell, compose_settings
from tests.test_tuner import draw_z, logits, wrapped, zs
from tests.tiny_models import tiny_batch, tiny_classifier

BY_HAND = {  # of the columns (1, 3) and (-2, 2)
    "avg": [2.0, 0.0],
    "max": [3.0, 2.0],
    "min": [1.0, -2.0],
    "l2": [5.0**0.5, 2.0],
}


def tuned(family: str = "bert", **options: Any) -> Any:
    return get_peft_model(tiny_classifier(family), PropulsionConfig(task_type="SEQ_CLS", **options))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_by_hand(pooling: str) -> None:
    z = torch.tensor([[1.0, -2.0], [3.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(pool(z, pooling), torch.tensor(BY_HAND[pooling], dtype=torch.float64))
    assert pool(z[0], pooling) is z[0] or torch.equal(pool(z[0], pooling), z[0])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("vectors", range(2, 10))
def test_vectors_that_start_at_one_leave_the_model_as_it_is(pooling: str, vectors: int) -> None:
    assert torch.equal(pool(torch.ones(vectors, 5), pooling), torch.ones(5))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("degree", [1, 3, 15])
def test_a_layer_is_the_formula_with_the_pooled_vector(pooling: str, degree: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, 3).double()
    layer = wrapped(copy.deepcopy(linear), degree=degree, num_vectors=3, pooling=pooling, init_spread=0.1)
    z = layer.propulsion_z["default"]
    assert z.shape == (3, 3) and z.dtype == torch.float64
    x = torch.randn(5, 4, dtype=torch.float64)
    own = z.detach().clone().requires_grad_()
    by_hand = {
        "avg": (own[0] + own[1] + own[2]) / 3,
        "max": torch.maximum(torch.maximum(own[0], own[1]), own[2]),
        "min": torch.minimum(torch.minimum(own[0], own[1]), own[2]),
        "l2": ((own[0] ** 2 + own[1] ** 2 + own[2] ** 2) / 3).sqrt(),
    }[pooling]
    expected = functional.linear(x, linear.weight, linear.bias) * by_hand**degree
    found = layer(x)
    torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(z.grad, own.grad)
    layer.merge()
    torch.testing.assert_close(layer(x), expected.detach())


def test_a_single_vector_has_the_names_and_shapes_it_always_had() -> None:
    model = tuned(degree=3)
    assert {tuple(z.shape) for z in zs(model).values()} <= {(16,), (24,)}
    several = tuned(degree=3, num_vectors=4)
    assert zs(several).keys() == zs(model).keys()
    trained, several_trained = (m.get_nb_trainable_parameters()[0] for m in (model, several))
    adapter = sum(z.numel() for z in zs(model).values())
    assert several_trained - trained == 3 * adapter


@pytest.mark.parametrize("pooling", POOLINGS)
def test_save_load_merge_and_disable(pooling: str, tmp_path: Path) -> None:
    base = logits(tiny_classifier("bert"))
    model = tuned(num_vectors=3, pooling=pooling)
    draw_z(model)
    found = logits(model)
    assert not torch.allclose(found, base)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(tiny_classifier("bert"), str(tmp_path)).eval()
    assert torch.equal(logits(loaded), found)
    assert loaded.peft_config["default"].pooling == pooling and loaded.peft_config["default"].num_vectors == 3
    torch.testing.assert_close(logits(loaded.merge_and_unload()), found, rtol=1e-5, atol=1e-6)


def test_adapters_with_other_numbers_of_vectors_multiply() -> None:
    layer = wrapped(nn.Linear(4, 3), degree=2, num_vectors=3, pooling="max", init_spread=0.1)
    layer.update_layer("more", PropulsionConfig(degree=3, init_spread=0.1))
    layer.set_adapter(["default", "more"])
    x = torch.randn(5, 4)
    scale = layer.propulsion_z["default"].amax(0) ** 2 * layer.propulsion_z["more"] ** 3
    torch.testing.assert_close(layer(x), layer.base_layer(x) * scale)
    layer.delete_adapter("default")
    assert set(layer.pooling) == set(layer.degree) == {"more"}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_fast_path_gives_the_same_losses_and_gradients(pooling: str) -> None:
    plain = tuned(num_vectors=3, pooling=pooling, init_spread=0.02)
    fused = fast_path(copy.deepcopy(plain))
    losses = [model(**tiny_batch()).loss for model in (plain, fused)]
    path = find_path(fused)
    for loss in losses:
        loss.backward()
    assert path is not None and path.used == 1 and path.plain == 0
    torch.testing.assert_close(losses[0], losses[1])
    for (name, z), other in zip(zs(plain).items(), zs(fused).values(), strict=True):
        torch.testing.assert_close(z.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_equal_vectors_stay_equal_and_their_average_moves_as_one_does() -> None:
    """Why several vectors that all start at 1 add nothing under Adam: each takes the single one's steps."""
    models = [tuned(degree=5), tuned(degree=5, num_vectors=4)]
    for model in models:
        adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3, eps=1e-16)
        for _ in range(5):
            adam.zero_grad()
            model(**tiny_batch()).loss.backward()
            adam.step()
    for one, four in zip(*(zs(model).values() for model in models), strict=True):
        assert torch.equal(four, four[:1].expand_as(four))
        torch.testing.assert_close(four[0], one, rtol=1e-4, atol=1e-5)


def test_spread_is_what_was_asked_for_and_nothing_is_drawn_without() -> None:
    torch.manual_seed(0)
    wide = wrapped(nn.Linear(2, 20_000), init_spread=0.05).propulsion_z["default"]
    assert abs(wide.mean().item() - 1) < 0.002 and abs(wide.std().item() - 0.05) < 0.002
    linear = nn.Linear(2, 3)
    before = torch.random.get_rng_state()
    wrapped(linear, num_vectors=2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_vectors": 0}, "num_vectors must be an integer of at least 1, not 0"),
        ({"num_vectors": 2.0}, "num_vectors must be an integer of at least 1, not 2.0"),
        ({"pooling": "mean"}, "pooling must be one of avg, max, min, l2, not 'mean'"),
        ({"init_spread": -0.1}, "init_spread must be 0 or more, not -0.1"),
        ({"init_spread": float("nan")}, "init_spread must be 0 or more, not nan"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PropulsionConfig(**options)


# ---------------------------------------------------------------- in the benchmark


def test_the_defaults_leave_keys_alone_and_others_do_not(tiny: ComposeCell) -> None:
    cells = [tiny(), tiny("method.num_vectors=1", "method.pooling=avg"), tiny("method.num_vectors=2")]
    keys = [record.cell_key(cell.config, "rows") for cell in cells]
    assert keys[0] == keys[1] != keys[2]


def test_a_method_that_has_no_vectors_refuses_them() -> None:
    for method in ("lora", "bitfit"):
        settings = compose_settings("experiment=tiny", f"method={method}", "method.num_vectors=2")
        with pytest.raises(UserError, match=f"method {method} has no num_vectors"):
            apply_method(build_empty(settings.backbone, settings.task), settings.method, settings.backbone)


def test_weight_decay_is_for_no_stack_of_vectors(tiny: ComposeCell) -> None:
    from baselines import partition

    settings = tiny("method.num_vectors=3", "training.weight_decay=0.1")
    model = apply_method(build_empty(settings.backbone, settings.task), settings.method, settings.backbone)
    parts = partition(model, settings.backbone.head, True)
    decayed = [g for g in parameter_groups(model, parts, settings.training) if g["weight_decay"]]
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed and not any("propulsion_z" in names[id(p)] for g in decayed for p in g["params"])


def test_the_tuner_is_registered_also_after_somebody_only_asked_whether_peft_is_there() -> None:
    code = (
        "import propulsion, importlib.util; importlib.util.find_spec('peft'); import peft.mapping as m;"
        "assert 'PROPULSION' in m.PEFT_TYPE_TO_CONFIG_MAPPING"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
