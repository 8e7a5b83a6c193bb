import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory_cases import DIM, SELECTIONS, layer_memory, quarter_turns, rotation

from landmark.memory import LayerMemory, window
from landmark.ops.reference import reference_attention
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype


def stream(length: int, rows: int = 1, heads: int = 2, kv_heads: int = 2) -> list[torch.Tensor]:
    return [torch.randn(rows, h, length, DIM, dtype=torch.float64) for h in (heads, kv_heads, kv_heads)]


def read(memory: LayerMemory, qkv: list[torch.Tensor], chunks: list[int], **options) -> torch.Tensor:
    """Reads the stream in chunks of these lengths and returns all outputs."""
    options = {"rotation": rotation(), "lengths": None, **options}
    parts = zip(*(x.split(chunks, dim=2) for x in qkv), strict=True)
    return torch.cat([memory.attend(q, k, v, **options) for q, k, v in parts], dim=2)


chunk_lists = st.lists(st.one_of(st.just(1), st.integers(1, 23)), min_size=1, max_size=8)


@given(
    chunks=chunk_lists,
    block_size=st.integers(1, 5),
    local_blocks=st.sampled_from([0, 1, 3]),
    positions=st.sampled_from(["stingy", "true"]),
    selection=st.sampled_from(SELECTIONS),
    groups=st.integers(1, 3),
    softcap=st.sampled_from([None, 2.0]),
    with_sinks=st.booleans(),
    looped=st.booleans(),
)
def test_enough_blocks_give_attention_over_the_whole_stream(
    chunks, block_size, local_blocks, positions, selection, groups, softcap, with_sinks, looped
):
    total, heads = sum(chunks), 2 * groups
    qkv = stream(total, heads=heads)
    scoring = Scoring(0.7, softcap, torch.randn(heads).double() if with_sinks else None)
    memory = layer_memory(
        block_size=block_size, retrieve=100, selection=selection, local_blocks=local_blocks, positions=positions
    )
    # Every block in memory has a slot: the position range must be long enough.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "is_few", lambda query: looped)
        out = read(memory, qkv, chunks, scoring=scoring)
    turned = [rotation().apply(x, torch.arange(total)) for x in qkv[:2]]
    is_landmark = (torch.arange(total) % (block_size + 1) == block_size)[None]
    expected = reference_attention(*turned, qkv[2], is_landmark=is_landmark, scoring=scoring)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


