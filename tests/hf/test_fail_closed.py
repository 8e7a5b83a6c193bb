"""A transformers that calls models otherwise is refused: never an answer that did not go through memory."""

import pytest
import torch
from families import build, family
from transformers import DynamicCache, GenerationConfig, GenerationMixin
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


def rename_cache_argument(original):
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
    (LlamaModel, rename_cache_argument, UnsupportedRelease, "takes no cache under the names.*" + VERSIONS),
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
    original = landmark.hf.calls.landmark_attention
    monkeypatch.setattr("landmark.hf.calls.landmark_attention", lambda *a, **k: original(*a, **k) * 1.1)
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output_attentions": True}, "output_attentions.*trace"),
        ({"position_ids": torch.arange(40)[None] * 2}, "jump from 0 to 2"),
        ({"position_ids": torch.zeros(1, 39, dtype=torch.long)}, "one for each token"),
        ({"cu_seq_lens_q": torch.tensor([0, 20, 40])}, "without position_ids"),
        ({"attention_mask": torch.ones(1, 1, 40, 40)}, r"takes \[batch, tokens\]"),
        ({"input_ids": IDS[:, :0]}, "at least one token"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        converted()(**{"input_ids": IDS} | options)


def test_positions_that_begin_again_keep_documents_apart():
    model = converted()
    positions = torch.cat((torch.arange(17), torch.arange(23)))[None]
    segments = torch.tensor([[0] * 17 + [1] * 23])
    with torch.no_grad():
        found = model(input_ids=IDS, position_ids=positions).logits
        expected = model(input_ids=IDS, landmark_documents=segments).logits
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="one text a row"):
        model.eval()(input_ids=IDS, position_ids=positions, use_cache=True)
    with pytest.raises(ValueError, match="pass one of them"):
        model(input_ids=IDS, position_ids=positions, landmark_documents=segments)


def test_positions_counted_over_padding_are_those_of_one_document():
    model, mask = converted(), torch.ones(1, 40, dtype=torch.long)
    mask[0, :6] = 0
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    with torch.no_grad():
        found = model(input_ids=IDS, attention_mask=mask, position_ids=positions).logits
        assert torch.equal(found, model(input_ids=IDS, attention_mask=mask).logits)


def test_a_loss_has_every_gradient_or_an_error():
    model = converted().train()
    with pytest.warns(UserWarning, match="no effect in training"):
        model(input_ids=IDS, labels=IDS, use_cache=True).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    loss = model(input_ids=IDS, labels=IDS, **cache_kwargs(model, landmark.LandmarkCache(model.config))).loss
    with pytest.raises(ValueError, match="has no gradients"):
        loss.backward()


@pytest.mark.parametrize("step", ["prepare_inputs_for_generation", "_update_model_kwargs_for_generation"])
def test_a_generation_that_loses_the_cache_between_steps_is_noticed(step, monkeypatch):
    model = converted()
    original = getattr(GenerationMixin, step)

    def forgetful(self, *args, **kwargs):
        return {name: value for name, value in original(self, *args, **kwargs).items() if name not in CACHE_NAMES}

    monkeypatch.setattr(GenerationMixin, step, forgetful)
    with pytest.raises(ValueError, match=r"position_ids do not continue|columns before the input|columns more than"):
        model.generate(IDS, max_new_tokens=3, do_sample=False, eos_token_id=None)


@pytest.mark.parametrize("options", [{"cache_implementation": "offloaded"}, {"generation_config": "quantized"}])
def test_another_kind_of_cache_is_not_ignored(options):
    if "generation_config" in options:
        options = {"generation_config": GenerationConfig(cache_implementation=options["generation_config"])}
    with pytest.raises(ValueError, match=r"cache_implementation is '(offloaded|quantized)'.*leave"):
        converted().generate(IDS, **options)


def test_a_foreign_cache_that_stayed_empty_is_not_taken_for_what_was_read():
    model, cache = converted(), DynamicCache()
    with torch.no_grad():
        read_so_far = model(input_ids=IDS[:, :20], **cache_kwargs(model, cache)).past_key_values
        assert read_so_far.get_seq_length() == 20
        with pytest.raises(ValueError, match="DynamicCache is empty, because"):
            model(input_ids=IDS[:, 20:], **cache_kwargs(model, cache))


