"""`landmark.Context`: what was read is asked, reopened, grown and forked, with the same answers to the last bit."""

import hashlib
import json
import subprocess
import sys
import zlib
from dataclasses import replace

import pytest
import torch
from forking import PROMPT, logits
from made import as_version_1
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

import landmark
from landmark import Context
from landmark.contexts.disk import Damage
from landmark.contexts.folder import delete
from landmark.contexts.manifest import Committed, Layout, extended, publish, read_manifest
from landmark.contexts.snapshot import open_reader
from landmark.contexts.state import encode_state
from landmark.hf.fingerprint import sampled_fingerprint
from landmark.hf.tokenizer import encode
from landmark.index.options import IndexOptions

BOOK = "it was a calm sea and jim looked at the ships for a long while . " * 30
NOTE = "keys and ships 0123456789 . he spoke of it . " * 12


@pytest.fixture
def path(tmp_path, model):
    with Context.create(tmp_path / "context", model) as context:
        context.append(BOOK, "book")
    return tmp_path / "context"


@torch.no_grad()
def in_memory(model, *texts):
    """Logits of the prompt behind texts that were read without a context, one `read` a text."""
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    cache = landmark.LandmarkCache(model.config)
    for text in texts:
        landmark.read(model, encode(tokenizer, text).ids, cache)
    return model(input_ids=encode(tokenizer, PROMPT).ids[None], past_key_values=cache).logits


def test_the_same_logits_from_memory_from_disk_and_from_another_process(path, folder, model):
    expected = in_memory(model, BOOK)
    for budget in (None, "12KB", "100MB"):
        assert torch.equal(logits(Context.open(path, model, host_budget=budget)), expected)
    script = (
        "import sys, torch, landmark; from landmark.hf.tokenizer import encode; torch.set_num_threads(1)\n"
        "model = landmark.from_pretrained(sys.argv[1]); context = landmark.Context.open(sys.argv[2], model)\n"
        "ids = encode(context.tokenizer, sys.argv[3]).ids[None]\n"
        "with torch.no_grad(): out = model(input_ids=ids, past_key_values=context.cache).logits\n"
        "torch.save(out, sys.argv[4])"
    )
    out = path.parent / "logits.pt"
    subprocess.run([sys.executable, "-c", script, str(folder), str(path), PROMPT, str(out)], check=True)
    assert torch.equal(torch.load(out), expected)


def test_a_context_that_is_deleted_goes_on_answering(path, model):
    with Context.open(path, model, host_budget="12KB") as context:
        expected = context.generate(PROMPT, max_new_tokens=5)
        again = Context.open(path, model, host_budget="12KB")
        delete(path)
        assert again.generate(PROMPT, max_new_tokens=5) == expected
        assert again.text(again.documents[0]) == BOOK
        branch = again.fork()
        branch.append(NOTE)
        assert torch.equal(logits(branch), in_memory(model, BOOK, NOTE))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("index", ["exact", "hierarchical"])
def test_models_of_every_dtype(dtype, index, tmp_path, folder):
    model = landmark.from_pretrained(folder, dtype=dtype)
    with Context.create(tmp_path / "context", model, index=index) as context:
        context.append(BOOK, "book")
        assert torch.equal(logits(context), in_memory(model, BOOK))
    with Context.open(tmp_path / "context", model, write=True, index=index) as context:
        assert torch.equal(logits(context), in_memory(model, BOOK))
        context.append(NOTE, "note")
        fork = context.fork()
    expected = in_memory(model, BOOK, NOTE)
    assert torch.equal(logits(fork), expected)
    assert torch.equal(logits(Context.open(tmp_path / "context", model, index=index, host_budget="20KB")), expected)
    other = torch.float32 if dtype != torch.float32 else torch.float64
    with pytest.raises(ValueError, match="number type"):
        Context.open(tmp_path / "context", landmark.from_pretrained(folder, dtype=other))


