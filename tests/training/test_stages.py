import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from landmark.data.recall import ANSWER, COPY, HIDDEN, RecallTask
from landmark.stream import stream_length
from landmark.training.stages import IGNORED, Stage, StageBatches, tokens_per_step

IDS = np.arange(5000, dtype=np.uint16) % 290


@pytest.fixture(scope="module")
def tokenizer(material) -> Tokenizer:
    return Tokenizer.from_file(str(material / "tokenizer" / "tokenizer.json"))


def batches(tokenizer, *stages: Stage, block_size: int = 7, seed: int = 3, micro_batches: int = 1) -> StageBatches:
    return StageBatches(IDS, tokenizer, stages, block_size=block_size, seed=seed, micro_batches=micro_batches)


@given(positions=st.integers(16, 200), block_size=st.integers(1, 40), index=st.integers(0, 9))
def test_windows_take_as_many_tokens_as_fit_the_positions(tokenizer, positions, block_size, index):
    item = batches(tokenizer, Stage(10, positions, 2), block_size=block_size)[index]
    length, phase = item["input_ids"].shape[1], item["phase"]
    assert 0 <= phase < block_size
    assert stream_length(length, block_size, phase) <= positions < stream_length(length + 1, block_size, phase)


def test_text_windows_are_stretches_of_the_text_and_count_in_full(tokenizer):
    item = batches(tokenizer, Stage(1, 64, 4))[0]
    for row in item["input_ids"].tolist():
        assert row == [(row[0] + step) % 290 for step in range(len(row))]
    assert torch.equal(item["labels"], item["input_ids"])
    assert (item["loss_weights"] == 1).all()


def test_recall_windows_weigh_what_can_be_known(tokenizer):
    task = RecallTask((1, 2), (1, 2), answer_weight=4.0)
    item = batches(tokenizer, Stage(1, 400, 3, recall_fraction=1.0, recall=task))[0]
    kinds, weights, labels = item["token_kinds"], item["loss_weights"], item["labels"]
    known = (kinds == ANSWER) | (kinds == COPY)
    assert (weights[known] == 4).all()
    assert (weights[kinds == HIDDEN] == 0).all()
    assert (labels[kinds == HIDDEN] == IGNORED).all()
    assert (weights[~known & (kinds != HIDDEN)] == 1).all()
    assert (kinds == ANSWER).any(1).all()


def test_packed_windows_know_their_documents_and_predict_no_beginning(tokenizer):
    stops = [40, 40, 47, 300, 5000]  # the second document is empty
    stage = Stage(30, 64, 3, packing=True)
    data = StageBatches(IDS, tokenizer, [stage], block_size=7, seed=3, document_stops=stops)
    numbers = np.repeat(np.arange(5), np.diff([0, *stops]))
    boundaries = 0
    for index in range(30):
        item = data[index]
        for row, labels, documents in zip(*(item[name] for name in ("input_ids", "labels", "documents")), strict=True):
            length = len(row)
            starts = [s for s in range(int(row[0]), 5000 - length + 1, 290) if np.array_equal(IDS[s : s + length], row)]
            expected = [numbers[s : s + length] - numbers[s] for s in starts]
            assert any(np.array_equal(documents, numbered) for numbered in expected)
            begins = torch.cat((torch.tensor([False]), documents.diff() != 0))
            assert torch.equal(labels, row.masked_fill(begins, IGNORED))
            boundaries += int(begins.sum())
    assert boundaries > 0
    assert batches(tokenizer, Stage(1, 64, 3))[0]["documents"] is None


def test_a_recall_window_is_one_document(tokenizer):
    stage = Stage(1, 400, 3, recall_fraction=1.0, packing=True)
    item = StageBatches(IDS, tokenizer, [stage], block_size=7, seed=3, document_stops=range(10, 5001, 10))[0]
    assert (item["documents"] == 0).all()


def test_packing_needs_documents_and_attention_that_knows_them(tokenizer):
    with pytest.raises(ValueError, match="pass document_stops"):
        batches(tokenizer, Stage(1, 64, 3, packing=True))
    with pytest.raises(ValueError, match="packing change landmark attention"):
        Stage(1, 64, 3, attention="full", packing=True)


def test_stages_follow_each_other_by_optimizer_steps(tokenizer):
    data = batches(tokenizer, Stage(2, 32, 1, gates=False), Stage(3, 64, 2), micro_batches=2)
    assert len(data) == 10
    gates = [data[index]["stage"].gates for index in range(10)]
    assert gates == [False] * 4 + [True] * 6
    assert [len(data[index]["input_ids"]) for index in (3, 4)] == [1, 2]
    with pytest.raises(IndexError):
        data[10]


def test_a_batch_depends_on_seed_and_number_alone(tokenizer):
    stage = Stage(8, 400, 2, recall_fraction=0.5)
    first, again, other = (batches(tokenizer, stage, seed=seed) for seed in (3, 3, 4))
    for index in (7, 2, 5):
        for name in ("input_ids", "token_kinds"):
            assert torch.equal(first[index][name], again[index][name])
        assert first[index]["phase"] == again[index]["phase"]
    assert any(not torch.equal(first[i]["input_ids"][:, :300], other[i]["input_ids"][:, :300]) for i in range(8))


def test_phases_are_spread_over_the_block(tokenizer):
    data = batches(tokenizer, Stage(200, 32, 1))
    assert {data[index]["phase"] for index in range(200)} == set(range(7))


def test_tokens_per_step_is_the_mean_over_phases(tokenizer):
    stage = Stage(400, 61, 3)
    data = batches(tokenizer, stage, micro_batches=1)
    mean = np.mean([data[index]["input_ids"].numel() for index in range(400)])
    assert tokens_per_step(stage, 7, 2) == pytest.approx(2 * mean, rel=0.01)


def test_impossible_stages_are_errors(tokenizer):
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Stage(0, 64, 1)
    with pytest.raises(ValueError, match="recall_fraction"):
        Stage(1, 64, 1, recall_fraction=1.5)
    with pytest.raises(ValueError, match="fewer than a window"):
        batches(tokenizer, Stage(1, 6000, 1))
    with pytest.raises(ValueError, match="no room for two tokens"):
        batches(tokenizer, Stage(1, 2, 1), block_size=1)
    with pytest.raises(ValueError, match="fewer keys"):
        batches(tokenizer, Stage(1, 64, 1, recall_fraction=0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distractors": 9}, "attention 'landmark' keeps 9 distractors"),
        ({"attention": "landmark_distractors"}, "attention 'landmark_distractors' keeps 0 distractors"),
        ({"attention": "landmark_distractors", "distractors": 9}, "give a recall_fraction between 0 and 1, not 0.0"),
    ],
)
def test_distractors_need_windows_that_ask_and_windows_that_do_not(changes, message):
    with pytest.raises(ValueError, match=message):
        Stage(1, 64, 2, **changes)
