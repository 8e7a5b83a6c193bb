"""Documents packed into one window: none sees another, and each is read as if it stood alone."""

import pytest
import torch
from families import family

import landmark

BLOCK_SIZE = 7
# Boundaries inside a block, at the end of one (with phase 3, token 11 begins a block), and two in one block.
LENGTHS = (11, 20, 2, 17)


def packed(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `[2, 50]` and the documents of their tokens, cut differently in the two rows."""
    ids = torch.randint(3, 61, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(seed))
    rows = [torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)) for lengths in (LENGTHS, LENGTHS[::-1])]
    return ids, torch.stack(rows)


def converted(name: str):
    return landmark.convert(family(name), block_size=BLOCK_SIZE).train()


def exact_tables(rotary, layer_type, positions, pinned, like):
    """The angles of the model's rotation in float64; transformers computes them in float32."""
    angles = torch.arange(positions)[:, None] * rotary.inv_freq.double()
    return (torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin())


def each_alone(model, ids, segments, phase, **options):
    """Logits `[2, 50, V]` of every document read by itself, on the block grid that it has in its window."""
    rows = []
    for row in range(2):
        parts, start = [], 0
        for length in segments[row].unique_consecutive(return_counts=True)[1].tolist():
            part = ids[row : row + 1, start : start + length]
            parts.append(model(input_ids=part, landmark_phase=(phase + start) % BLOCK_SIZE, **options).logits)
            start += length
        rows.append(torch.cat(parts, 1))
    return torch.cat(rows)


@pytest.mark.parametrize("gates", [True, False])
def test_documents_of_a_window_and_their_gradients_are_those_of_each_alone(gates, monkeypatch):
    model = converted("gpt_neox").double()  # of the families, the one whose norms stay in float64
    monkeypatch.setattr("landmark.hf.rope._tables", exact_tables)
    ids, segments = packed()
    weights = torch.randn(2, 50, 61, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = model(input_ids=ids, landmark_documents=segments, landmark_phase=3, landmark_gates=gates).logits
    expected = each_alone(model, ids, segments, 3, landmark_gates=gates)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    grads = [torch.autograd.grad((logits * weights).sum(), list(model.parameters())) for logits in (found, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_sliding_layers_soft_caps_and_sinks_keep_documents_apart(name, gates):
    model = converted(name)
    ids, segments = packed()
    with torch.no_grad():
        found = model(input_ids=ids, landmark_documents=segments, landmark_phase=3, landmark_gates=gates).logits
        expected = each_alone(model, ids, segments, 3, landmark_gates=gates)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("gates", [True, False])
def test_another_document_changes_nothing(gates):
    model = converted("llama").eval()
    ids, segments = packed()
    other = ids.clone()
    other[segments == 1] = packed(seed=5)[0][segments == 1]
    options = {"landmark_documents": segments, "landmark_gates": gates}
    with torch.no_grad():
        before, after = (model(input_ids=x, **options).logits for x in (ids, other))
        apart = model(input_ids=ids, landmark_gates=gates).logits
    assert torch.equal(before[segments != 1], after[segments != 1])
    assert not torch.allclose(before[segments == 1], after[segments == 1])
    assert not torch.allclose(before[segments == 2], apart[segments == 2])


def test_padded_rows_keep_their_documents():
    model = converted("llama").eval()
    ids, segments = packed()
    pad = torch.zeros(2, 9, dtype=torch.long)
    mask = torch.cat((pad, torch.ones_like(ids)), 1)
    with torch.no_grad():
        expected = model(input_ids=ids, landmark_documents=segments).logits
        found = model(
            input_ids=torch.cat((pad, ids), 1),
            attention_mask=mask,
            landmark_documents=torch.cat((pad + 99, segments), 1),
        ).logits[:, 9:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_keeps_documents_apart():
    ids, segments = packed()
    grads = []
    for checkpointing in (False, True):
        model = converted("llama")
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=ids, labels=ids, landmark_documents=segments).loss.backward()
        grads.append(model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("segments", "word"),
    [
        (torch.zeros(2, 49, dtype=torch.long), r"torch.int64 of \(2, 49\)"),
        (torch.zeros(2, 50), r"torch.float32 of \(2, 50\)"),
        ([[0] * 50] * 2, r"landmark_documents is \[\["),
    ],
)
def test_documents_must_be_named_token_by_token(segments, word):
    with pytest.raises(ValueError, match=word):
        converted("llama")(input_ids=packed()[0], landmark_documents=segments)


def test_documents_are_for_forwards_without_a_cache():
    ids, segments = packed()
    with pytest.raises(ValueError, match="landmark_documents: for forwards without a cache"):
        converted("llama")(input_ids=ids, landmark_documents=segments, use_cache=True)
