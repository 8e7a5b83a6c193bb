"""A window over several processes: which part each holds, and that all of them together compute the whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import family

import landmark
from landmark.hf.sequence_parallel import WindowSlice, check_heads
from landmark.stream import Stream


@pytest.mark.parametrize("slices", [1, 2, 4, 60])
@pytest.mark.parametrize("phase", range(7))
def test_every_token_is_in_one_slice(slices, phase):
    tokens, block_size = 53, 7
    stream = Stream.lay_out(torch.ones(1, tokens, dtype=torch.bool), torch.tensor([phase]), block_size)
    owned = []
    for index in range(slices):
        part = WindowSlice(index, slices)
        of_slice, own = part.positions(stream.width), part.tokens(tokens, block_size, phase)
        positions = stream.positions[0].tolist()
        assert positions[own.start : own.stop] == [p for p in positions if p in of_slice]
        owned += own
    assert owned == list(range(tokens))


def test_slices_compute_the_whole_window():
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    run = subprocess.run(
        [*command, str(here / "sliced_windows.py")], env=environment, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("6 cases agree") == 2


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_heads_must_divide(name):
    config = family(name).config
    check_heads(config, 2)
    with pytest.raises(ValueError, match=r"3 processes cannot share 4 query heads and . key-value heads"):
        check_heads(config, 3)
    if name == "llama":
        with pytest.raises(ValueError, match="4 processes cannot share 4 query heads and 2 key-value heads"):
            check_heads(config, 4)


def test_slices_are_for_training():
    model = landmark.convert(family("llama"), block_size=7)
    ids = torch.arange(3, 23)[None]
    part = WindowSlice(0, 2)
    with pytest.raises(ValueError, match="landmark_slice: for forwards without a cache"):
        model(input_ids=ids, landmark_slice=part, use_cache=True)
    with pytest.raises(ValueError, match="a reader or padding"):
        model(input_ids=ids, landmark_slice=part, use_cache=False, attention_mask=torch.ones_like(ids))
