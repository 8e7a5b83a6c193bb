"""Writers that are killed, and readers beside a writer: for longer where the machine is slow."""

import random

from killing import kill_once, read_meanwhile


def test_killed_writers_lose_nothing_that_was_committed(tmp_path):
    draw, kills, commits = random.Random(0), 0, 0
    while kills < 12 or commits <= 12:
        assert kills < 120, "writers do not come to commit anything"
        commits += kill_once(tmp_path, draw.uniform(0, 0.1) * (1 + kills // 12))[0]
        kills += 1


def test_every_snapshot_is_a_commit(tmp_path):
    snapshots = commits = 0
    for turn in range(8):
        folder = tmp_path / str(turn)
        folder.mkdir()
        more = read_meanwhile(folder, 0.5 * 2**turn)
        snapshots, commits = snapshots + more[0], max(commits, more[1])
        if snapshots > 5 and commits > 3:
            return
    raise AssertionError(f"{snapshots} snapshots of at most {commits} commits in a turn")
