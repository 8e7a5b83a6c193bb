"""Segments that see the segment before, with and without landmarks."""

import copy

import pytest
import torch
from families import family
from reader_cases import random_layer, read, sharp, turn, widths
from torch import Tensor

import landmark
from landmark.ops.reference import reference_attention
from landmark.ops.scoring import Scoring
from landmark.readers.recurrent import Recurrent, RecurrentLandmarks

IDS = torch.randint(3, 61, (2, 60), generator=torch.Generator().manual_seed(4))
CUTS = {"even": [6, 6, 6], "ragged": [8, 5, 3, 2], "ones": [1] * 9, "ones at the end": [9, 1, 1]}


def pair(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A float64 model as transformers has it, and converted."""
    plain = family(name).double()
    plain.set_attn_implementation("sdpa")  # eager attention has its softmax in float32
    for parameter, weight in plain.named_parameters():
        if any(part in parameter for part in ("q_proj", "k_proj", "query_key_value")):
            weight.data *= 12
    return plain, landmark.convert(copy.deepcopy(plain), block_size=7)


def logits(model, ids: Tensor = IDS, **options) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **options).logits[..., :61]


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "qwen3", "phi"])
@pytest.mark.parametrize("segment", [1, 13, 60])
def test_without_recurrence_it_is_the_unconverted_model_on_each_segment(name, segment):
    plain, model = pair(name)
    found = logits(model, landmark_reader=Recurrent(segment, 0))
    expected = torch.cat([logits(plain, piece) for piece in IDS.split(segment, 1)], 1)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
@pytest.mark.parametrize("segment", [1, 13, 60])
def test_carrying_everything_it_is_the_unconverted_model_on_the_whole(name, segment):
    plain, model = pair(name)
    found = logits(model, landmark_reader=Recurrent(segment, 60))
    torch.testing.assert_close(found, logits(plain), atol=1e-10, rtol=0)


def last(parts: list[Tensor], keep: int, start: int, width: int) -> list[Tensor]:
    """Of `[B,H,T,D]` what a segment of `width` sees: the newest `keep` before it without gradient, and itself."""
    first = max(0, start - keep)
    return [torch.cat((x[:, :, first:start].detach(), x[:, :, start : start + width]), 2) for x in parts]


def dense(
    qkv: list[Tensor], segments: list[int], keep: int, block_size: int | None, phase: int = 0, **rules: object
) -> Tensor:
    """Section 2 for each segment, over positions counted from the beginning of the text."""
    query, *parts = qkv
    start, outs = 0, []
    for width in segments:
        key, value = last(parts, keep, start, width)
        positions = torch.arange(start + width - key.shape[2], start + width)
        stride = 1 << 40 if block_size is None else block_size + 1
        is_landmark = ((positions + phase) % stride == stride - 1)[None]
        turned = turn(query[:, :, start : start + width], positions[-width:]), turn(key, positions)
        outs.append(reference_attention(*turned, value, is_landmark=is_landmark, scoring=Scoring(**rules)))
        start += width
    return torch.cat(outs, 2)


def assert_same(found: Tensor, expected: Tensor, wanted: list[Tensor]) -> None:
    """Outputs, and gradients of a random direction."""
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    upstream = torch.randn_like(found)
    pairs = zip(*(torch.autograd.grad(out, wanted, upstream) for out in (found, expected)), strict=True)
    for grad, expected_grad in pairs:
        torch.testing.assert_close(grad, expected_grad, atol=1e-11, rtol=0)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("keep", "capped"), [(0, False), (4, False), (4, True), (7, False), (50, True)])
def test_recurrent_equals_dense_attention_over_what_is_carried(cut, keep, capped):
    qkv = random_layer(sum(CUTS[cut]))
    sinks = torch.randn(4).double().requires_grad_()
    rules = {"scale": 0.8, "softcap": 2.0, "sinks": sinks} if capped else {"scale": 0.8}
    found = read(Recurrent(9, keep), qkv, CUTS[cut], **rules)
    assert_same(found, dense(qkv, CUTS[cut], keep, None, **rules), [*qkv, sinks] if capped else qkv)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("keep", "phase", "capped"), [(4, 0, False), (7, 2, True), (5, 1, False), (50, 1, True)])
def test_recurrent_landmarks_equal_dense_attention_over_what_is_carried(cut, keep, phase, capped):
    segments = widths(CUTS[cut], 3, phase)
    qkv = random_layer(sum(segments))
    sinks = torch.randn(4).double().requires_grad_()
    rules = {"scale": 0.8, "softcap": 2.0, "sinks": sinks} if capped else {"scale": 0.8}
    found = read(RecurrentLandmarks(9, keep, 3, phase=phase), qkv, CUTS[cut], **rules)
    assert_same(found, dense(qkv, segments, keep, 3, phase, **rules), [*qkv, sinks] if capped else qkv)


@pytest.mark.parametrize("segment", [1, 13, 60])
@pytest.mark.parametrize("phase", [0, 3, 6])
def test_landmarks_that_carry_everything_are_those_of_one_pass(segment, phase):
    model = sharp("llama")
    found = logits(model, landmark_reader=RecurrentLandmarks(segment, 100, 7, phase=phase))
    torch.testing.assert_close(found, logits(model, landmark_phase=phase), atol=1e-10, rtol=0)


@pytest.mark.parametrize("make", [lambda keep: Recurrent(12, keep), lambda keep: RecurrentLandmarks(12, keep, 7)])
def test_gradients_of_a_model_stop_at_carried_states(make):
    model = sharp("llama")
    embeddings = model.get_input_embeddings()(IDS[:, :24]).detach().requires_grad_()
    model(inputs_embeds=embeddings, landmark_reader=make(12)).logits[:, 12:].pow(2).sum().backward()
    assert (embeddings.grad[:, :12] == 0).all()
    assert (embeddings.grad[:, 12:] != 0).any(-1).all()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Recurrent(0, 4), "segment has 0"),
        (lambda: Recurrent(4, -1), "keep is -1"),
        (lambda: RecurrentLandmarks(4, 0, 7), "keep is 0"),
        (lambda: RecurrentLandmarks(4, 4, 0), "block_size is 0"),
    ],
)
def test_bad_settings_are_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()
