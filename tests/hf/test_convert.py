"""Conversion: what it changes, what it leaves, whom it refuses."""

import copy
import pickle

import pytest
import torch
import transformers
from families import FAMILIES, REJECTED, build, family

import landmark
from landmark.hf.config import landmark_settings
from landmark.hf.loading import cast
from landmark.ops.attention import grouped_attention

IDS = torch.randint(3, 61, (2, 50), generator=torch.Generator().manual_seed(1))


def logits(model, ids=IDS, **options):
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_without_gates_equals_plain_causal_attention_over_the_stream(name):
    model = family(name)
    plain = copy.deepcopy(model)
    landmark.convert(model, block_size=7)
    # The same stream, written by hand, through the untouched model: ordinary tokens, each 7 followed by a landmark.
    # It is longer than the range at which longrope switches to its long table, the one a converted model keeps to.
    ids = torch.cat((IDS, IDS), 1)[:, :80]
    rows, mark = (
        model.get_input_embeddings().weight.detach(),
        model.config.get_text_config().landmark["landmark_id"],
    )
    places = [i + i // 7 for i in range(80)]
    stream = torch.full((2, 91), mark)
    stream[:, places] = ids
    plain.resize_token_embeddings(len(rows), mean_resizing=False)
    plain.load_state_dict(model.state_dict())
    expected = logits(plain, stream)[:, places]
    found = logits(model, ids, landmark_gates=False)
    keep = [i for i in range(len(rows)) if i != mark]
    torch.testing.assert_close(found[..., keep], expected[..., keep], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", REJECTED)
def test_models_that_cannot_work_are_refused_with_the_reason_and_left_alone(name):
    model_type, differences, reason = REJECTED[name]
    model = build(model_type, differences)
    before = logits(model)
    with pytest.raises(ValueError, match=reason):
        landmark.convert(model, block_size=7)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


def test_adds_one_row_the_mean_of_the_others_that_no_logits_have():
    model = family("llama")
    mean = model.get_input_embeddings().weight.detach().mean(0)
    landmark.convert(model, block_size=7)
    assert model.config.vocab_size == 61
    assert model.config.landmark["landmark_id"] == 61
    torch.testing.assert_close(model.get_input_embeddings().weight[61].detach(), mean)
    assert logits(model).shape == (2, 50, 61)


def test_converting_again_changes_what_is_named_and_nothing_else():
    model = landmark.convert(family("llama"), block_size=7, retrieve=3, selection="per_token", local_blocks=2)
    once, settings = logits(model), dict(model.config.landmark)
    landmark.convert(model)
    torch.testing.assert_close(logits(model), once, rtol=0, atol=0)
    assert model.config.landmark == settings
    landmark.convert(model, retrieve=2)
    assert model.config.landmark == settings | {"retrieve": 2}
    with pytest.raises(ValueError, match="this model's landmark is row 61"):
        landmark.convert(model, landmark_id=5)
    assert model.config.vocab_size == 61


def test_pickle_and_deepcopy_keep_the_model_whole():
    model = landmark.convert(family("gemma3"), block_size=7)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(logits(twin), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt_neox", "gpt_oss"])
def test_save_and_load_round_trip(name, tmp_path):
    model = landmark.convert(family(name), block_size=7, retrieve=3, local_blocks=1)
    model.save_pretrained(tmp_path)
    loaded = landmark.from_pretrained(tmp_path)
    assert loaded.config.get_text_config().landmark == model.config.get_text_config().landmark
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_a_model_has_not_learnt_blocks_of_another_size():
    model = landmark.convert(family("llama"), block_size=7, trained_tokens=100)
    for changes, learnt in [({"retrieve": 3}, 100), ({"block_size": 7}, 100), ({"block_size": 5}, 0)]:
        assert landmark_settings(landmark.convert(model, **changes).config).trained_tokens == learnt
    assert landmark_settings(landmark.convert(model, block_size=9, trained_tokens=5).config).trained_tokens == 5


def test_loading_a_model_without_landmarks_says_what_to_do(tmp_path):
    family("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="convert"):
        landmark.from_pretrained(tmp_path)


def test_padding_on_either_side_changes_nothing():
    model = landmark.convert(family("llama"), block_size=7)
    alone = logits(model, IDS[:1, :31])
    for left in (True, False):
        pad = torch.zeros(1, 19, dtype=torch.long)
        ids = torch.cat((pad, IDS[:1, :31]) if left else (IDS[:1, :31], pad), 1)
        mask = torch.cat((pad, pad[:, :1].expand(1, 31) + 1) if left else (pad[:, :1].expand(1, 31) + 1, pad), 1)
        both = logits(model, torch.cat((ids, IDS[1:])), attention_mask=torch.cat((mask, torch.ones(1, 50).long())))
        found = both[:1, 19:] if left else both[:1, :31]
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)


def test_phase_starts_the_window_inside_a_block(monkeypatch):
    seen = []

    def spy(*args, **kwargs):
        seen.append((kwargs["block_size"], kwargs["phase"]))
        return grouped_attention(*args, **kwargs)

    model = landmark.convert(family("llama"), block_size=7)
    monkeypatch.setattr("landmark.hf.calls.grouped_attention", spy)
    shifted = logits(model, landmark_phase=3)
    assert set(seen) == {(7, 3)}
    assert not torch.allclose(shifted, logits(model))
    # No landmark has come yet in the first 4 tokens: they see the same as without phase.
    torch.testing.assert_close(shifted[:, :4], logits(model)[:, :4], atol=1e-5, rtol=1e-4)


def test_jumps_of_zero_change_nothing():
    model = landmark.convert(family("llama"), block_size=7)
    still = logits(model, landmark_phase=3, landmark_jumps=torch.zeros(2, 50, dtype=torch.long))
    torch.testing.assert_close(still, logits(model, landmark_phase=3), rtol=0, atol=0)


@pytest.mark.parametrize("phase", [0, 3])
def test_jumps_put_positions_behind_each_landmark(phase):
    plain = family("llama")
    model = landmark.convert(copy.deepcopy(plain), block_size=7)
    mark = model.config.landmark["landmark_id"]
    plain.resize_token_embeddings(mark + 1, mean_resizing=False)
    plain.load_state_dict(model.state_dict())
    jumps = torch.randint(0, 20, (2, 9))
    rows = []
    for ids, row in zip(IDS.tolist(), jumps.tolist(), strict=True):
        stream, positions, position = [], [], 0
        for count, token in enumerate(ids, start=1):
            stream.append(token)
            positions.append(position)
            position += 1
            if (phase + count) % 7 == 0:
                stream.append(mark)
                positions.append(position)
                position += 1 + row[stream.count(mark) - 1]
        rows.append((stream, positions))
    stream, positions = (torch.tensor(x) for x in zip(*rows, strict=True))
    expected = logits(plain, stream, position_ids=positions)[stream != mark].view(2, 50, -1)
    options = {"landmark_phase": phase, "landmark_gates": False}
    found = logits(model, landmark_jumps=jumps, **options)
    torch.testing.assert_close(found[..., :mark], expected[..., :mark], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found, logits(model, **options), atol=1e-4)
    # With gates they stand at the same positions: what a window sees before its first landmark is what it always saw.
    gated, still = (logits(model, landmark_phase=phase, **given) for given in ({"landmark_jumps": jumps}, {}))
    torch.testing.assert_close(gated[:, : 7 - phase], still[:, : 7 - phase], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(gated, still, atol=1e-4)


@pytest.mark.parametrize("jumps", [torch.zeros(2, 6).long(), torch.zeros(9).long(), -torch.ones(2, 9).long()])
def test_jumps_that_mean_nothing_are_named(jumps):
    model = landmark.convert(family("llama"), block_size=7)
    with pytest.raises(ValueError, match="give 7 numbers of 0 or more for each row"):
        logits(model, landmark_jumps=jumps)


def test_dropped_blocks_are_closed_to_all_that_follow():
    model = landmark.convert(family("llama"), block_size=7)
    torch.testing.assert_close(logits(model, landmark_block_dropout=0.0), logits(model), rtol=0, atol=0)
    # With every gate closed a token sees its own block and nothing else, as if each were read alone.
    closed = logits(model, landmark_phase=3, landmark_block_dropout=1.0)
    alone = [logits(model, block) for block in IDS.split([4, 7, 7, 7, 7, 7, 7, 4], 1)]
    torch.testing.assert_close(closed, torch.cat(alone, 1), atol=1e-5, rtol=1e-4)
    half = logits(model, landmark_phase=3, landmark_block_dropout=0.5)
    for other in (closed, logits(model, landmark_phase=3), logits(model, landmark_phase=3, landmark_block_dropout=0.5)):
        assert not torch.allclose(half, other, atol=1e-4)


def test_training_with_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        model = landmark.convert(family("llama"), block_size=7).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=IDS, labels=IDS, landmark_phase=2).loss.backward()
        grads.append(model.get_input_embeddings().weight.grad)
    assert grads[0][61].abs().sum() > 0  # the landmark row learns
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": 7, "retrieve": -1}, "retrieve is -1"),
        ({"block_size": 7, "local_blocks": -2}, "local_blocks"),
        ({"block_size": 7, "top_k": 4}, "top_k: no setting of reading, which are .* retrieve"),
        ({"block_size": 7, "selection": "best"}, "selection"),
        ({"block_size": 7, "positions": "absolute"}, "positions"),
        ({"block_size": 7, "landmark_id": 99}, "landmark_id is 99"),
        ({"block_size": 63, "retrieve": 4}, r"\(retrieve 4 \+ 1 \+ local_blocks 1 \+ 1\) \* stride 64 = 448"),
    ],
)
def test_bad_settings_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        landmark.convert(family("llama"), **options)


def test_too_long_without_a_cache_is_a_warning_that_names_the_remedy():
    model = landmark.convert(family("llama"), block_size=7)
    with pytest.warns(UserWarning, match="LandmarkCache"):
        model(input_ids=IDS[:1].repeat(1, 6))


def test_a_foreign_cache_is_an_error():
    model = landmark.convert(family("llama"), block_size=7)
    with pytest.raises(ValueError, match="StaticCache"):
        model.generate(
            IDS[:1], max_new_tokens=2, past_key_values=transformers.StaticCache(model.config, max_cache_len=60)
        )


def test_a_model_in_another_dtype_keeps_its_rotary_frequencies(tmp_path):
    landmark.convert(family("llama"), block_size=7).save_pretrained(tmp_path)
    loaded = landmark.from_pretrained(tmp_path, dtype=torch.bfloat16)
    made = cast(landmark.from_pretrained(tmp_path), torch.bfloat16)
    assert made.dtype == torch.bfloat16
    assert made.model.rotary_emb.inv_freq.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(made(input_ids=IDS).logits, loaded(input_ids=IDS).logits)
