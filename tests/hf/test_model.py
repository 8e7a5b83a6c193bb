"""The class of a converted model, and the row of its landmark."""

import copy
import inspect
import io
import json
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from families import family
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_pt_utils import LabelSmoother

import landmark
from landmark.assets import model_path
from landmark.hf.in_front import class_in_front
from landmark.hf.model import LandmarkMixin

IDS = torch.randint(3, 61, (2, 50), generator=torch.Generator().manual_seed(1))


def converted(name="llama", **options):
    return landmark.convert(family(name), **{"block_size": 7, **options})


def test_class_is_a_subclass_with_the_names_of_the_original():
    plain = type(family("llama"))
    model = converted()
    assert isinstance(model, plain)
    assert isinstance(model, LandmarkMixin)
    for name in ("__name__", "__qualname__", "__module__"):
        assert getattr(type(model), name) == getattr(plain, name)
    assert type(model).can_generate()
    for name in ("forward", "generate", "prepare_inputs_for_generation"):
        assert inspect.signature(getattr(model, name)) == inspect.signature(getattr(family("llama"), name))
    assert type(converted()) is type(model) is class_in_front(LandmarkMixin, plain)


def test_converting_twice_stacks_neither_classes_nor_hooks():
    model = converted()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    kind = type(model)
    landmark.convert(model, block_size=7)
    assert type(model) is kind
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, by_torch, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_of_the_same_class(way):
    model = converted()
    twin = way(model)
    assert type(twin) is type(model)
    with torch.no_grad():
        assert torch.equal(twin(IDS).logits, model(IDS).logits)


def test_a_replica_for_another_device_is_of_the_same_class():
    model = converted()
    assert type(model._replicate_for_data_parallel()) is type(model)


def test_a_new_model_of_the_class_knows_nothing_of_landmarks():
    model = converted()
    assert type(type(model)(family("llama").config)) is type(family("llama"))


# The landmark's row: after all tokens whatever becomes of the vocabulary, in no logits, and no token.

TOKENS = torch.randint(3, 61, (2, 50), generator=torch.Generator().manual_seed(1))
TOKENS[TOKENS == 5] = 4  # where a test makes row 5 the landmark's, it is nobody's token
LANDMARK = 61
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def with_landmark(name="llama", landmark_id=None, **changes):
    return landmark.convert(family(name, **changes), block_size=7, landmark_id=landmark_id)


def logits_of(model, ids=TOKENS, **options):
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


def rows(model):
    return model.get_input_embeddings().weight.detach()


# What a loss over the vocabulary sees.


@pytest.mark.parametrize("landmark_id", [None, 5, 60], ids=["new", "among", "last"])
def test_losses_over_the_vocabulary_are_finite_and_close_to_those_of_ordinary_tokens(landmark_id):
    model = with_landmark(landmark_id=landmark_id)
    ids = torch.where(TOKENS == 60, 4, TOKENS)
    output = model(input_ids=ids, labels=ids)
    found = LabelSmoother(0.1)(output, ids, shift_labels=True)
    ordinary = [token for token in range(output.logits.shape[-1]) if token != landmark_id]
    targets = torch.tensor([ordinary.index(token) for token in ids[:, 1:].flatten().tolist()])
    expected = F.cross_entropy(output.logits[:, :-1, ordinary].flatten(0, 1), targets, label_smoothing=0.1)
    torch.testing.assert_close(found, expected, atol=0.3, rtol=0)  # 100 nats for one of 61 tokens, smoothed by 0.1
    plain = F.cross_entropy(output.logits[:, :-1, ordinary].flatten(0, 1), targets)
    torch.testing.assert_close(output.loss, plain)
    entropy = torch.distributions.Categorical(logits=output.logits).entropy()
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=output.logits[..., ordinary]).entropy())
    assert F.kl_div(output.logits.log_softmax(-1), output.logits.flip(1).log_softmax(-1), log_target=True).isfinite()


