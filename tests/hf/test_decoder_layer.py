"""Decoder layers by compiled loops: what transformers computes, where it is the same, and transformers elsewhere."""

import copy
import pickle
from typing import Any

import pytest
import torch
from families import family
from torch import nn
from torch.nn.utils import parametrize

import landmark
from landmark.hf import decoder_layer
from landmark.ops import parallel

IDS = torch.arange(40)[None] % 50 + 2
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def converted(name: str, dtype: torch.dtype = torch.float32, **changes) -> Any:
    """A model whose biases and norms are not those it was born with."""
    model: Any = family(name, **changes)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return landmark.convert(model.to(dtype).eval(), block_size=5, retrieve=2)


@torch.no_grad()
def decoded(model) -> torch.Tensor:
    """Logits of ten steps behind thirty tokens, two of which complete a block."""
    cache = landmark.LandmarkCache(model.config)
    model(input_ids=IDS[:, :30], past_key_values=cache, use_cache=True)
    steps = [model(input_ids=step, past_key_values=cache, use_cache=True).logits for step in IDS[:, 30:].split(1, 1)]
    return torch.cat(steps, 1)


@pytest.fixture
def by_transformers(monkeypatch):
    """What a model gives when no layer is served."""

    def run(model) -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(decoder_layer, "_loops", lambda *_: None)
            return decoded(model)

    return run


def served(model) -> list[bool]:
    """For each layer, whether it was last computed by loops."""
    found = [decoder_layer._LOOPS.get(layer) for layer in model.base_model.layers]
    return [loops is not None and loops.current() for loops in found]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_loops_give_what_transformers_gives(dtype, by_transformers):
    model = converted("llama", dtype, attention_bias=True, mlp_bias=True)
    found, expected = decoded(model), by_transformers(model)
    assert all(served(model))
    assert (found - expected).abs().max() < TOLERANCE[dtype] * expected.abs().max()


def test_float64_stays_exact(by_transformers):
    """The norms of transformers are computed in float32: any other order of their sums would show."""
    model = converted("llama", torch.float64)
    torch.testing.assert_close(decoded(model), by_transformers(model), atol=1e-12, rtol=1e-12)
    assert not any(served(model))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_bit(threads, monkeypatch):
    model = converted("llama")
    expected = decoded(model)
    monkeypatch.setattr(parallel, "_WORTH_A_PART", 0.01)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(decoded(model), expected)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "changes", "is_served"),
    [
        ("mistral", {}, True),
        ("qwen2", {}, True),
        ("gemma", {}, False),
        ("granite", {"residual_multiplier": 0.5}, False),
        ("qwen3", {}, False),
        ("mixtral", {}, False),
    ],
)
def test_only_layers_of_the_usual_form_are_served(name, changes, is_served, by_transformers):
    """Gemma has the same parts and computes other norms; granite scales what is added to the residual."""
    model = converted(name, **changes)
    torch.testing.assert_close(decoded(model), by_transformers(model), atol=1e-3, rtol=1e-3)
    assert served(model) == [is_served] * len(model.base_model.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"hidden_act": "quick_gelu"}),
        ("granite", {"residual_multiplier": 0.97}),
    ],
)
def test_small_weights_and_short_numbers_hide_no_other_form(name, changes, dtype):
    """Next to the residual what these layers add is small, and so is the difference; with larger weights it is not."""
    model: Any = landmark.convert(family(name, **changes).to(dtype).eval(), block_size=5, retrieve=2)
    decoded(model)
    assert not any(served(model))


def test_hidden_states_that_were_asked_for_once_do_not_end_the_loops(by_transformers):
    """transformers leaves the hooks that recorded them, those of attentions too."""
    model = converted("llama")
    with torch.no_grad():
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert len(states) == len(model.base_model.layers) + 1
    torch.testing.assert_close(decoded(model), by_transformers(model), atol=1e-4, rtol=1e-4)
    assert all(served(model))
    hook = model.base_model.layers[1].self_attn.register_forward_hook(lambda *_: None)
    decoded(model)
    assert served(model) == [True, False, True]
    hook.remove()
    decoded(model)
    assert all(served(model))


def test_weights_that_changed_are_the_ones_read(by_transformers):
    model = converted("llama")
    before = decoded(model)
    layer = model.base_model.layers[1]
    with torch.no_grad():
        layer.mlp.up_proj.weight *= 2  # in place
        layer.self_attn.o_proj.weight.data = layer.self_attn.o_proj.weight * 2  # elsewhere
        layer.input_layernorm.weight = torch.nn.Parameter(layer.input_layernorm.weight * 2)
    after = decoded(model)
    assert not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(after, by_transformers(model), atol=1e-4, rtol=1e-4)
    assert all(served(model))


