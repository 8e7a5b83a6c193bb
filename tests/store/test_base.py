import pytest
import torch

from landmark.store.base import BlockShape, Traffic, parse_bytes, step_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1), ("17", 17), ("12 B", 12), ("256MB", 256_000_000), ("1.5GiB", 3 << 29), (" 64 kb", 64_000),
        ("2KiB", 2048), ("1TB", 10**12),
    ],
)  # fmt: skip
def test_sizes_are_read(text, size):
    assert parse_bytes("host_budget", text) == size


@pytest.mark.parametrize("text", ["", "MB", "1 XB", "-5", -5, 0, "0.5B", "1e9", "256 MB/s", 1.5, True, None, "1,5GB"])
def test_what_is_no_size_is_refused_by_name(text):
    with pytest.raises(ValueError, match=r"host_budget is .*: give bytes, as a whole number or as text like '256MB'"):
        parse_bytes("host_budget", text)


def test_a_step_takes_its_blocks_of_every_head_and_row():
    shape = BlockShape(heads=2, stride=32, key_dim=64, value_dim=32, dtype=torch.float16)
    assert step_bytes(shape, rows=3, blocks=4) == 3 * 4 * 2 * 32 * (64 + 32) * 2


def test_traffic_of_layers_adds_up():
    layers = [Traffic(1, 5, 2, 100, 10), Traffic(2, 7, 3, 200, 20)]
    total = sum(layers, Traffic())
    assert total == Traffic(3, 12, 5, 300, 30)
    assert total.cache_hits == 7
