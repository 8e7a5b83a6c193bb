"""Decoding: generate() and pipeline() on converted models as on any other, and `answer`."""

import pytest
import torch
from families import build, family
from transformers import GenerationConfig, TextIteratorStreamer, pipeline

import landmark
from landmark.hf.compat import cache_kwargs
from landmark.hf.reader import answer, chunks

IDS = torch.randint(3, 61, (2, 70), generator=torch.Generator().manual_seed(5))


def converted(name="llama", **options):
    options = {"block_size": 5, "retrieve": 2, "local_blocks": 1} | options
    model = landmark.convert(family(name), **options)
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=None, max_new_tokens=12, do_sample=False)
    return model


def greedy_by_hand(model, ids):
    """The same text token by token through a cache."""
    cache = landmark.LandmarkCache(model.config)
    out = []
    with torch.no_grad():
        for _ in range(12):
            ids = model(input_ids=ids, past_key_values=cache).logits[:, -1:].argmax(-1)
            out.append(ids)
    return torch.cat(out, 1)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "gpt_neox"])
def test_greedy_makes_its_own_cache(name):
    model = converted(name)
    out = model.generate(IDS, return_dict_in_generate=True)
    assert isinstance(out.past_key_values, landmark.LandmarkCache)
    assert out.past_key_values.get_seq_length() == 81
    assert torch.equal(out.sequences[:, 70:], greedy_by_hand(model, IDS))


def test_the_landmark_is_never_generated():
    model = converted()
    with torch.no_grad():  # make it the favourite
        model.get_output_embeddings().weight[61] *= 1000
    out = model.generate(IDS, do_sample=True, top_k=0, temperature=5.0, max_new_tokens=60)
    assert (out < 61).all()


def test_prefill_in_chunks():
    model = converted(retrieve=30, positions="true")
    assert torch.equal(model.generate(IDS, prefill_chunk_size=9), model.generate(IDS))


def test_left_padded_batch_equals_rows_alone():
    model = converted()
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[0, :23], mask[0, :23] = 0, 0
    both = model.generate(ids, attention_mask=mask)
    assert torch.equal(both[:1, 70:], model.generate(IDS[:1, 23:])[:, 47:])
    assert torch.equal(both[1:, 70:], model.generate(IDS[1:])[:, 70:])


@pytest.mark.parametrize("chunk_size", [None, 9, 20])
def test_right_padding_is_passed_over_as_well(chunk_size):
    model = converted()
    model.generation_config.max_new_tokens = 6
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[0, 31:], mask[0, 31:] = 0, 0

    def answered(ids, **options):
        cache = landmark.LandmarkCache(model.config, chunk_size=chunk_size)
        return model.generate(ids, past_key_values=cache, **options)[:, ids.shape[1] :]

    both = answered(ids, attention_mask=mask)
    assert torch.equal(both[:1], answered(IDS[:1, :31]))
    assert torch.equal(both[1:], answered(IDS[1:]))


def test_beams_keep_each_its_own_memory():
    model = converted()
    out = model.generate(
        IDS,
        num_beams=3,
        num_return_sequences=2,
        return_dict_in_generate=True,
        output_scores=True,
        length_penalty=0.0,
    )
    for row, score in zip(out.sequences, out.sequences_scores, strict=False):
        # The score of a beam is the likelihood that reading it alone gives.
        cache = landmark.LandmarkCache(model.config)
        with torch.no_grad():
            steps = [model(input_ids=row[None, :70], past_key_values=cache).logits[:, -1]]
            for token in row[70:-1]:
                steps.append(model(input_ids=token.view(1, 1), past_key_values=cache).logits[:, -1])
        likelihood = torch.cat(steps).log_softmax(-1).gather(1, row[70:, None]).sum()
        torch.testing.assert_close(likelihood, score, atol=1e-3, rtol=1e-4)


def test_several_answers_to_a_text_read_once():
    model = converted()
    cache = landmark.read(model, IDS[:1, :60])
    with pytest.raises(ValueError, match=r"batch_repeat_interleave"):
        model.generate(IDS[:1], past_key_values=cache, num_beams=3)
    alone = model.generate(IDS[:1], past_key_values=landmark.read(model, IDS[:1, :60]))
    cache.batch_repeat_interleave(3)
    found = model.generate(IDS[:1], past_key_values=cache, do_sample=True, top_k=1, num_return_sequences=3)
    assert torch.equal(found, alone.expand(3, -1))


def test_sampling_is_repeatable():
    model = converted()
    outs = []
    for _ in range(2):
        torch.manual_seed(0)
        outs.append(model.generate(IDS, do_sample=True, num_return_sequences=2))
    assert torch.equal(*outs)
    assert outs[0].shape == (4, 82)


