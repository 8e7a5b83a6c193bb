"""A model that has not learnt landmarks says so, once, when a text is read through memory."""

import copy
import json
import warnings

import pytest
import torch
from families import family

import landmark
from landmark.assets import model_path

IDS = torch.randint(3, 61, (1, 30), generator=torch.Generator().manual_seed(1))


def told(model, read=landmark.read):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(model, IDS)
    return [str(w.message) for w in caught if "has not learnt landmarks" in str(w.message)]


def test_reading_is_warned_of_once_and_names_the_command():
    model = landmark.convert(family("llama"), block_size=7)
    assert model.config.landmark["trained_tokens"] == 0
    assert not told(model, lambda model, ids: model(ids)), "nothing is read through memory"
    (message,) = told(model)
    assert "landmark train --model" in message
    assert not told(model)
    assert told(copy.deepcopy(model), lambda model, ids: model.generate(ids, max_new_tokens=2))


def test_a_count_is_kept_and_ends_the_warning(tmp_path):
    model = landmark.convert(family("llama"), block_size=7)
    landmark.convert(model, trained_tokens=1000)
    model.save_pretrained(tmp_path)
    loaded = landmark.from_pretrained(tmp_path)
    assert loaded.config.landmark["trained_tokens"] == 1000
    assert not told(loaded)
    with pytest.raises(ValueError, match="trained_tokens is -1"):
        landmark.convert(model, trained_tokens=-1)


def test_nothing_is_said_of_models_that_were_saved_without_a_count(tmp_path):
    landmark.convert(family("llama"), block_size=7).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["landmark"]["trained_tokens"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = landmark.from_pretrained(tmp_path)
    assert model.config.landmark["trained_tokens"] is None
    assert not told(model)


def test_the_model_in_the_package_has_learnt():
    model = landmark.from_pretrained(model_path())
    assert model.config.landmark["trained_tokens"] > 1_000_000
    assert not told(model)
