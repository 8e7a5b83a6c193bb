"""Models from GGUF files, written here: a tiny Llama with a byte tokenizer."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import landmark
from landmark.hf.loading import dtype_of, gguf_config, gguf_model, gguf_tokenizer, read_config, read_tokenizer
from landmark.training.options import TrainOptions
from landmark.training.run import train

gguf = pytest.importorskip("gguf")
from tiny_gguf import ROWS, WIDTH, written  # noqa: E402 - needs that package


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_file_gives_an_ordinary_model_that_can_be_converted_saved_and_loaded(file, tmp_path):
    model = landmark.from_pretrained(file)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    assert getattr(model.config, "landmark", None) is None
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
    model.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype="float32")
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, before)

    landmark.convert(model, block_size=7)
    model.save_pretrained(tmp_path / "converted")
    loaded = landmark.from_pretrained(tmp_path / "converted")
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_weights_are_those_of_the_file(file):
    packed = {tensor.name: tensor for tensor in gguf.GGUFReader(str(file)).tensors}["token_embd.weight"]
    expected = gguf.quants.dequantize(packed.data, packed.tensor_type)
    found = gguf_model(file, dtype="float32").get_input_embeddings().weight
    np.testing.assert_array_equal(found.detach().numpy(), expected)


def test_the_progress_bar_is_switched_off_with_those_of_transformers(file, capfd):
    logging.disable_progress_bar()
    try:
        gguf_model(file)
    finally:
        logging.enable_progress_bar()
    assert capfd.readouterr().err == ""


def test_configuration_and_tokenizer_come_from_the_same_file(file):
    config = gguf_config(file)
    assert (config.vocab_size, config.hidden_size, config.max_position_embeddings) == (ROWS, WIDTH, 512)
    assert not hasattr(config, "quantization_config")
    tokenizer = gguf_tokenizer(file)
    assert tokenizer.convert_tokens_to_ids("<|end|>") == 2
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")


def refused(path, load=landmark.from_pretrained):
    with pytest.raises(ValueError, match=path.name) as error:
        load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_that_is_cut_anywhere_is_refused_before_its_weights_are_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("landmark.hf.loading.AutoModelForCausalLM", None)
    cut = tmp_path / "cut.gguf"
    for architecture in ("llama", "qwen3"):
        whole = written(tmp_path / f"{architecture}.gguf", architecture).read_bytes()
        for length in (0, 3, 4, 7, 8, 23, 24, 30, 100, 1000, 5000, 8000, len(whole) - 20_000, len(whole) - 1):
            cut.write_bytes(whole[:length])
            assert "download it again" in refused(cut, read_config)
            assert "download it again" in refused(cut, read_tokenizer)


def test_what_is_no_model_is_refused_in_one_line(file, tmp_path, monkeypatch, capfd):
    text = tmp_path / "text.gguf"
    text.write_text("It was a bright cold day in April. " * 40)
    assert "is no GGUF file" in refused(text)
    assert "does not exist" in refused(tmp_path / "none.gguf")
    (folder := tmp_path / "folder.gguf").mkdir()
    assert "is not a file" in refused(folder)
    old = tmp_path / "old.gguf"
    old.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + file.read_bytes()[8:])
    refused(old)
    huge = tmp_path / "huge.gguf"
    huge.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16 + bytes(1000))
    refused(huge)
    assert "take a family" in refused(written(tmp_path / "strange.gguf", architecture="rwkv6"))
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("landmark.hf.loading.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"landmark-attention\[gguf\]"):
        landmark.from_pretrained(file)


def test_weights_that_are_missing_or_do_not_fit_are_not_made_at_random(tmp_path):
    assert "lack the weights model.layers.0.mlp.up_proj" in refused(written(tmp_path / "a.gguf", leave_out="ffn_up"))
    # This family has norms of queries and keys and, in some releases, heads of other dimensions: one of them is named.
    assert "self_attn.k_" in refused(written(tmp_path / "b.gguf", "qwen3"))


def test_a_file_that_was_replaced_is_read_again(tmp_path):
    path = written(tmp_path / "a.gguf")
    assert gguf_config(path).max_position_embeddings == 512
    written(path, context=256)
    assert gguf_config(path).max_position_embeddings == 256


def test_a_name_that_is_no_folder_is_refused_within_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("landmark.hf.loading.AutoConfig", None)  # would ask six times, for half a minute
    monkeypatch.setattr("landmark.hf.loading.AutoTokenizer", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    for load in (landmark.from_pretrained, read_config, read_tokenizer):
        with pytest.raises(ValueError, match=r"there is no folder missing/relative, and .* hub does not give") as error:
            load("missing/relative")
        assert error.value.__suppress_context__  # its traceback is ours alone
        for path in ("/missing", "./missing", "a/b/c", "~/missing"):
            with pytest.raises(ValueError, match=f"no model at {path}: there is no such folder"):
                load(path)


def test_a_file_is_trained_with_its_own_tokenizer_and_taken_with_the_adapter(file, tmp_path):
    (tmp_path / "text.txt").write_text("It was a bright cold day in April. " * 40)
    final = train(
        TrainOptions(
            out=tmp_path / "run",
            texts=(str(tmp_path / "text.txt"),),
            model=str(file),
            adapter="lora",
            distill=True,
            block_size=7,
            steps=2,
            window_positions=48,
            batch_size=2,
        )
    )
    trained, ids = landmark.from_pretrained(final), torch.arange(3, 43)[None]
    again = landmark.load_adapter(file, final.with_name("adapter"))
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, trained(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    assert (final / "tokenizer.json").exists()


@pytest.mark.parametrize("dtype", ["foo", "nn", 16])
def test_what_is_no_dtype_is_refused(dtype):
    with pytest.raises(ValueError, match='give "auto", or the name of a dtype'):
        dtype_of(dtype)
    assert dtype_of(None) is dtype_of("float32") is torch.float32
