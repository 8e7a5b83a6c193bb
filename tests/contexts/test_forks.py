"""Forks in memory are snapshots: nothing passes between them and the context they came from, in any state of it."""

import pytest
import torch
from forking import Trial, logits

import landmark
from landmark import Context
from landmark.contexts.verify import verify

ONE = "it was a calm sea and jim looked at the ships for a long while . " * 10
OTHER = "keys and ships 0123456789 . he spoke of it . " * 10


@pytest.mark.parametrize("seed", range(8))
def test_random_sequences(seed, model, tmp_path):
    Trial(seed, model, tmp_path).run()


def test_a_fork_of_an_empty_context_writes_nothing_into_it(model, tmp_path):
    context = Context.create(tmp_path / "context", model)
    fork = context.fork()
    fork.append(ONE, "one")
    context.append(OTHER, "other")
    context.close()
    assert verify(tmp_path / "context") == []
    again = Context.open(tmp_path / "context", model)
    assert [document.name for document in again.documents] == ["other"]
    with Context.create(tmp_path / "fresh", model) as fresh:
        fresh.append(OTHER, "other")
        assert again.blocks == fresh.blocks
        assert torch.equal(logits(again), logits(fresh))


def test_a_fork_does_not_read_what_comes_later(model, tmp_path):
    context = Context.create(tmp_path / "context", model)
    context.append(ONE, "one")
    early, late = context.fork(), context.fork()
    early.append(OTHER, "of the fork")
    context.append(OTHER * 2, "later")
    late.append(OTHER, "of the fork")
    for fork in (early, late):
        assert [document.name for document in fork.documents] == ["one", "of the fork"]
        assert fork.tokens_read == fork.tokens
    assert torch.equal(logits(early), logits(late))


def test_the_cache_of_a_context_cannot_be_reset(model, tmp_path):
    context = Context.create(tmp_path / "context", model)
    context.append(ONE, "one")
    for cache in (context.cache, context.cache.fork()):
        cache.reset()
        with pytest.raises(ValueError, match="cannot be reset: open"):
            landmark.read(model, [3, 4, 5], cache)


def test_a_fork_in_memory_has_no_files_to_fork(model, tmp_path):
    with Context.create(tmp_path / "context", model) as context:
        context.append(ONE, "one")
        fork = context.fork()
        fork.append(OTHER, "of the fork")
        with pytest.raises(ValueError, match="in memory, with no files of its own"):
            fork.fork(tmp_path / "fork")
    assert not (tmp_path / "fork").exists()
