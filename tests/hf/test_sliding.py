"""NaN at padding reaches no query of a native sliding layer."""

import torch

from landmark.hf.sliding import SlidingWindow
from landmark.ops.scoring import Scoring


def test_padding_is_not_read():
    q, k, v = (torch.randn(2, heads, 30, 8) for heads in (4, 2, 2))
    scoring = Scoring(window=5)
    found, wanted = [], []
    for outs, number in ((wanted, 0.0), (found, torch.nan)):
        window = SlidingWindow(5)
        for start, lengths in ((0, [10, 7]), (10, [1, 10]), (20, [10, 0])):
            lengths = torch.tensor(lengths)
            padding = (torch.arange(10) >= lengths[:, None])[:, None, :, None]
            chunk = [x[:, :, start : start + 10].masked_fill(padding, number) for x in (q, k, v)]
            outs.append(window.attend(*chunk, lengths, scoring).masked_fill(padding, 0.0))
    assert all(map(torch.equal, found, wanted))
