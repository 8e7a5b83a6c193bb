"""`MeanKeyStorage`: the index holds the mean of the ordinary keys of each block, the store the blocks."""

import torch

from landmark.evaluation.mean_keys import MeanKeyStorage


def test_keys_are_averaged_without_the_landmark():
    storage, cpu = MeanKeyStorage.of_one_text(), torch.device("cpu")
    store = storage.store(1, None, device=cpu)
    blocks = torch.randn(2, 3, 6, 8)  # [Hkv,m,stride,D]
    store.append(0, blocks[:, :2], blocks[:, :2])
    store.append(0, blocks[:, 2:], blocks[:, 2:])
    means = storage.means.keys(torch.tensor([[0, 1, 2]]))[0]
    torch.testing.assert_close(means, blocks[:, :, :5].mean(2))
    ((_, pages),) = store.pages(torch.tensor([[[[2]], [[0]]]]))
    assert pages.table.flatten().tolist() == [2, 0], "all else is the store's"
