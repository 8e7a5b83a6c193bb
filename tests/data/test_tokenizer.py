import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from landmark.data.tokenizer import EOS, PAD, save_tokenizer, train_tokenizer


@given(text=st.text(max_size=60))
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@given(number=st.integers(0, 10**9))
def test_every_digit_is_a_token_and_the_prompt_before_a_number_does_not_depend_on_it(tokenizer, number):
    prompt = "What is the pass key? The pass key is "
    before, whole = tokenizer.encode(prompt).tokens, tokenizer.encode(f"{prompt}{number}.").tokens
    assert whole[: len(before)] == before
    assert whole[len(before) : -1] == list(str(number))


def test_saved_tokenizer_loads_in_transformers(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "The old whale,\n\n 42 times."
    assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
    assert (loaded.pad_token, loaded.eos_token, len(loaded)) == (PAD, EOS, 300)


def test_training_is_deterministic(tmp_path):
    (tmp_path / "a.txt").write_text("the whale and the sea and the ship 12 34\n" * 50)
    first, second = (train_tokenizer([str(tmp_path / "a.txt")], 270, tmp_path / name) for name in "bc")
    assert first.to_str() == second.to_str()


def test_impossible_requests_are_errors(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("few words")
    with pytest.raises(ValueError, match="at least 258"):
        train_tokenizer([str(path)], 257, tmp_path / "out")
    with pytest.raises(ValueError, match="yields only"):
        train_tokenizer([str(path)], 5000, tmp_path / "out")
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer([], 300, tmp_path / "out")
    train_tokenizer([str(path)], 258, tmp_path / "out")
    with pytest.raises(ValueError, match="already holds a tokenizer"):
        train_tokenizer([str(path)], 258, tmp_path / "out")