def test_weights_that_are_turned_where_they_lie_are_read_so(by_transformers):
    model = converted("llama")
    before = decoded(model)
    weight = model.base_model.layers[1].self_attn.o_proj.weight
    weight.data = weight.data.T
    after = decoded(model)
    assert not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(after, by_transformers(model), atol=1e-4, rtol=1e-4)


def test_a_forward_that_its_class_has_got_since_is_called(by_transformers, monkeypatch):
    model = converted("llama")
    before = decoded(model)
    network = type(model.base_model.layers[1].mlp)
    monkeypatch.setattr(network, "forward", lambda self, x: 3 * self.down_proj(self.up_proj(x)))
    after = decoded(model)
    assert not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(after, by_transformers(model), atol=1e-4, rtol=1e-4)


def test_a_layer_that_changed_itself_is_computed_so(by_transformers, monkeypatch):
    model = converted("granite", residual_multiplier=1.0)
    before = decoded(model)
    assert all(served(model))
    model.base_model.layers[1].residual_multiplier = 0.5
    after = decoded(model)
    assert served(model) == [True, False, True]
    assert not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(after, by_transformers(model), atol=1e-4, rtol=1e-4)
    kind: Any = type(model.base_model.layers[0]).__mro__[2]
    usual = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *args, **options: 2 * usual(*args, **options))
    torch.testing.assert_close(decoded(model), by_transformers(model), atol=1e-4, rtol=1e-4)
    assert not any(served(model))


@torch.no_grad()
@pytest.mark.parametrize("decoded_before", [True, False])
def test_hooks_of_all_modules_are_called(decoded_before, by_transformers):
    model, seen = converted("llama"), set()
    if decoded_before:
        decoded(model)
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.add(module))
    try:
        cache = landmark.read(model, IDS[:, :30])
        seen.clear()
        model(input_ids=IDS[:, 30:31], past_key_values=cache)
    finally:
        hook.remove()
    assert seen >= {part for layer in model.base_model.layers for part in (layer.mlp, layer.self_attn.o_proj)}
    decoded(model)
    assert all(served(model))


class Scaled(nn.Module):
    """Parametrization of a weight: times a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.factor


@pytest.mark.parametrize("decoded_before", [True, False])
def test_a_weight_that_is_computed_is_computed_each_time(decoded_before, by_transformers):
    model = converted("llama")
    if decoded_before:
        decoded(model)
    scaled: Any = Scaled()
    parametrize.register_parametrization(model.base_model.layers[1].mlp.up_proj, "weight", scaled)
    before = decoded(model)
    with torch.no_grad():
        scaled.factor.fill_(3)
    after = decoded(model)
    assert not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(after, by_transformers(model), atol=1e-4, rtol=1e-4)
    assert served(model) == [True, False, True]


@pytest.mark.parametrize(("part", "number"), [("self_attn", "scaling"), ("input_layernorm", "variance_epsilon")])
def test_numbers_that_changed_are_the_ones_computed_with(part, number, by_transformers):
    model = converted("llama")
    before = decoded(model)
    setattr(model.base_model.layers[1].get_submodule(part), number, 1.0)
    after = decoded(model)
    assert not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(after, by_transformers(model), atol=1e-4, rtol=1e-4)
    assert all(served(model))


@pytest.mark.parametrize("part", ["mlp", "self_attn.v_proj", "input_layernorm"])
def test_hooks_are_called(part, by_transformers):
    model = converted("llama")
    decoded(model)
    model.base_model.layers[0].get_submodule(part).register_forward_hook(
        lambda module, args, out: (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0
    )
    torch.testing.assert_close(decoded(model), by_transformers(model), atol=1e-5, rtol=1e-5)
    assert served(model) == [False, True, True]


def test_a_hook_before_attention_is_called(by_transformers):
    model = converted("llama")
    decoded(model)
    attention = model.base_model.layers[2].self_attn
    attention.register_forward_pre_hook(
        lambda module, args, options: (args, options | {"hidden_states": options["hidden_states"] * 2}),
        with_kwargs=True,
    )
    torch.testing.assert_close(decoded(model), by_transformers(model), atol=1e-5, rtol=1e-5)
    assert served(model) == [True, True, False]


def test_copies_and_pickles_compute_the_same():
    model = converted("llama")
    expected = decoded(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.base_model.layers[0]) is type(model.base_model.layers[0])
        assert torch.equal(decoded(other), expected)


def test_weights_that_moved_are_not_kept():
    model = converted("llama")
    decoded(model)
    assert all(served(model))
    model.to(torch.bfloat16)
    assert not any(layer in decoder_layer._LOOPS for layer in model.base_model.layers)


def test_training_is_that_of_transformers(monkeypatch):
    monkeypatch.setattr(decoder_layer, "_loops", lambda *_: pytest.fail("loops have no gradients"))
    model = converted("llama").train()
    model(input_ids=IDS[:, :3], labels=IDS[:, :3]).loss.backward()
    assert model.base_model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0
