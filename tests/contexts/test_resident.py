"""Contexts whose blocks lie on the device: the numbers of those that are read from disk, steps by graphs, freed memory.

No GPU is needed: memory of a CPU stands for that of a device, and repeated operations for graphs.
"""

import random
import sys
import weakref
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "hf"))

from graph_stand_in import Recorded, stand_in

import landmark
from landmark import Chat, Collection, Context
from landmark.contexts import resident
from landmark.contexts.disk import Damage
from landmark.hf import linear, step_graph
from landmark.hf.compat import cache_kwargs
from landmark.hf.joined import read_together
from landmark.memory import LayerMemory
from landmark.memory.storage import Budgets
from landmark.ops import retrieved as ops_retrieved
from landmark.store.resident import ResidentStore

WORDS = ["it", "was", "a", "calm", "sea", "and", "jim", "looked", "at", "the", "ships", "for", "0123456789", "."]
BOOK = " ".join(random.Random(0).choices(WORDS, k=450))  # blocks that differ: rounding decides between equal ones
NOTE = "keys and ships 0123456789 . he spoke of it . " * 12
IDS = torch.randint(3, 60, (1, 200), generator=torch.Generator().manual_seed(0))
EXACT = {"index": "exact"}  # the index of a GPU


@pytest.fixture(scope="module")
def path(tmp_path_factory, model):
    return made(tmp_path_factory.mktemp("read") / "context", model)


def made(path: Path, model, **options) -> Path:
    with Context.create(path, model, **options) as context:
        context.append(BOOK, "book")
    return path


@pytest.fixture
def device(monkeypatch) -> None:
    """A device with memory of its own, for which there are no loops for few queries: they sum in another order."""
    monkeypatch.setattr(ops_retrieved, "FEW_QUERIES", 0)
    monkeypatch.setattr(LayerMemory, "few", lambda *_: None)
    monkeypatch.setattr(resident, "_has_memory", lambda device: True)
    monkeypatch.setattr(resident, "_free_and_all", lambda device: (10**10, 10**10))


@pytest.fixture
def graphs(monkeypatch) -> Recorded:
    return stand_in(monkeypatch)


def stores_of(cache) -> list:
    return [memory._blocks._store for memory in cache.memories]


def is_resident(cache) -> bool:
    return all(isinstance(store, ResidentStore) and store.resident_blocks() is not None for store in stores_of(cache))


def both(path, model, monkeypatch, **options) -> tuple[Context, Context]:
    """The context with its blocks on the device, and read through a tier."""
    on_device = Context.open(path, model, **EXACT, **options)
    with monkeypatch.context() as patch:
        patch.setattr(resident, "_has_memory", lambda device: False)
        through_tier = Context.open(path, model, **EXACT, **options)
    assert is_resident(on_device.cache)
    assert not any(isinstance(store, ResidentStore) for store in stores_of(through_tier.cache))
    return on_device, through_tier