@pytest.mark.parametrize("name", ["llama", "cohere", "gemma2", "granite"])  # three scale or cap their logits
def test_a_landmark_among_ordinary_rows_is_never_likely_and_moves_no_gradient(name):
    model = with_landmark(name, landmark_id=5)
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = 100 * model.get_output_embeddings().weight[7]
    scores = logits_of(model).log_softmax(-1)[..., 5]
    torch.testing.assert_close(scores, torch.full_like(scores, -100.0), atol=1e-4, rtol=0)
    model.zero_grad()
    model(input_ids=TOKENS).logits.log_softmax(-1)[..., 5].sum().backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-4 for p in model.parameters())
    tuples = model(input_ids=TOKENS, return_dict=False)
    assert tuples[0].log_softmax(-1)[..., 5].max() < -99


# Resizing.


@TIED
@pytest.mark.parametrize("name", ["llama", "phi", "gpt_neox"])  # phi's head has biases
@pytest.mark.parametrize("tokens", [64, 61, 50])
def test_resizing_gives_the_rows_that_the_model_would_have_and_the_landmark_behind_them(name, tied, tokens):
    plain = family(name, tie_word_embeddings=tied)
    model = landmark.convert(copy.deepcopy(plain), block_size=7)
    with torch.no_grad():
        rows(model)[LANDMARK] = 0.25
    embedding, before = rows(model)[LANDMARK].clone(), logits_of(model, TOKENS % 50)
    for resized in (plain, model):
        torch.manual_seed(3)
        resized.resize_token_embeddings(tokens)
    assert torch.equal(rows(model)[:tokens], rows(plain))
    assert torch.equal(rows(model)[tokens:], embedding[None])
    assert torch.equal(model.get_output_embeddings().weight[:tokens], plain.get_output_embeddings().weight)
    assert (model.config.vocab_size, model.config.landmark["landmark_id"]) == (tokens, tokens)
    after = logits_of(model, TOKENS % 50)
    assert after.shape[-1] == tokens
    torch.testing.assert_close(after[..., :50], before[..., :50], atol=1e-6, rtol=0)
    # Whoever trains goes on with the new tokens.
    model(input_ids=TOKENS % tokens, labels=TOKENS % tokens).loss.backward()
    out = model.generate(TOKENS[:1] % 50, do_sample=True, temperature=5.0, max_new_tokens=20, eos_token_id=None)
    assert out.max() < tokens


def test_resizing_is_saved_and_loaded(tmp_path):
    model = with_landmark()
    model.resize_token_embeddings(61, pad_to_multiple_of=8)
    assert model.config.vocab_size == 64
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(landmark.from_pretrained(tmp_path)), logits_of(model), rtol=0, atol=0)


def test_resizing_around_a_landmark_among_ordinary_rows():
    model = with_landmark(landmark_id=5)
    row = rows(model)[5].clone()
    model.resize_token_embeddings(64)
    assert (model.config.vocab_size, model.config.landmark["landmark_id"]) == (64, 5)
    assert torch.equal(rows(model)[5], row)
    with pytest.raises(ValueError, match="5 rows would leave out the landmark's"):
        model.resize_token_embeddings(5)


@pytest.mark.parametrize("wanted", [0, -3, 2.5, "64"])
def test_sizes_that_mean_nothing_are_named(wanted):
    with pytest.raises(ValueError, match="give the number of ordinary tokens"):
        with_landmark().resize_token_embeddings(wanted)


# Ids.


@pytest.mark.parametrize("landmark_id", [None, 5])
def test_the_row_of_the_landmark_is_never_read_as_a_token(landmark_id):
    model = with_landmark(landmark_id=landmark_id)
    row = model.config.landmark["landmark_id"]
    ids = TOKENS.clone()
    ids[0, 7] = row
    refused = pytest.raises(ValueError, match=r"resize_token_embeddings\(len\(tokenizer\)\)")
    with refused:
        model(input_ids=ids)
    with refused:
        landmark.read(model, ids[:1])
    with refused:
        model.generate(ids, max_new_tokens=2)
    # Padding with it harms nobody.
    mask = torch.ones_like(ids)
    mask[0, :8] = 0
    other = ids.clone()
    other[0, 7] = 3
    torch.testing.assert_close(
        logits_of(model, ids, attention_mask=mask)[0, 8:], logits_of(model, other, attention_mask=mask)[0, 8:]
    )