def test_continuation_from_an_earlier_cache():
    model = converted()
    cache = landmark.read(model, IDS[:1, :60])
    out = model.generate(IDS[:1], past_key_values=cache)
    reference = landmark.LandmarkCache(model.config)
    landmark.read(model, IDS[:1, :60], reference)
    with torch.no_grad():
        first = model(input_ids=IDS[:1, 60:], past_key_values=reference).logits[:, -1].argmax(-1)
    assert out[0, 70] == first
    assert cache.get_seq_length() == 81
    longer = torch.cat((out, IDS[:1, :3]), 1)
    assert model.generate(longer, past_key_values=cache).shape[1] == 85 + 12


def test_embeddings_instead_of_ids():
    model = converted()
    embeds = model.get_input_embeddings()(IDS)
    assert torch.equal(model.generate(inputs_embeds=embeds), model.generate(IDS)[:, 70:])


def test_without_a_cache_every_step_is_the_training_attention():
    model = converted(retrieve=40, positions="true")
    assert torch.equal(model.generate(IDS, use_cache=False), model.generate(IDS))


def test_prompt_lookup_takes_back_rejected_tokens():
    model = converted(local_blocks=3)
    ids = IDS[:1, :20].repeat(1, 3)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3), model.generate(ids))


def test_streamer_and_pipeline(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(61)}
    bare = Tokenizer(models.WordLevel(words, unk_token="w3"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="w0", padding_side="left")
    model = converted()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    ids = model.generate(IDS[:1], streamer=streamer)
    assert "".join(streamer).split() == tokenizer.decode(ids[0, 70:]).split()
    talk = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = ["w5 w6 w7 " * 9, "w8 w9"]
    answers = talk(prompts, batch_size=2, max_new_tokens=5, return_full_text=False)
    alone = [talk(p, max_new_tokens=5, return_full_text=False) for p in prompts]
    assert [a[0]["generated_text"] for a in answers] == [a[0]["generated_text"] for a in alone]


STORED = {
    "repetition_penalty": 1.5,
    "no_repeat_ngram_size": 1,
    "forced_eos_token_id": 5,
    "guidance_scale": 2.0,
    "max_time": 1e-9,
    "num_beams": 3,
    "cache_implementation": "static",
    "stop_strings": ["x"],
}


@pytest.mark.parametrize("name", STORED)
def test_answers_know_no_stored_settings(name):
    model = converted()
    ids = IDS[0]
    expected = answer(model, ids[-1:], landmark.read(model, ids[:-1]), max_new_tokens=8)
    setattr(model.generation_config, name, STORED[name])
    assert answer(model, ids[-1:], landmark.read(model, ids[:-1]), max_new_tokens=8) == expected
    assert getattr(model.generation_config, name) == STORED[name] or name == "cache_implementation"


@pytest.mark.parametrize("name", ["phi3", "phimoe"])
def test_a_class_of_its_own_does_not_drop_the_cache(name):
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope |= {"original_max_position_embeddings": 64, "short_mscale": 1.0, "long_mscale": 1.0}
    changes = {"original_max_position_embeddings": 64, "rope_parameters": rope, "num_local_experts": 4}
    model = landmark.convert(build(name, changes), block_size=5, retrieve=2)
    text, question = IDS[:1], torch.randint(3, 61, (1, 70), generator=torch.Generator().manual_seed(8))
    cache = landmark.read(model, text)
    branch = cache.fork()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(question, past_key_values=branch, **options)[:, 70:]
    ids, by_hand, branch = question, [], cache.fork()
    with torch.no_grad():
        for _ in range(5):
            ids = model(input_ids=ids, **cache_kwargs(model, branch)).logits[:, -1:].argmax(-1)
            by_hand.append(ids)
    assert torch.equal(found, torch.cat(by_hand, 1))


def test_chunks_cover_a_text_once_and_in_order():
    assert [chunk.tolist() for chunk in chunks(IDS[:1, :7], 3)] == [
        IDS[:1, a:b].tolist() for a, b in ((0, 3), (3, 6), (6, 7))
    ]
    sizes = iter([4, 1, 9])
    assert [chunk.shape[1] for chunk in chunks(IDS[:, :10], lambda: next(sizes))] == [4, 1, 5]
    assert list(chunks(IDS[:, :0], 3)) == []
    with pytest.raises(ValueError, match="a chunk has 0 tokens"):
        next(chunks(IDS, 0))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([5, -1], "ids below 0"),
        (torch.rand(1, 20), r"input_ids are torch.float32 \[1, 20\]: give whole numbers"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "give whole numbers"),
        (5, "give whole numbers"),
    ],
)
def test_ids_that_are_none(ids, said):
    model = landmark.convert(family("llama"), block_size=5, retrieve=2)
    with pytest.raises(ValueError, match=said):
        landmark.read(model, ids)


@pytest.mark.parametrize("size", [2.5, 0, True, "8", 10**6])
def test_chunk_sizes_that_are_none(size):
    model = landmark.convert(family("llama"), block_size=5, retrieve=2)
    with pytest.raises(ValueError, match="chunk"):
        landmark.read(model, [5, 6, 7], chunk_size=size)
