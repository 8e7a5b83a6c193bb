"""Memory of single keys against a dense computation, and its gates through saving and loading."""

import json
import math

import pytest
import torch
from reader_cases import random_layer, read, sharp, turn
from torch import Tensor

from landmark.readers.memorizing import Memorizing, add_memory_gates, load_with_gates, memory_layer
from landmark.readers.recurrent import Recurrent

IDS = torch.randint(3, 61, (2, 40), generator=torch.Generator().manual_seed(3))


def gates() -> Tensor:
    return torch.linspace(-1, 1, 4).double().requires_grad_()


def dense(
    qkv: list[Tensor], segments: list[int], retrieve: int, gate: Tensor, *, scale: float, softcap=None, sinks=None
) -> Tensor:
    """All scores of a segment at once; those in memory that are not among the best are hidden."""
    query, key, value = qkv
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    positions = torch.arange(query.shape[2])
    outs, start = [], 0
    for width in segments:
        own, before = slice(start, start + width), slice(0, start)
        turned, turned_key = (turn(x[:, :, own], positions[:width]) for x in (query, key))
        scores = _capped(turned @ turned_key.transpose(-1, -2) * scale, softcap)
        scores = scores.masked_fill(~torch.ones(width, width, dtype=torch.bool).tril(), -math.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks[:, None, None].expand(len(scores), -1, width, 1)), -1)
        out = scores.softmax(-1)[..., :width] @ value[:, :, own]
        if start:
            scores = _capped(query[:, :, own] @ key[:, :, before].detach().transpose(-1, -2) * scale, softcap)
            lowest = scores.sort(-1, descending=True).values[..., : min(retrieve, start)][..., -1:]
            weights = scores.masked_fill(scores < lowest, -math.inf).softmax(-1)
            g = 1 / (1 + torch.exp(-gate[:, None, None]))
            out = g * (weights @ value[:, :, before].detach()) + (1 - g) * out
        outs.append(out)
        start += width
    return torch.cat(outs, 2)


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


@pytest.mark.parametrize("segments", [[6, 6, 6], [6, 6, 3], [4, 1, 1, 1, 1], [7]], ids=str)
@pytest.mark.parametrize(("retrieve", "capped"), [(1, False), (3, True), (50, False)])
def test_outputs_and_gradients_equal_the_dense_computation(segments, retrieve, capped):
    qkv, gate = random_layer(sum(segments)), gates()
    sinks = torch.randn(4).double().requires_grad_() if capped else None
    rules = {"scale": 0.8, "softcap": 2.0 if capped else None, "sinks": sinks}
    found = read(Memorizing(7, retrieve, 1), qkv, segments, gate=gate, **rules)
    expected = dense(qkv, segments, retrieve, gate, **rules)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    wanted = [*qkv, *([gate] if len(segments) > 1 else []), *([sinks] if capped else [])]
    upstream = torch.randn_like(found)
    pairs = (torch.autograd.grad(out, wanted, upstream) for out in (found, expected))
    for grad, expected_grad in zip(*pairs, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-11, rtol=0)


def test_reading_without_gradients_gives_the_same():
    qkv, gate = random_layer(16), gates()
    with torch.no_grad():
        found = read(Memorizing(6, 3, 1), qkv, [6, 6, 4], gate=gate)
    assert torch.equal(found, read(Memorizing(6, 3, 1), qkv, [6, 6, 4], gate=gate))


def test_other_layers_have_no_memory():
    qkv = random_layer(12)
    found = read(Memorizing(6, 3, 2), qkv, [6, 6], layer=1)
    torch.testing.assert_close(found, read(Recurrent(6, 0), qkv, [6, 6], layer=1), atol=0, rtol=0)


def logits(model, segment: int = 11, layer: int = 1) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, landmark_reader=Memorizing(segment, 4, layer)).logits


def test_a_model_reads_the_first_segment_as_ever_and_the_others_with_memory():
    model = add_memory_gates(sharp("gpt_neox"), 1)
    found = logits(model)
    with torch.no_grad():
        local = model(input_ids=IDS, landmark_reader=Recurrent(11, 0)).logits
    torch.testing.assert_close(found[:, :11], local[:, :11], atol=0, rtol=0)
    assert not torch.allclose(found[:, 11:], local[:, 11:], atol=1e-3)
    assert not torch.allclose(found, logits(model, 9), atol=1e-3)


def test_gates_are_learned_saved_and_loaded(tmp_path):
    model = add_memory_gates(sharp("llama")).train()
    layer = model.config.landmark_memory_layer
    assert layer == memory_layer(3) == 1
    gate = dict(model.named_parameters())["model.layers.1.self_attn.memory_gate"]
    assert gate.shape == (4,)
    model(input_ids=IDS, labels=IDS, landmark_reader=Memorizing(10, 4, layer)).loss.backward()
    assert (gate.grad != 0).all()
    gate.data += torch.arange(4)
    model.save_pretrained(tmp_path)
    loaded = load_with_gates(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(logits(loaded), logits(model.eval()), atol=0, rtol=0)
    assert add_memory_gates(loaded) is loaded
    torch.testing.assert_close(logits(loaded), logits(model), atol=0, rtol=0)


def test_a_model_without_gates_loads_as_ever(tmp_path):
    model = sharp("llama")
    model.save_pretrained(tmp_path)
    assert not any("memory_gate" in name for name, _ in load_with_gates(tmp_path).named_parameters())


def test_the_paper_has_its_memory_in_the_ninth_of_twelve_layers():
    assert [memory_layer(layers) for layers in (12, 24, 4, 2, 1)] == [8, 17, 2, 0, 0]


def test_what_cannot_work_is_named(tmp_path):
    with pytest.raises(ValueError, match="retrieve is 0"):
        Memorizing(5, 0, 1)
    model = sharp("llama")
    with pytest.raises(ValueError, match=r"no memory gate: call add_memory_gates\(model, 1\)"):
        logits(model)
    with pytest.raises(ValueError, match="layer is 3: this model has layers 0 to 2"):
        add_memory_gates(model, 3)
    add_memory_gates(model, 2)
    with pytest.raises(ValueError, match="layer 2 of this model has memory gates"):
        add_memory_gates(model, 1)
    plain = sharp("llama")
    plain.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"landmark_memory_layer": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="names memory gates and holds none"):
        load_with_gates(tmp_path)
