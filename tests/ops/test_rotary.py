import copy
import pickle

import pytest
import torch

from landmark.ops.rotary import Rotation


def angles(positions: int, width: int) -> torch.Tensor:
    return torch.outer(torch.arange(positions).double(), 100.0 ** (-torch.arange(0, width, 2).double() / width))


def make(style: str, positions: int = 40, width: int = 8, factor: float = 1.0) -> Rotation:
    a = angles(positions, width)
    a = torch.cat((a, a), -1) if style == "half" else a.repeat_interleave(2, -1)
    return Rotation(a.cos() * factor, a.sin() * factor, style)


def pairs(x: torch.Tensor, style: str) -> torch.Tensor:
    """The pairs of dimensions that rotate together, as complex numbers."""
    if style == "half":
        first, second = x.chunk(2, -1)
        return torch.complex(first.contiguous(), second.contiguous())
    return torch.complex(x[..., ::2].contiguous(), x[..., 1::2].contiguous())


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_rotation_is_multiplication_by_a_complex_number(style, factor):
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    positions = torch.tensor([0, 7, 1, 39, 2])
    turned = make(style, factor=factor).apply(x, positions)
    turn = torch.polar(torch.full((40, 4), factor, dtype=torch.float64), angles(40, 8))
    torch.testing.assert_close(pairs(turned, style), pairs(x, style) * turn[positions], atol=1e-14, rtol=0)


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_only_the_first_dimensions_rotate(style):
    x = torch.randn(3, 12, dtype=torch.float64)
    turned = make(style).apply(x, torch.tensor(5))
    assert torch.equal(turned[:, 8:], x[:, 8:])
    assert torch.equal(turned[:, :8], make(style).apply(x[:, :8], torch.tensor(5)))


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_moving_the_query_towards_the_block_is_moving_the_block(style):
    rotation = make(style)
    q, k = torch.randn(2, 8, dtype=torch.float64)
    placed = rotation.apply(q, torch.tensor(30)) @ rotation.apply(k, torch.tensor(16 + 3))
    moved = rotation.apply(q, torch.tensor(30 - 16)) @ rotation.apply(k, torch.tensor(3))
    torch.testing.assert_close(moved, placed, atol=1e-13, rtol=0)


def test_positions_may_broadcast_to_copies_of_a_query():
    rotation, x, positions = (
        make("half"),
        torch.randn(4, 1, 8, dtype=torch.float64),
        torch.randint(40, (4, 3)),
    )
    copies = rotation.apply(x, positions)
    assert copies.shape == (4, 3, 8)
    assert torch.equal(copies[2, 1], rotation.apply(x[2, 0], positions[2, 1]))


def test_partial_rotation_broadcasts_too():
    x = torch.randn(4, 1, 10, dtype=torch.float64)
    assert make("half").apply(x, torch.zeros(4, 3, dtype=torch.long)).shape == (4, 3, 10)


def test_halves_are_rotated_in_the_precision_of_the_table():
    x = torch.randn(6, 8).bfloat16()
    turned = make("half").apply(x, torch.arange(6))
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, make("half").apply(x.double(), torch.arange(6)).bfloat16())


def test_no_rotation():
    x, empty = torch.randn(3, 8), torch.empty(0, 0)
    rotation = Rotation(empty, empty, "none")
    assert rotation.apply(x, torch.tensor([5, 6, 7])) is x
    assert rotation.reach is None
    assert make("half").reach == 40


def test_tables_that_do_not_fit_are_rejected():
    with pytest.raises(ValueError, match="must be tables of one shape"):
        Rotation(torch.ones(4, 8), torch.ones(4, 6), "half")
    with pytest.raises(ValueError, match="even width"):
        Rotation(torch.ones(4, 3), torch.ones(4, 3), "half")
    with pytest.raises(ValueError, match="'spiral' is unknown"):
        Rotation(torch.ones(4, 8), torch.ones(4, 8), "spiral")


def test_compiled_loops_get_tables_in_the_order_of_positions_however_they_lie():
    plain = make("half")
    turned = Rotation(plain.cos.T.contiguous().T, plain.sin.T.contiguous().T, "half")
    for one, other in zip(turned.arrays, plain.arrays, strict=True):
        assert one.flags.c_contiguous
        assert (one == other).all()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda rotation: pickle.loads(pickle.dumps(rotation))])
def test_a_copy_has_addresses_of_its_own(way):
    rotation = make("half")
    cos, sin, positions = rotation.addresses
    other = way(rotation).addresses
    assert other[2] == positions
    assert not {cos, sin} & set(other)