def test_an_added_token_works_after_resizing(tokenizer):
    model = landmark.convert(family("llama", vocab_size=len(tokenizer)), block_size=7)
    tokenizer.add_tokens(["<note>"])
    ids = tokenizer("w1 w2 <note> w3", return_tensors="pt").input_ids
    assert model.config.landmark["landmark_id"] in ids
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        model(input_ids=ids)
    model.resize_token_embeddings(len(tokenizer))
    assert logits_of(model, ids).shape[-1] == len(tokenizer)


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({f"w{i}": i for i in range(30)}, unk_token="w0"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=bare)


# Heads and embeddings that somebody replaces.


@pytest.mark.parametrize("landmark_id", [None, 5])
def test_a_replaced_head_keeps_landmarks_out(landmark_id):
    model = with_landmark(tie_word_embeddings=False, landmark_id=landmark_id)
    before = logits_of(model)
    head = nn.Linear(32, len(rows(model)), bias=False)
    head.weight = model.get_output_embeddings().weight
    model.set_output_embeddings(head)
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=0)
    model.lm_head = copy.deepcopy(head)  # by whom the method does not ask
    model.lm_head._forward_hooks.clear()
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"a head of 80 rows"):
        model.set_output_embeddings(nn.Linear(32, 80))


def test_replaced_embeddings_have_a_row_for_the_landmark():
    model = with_landmark(tie_word_embeddings=False)
    before = logits_of(model)
    model.set_input_embeddings(copy.deepcopy(model.get_input_embeddings()))
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match="embeddings of 61 rows for a converted model of 62"):
        model.set_input_embeddings(nn.Embedding(61, 32))
    model.model.embed_tokens = nn.Embedding(70, 32)  # past the method, whose row 61 is a token of somebody's
    with pytest.raises(ValueError, match="embeddings of 70 rows for a converted model of 62"):
        logits_of(model)


def test_adapters_that_train_the_landmark_and_the_head():
    from peft import LoraConfig, get_peft_model

    for tied in (True, False):
        model = with_landmark(tie_word_embeddings=tied)
        before = logits_of(model)
        targets = ["q_proj", *([] if tied else ["lm_head"])]
        adapted = get_peft_model(model, LoraConfig(target_modules=targets, trainable_token_indices=[LANDMARK]))
        torch.testing.assert_close(logits_of(adapted), before)
        adapted(input_ids=TOKENS, labels=TOKENS).loss.backward()
        torch.testing.assert_close(logits_of(adapted.merge_and_unload()), before)
        assert type(model).__name__ == "LlamaForCausalLM"


# Folders.


@TIED
@pytest.mark.parametrize("landmark_id", [None, 5, 60])
def test_only_landmark_loads_a_saved_folder(tied, landmark_id, tmp_path):
    model = with_landmark(tie_word_embeddings=tied, landmark_id=landmark_id)
    settings = dict(model.config.landmark)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(model).__mro__[2].from_pretrained(tmp_path)
    ids = torch.where(TOKENS == 60, 4, TOKENS)
    for options in ({}, {"config": AutoConfig.from_pretrained(tmp_path)}):
        loaded = landmark.from_pretrained(tmp_path, **options)
        assert loaded.config.landmark == model.config.landmark == settings
        assert loaded.config.vocab_size == model.config.vocab_size
        torch.testing.assert_close(logits_of(loaded, ids), logits_of(model, ids), rtol=0, atol=0)
    loaded.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(
        logits_of(landmark.from_pretrained(tmp_path / "again"), ids), logits_of(model, ids), rtol=0, atol=0
    )


