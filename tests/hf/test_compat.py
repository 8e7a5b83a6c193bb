"""A transformers that calls models otherwise is refused: never an answer that did not go through memory."""

import pytest
import torch
from families import build, family
from transformers import GenerationMixin
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaForCausalLM, LlamaModel

import landmark
from landmark.hf.compat import CACHE_NAMES, UnsupportedRelease, cache_kwargs

IDS = torch.randint(3, 61, (1, 40), generator=torch.Generator().manual_seed(1))
VERSIONS = r"installed are transformers \d+\.\d+"


def converted(name="llama"):
    return landmark.convert(family(name), block_size=5, retrieve=2, local_blocks=1)


def read(model):
    with torch.no_grad():
        return model(input_ids=IDS, **cache_kwargs(model, landmark.LandmarkCache(model.config)))


def cache_under_another_name(original):
    def forward(self, input_ids=None, key_value_memory=None, **kwargs):
        return original(self, input_ids=input_ids, **kwargs)

    return forward


def attention_without_keyword(original):
    def forward(self, *args, landmark_call=None, **kwargs):
        return original(self, *args, **kwargs)

    return forward


def attention_called_twice(original):
    def forward(self, *args, **kwargs):
        original(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    return forward


def forward_that_loses_the_cache(original):
    def forward(self, input_ids=None, past_key_values=None, cache=None, **kwargs):
        return original(self, input_ids=input_ids, **kwargs | {"use_cache": False})

    return forward


def forward_that_reads_twice(original):
    def forward(self, input_ids=None, past_key_values=None, cache=None, **kwargs):
        reading = cache_kwargs(self, cache if past_key_values is None else past_key_values)
        self.model(input_ids=input_ids, **reading)
        return original(self, input_ids=input_ids, **kwargs | reading)

    return forward


MUTATIONS = [
    (LlamaModel, cache_under_another_name, UnsupportedRelease, "takes no cache under the names.*" + VERSIONS),
    (
        LlamaAttention,
        attention_without_keyword,
        ValueError,
        "drops keyword arguments.*" + VERSIONS + "|not hand keyword arguments on",
    ),
    (LlamaAttention, attention_called_twice, ValueError, "more than once a layer|attended 2 times.*" + VERSIONS),
    (LlamaForCausalLM, forward_that_reads_twice, UnsupportedRelease, "or more than once.*" + VERSIONS),
    (LlamaForCausalLM, forward_that_loses_the_cache, UnsupportedRelease, "read nothing through.*" + VERSIONS),
]


@pytest.mark.parametrize(("part", "mutation", "error", "said"), MUTATIONS)
def test_a_converted_model_does_not_answer(part, mutation, error, said, monkeypatch):
    model = converted()
    monkeypatch.setattr(part, "forward", mutation(part.forward))
    with pytest.raises((UnsupportedRelease, ValueError), match=said):
        read(model)


@pytest.mark.parametrize(("part", "mutation", "error", "said"), MUTATIONS[:3])
def test_a_model_is_not_converted_and_left_as_it_was(part, mutation, error, said, monkeypatch):
    model = family("llama")
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    with monkeypatch.context() as patch:
        patch.setattr(part, "forward", mutation(part.forward))
        with pytest.raises(error, match=said):
            landmark.convert(model, block_size=5)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, expected)
    assert not hasattr(model.config, "landmark")
    landmark.convert(model, block_size=5, retrieve=2)
    read(model)


def test_another_attention_set_on_the_base_model_is_noticed_and_healed():
    model, expected = converted(), read(converted()).logits
    model.model.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedRelease, match=r"set_attn_implementation.*convert"):
        model(input_ids=IDS)
    landmark.convert(model)
    torch.testing.assert_close(read(model).logits, expected)


def test_outputs_that_differ_at_conversion_are_refused(monkeypatch):
    model = family("llama")
    original = landmark.hf.calls.grouped_attention
    monkeypatch.setattr("landmark.hf.calls.grouped_attention", lambda *a, **k: original(*a, **k) * 1.1)
    with pytest.raises(ValueError, match="other hidden states with landmark attention"):
        landmark.convert(model, block_size=5)


def test_a_cache_that_reads_something_else_is_refused(monkeypatch):
    model = family("llama")
    attend = landmark.memory.LayerMemory.attend
    monkeypatch.setattr("landmark.memory.LayerMemory.attend", lambda *a, **k: attend(*a, **k) * 1.1)
    with pytest.raises(ValueError, match="something else through a cache"):
        landmark.convert(model, block_size=5)


def test_layers_that_rotate_by_themselves_are_not_taken_for_layers_without_rotation(monkeypatch):
    original = LlamaAttention.forward
    model = family("llama")

    def forward(self, hidden_states, position_embeddings=None, **kwargs):
        places = torch.arange(hidden_states.shape[1])[None]
        return original(self, hidden_states, model.model.rotary_emb(hidden_states, places), **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", forward)
    with pytest.raises(ValueError, match="layer 0 of LlamaForCausalLM rotates by code of its own"):
        landmark.convert(model, block_size=5)


def test_attention_that_is_called_twice_by_design_is_refused():
    with pytest.raises(ValueError, match="more than once a layer"):
        landmark.convert(build("diffllama", {}), block_size=5)


def test_a_forward_that_broke_off_spoils_its_cache_visibly(monkeypatch):
    model, cache = converted(), landmark.LandmarkCache(converted().config)
    with torch.no_grad():
        model(input_ids=IDS, **cache_kwargs(model, cache))
        before = cache.fork()
        with monkeypatch.context() as patch:
            patch.setattr(LlamaAttention, "forward", lambda *args, **kwargs: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(input_ids=IDS, **cache_kwargs(model, cache))
        for call in (lambda: model(input_ids=IDS, **cache_kwargs(model, cache)), cache.fork):
            with pytest.raises(ValueError, match=r"interrupted.*new cache"):
                call()
        model(input_ids=IDS, **cache_kwargs(model, before))


@pytest.mark.parametrize("step", ["prepare_inputs_for_generation", "_update_model_kwargs_for_generation"])
def test_a_generation_that_loses_the_cache_between_steps_is_noticed(step, monkeypatch):
    model = converted()
    original = getattr(GenerationMixin, step)

    def forgetful(self, *args, **kwargs):
        return {name: value for name, value in original(self, *args, **kwargs).items() if name not in CACHE_NAMES}

    monkeypatch.setattr(GenerationMixin, step, forgetful)
    with pytest.raises(ValueError, match=r"position_ids do not continue|columns before the input|columns more than"):
        model.generate(IDS, max_new_tokens=3, do_sample=False, eos_token_id=None)


def test_hooks_of_accelerate_do_not_go_around_the_model():
    hooks = pytest.importorskip("accelerate.hooks")
    model = family("llama")
    hooks.add_hook_to_module(model, hooks.AlignDevicesHook(execution_device="cpu"))
    landmark.convert(model, block_size=5, landmark_id=3)
    with torch.no_grad():
        logits = model(input_ids=IDS.clamp(min=4)).logits
    assert logits.log_softmax(-1).min() > -150