@torch.no_grad()
@pytest.mark.parametrize("index", ["exact", "hierarchical"])
def test_groups_of_heads_open_the_same_blocks_wherever_they_lie(index, tmp_path, folder):
    model = landmark.convert(landmark.from_pretrained(folder), selection="per_group")
    with Context.create(tmp_path / "context", model, index=index) as context:
        context.append(BOOK, "book")
    expected = in_memory(model, BOOK)
    assert not torch.equal(expected, in_memory(landmark.from_pretrained(folder), BOOK))
    for budget in ("12KB", "100MB"):
        opened = Context.open(tmp_path / "context", model, index=index, host_budget=budget)
        cache = opened.cache.fork()
        cache.start_trace()
        assert torch.equal(logits(opened), expected)
        ids = encode(opened.tokenizer, PROMPT).ids[None]
        assert torch.equal(model(input_ids=ids, past_key_values=cache).logits, expected)
        for blocks in cache.trace().blocks.values():
            groups = blocks.unflatten(1, (2, 2))
            assert torch.equal(groups, groups[:, :, :1].expand_as(groups))


def test_numbers_that_are_not_finite_are_not_committed(path, folder):
    model = landmark.from_pretrained(folder)
    context = Context.open(path, model, write=True)
    tokens = context.tokens_read
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = torch.nan
    context._mark = landmark.hf.fingerprint.model_mark(model)  # as if the weights had been so when it was opened
    with pytest.raises(ValueError, match="keys or values of layer 1"):
        context.append(NOTE, "note")
    context.close()
    reopened = Context.open(path, landmark.from_pretrained(folder))
    assert (reopened.tokens_read, reopened.tokens > tokens) == (tokens, True)
    with Context.create(path.with_name("other"), model, allow_nonfinite=True) as context:
        context.append(NOTE, "note")
    with pytest.raises(ValueError, match="not finite"):
        Context.open(path.with_name("other"), model).generate(PROMPT)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "a \ud800 b"}, "cannot be written as UTF-8"),
        ({"prompt": 5}, "give a str"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1e-30}, "temperature is 1e-30"),
        ({"temperature": None}, "temperature is None"),
        ({"sources": -1}, "sources is -1"),
        ({"sources": 1.5}, "sources is 1.5"),
    ],
)
def test_questions_that_mean_nothing(path, model, question, said):
    with pytest.raises(ValueError, match=said):
        Context.open(path, model).generate(**{"prompt": PROMPT} | question)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"path": 5}, "path is 5: give the folder"), ({"index": None}, "index kind is None"), ({"index": 7}, "kind is 7")],
)
def test_places_and_indexes_that_are_none(path, model, given, said):
    with pytest.raises(ValueError, match=said):
        Context.open(**{"path": path, "model": model} | given)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (5, NOTE, "name of document 5 is 5: give a str"),
        (["a"], NOTE, "name of document .* give a str"),
        ("\udcff", NOTE, "name of document .* leave that character out"),
        ("note", None, "text of document 'note' is None"),
        ("note", "a \ud800 b", "text of document 'note' cannot be written as UTF-8"),
        ("note", " \n", "is empty"),
    ],
)
def test_documents_that_are_none(path, model, name, text, said):
    with Context.open(path, model, write=True) as context:
        before = context.tokens
        with pytest.raises(ValueError, match=said):
            context.add([("good", NOTE), (name, text)])
        assert context.tokens == before
        context.append(NOTE, "a\nb\0c")
    assert Context.open(path, model).documents[-1].name == "a\nb\0c"


def test_asking_changes_nothing(path, model):
    context = Context.open(path, model)
    first, before = logits(context), context.tokens_read
    answers = [context.generate(PROMPT, max_new_tokens=40) for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0].text == context.tokenizer.decode(answers[0].ids)
    assert context.tokens_read == before
    assert torch.equal(logits(context), first)
    assert answers[0].traffic.requested > 0
    pieces = []
    assert context.generate(PROMPT, max_new_tokens=40, write=pieces.append).text == "".join(pieces)


