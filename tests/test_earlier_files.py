"""Models, contexts and runs that an earlier release saved (tests/fixtures) open, and answer as they did."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import landmark
from landmark import Context
from landmark.contexts.verify import verify
from landmark.hf.tokenizer import encode
from landmark.settings import LandmarkSettings
from landmark.training.options import TrainOptions
from landmark.training.plan import plan_of
from landmark.training.run_lock import check_claim

FIXTURES = Path(__file__).with_name("fixtures")
ANSWERS = json.loads((FIXTURES / "answers.json").read_text(encoding="utf-8"))
GROWN = "The next day the Meridian was gone."
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}  # other processors add up in another order; noise of 1e-5 moves logits by 7e-5


@pytest.fixture(scope="module")
def model():
    return landmark.from_pretrained(FIXTURES / "model")


@pytest.fixture
def path(tmp_path):
    return Path(shutil.copytree(FIXTURES / "context", tmp_path / "context"))


@torch.no_grad()
def logits(model, tokenizer, text, **reading):
    ids = encode(tokenizer, text, continues=bool(reading)).ids[None]
    return model(input_ids=ids, **reading).logits


def check_answers(context: Context, kind: str) -> None:
    """Tokens, opened blocks and logits are those of then."""
    for then in ANSWERS[kind]:
        answer = context.generate(then["question"], max_new_tokens=len(then["ids"]), sources=100)
        assert (answer.ids, answer.text) == (then["ids"], then["text"])
        opened = {(s.document, s.block, s.start, s.stop, s.first, s.last): s.weight for s in answer.sources}
        expected = {tuple(place): weight for *place, weight in then["opened"]}
        assert opened.keys() == expected.keys()
        assert [opened[block] for block in expected] == pytest.approx(list(expected.values()), rel=1e-4)
    saved = load_file(FIXTURES / "logits.safetensors")[kind]
    question = ANSWERS[kind][0]["question"]
    now = logits(context.model, context.tokenizer, question, past_key_values=context.cache.fork())
    torch.testing.assert_close(now, saved, **ROUNDING)


def opened_per_query(model) -> int:
    """Blocks that each query opens, counted while the model reads."""
    cache = landmark.LandmarkCache(model.config)
    cache.start_trace()
    landmark.read(model, torch.arange(250), cache)
    return cache.trace().blocks[0].shape[-1]


def test_a_model_keeps_its_settings_under_their_new_name(model):
    assert json.loads((FIXTURES / "model" / "config.json").read_text())["landmark"]["top_k"] == 2
    assert opened_per_query(model) == 2


def test_a_setting_under_both_of_its_names_is_refused():
    with pytest.raises(ValueError, match="top_k and retrieve are one setting"):
        LandmarkSettings.from_dict({"block_size": 7, "landmark_id": 9, "top_k": 2, "retrieve": 4})


def test_a_context_is_whole_and_answers_as_it_did(path, model):
    assert b'"version": 2,' in (path / "manifest.json").read_bytes()
    assert verify(path) == []
    with Context.open(path, model) as context:
        assert (context.tokens_read, context.tokens) == (ANSWERS["tokens"], ANSWERS["tokens"])
        text = (FIXTURES / "text.txt").read_text(encoding="utf-8")
        assert "".join(context.text(document) for document in context.documents) == text
        assert [document.name for document in context.documents] == ["harbour", "evening"]
        check_answers(context, "context")


def test_a_context_grows_as_it_did(path, model):
    with Context.open(path, model, write=True) as context:
        context.append(GROWN, "next day")
    assert verify(path) == []
    with Context.open(path, model) as context:
        check_answers(context, "grown")


def test_a_training_is_the_same_under_the_new_name(tmp_path):
    out = Path(shutil.copytree(FIXTURES / "training", tmp_path / "training"))
    options = {
        "texts": ("text.txt",),
        "model": "base",
        "adapter": "lora",
        "lora_rank": 2,
        "steps": 2,
        "window_positions": 48,
        "batch_size": 2,
        "learning_rate": 0.01,
        "block_size": 7,
    }
    check_claim(out, plan_of(TrainOptions(out=out, retrieve=2, **options)).identity())
    with pytest.raises(ValueError, match="retrieve was 2, is 3"):
        check_claim(out, plan_of(TrainOptions(out=out, retrieve=3, **options)).identity())


def test_an_adapter_is_merged_as_it_was(model):
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "model")
    adapted = landmark.load_adapter(before_conversion(model), FIXTURES / "training" / "adapter").eval()
    assert opened_per_query(adapted) == 2
    now = logits(adapted, tokenizer, (FIXTURES / "text.txt").read_text(encoding="utf-8")[:20])
    torch.testing.assert_close(now, load_file(FIXTURES / "training" / "logits.safetensors")["logits"], **ROUNDING)


def before_conversion(model) -> LlamaForCausalLM:
    """The model that was converted: the same weights without the landmark's embedding."""
    fields = json.loads((FIXTURES / "model" / "config.json").read_text())
    del fields["landmark"]
    base = LlamaForCausalLM(LlamaConfig.from_dict(fields))
    rows = {name: len(weight) for name, weight in base.state_dict().items()}
    base.load_state_dict({name: weight[: rows[name]].clone() for name, weight in model.state_dict().items()})
    return base
