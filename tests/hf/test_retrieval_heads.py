"""`RetrievalHeads`: pooling by hand, files, and the heads of the models of the package."""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

import landmark
from landmark.assets import adapter_path, retrieval_heads_path
from landmark.hf.adapter_file import FILE, read_adapter
from landmark.hf.retrieval_heads import pooled, searchable_heads


def test_pooling_by_hand():
    scores = torch.tensor([[0.0, 0.0], [1.0, 3.0]]).log()  # [T,N]; log(0) opens nothing
    scores[0] = torch.tensor([3.0, 1.0]).log()
    assert pooled(scores, "max").tolist() == pytest.approx([0.75, 0.75])
    assert pooled(scores, "mean").tolist() == pytest.approx([0.5, 0.5])
    assert pooled(scores, "last").tolist() == pytest.approx([0.25, 0.75])


def test_heads_are_averaged():
    one, other = torch.tensor([[[3.0, 1.0]]]).log(), torch.tensor([[[9.0, 9.0]], [[1.0, 3.0]]]).log()
    heads = landmark.RetrievalHeads(((1, 0), (4, 1)))
    assert heads.layers == [1, 4]
    assert heads.pooled({1: one, 4: other}).tolist() == pytest.approx([0.5, 0.5])


def test_files_come_back(tmp_path: Path):
    heads = landmark.RetrievalHeads(((1, 0), (2, 3)), "max")
    heads.save(tmp_path / "heads.json")
    assert landmark.RetrievalHeads.load(tmp_path / "heads.json") == heads
    of_heads = (f'{{"heads": {heads}, "pooling": "max"}}' for heads in ("[[1]]", "[[1.5, 0]]", "[[1e999, 0]]"))
    for text in ("", "[]", "{}", *of_heads, '{"heads": [[1, 0]], "pooling": "sum"}', "[" * 10**5):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json is no file of heads"):
            landmark.RetrievalHeads.load(tmp_path / "bad.json")
    with pytest.raises(ValueError, match=r"none\.json, which cannot be read"):
        landmark.RetrievalHeads.load(tmp_path / "none.json")


def test_mistakes():
    with pytest.raises(ValueError, match="pooling is 'sum'"):
        landmark.RetrievalHeads(((1, 0),), "sum")  # type: ignore[arg-type]
    for heads in ((), ((1, -1),), ((1.5, 0),), ((True, 0),), (("1", 0),)):
        with pytest.raises(ValueError, match="give one pair"):
            landmark.RetrievalHeads(heads)


def test_the_models_of_the_package_have_heads():
    config = AutoConfig.from_pretrained(landmark.model_path())
    landmark.RetrievalHeads.of_model(config).check(config)
    entries = json.loads(retrieval_heads_path().read_text())
    for entry in entries:
        assert set(entry) == {"model", "known_by", "heads", "pooling", "chosen"}
        assert "landmark eval retrieval" in entry["chosen"]
        assert all(head[0] < entry["known_by"]["num_hidden_layers"] for head in entry["heads"])
    of_adapter = read_adapter(adapter_path() / FILE).settings
    (known_by,) = (entry["known_by"] for entry in entries if entry["known_by"]["num_hidden_layers"] == 30)
    assert known_by["trained_tokens"] == of_adapter.trained_tokens
    assert known_by["block_size"] == of_adapter.block_size


def test_unknown_models_and_heads_are_refused():
    config = AutoConfig.from_pretrained(landmark.model_path())
    assert searchable_heads(config) == [(layer, head) for layer in (1, 2, 3) for head in range(4)]
    for pair in ((0, 1), (4, 0), (1, 4)):
        with pytest.raises(ValueError, match=rf"layer {pair[0]} has no head {pair[1]} with landmarks of its own"):
            landmark.RetrievalHeads((pair,)).check(config)
    for other in ({"hidden_size": 100}, {"landmark": config.landmark | {"trained_tokens": 1}}):
        unknown = copy.deepcopy(config)
        unknown.update(other)
        assert landmark.RetrievalHeads.known(unknown) is None
        with pytest.raises(ValueError, match="no heads are known"):
            landmark.RetrievalHeads.of_model(unknown)
