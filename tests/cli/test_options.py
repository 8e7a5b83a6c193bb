"""The model for a context: the one that its manifest names, checked before anything depends on it."""

import json
import shutil
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from landmark.cli import main as cli
from landmark.cli.options import MemoryOptions
from landmark.cli.serve import ServeOptions, _server, run
from landmark.contexts.manifest import read_manifest


@pytest.fixture
def no_weights(monkeypatch):
    """Fails where weights would be read."""

    def read(*arguments, **options):
        raise AssertionError("weights were read")

    monkeypatch.setattr("landmark.hf.model_files.from_pretrained", read)


def name_model(context, name):
    manifest = read_manifest(context)
    (context / "manifest.json").write_bytes(replace(manifest, header=manifest.header | {"model": name}).to_bytes())


def refused(context, said, capsys, *options):
    for command in (["ask", str(context), "jim"], ["append", str(context)]):
        assert cli.main([*command, *options]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("place", ["inside", "linked", "file linked"])
def test_a_model_inside_the_context_is_not_loaded(context, model_folder, no_weights, tmp_path, place, capsys):
    inside = shutil.copytree(model_folder, context / "model")
    other = tmp_path / "other"
    if place == "linked":
        other.symlink_to(inside)
    elif place == "file linked":
        shutil.copytree(model_folder, other)
        (other / "config.json").unlink()
        (other / "config.json").symlink_to(inside / "config.json")
    name_model(context, str(inside if place == "inside" else other))
    refused(context, "names a model inside itself", capsys)


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolLM2-135M", "/nonexistent/model", ""])
def test_a_model_that_is_not_here_must_be_given(context, model_folder, no_weights, name, capsys, monkeypatch):
    name_model(context, name)
    refused(context, "give --model, the folder of that model", capsys)
    monkeypatch.undo()
    assert cli.main(["ask", str(context), "jim", "--model", str(model_folder), "--json"]) == 0


def test_the_model_of_the_package_serves_wherever_it_was(context, model_folder, monkeypatch, capsys):
    name_model(context, "/another/installation/model")
    monkeypatch.setattr("landmark.assets.model_path", lambda: model_folder)
    assert cli.main(["ask", str(context), "jim", "--json"]) == 0


@pytest.mark.parametrize("ray", [None, "auto"])
def test_int8_blocks_of_a_server_are_for_the_contexts_of_its_clients(context, model_folder, ray, monkeypatch):
    monkeypatch.setattr("landmark.serve.run.listen", lambda *arguments: pytest.fail("it listens"))
    blocks = MemoryOptions(kv_dtype="int8")
    with pytest.raises(ValueError, match="kv_dtype is for contexts that clients make: give --data too"):
        run(ServeOptions(contexts=(context,), model=model_folder, blocks=blocks, ray=ray))


def test_a_server_makes_the_contexts_of_its_clients_of_int8_blocks(context, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("landmark.serve.server.Server", lambda *arguments: arguments)
    blocks = MemoryOptions(kv_dtype="int8")
    options = ServeOptions(contexts=(context,), model=model_folder, blocks=blocks, data=tmp_path / "data")
    assert _server(options, None)


def test_configuration_and_tokenizer_are_compared_before_weights_are_read(
    context, model_folder, no_weights, tmp_path, capsys
):
    other = shutil.copytree(model_folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    refused(context, "was read with other rms_norm_eps", capsys, "--model", str(other))
    named = f"{model_folder} read it, and this is {other}: give the model that read it (--model {model_folder})"
    refused(context, named, capsys, "--model", str(other))
    (other / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["brandnew"])
    tokenizer.save_pretrained(other)
    refused(context, "was read with other tokenizer", capsys, "--model", str(other))
