import json
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from landmark.hf import from_pretrained
from landmark.training import run as run_module
from landmark.training.callbacks import StopOnSignal
from landmark.training.run import last_checkpoint, train


def weights(folder) -> dict[str, torch.Tensor]:
    return from_pretrained(folder).state_dict()


def stop_after(monkeypatch, step: int) -> None:
    """Let a signal arrive during optimizer step `step`."""
    original = StopOnSignal.on_step_end

    def on_step_end(self, args, state, control, **keywords):
        if state.global_step == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, args, state, control, **keywords)

    monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)


def test_a_stopped_training_resumes_exactly(options, material, tmp_path, monkeypatch):
    held_out = (str(material / "held_out.txt"),)
    log = tmp_path / "log.jsonl"
    whole = train(options(out=tmp_path / "whole", validation=held_out, eval_every=3, eval_windows=4, json=str(log)))

    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(options())
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-3")
    assert not (tmp_path / "run" / "model").exists()
    resumed = train(options())

    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    check_log([json.loads(line) for line in log.read_text().splitlines()])


def check_log(events: list[dict]) -> None:
    trained = [event for event in events if event["event"] == "train"]
    assert [event["step"] for event in trained] == list(range(1, 9))
    assert all({"loss", "text_loss", "tokens", "tokens_per_second"} <= event.keys() for event in trained)
    assert trained[-1]["text_loss"] < trained[0]["text_loss"], "eight steps at this rate must learn something"
    evaluated = [event for event in events if event["event"] == "eval"]
    assert [event["step"] for event in evaluated] == [3, 6, 8], "and the last only once"
    assert all({"eval_loss", "eval_text_loss", "eval_answer_accuracy"} <= event.keys() for event in evaluated)


def test_a_finished_training_says_so_and_is_left_alone(options, monkeypatch, capsys):
    final = train(options(steps=2, window_positions=48, batch_size=2, recipe=None, save_dtype="float16"))
    assert {tensor.dtype for tensor in load_file(final / "model.safetensors").values()} == {torch.float16}
    assert AutoTokenizer.from_pretrained(final).eos_token == "<eos>"
    monkeypatch.setattr(run_module, "load_model", None)
    train(options(steps=2, window_positions=48, batch_size=2, recipe=None, save_dtype="float16", log_every=5))
    assert "is finished" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"other settings \(.*recipe.*\)"):
        train(options(steps=3, window_positions=48, batch_size=2, recipe=None, save_dtype="float16"))


def test_an_existing_model_learns_landmarks_and_then_more(options, material, tmp_path):
    settings = json.loads((material / "config.json").read_text())
    settings.pop("model_type")
    AutoModelForCausalLM.from_config(LlamaConfig(**settings)).save_pretrained(tmp_path / "plain")
    short = {"recipe": None, "steps": 2, "window_positions": 48, "batch_size": 2, "config": None}
    first = train(options(**short, model=str(tmp_path / "plain"), out=tmp_path / "first"))
    assert from_pretrained(first).config.landmark["block_size"] == 7
    assert from_pretrained(first).config.use_cache
    second = options(**short, model=str(first), tokenizer=None, block_size=None, retrieve=2, out=tmp_path / "second")
    taught = from_pretrained(first).config.landmark["trained_tokens"]
    assert 2 * 2 * 35 <= taught <= 2 * 2 * 48, "two steps of two windows"
    landmark = from_pretrained(train(second)).config.landmark
    assert landmark["trained_tokens"] == 2 * taught
    assert (landmark["block_size"], landmark["retrieve"], landmark["landmark_id"]) == (7, 2, 300)
    with pytest.raises(ValueError, match="blocks of 7 tokens, not 9"):
        train(options(**short, model=str(first), block_size=9, out=tmp_path / "third"))


def test_wrong_options_are_errors(options, material, tmp_path):
    with pytest.raises(ValueError, match="either --model"):
        train(options(model=str(tmp_path), out=tmp_path / "a"))
    with pytest.raises(ValueError, match="needs --tokenizer"):
        train(options(tokenizer=None))
    with pytest.raises(ValueError, match="no tokenizer can be loaded"):
        train(options(tokenizer=str(tmp_path / "none")))
    small = json.loads((material / "config.json").read_text()) | {"vocab_size": 299}
    (tmp_path / "small.json").write_text(json.dumps(small))
    with pytest.raises(ValueError, match="ids reach 299, the model has 299"):
        train(options(config=tmp_path / "small.json", out=tmp_path / "b"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json is not JSON"):
        train(options(config=tmp_path / "bad.json", out=tmp_path / "c"))


def test_checkpoints_cut_short_are_passed_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((5, '{"global_step": 5}'), (9, '{"global_'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
