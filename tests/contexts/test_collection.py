"""`landmark.Collection`: documents read apart, and put together, whatever the order and whoever reads on."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from forking import PROMPT
from transformers import AutoTokenizer

import landmark
from landmark import Collection, Context, Retriever
from landmark.contexts.apart import DocumentContext
from landmark.contexts.collection_folder import delete, info, is_unused, verify_collection
from landmark.contexts.collection_manifest import COLLECTION, DOCUMENTS, read_collection
from landmark.contexts.manifest import framed
from landmark.hf.block_search import filler
from landmark.hf.tokenizer import encode
from landmark.index.options import IndexOptions

BLOCK = 5  # tokens of the tiny model's blocks
TEXTS = {
    "sea": "it was a calm sea and jim looked at the ships for a long while . " * 6,
    "keys": "keys and ships 0123456789 . he spoke of it . " * 4,
    "note": "jim spoke",
    "long": "the sea was calm before he spoke of keys and ships . " * 9,
}


@pytest.fixture(scope="module")
def held(tmp_path_factory, model):
    """A collection of all texts, not to be changed."""
    return made(tmp_path_factory.mktemp("held") / "collection", model, TEXTS)


@pytest.fixture
def path(tmp_path, held):
    """The same, to be changed."""
    shutil.copytree(held, tmp_path / "collection")
    return tmp_path / "collection"


def made(path, model, texts, **options):
    with Collection.create(path, model, **options) as collection:
        for name, text in texts.items():
            assert collection.add(text, name)
    return path


@torch.no_grad()
def logits(context):
    ids = encode(context.tokenizer, PROMPT).ids[None]
    return context.model(input_ids=ids, past_key_values=context.cache.fork()).logits


def used(*folders):
    """Bytes on disk of all files and folders below, those with several names once."""
    found = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            status = path.lstat()
            found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def read_alone(model, text):
    """A cache that has read a text and line ends up to a whole block, all of it moved to memory."""
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    ids = encode(tokenizer, text).ids.tolist()
    cache = landmark.read(model, [*ids, *[filler(tokenizer)] * (-len(ids) % BLOCK)])
    cache.settle(model.base_model.landmark_ropes, local_blocks=0)
    return cache


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_set_of_one_is_the_text_read_in_sequence(text, tmp_path, model):
    context = Context.open(made(tmp_path / "one", model, {"text": text}), model)
    cache = read_alone(model, text)
    ids = encode(context.tokenizer, PROMPT).ids[None]
    with torch.no_grad():
        expected = model(input_ids=ids, past_key_values=cache).logits
    assert torch.equal(logits(context), expected)


def put_together(model, texts):
    """A cache with the blocks of all texts, each read alone: what a collection does on disk, in memory."""
    caches = [read_alone(model, text) for text in texts]
    whole = landmark.LandmarkCache(model.config)
    blocks = sum(cache.tokens_read()[0] for cache in caches) // BLOCK
    first = caches[0].memories
    for memory, one in zip(whole.memories, first, strict=True):
        window, _ = one.state()
        memory.resume(window, [blocks * (BLOCK + 1)], [blocks])
    for cache in caches:
        for memory, one in zip(whole.memories, cache.memories, strict=True):
            count = one._blocks.counts[0]
            keys, values, *_ = one._blocks._store.resident_blocks()
            numbers = torch.arange(count)[None]
            memory._blocks._store.append(0, keys[0, :, :count], values[0, :, :count])
            memory._blocks._index.append(0, one._blocks._index.keys(numbers)[0])
    whole.resume(torch.tensor([blocks * BLOCK]))
    return whole


def test_a_collection_is_the_blocks_of_its_documents_side_by_side(held, model):
    in_order = sorted(read_collection(held).members, key=lambda member: member.key)
    cache = put_together(model, [TEXTS[member.name] for member in in_order])
    context = Context.open(held, model)
    ids = encode(context.tokenizer, PROMPT).ids[None]
    with torch.no_grad():
        assert torch.equal(logits(context), model(input_ids=ids, past_key_values=cache).logits)


def test_the_same_bits_from_any_budget_and_index_and_from_another_process(held, folder, model, tmp_path):
    expected = logits(Context.open(held, model))
    for options in ({"host_budget": "12KB"}, {"index": IndexOptions("exact")}, {"index": "hierarchical"}):
        assert torch.equal(logits(Context.open(held, model, **options)), expected)
    script = (
        "import sys, torch, landmark; from landmark.hf.tokenizer import encode; torch.set_num_threads(1)\n"
        "model = landmark.from_pretrained(sys.argv[1])\n"
        "context = landmark.Collection.open(sys.argv[2], model).context\n"
        "ids = encode(context.tokenizer, sys.argv[3]).ids[None]\n"
        "with torch.no_grad(): out = model(input_ids=ids, past_key_values=context.cache).logits\n"
        "torch.save(out, sys.argv[4])"
    )
    out = tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", script, str(folder), str(held), PROMPT, str(out)], check=True)
    assert torch.equal(torch.load(out), expected)


def test_the_order_of_adding_changes_no_bit(held, tmp_path, model):
    other = made(tmp_path / "other", model, dict(reversed(TEXTS.items())))
    one, two = (Collection.open(each, model) for each in (held, other))
    assert [member.name for member in two.documents] == [*reversed(TEXTS)]
    assert torch.equal(logits(one.context), logits(two.context))
    answers = [each.generate(PROMPT, max_new_tokens=4) for each in (one, two)]
    assert answers[0] == answers[1]


def test_a_document_that_is_removed_and_added_again(path, model):
    expected = logits(Context.open(path, model))
    with Collection.open(path, model, write=True) as collection:
        before = collection.context
        collection.remove("keys")
        fewer = logits(collection.context)
        assert not torch.equal(fewer, expected)
        assert torch.equal(logits(before), expected)  # goes on with what it was made of
        assert collection.add(TEXTS["keys"], "keys")
        assert torch.equal(logits(collection.context), expected)


def test_removal_leaves_nothing(path, model):
    before = used(path)
    with Collection.open(path, model, write=True) as collection:
        secret = "ships at 9876543210 . " * 20
        collection.add(secret, "secret")
        assert used(path) > before
        collection.remove("secret")
        assert not any(b"9876543210" in file.read_bytes() for file in path.rglob("*") if file.is_file())
        assert used(path) <= before
        assert not any(b"secret" in file.read_bytes() for file in path.rglob("*") if file.is_file())
        found = {match.document for match in Retriever(collection.context, HEADS).search("ships at 9876543210 .", 50)}
        assert found == {*TEXTS}
        with pytest.raises(ValueError, match=r"no document named 'secret': there are sea, keys"):
            collection.remove("secret")


HEADS = landmark.RetrievalHeads(((1, 0), (1, 2)))


def test_sources_name_documents_and_their_characters(held, model):
    context = Context.open(held, model)
    assert {document.name for document in context.documents} == {*TEXTS}
    answer = context.generate(PROMPT, max_new_tokens=6, sources=100)
    assert len({source.document for source in answer.sources}) > 1
    for source in answer.sources:
        assert TEXTS[source.document][source.first : source.last] == source.text
    assert {match.document for match in Retriever(context, HEADS).search("keys and ships", 50)} == {*TEXTS}
    view = landmark.View.of_context(context, answer)
    assert [text.name for text in view.texts[:-2]] == [document.name for document in context.documents]
    for document in context.documents:
        assert context.text(document) == TEXTS[document.name]


def test_every_token_lies_in_a_block_of_its_own_document(held, model):
    context = Context.open(held, model)
    assert context.tokens == context.tokens_read == context.blocks * BLOCK
    for document in context.documents:
        assert document.first_token % BLOCK == document.tokens % BLOCK == 0
        own = len(encode(context.tokenizer, TEXTS[document.name]))
        assert 0 <= document.tokens - own < BLOCK
        assert {member.name: member.tokens for member in Collection.open(held, model).documents}[document.name] == own


def test_replacing_is_one_step(path, model):
    with Collection.open(path, model, write=True) as collection:
        assert not collection.replace("keys", TEXTS["keys"])
        assert collection.replace("keys", "he spoke of the sea . " * 5)
        assert [member.name for member in collection.documents] == [*TEXTS]
        assert collection.text("keys") == "he spoke of the sea . " * 5
        with pytest.raises(ValueError, match="holds this text already, named note: remove keys instead"):
            collection.replace("keys", TEXTS["note"])
        with pytest.raises(ValueError, match="no document named 'kees'"):
            collection.replace("kees", "text")
    assert len([*(path / DOCUMENTS).iterdir()]) == len(TEXTS)
    assert verify_collection(path) == []


def test_it_says_what_it_is(path, model):
    with Collection.open(path, model) as collection:
        tokens = sum(member.tokens for member in collection.documents)
        assert repr(collection) == f"Collection(path={str(path)!r}, documents={len(TEXTS)}, tokens={tokens:,})"
        tokens = collection.context.tokens  # those that fill last blocks, too
        assert repr(collection.context) == f"Context(path={str(path)!r}, documents={len(TEXTS)}, tokens={tokens:,})"


def test_equal_texts_are_one_document_and_other_texts_need_other_names(path, model, tmp_path, monkeypatch):
    monkeypatch.setattr(DocumentContext, "reading", None)  # nothing is read
    file = tmp_path / "copy of the note"
    file.write_text(TEXTS["note"])
    with Collection.open(path, model, write=True) as collection:
        assert not collection.add(TEXTS["note"], "note")
        assert not collection.add(TEXTS["note"], "another note")
        assert not collection.add(file)
        assert [member.name for member in collection.documents] == [*TEXTS]
        for wrong, said in [
            (("other", "note"), "holds another text named note: replace it"),
            (("", "empty"), "'empty' is empty"),
            (("text",), "has no name of its own"),
            ((tmp_path / "missing",), "missing does not exist"),
        ]:
            with pytest.raises(ValueError, match=said):
                collection.add(*wrong)
    with pytest.raises(ValueError, match="open it with write=True"):
        Collection.open(path, model).add("text", "name")


def test_an_interrupted_reading_goes_on(path, model, tmp_path, monkeypatch):
    monkeypatch.setattr("landmark.contexts.context.COMMIT_SECONDS", 0.0)
    monkeypatch.setattr("landmark.contexts.context._CHUNKS", 1)
    text = "before he spoke of keys jim looked at the ships . " * 60
    chunks = []

    def interrupt(tokens):
        chunks.append(tokens)
        if len(chunks) == 3:
            raise KeyboardInterrupt

    with Collection.open(path, model, write=True) as collection:
        with pytest.raises(KeyboardInterrupt):
            collection.add(text, "text", progress=interrupt)
        assert [member.name for member in collection.documents] == [*TEXTS]
    with Collection.open(path, model, write=True) as collection:
        rest = []
        collection.add(text, "text", progress=rest.append)
        tokens = collection.documents[-1].blocks * BLOCK
        assert sum(chunks[:2]) + sum(rest) == tokens
        found = logits(collection.context)
    whole = made(tmp_path / "whole", model, {**TEXTS, "text": text})
    assert torch.equal(logits(Context.open(whole, model)), found)


def test_a_reading_that_is_given_up_is_cleaned_away_by_the_next_change(path, model):
    def interrupt(tokens):
        if tokens:  # before, the text is tokenized
            raise KeyboardInterrupt

    with Collection.open(path, model, write=True) as collection:
        with pytest.raises(KeyboardInterrupt):
            collection.add("keys 777 . " * 40, "text", progress=interrupt)
        assert len([*(path / DOCUMENTS).iterdir()]) == len(TEXTS) + 1
        collection.remove("note")
    assert len([*(path / DOCUMENTS).iterdir()]) == len(TEXTS) - 1
    assert not any(b"777" in file.read_bytes() for file in path.rglob("*") if file.is_file())


def test_another_collection_shares_documents(path, model, tmp_path, monkeypatch):
    alone = used(path)
    more = {**TEXTS, "other": "he looked at it . " * 8}
    read = []
    usual = DocumentContext.reading
    monkeypatch.setattr(DocumentContext, "reading", lambda *given: read.append(given) or usual(*given))
    other = made(tmp_path / "other", model, more, share=[path])
    assert len(read) == 1
    assert used(path, other) < 1.6 * alone  # the tiny model's blocks are smaller than what a folder takes
    expected = logits(Context.open(other, model))
    with Collection.open(path, model, write=True) as collection:
        collection.remove("long")
    delete(path)
    assert torch.equal(logits(Context.open(other, model)), expected)
    assert verify_collection(other) == []


def test_a_document_that_another_collection_read_in_part_is_not_shared(path, model, tmp_path, monkeypatch):
    monkeypatch.setattr("landmark.contexts.context.COMMIT_SECONDS", 0.0)
    monkeypatch.setattr("landmark.contexts.context._CHUNKS", 1)
    text, chunks = "before he spoke of keys jim looked at the ships . " * 60, []

    def interrupt(tokens):
        chunks.append(tokens)
        if len(chunks) == 3:
            raise KeyboardInterrupt

    with Collection.open(path, model, write=True) as collection, pytest.raises(KeyboardInterrupt):
        collection.add(text, "text", progress=interrupt)
    other = made(tmp_path / "other", model, {"text": text}, share=[path])
    assert verify_collection(other) == []
    whole = made(tmp_path / "whole", model, {"text": text})
    assert torch.equal(logits(Context.open(other, model)), logits(Context.open(whole, model)))


def test_one_writer_and_many_readers(path, model):
    reader = Collection.open(path, model)
    with Collection.open(path, model, write=True) as collection:
        with pytest.raises(ValueError, match="is being written by another writer"):
            Collection.open(path, model, write=True)
        expected = logits(reader.context)
        for name in TEXTS:
            collection.remove(name)
        assert collection.documents == []
        assert torch.equal(logits(reader.context), expected)
        assert len(collection.generate(PROMPT, max_new_tokens=2).ids) == 2
    assert Context.open(path, model).tokens == 0


def test_a_writer_whose_folder_was_replaced_changes_nothing(path, model):
    with Collection.open(path, model, write=True) as collection:
        path.rename(path.with_name("moved"))
        shutil.copytree(path.with_name("moved"), path)
        with pytest.raises(ValueError, match="was moved, replaced or deleted"):
            collection.remove("note")
    assert [member.name for member in read_collection(path).members] == [*TEXTS]


def test_what_is_refused(path, model, folder, tmp_path):
    other = landmark.from_pretrained(folder)
    with torch.no_grad():
        other.model.layers[1].self_attn.v_proj.weight[0, 0] += 1
    for open_it in (Collection.open, Context.open):
        with pytest.raises(ValueError, match="was read with other"):
            open_it(path, other)
    with pytest.raises(ValueError, match="exists: give a new folder"):
        Collection.create(path, model)
    with pytest.raises(ValueError, match="lies in the collection"):
        Collection.create(path / "inner", model)
    with pytest.raises(ValueError, match="does not exist: `landmark read --apart FILE"):
        Collection.open(tmp_path / "nothing", model)
    with pytest.raises(ValueError, match="is a collection: add documents with"):
        Context.open(path, model, write=True)
    with pytest.raises(ValueError, match="make another one that shares its documents"):
        Context.open(path, model).fork(tmp_path / "fork")
    with pytest.raises(ValueError, match="positions is 'true'"):
        Collection.create(tmp_path / "new", model, positions="true")
    with pytest.raises(ValueError, match="retrieve is 0"):
        Collection.create(tmp_path / "new", model, retrieve=0)
    assert is_unused(tmp_path / "new")


def test_a_model_that_changed_since_reads_nothing(path, folder):
    model = landmark.from_pretrained(folder)
    with Collection.open(path, model, write=True) as collection:
        with torch.no_grad():
            model.model.layers[1].self_attn.v_proj.weight[0, 0] += 1
        with pytest.raises(ValueError, match="was read with other"):
            collection.add("he spoke of ships . " * 4, "new")


def flipped(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("kind", ["blocks", "landmarks", "tokens", "text", "documents", "parts"])
def test_damage_in_a_document_is_named_and_can_be_removed(kind, path, model):
    member = read_collection(path).members[0]
    file = path / DOCUMENTS / member.key / "segments" / f"000001.{kind}"
    flipped(file, file.stat().st_size // 2)
    assert any(str(file) in str(damage) for damage in verify_collection(path))
    with pytest.raises(ValueError, match=member.key):
        Context.open(path, model, verify="all")
    with Collection.open(path, model, write=True) as collection:
        collection.remove(member.name)
        collection.generate(PROMPT, max_new_tokens=2)
    assert verify_collection(path) == []


def test_a_missing_document_a_false_one_and_a_damaged_manifest(path, model):
    first, second = read_collection(path).members[:2]
    folders = [path / DOCUMENTS / member.key for member in (first, second)]
    shutil.rmtree(folders[0])
    with pytest.raises(ValueError, match=f"{first.key} is missing"):
        Collection.open(path, model)
    shutil.copytree(folders[1], folders[0])
    with pytest.raises(ValueError, match=f"is not the document '{first.name}' that collection.json names"):
        Context.open(path, model)
    assert [damage.file for damage in verify_collection(path)] == [folders[0]]
    shutil.rmtree(folders[0])
    folders[0].symlink_to(folders[1])
    for open_it in (Collection.open, Context.open):
        with pytest.raises(ValueError, match=f"{first.key} is not a folder of its own"):
            open_it(path, model)
    folders[0].unlink()
    folders[0].mkdir()
    assert [damage.file for damage in verify_collection(path)] == [folders[0]]
    flipped(path / "collection.json", 200)
    with pytest.raises(ValueError, match="its checksum does not fit"):
        Context.open(path, model)
    assert [damage.file.name for damage in verify_collection(path)] == ["collection.json"]


def wrong_manifests(path):
    """The manifest with one field, or one of a document, that cannot be, and a right checksum."""
    found = json.loads((path / COLLECTION).read_bytes())
    del found["crc32"]
    for name in found:
        yield framed({**found, name: {"a": [1e9]} if name != "header" else []})
        yield framed({other: value for other, value in found.items() if other != name})
    first, *others = found["documents"]
    for name in first:
        yield framed({**found, "documents": [{**first, name: -1}, *others]})
        if name != "name":  # which may be any text
            yield framed({**found, "documents": [{**first, name: "../../x"}, *others]})
    yield framed({**found, "documents": [first, first]})
    yield framed({**found, "removed": ["../" + first["key"]]})
    yield framed({**found, "header": {**found["header"], "settings": {}}})
    yield framed({**found, "header": {**found["header"], "fingerprint": {}}})
    yield framed({**found, "blocks": found["blocks"][:1], "landmarks": found["landmarks"][:1]})


def test_a_manifest_of_somebody_else_is_refused(path, model):
    for data in wrong_manifests(path):
        (path / COLLECTION).write_bytes(data)
        with pytest.raises(ValueError):  # noqa: PT011 - each for another reason
            Context.open(path, model)
        with pytest.raises(ValueError), Collection.open(path, model, write=True) as collection:  # noqa: PT011
            collection.generate(PROMPT, max_new_tokens=1)
    assert len([*(path / DOCUMENTS).iterdir()]) == len(TEXTS)


def test_figures_and_deletion(path, model):
    found = info(path)
    collection = Collection.open(path, model)
    assert found["documents"] == len(TEXTS)
    assert found["tokens"] == sum(member.tokens for member in collection.documents)
    assert found["bytes"] == collection.nbytes
    assert found["shared_bytes"] == 0
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes.txt is not part of one"):
        delete(path)
    (path / "notes.txt").unlink()
    delete(path)
    assert not path.exists()
    assert len(collection.generate(PROMPT, max_new_tokens=2).ids) == 2
