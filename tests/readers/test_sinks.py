"""The sliding window with sinks against masks and positions written out for every pair of tokens."""

import math
from types import SimpleNamespace

import pytest
import torch
from reader_cases import random_layer, read, sharp, turn
from torch import Tensor

from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring
from landmark.readers.sinks import Sinks
from reproduce.runs.perplexities import SegmentReading


def dense(
    qkv: list[Tensor], window: int, first: int, *, scale: float | None = None, softcap=None, sinks=None
) -> Tensor:
    """Each query builds its cache anew: the first tokens, then the newest ones, at positions 0, 1, 2, ..."""
    query, key, value = qkv
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    outs = []
    for t in range(query.shape[2]):
        newest = range(max(0, t - window + 1), t + 1)
        cache = [*(s for s in range(min(first, t + 1)) if s not in newest), *newest]
        assert len(cache) <= window + first
        places = torch.arange(len(cache))
        scores = (turn(query[:, :, t : t + 1], places[-1:]) * turn(key[:, :, cache], places)).sum(-1) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.exp()
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + sinks.exp()[:, None]
        outs.append((weights / total)[:, :, None] @ value[:, :, cache])
    return torch.cat(outs, 2)


CUTS = {"ones": [1] * 30, "ragged": [7, 7, 7, 7, 2], "longer than the window": [13, 13, 4], "one": [30]}


def test_inner_products_beyond_float16_stay_finite():
    query, key, value = (x.detach().half() for x in random_layer(20))
    out = read(Sinks(6, 5, 3), [query * 60, key * 60, value], [6, 6, 6, 2], scale=1e-4)
    assert out.isfinite().all()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("window", "sinks"), [(5, 4), (5, 0), (1, 2), (9, 1), (3, 8), (40, 4)])
def test_equals_a_cache_built_for_every_token(cut, window, sinks):
    qkv = random_layer(30)
    found = read(Sinks(13, window, sinks), qkv, CUTS[cut])
    torch.testing.assert_close(found, dense(qkv, window, sinks), atol=1e-12, rtol=0)


def test_scale_softcap_and_the_sinks_of_the_model():
    qkv, extras = random_layer(20), {"scale": 0.7, "softcap": 1.5, "sinks": torch.randn(4).double()}
    found = read(Sinks(6, 5, 3), qkv, [6, 6, 6, 2], **extras)
    torch.testing.assert_close(found, dense(qkv, 5, 3, **extras), atol=1e-12, rtol=0)


def by_kernel_and_by_scores(qkv: list[Tensor], scale: float) -> list[Tensor]:
    """A cap far above all scores changes nothing, but takes the way of scores."""
    return [read(Sinks(6, 5, 3), qkv, [6, 6, 6, 2], scale=scale, softcap=cap) for cap in (None, 1e9)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_the_kernel_of_torch_computes_what_scores_do(dtype, tolerance):
    qkv = [x.detach().to(dtype).requires_grad_() for x in random_layer(20)]
    kernel, scores = by_kernel_and_by_scores(qkv, scale=2.0)
    torch.testing.assert_close(kernel, scores, atol=tolerance, rtol=tolerance)
    for grads in zip(*(torch.autograd.grad(out.sum(), qkv) for out in (kernel, scores)), strict=True):
        torch.testing.assert_close(*grads, atol=tolerance, rtol=tolerance)


def test_large_inner_products_with_sinks_are_not_rounded_to_16_bits():
    query, key, value = (x.detach().bfloat16() for x in random_layer(20))
    kernel, scores = by_kernel_and_by_scores([query * 16, key * 16, value], scale=1 / 8)
    torch.testing.assert_close(kernel, scores, atol=0.03, rtol=0.03)


def test_gradients_stop_at_what_is_carried():
    qkv = random_layer(12)
    read(Sinks(6, 8, 2), qkv, [6, 6])[:, :, 6:].sum().backward()
    for grad in (x.grad for x in qkv):
        assert (grad[:, :, :6] == 0).all()
        assert (grad[:, :, 6:] != 0).any()


def test_a_window_over_everything_is_the_model_itself():
    model = sharp("llama")
    ids = torch.randint(3, 61, (2, 40))
    with torch.no_grad():
        found = model(input_ids=ids, landmark_reader=Sinks(9, 36, 4)).logits
        unbounded = model(input_ids=ids, landmark_reader=Sinks(40, 40, 0)).logits
    # A model's own tables of rotations have float32 angles: so exact is a distance that stands elsewhere in them.
    torch.testing.assert_close(found, unbounded, atol=1e-6, rtol=0)
    with torch.no_grad():
        narrow = model(input_ids=ids, landmark_reader=Sinks(9, 8, 4)).logits
    torch.testing.assert_close(narrow[:, :12], unbounded[:, :12], atol=1e-6, rtol=0)
    assert not torch.allclose(narrow[:, 12:], unbounded[:, 12:], atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "word"),
    [((0, 4, 4), "segment has 0"), ((4, 0, 4), "window is 0"), ((4, 4, -1), "sinks is -1")],
)
def test_bad_settings_are_named(settings, word):
    with pytest.raises(ValueError, match=word):
        Sinks(*settings)


@pytest.mark.parametrize(("segment", "window", "sinks"), [(8, 12, 4), (16, 5, 2), (4, 20, 0)])
def test_keys_are_counted_as_they_are_weighed(segment, window, sinks):
    length, seen = 70, []
    reader = Sinks(segment, window, sinks)
    rotation = Rotation(torch.ones(length, 4), torch.zeros(length, 4), "half")
    values = torch.eye(length)[None, None]  # what comes out for a query is its row of weights
    for start in range(0, length, segment):
        value = values[:, :, start : start + segment]
        reader.seen = start
        zeros = torch.zeros_like(value)
        out = reader.attend(SimpleNamespace(layer_idx=0), zeros, zeros, value, rotation, Scoring(1.0))
        seen += (out[0, 0] > 0).sum(-1).tolist()
    told = SegmentReading("sinks", segment, lambda: reader, keep=window, sinks=sinks).attended(length)
    assert told == pytest.approx(sum(seen) / length)
    assert max(seen) == window + sinks
