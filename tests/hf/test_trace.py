"""What a trace tells of opened blocks: their mean gates."""

import pytest
import torch
from families import family
from transformers import AutoTokenizer

import landmark
from landmark.data.tokenizer import train_tokenizer
from landmark.hf.tokenizer import encode
from landmark.ops.retrieved import join_retrieved, retrieved_attention

IDS = torch.randint(3, 61, (2, 90), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def model():
    model = family("llama")
    with torch.no_grad():  # random weights of the usual size attend to everything alike
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(8)
    return landmark.convert(model, block_size=5, retrieve=2, local_blocks=1)


def traced(model, threshold, mask=None):
    """A trace of all but the first 40 columns."""
    cache = landmark.LandmarkCache(model.config, miss_threshold=threshold)
    mask = torch.ones_like(IDS) if mask is None else mask
    with torch.no_grad():
        for start, stop in ((0, 40), (40, 70), (70, 90)):
            model(input_ids=IDS[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache)
            if start == 0:
                cache.start_trace()
    return cache.trace()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6])
def test_a_weight_is_the_mean_over_all_queries(model, threshold):
    trace = traced(model, threshold)
    layers, heads, queries = len(trace.blocks), 4, 50 + 10  # tokens, and landmarks of their blocks
    opened = torch.stack([(trace.blocks[layer][1] >= 0).any(-1) for layer in trace.blocks])
    assert opened.shape == (layers, heads, queries)
    assert opened.all() == (threshold == 0)
    for span in trace.spans(1):
        gates = [trace.gates[layer][1][trace.blocks[layer][1] == span.block] for layer in trace.blocks]
        expected = torch.cat(gates).double().sum().item() / (layers * heads * queries)
        assert span.weight == pytest.approx(expected)
        assert (span.start, span.stop) == (5 * span.block, 5 * span.block + 5)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_padding_neither_opens_nor_counts(model, threshold):
    mask = torch.ones_like(IDS)
    mask[0, :13] = 0  # its chunks are shorter or, by their landmarks, end elsewhere
    together = traced(model, threshold, mask)
    cache = landmark.LandmarkCache(model.config, miss_threshold=threshold)
    with torch.no_grad():
        for start, stop in ((13, 40), (40, 70), (70, 90)):
            model(input_ids=IDS[:1, start:stop], past_key_values=cache)
            if stop == 40:
                cache.start_trace()
    alone = {span.block: span.weight for span in cache.trace().spans()}
    assert {span.block: span.weight for span in together.spans(0)} == pytest.approx(alone, abs=1e-5)


def test_forwards_without_memory_do_not_count(model):
    cache = landmark.LandmarkCache(model.config)
    cache.start_trace()
    with torch.no_grad():
        model(input_ids=IDS[:, :10], past_key_values=cache)
        assert cache.trace().spans() == []
        for start in (10, 40):
            model(input_ids=IDS[:, start : start + 30], past_key_values=cache)
    trace = cache.trace()
    assert trace.positions.tolist() == [list(range(12 + 2 * 36))] * 2
    assert (trace.blocks[0][:, :, :12] == -1).all()
    assert (trace.local[0][:, :, :12] == 1).all()
    assert trace.blocks[0].shape[2] == 12 + 2 * 36
    assert trace.asking[0].tolist() == [2 * 36, 2 * 36]


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_gates_and_local_weights_of_every_query_sum_to_one(model, threshold):
    mask = torch.ones_like(IDS)
    mask[0, :13] = 0
    trace = traced(model, threshold, mask)
    for layer, gates in trace.gates.items():
        total = gates.sum(-1) + trace.local[layer]
        real = (trace.positions >= 0)[:, None].expand_as(total)
        assert (total[real] - 1).abs().max() < 1e-5
        assert (total[~real] == 0).all()
        assert (trace.local[layer][real] < 1 - 1e-5).any()


def test_gates_and_local_weights_are_those_of_one_softmax(model, monkeypatch):
    """Against the scores themselves: of the local window by its logsumexp, of blocks by their landmarks' logits."""
    seen = []

    def join(out, lse, query, pieces, distance, *, blocks, **options):
        ((part, pages),) = pieces
        logits = retrieved_attention(query, pages, distance, **options)[1]
        seen.append(torch.cat((logits, lse[..., None]), -1).double().softmax(-1))
        return join_retrieved(out, lse, query, [(part, pages)], distance, blocks=blocks, **options)

    monkeypatch.setattr("landmark.memory.blocks.join_retrieved", join)
    # Its call for few queries computes no scores that could be seen.
    monkeypatch.setattr("landmark.memory.LayerMemory.few", lambda *_, **__: None)
    cache = landmark.LandmarkCache(model.config)
    with torch.no_grad():
        for start, stop in ((0, 40), (40, 70), (70, 71)):
            model(input_ids=IDS[:, start:stop], past_key_values=cache)
            if stop == 40:
                seen.clear()
                cache.start_trace()
    trace = cache.trace()
    layers = len(trace.blocks)
    assert len(seen) == 2 * layers
    for layer in trace.blocks:
        expected = torch.cat((seen[layer], seen[layers + layer]), 2)
        found = torch.cat((trace.gates[layer], trace.local[layer][..., None]), -1)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_queries_of_tokens(model):
    trace = traced(model, 0.0)
    places = trace.queries([40, 44, 45, 89], row=1)
    assert places == [0, 4, 6, 58]  # landmarks lie between them
    with pytest.raises(ValueError, match=r"token 39 was not recorded: call cache.start_trace\(\)"):
        trace.queries([39])
    with pytest.raises(ValueError, match="token 0 was not recorded"):
        landmark.LandmarkCache(model.config).trace().queries([0])


def test_a_token_that_was_read_again_is_its_last_query(model):
    cache = landmark.LandmarkCache(model.config)
    with torch.no_grad():
        model(input_ids=IDS[:, :40], past_key_values=cache)
        cache.start_trace()
        model(input_ids=IDS[:, 40:43], past_key_values=cache)
        cache.crop(-1)
        model(input_ids=IDS[:, 50:51], past_key_values=cache)
    assert cache.trace().queries([41, 42]) == [1, 3]


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "text.txt").write_text("the sea was calm and jim looked at it for a long while " * 40, encoding="utf-8")
    train_tokenizer([str(tmp_path / "text.txt")], 270, tmp_path / "tokenizer")
    return AutoTokenizer.from_pretrained(tmp_path / "tokenizer")


def test_characters_of_a_token_that_holds_half_of_one_name_it_whole(tokenizer):
    text = encode(tokenizer, "the sea ü was calm") + encode(tokenizer, " and jim looked")
    for start in range(0, len(text), 3):
        first, last = text.characters(start, start + 3)
        assert tokenizer.decode(text.ids[start : start + 3]).strip("�") in text.text[first:last]


def test_characters_go_on_over_joined_texts(tokenizer):
    first, second = encode(tokenizer, "the sea"), encode(tokenizer, " was calm")
    both = first + second
    assert both.text == "the sea was calm"
    assert both.characters(len(first), len(both)) == (7, 16)
    assert both.characters(len(both), len(both) + 5) == (16, 16)
    assert len(both) == len(first) + len(second)
