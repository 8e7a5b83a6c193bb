"""`--weights int8`: a context is read and opened with weights in 8 bits, without being asked for twice."""

import json
from typing import Any

import pytest
import torch

import landmark
from landmark.cli import main as cli
from landmark.cli import serve
from landmark.cli.options import NumberOptions
from landmark.contexts.manifest import read_manifest
from landmark.hf.int8 import in_8_bits


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
    said = f"weights is int8, and {context} was read with weights as they are: leave --weights out, or read its texts"
    assert said in capsys.readouterr().err


def made(arguments: list[str], capsys) -> dict:
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_context_decides_its_number_type(tmp_path, files, model_folder, capsys):
    path = tmp_path / "halves"
    made(["read", "--model", str(model_folder), "--out", str(path), files[0], "--dtype", "bfloat16"], capsys)
    assert read_manifest(path).header["fingerprint"]["number type"] == "bfloat16"
    asked = ["ask", str(path), "jim looked", "--max-new-tokens", "3"]
    by_itself = made(asked, capsys)["answer"]
    for given in ("bfloat16", "auto"):
        assert made([*asked, "--dtype", given], capsys)["answer"] == by_itself
    assert made(["append", str(path), files[1]], capsys)["new_documents"] == 1
    assert cli.main([*asked, "--dtype", "float32"]) == 2
    assert f"dtype is float32, and {path} was read with bfloat16: leave --dtype out" in capsys.readouterr().err


@pytest.mark.parametrize("can", [{}, {"avx512_bf16": True}, {"amx_bf16": True}])
def test_auto_is_bfloat16_where_it_is_fast_and_says_so(can, model_folder, files, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    dtype = "bfloat16" if can else "float32"
    arguments = ["--model", str(model_folder), "--haystack", files[0], "--lengths", "500", "--samples", "1"]
    assert cli.main(["eval", "recall", "--tasks", "absent", *arguments, "--dtype", "auto", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["dtype"] == dtype
    assert f"--dtype auto: {dtype} on this machine" in printed.err
    assert cli.main(["eval", "recall", "--tasks", "absent", *arguments, "--dtype", "bfloat16", "--json"]) == 0
    assert ("bfloat16 is not multiplied fast on this machine" in capsys.readouterr().err) == (not can)


@pytest.mark.parametrize("command", ["recall --tasks absent", "passkey"])
def test_evaluations_take_weights_in_8_bits(command, model_folder, files, capsys, tmp_path):
    arguments = ["--model", str(model_folder), "--haystack", files[0], "--lengths", "500", "--samples", "1"]
    arguments += ["--out", str(tmp_path / "log.jsonl")]
    assert cli.main(["eval", *command.split(), *arguments]) == 0
    assert cli.main(["eval", *command.split(), *arguments, "--weights", "int8"]) == 2
    assert "was made with another model" in capsys.readouterr().err
    (tmp_path / "log.jsonl").unlink()
    row = made(["eval", *command.split(), *arguments, "--weights", "int8"], capsys)
    assert row.get("weights", "int8") == "int8"


def test_a_server_computes_with_the_numbers_of_its_options(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("landmark.serve.server.Server", lambda model, *given: model)
    options = serve.ServeOptions(
        model=model_folder, data=tmp_path, numbers=NumberOptions(dtype="bfloat16", weights="int8")
    )
    model: Any = serve._server(options, None)
    assert (model.dtype, in_8_bits(model)) == (torch.bfloat16, True)


def test_an_ordinary_model_has_no_weights_in_8_bits(plain_folder, capsys):
    assert cli.main(["eval", "recall", "--model", plain_folder, "--weights", "int8"]) == 2
    assert f"weights is int8, for converted models, and {plain_folder} is an ordinary one" in capsys.readouterr().err