def test_sources_name_documents_and_characters(tmp_path, model):
    texts = {"book": BOOK, "note": NOTE}
    with Context.create(tmp_path / "context", model) as context:
        context.add(texts.items())
        context.read()
        answer = context.generate(PROMPT, max_new_tokens=5, sources=100)
        assert [(d.name, d.characters) for d in context.documents] == [(n, len(t)) for n, t in texts.items()]
        assert [context.text(document) for document in context.documents] == list(texts.values())
    assert {source.document for source in answer.sources} == {"book", "note"}
    for source in answer.sources:
        assert texts[source.document][source.first : source.last] == source.text
        assert source.stop <= context.tokens
    assert len(context.generate(PROMPT, max_new_tokens=5, sources=2).sources) <= 4


def test_growing_later_equals_reading_on(path, model):
    with Context.open(path, model, write=True) as context:
        context.append(NOTE, "note")
        assert torch.equal(logits(context), in_memory(model, BOOK, NOTE))
    again = Context.open(path, model)
    assert torch.equal(logits(again), in_memory(model, BOOK, NOTE))
    assert [document.name for document in again.documents] == ["book", "note"]


@pytest.mark.parametrize("index", ["auto", IndexOptions("hierarchical", recall=0.9)])
def test_what_the_index_made_of_landmarks_need_not_be_made_again(index, tmp_path, model, monkeypatch):
    monkeypatch.setattr("landmark.index.hierarchical._CODES_FROM", 1)
    monkeypatch.setattr("landmark.index.hierarchical._MAX_SCORED_SHARE", 2.0)
    with Context.create(tmp_path / "context", model, index=index) as context:
        context.append(BOOK, "book")
        expected = logits(context)
    monkeypatch.setattr("landmark.index.codes.basis_for", None)  # no quantizer is fitted anew
    assert torch.equal(logits(Context.open(tmp_path / "context", model, index=index)), expected)
    fork = context.fork(tmp_path / "fork")
    assert torch.equal(logits(fork), expected)
    with pytest.raises(TypeError):
        logits(Context.open(tmp_path / "context", model, index=IndexOptions("hierarchical", recall=0.8)))


def test_reading_goes_on_where_it_was_interrupted(tmp_path, model, monkeypatch):
    monkeypatch.setattr("landmark.contexts.context.COMMIT_SECONDS", 0.0)
    monkeypatch.setattr("landmark.contexts.context._CHUNKS", 1)
    path = tmp_path / "context"

    class Interrupted(Exception):
        pass

    def stop(tokens, seen=[]):  # noqa: B006 - remembers between calls
        seen.append(tokens)
        if len(seen) == 3:
            raise Interrupted

    context = Context.create(path, model)
    context.add([("book", BOOK)])
    with pytest.raises(Interrupted):
        context.read(progress=stop)
    for use in (context.read, context.fork, lambda: context.generate(PROMPT), lambda: context.append(NOTE)):
        with pytest.raises(ValueError, match="reading was interrupted; open it again"):
            use()
    context.close()
    with Context.open(path, model, write=True) as context:
        assert 0 < context.tokens_read < context.tokens
        context.read()
        assert torch.equal(logits(context), in_memory(model, BOOK))


def test_forks_share_what_was_read_and_go_on_by_themselves(path, model, tmp_path):
    context = Context.open(path, model)
    expected = in_memory(model, BOOK, NOTE)
    branch = context.fork()
    branch.append(NOTE, "note")
    assert torch.equal(logits(branch), expected)
    assert branch.text(branch.documents[-1]) == NOTE
    twig = branch.fork()
    twig.append(NOTE, "again")
    assert torch.equal(logits(branch), expected)
    assert torch.equal(logits(context), in_memory(model, BOOK))
    with context.fork(tmp_path / "fork") as kept:
        kept.append(NOTE, "note")
        assert torch.equal(logits(kept), expected)
    shared = [file.stat().st_ino for file in (path / "segments").iterdir()]
    assert set(shared) <= {file.stat().st_ino for file in (tmp_path / "fork" / "segments").iterdir()}
    assert torch.equal(logits(Context.open(tmp_path / "fork", model)), expected)
    assert len(Context.open(path, model).documents) == 1


