"""Answers of the passkey table: what the baselines decode."""

import copy
import math

import pytest
import torch

import landmark
from landmark.readers.memorizing import Memorizing, add_memory_gates
from landmark.readers.recurrent import Recurrent
from reproduce.runs.passkeys import greedy
from reproduce.runs.perplexities import SegmentReading

SEGMENT, COUNT = 24, 4
IDS = torch.randint(0, 60, (100,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plain(sharp_llama):
    shape = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    return sharp_llama(**shape)


@pytest.fixture(scope="module")
def model(plain):
    return add_memory_gates(landmark.convert(copy.deepcopy(plain), block_size=7), 1)


def decoded(model, length: int, gate: float) -> list[int]:
    """Through a memory that gets `sigmoid(gate)` of the attention."""
    model.base_model.layers[1].self_attn.memory_gate.data.fill_(gate)
    reading = SegmentReading("knn", SEGMENT, lambda: Memorizing(SEGMENT, 3, 1))
    with torch.inference_mode():
        return greedy(model, IDS[:length], reading, COUNT)


def expected(plain, length: int, sight: int = SEGMENT) -> list[int]:
    """By causal attention over the newest tokens, `sight` with the answer."""
    ids = IDS[:length]
    for done in range(COUNT):
        seen = ids[-(sight - COUNT + done) :]
        with torch.inference_mode():
            logits = plain(input_ids=seen[None], use_cache=False).logits
        ids = torch.cat((ids, logits[0, -1:].argmax(-1)))
    return ids[-COUNT:].tolist()


@pytest.mark.parametrize("length", [5, 20, 21, 30, 44, 45, 100])
def test_question_and_answer_stand_in_one_segment(model, plain, length):
    assert decoded(model, length, -math.inf) == expected(plain, length)


def test_what_stands_before_the_last_segment_comes_from_memory(model):
    assert decoded(model, 20, 3.0) == decoded(model, 20, -math.inf), "nothing stands before it"
    answers = [decoded(model, length, 3.0) for length in (30, 45, 100)]
    assert answers != [decoded(model, length, -math.inf) for length in (30, 45, 100)]


@pytest.mark.parametrize("length", [5, 20, 21, 40, 44])
def test_the_segment_before_the_answers_is_in_sight_of_transformer_xl(model, plain, length):
    reading = SegmentReading("recurrent", SEGMENT, lambda: Recurrent(SEGMENT, SEGMENT))
    with torch.inference_mode():
        assert greedy(model, IDS[:length], reading, COUNT) == expected(plain, length, 2 * SEGMENT)