def test_a_cache_for_other_blocks_is_refused():
    model = converted()
    other = landmark.LandmarkCache(landmark.convert(family("llama"), block_size=7, retrieve=2).config)
    with pytest.raises(ValueError, match="made for another model: block_size 7, not 5"):
        model(input_ids=IDS, **cache_kwargs(model, other))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.zeros(1, 40), "neither 1 nor 0|has no 1 at all"),  # numbers to be added to scores
        (torch.tensor([[1] * 20 + [2] * 20]), "neither 1 nor 0"),  # numbers of documents
        (torch.ones(1, 50), "10 columns more than the input"),
    ],
)
def test_masks_that_mean_something_else_are_refused(mask, said):
    with pytest.raises(ValueError, match=said):
        converted()(input_ids=IDS, attention_mask=mask)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attention_mask": torch.ones(1, 30)}, "10 columns before the input, and the cache has read 20"),
        ({"attention_mask": torch.tensor([[0] + [1] * 39])}, "hides or shows other tokens"),
        ({"position_ids": torch.arange(20)[None]}, "do not continue the 20 tokens"),
    ],
)
def test_an_input_goes_on_where_the_cache_stands(options, said):
    model = converted()
    cache = landmark.read(model, IDS[:, :20])
    with torch.no_grad(), pytest.raises(ValueError, match=said):
        model(input_ids=IDS[:, 20:], **options, **cache_kwargs(model, cache))
    with torch.no_grad():  # and nothing was read of the refused ones
        expected = model(input_ids=IDS, **cache_kwargs(model, landmark.LandmarkCache(model.config))).logits[:, 20:]
        mask, places = torch.ones(1, 40), torch.arange(20, 40)[None]
        found = model(
            input_ids=IDS[:, 20:], attention_mask=mask, position_ids=places, **cache_kwargs(model, cache)
        ).logits
    assert found.shape == expected.shape


def test_masks_are_known_of_columns_long_gone():
    model = converted()
    cache = landmark.LandmarkCache(model.config, chunk_size=5)
    mask = torch.ones(2, 200, dtype=torch.long)
    mask[1, :9] = 0
    ids = IDS.repeat(2, 5)
    with torch.no_grad():
        for start in range(0, 200, 5):
            model(
                input_ids=ids[:, start : start + 5], attention_mask=mask[:, : start + 5], **cache_kwargs(model, cache)
            )
        cache.reorder_cache(torch.tensor([1, 0]))
        swapped = torch.cat((mask.flip(0), torch.ones(2, 1, dtype=torch.long)), 1)
        model(input_ids=ids[:, :1], attention_mask=swapped, **cache_kwargs(model, cache))
        with pytest.raises(ValueError, match="hides or shows"):
            model(input_ids=ids[:, :1], attention_mask=torch.ones(2, 202), **cache_kwargs(model, cache))


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_tuples_have_no_landmarks_either(chunk_size):
    model = converted()
    options = {"output_hidden_states": True}
    if chunk_size is not None:
        options |= cache_kwargs(model, landmark.LandmarkCache(model.config, chunk_size=chunk_size))
    with torch.no_grad():
        layers = model.model(input_ids=IDS, return_dict=False, **options)[-1]
    assert [tuple(layer.shape) for layer in layers] == [(1, 40, model.config.hidden_size)] * len(layers)


def test_hooks_of_accelerate_do_not_go_around_the_model():
    hooks = pytest.importorskip("accelerate.hooks")
    model = family("llama")
    hooks.add_hook_to_module(model, hooks.AlignDevicesHook(execution_device="cpu"))
    landmark.convert(model, block_size=5, landmark_id=3)
    with torch.no_grad():
        logits = model(input_ids=IDS.clamp(min=4)).logits
    assert logits.log_softmax(-1).min() > -150


def test_the_loss_of_routers_is_one_of_tokens_alone():
    model = landmark.convert(family("mixtral"), block_size=5, retrieve=2)
    mask = (torch.arange(40) < 31).long()[None]
    with torch.no_grad():
        options = {"attention_mask": mask, "output_router_logits": True}
        out = model(input_ids=IDS, labels=IDS, **options)
        cache = landmark.LandmarkCache(model.config, chunk_size=7)
        read = model(input_ids=IDS, **options, **cache_kwargs(model, cache)).router_logits
    assert {len(logits) for logits in (*out.router_logits, *read)} == {40}
    assert out.aux_loss.isfinite()