def test_the_first_document_alone_begins_as_the_tokenizer_begins_texts(tmp_path, model):
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    tokenizer.bos_token = tokenizer.eos_token
    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    plain = len(encode(tokenizer, NOTE))
    with Context.create(tmp_path / "context", model, tokenizer) as context:
        context.add([("first", NOTE), ("second", NOTE)])
        context.append(NOTE, "third")
        assert [document.tokens for document in context.documents] == [plain + 1, plain, plain]


def test_a_text_is_data_and_a_prompt_goes_on_behind_it(tmp_path, model, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    plain = encode(tokenizer, "ked at it").ids.tolist()
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    prompts = []
    monkeypatch.setattr(
        "landmark.contexts.context.answer", lambda model, ids, *_, **__: prompts.extend(ids.tolist()) or [5]
    )
    with Context.create(tmp_path / "context", model, tokenizer) as context:
        context.append(f"he wrote {tokenizer.eos_token} and loo", "letter")
        assert tokenizer.eos_token_id not in context._documents.slice(0, context.tokens)[:, 0]
        context.generate("ked at it")
    assert prompts == plain, "no space in front"


def test_nothing_is_added_if_one_document_is_empty(path, model):
    with Context.open(path, model, write=True) as context:
        with pytest.raises(ValueError, match="'blank' is empty"):
            context.add([("note", NOTE), ("blank", " ")])
        context.append(NOTE, "other")
        assert [document.name for document in context.documents] == ["book", "other"]


def test_documents_of_one_call_are_compared_with_each_other_before_work_starts(path, model):
    with Context.open(path, model, write=True) as context:
        for use in (context.missing, context.add, context.fork().add):
            with pytest.raises(ValueError, match="two different texts are named note: rename one"):
                use([("note", NOTE), ("note", BOOK)])
        assert [document.name for document in context.documents] == ["book"]
        twice = [("note", NOTE), ("book", BOOK), ("note", NOTE)]
        assert context.missing(twice) == [("note", NOTE)]
        context.add([("note", NOTE), ("note", NOTE)])
        context.read()
        assert [document.name for document in context.documents] == ["book", "note"]
        assert context.missing(twice) == []


# Texts with the same CRC-32.
NORTH, SOUTH = "Meet at the north gate at nine. " * 3, "Meet at the south gate at ten, code y3NacvD"


@pytest.mark.parametrize("version", [1, 2])
def test_documents_are_the_same_by_their_text_not_by_a_checksum_of_32_bits(version, model, tmp_path):
    path = tmp_path / "context"
    assert zlib.crc32(NORTH.encode()) == zlib.crc32(SOUTH.encode())
    with Context.create(path, model) as context:
        context.append(NORTH, "note")
    if version == 1:
        as_version_1(path)
    context = Context.open(path, model)
    assert context.documents[0].sha256 == (None if version == 1 else hashlib.sha256(NORTH.encode()).hexdigest())
    branch = context.fork()
    branch.append(BOOK, "book")
    for held in (context, branch):
        assert held.missing([("note", NORTH)]) == []
        assert held.missing([("other", NORTH)]) == [("other", NORTH)]
        with pytest.raises(ValueError, match="holds another text named note"):
            held.missing([("note", SOUTH)])
    assert branch.missing([("book", BOOK)]) == []
    with pytest.raises(ValueError, match="holds another text named book"):
        branch.missing([("book", NOTE)])


def test_texts_without_a_name_get_one_that_is_free(path, model):
    with Context.open(path, model, write=True) as context:
        for text in (NOTE, NORTH, SOUTH):
            context.append(text, context.name_for("stdin", text))
        assert [document.name for document in context.documents] == ["book", "stdin", "stdin 2", "stdin 3"]
        assert context.name_for("stdin", NORTH) == "stdin 2"
        assert context.name_for("stdin", "new") == "stdin 4"
        assert context.name_for("note", NOTE) == "note"


def test_an_empty_context_can_be_opened(tmp_path, model):
    Context.create(tmp_path / "context", model).close()
    with Context.open(tmp_path / "context", model, write=True) as context:
        assert (context.tokens, context.tokens_read, context.documents) == (0, 0, [])
        context.append(BOOK, "book")
        assert torch.equal(logits(context), in_memory(model, BOOK))


def other(model, folder, **settings):
    changed = landmark.from_pretrained(folder)
    return landmark.convert(changed, **{"block_size": 5, "retrieve": 2, "local_blocks": 1} | settings)


def test_another_model_block_size_or_tokenizer_is_refused_with_the_difference(path, folder, model, tmp_path):
    with pytest.raises(ValueError, match="other block_size: 5, now 7"):
        Context.open(path, other(model, folder, block_size=7))
    changed = other(model, folder)
    with torch.no_grad():
        changed.get_input_embeddings().weight.add_(1e-3)
    with pytest.raises(ValueError, match="other weights"):
        Context.open(path, changed)
    with pytest.raises(ValueError, match="other number type: float32, now float64"):
        Context.open(path, other(model, folder).double())
    elsewhere = tmp_path / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(elsewhere)
    state = json.loads((elsewhere / "tokenizer.json").read_text())
    state["model"]["merges"].pop()
    (elsewhere / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="other tokenizer"):
        Context.open(path, model, AutoTokenizer.from_pretrained(elsewhere))
    with pytest.raises(ValueError, match="read with other"):
        Context.open(path, changed, write=True)
    Context.open(path, model, write=True).close()  # a refusal does not keep the lock


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda context: context.append(NOTE), "open for reading"),
        (lambda context: context.fork().append(" "), "is empty"),
        (lambda context: context.generate(""), "prompt is empty"),
        (lambda context: context.generate(PROMPT, max_new_tokens=0), "max_new_tokens is 0"),
        (lambda context: context.generate(PROMPT, temperature=-1), "temperature is -1"),
        (lambda context: Context.create(context.path, context.model), "exists"),
        (lambda context: context.fork(context.path), "exists"),
        (lambda context: Context.open(context.path, context.model, host_budget=10), "too small for a single query"),
        (lambda context: Context.open(context.path / "nothing", context.model), "nothing does not exist"),
        (lambda context: Context.create(context.path.parent / "x", context.model, retrieve=-1), "retrieve is -1"),
    ],
)
def test_mistakes_harm_nothing(path, model, call, message):
    context = Context.open(path, model)
    with pytest.raises(ValueError, match=message):
        call(context)
    assert torch.equal(logits(Context.open(path, model)), in_memory(model, BOOK))


