"""Whole trainings: stopping, resuming, finishing, and mistakes that show before any work is done."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from landmark.hf import from_pretrained
from landmark.training import run as run_module
from landmark.training.callbacks import StopOnSignal
from landmark.training.models import tokenizer_of
from landmark.training.plan import plan_of
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
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter"):
        train(options(config=None, model=str(tmp_path / "adapter"), tokenizer=None, block_size=None))
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


def test_a_text_shorter_than_a_window_builds_no_model_and_claims_no_folder(options, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "load_model", None)
    (tmp_path / "short.txt").write_text("the whale said 7\n" * 5)
    short = (str(tmp_path / "short.txt"),)
    with pytest.raises(ValueError, match=r"the text has \d+ tokens, fewer than a window of 192"):
        train(options(texts=short))
    with pytest.raises(ValueError, match=r"the validation text has \d+ tokens, fewer than a window of 192"):
        train(options(validation=short, out=tmp_path / "other"))
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "other" / "run.json").exists()


def test_other_settings_are_found_before_a_text_is_read(options, material, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "load_model", None)
        with pytest.raises(TypeError):
            train(options())  # claims the folder
    (tmp_path / "run" / "checkpoint-4").mkdir()
    monkeypatch.setattr(run_module, "tokenizer_of", None)
    other = tmp_path / "other.toml"
    other.write_text((material / "recipe.toml").read_text().replace("steps = 4", "steps = 5", 1))
    with pytest.raises(ValueError, match=r"recipe\.stages\.0\.steps was 4, is 5"):
        train(options(recipe=str(other)))
    with pytest.raises(ValueError, match="block_size was 7, is 9"):
        train(options(block_size=9))


def works(options, monkeypatch) -> bool:
    """Whether the training gets as far as to its model."""
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "load_model", None)
        with pytest.raises(TypeError):
            train(options)
    return True


@pytest.mark.parametrize(
    "wrong", ["texts", "more texts", "validation", "short", "encoding", "empty", "recipe", "model"]
)
def test_a_command_that_failed_does_not_block_the_corrected_one(options, material, tmp_path, monkeypatch, wrong):
    text = str(material / "text.txt")
    for name, data in (("short", b"the whale"), ("encoding", b"\xff\xfe"), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "recipe.toml").write_text((material / "recipe.toml").read_text().replace("[1, 2]", "[99, 99]"))
    mistake, right = {
        "texts": ({"texts": ("typo.txt",)}, {}),
        "more texts": ({"texts": (text, "typo.txt")}, {"texts": (text, str(material / "held_out.txt"))}),
        "validation": ({"validation": ("typo.txt",)}, {"validation": (str(material / "held_out.txt"),)}),
        "short": ({"validation": (str(tmp_path / "short"),)}, {"validation": (str(material / "held_out.txt"),)}),
        "encoding": ({"texts": (text, str(tmp_path / "encoding"))}, {"texts": (text,)}),
        "empty": ({"texts": (str(tmp_path / "empty"),)}, {}),
        "recipe": ({"recipe": tmp_path / "recipe.toml"}, {}),
        "model": ({"config": None, "model": str(tmp_path / "typo")}, {}),
    }[wrong]
    with pytest.raises(ValueError, match=r".+"):
        train(options(**mistake))
    assert works(options(**right), monkeypatch)


def test_a_text_that_is_too_short_leaves_neither_tokens_nor_tokenizer(options, tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("the whale said 7\n" * 5)
    plan = replace(plan_of(options(tokenizer=str(tmp_path / "new"))), vocabulary=262)
    with pytest.raises(ValueError, match="fewer than a window"):
        run_module.train(replace(plan, texts=(str(tmp_path / "short.txt"),)))
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "run" / "tokens").exists()
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "load_model", None)
        with pytest.raises(TypeError):
            run_module.train(plan)


def test_a_tokenizer_is_trained_where_there_is_none(options, material, tmp_path):
    plan = replace(plan_of(options(tokenizer=str(tmp_path / "new"))), vocabulary=290)
    assert len(tokenizer_of(plan)) == 290
    assert len(tokenizer_of(replace(plan, vocabulary=280))) == 290, "the one that is there serves"


def test_there_must_be_text(options):
    with pytest.raises(ValueError, match="no text to train on: name some with --texts"):
        train(options(texts=()))


def test_windows_without_room_for_a_block_and_its_landmark(options, tmp_path, monkeypatch):
    short = {"recipe": None, "steps": 2, "batch_size": 2, "block_size": 7}
    with pytest.raises(ValueError, match="a window of 7 positions is shorter than a block of 7 tokens"):
        train(options(window_positions=7, **short))
    with pytest.raises(ValueError, match="a window of 63 positions is shorter than a block of 63 tokens"):
        train(options(window_positions=63, **short | {"block_size": None}))
    assert not (tmp_path / "run" / "run.json").exists()
    assert works(options(window_positions=8, **short), monkeypatch)


def losses(options, out, precision):
    log = out.with_suffix(".jsonl")
    train(options(out=out, precision=precision, json=str(log), recipe=None, steps=2, window_positions=96, batch_size=4))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "train"]


def test_bfloat16_loses_little(options, tmp_path):
    exact = losses(options, tmp_path / "float32", "float32")
    rounded = losses(options, tmp_path / "bfloat16", "bfloat16")
    assert rounded == pytest.approx(exact, abs=0.01)
    assert rounded != exact
