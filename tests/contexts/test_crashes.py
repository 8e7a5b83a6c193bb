"""Writers that are killed, and readers beside a writer."""

import random

from killing import kill_once, read_meanwhile


def test_killed_writers_lose_nothing_that_was_committed(tmp_path):
    draw = random.Random(0)
    commits = sum(kill_once(tmp_path, draw.uniform(0, 0.1))[0] for _ in range(12))
    assert commits > 12


def test_every_snapshot_is_a_commit(tmp_path):
    snapshots, commits = read_meanwhile(tmp_path, 1.5)
    assert snapshots > 5
    assert commits > 3