def with_adapter(folder):
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(landmark.from_pretrained(folder), adapter)
    tuned.add_adapter("other", adapter)
    tuned.set_adapter("default")
    return tuned, tuned.base_model.model


def other_adapter(tuned):
    tuned.set_adapter("other")


def no_adapter(tuned):
    tuned.base_model.disable_adapter_layers()


def other_scaling(tuned):
    tuned.base_model.model.model.layers[0].self_attn.k_proj.scaling["default"] *= 0.5


@pytest.mark.parametrize("change", [other_adapter, no_adapter, other_scaling])
def test_a_context_read_with_an_adapter_is_refused_without_it(change, folder, tmp_path):
    tuned, inner = with_adapter(folder)
    with Context.create(tmp_path / "context", inner) as context:
        context.append(BOOK, "book")
    expected = logits(context)
    assert torch.equal(logits(Context.open(tmp_path / "context", inner)), expected)
    opened = Context.open(tmp_path / "context", inner, write=True)
    change(tuned)
    with pytest.raises(ValueError, match="read with other adapters: 1 active"):
        Context.open(tmp_path / "context", inner)
    # Nor does a context that was open before go on with another model.
    for use in (lambda: opened.generate(PROMPT), lambda: opened.append(NOTE), opened.fork):
        with pytest.raises(ValueError, match="other adapters"):
            use()
    opened.close()


