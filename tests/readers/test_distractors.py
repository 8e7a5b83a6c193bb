"""Training among distractors: the grouped softmax where there are none, and their gates written out where there are."""

import pytest
import torch
from reader_cases import DIM, random_layer, read, rotation, sharp, turn, widths
from torch import Tensor

from landmark.ops.attention import landmark_attention
from landmark.readers.distractors import DistractedLandmarks, Distractors
from landmark.stream import stream_length

SIZE = 3
PLAIN = torch.tensor([True, False])


def reader(kept: Distractors, tokens: int, retrieve: int = 2, phase: int = 0) -> DistractedLandmarks:
    return DistractedLandmarks(tokens, retrieve, SIZE, kept, PLAIN, phase)


@pytest.mark.parametrize("phase", [0, 2])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 17])
def test_without_distractors_it_is_the_grouped_softmax(tokens, phase):
    qkv = random_layer(stream_length(tokens, SIZE, phase))
    found = read(reader(Distractors(5), tokens, phase=phase), qkv, [tokens])
    places = torch.arange(qkv[0].shape[2])
    turned = [rotation().apply(x, places) for x in qkv[:2]]
    expected = landmark_attention(*turned, qkv[2], block_size=SIZE, phase=phase)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("phase", [0, 2])
def test_keeps_landmarks_of_plain_rows_rotated_by_their_offset_and_forgets_the_oldest(phase):
    kept, tokens = Distractors(4), 11
    qkv = random_layer(stream_length(tokens, SIZE, phase))
    landmarks = qkv[1][0, :, SIZE - phase :: SIZE + 1]
    assert landmarks.shape[1] == (tokens + phase) // SIZE
    read(reader(kept, tokens, phase=phase), qkv, [tokens])
    read(reader(kept, tokens, phase=phase), qkv, [tokens])
    expected = turn(torch.cat((landmarks, landmarks), 1)[:, -4:], torch.tensor(SIZE))
    torch.testing.assert_close(kept.keys[1], expected)
    assert not kept.keys[1].requires_grad


def written_out(qkv: list[Tensor], kept: Tensor, retrieve: int, scale: float, softcap: float | None) -> Tensor:
    """The window's own joint softmax, in which the distractors are empty blocks for the rows that ask."""
    query, key, value = qkv
    places = torch.arange(query.shape[2])
    turned = [turn(x, places) for x in (query, key)]
    own = landmark_attention(*turned, value, block_size=SIZE, scale=scale, softcap=softcap, backend="reference")
    standing = turn(query, places + (retrieve + 1) * (SIZE + 1)) * scale
    lost = standing.unflatten(1, (2, 2)) @ kept[None, :, None].mT
    key = turned[1].repeat_interleave(2, 1)
    scores = turned[0] @ key.mT * scale
    if softcap is not None:
        lost, scores = (softcap * torch.tanh(x / softcap) for x in (lost, scores))
    weight = lost.flatten(1, 2).exp().sum(-1) * ~PLAIN[:, None, None]
    block = places // (SIZE + 1)
    landmark = places % (SIZE + 1) == SIZE
    seen = (places[:, None] >= places) & torch.where(landmark, block < block[:, None], block == block[:, None])
    mass = scores.masked_fill(~seen, -torch.inf).exp().sum(-1)
    return own * (mass / (mass + weight))[..., None]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("retrieve", [1, 2])
