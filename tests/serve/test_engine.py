"""The engine without a model: turns, admission, fairness, reading that yields, cancellation, the end."""

import threading
import time

import pytest
from serving import until

from landmark.serve.engine import Engine
from landmark.serve.errors import Refusal


class Steps:
    """Work of `count` steps that notes each in `log`."""

    def __init__(self, name, count, log, rows=1, owner="a", nbytes=0):
        self.name, self.left, self.log = name, count, log
        self.rows, self.owner, self.nbytes = rows, owner, nbytes
        self.over = self.closed = False
        self.errors = []
        self.decoding = [name]

    def prepare(self):
        pass

    def begin(self):
        self.log.append(f"{self.name} begins")

    def step(self):
        self.log.append(self.name)
        self.left -= 1
        return self.left > 0

    def fail(self, error):
        self.errors.append(error)

    def close(self):
        self.closed = True


class Chunks:
    """A job of `count` chunks of some seconds each."""

    owner = "a"

    def __init__(self, count, log, seconds=0.0):
        self.count, self.log, self.seconds = count, log, seconds

    def run(self, between):
        for _ in range(self.count):
            time.sleep(self.seconds)
            self.log.append("chunk")
            between()


@pytest.fixture
def engine():
    """An engine that has not started, so that what waits is known."""
    engine = Engine(most_rows=2, most_waiting=4)
    yield engine
    if engine.alive:
        engine.stop(5)


def finished(engine, works):
    prepared(engine)
    engine.start()
    assert until(lambda: all(work.closed for work in works))


def prepared(engine):
    """Waits until all requests may begin, so that what begins first is known."""
    assert until(lambda: len(engine._prepared) == len(engine.waiting))


def test_requests_take_turns(engine):
    log = []
    works = [Steps("x", 3, log), Steps("y", 3, log)]
    for work in works:
        engine.submit(work)
    finished(engine, works)
    assert log == ["x begins", "y begins", "x", "y", "x", "y", "x", "y"]


def test_rows_that_decode_are_computed_together_before_their_turns():
    log = []
    engine = Engine(most_rows=3, most_waiting=4, together=log.append)
    works = [Steps("x", 2, log), Steps("y", 3, log), Steps("z", 2, log)]
    works[2].decoding = []  # it reads its prompt
    for work in works:
        engine.submit(work)
    finished(engine, works)
    engine.stop(5)
    assert log[3:] == [["x", "y"], "x", "y", "z", ["x", "y"], "x", "y", "z", "y"]


def test_who_went_away_is_not_computed(engine):
    log = []
    engine.together = log.append
    works = [Steps("x", 3, log), Steps("y", 3, log)]
    works[0].step = lambda: setattr(works[0], "over", True) or True
    for work in works:
        engine.submit(work)
    finished(engine, works)
    assert log[2:] == [["x", "y"], "y", "y", "y"]


def test_no_more_rows_run_than_allowed_and_no_more_wait(engine):
    log = []
    works = [Steps("x", 2, log, rows=2), *(Steps(name, 1, log) for name in "yzw")]
    for work in works:
        engine.submit(work)
    with pytest.raises(Refusal) as refused:
        engine.submit(Steps("v", 1, log))
    assert (refused.value.status, refused.value.retry_after) == (429, 3)
    finished(engine, works)
    assert log == ["x begins", "x", "x", "y begins", "z begins", "y", "z", "w begins", "w"]


def test_who_has_nothing_running_comes_before_who_has(engine):
    log = []
    works = [Steps("a1", 2, log), Steps("a2", 1, log), Steps("a3", 1, log), Steps("b1", 1, log, owner="b")]
    for work in works:
        engine.submit(work)
    finished(engine, works)
    begun = [line.split()[0] for line in log if line.endswith("begins")]
    assert begun == ["a1", "b1", "a2", "a3"]


