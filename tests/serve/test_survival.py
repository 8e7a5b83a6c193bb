"""What a server survives: a few of the kills that `python -m benchmarks serve-trials` runs by the hundred."""

import random

import hostile_requests
import soaked_server
from killed_server import Trial


def test_kills_while_documents_are_read_and_answers_given(reader, tmp_path):
    trial = Trial(*reader, tmp_path, seed=0)
    for _ in range(4):
        trial.kill()
    trial.finish()


def test_hostile_requests_reach_nothing(reader, tmp_path):
    draw = random.Random(1)
    with hostile_requests.target(*reader, tmp_path) as target:
        for _ in range(250):
            attack = hostile_requests.drawn(draw, target)
            assert target.attack(attack).wrong == [], attack
        assert target.logged_errors() == []


def test_a_short_soak(reader, tmp_path):
    soak = soaked_server.Soak(*reader, tmp_path / "data", 0, users=2)
    rows = list(soak.run(8, 4, lap_seconds=2))
    assert {row.get("stopped_by") for row in rows} == {None, "SIGKILL", "SIGTERM"}
    assert [failure for row in rows for failure in row["failures"]] == []
    assert rows[-1]["documents"] == 0