def test_a_context_that_is_open_does_not_go_on_with_a_trained_model(path, folder):
    trained = landmark.from_pretrained(folder)
    context = Context.open(path, trained)
    context.generate(PROMPT, max_new_tokens=1)
    with torch.no_grad():
        trained.model.norm.weight.mul_(1.01)
    with pytest.raises(ValueError, match="other weights"):
        context.generate(PROMPT, max_new_tokens=1)


def test_a_field_of_the_configuration_that_differs_is_named(path, folder):
    changed = landmark.from_pretrained(folder)
    changed.config.rms_norm_eps = 0.125
    with pytest.raises(ValueError, match=r"read with other rms_norm_eps: \S+, now 0.125"):
        Context.open(path, changed)


def test_a_context_with_a_sampled_fingerprint_opens_with_its_model(path, folder, model):
    manifest = read_manifest(path)
    tokenizer = manifest.header["fingerprint"]["tokenizer"]
    sampled = {"fingerprint": sampled_fingerprint(model) | {"tokenizer": tokenizer}}
    publish(path, replace(manifest, header=manifest.header | sampled))
    assert torch.equal(logits(Context.open(path, landmark.from_pretrained(folder))), in_memory(model, BOOK))
    changed = landmark.from_pretrained(folder)
    with torch.no_grad():
        changed.get_input_embeddings().weight.add_(1e-3)
    with pytest.raises(ValueError, match="other weights"):
        Context.open(path, changed)


def flip(path, kind, offset):
    file = path / "segments" / f"000001.{kind}"
    data = bytearray(file.read_bytes())
    data[offset] ^= 4
    file.write_bytes(data)


def test_tokens_that_were_added_are_checked_before_they_are_read(tmp_path, model):
    for kind in ("tokens", "parts"):
        path = tmp_path / kind
        with Context.create(path, model) as context:
            context.add([("book", BOOK)])
        flip(path, kind, 40)
        with Context.open(path, model, write=True) as context, pytest.raises(Damage, match=f"000001.{kind} is damaged"):
            context.read()
        assert read_manifest(path).blocks == 0


