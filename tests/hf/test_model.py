"""The class of a converted model: its own but for a few methods, and as portable."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from families import family

import landmark
from landmark.hf.model import LandmarkMixin, landmark_class

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
    assert type(converted()) is type(model) is landmark_class(plain)


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