def test_distractors_take_weight_that_is_lost_from_rows_that_ask(retrieve, softcap):
    kept, tokens = Distractors(7), 14
    kept.keys[1] = torch.randn(2, 7, DIM, dtype=torch.float64) * 2
    before = kept.keys[1]
    qkv = random_layer(stream_length(tokens, SIZE))
    expected = written_out(qkv, before, retrieve, 0.4, softcap)
    found = read(reader(kept, tokens, retrieve), qkv, [tokens], scale=0.4, softcap=softcap)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    upstream = torch.randn_like(found)
    for mine, theirs in zip(*(torch.autograd.grad(out, qkv, upstream) for out in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_the_first_layer_goes_without():
    kept = Distractors(5)
    qkv = random_layer(widths([9], SIZE)[0])
    kept.keys[0] = torch.full((2, 5, DIM), 100.0, dtype=torch.float64)
    found = read(reader(kept, 9), qkv, [9], layer=0)
    assert torch.equal(found, read(reader(Distractors(5), 9), qkv, [9], layer=0))
    assert torch.equal(kept.keys[0], torch.full((2, 5, DIM), 100.0, dtype=torch.float64))


def test_saved_and_loaded_they_are_the_same(tmp_path):
    kept = Distractors(5)
    read(reader(kept, 9), random_layer(stream_length(9, SIZE)), [9])
    kept.save(tmp_path / "kept.safetensors")
    again = Distractors.load(tmp_path / "kept.safetensors", torch.device("cpu"))
    assert again.capacity == 5
    assert again.keys.keys() == kept.keys.keys()
    assert all(torch.equal(again.keys[layer], keys) for layer, keys in kept.keys.items())


def test_under_gradient_checkpointing_gradients_and_distractors_are_the_same():
    ids = torch.randint(3, 61, (2, 41), generator=torch.Generator().manual_seed(5))
    grads, keys = [], []
    for checkpointing in (False, True):
        model, kept = sharp("llama").train(), Distractors(30)
        if checkpointing:
            model.gradient_checkpointing_enable()
        for _ in range(2):  # the second window meets the landmarks of the first one
            one = DistractedLandmarks(41, 2, 7, kept, PLAIN, phase=3)
            model(input_ids=ids, labels=ids, landmark_reader=one, use_cache=False).loss.backward()
        grads.append(model.get_input_embeddings().weight.grad)
        keys.append(kept.keys)
    torch.testing.assert_close(grads[0], grads[1])
    assert keys[0].keys() == keys[1].keys() != set()
    for layer, of_layer in keys[0].items():
        torch.testing.assert_close(keys[1][layer], of_layer, atol=0, rtol=0)
    with pytest.raises(ValueError, match="has read its window"):
        model(input_ids=ids, landmark_reader=one)


def test_refuses_settings_that_mean_nothing():
    with pytest.raises(ValueError, match="distractors is 0: give the number of landmarks to keep"):
        Distractors(0)
    with pytest.raises(ValueError, match="retrieve is 0: give 1 or more"):
        reader(Distractors(5), 9, retrieve=0)


@pytest.mark.parametrize("phase", [0, 2])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_only_the_queries_that_ask_lose_weight(softcap, phase):
    tokens, asked = 14, [3, 4, 12]
    width = stream_length(tokens, SIZE, phase)
    places = [token + (token + phase) // SIZE for token in asked]
    qkv = random_layer(width)
    asking = torch.zeros(2, tokens, dtype=torch.bool)
    asking[:, asked] = True  # in the plain row to no effect
    results = []
    for given in (None, asking, torch.zeros_like(asking)):
        kept = Distractors(7)
        kept.keys[1] = torch.randn(2, 7, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2
        one = DistractedLandmarks(tokens, 2, SIZE, kept, PLAIN, phase, given)
        results.append((read(one, qkv, [tokens], scale=0.4, softcap=softcap), kept.keys[1]))
    (all_ask, expected_kept), (some_ask, kept_now), (none_ask, _) = results
    wanted = none_ask.clone()
    wanted[1, :, places] = all_ask[1, :, places]
    assert not torch.allclose(wanted, none_ask, atol=1e-3)
    torch.testing.assert_close(some_ask, wanted, atol=1e-10, rtol=0)
    torch.testing.assert_close(kept_now, expected_kept, atol=0, rtol=0)
    upstream = torch.randn_like(wanted)
    for mine, theirs in zip(*(torch.autograd.grad(out, qkv, upstream) for out in (some_ask, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)
