"""Passkey retrieval: prompts, answers and the log of samples."""

import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from landmark.evaluation import passkey
from landmark.evaluation.passkey import PasskeyPrompts, Sample, ask, contents, run, summary
from landmark.evaluation.reading import Reading
from landmark.evaluation.samples import Journal, by_depth, depths
from landmark.hf.tokenizer import encode
from landmark.settings import ReadingSettings

SETTINGS = {"model": "m", "seed": 0}


@pytest.fixture
def keys(tokenizer) -> PasskeyPrompts:
    return PasskeyPrompts(tokenizer, tokenizer(("jim looked at the sea . " * 10), return_tensors="pt").input_ids[0])


def sample(depth: float, correct: bool, index: int = 0) -> Sample:
    return Sample(100, index, depth, "12345", "12345", correct, 2.0, 10.0 * (index + 1))


def test_depths_run_from_start_to_end():
    assert depths(5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert depths(1) == [0.5]
    with pytest.raises(ValueError, match="samples is 0"):
        depths(0)


@pytest.mark.parametrize("length", [90, 101, 1000])
def test_prompts_have_the_length_and_state_the_key_at_its_depth(keys, tokenizer, length):
    keys.check_length(length)
    for index, depth in enumerate(depths(3)):
        prompt = keys.prompt(length, index, 3)
        assert len(prompt.text) + len(prompt.question) == length
        stated = tokenizer.decode(prompt.text[prompt.stated.start : prompt.stated.stop])
        assert stated == f"\n\nThe pass key is {prompt.key}. Remember it. {prompt.key} is the pass key.\n\n"
        assert prompt.stated.start == round(depth * (len(prompt.text) - len(prompt.stated)))
        assert tokenizer.decode(prompt.question).endswith("The pass key is ")
        filler = torch.cat((prompt.text[: prompt.stated.start], prompt.text[prompt.stated.stop :]))
        cycle = torch.cat((keys.haystack,) * (length // len(keys.haystack) + 2))
        assert any(torch.equal(filler, cycle[i : i + len(filler)]) for i in range(len(keys.haystack)))


def test_prompts_depend_on_seed_length_and_number_only(keys, tokenizer):
    again = PasskeyPrompts(tokenizer, keys.haystack)
    again.prompt(500, 1, 3)
    assert torch.equal(keys.prompt(300, 2, 3).text, again.prompt(300, 2, 3).text)
    others = [PasskeyPrompts(tokenizer, keys.haystack, seed=1).prompt(300, 2, 3), keys.prompt(300, 1, 3)]
    assert len({keys.prompt(300, 2, 3).key, *(other.key for other in others)}) == 3


def test_too_short(keys):
    least = next(n for n in range(1000) if _fits(keys, n))
    with pytest.raises(ValueError, match=f"give {least} tokens or more"):
        keys.check_length(least - 1)
    assert len(keys.prompt(least, 0, 1).text) > len(keys.prompt(least, 0, 1).stated)


def _fits(keys: PasskeyPrompts, length: int) -> bool:
    try:
        keys.check_length(length)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("attention", ["landmark", "local", "full"])
def test_answers_are_what_the_model_generates(model, keys, tokenizer, attention):
    prompt = keys.prompt(150, 1, 3)
    reading = Reading.of(model.config, attention)
    said = ask(model, tokenizer, prompt, reading.cache(model.config), chunk_size=reading.chunk_size)
    ids = torch.cat((prompt.text, prompt.question))[None]
    cache = reading.cache(model.config)
    with torch.no_grad():
        if cache is not None:
            for piece in prompt.text[None].split(reading.chunk_size, dim=1):
                model(input_ids=piece, past_key_values=cache)
        new, asked = ids, prompt.question[None]
        for _ in range(5):
            options = {} if cache is None else {"past_key_values": cache}
            logits = model(input_ids=new if cache is None else asked, **options).logits
            asked = logits[:, -1:].argmax(-1)
            new = torch.cat((new, asked), 1)
    assert said == tokenizer.decode(new[0, 150:], skip_special_tokens=True).strip()


def test_run_counts_right_answers_and_tokens(model, keys, tokenizer, monkeypatch):
    replies = iter([keys.prompt(200, 0, 4).key, "00000", keys.prompt(200, 3, 4).key])

    def stub(model, ids, cache, max_new_tokens):
        assert torch.equal(ids, keys.question)
        assert cache.tokens_read() == [200 - len(keys.question)]
        assert max_new_tokens == 5
        return tokenizer(next(replies)).input_ids

    monkeypatch.setattr(passkey, "answer", stub)
    seen: list[int] = []
    samples = list(run(model, keys, Reading.of(model.config), 200, [0, 1, 3], 4, seen.append))
    assert [s.correct for s in samples] == [True, False, True]
    assert [s.index for s in samples] == [0, 1, 3]
    assert sum(seen) == 600
    assert all(s.peak_rss_mb > 1 and s.seconds > 0 for s in samples)


def test_accuracy_by_depth():
    samples = [
        sample(0.0, True),
        sample(0.05, False),
        sample(0.3, True),
        sample(0.95, False),
        sample(1.0, True),
    ]
    assert by_depth(samples) == {"0.0-0.1": 0.5, "0.3-0.4": 1.0, "0.9-1.0": 0.5}


def test_summary_by_hand():
    reading = Reading("landmark", 5, ReadingSettings(retrieve=2, local_blocks=1, chunk_size=9))
    line = summary(reading, 100, [sample(0.0, True), sample(1.0, False, index=1)])
    assert line == {
        "length": 100,
        "accuracy": 0.5,
        "samples": 2,
        "by_depth": {"0.0-0.1": 1.0, "0.9-1.0": 0.0},
        "attention": "landmark",
        "retrieve": 2,
        "local_blocks": 1,
        "chunk_size": 9,
        "max_blocks": None,
        "selection": "per_token_and_head",
        "miss_threshold": 0.0,
        "positions": "stingy",
        "gap": 0,
        "allow_nonfinite": False,
        "tokens_per_s": 50.0,
        "seconds": 4.0,
        "peak_rss_mb": 20.0,
    }


def test_log_goes_on_after_an_interruption(tmp_path):
    path = tmp_path / "log.jsonl"
    Journal(path, SETTINGS, Sample).add(sample(0.0, True))
    with path.open("a") as file:
        file.write('{"length": 100, "index": 1, "dep')  # killed while writing
    journal = Journal(path, SETTINGS, Sample)
    assert journal.samples == {(100, 0): sample(0.0, True)}
    journal.add(sample(1.0, False, index=1))
    assert len(Journal(path, SETTINGS, Sample).samples) == 2
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_log_cut_short_in_its_first_line_starts_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"model":')
    Journal(path, SETTINGS, Sample).add(sample(0.0, True))
    assert len(Journal(path, SETTINGS, Sample).samples) == 1


def test_log_of_something_else(tmp_path):
    path = tmp_path / "log.jsonl"
    Journal(path, SETTINGS, Sample)
    with pytest.raises(ValueError, match=r"another seed \(0, now 1\)"):
        Journal(path, SETTINGS | {"seed": 1}, Sample)
    for text in ("Call me Ishmael.\n", "Call me Ishmael.", "{}\nIshmael", "[1]\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"not a log|does not record the model"):
            Journal(path, SETTINGS, Sample)
        assert path.read_text() == text
    with pytest.raises(ValueError, match="does not exist"):
        Journal(tmp_path / "nowhere" / "log.jsonl", SETTINGS, Sample)


def llama_like() -> PreTrainedTokenizerFast:
    """Puts a space in front of every text, and reads numbers digit by digit."""
    bare = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bare.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bare.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    bare.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    lesson = ["The pass key is 0123456789. Remember it. What is the pass key?\n\nSome words of a story that goes on."]
    bare.train_from_iterator(lesson, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>")


def test_who_makes_no_mistake_is_right_whatever_the_tokenizer(tokenizer, monkeypatch):
    for one in (tokenizer, llama_like()):
        keys = PasskeyPrompts(one, encode(one, "Some words of a story that goes on. " * 30).ids)
        for index in range(4):
            prompt = keys.prompt(300, index, 4)
            together = encode(one, "a" + passkey.passkey_question() + prompt.key + ". Remember it.").ids.tolist()
            asked = prompt.question.tolist()
            start = next(i for i in range(len(together)) if together[i : i + len(asked)] == asked) + len(asked)
            ideal = together[start:]
            monkeypatch.setattr(passkey, "answer", lambda *_, max_new_tokens, ideal=ideal: ideal[:max_new_tokens])
            assert ask(None, one, prompt, None) == prompt.key


def test_prompts_join_without_extra_spaces():
    tokenizer = llama_like()
    keys = PasskeyPrompts(tokenizer, encode(tokenizer, "Some words of a story that goes on. " * 30).ids)
    for length in range(150, 160):
        keys.check_length(length)
        prompt = keys.prompt(length, 1, 3)
        read = tokenizer.decode(torch.cat((prompt.text, prompt.question)))
        assert f"\n\nThe pass key is {prompt.key}. Remember it." in read
        assert " \n\n" not in read.replace(". \n\n", ".\n\n").replace("on. ", "on.")


def test_log_names_model_tokenizer_and_text_by_their_contents(model, keys, tokenizer):
    told = contents(model, keys)
    assert contents(copy.deepcopy(model), PasskeyPrompts(tokenizer, keys.haystack.clone())) == told
    with torch.no_grad():
        other = copy.deepcopy(model)
        other.get_output_embeddings().weight.view(-1)[-1] += 1  # one number of one weight
    changed = keys.haystack.clone()
    changed[-1] += 1
    adding = copy.deepcopy(tokenizer)
    adding.add_tokens(["whale-boat"])
    for now, name in (
        (contents(other, keys), "model"),
        (contents(model, PasskeyPrompts(tokenizer, changed)), "haystack"),
        (contents(model, PasskeyPrompts(adding, keys.haystack)), "tokenizer"),
    ):
        assert {key for key in told if told[key] != now[key]} == {name}
