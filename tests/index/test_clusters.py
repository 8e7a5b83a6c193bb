import torch

from landmark.index.ivf import means_of, nearest, spreads


def heaps(each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys `[4 * each,8]` close to four points, and the point of each."""
    of = torch.arange(4).repeat(each)
    return 10 * torch.eye(4, 8)[of] + 0.1 * torch.randn(len(of), 8), of


def test_keys_that_lie_in_heaps_are_told_apart():
    keys, of = heaps(50)
    means = means_of(keys, 4)
    group = nearest(keys, means)
    assert len({(one, other) for one, other in zip(of.tolist(), group.tolist(), strict=True)}) == 4
    for one in range(4):
        torch.testing.assert_close(means[one], keys[group == one].mean(0))
    assert torch.equal(means, means_of(keys, 4))
    assert ((spreads(keys, means) - 0.1).abs() < 0.03).all()


def test_the_nearest_mean_is_the_nearest():
    keys, means = torch.randn(300, 8), torch.randn(20, 8)
    assert torch.equal(nearest(keys, means), torch.cdist(keys, means).argmin(1))


def test_equal_keys_leave_means_without_keys_that_are_finite():
    keys = torch.ones(30, 8)
    means = means_of(keys, 7)
    assert torch.equal(means, torch.ones(7, 8))
    assert torch.equal(spreads(keys, means), torch.zeros(7))
