"""A transformers that calls models otherwise is refused: never an answer that did not go through memory."""

import pytest
import torch
from families import build, family
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaForCausalLM, LlamaModel

import landmark
from landmark.hf.compat import UnsupportedRelease, through

IDS = torch.randint(3, 61, (1, 40), generator=torch.Generator().manual_seed(1))
VERSIONS = r"installed are transformers \d+\.\d+"


def converted(name="llama"):
    return landmark.convert(family(name), block_size=5, top_k=2, local_blocks=1)


def read(model):
    with torch.no_grad():
        return model(input_ids=IDS, **through(model, landmark.LandmarkCache(model.config)))


def renamed_cache(original):
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


MUTATIONS = [
    (LlamaModel, renamed_cache, UnsupportedRelease, "takes no cache under the names.*" + VERSIONS),
    (
        LlamaAttention,
        attention_without_keyword,
        ValueError,
        "drops keyword arguments.*" + VERSIONS + "|not hand keyword arguments on",
    ),
    (LlamaAttention, attention_called_twice, ValueError, "more than once a layer|attended 2 times.*" + VERSIONS),
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
    landmark.convert(model, block_size=5, top_k=2)
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
    original = landmark.hf.attention.landmark_attention
    monkeypatch.setattr("landmark.hf.attention.landmark_attention", lambda *a, **k: original(*a, **k) * 1.1)
    with pytest.raises(ValueError, match="other hidden states with landmark attention"):
        landmark.convert(model, block_size=5)


def test_a_cache_that_reads_something_else_is_refused(monkeypatch):
    model = family("llama")
    attend = landmark.memory.LayerMemory.attend
    monkeypatch.setattr("landmark.memory.LayerMemory.attend", lambda *a, **k: attend(*a, **k) * 1.1)
    with pytest.raises(ValueError, match="something else through a cache"):
        landmark.convert(model, block_size=5)


def test_attention_that_is_called_twice_by_design_is_refused():
    with pytest.raises(ValueError, match="more than once a layer"):
        landmark.convert(build("diffllama", {}), block_size=5)


def test_a_forward_that_broke_off_spoils_its_cache_visibly(monkeypatch):
    model, cache = converted(), landmark.LandmarkCache(converted().config)
    with torch.no_grad():
        model(input_ids=IDS, **through(model, cache))
        before = cache.fork()
        with monkeypatch.context() as patch:
            patch.setattr(LlamaAttention, "forward", lambda *args, **kwargs: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(input_ids=IDS, **through(model, cache))
        for call in (lambda: model(input_ids=IDS, **through(model, cache)), cache.fork):
            with pytest.raises(ValueError, match=r"broke off.*new cache"):
                call()
        model(input_ids=IDS, **through(model, before))


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
        expected = model(input_ids=IDS, landmark_segments=segments).logits
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="one text a row"):
        model.eval()(input_ids=IDS, position_ids=positions, use_cache=True)
    with pytest.raises(ValueError, match="pass one of them"):
        model(input_ids=IDS, position_ids=positions, landmark_segments=segments)


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
    loss = model(input_ids=IDS, labels=IDS, **through(model, landmark.LandmarkCache(model.config))).loss
    with pytest.raises(ValueError, match="has no gradients"):
        loss.backward()
