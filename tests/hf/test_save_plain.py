import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, PreTrainedTokenizerFast

import landmark
from landmark import save_plain

IDS = torch.arange(2, 20)[None]


@pytest.fixture
def converted(tmp_path):
    """The folder of a converted model with a tokenizer, and the logits that it gave before it was converted."""
    config = GPTNeoXConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    before = model(input_ids=IDS).logits
    landmark.convert(model, block_size=7).save_pretrained(tmp_path / "converted")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(tmp_path / "converted")
    return tmp_path / "converted", before


def test_a_plain_model_is_what_was_converted(converted, tmp_path):
    folder, before = converted
    save_plain(folder, tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype="float32")
    assert not hasattr(model.config, "landmark")
    assert model.get_input_embeddings().num_embeddings == 30
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "plain")) == 0


def test_a_landmark_that_is_a_token_of_the_model_stays(converted, tmp_path):
    folder, _ = converted
    save_plain(folder, tmp_path / "untouched")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "untouched", dtype="float32")
    landmark.convert(model, block_size=7, landmark_id=3).save_pretrained(folder)
    with pytest.raises(ValueError, match="row 3 of 30"):
        save_plain(folder, tmp_path / "plain")


def test_nothing_is_written_over(converted, tmp_path):
    folder, _ = converted
    (tmp_path / "plain").mkdir()
    with pytest.raises(ValueError, match="plain exists: give a new folder"):
        save_plain(folder, tmp_path / "plain")


def test_a_landmark_that_became_a_token_stays(converted, tmp_path):
    folder, _ = converted
    words = Tokenizer(models.WordLevel({f"word{number}": number for number in range(31)}, "word0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    with pytest.raises(ValueError, match="row 30 of 30"):
        save_plain(folder, tmp_path / "plain")
