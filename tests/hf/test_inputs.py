"""The arguments of a forward: what landmark attention cannot honour raises an error and is never ignored."""

import pytest
import torch
from families import family
from transformers import DynamicCache, GenerationConfig

import landmark
from landmark.hf.compat import cache_kwargs

IDS = torch.randint(3, 61, (1, 40), generator=torch.Generator().manual_seed(1))


def converted(name="llama"):
    return landmark.convert(family(name), block_size=5, retrieve=2, local_blocks=1)


def read(model):
    with torch.no_grad():
        return model(input_ids=IDS, **cache_kwargs(model, landmark.LandmarkCache(model.config)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output_attentions": True}, "output_attentions.*trace"),
        ({"position_ids": torch.arange(40)[None] * 2}, "jump from 0 to 2"),
        ({"position_ids": torch.zeros(1, 39, dtype=torch.long)}, "one for each token"),
        ({"cu_seq_lens_q": torch.tensor([0, 20, 40])}, "without position_ids"),
        ({"attention_mask": torch.ones(1, 1, 40, 40)}, r"takes \[batch, tokens\]"),
        ({"input_ids": IDS[:, :0]}, "at least one token"),
        ({"landmark_retreive": 4}, "landmark_retreive: unknown to a converted model, which takes landmark_"),
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
