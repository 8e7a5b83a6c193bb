"""Context misses against dense float64, one query at a time: too little attention mass fetches no blocks."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cases import DIM, SELECTIONS, layer_memory, rotation

from landmark.memory import LayerMemory, Retrievals
from landmark.memory.storage import ProcessStorage
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

SIZE, STRIDE, KV_HEADS, SCALE = 3, 4, 2, 0.7
ALMOST_ONE = 1 - 1e-9


def stream(length: int, rows: int, heads: int, *, constant: bool = False) -> list[torch.Tensor]:
    qkv = [torch.randn(rows, h, length, DIM, dtype=torch.float64) for h in (heads, KV_HEADS, KV_HEADS)]
    if constant:
        qkv[1][:, :, SIZE::STRIDE] = qkv[1][:, :, SIZE : SIZE + 1]
    return qkv


@dataclass(frozen=True)
class Dense:
    """The rule for one query of one row `q [H,T,D]`, `k`, `v [H,T,D]` before rotary, as the paper has it."""

    local_blocks: int
    positions: str
    softcap: float | None
    sinks: torch.Tensor | None

    def attend(self, q, k, v, i: int, chunk_start: int, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [H,D] of query `i` that opens `blocks [H,k]`, by age, and the mass [H] of their gates together."""
        behind = max(0, chunk_start // STRIDE - self.local_blocks)
        opened = blocks.shape[1]
        local = torch.arange(behind * STRIDE, i + 1)
        slots = torch.arange(opened) + (blocks >= behind - opened)
        starts = (slots if self.positions == "stingy" else blocks) * STRIDE
        offset = torch.arange(STRIDE)
        places = torch.cat(((blocks[..., None] * STRIDE + offset).flatten(1), local.expand(len(q), -1)), 1)
        first = (opened + 1) * STRIDE * (opened > 0) if self.positions == "stingy" else behind * STRIDE
        stand = first + local - behind * STRIDE
        stands = torch.cat(((starts[..., None] + offset).flatten(1), stand.expand(len(q), -1)), 1)

        turned = rotation().apply(q[:, i], stand[-1])
        keys = rotation().apply(k.gather(1, places[..., None].expand(-1, -1, DIM)), stands)
        values = v.gather(1, places[..., None].expand(-1, -1, DIM))
        scores = (keys @ turned[..., None])[..., 0] * SCALE
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        landmark, block = places % STRIDE == SIZE, places // STRIDE
        own = block == i // STRIDE
        gates = landmark & ~own
        logits = scores.masked_fill(~gates & (landmark | ~own), -torch.inf)
        if self.sinks is not None:
            logits = torch.cat((logits, self.sinks[:, None]), 1)
        joint = logits.softmax(-1)[:, : places.shape[1]]
        together = block[:, :, None] == block[:, None]  # tokens of one block
        gate = ((joint * gates)[:, None] * together).sum(-1)
        share = scores.exp() / (together * (scores.exp() * ~landmark)[:, None]).sum(-1)
        weights = torch.where(own, joint, gate * share).masked_fill(landmark, 0.0)
        mass = (joint * gates)[:, : opened * STRIDE].sum(-1)
        return (weights[..., None] * values).sum(1), mass


@settings(max_examples=30)  # each is computed query by query
@given(
    pieces=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3),
    threshold=st.sampled_from([0.05, 0.3, 0.5, 0.8]),
    selection=st.sampled_from(SELECTIONS),
    local_blocks=st.integers(0, 1),
    positions=st.sampled_from(["stingy", "true"]),
    groups=st.integers(1, 2),
    softcap=st.sampled_from([None, 1.5]),
    with_sinks=st.booleans(),
    constant=st.booleans(),
)
def test_a_query_opens_its_blocks_or_none(
    pieces, threshold, selection, local_blocks, positions, groups, softcap, with_sinks, constant
):
    """Rows of a batch with lengths of their own, in chunks of any length, the last ones of a single token."""
    heads, chunks = KV_HEADS * groups, [(17, 10), *pieces, (1, 1)]
    qkv = stream(90, 2, heads, constant=constant)
    sinks = torch.randn(heads).double() if with_sinks else None
    rules = {
        "block_size": SIZE, "retrieve": 2, "local_blocks": local_blocks, "selection": selection, "positions": positions,
        "max_blocks": 4, "constant_keys": constant,
    }  # fmt: skip
    always, memory = layer_memory(**rules), layer_memory(**rules, miss_threshold=threshold)
    dense, seen, asked, skipped = Dense(local_blocks, positions, softcap, sinks), [0, 0], 0, 0
    for lengths in chunks:
        width = max(1, *lengths)
        batch = [torch.full((2, x.shape[1], width, DIM), 7.0).double() for x in qkv]
        for row, length in enumerate(lengths):
            for laid, x in zip(batch, qkv, strict=True):
                laid[row, :, :length] = x[row, :, seen[row] : seen[row] + length]
        options = {"lengths": list(lengths), "rotation": rotation(), "scoring": Scoring(SCALE, softcap, sinks)}
        always.attend(*batch, **options)
        out = memory.attend(*batch, **options)
        for row, length in enumerate(lengths):
            q, k, v = (x[row].repeat_interleave(heads // x.shape[1], 0) for x in qkv)
            for step in range(length):
                found = torch.empty(heads, 0).long() if always.last is None else always.last.blocks[row, :, step]
                found = found[:, : int((found[0] >= 0).sum())]
                expected, mass = dense.attend(q, k, v, seen[row] + step, seen[row], found)
                if found.shape[1]:
                    miss = mass < threshold
                    alone, _ = dense.attend(q, k, v, seen[row] + step, seen[row], found[:, :0])
                    expected = torch.where(miss[:, None], alone, expected)
                    asked, skipped = asked + heads, skipped + int(miss.sum())
                    assert torch.equal((memory.last.blocks[row, :, step] < 0).all(-1), miss)
                    gates = memory.last.gates[row, :, step].sum(-1)
                    torch.testing.assert_close(gates, mass.masked_fill(miss, 0.0), atol=1e-12, rtol=0)
                torch.testing.assert_close(out[row, :, step], expected, atol=1e-12, rtol=0)
            seen[row] += length
    assert memory.retrievals == Retrievals(asked, skipped)
    assert always.retrievals == Retrievals(asked, 0)


def test_the_cases_above_skip_some_and_keep_some():
    memory = layer_memory(block_size=SIZE, retrieve=2, local_blocks=0, miss_threshold=0.5)
    read(memory, stream(80, 1, 4), [40, 40])
    assert memory.retrievals.queries == 4 * 40
    assert 0.1 < memory.retrievals.miss_rate < 0.9


@dataclass(frozen=True)
class Watched(ProcessStorage):
    """Stores that record which blocks they were asked for."""

    asked: list[torch.Tensor] = field(default_factory=list)

    def store(self, rows, max_blocks, *, device):
        store = super().store(rows, max_blocks, device=device)
        pages = store.pages

        def watched(blocks):
            self.asked.append(blocks)
            return pages(blocks)

        store.pages = watched
        return store


def read(memory: LayerMemory, qkv: list[torch.Tensor], chunks: list[int]) -> torch.Tensor:
    parts = zip(*(x.split(chunks, dim=2) for x in qkv), strict=True)
    options = {"lengths": None, "rotation": rotation(), "scoring": Scoring(SCALE)}
    return torch.cat([memory.attend(q, k, v, **options) for q, k, v in parts], dim=2)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("chunk", [1, 40])
def test_nothing_is_fetched_that_nobody_opens(selection, chunk):
    storage = Watched()
    memory = layer_memory(
        block_size=SIZE, retrieve=1, local_blocks=0, selection=selection, miss_threshold=0.6, storage=storage
    )
    qkv = stream(80, 2, 4)
    read(memory, [x[:, :, :40] for x in qkv], [40])
    for start in range(40, 80, chunk):
        storage.asked.clear()
        read(memory, [x[:, :, start : start + chunk] for x in qkv], [chunk])
        opened = memory.last.blocks
        choosers = {"per_token": 1, "per_group": KV_HEADS}.get(selection, opened.shape[1])
        wanted = opened.unflatten(1, (choosers, -1)).amax(2)
        wanted = wanted.amax(2, keepdim=True) if selection == "per_head" else wanted
        if (opened < 0).all():
            assert not storage.asked
        else:
            assert torch.equal(storage.asked[0], wanted)
    assert 0 < memory.retrievals.context_misses < memory.retrievals.queries


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_threshold_of_nearly_one_is_local_attention_and_reads_no_store(selection):
    storage, rules = Watched(), {"block_size": SIZE, "local_blocks": 1, "selection": selection}
    memory = layer_memory(**rules, retrieve=3, miss_threshold=ALMOST_ONE, storage=storage)
    qkv, chunks = stream(90, 2, 4), [30, 7, 40, 1, 1, 11]
    out = read(memory, qkv, chunks)
    assert torch.equal(out, read(layer_memory(**rules, retrieve=0), qkv, chunks))
    assert not storage.asked
    # Only the first chunk has nothing to ask.
    assert memory.retrievals == Retrievals(2 * 4 * 60, 2 * 4 * 60)
    # The query stands behind its slots all the same: a table that ends where they do is too short.
    short = rotation()
    short = Rotation(short.cos[:20], short.sin[:20], "half")
    with pytest.raises(ValueError, match=r"\(retrieve \+ 1 \+ local_blocks\) \* stride"):
        memory.attend(*stream(1, 2, 4), lengths=None, rotation=short)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_threshold_that_nobody_misses_changes_no_bit(selection, dtype):
    qkv, chunks = [x.to(dtype) for x in stream(90, 2, 4)], [30, 7, 40, 1, 1, 11]
    outs = []
    for threshold in (0.0, 1e-30):
        memory = layer_memory(
            block_size=SIZE, retrieve=2, local_blocks=1, selection=selection, miss_threshold=threshold
        )
        outs.append(read(memory, qkv, chunks))
        assert memory.retrievals == Retrievals(2 * 4 * 60, 0)
    assert torch.equal(*outs)


@pytest.mark.parametrize("threshold", [-0.1, 1, 1.5, float("nan"), True, "0.1"])
def test_no_threshold(threshold):
    with pytest.raises(ValueError, match="miss_threshold is"):
        layer_memory(block_size=SIZE, retrieve=2, local_blocks=0, miss_threshold=threshold)
