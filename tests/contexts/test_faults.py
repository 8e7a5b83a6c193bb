"""Every call that changes the disk may fail, or be the last before the power goes: what was committed stays."""

import errno
from contextlib import suppress

import pytest
from faults import LOSSES, FaultyDisk, PowerCut, Session

# Every call is tried by benchmarks/reliability.py; here every 23rd, and with another start for each kind of fault.
STEP = 23


def calls_of_a_session(root):
    root.mkdir()
    faulty, session = FaultyDisk(root), Session(root)
    with faulty.failing(None):
        session.run()
    session.check()
    return faulty.calls


@pytest.mark.parametrize("number", range(len(LOSSES)), ids=LOSSES)
def test_power_cut(tmp_path, number):
    total = calls_of_a_session(tmp_path / "whole")
    assert total > 150
    for at in range(1 + number, total + 1, STEP):
        root = tmp_path / str(at)
        root.mkdir()
        cut_twice(root, at, again=3 + at * 7 % 60, lost=LOSSES[number])


def cut_twice(root, at, again, lost):
    """Two power cuts, the second while the session goes on after the first."""
    faulty, session = FaultyDisk(root), Session(root)
    with faulty.failing(at), pytest.raises(PowerCut):
        session.run()
    faulty.restart(lost)
    session.check()
    try:
        with faulty.failing(again):
            session.run()
    except PowerCut:
        faulty.restart(lost)
        session.check()
    session.run()
    session.check()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_refused_call(tmp_path, number):
    total = calls_of_a_session(tmp_path / "whole")
    for at in range(1 + number % STEP, total + 1, STEP):
        root = tmp_path / str(at)
        root.mkdir()
        faulty, session = FaultyDisk(root), Session(root)
        # Where cleaning up after an earlier error is what is refused, nobody hears of it, and nobody needs to.
        with faulty.failing(at, OSError(number, "refused")), suppress(OSError):
            session.run()
        session.check()
        session.run()
        session.check()
