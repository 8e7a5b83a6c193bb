"""`--weights int8`: a context is read and opened with weights in 8 bits, without being asked for twice."""

import json

import pytest

import landmark
from landmark.cli import main as cli
from landmark.contexts.manifest import read_manifest


@pytest.fixture
def context_in_8_bits(tmp_path, files, model_folder, capsys):
    path = tmp_path / "narrow"
    arguments = ["read", "--model", str(model_folder), "--out", str(path), files[0], "--weights", "int8"]
    assert cli.main(arguments) == 0
    capsys.readouterr()
    return path


def test_commands_load_the_weights_that_read_a_context(context_in_8_bits, files, model_folder, capsys):
    kept = read_manifest(context_in_8_bits).header["fingerprint"]["number type"]
    assert kept == "float32, weights in 8 bits"
    assert cli.main(["append", str(context_in_8_bits), files[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new_documents"] == 1
    asked = ["ask", str(context_in_8_bits), "jim looked", "--max-new-tokens", "3", "--json"]
    assert cli.main(asked) == 0
    by_itself = json.loads(capsys.readouterr().out)
    assert cli.main([*asked, "--weights", "int8"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == by_itself["answer"]
    with pytest.raises(ValueError, match="was read with other number type: float32, weights in 8 bits, now float32"):
        landmark.Context.open(context_in_8_bits, landmark.from_pretrained(model_folder))


def test_weights_in_8_bits_do_not_open_a_context_that_others_read(context, capsys):
    assert cli.main(["ask", str(context), "jim looked", "--weights", "int8"]) == 2
    assert "was read with other number type: float32, now float32, weights in 8 bits" in capsys.readouterr().err
