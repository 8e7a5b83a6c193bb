"""Retrieval in training: the numbers of reading through a cache, and the gradients of the rules written out."""

from dataclasses import dataclass

import pytest
import torch
from reader_cases import random_layer, read, sharp, turn, widths
from torch import Tensor

from landmark.hf import LandmarkCache
from landmark.readers.retrieval import RetrievedLandmarks

IDS = torch.randint(3, 61, (2, 120), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
@pytest.mark.parametrize("segment", [1, 5, 33])
def test_equals_reading_through_a_cache(name, segment, dtype, tolerance):
    model = sharp(name).to(dtype)
    ids = IDS[:, :40] if segment == 1 else IDS
    cache = LandmarkCache(model.config, retrieve=2, local_blocks=0)
    with torch.no_grad():
        pieces = [model(input_ids=piece, past_key_values=cache).logits for piece in ids.split(segment, 1)]
    expected = torch.cat(pieces, 1)
    found = model(input_ids=ids, landmark_reader=RetrievedLandmarks(segment, 2, 7)).logits  # with gradients
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    with torch.no_grad():  # joined in one pass, as the cache does
        found = model(input_ids=ids, landmark_reader=RetrievedLandmarks(segment, 2, 7)).logits
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def written_out(
    qkv: list[Tensor],
    segments: list[int],
    size: int,
    retrieve: int,
    phase: int,
    *,
    scale: float,
    softcap=None,
    sinks=None,
) -> Tensor:
    """Section 3 of the design, query by query; what lies before a segment has no gradient."""
    query, key, value = qkv
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    out, start = torch.empty_like(query), 0
    for width in segments:
        seen = [torch.cat((x[:, :, :start].detach(), x[:, :, start : start + width]), 2) for x in (key, value)]
        for row, head, i in torch.cartesian_prod(*map(torch.arange, (*query.shape[:2], width))).tolist():
            one = Query(query[row, head, start + i], *(x[row, head] for x in seen), start, start + i, size + 1, phase)
            sink = None if sinks is None else sinks[head]
            out[row, head, start + i] = one.attend(retrieve, scale, softcap, sink)
        start += width
    return out


@dataclass
class Query:
    """One query at stream position `place` of a segment that begins at `start`, and the keys and values so far."""

    query: Tensor
    keys: Tensor
    values: Tensor
    start: int
    place: int
    stride: int
    phase: int

    def block(self, number: int) -> list[int]:
        return [place for place in range(len(self.keys)) if (place + self.phase) // self.stride == number]

    def attend(self, retrieve: int, scale: float, softcap: float | None, sink: Tensor | None) -> Tensor:
        stride, n = self.stride, (self.start + self.phase) // self.stride  # complete blocks of earlier segments
        k = min(retrieve, n)
        first_local = (k + 1) * stride * (n > 0) - n * stride  # from places to rotary positions
        turned = turn(self.query, torch.tensor(first_local + self.place + self.phase))

        def scores(places: list[int], block_start: int) -> Tensor:
            """Of some places in a block that begins at a rotary position."""
            offsets = torch.tensor([(place + self.phase) % stride for place in places])
            products = turn(self.keys[places], block_start + offsets) @ turned * scale
            return products if softcap is None else softcap * torch.tanh(products / softcap)

        def landmark_score(number: int) -> float:
            slot = number - (n - k) + 1 if number >= n - k else 0
            return scores(self.block(number)[-1:], slot * stride).item()

        chosen = sorted(sorted(range(n), key=lambda number: (landmark_score(number), number))[n - k :])
        own = (self.place + self.phase) // stride
        opened = [(number, (j + (number >= n - k)) * stride) for j, number in enumerate(chosen)]
        logits, averages = [], []
        for number, block_start in opened + [(number, first_local + number * stride) for number in range(n, own)]:
            inside = scores(self.block(number), block_start)
            logits.append(inside[-1])
            averages.append(inside[:-1].softmax(0) @ self.values[self.block(number)[:-1]])
        for place in self.block(own):
            if place <= self.place and (place + self.phase) % stride != stride - 1:
                logits.append(scores([place], first_local + own * stride)[0])
                averages.append(self.values[place])
        if sink is not None:
            logits.append(sink)
            averages.append(torch.zeros_like(self.values[0]))
        return torch.stack(logits).softmax(0) @ torch.stack(averages)


SEGMENTS = {"even": [7, 7], "ragged": [3, 7, 2, 4], "ones at the end": [11, 1, 1, 1, 1], "all at once": [14]}


@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize(("retrieve", "phase", "capped"), [(2, 0, False), (1, 2, True), (3, 1, False), (9, 0, True)])
def test_outputs_and_gradients_are_those_of_the_rules(segments, retrieve, phase, capped):
    tokens = SEGMENTS[segments]
    lengths = widths(tokens, 3, phase)
    qkv = random_layer(sum(lengths), rows=1, heads=2, kv_heads=1)
    sinks = torch.randn(2).double().requires_grad_() if capped else None
    rules = {"scale": 0.9, "softcap": 2.0 if capped else None, "sinks": sinks}
    wanted = qkv if sinks is None else [*qkv, sinks]
    found = read(RetrievedLandmarks(11, retrieve, 3, phase), qkv, tokens, **rules)
    expected = written_out(qkv, lengths, 3, retrieve, phase, **rules)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    upstream = torch.randn_like(found)
    grads, expected_grads = (torch.autograd.grad(out, wanted, upstream) for out in (found, expected))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-11, rtol=0)


def test_equal_landmarks_of_the_first_layer_open_the_newest_blocks():
    tokens = [7, 7, 6]
    query, key, value = random_layer(sum(widths(tokens, 3)), rows=1, heads=2, kv_heads=1)
    with torch.no_grad():
        key[:, :, 3::4] = key[:, :, 3:4]
    for layer in (0, 1):
        found = read(RetrievedLandmarks(7, 2, 3), [query, key, value], tokens, layer=layer)
        expected = written_out([query, key, value], widths(tokens, 3), 3, 2, 0, scale=query.shape[-1] ** -0.5)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_dropout_takes_weights_away_and_keeps_their_mean():
    qkv = [x.detach() for x in random_layer(16, rows=1)]
    qkv[2][:] = 1
    plain = read(RetrievedLandmarks(8, 1, 3), qkv, [6, 6])
    torch.testing.assert_close(plain, torch.ones_like(plain))
    dropped = torch.stack([read(RetrievedLandmarks(8, 1, 3), qkv, [6, 6], dropout=0.5)[0, 0, 10:] for _ in range(200)])
    assert dropped.std(0).min() > 0.1
    torch.testing.assert_close(dropped.mean(0), torch.ones_like(dropped[0]), atol=0.25, rtol=0)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ((0, 2, 7), "segment has 0"),
        ((5, 0, 7), "retrieve is 0"),
        ((5, 2, 0), "block_size is 0"),
        ((5, 2, 7, 7), "phase is 7"),
    ],
)
def test_bad_settings_are_named(settings, word):
    with pytest.raises(ValueError, match=word):
        RetrievedLandmarks(*settings)