@pytest.mark.parametrize("landmark_id", [None, 5])
def test_folders_of_earlier_versions_load(landmark_id, tmp_path):
    """Those counted the landmark's row in vocab_size wherever it was."""
    model = with_landmark(landmark_id=landmark_id)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vocab_size"] = len(rows(model))
    config["landmark"].pop("rows", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = landmark.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=0, atol=0)
    assert loaded.config.vocab_size == model.config.vocab_size


def test_the_tokenizer_of_a_folder_loads(tokenizer, tmp_path):
    with_landmark(landmark_id=5).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 30


def test_what_a_configuration_overrides_still_does(tmp_path):
    with_landmark().save_pretrained(tmp_path)
    loaded = landmark.from_pretrained(tmp_path, max_position_embeddings=512)
    assert loaded.config.max_position_embeddings == 512
    with pytest.raises(ValueError, match="leave attn_implementation out"):
        landmark.from_pretrained(tmp_path, attn_implementation="sdpa")


def test_the_weights_in_a_folder_have_a_row_for_the_landmark(tmp_path):
    model = with_landmark()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert len(weights["model.embed_tokens.weight"]) == LANDMARK + 1
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:LANDMARK].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="take configuration and weights of one model"):
        landmark.from_pretrained(tmp_path)


# The attention.


@pytest.mark.parametrize("asked", ["sdpa", "eager", {"": "sdpa"}])
def test_another_attention_is_refused_and_the_model_goes_on(asked):
    model = with_landmark()
    before = logits_of(model)
    with pytest.raises(ValueError, match=r"leave landmark\.convert out"):
        model.set_attn_implementation(asked)
    model.set_attn_implementation("landmark")
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=0)


def test_an_attention_set_behind_the_back_of_the_model_is_healed_by_converting_again():
    model = with_landmark()
    before = logits_of(model)
    model.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits_of(landmark.convert(model)), before, rtol=0, atol=0)


def test_a_configuration_gives_a_model_that_has_not_learnt():
    model = AutoModelForCausalLM.from_config(with_landmark().config)
    landmark.convert(model)
    assert len(rows(model)) == LANDMARK + 1
    assert logits_of(model).shape[-1] == LANDMARK


# The warning, once, that a model has not learnt landmarks.

SHORT_IDS = torch.randint(3, 61, (1, 30), generator=torch.Generator().manual_seed(1))


def warnings_of(model, read=landmark.read):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(model, SHORT_IDS)
    return [str(w.message) for w in caught if "has not learnt landmarks" in str(w.message)]


def test_reading_is_warned_of_once_and_names_the_command():
    model = landmark.convert(family("llama"), block_size=7)
    assert model.config.landmark["trained_tokens"] == 0
    assert not warnings_of(model, lambda model, ids: model(ids)), "nothing is read through memory"
    (message,) = warnings_of(model)
    assert "landmark train --model" in message
    assert not warnings_of(model)
    assert warnings_of(copy.deepcopy(model), lambda model, ids: model.generate(ids, max_new_tokens=2))


def test_a_count_is_kept_and_ends_the_warning(tmp_path):
    model = landmark.convert(family("llama"), block_size=7)
    landmark.convert(model, trained_tokens=1000)
    model.save_pretrained(tmp_path)
    loaded = landmark.from_pretrained(tmp_path)
    assert loaded.config.landmark["trained_tokens"] == 1000
    assert not warnings_of(loaded)
    with pytest.raises(ValueError, match="trained_tokens is -1"):
        landmark.convert(model, trained_tokens=-1)


def test_nothing_is_said_of_models_that_were_saved_without_a_count(tmp_path):
    landmark.convert(family("llama"), block_size=7).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["landmark"]["trained_tokens"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = landmark.from_pretrained(tmp_path)
    assert model.config.landmark["trained_tokens"] is None
    assert not warnings_of(model)


def test_the_model_in_the_package_has_learnt():
    model = landmark.from_pretrained(model_path())
    assert model.config.landmark["trained_tokens"] > 1_000_000
    assert not warnings_of(model)