@given(
    before=st.integers(0, 60),
    new=st.integers(1, 6),
    retrieve=st.integers(1, 4),
    local_blocks=st.integers(0, 2),
    gap=st.sampled_from([0, 1, 50]),
    looped=st.booleans(),
)
def test_queries_read_what_the_rules_say(before, new, retrieve, local_blocks, gap, looped):
    qkv = stream(before + new)
    memory = layer_memory(block_size=3, retrieve=retrieve, local_blocks=local_blocks, gap=gap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "is_few", lambda query: looped)
        out = read(memory, qkv, [before, new] if before else [new])
    for t in range(before, before + new):
        for head in range(2):
            expected = by_the_rules(*(x[:, [head]] for x in qkv), t, before // 4 - local_blocks, retrieve, gap)
            torch.testing.assert_close(out[:, head, t], expected, atol=1e-6, rtol=0)


def by_the_rules(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, t: int, blocks: int, retrieve: int, gap: int
) -> torch.Tensor:
    """What one head reads for the token `t`, with `blocks` of 3 tokens and a landmark in memory (docs/design.md)."""
    turn, blocks = rotation().apply, max(0, blocks)
    k = min(retrieve, blocks)
    oldest = blocks - k  # of the newest blocks, those with a slot of their own
    start = (k + 1) * 4 + gap if k else 0
    position = start + t - blocks * 4

    def begin(slot: int, block: int) -> int:
        return (slot + 1) * 4 + gap if block >= oldest else slot * 4

    def score(block: int) -> tuple[float, int]:
        away = position - begin(max(0, block - oldest), block)
        turned = turn(query[0, 0, t], torch.tensor(away)), turn(key[0, 0, block * 4 + 3], torch.tensor(3))
        return float(turned[0] @ turned[1]), block

    opened = sorted(sorted(range(blocks), key=score)[blocks - k :])
    tokens = torch.tensor([*(block * 4 + i for block in opened for i in range(4)), *range(blocks * 4, t + 1)])
    places = [begin(slot, block) + i for slot, block in enumerate(opened) for i in range(4)]
    places = torch.tensor([*places, *range(start, position + 1)])
    turned = [turn(x[:, :, tokens], places) for x in (query, key)]
    is_landmark = (tokens % 4 == 3)[None]
    return reference_attention(*turned, value[:, :, tokens], is_landmark=is_landmark, scoring=Scoring())[:, 0, -1]


@given(
    first=st.lists(st.integers(0, 30), min_size=3, max_size=3),
    second=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    selection=st.sampled_from(SELECTIONS),
    positions=st.sampled_from(["stingy", "true"]),
    local_blocks=st.integers(0, 1),
    max_blocks=st.sampled_from([None, 3]),
    constant=st.booleans(),
)
def test_rows_of_different_lengths_read_like_each_row_alone(
    first, second, selection, positions, local_blocks, max_blocks, constant
):
    settings = {
        "block_size": 3, "retrieve": 2, "selection": selection, "positions": positions,
        "local_blocks": local_blocks, "max_blocks": max_blocks, "constant_keys": constant,
    }  # fmt: skip
    qkv = stream(60, rows=3)
    if constant:
        qkv[1][:, :, 3::4] = qkv[1][:1, :, 3:4]
    together, alone = layer_memory(**settings), [layer_memory(**settings) for _ in range(3)]
    seen = [0, 0, 0]
    for lengths in (first, second, [1, 1, 1]):
        width = max(1, *lengths)
        batch = [torch.full((3, x.shape[1], width, DIM), 7.0).double() for x in qkv]
        for row, length in enumerate(lengths):
            for laid, x in zip(batch, qkv, strict=True):
                laid[row, :, :length] = x[row, :, seen[row] : seen[row] + length]
        out = together.attend(*batch, lengths=lengths, rotation=rotation())
        for row, length in enumerate(lengths):
            if length == 0:
                continue
            own = [x[row : row + 1, :, seen[row] : seen[row] + length] for x in qkv]
            expected = alone[row].attend(*own, lengths=None, rotation=rotation())
            torch.testing.assert_close(out[row : row + 1, :, :length], expected, atol=1e-12, rtol=0)
            opened = alone[row].last
            if opened is not None:
                assert together.last is not None
                k = opened.blocks.shape[-1]
                assert torch.equal(together.last.blocks[row, :, :length, :k], opened.blocks[0])
                assert (together.last.blocks[row, :, :length, k:] == -1).all()
            seen[row] += length
        assert together.lengths.tolist() == seen
    assert together.nbytes == sum(memory.nbytes for memory in alone)


def test_rows_can_be_reordered_and_repeated():
    qkv, more = stream(40, rows=2), stream(9, rows=2)
    settings = {"block_size": 3, "retrieve": 2, "local_blocks": 1}
    kept, moved = layer_memory(**settings), layer_memory(**settings)
    read(kept, qkv, [25, 15])
    read(moved, qkv, [25, 15])
    rows = torch.tensor([1, 0, 1])
    moved.reorder(rows)
    expected = read(kept, more, [9])[rows]
    torch.testing.assert_close(read(moved, [x[rows] for x in more], [9]), expected, atol=1e-12, rtol=0)
    assert moved.lengths.tolist() == [49, 49, 49]


def test_reordering_to_the_same_order_copies_nothing():
    memory = layer_memory(block_size=3, retrieve=2, local_blocks=0)
    memory.reorder(torch.tensor([0]))
    read(memory, stream(40, rows=2), [40])
    before = memory._blocks._store._keys.data
    memory.reorder(torch.tensor([0, 1]))
    assert memory._blocks._store._keys.data is before


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("wrong", [1, 2, 17])
def test_cropping_the_newest_chunk_is_as_if_it_had_never_been_read(as_tensor, wrong):
    qkv = stream(50)
    settings = {"block_size": 3, "retrieve": 2, "local_blocks": 1}
    straight, corrected = layer_memory(**settings), layer_memory(**settings)
    for memory in (straight, corrected):
        read(memory, [x[:, :, :41] for x in qkv], [30, 11])
    read(corrected, stream(wrong), [wrong])
    corrected.crop(torch.tensor([41]) if as_tensor else 41)
    assert corrected.lengths.tolist() == [41]
    corrected.crop(100)
    assert corrected.lengths.tolist() == [41]
    rest = [x[:, :, 41:] for x in qkv]
    assert torch.equal(read(corrected, rest, [4, 5]), read(straight, rest, [4, 5]))


def test_cropping_further_keeps_the_stream_whole():
    """Blocks that are in memory by then stay there; when all are opened nothing is lost."""
    qkv = stream(50)
    memory = layer_memory(block_size=3, retrieve=100, local_blocks=1)
    read(memory, [x[:, :, :45] for x in qkv], [41, 4])
    read(memory, stream(3), [3])
    memory.crop(43)
    out = read(memory, [x[:, :, 43:] for x in qkv], [7])
    whole = read(layer_memory(block_size=3, retrieve=100, local_blocks=1), qkv, [50])
    torch.testing.assert_close(out, whole[:, :, 43:], atol=1e-12, rtol=0)


def test_cropping_into_memory_is_refused():
    memory = layer_memory(block_size=3, retrieve=2, local_blocks=1)
    read(memory, stream(31), [30, 1])
    with pytest.raises(ValueError, match="cannot take back 8 stream positions: only the newest 7"):
        memory.crop(23)
    memory.crop(24)
    assert memory.lengths.tolist() == [24]


def test_equal_scores_open_the_newest_blocks():
    query, key, value = (torch.ones(1, 1, 41, DIM).double() for _ in range(3))
    nothing = Rotation(torch.empty(0, 0), torch.empty(0, 0), "none")
    memory = layer_memory(block_size=3, retrieve=3, local_blocks=0)
    for part in ((0, 40), (40, 41)):
        chunk = [x[:, :, slice(*part)] for x in (query, key, value)]
        memory.attend(*chunk, lengths=None, rotation=nothing)
    assert memory.last is not None
    assert memory.last.blocks.flatten().tolist() == [7, 8, 9]
    # One query, its own local token and three gates, all alike.
    torch.testing.assert_close(memory.last.gates, torch.full((1, 1, 1, 3), 0.25).double())


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("max_blocks", [None, 6])
def test_constant_keys_change_nothing_but_the_work(selection, max_blocks):
    query, key, value = (torch.randint(-2, 3, (1, 2, 90, DIM)).double() for _ in range(3))
    key[:, :, 3::4] = torch.randint(-2, 3, (1, 2, 1, DIM)).double()
    results = []
    for constant in (False, True):
        memory = layer_memory(
            block_size=3, retrieve=2, selection=selection, local_blocks=1, max_blocks=max_blocks, constant_keys=constant
        )
        out = read(memory, [query, key, value], [50, 30, 1, 9], rotation=quarter_turns(), scoring=Scoring(0.5))
        results.append((out, memory.last.blocks))
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-13, rtol=0)


