"""The landmark's row: behind all tokens whatever becomes of the vocabulary, in no logits, and nobody's token."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from families import family
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_pt_utils import LabelSmoother

import landmark

IDS = torch.randint(3, 61, (2, 50), generator=torch.Generator().manual_seed(1))
IDS[IDS == 5] = 4  # where a test makes row 5 the landmark's, it is nobody's token
LANDMARK = 61
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def converted(name="llama", landmark_id=None, **changes):
    return landmark.convert(family(name, **changes), block_size=7, landmark_id=landmark_id)


def logits(model, ids=IDS, **options):
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


def rows(model):
    return model.get_input_embeddings().weight.detach()


# What a loss over the vocabulary sees.


@pytest.mark.parametrize("landmark_id", [None, 5, 60], ids=["new", "among", "last"])
def test_losses_over_the_vocabulary_are_finite_and_close_to_those_of_ordinary_tokens(landmark_id):
    model = converted(landmark_id=landmark_id)
    ids = torch.where(IDS == 60, 4, IDS)
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
    model = converted(name, landmark_id=5)
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = 100 * model.get_output_embeddings().weight[7]
    scores = logits(model).log_softmax(-1)[..., 5]
    torch.testing.assert_close(scores, torch.full_like(scores, -100.0), atol=1e-4, rtol=0)
    model.zero_grad()
    model(input_ids=IDS).logits.log_softmax(-1)[..., 5].sum().backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-4 for p in model.parameters())
    tuples = model(input_ids=IDS, return_dict=False)
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
    embedding, before = rows(model)[LANDMARK].clone(), logits(model, IDS % 50)
    for resized in (plain, model):
        torch.manual_seed(3)
        resized.resize_token_embeddings(tokens)
    assert torch.equal(rows(model)[:tokens], rows(plain))
    assert torch.equal(rows(model)[tokens:], embedding[None])
    assert torch.equal(model.get_output_embeddings().weight[:tokens], plain.get_output_embeddings().weight)
    assert (model.config.vocab_size, model.config.landmark["landmark_id"]) == (tokens, tokens)
    after = logits(model, IDS % 50)
    assert after.shape[-1] == tokens
    torch.testing.assert_close(after[..., :50], before[..., :50], atol=1e-6, rtol=0)
    # Whoever trains goes on with the new tokens.
    model(input_ids=IDS % tokens, labels=IDS % tokens).loss.backward()
    out = model.generate(IDS[:1] % 50, do_sample=True, temperature=5.0, max_new_tokens=20, eos_token_id=None)
    assert out.max() < tokens


def test_resizing_is_saved_and_loaded(tmp_path):
    model = converted()
    model.resize_token_embeddings(61, pad_to_multiple_of=8)
    assert model.config.vocab_size == 64
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(landmark.from_pretrained(tmp_path)), logits(model), rtol=0, atol=0)


def test_resizing_around_a_landmark_among_ordinary_rows():
    model = converted(landmark_id=5)
    row = rows(model)[5].clone()
    model.resize_token_embeddings(64)
    assert (model.config.vocab_size, model.config.landmark["landmark_id"]) == (64, 5)
    assert torch.equal(rows(model)[5], row)
    with pytest.raises(ValueError, match="5 rows would leave out the landmark's"):
        model.resize_token_embeddings(5)


@pytest.mark.parametrize("wanted", [0, -3, 2.5, "64"])
def test_sizes_that_mean_nothing_are_named(wanted):
    with pytest.raises(ValueError, match="give the number of ordinary tokens"):
        converted().resize_token_embeddings(wanted)


# Ids.


@pytest.mark.parametrize("landmark_id", [None, 5])
def test_the_row_of_the_landmark_is_never_read_as_a_token(landmark_id):
    model = converted(landmark_id=landmark_id)
    row = model.config.landmark["landmark_id"]
    ids = IDS.clone()
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
        logits(model, ids, attention_mask=mask)[0, 8:], logits(model, other, attention_mask=mask)[0, 8:]
    )


def test_an_added_token_works_after_resizing(tokenizer):
    model = landmark.convert(family("llama", vocab_size=len(tokenizer)), block_size=7)
    tokenizer.add_tokens(["<note>"])
    ids = tokenizer("w1 w2 <note> w3", return_tensors="pt").input_ids
    assert model.config.landmark["landmark_id"] in ids
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        model(input_ids=ids)
    model.resize_token_embeddings(len(tokenizer))
    assert logits(model, ids).shape[-1] == len(tokenizer)


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
    model = converted(tie_word_embeddings=False, landmark_id=landmark_id)
    before = logits(model)
    head = nn.Linear(32, len(rows(model)), bias=False)
    head.weight = model.get_output_embeddings().weight
    model.set_output_embeddings(head)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    model.lm_head = copy.deepcopy(head)  # by whom the method does not ask
    model.lm_head._forward_hooks.clear()
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"a head of 80 rows"):
        model.set_output_embeddings(nn.Linear(32, 80))


def test_replaced_embeddings_have_a_row_for_the_landmark():
    model = converted(tie_word_embeddings=False)
    before = logits(model)
    model.set_input_embeddings(copy.deepcopy(model.get_input_embeddings()))
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match="embeddings of 61 rows for a converted model of 62"):
        model.set_input_embeddings(nn.Embedding(61, 32))
    model.model.embed_tokens = nn.Embedding(70, 32)  # past the method, whose row 61 is a token of somebody's
    with pytest.raises(ValueError, match="embeddings of 70 rows for a converted model of 62"):
        logits(model)


def test_adapters_that_train_the_landmark_and_the_head():
    from peft import LoraConfig, get_peft_model

    for tied in (True, False):
        model = converted(tie_word_embeddings=tied)
        before = logits(model)
        targets = ["q_proj", *([] if tied else ["lm_head"])]
        adapted = get_peft_model(model, LoraConfig(target_modules=targets, trainable_token_indices=[LANDMARK]))
        torch.testing.assert_close(logits(adapted), before)
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        torch.testing.assert_close(logits(adapted.merge_and_unload()), before)
        assert type(model).__name__ == "LlamaForCausalLM"


# Folders.


@TIED
@pytest.mark.parametrize("landmark_id", [None, 5, 60])
def test_only_landmark_loads_a_saved_folder(tied, landmark_id, tmp_path):
    model = converted(tie_word_embeddings=tied, landmark_id=landmark_id)
    settings = dict(model.config.landmark)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(model).__mro__[2].from_pretrained(tmp_path)
    ids = torch.where(IDS == 60, 4, IDS)
    for options in ({}, {"config": AutoConfig.from_pretrained(tmp_path)}):
        loaded = landmark.from_pretrained(tmp_path, **options)
        assert loaded.config.landmark == model.config.landmark == settings
        assert loaded.config.vocab_size == model.config.vocab_size
        torch.testing.assert_close(logits(loaded, ids), logits(model, ids), rtol=0, atol=0)
    loaded.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(
        logits(landmark.from_pretrained(tmp_path / "again"), ids), logits(model, ids), rtol=0, atol=0
    )


@pytest.mark.parametrize("landmark_id", [None, 5])
def test_folders_of_earlier_versions_load(landmark_id, tmp_path):
    """Those counted the landmark's row in vocab_size wherever it was."""
    model = converted(landmark_id=landmark_id)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vocab_size"] = len(rows(model))
    config["landmark"].pop("rows", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = landmark.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    assert loaded.config.vocab_size == model.config.vocab_size


def test_the_tokenizer_of_a_folder_loads(tokenizer, tmp_path):
    converted(landmark_id=5).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 30


def test_what_a_configuration_overrides_still_does(tmp_path):
    converted().save_pretrained(tmp_path)
    loaded = landmark.from_pretrained(tmp_path, max_position_embeddings=512)
    assert loaded.config.max_position_embeddings == 512
    with pytest.raises(ValueError, match="leave attn_implementation out"):
        landmark.from_pretrained(tmp_path, attn_implementation="sdpa")


def test_the_weights_in_a_folder_have_a_row_for_the_landmark(tmp_path):
    model = converted()
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
    model = converted()
    before = logits(model)
    with pytest.raises(ValueError, match=r"leave landmark\.convert out"):
        model.set_attn_implementation(asked)
    model.set_attn_implementation("landmark")
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


def test_an_attention_set_behind_the_back_of_the_model_is_healed_by_converting_again():
    model = converted()
    before = logits(model)
    model.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits(landmark.convert(model)), before, rtol=0, atol=0)


def test_a_configuration_gives_a_model_that_has_not_learnt():
    model = AutoModelForCausalLM.from_config(converted().config)
    landmark.convert(model)
    assert len(rows(model)) == LANDMARK + 1
    assert logits(model).shape[-1] == LANDMARK