def test_blocks_are_checked_before_they_are_attended_to(path, model):
    size = (path / "segments" / "000001.blocks").stat().st_size
    layout = read_manifest(path).layout
    for record in range(size // layout.block_bytes):
        flip(path, "blocks", record * layout.block_bytes + 7)
    context = Context.open(path, model)
    with pytest.raises(Damage, match=r"000001\.blocks is damaged in block \d+, layer 0"):
        context.generate(PROMPT, max_new_tokens=1)


def test_what_is_checked_before_a_context_opens(path, model):
    layout = read_manifest(path).layout
    at = 3 * layout.block_bytes
    flip(path, "blocks", at)
    Context.open(path, model)
    with pytest.raises(Damage, match=r"000001\.blocks is damaged in block 3, layer 0"):
        Context.open(path, model, verify="all")
    with pytest.raises(Damage, match="in block 3"):
        Context.open(path, model, verify="all", write=True)
    flip(path, "blocks", at)
    Context.open(path, model, verify="all", write=True).close()
    expected = logits(Context.open(path, model))
    flip(path, "landmarks", 1)
    with pytest.raises(Damage, match=r"000001\.landmarks is damaged in record 0"):
        Context.open(path, model)
    Context.open(path, model, verify="manifest")
    flip(path, "landmarks", 1)
    assert torch.equal(logits(Context.open(path, model, verify="manifest")), expected)
    with pytest.raises(ValueError, match="verify is 'most': choose one of manifest, landmarks, all"):
        Context.open(path, model, verify="most")


@pytest.mark.parametrize("stride", [True, False])
def test_a_context_without_blocks_has_those_of_its_model(tmp_path, model, stride):
    """There is nothing yet that they could be compared with, but the model."""
    path = tmp_path / "context"
    Context.create(path, model).close()
    manifest = read_manifest(path)
    blocks, landmarks = manifest.layout.blocks, manifest.layout.landmarks
    blocks, count = (tuple(shape._replace(stride=9) for shape in blocks), 2) if stride else (blocks[:1], 1)
    publish(path, replace(manifest, layout=Layout(blocks, landmarks[:count])))
    with pytest.raises(Damage, match="positions a block, and its model 2 of 6"):
        Context.open(path, model)


@pytest.mark.parametrize("name", ["block_size", "landmark_id"])
def test_settings_that_no_model_has(path, model, name):
    manifest = read_manifest(path)
    del manifest.header["settings"][name]
    publish(path, manifest)
    with pytest.raises(ValueError, match=f"have no {name}"):
        Context.open(path, model)


def rewrite_state(path, change):
    """Another state with the checksums that belong to it, made by `change` of tensors and metadata."""
    manifest = read_manifest(path)
    file = path / manifest.state_name
    tensors, metadata = open_reader(path).state()
    change(tensors, metadata)
    data = encode_state(tensors, metadata)
    file.write_bytes(data)
    publish(path, replace(manifest, state=extended(Committed(), data)))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: tensors.pop("1.turned"),
        lambda tensors, metadata: tensors.update({"0.turned": tensors["0.turned"][0]}),
        lambda tensors, metadata: tensors.update({"0.values": tensors["0.values"].double()}),
        lambda tensors, metadata: metadata.pop("layers"),
        lambda tensors, metadata: metadata["layers"].pop("0"),
        lambda tensors, metadata: metadata["layers"]["0"].pop("seen"),
        lambda tensors, metadata: metadata["layers"]["0"].update(seen=[True]),
        lambda tensors, metadata: metadata.update(tokens=[metadata["tokens"][0] - 1]),
        lambda tensors, metadata: metadata.update(tokens=[]),
        lambda tensors, metadata: metadata.clear(),
    ],
)
def test_a_state_that_this_cache_cannot_have_saved(path, model, change):
    rewrite_state(path, change)
    with pytest.raises(Damage):
        Context.open(path, model)


def test_a_writer_must_keep_blocks(path, model):
    with pytest.raises(ValueError, match="retrieve is 0: no blocks are kept"):
        Context.create(path.with_name("other"), model, retrieve=0)
    assert not path.with_name("other").exists()
    with pytest.raises(ValueError, match="retrieve is 0: no blocks are kept"):
        Context.open(path, model, write=True, retrieve=0)
    with Context.open(path, model, write=True) as context:  # the lock is free again
        context.append(NOTE, "note")
    assert torch.equal(logits(Context.open(path, model)), in_memory(model, BOOK, NOTE))
    assert Context.open(path, model, retrieve=0).generate(PROMPT, max_new_tokens=3).ids


@pytest.mark.parametrize("settings", [{"local_blocks": 3}, {"local_blocks": 0, "retrieve": 3}, {"positions": "true"}])
def test_a_context_is_reopened_with_the_settings_it_was_read_with(settings, tmp_path, model):
    text = NOTE[:150]  # within the trained range, for true positions
    with Context.create(tmp_path / "context", model, **settings) as context:
        context.append(text, "note")
        expected = logits(context)
    again = Context.open(tmp_path / "context", model)
    assert {name: getattr(again.cache.settings.reading, name) for name in settings} == settings
    assert torch.equal(logits(again), expected)