def test_without_retrieval_only_the_window_is_seen_and_kept():
    qkv = stream(60)
    memory = layer_memory(block_size=3, retrieve=0, local_blocks=2)
    out = read(memory, qkv, [50, 10])
    assert memory.last is None
    assert memory.nbytes == 2 * 2 * (2 * 4 + 2 + 10) * DIM * 8  # window, tail and the chunk just read
    alone = layer_memory(block_size=3, retrieve=0, local_blocks=9)
    start = (50 // 4 - 2) * 4
    expected = read(alone, [x[:, :, start:] for x in qkv], [60 - start])[:, :, 50 - start :]
    torch.testing.assert_close(out[:, :, 50:], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precision_stays_close(dtype):
    qkv = [x.to(dtype) for x in stream(60, heads=4)]
    outs = []
    for convert in (lambda x: x, lambda x: x.double()):
        memory = layer_memory(block_size=3, retrieve=100, local_blocks=1)
        outs.append(read(memory, [convert(x) for x in qkv], [40, 20]))
    assert outs[0].dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(outs[0].double(), outs[1], atol=tolerance, rtol=0)


def test_nothing_needs_a_gradient():
    qkv = [x.requires_grad_() for x in stream(30)]
    memory = layer_memory(block_size=3, retrieve=2, local_blocks=0)
    assert not read(memory, qkv, [20, 10]).requires_grad
    assert not memory._blocks._store._keys.data.requires_grad


@given(
    chunks=chunk_lists,
    lost=st.integers(0, 3),
    local_blocks=st.integers(0, 1),
    positions=st.sampled_from(["stingy", "true"]),
    softcap=st.sampled_from([None, 2.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    miss_threshold=st.sampled_from([0.0, 0.4]),
)
def test_groups_of_one_head_choose_as_each_head_does(
    chunks, lost, local_blocks, positions, softcap, dtype, miss_threshold
):
    """Chunks of single tokens, shorter than a block, of whole blocks and around them; the second row is padded."""
    chunks = [40, *chunks, 3, 4, 5, 1]
    qkv = [x.to(dtype) for x in stream(sum(chunks), rows=2)]
    settings = {
        "block_size": 3, "retrieve": 2, "local_blocks": local_blocks, "positions": positions,
        "miss_threshold": miss_threshold,
    }  # fmt: skip
    memories = [layer_memory(**settings, selection=name) for name in ("per_token_and_head", "per_group")]
    table = rotation(dtype=working_dtype(torch.empty(0, dtype=dtype)))
    for query, key, value in zip(*(x.split(chunks, dim=2) for x in qkv), strict=True):
        lengths = [query.shape[2], max(0, query.shape[2] - lost)]
        options = {"lengths": lengths, "rotation": table, "scoring": Scoring(0.7, softcap)}
        outs = [memory.attend(query, key, value, **options) for memory in memories]
        for row, length in enumerate(lengths):
            assert torch.equal(outs[0][row, :, :length], outs[1][row, :, :length])
        if memories[0].last is not None:
            assert torch.equal(memories[0].last.blocks, memories[1].last.blocks)
            assert torch.equal(memories[0].last.gates, memories[1].last.gates)


def test_the_heads_of_a_group_open_the_same_blocks_and_groups_others():
    memory = layer_memory(block_size=3, retrieve=2, local_blocks=0, selection="per_group")
    for length in (80, 20, 1):
        memory.attend(*stream(length, heads=6), lengths=None, rotation=rotation())
        if memory.last is not None:
            blocks = memory.last.blocks.unflatten(1, (2, 3))
            assert torch.equal(blocks, blocks[:, :, :1].expand_as(blocks))
            assert length == 1 or not torch.equal(blocks[:, 0], blocks[:, 1])
