"""One call for a few queries gives what local attention, the search and the opened blocks give one after the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory_cases import DIM, layer_memory, rotation, working_on

from landmark.memory import LayerMemory
from landmark.memory.blocks import BlockMemory
from landmark.memory.decode import serves_few
from landmark.ops.scoring import Scoring, working_dtype

STRIDE = 4


@given(
    length=st.integers(1, 8),
    local_blocks=st.integers(0, 2),
    retrieve=st.integers(1, 4),
    max_blocks=st.sampled_from([None, 3]),
    positions=st.sampled_from([("stingy", 0), ("stingy", 9), ("true", 0)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    softcap=st.sampled_from([None, 0.5]),
    has_sinks=st.booleans(),
    selection=st.sampled_from(["per_token_and_head", "per_group"]),
    groups=st.sampled_from([2, 3]),
    threads=st.integers(1, 2),
)
def test_the_steps_together_and_one_by_one(
    length, local_blocks, retrieve, max_blocks, positions, dtype, softcap, has_sinks, selection, groups, threads
):
    """Rows of 37 and 21 positions, then chunks of `length` positions, one of which the second row is padded in."""
    settings = {
        "block_size": STRIDE - 1, "retrieve": retrieve, "local_blocks": local_blocks, "max_blocks": max_blocks,
        "positions": positions[0], "gap": positions[1], "selection": selection,
    }  # fmt: skip
    heads = 2 * groups
    together, apart = layer_memory(**settings), layer_memory(**settings)
    scoring = Scoring(0.4, softcap, torch.randn(heads) if has_sinks else None)
    turning = rotation(dtype=working_dtype(torch.empty(0, dtype=dtype)))
    replaced = []
    for lengths in ([37, 21], [length] * 2, [length, length - 1], [length] * 2):
        query, key, value = (torch.randn(2, count, max(lengths), DIM).to(dtype) for count in (heads, 2, 2))
        options = {"lengths": lengths, "rotation": turning, "scoring": scoring}
        with working_on(threads):
            out = together.attend(query, key, value, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LayerMemory, "few", lambda *_, **__: replaced.append(True))
            wanted = apart.attend(query, key, value, **options)
        for row, valid in enumerate(lengths):
            assert torch.equal(out[row, :, :valid], wanted[row, :, :valid])
        for one, other in zip(together.state()[0][:3], apart.state()[0][:3], strict=True):
            assert torch.equal(one, other)
        if together.last is None or apart.last is None:
            assert together.last is apart.last
            continue
        for name in ("blocks", "gates", "local", "asking"):
            assert torch.equal(getattr(together.last, name), getattr(apart.last, name))
    assert len(replaced) == 3  # all but the first, which found no blocks


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_in_16_bits_are_those_in_32(dtype):
    """The same blocks, gates of scores in float32, an output rounded once; keys rotated as by PyTorch."""
    narrow, wide = (layer_memory(block_size=STRIDE - 1, retrieve=2, local_blocks=1) for _ in range(2))
    turning = rotation(dtype=torch.float32)
    for lengths in ([37, 21], [1, 1], [3, 2], [1, 1]):
        query, key, value = (torch.randn(2, heads, max(lengths), DIM).to(dtype) for heads in (4, 2, 2))
        found = narrow.attend(query, key, value, lengths=lengths, rotation=turning)
        wanted = wide.attend(query.float(), key.float(), value.float(), lengths=lengths, rotation=turning)
        one, other = narrow.state()[0], wide.state()[0]
        assert torch.equal(one.turned, turning.apply(one.keys, torch.arange(one.keys.shape[2])))
        assert torch.equal(one.keys.float(), other.keys)
        for row, valid in enumerate(lengths):
            torch.testing.assert_close(found[row, :, :valid].float(), wanted[row, :, :valid], atol=2e-2, rtol=2e-2)
        if narrow.last is not None and wide.last is not None:
            assert narrow.last.gates.dtype == torch.float32
            assert torch.equal(narrow.last.blocks, wide.last.blocks)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_plain_step_is_one_call(monkeypatch, dtype):
    """Nothing but the call for few queries attends while tokens are decoded."""
    memory = layer_memory(block_size=STRIDE - 1, retrieve=2, local_blocks=1)
    turning = rotation(dtype=torch.float32)

    def read(length: int) -> torch.Tensor:
        query, key, value = (torch.randn(1, heads, length, DIM).to(dtype) for heads in (4, 2, 2))
        return memory.attend(query, key, value, lengths=None, rotation=turning)

    read(30)
    monkeypatch.setattr(BlockMemory, "attend", lambda *_: pytest.fail("read block by block"))
    for _ in range(2 * STRIDE):
        assert read(1).isfinite().all()


def test_programs_that_are_compiled_by_torch_keep_to_its_operations():
    """It cannot follow the arrays of these loops."""
    query = torch.randn(1, 2, 1, 4)
    with torch.no_grad():
        assert serves_few(query)
        assert not torch.compile(serves_few, backend="eager")(query)
