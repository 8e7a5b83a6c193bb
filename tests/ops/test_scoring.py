"""The default scale and soft-capping, in place and not, and its derivative."""

import pytest
import torch

from landmark.ops.scoring import Scoring


def test_the_default_scale_is_that_of_the_head():
    query = torch.empty(1, 2, 3, 16)
    assert Scoring().scale_of(query) == 0.25
    assert Scoring(0.7).scale_of(query) == 0.7


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_capping_in_place_gives_the_same_numbers(softcap):
    scoring, scores = Scoring(softcap=softcap), torch.randn(50).double().requires_grad_()
    capped = scoring.cap(scores)
    assert capped.abs().max() < (softcap or torch.inf)
    (slope,) = torch.autograd.grad(capped.sum(), scores)
    in_place, with_slope = scores.detach().clone(), scores.detach().clone()
    scoring.cap_(in_place)
    found = scoring.cap_with_slope_(with_slope)
    torch.testing.assert_close(in_place, capped.detach(), atol=1e-15, rtol=0)
    assert torch.equal(with_slope, in_place)
    torch.testing.assert_close(torch.ones_like(slope) if found is None else found, slope, atol=1e-14, rtol=0)