def test_who_went_away_runs_no_further_step(engine):
    log = []
    gone, stays = Steps("gone", 100, log), Steps("stays", 5, log)
    gone.step = lambda: setattr(gone, "over", True) or True
    for work in (gone, stays):
        engine.submit(work)
    finished(engine, [gone, stays])
    assert gone.closed
    assert log.count("stays") == 5


def test_an_error_ends_one_request_alone(engine):
    log = []
    bad, good = Steps("bad", 1, log), Steps("good", 2, log)
    bad.step = lambda: 1 / 0
    for work in (bad, good):
        engine.submit(work)
    finished(engine, [bad, good])
    assert isinstance(bad.errors[0], ZeroDivisionError)
    assert good.errors == []
    assert engine.call(lambda: 5).result(5) == 5


def test_reading_yields_to_answers(engine):
    log = []
    work = Steps("x", 20, log)
    work.step = lambda step=work.step: (time.sleep(0.001), step())[1]
    engine.read(Chunks(3, log, seconds=0.02))
    engine.start()
    assert until(lambda: "chunk" in log)
    engine.submit(work)
    assert until(lambda: work.closed and not engine.reading)
    last_of_two = [number for number, line in enumerate(log) if line == "chunk"][1:]
    assert len(last_of_two) == 2
    answers_before_the_end = log[: last_of_two[-1]].count("x")
    assert answers_before_the_end > 10


def test_a_request_that_is_prepared_slowly_holds_up_no_other(engine):
    log, may_go = [], threading.Event()
    slow, quick = Steps("slow", 1, log), Steps("quick", 5, log)
    slow.prepare = lambda: may_go.wait(60)
    engine.start()
    for work in (slow, quick):
        engine.submit(work)
    assert until(lambda: quick.closed)
    assert engine.call(lambda: 5).result(5) == 5
    assert log == ["quick begins", *["quick"] * 5]
    may_go.set()
    assert until(lambda: slow.closed)
    assert not engine.waiting


def test_what_cannot_be_prepared_does_not_begin(engine):
    bad = Steps("bad", 1, [])
    bad.prepare = lambda: 1 / 0
    engine.start()
    engine.submit(bad)
    assert until(lambda: bad.errors)
    assert isinstance(bad.errors[0], ZeroDivisionError)
    assert (engine.waiting, bad.log) == ([], [])


def test_requests_wait_for_memory():
    log, room = [], [100]
    engine = Engine(most_rows=8, most_waiting=8, fits=lambda nbytes: nbytes <= room[0])
    works = [Steps("x", 3, log, nbytes=60), Steps("y", 1, log, nbytes=60), Steps("z", 1, log, nbytes=40)]
    for work in works:
        engine.submit(work)
    finished(engine, works)
    assert log == ["x begins", "x", "x", "x", "y begins", "z begins", "y", "z"]
    room[0] = 50
    large = Steps("large", 1, log, nbytes=60)
    engine.submit(large)
    assert until(lambda: large.closed)
    assert (large.errors[0].status, large.errors[0].retry_after) == (429, 5)
    engine.stop(5)


def test_an_owner_with_many_jobs_does_not_hold_up_another(engine):
    order = []

    class Named(Chunks):
        def __init__(self, owner):
            super().__init__(1, order)
            self.owner = owner

        def run(self, between):
            order.append(self.owner)

    for owner in "aaab":
        engine.read(Named(owner))
    engine.start()
    assert until(lambda: not engine.reading)
    assert order == ["a", "b", "a", "a"]


def test_the_end_waits_for_answers_and_pauses_reading(engine):
    log = []
    work, job = Steps("x", 30, log), Chunks(10**6, log, seconds=0.001)
    work.step = lambda step=work.step: (time.sleep(0.005), step())[1]
    engine.read(job)
    engine.submit(work)
    engine.start()
    assert until(lambda: "x" in log and "chunk" in log)
    engine.stop(20)
    assert not engine.alive
    assert log.count("x") == 30
    assert log.count("chunk") < 10**6
    with pytest.raises(Refusal):
        engine.submit(Steps("late", 1, log))
    with pytest.raises(Refusal):
        engine.call(threading.get_ident).result(1)
