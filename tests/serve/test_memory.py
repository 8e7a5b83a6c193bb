"""The memory of a server: what is reckoned is not less than what is taken, and no more is taken than there is."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
from serving import NAME, running, until

from landmark import Context
from landmark.hf import read
from landmark.process_memory import available_bytes
from landmark.serve.errors import Refusal
from landmark.serve.memory import FIXED, Reckoning, context_blocks
from landmark.serve.opened import OpenContexts

ASKED = f"{NAME}@library"
BUDGET = 4_000_000


def reachable_bytes(*roots):
    """Bytes of all tensors that can be reached from some objects, each storage once."""
    seen, storages, left = set(), {}, list(roots)
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, type | type(gc)):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif not isinstance(one, torch.nn.Module):
            left += gc.get_referents(one)
    return sum(storages.values())


def test_what_is_reckoned_is_not_less_than_what_is_taken(reader, library):
    model, tokenizer = reader
    reckoning = Reckoning.of(model, BUDGET)
    context = Context.open(library, model, tokenizer, host_budget=BUDGET)
    assert context_blocks(library) == context.blocks > 100
    assert reachable_bytes(context.cache) <= reckoning.context(context.blocks)
    branch = context.fork()
    branch.cache.start_trace()
    alone = reachable_bytes(context.cache)
    with torch.no_grad():
        read(model, torch.arange(1, 2000) % 250 + 1, branch.cache)
    taken = reachable_bytes(branch.cache) - alone
    assert FIXED / 100 < taken <= reckoning.answer(2000, context.blocks)


def test_more_tokens_choices_and_blocks_take_more(reader):
    reckoning = Reckoning.of(reader[0], BUDGET)
    assert reckoning.answer(1000, None) < reckoning.answer(2000, None)
    assert reckoning.answer(1, 10) < reckoning.answer(1, 100) <= FIXED + BUDGET + reckoning.answer(1, 0)
    assert reckoning.context(1) < reckoning.context(1000)
    with pytest.raises(ValueError, match="--memory"):
        reckoning.of_answers(FIXED, reads=True)
    assert reckoning.of_answers(10**9, reads=True) < reckoning.of_answers(10**9, reads=False) == 10**9
    assert 0 < reckoning.of_answers(None, reads=False) < available_bytes()


def test_answers_wait_for_memory_and_all_come(reader, library):
    reckoning = Reckoning.of(reader[0], BUDGET)
    one_answer = reckoning.answer(20, context_blocks(library))
    memory = reckoning.context(context_blocks(library)) + 2 * one_answer
    most = 0
    with running(*reader, given={"library": library}, memory=memory, options={"host_budget": BUDGET}) as one:
        engine, usual = one.server.engine, one.server.engine._turn

        def noted():
            nonlocal most
            most = max(most, len(engine.running))
            return usual()

        engine._turn = noted
        ask = {"model": ASKED, "prompt": "jim ", "max_tokens": 15}
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda _: one.client().completions.create(**ask), range(6)))
        assert len({answer.choices[0].text for answer in found}) == 1
        assert most <= 2
        with pytest.raises(openai.BadRequestError, match="bytes of memory, and the server has"):
            one.client().completions.create(model=ASKED, prompt="jim ", max_tokens=4000, n=8)
        assert until(lambda: one.server.admission.nbytes <= reckoning.context(context_blocks(library)))


def test_a_context_for_which_there_is_no_room_is_not_opened(reader, library):
    reckoning = Reckoning.of(reader[0], BUDGET)
    memory = reckoning.context(0) + reckoning.answer(1, 0)
    with (
        pytest.raises(ValueError, match="more --memory"),
        running(*reader, given={"library": library}, memory=memory, options={"host_budget": BUDGET}),
    ):
        pass


# Open contexts, without any.


class Kept:
    pass


def opened(room=100):
    """Contexts of ten bytes each, of which there is room for some, and the order in which they were opened."""
    order = []

    def check(nbytes):
        if not found.shrink(room - nbytes):
            raise Refusal(429, "no room")

    def open_one(path):
        order.append(path.name)
        return Kept()

    found = OpenContexts(open_one, lambda path: 10, check)
    return found, order


def test_a_context_is_opened_once_for_all_who_ask():
    found, order = opened()
    with ThreadPoolExecutor(8) as pool:
        same = list(pool.map(lambda _: found.get(Path("a"), 1), range(8)))
    assert order == ["a"]
    assert len(set(map(id, same))) == 1
    assert found.nbytes == 10
    found.get(Path("a"), 2)  # after a change
    assert order == ["a", "a"]


def test_one_thread_opens_at_a_time_though_opening_fails():
    opening, most, lock = [], [], threading.Lock()

    def open_one(path):
        with lock:
            opening.append(path)
            most.append(len(opening))
        time.sleep(0.005)
        with lock:
            opening.remove(path)
            if len(most) % 2:
                raise ValueError("damaged")
        return Kept()

    found = OpenContexts(open_one, lambda path: 10, lambda nbytes: None)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(found.get, Path("a"), 1) for _ in range(40)]
        errors = [one.exception() for one in asked]
    assert max(most) == 1
    assert {type(error) for error in errors} == {ValueError, type(None)}
    assert found.nbytes == 10


def test_idle_contexts_are_closed_for_room_and_held_ones_are_not():
    found, order = opened(room=30)
    held = found.get(Path("a"), 1)
    for name in "bc":
        found.get(Path(name), 1)
    found.get(Path("d"), 1)  # closes b, which was asked before c
    assert found.nbytes == 30
    assert found.get(Path("a"), 1) is held
    found.get(Path("c"), 1)
    assert order == ["a", "b", "c", "d"]
    others = [found.get(Path(name), 1) for name in "cd"]
    with pytest.raises(Refusal):
        found.get(Path("e"), 1)
    del others
    found.get(Path("e"), 1)
    assert found.nbytes == 30


def test_what_a_change_leaves_is_closed_when_nobody_holds_it():
    found, _ = opened()
    held = found.get(Path("a"), 1)
    found.forget(Path("a"))
    assert found.nbytes == 10  # it still takes its memory
    del held
    assert found.nbytes == 0
