"""A tokenizer that does not belong to the model is refused."""

import pytest
from families import family
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import landmark
from landmark.hf.tokenizer import bos_tokens, encode, load_tokenizer


def saved(folder, words, **options):
    bare = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w3"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=bare, **options).save_pretrained(folder)
    return folder


def test_belongs(tmp_path):
    model = landmark.convert(family("llama"), block_size=5)
    tokenizer = load_tokenizer(saved(tmp_path, 61), model)
    text = encode(tokenizer, "w5 w60")
    assert text.ids.tolist() == [5, 60]
    assert text.offsets == [(0, 2), (3, 6)]
    assert bos_tokens(tokenizer).ids.tolist() == []


def test_more_tokens_than_rows(tmp_path):
    model = landmark.convert(family("llama"), block_size=5)
    with pytest.raises(ValueError, match="has 62 tokens, the model 61 rows for text"):
        load_tokenizer(saved(tmp_path, 62), model)


def test_landmark_in_the_midst_of_the_tokens(tmp_path):
    model = landmark.convert(family("llama"), block_size=5, landmark_id=7)
    with pytest.raises(ValueError, match="row 7 is the token 'w7'"):
        load_tokenizer(saved(tmp_path, 61), model)


def test_a_special_token_may_be_the_landmark(tmp_path):
    model = landmark.convert(family("llama"), block_size=5, landmark_id=60)
    assert len(load_tokenizer(saved(tmp_path, 61, additional_special_tokens=["w60"]), model)) == 61


def test_no_tokenizer(tmp_path):
    model = landmark.convert(family("llama"), block_size=5)
    with pytest.raises(ValueError, match="no tokenizer at"):
        load_tokenizer(tmp_path, model)


def test_unknown_characters_are_no_landmarks(tmp_path):
    model = landmark.convert(family("llama"), block_size=5, landmark_id=3)
    with pytest.raises(ValueError, match="makes the landmark's token 'w3' out of texts"):
        load_tokenizer(saved(tmp_path, 61, additional_special_tokens=["w3"]), model)


def test_what_a_text_names_is_text(tmp_path):
    model = landmark.convert(family("llama"), block_size=5, landmark_id=60)
    tokenizer = load_tokenizer(saved(tmp_path, 61, additional_special_tokens=["w60"], eos_token="w2"), model)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    text = encode(tokenizer, "w5 w2 w60 w7")
    assert text.ids.tolist() == [5, 3, 3, 7], "the token for unknown words, not the special ones"
    assert text.offsets == [(0, 2), (3, 5), (6, 9), (10, 12)]
