"""Contexts and collections whose blocks are kept in int8: the same numbers offloaded, reopened, forked and exported."""

import tarfile

import pytest
import torch
from forking import PROMPT, logits
from transformers import AutoTokenizer

import landmark
from landmark import Collection, Context
from landmark.contexts.disk import Damage
from landmark.contexts.either import info
from landmark.contexts.export import export
from landmark.contexts.manifest import MANIFEST, framed, publish, read_manifest
from landmark.contexts.verify import verify
from landmark.hf.tokenizer import encode

BOOK = "it was a calm sea and jim looked at the ships for a long while . " * 30
NOTE = "keys and ships 0123456789 . he spoke of it . " * 12


@pytest.fixture
def path(tmp_path, model):
    with Context.create(tmp_path / "context", model, kv_dtype="int8") as context:
        context.append(BOOK, "book")
    return tmp_path / "context"


@torch.no_grad()
def offloaded(model, *texts, **options):
    """Logits of the prompt behind texts that were read into a cache within a small budget."""
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    cache = landmark.LandmarkCache(model.config, host_budget="20KB", **options)
    for text in texts:
        landmark.read(model, encode(tokenizer, text).ids, cache)
    return model(input_ids=encode(tokenizer, PROMPT).ids[None], past_key_values=cache).logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_offloaded_reopened_grown_and_forked_are_the_same_to_the_last_bit(dtype, tmp_path, folder):
    model = landmark.from_pretrained(folder, dtype=dtype)
    with Context.create(tmp_path / "context", model, kv_dtype="int8") as context:
        context.append(BOOK, "book")
        assert torch.equal(logits(context), offloaded(model, BOOK, kv_dtype="int8"))
    for options in ({}, {"kv_dtype": "int8"}, {"host_budget": "20KB"}, {"host_budget": "100MB"}):
        found = logits(Context.open(tmp_path / "context", model, **options))
        assert torch.equal(found, offloaded(model, BOOK, kv_dtype="int8"))
        assert not torch.equal(found, offloaded(model, BOOK))
    with Context.open(tmp_path / "context", model, write=True) as context:
        context.append(NOTE, "note")
        in_memory, expected = context.fork(), offloaded(model, BOOK, NOTE, kv_dtype="int8")
    with Context.open(tmp_path / "context", model).fork(tmp_path / "fork") as on_disk:
        for one in (in_memory, on_disk, Context.open(tmp_path / "context", model, host_budget="20KB")):
            assert torch.equal(logits(one), expected)


def test_the_manifest_says_so_and_the_files_are_smaller(path, tmp_path, model):
    manifest = read_manifest(path)
    assert manifest.layout.kv_dtype == "int8"
    assert b'"version": 3' in (path / MANIFEST).read_bytes(), "earlier releases say that they cannot read it"
    with Context.create(tmp_path / "plain", model) as plain:
        plain.append(BOOK, "book")
    blocks = [(one / "segments" / "000001.blocks").stat().st_size for one in (path, tmp_path / "plain")]
    assert blocks == [one.blocks * one.layout.block_bytes for one in map(read_manifest, (path, tmp_path / "plain"))]
    assert blocks[0] < 0.5 * blocks[1]
    assert info(path)["kv_dtype"] == "int8"
    assert "kv_dtype" not in info(tmp_path / "plain")


def test_another_kv_dtype_is_refused(path, tmp_path, model):
    with Context.create(tmp_path / "plain", model) as plain:
        plain.append(BOOK, "book")
    with pytest.raises(ValueError, match="keeps its blocks in float32: leave kv_dtype out"):
        Context.open(tmp_path / "plain", model, kv_dtype="int8")
    with pytest.raises(ValueError, match="kv_dtype is 'int4'"):
        Context.create(tmp_path / "other", model, kv_dtype="int4")
    assert not (tmp_path / "other").exists()
    manifest = read_manifest(path)
    layout = {**manifest.layout.fields, "kv_dtype": "int4"}
    fields = {"format": "landmark context", "version": 3, "generation": 0, **layout, "segments": [], "state": None}
    (path / MANIFEST).write_bytes(framed({**fields, "header": manifest.header}))
    with pytest.raises(Damage, match="kv_dtype is 'int4': it must be one of int8"):
        Context.open(path, model)
    publish(path, manifest)
    Context.open(path, model)


def test_damage_is_found_and_an_export_opens(path, tmp_path, model):
    assert verify(path) == []
    expected = logits(Context.open(path, model))
    export(path, tmp_path / "context.tar")
    with tarfile.open(tmp_path / "context.tar") as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (
        (tmp_path / "unpacked").iterdir()
        if not (tmp_path / "unpacked" / MANIFEST).exists()
        else [tmp_path / "unpacked"]
    )
    assert torch.equal(logits(Context.open(unpacked, model)), expected)
    file = path / "segments" / "000001.blocks"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # of the last scale
    file.write_bytes(data)
    (damage,) = verify(path)
    assert "is damaged in block" in damage.what


def test_a_collection_keeps_int8_and_shares_with_its_like_alone(tmp_path, model):
    kinds = {"int8": "int8", "again": "int8", "plain": None}
    for name, kv_dtype in kinds.items():
        options = {} if kv_dtype is None else {"kv_dtype": kv_dtype}
        with Collection.create(tmp_path / name, model, share=[tmp_path / "int8"], **options) as made:
            made.add(BOOK, "book")
    shared = {name: Collection.open(tmp_path / name, model) for name in kinds}
    keys = {name: one.documents[0].key for name, one in shared.items()}
    assert keys["int8"] == keys["again"] != keys["plain"]
    file = f"documents/{keys['int8']}/segments/000001.blocks"
    assert (tmp_path / "int8" / file).samefile(tmp_path / "again" / file)
    expected = logits(shared["int8"].context)
    assert torch.equal(logits(shared["again"].context), expected)
    assert not torch.equal(logits(shared["plain"].context), expected)
    assert b'"version": 2' in (tmp_path / "int8" / "collection.json").read_bytes()
    assert b'"version": 1' in (tmp_path / "plain" / "collection.json").read_bytes()
    with pytest.raises(ValueError, match="keeps its blocks in float32"):
        Collection.open(tmp_path / "plain", model, kv_dtype="int8")
    with Collection.open(tmp_path / "int8", model, write=True) as grown:
        grown.add(NOTE, "note")
        assert len(grown.context.documents) == 2