@torch.no_grad()
def decoded(model, cache, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Logits of all steps behind `prompt` tokens of each row, and of the last of these."""
    reading = cache_kwargs(model, cache)
    found = [model(input_ids=ids[:, :prompt], **reading).logits[:, -1:]] if prompt else []
    return torch.cat([*found, *(model(input_ids=step, **reading).logits for step in ids[:, prompt:].split(1, 1))], 1)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# The same bits.


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_same_bits_as_through_a_tier(dtype, kv_dtype, tmp_path, folder, device, monkeypatch):
    """Prompts of a token, about a block and many, then steps over the ends of blocks; with room for some own blocks."""
    model = landmark.from_pretrained(folder, dtype=dtype)
    path = made(tmp_path / "context", model, kv_dtype=kv_dtype)
    for options in ({}, {"host_budget": "60KB"}):
        contexts = both(path, model, monkeypatch, **options)
        for prompt in (1, 4, 5, 6, 130) if dtype == torch.float32 else (1, 5, 130):
            branches = [context.cache.fork() for context in contexts]
            assert torch.equal(*(decoded(model, branch, IDS[:, : prompt + 14], prompt) for branch in branches))
            forks = [branch.fork() for branch in branches]  # with blocks of its own behind it
            assert torch.equal(*(decoded(model, fork, IDS[:, 150:170], 3) for fork in forks))
            assert torch.equal(*(decoded(model, branch, IDS[:, 170:180], 0) for branch in branches))


@pytest.mark.parametrize(
    "options",
    [{"selection": "per_group"}, {"selection": "per_token"}, {"selection": "per_head"}, {"miss_threshold": 0.3}],
)
def test_every_way_to_choose_blocks(options, path, model, device, monkeypatch):
    branches = [context.cache.fork() for context in both(path, model, monkeypatch, **options)]
    assert torch.equal(*(decoded(model, branch, IDS[:, :80], 50) for branch in branches))


def test_beams_and_rows(path, model, device, monkeypatch):
    contexts = both(path, model, monkeypatch)

    def beams(context: Context) -> torch.Tensor:
        options = {"max_new_tokens": 24, "do_sample": False, "num_beams": 3, "eos_token_id": None}
        branch = context.cache.fork()
        branch.batch_repeat_interleave(3)
        return model.generate(IDS[:, :9], past_key_values=branch, **options)

    assert torch.equal(*map(beams, contexts))
    rows = []
    for context in contexts:
        branch = context.cache.fork()
        decoded(model, branch, IDS[:, :12], 7)
        branch.batch_repeat_interleave(2)
        mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
        with torch.no_grad():
            rows.append(
                model(input_ids=IDS[:, :8].view(2, 4), attention_mask=mask, **cache_kwargs(model, branch)).logits[:, -1]
            )
    assert torch.equal(*rows)


def test_answers_sources_traces_and_chats(path, model, device, monkeypatch):
    found, expected = (
        context.generate("jim looked at", max_new_tokens=30) for context in both(path, model, monkeypatch)
    )
    assert (found.ids, found.sources) == (expected.ids, expected.sources)
    for layer in (0, 1):
        assert torch.equal(found.trace.blocks[layer], expected.trace.blocks[layer])
        assert torch.equal(found.trace.gates[layer], expected.trace.gates[layer])
    assert found.traffic.file_bytes == 0


def test_a_fork_in_memory_reads_more(path, model, device, monkeypatch):
    contexts = [context.fork() for context in both(path, model, monkeypatch)]
    for context in contexts:
        context.append(NOTE, "note")
    found, expected = (context.generate("he spoke of", max_new_tokens=20) for context in contexts)
    assert (found.ids, found.sources) == (expected.ids, expected.sources)


def test_joined_rows_of_a_server(path, model, device, monkeypatch):
    answers = []
    for context in both(path, model, monkeypatch):
        branches = [context.cache.fork() for _ in range(3)]
        for number, branch in enumerate(branches):
            decoded(model, branch, IDS[:, : 9 + number], 8)
        found = [read_together(model, branches, [IDS[:, step : step + 1]] * 3) for step in range(30)]
        answers.append(torch.stack([torch.stack(rows) for rows in found]))
    assert torch.equal(*answers)


def test_a_collection(tmp_path, model, device, monkeypatch):
    with Collection.create(tmp_path / "set", model) as documents:
        documents.add(BOOK, name="book")
        documents.add(NOTE, name="note")
    found, expected = (
        context.generate("jim", max_new_tokens=20) for context in both(tmp_path / "set", model, monkeypatch)
    )
    assert (found.ids, found.sources) == (expected.ids, expected.sources)


# Graphs.


@pytest.mark.parametrize("prompt", [1, 4, 5, 6, 30])
def test_steps_are_graphs_of_what_eager_steps_compute(prompt, path, model, device, monkeypatch, graphs):
    branches = [context.cache.fork() for context in both(path, model, monkeypatch)]
    assert_same(*(decoded(model, branch, IDS[:, : prompt + 40], prompt) for branch in branches))
    assert branches[0].eager_reason is None
    assert "tier below the device" in branches[1].eager_reason
    assert graphs.steps > 30
    # Landmark keys move once, as the first own block follows those of the context, and own blocks never.
    assert graphs.captures <= 4


def test_the_answer_of_a_context_is_decoded_by_graphs(path, model, device, graphs):
    context = Context.open(path, model, **EXACT)
    context.generate("jim looked at", max_new_tokens=40)
    assert graphs.steps > 30
    mine = context.fork()
    mine.append(NOTE, "note")
    before = graphs.steps
    mine.generate("jim looked at", max_new_tokens=40)
    assert graphs.steps - before > 30


def test_a_branch_with_more_blocks_than_its_budget_goes_on_eagerly(path, model, device, monkeypatch, graphs):
    branches = [context.cache.fork() for context in both(path, model, monkeypatch, host_budget="20KB")]
    assert_same(*(decoded(model, branch, IDS[:, :120], 5) for branch in branches))
    assert graphs.steps > 8
    assert "larger host_budget" in branches[0].eager_reason


def test_hundreds_of_steps_are_compiled_once(path, model, device, monkeypatch):
    """Bit for bit those of the operations one by one, over 40 ends of blocks."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(linear, "serves_rows", lambda *_: False)  # as on a GPU; loops cannot be traced
    monkeypatch.setattr(step_graph, "_has_graphs", lambda device: True)
    context = Context.open(path, model, **EXACT)
    assert context.blocks > 220
    torch._dynamo.reset()
    found = []
    for traced in (lambda step: torch.compile(step, fullgraph=True, backend=backend), lambda step: step):
        branch = context.cache.fork()
        monkeypatch.setattr(step_graph, "_captured", Recorded().capture)
        decoded(model, branch, IDS[:, :40], 20)  # a block is appended, for which landmark keys move for the last time
        step_graph._STEPS.pop(branch)
        recorded = Recorded(traced)
        monkeypatch.setattr(step_graph, "_captured", recorded.capture)
        branch.decode = "graph"
        found.append(decoded(model, branch, IDS, 0))
        assert recorded.steps == 200
    assert torch.equal(*found)
    assert len(compiled) == 2


# What fits, damage, and memory.


def test_what_does_not_fit_is_read_through_a_tier(path, model, monkeypatch, device, graphs):
    context = Context.open(path, model)
    needed = sum(store.resident_blocks().nbytes for store in stores_of(context.cache))
    monkeypatch.setattr(resident, "_free_and_all", lambda device: (needed + 249, 1000))
    assert not is_resident(Context.open(path, model, **EXACT).cache)
    monkeypatch.setattr(resident, "_free_and_all", lambda device: (needed + 250, 1000))
    assert is_resident(Context.open(path, model, **EXACT).cache)


def test_a_device_budget_decides(path, model, device, monkeypatch):
    """On a CPU such a budget is an error elsewhere: here it is looked at alone."""
    layout = Context.open(path, model)._documents.snapshot
    (size,) = {shape.nbytes for shape in layout.layout.blocks}
    for spare, fits in ((1, False), (2, True)):
        budgets = Budgets(host=10 * size, device=(layout.blocks + spare) * size, step_blocks=2)
        brought = resident.brought(layout, budgets, torch.device("cpu"))
        assert all((room is not None) == fits for room in brought)
    assert budgets.beside(brought[0].nbytes).device == 2 * size


def test_a_budget_of_more_than_there_is(path, model, device, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(resident, "room_for", full)
    assert not is_resident(Context.open(path, model).cache)


def test_a_context_that_grows_and_an_empty_one_are_read_through_tiers(path, tmp_path, model, device):
    with Context.create(tmp_path / "empty", model):
        pass
    assert Context.open(tmp_path / "empty", model).blocks == 0
    with Context.create(tmp_path / "one", model) as one:
        one.append(BOOK, "book")
    with Context.open(tmp_path / "one", model, write=True) as one:
        assert not any(isinstance(store, ResidentStore) for store in stores_of(one.cache))
        one.append(NOTE, "note")


def test_progress_counts_the_bytes_that_are_brought(path, model, device):
    seen = []
    context = Context.open(path, model, progress=lambda done, total: seen.append((done, total)))
    total = sum(store.resident_blocks().nbytes for store in stores_of(context.cache))
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_damaged_blocks_are_found_when_they_are_brought(tmp_path, model, device):
    path = made(tmp_path / "context", model)
    file = path / "segments" / "000001.blocks"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(Damage, match="is damaged in block"):
        Context.open(path, model)


def test_memory_is_shared_by_branches_and_freed_with_the_last(path, model, device):
    context = Context.open(path, model, **EXACT)
    base = stores_of(context.cache)[1].resident_blocks().keys
    branch, gone = context.cache.fork(), weakref.ref(base)
    decoded(model, branch, IDS[:, :40], 5)
    assert stores_of(branch)[1].resident_blocks().keys is base
    context.close()
    del context, base
    assert gone() is not None
    del branch
    assert gone() is None, "without waiting for the search for cyclic garbage"


def test_a_chat_about_a_context(tmp_path, device, monkeypatch, graphs):
    from tiny_reader import save_chat

    model = landmark.from_pretrained(save_chat(tmp_path))
    path = made(tmp_path / "context", model)
    answers = []
    for context in both(path, model, monkeypatch):
        chat = Chat.about(context)
        answers.append([chat.ask(question, max_new_tokens=30).sources for question in ("who looked at it", "and then")])
    assert graphs.steps > 30
    assert len(answers[0][0]) == len(answers[1][0])
