import json
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from landmark.cli import main as cli

# Modules of helpers, not packages: `cli_texts` here, `tiny_reader` beside the tests of the evaluation.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "evaluation")]

from cli_texts import BOOK, NOTE  # noqa: E402


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_reader import save

    return save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def plain_folder(model_folder, tmp_path_factory) -> str:
    """A model before conversion, with a tokenizer."""
    folder = tmp_path_factory.mktemp("plain")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def files(tmp_path):
    for name, text in (("book.txt", BOOK), ("note.txt", NOTE)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return [str(tmp_path / name) for name in ("book.txt", "note.txt")]


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "long_book.txt"
    path.write_text(BOOK * 3, encoding="utf-8")
    return path


@pytest.fixture
def context(tmp_path, files, model_folder, capsys):
    path = tmp_path / "library"
    assert cli.main(["read", "--model", str(model_folder), "--out", str(path), files[0], "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["context"] == str(path)
    assert (figures["documents"], figures["new_documents"]) == (1, 1)
    assert figures["tokens"] == figures["new_tokens"] > 0
    return path
