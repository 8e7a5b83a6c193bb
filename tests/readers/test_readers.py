"""What all readers have in common: segments, calls, and models that they cannot serve."""

import pytest
import torch
from reader_cases import sharp

import landmark
from landmark.readers.memorizing import Memorizing, add_memory_gates
from landmark.readers.recurrent import Recurrent, RecurrentLandmarks
from landmark.readers.retrieval import RetrievedLandmarks
from landmark.readers.sinks import Sinks

IDS = torch.randint(3, 61, (2, 41), generator=torch.Generator().manual_seed(5))
READERS = {
    "recurrent": lambda: Recurrent(9, 6),
    "recurrent landmarks": lambda: RecurrentLandmarks(9, 12, 7, phase=2),
    "sinks": lambda: Sinks(9, 6, 2),
    "memorizing": lambda: Memorizing(9, 3, 1),
    "retrieved landmarks": lambda: RetrievedLandmarks(9, 1, 7, phase=2),
}


@pytest.fixture(params=READERS)
def make(request):
    return READERS[request.param]


def model_with_gates(name: str = "llama", **changes):
    return add_memory_gates(sharp(name, **changes), 1)


def test_call_after_call_reads_what_one_call_does(make):
    model = model_with_gates()
    with torch.no_grad():
        whole = model(input_ids=IDS, landmark_reader=make()).logits
        for cut in ([9, 9, 9, 9, 5], [27, 14]):
            reader = make()
            parts = [model(input_ids=piece, landmark_reader=reader).logits for piece in IDS.split(cut, 1)]
            torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-12, rtol=0)
        reader = make()
        one = model(input_ids=IDS[1:], landmark_reader=reader).logits
    torch.testing.assert_close(one, whole[1:], atol=1e-12, rtol=0)
    assert reader.seen - make().seen == 41


def test_later_tokens_change_nothing(make):
    model, other = model_with_gates(), IDS.clone()
    other[:, 22:] = 5
    with torch.no_grad():
        first, second = (model(input_ids=ids, landmark_reader=make()).logits for ids in (IDS, other))
    torch.testing.assert_close(first[:, :22], second[:, :22], atol=1e-12, rtol=0)
    assert not torch.allclose(first[:, 22:], second[:, 22:], atol=1e-3)


def test_hidden_states_of_all_segments_come_back_without_landmarks(make):
    out = model_with_gates()(input_ids=IDS, landmark_reader=make(), output_hidden_states=True)
    assert [state.shape for state in out.hidden_states] == [(2, 41, 32)] * 4


def test_what_readers_cannot_serve_is_refused(make):
    model = model_with_gates()
    with pytest.raises(ValueError, match="rows of one length"):
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS), landmark_reader=make())
    with pytest.raises(ValueError, match="its own cache"):
        model(input_ids=IDS, past_key_values=landmark.LandmarkCache(model.config), landmark_reader=make())
    with pytest.raises(ValueError, match="landmark_phase: for forwards without a cache or a reader"):
        model(input_ids=IDS, landmark_phase=2, landmark_reader=make())


def test_gradient_checkpointing_is_refused_in_training_alone(make):
    model = model_with_gates()
    model.gradient_checkpointing_enable()
    model(input_ids=IDS, landmark_reader=make())
    with pytest.raises(ValueError, match="switch gradient checkpointing off"):
        model.train()(input_ids=IDS, landmark_reader=make())


def test_models_with_sliding_layers_are_refused(make):
    with pytest.raises(ValueError, match="sliding layers of its own"):
        model_with_gates("gemma2")(input_ids=IDS, landmark_reader=make())
