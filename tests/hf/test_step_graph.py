"""Steps of decoding by graphs: what eager steps give, without waiting for the device, and reasons where there are none.

There are no CUDA graphs on a CPU. In their place stands what a graph is: operations that are repeated on the same
tensors. A device without numbers ("meta") shows that nothing in a step is read by the host.
"""

import copy
import pickle
from typing import Any

import pytest
import torch
from families import family
from graph_stand_in import Recorded, stand_in
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import landmark
from landmark.hf import linear, step_graph
from landmark.hf.compat import cache_kwargs
from landmark.hf.hooks import _rotations
from landmark.index.base import ResidentKeys
from landmark.memory.fixed import FixedLayer
from landmark.settings import ReadingSettings
from landmark.store.base import ResidentBlocks

IDS = torch.randint(3, 60, (3, 200), generator=torch.Generator().manual_seed(0))
BLOCK, RETRIEVE = 5, 2


def converted(name: str = "llama", dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    return landmark.convert(family(name, **changes).to(dtype).eval(), block_size=BLOCK, retrieve=RETRIEVE, gap=3)


def cache_of(model, **options) -> landmark.LandmarkCache:
    return landmark.LandmarkCache(model.config, **{"index": "exact"} | options)


@pytest.fixture
def graphs(monkeypatch) -> Recorded:
    return stand_in(monkeypatch)


@torch.no_grad()
def decoded(model, cache, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Logits of all steps behind `prompt` tokens of each row."""
    reading = cache_kwargs(model, cache)
    if prompt:
        model(input_ids=ids[:, :prompt], **reading)
    return torch.cat([model(input_ids=step, **reading).logits for step in ids[:, prompt:].split(1, 1)], 1)


def with_room(model, prompt: int, **options) -> landmark.LandmarkCache:
    """A cache of `prompt` tokens whose buffers have grown just now, and so hold twice as many blocks."""
    cache = cache_of(model, decode="eager", **options)
    decoded(model, cache, IDS.flatten().repeat(8)[None, :prompt], prompt - 2 * BLOCK)
    cache.decode = "graph"
    return cache


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Blocks are chosen in float32, all else is computed in float64."""
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


# What they give.


@pytest.mark.parametrize(("prompt", "rows"), [(0, 1), (1, 1), (4, 1), (5, 1), (6, 1), (64, 1), (11, 3)])
def test_graphs_give_what_eager_steps_give(prompt, rows, graphs):
    model, ids = converted(), IDS[:rows, : prompt + 32]
    found = decoded(model, cache_of(model), ids, prompt)
    assert_same(found, decoded(model, cache_of(model, decode="eager"), ids, prompt))
    assert graphs.steps > 16


@pytest.mark.parametrize("name", ["mistral", "qwen3", "gemma", "phi", "gpt_neox", "granite", "llama-yarn"])
def test_families(name, graphs):
    model = converted(name)
    found = decoded(model, cache_of(model), IDS[:1, :50], 36)
    assert_same(found, decoded(model, cache_of(model, decode="eager"), IDS[:1, :50], 36))
    assert graphs.steps > 8


def test_heads_of_a_group_choose_together(graphs):
    model = converted()
    ways = [cache_of(model, selection="per_group", decode=decode) for decode in ("auto", "eager")]
    assert_same(*(decoded(model, cache, IDS[:1, :50], 36) for cache in ways))
    assert graphs.steps > 8
    found, expected = (cache.trace() for cache in ways)
    assert torch.equal(found.blocks[2], expected.blocks[2])


def generated(model, ids: torch.Tensor, cache, **options) -> Any:
    return model.generate(
        ids,
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
        past_key_values=cache,
        **options,
    )


def test_generate_with_padded_rows(graphs):
    model = converted()
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[0, :7], mask[1, :29] = 0, 0
    found, expected = (
        generated(model, IDS[:, :40], cache_of(model, decode=decode), attention_mask=mask)
        for decode in ("auto", "eager")
    )
    assert_same(torch.stack(found.logits), torch.stack(expected.logits))
    assert graphs.steps > 8


def test_beams_are_eager_and_say_so(graphs):
    model = converted()
    cache = cache_of(model)
    found = generated(model, IDS[:1, :40], cache, num_beams=3)
    expected = generated(model, IDS[:1, :40], cache_of(model, decode="eager"), num_beams=3)
    assert torch.equal(found.sequences, expected.sequences)
    assert "beam search" in str(cache.eager_reason)


def test_a_cache_goes_on_in_every_way_after_graphs(graphs):
    """Prefill, forks, a crop, traces, counts and saved state."""
    model = converted()
    ways = [cache_of(model), cache_of(model, decode="eager")]
    for cache in ways:
        decoded(model, cache, IDS[:1, :50], 36)
    assert graphs.steps
    one, other = ways
    found, expected = one.trace(), other.trace()
    for layer in (0, 1, 2):
        assert torch.equal(found.blocks[layer], expected.blocks[layer])
        assert_same(found.gates[layer].double(), expected.gates[layer].double())
        assert_same(found.local[layer].double(), expected.local[layer].double())
    assert one.retrievals == other.retrievals
    assert one.tokens_read() == other.tokens_read()
    for cache in ways:
        cache.crop(-2)
    forks = [cache.fork() for cache in ways]
    more = torch.cat((IDS[:1, :30], IDS[:1, :20]), 1)
    assert_same(decoded(model, forks[0], more, 30), decoded(model, forks[1], more, 30))
    assert_same(decoded(model, one, more[:, 7:], 0), decoded(model, other, more[:, 7:], 0))


def test_all_forwards_are_recorded(graphs):
    model, traces = converted(), []
    for decode in ("auto", "eager"):
        cache = cache_of(model, decode=decode)
        decoded(model, cache, IDS[:1, :40], 39)
        cache.start_trace()
        decoded(model, cache, IDS[:1, 40:52], 0)
        traces.append(cache.trace())
    found, expected = traces
    assert graphs.steps
    for layer in (0, 1, 2):
        assert torch.equal(found.blocks[layer], expected.blocks[layer])
        assert_same(found.gates[layer].double(), expected.gates[layer].double())


# How often they are captured, and that nothing in them waits.


def test_a_graph_is_captured_for_each_number_of_positions(graphs):
    model = converted()
    decoded(model, with_room(model, 62), IDS[:1, :28], 0)
    assert graphs.captures == 2  # a token, and a token with its landmark
    assert graphs.steps == 28


def test_changed_weights_are_captured_again(graphs):
    model = converted()
    cache = with_room(model, 62)
    decoded(model, cache, IDS[:1, :7], 0)
    down = model.base_model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight * 2)
    other = cache.fork()
    other.decode = "eager"
    assert_same(decoded(model, cache, IDS[:1, 7:14], 0), decoded(model, other, IDS[:1, 7:14], 0))
    assert graphs.captures == 4


def test_weights_written_in_place_are_read(graphs):
    model = converted()
    cache = with_room(model, 62)
    decoded(model, cache, IDS[:1, :7], 0)
    with torch.no_grad():
        model.base_model.layers[1].mlp.down_proj.weight *= 2
    other = cache.fork()
    other.decode = "eager"
    assert_same(decoded(model, cache, IDS[:1, 7:14], 0), decoded(model, other, IDS[:1, 7:14], 0))
    assert graphs.captures == 2


class OnTheDevice(TorchDispatchMode):
    """Fails for an operation that gives a tensor in host memory."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        found = {x.device.type for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        assert found <= {"meta"}, f"{func} gives tensors on {found}"
        return out


@pytest.mark.parametrize("width", [1, 2])
def test_nothing_in_a_step_is_read_by_the_host(width):
    """A tensor on the device "meta" has a shape and no numbers: reading one is an error."""
    model, rows, slots = converted(dtype=torch.float32).to("meta"), 2, 16
    stride, kv_heads, dim = BLOCK + 1, 2, 8

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(rows, kv_heads, *shape, dim, device="meta")

    first = torch.empty(rows, dtype=torch.long, device="meta")
    layers = [
        FixedLayer(
            *(empty(2 * stride + 3) for _ in range(3)),
            ResidentBlocks(empty(slots, stride), empty(slots, stride), slots),
            ResidentKeys(empty(keys), first, keys, 0.0),
        )
        for keys in (1, slots, slots)
    ]
    ropes = model.base_model.landmark_ropes
    tables = _rotations(model.base_model, 100, 256, torch.empty(0, device="meta"))
    ids = torch.empty(rows, width, dtype=torch.long, device="meta")
    step = step_graph._Step(model.base_model, layers, ropes, tables, ReadingSettings(RETRIEVE), stride)
    counts = torch.empty(rows, 6, dtype=torch.long, device="meta")
    with torch.no_grad(), OnTheDevice():
        found = step(ids, ids, counts)
    assert found.hidden.shape == (rows, width, 32)


def test_a_step_is_one_graph_that_is_never_compiled_again(monkeypatch):
    """300 steps that complete 6 blocks, bit for bit those of the operations one by one."""
    compiled = []

    def backend(graph, inputs) -> Any:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(linear, "serves_rows", lambda *_: False)  # as on a GPU; loops cannot be traced
    monkeypatch.setattr(step_graph, "_has_graphs", lambda device: True)
    model: Any = family("llama", num_hidden_layers=2, max_position_embeddings=1024)
    model = landmark.convert(model.eval(), block_size=50, retrieve=RETRIEVE)
    ids = IDS.flatten()[None, :300]
    torch._dynamo.reset()
    found = []
    for traced in (lambda step: torch.compile(step, fullgraph=True, backend=backend), lambda step: step):
        recorded = Recorded(traced)
        monkeypatch.setattr(step_graph, "_captured", recorded.capture)
        cache = cache_of(model, decode="eager")
        landmark.read(model, IDS.flatten().repeat(3)[None, :1500], cache)
        decoded(model, cache, ids[:, :120], 60)  # a block is appended, for which the buffers grow
        cache.decode = "graph"
        found.append(decoded(model, cache, ids, 0))
        assert recorded.steps == 300
    assert torch.equal(*found)
    assert len(compiled) == 2


# Reasons.


def step_of(model, **options) -> Any:
    cache = cache_of(model, **options)
    decoded(model, cache, IDS[:1, :40], 37)
    return cache.eager_reason


def test_a_cpu_decodes_by_its_own_loops():
    model = converted()
    assert "graphs are for CUDA devices" in step_of(model)
    with pytest.raises(ValueError, match='decode="graph" cannot be had: graphs are for CUDA devices'):
        step_of(model, decode="graph")
    assert step_of(model, decode="eager") is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"selection": "per_token"}, "selection="),
        ({"miss_threshold": 0.1}, "miss_threshold=0"),
        ({"positions": "true", "gap": 0}, "positions="),
        ({"host_budget": "1MB"}, "tier below the device"),
        ({"index": landmark.IndexOptions("exact", keys="int8")}, "keys in float32"),
    ],
)
def test_what_a_graph_does_not_serve(options, reason, graphs):
    model = converted()
    assert reason in step_of(model, **options)
    with pytest.raises(ValueError, match=reason):
        step_of(model, **options, decode="graph")
    assert not graphs.steps


def test_native_sliding_windows_are_eager(graphs):
    assert "sliding-window" in step_of(converted("gemma2"))
    assert not graphs.steps


def test_hooks_are_eager(graphs):
    model, seen = converted(), []
    model.base_model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    assert "hook" in step_of(model)
    assert len(seen) == 4


def test_layers_that_cannot_be_captured(monkeypatch, graphs):
    def fails(step, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(step_graph, "_captured", fails)
    model = converted()
    assert "cannot be captured (operation not permitted" in step_of(model)
    with pytest.raises(ValueError, match="cannot be captured"):
        step_of(model, decode="graph")


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="decode is 'fast': choose one of auto, graph, eager"):
        cache_of(converted(), decode="fast")


def test_numbers_that_are_not_finite_are_found(graphs):
    model = converted()
    cache = cache_of(model)
    decoded(model, cache, IDS[:1, :40], 36)
    with torch.no_grad():
        model.base_model.layers[1].self_attn.v_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="keys or values of layer 1"):
        decoded(model, cache, IDS[:1, 40:41], 0)


def test_models_are_pickled_and_copied(graphs):
    model = converted()
    expected = decoded(model, cache_of(model), IDS[:1, :42], 36)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other.base_model, step_graph.StepGraphMixin)
        assert torch.equal(decoded(other, cache_of(other), IDS[:1, :42], 36), expected)
